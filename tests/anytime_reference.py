"""The cascade, slow and literal: one sample and one member at a time, plain Python numbers, no tensors.

Written from the definitions and apart from the library, which the tests compare with it. A table holds lists:
``table[m][n][k]`` is the softmax of member m (in the order in which they run) for sample n and class k.
"""

from __future__ import annotations

import math


def answer_of(probabilities):
    return max(range(len(probabilities)), key=lambda k: probabilities[k])


def in_the_mean(members, replaces):
    """Of the first so many members those that no other of them takes the place of."""
    gone = {replaces[m] for m in range(members)} if replaces else set()
    return [m for m in range(members) if m not in gone]


def mean_of(table, sample, members, replaces=(), weights=()):
    """Mean softmax of the first so many members."""
    classes, held = range(len(table[0][sample])), in_the_mean(members, replaces)
    share = dict(enumerate(weights[members - 1])) if weights else dict.fromkeys(held, 1 / len(held))
    return [sum(share[m] * table[m][sample][k] for m in held) for k in classes]


def at_temperature(probabilities, temperature):
    powers = [p ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


def confidence_of(name, table, sample, members, temperature, replaces=(), weights=()):
    mean = mean_of(table, sample, members, replaces, weights)
    tempered = at_temperature(mean, temperature)
    ranked = sorted(tempered, reverse=True)
    if name == "max_probability":
        return ranked[0]
    if name == "margin":
        return ranked[0] - ranked[1]
    if name == "entropy":
        return 1 + sum(p * math.log(p) for p in tempered if p > 0) / math.log(len(tempered))
    assert name == "agreement"
    held = in_the_mean(members, replaces)
    votes = sum(answer_of(table[m][sample]) == answer_of(mean) for m in held)
    return (max(votes - 1, 0) + ranked[0]) / len(held)


def exits_of(table, sample, confidence, temperatures, monotone, replaces=(), weights=()):
    """Prediction and confidence of one sample after each member."""
    found = []
    for members in range(1, len(table) + 1):
        now = mean_of(table, sample, members, replaces, weights)
        sure = confidence_of(confidence, table, sample, members, temperatures[members - 1], replaces, weights)
        if monotone and found and found[-1][1] > sure:
            now, sure = found[-1]
        found.append((now, sure))
    return found


def cascade(table, confidence, temperatures, thresholds, monotone, replaces=(), weights=()):
    """(exit, prediction, confidence) of every sample; the first exit is 0."""
    answers = []
    for sample in range(len(table[0])):
        exits = exits_of(table, sample, confidence, temperatures, monotone, replaces, weights)
        for index, (prediction, sure) in enumerate(exits):
            if index == len(exits) - 1 or sure >= thresholds[index]:
                answers.append((index, prediction, sure))
                break
    return answers


def overthinking(predictions, labels):
    """``predictions[e][n][k]``: counts by hand of what later exits take away."""
    exits, samples = len(predictions), len(labels)
    later = [(early, late) for early in range(exits) for late in range(early + 1, exits)]

    def right(exit_, n):
        return answer_of(predictions[exit_][n]) == labels[n]

    def accuracy(exit_):
        return sum(right(exit_, n) for n in range(samples)) / samples

    lost = sum(any(right(a, n) and not right(b, n) for a, b in later) for n in range(samples))
    falls = [
        max([0.0, *(predictions[a][n][labels[n]] - predictions[b][n][labels[n]] for a, b in later)])
        for n in range(samples)
    ]
    return {
        "right_to_wrong": lost / samples,
        "probability_drop": sum(falls) / samples,
        "accuracy_drop": max([0.0, *(accuracy(a) - accuracy(b) for a, b in later)]),
    }
