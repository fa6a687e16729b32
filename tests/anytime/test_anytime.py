"""Cascades against a literal one, on tables and really run; budgets, deadlines, folders, bad input.

The clock of the deadline tests is made up: members say how long they take, and nothing sleeps.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import anytime_reference
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import assert_refused
from saved_files import edit_json, rewrite
from small_networks import Bag
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import (
    CONFIDENCES,
    LatencyTable,
    cascade,
    confidence_of,
    costs,
    exit_shares,
    exits_of,
    fit_policy,
    fit_temperature,
    fit_weights,
    order_greedily,
    overthinking,
    replaced_exits,
    running_means,
    samples_per_member,
    simulate,
    tempered,
    thresholds_for,
)

NAMES = ("a", "b", "c", "d")
COSTS = (1.0, 2.0, 4.0, 7.0)


def softmax_table(members: int, samples: int, classes: int, seed: int, sharpness: float) -> torch.Tensor:
    """Softmax (M, N, K) in float64 of members that agree in part."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, samples, classes, generator=generator, dtype=torch.float64)
    own = torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    return (sharpness * (shared + own)).softmax(2)


def policy_of(members: int, **changes) -> swe.anytime.ExitPolicy:
    fields = {"temperatures": (1.0,) * members, "thresholds": (0.5,) * (members - 1)}
    return swe.anytime.ExitPolicy(**{"order": NAMES[:members], **fields, **changes})


tables = st.builds(
    softmax_table,
    members=st.integers(1, 4),
    samples=st.integers(1, 12),
    classes=st.integers(2, 5),
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.3, 1.0, 4.0]),
)


# -- On tables ---------------------------------------------------------------------------------------------------------


@given(table=tables, confidence=st.sampled_from(sorted(CONFIDENCES)), monotone=st.booleans(), data=st.data())
def test_simulation_equals_the_literal_cascade(table, confidence, monotone, data) -> None:
    members = len(table)
    temperatures = tuple(data.draw(st.sampled_from([0.4, 1.0, 3.0])) for _ in range(members))
    thresholds = tuple(data.draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, math.inf])) for _ in range(members - 1))
    networks = data.draw(st.lists(st.sampled_from("abcd"), min_size=members, max_size=members))
    replaces = replaced_exits(NAMES[:members], dict(zip(NAMES, networks)))
    rows = []
    if data.draw(st.booleans()):
        for index in range(members):
            held = anytime_reference.in_the_mean(index + 1, replaces)
            drawn = [data.draw(st.integers(0, 3)) + (one == held[-1]) if one in held else 0 for one in range(index + 1)]
            rows.append(tuple(value / sum(drawn) for value in drawn))
    weights, listed = tuple(rows), table.tolist()
    for sample in range(table.shape[1]):  # rounding decides nothing
        exits = anytime_reference.exits_of(listed, sample, confidence, temperatures, False, replaces, weights)
        assume(all(abs(sure - limit) > 1e-9 for (_, sure), limit in zip(exits, thresholds) if limit))
    policy = policy_of(
        members, confidence=confidence, temperatures=temperatures, thresholds=thresholds, monotone=monotone,
        replaces=replaces, weights=weights,
    )  # fmt: skip
    assert swe.anytime.ExitPolicy.from_dict(policy.to_dict()) == policy
    outcome = simulate(table, policy)
    expected = anytime_reference.cascade(listed, confidence, temperatures, thresholds, monotone, replaces, weights)
    assert outcome.exits.tolist() == [index for index, _, _ in expected]
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(outcome.predictions, table.new_tensor([mean for _, mean, _ in expected]), **close)
    torch.testing.assert_close(outcome.confidence, table.new_tensor([sure for _, _, sure in expected]), **close)
    cost = sum(sum(COSTS[: index + 1]) for index, _, _ in expected) / len(expected)
    assert outcome.mean_cost(COSTS[:members]) == pytest.approx(cost)


def test_a_confidence_on_the_threshold_leaves() -> None:
    table = torch.tensor([[[0.75, 0.25], [0.625, 0.375]], [[0.25, 0.75], [0.125, 0.875]]])
    outcome = simulate(table, policy_of(2, confidence="margin", thresholds=(0.5,)))
    assert outcome.exits.tolist() == [0, 1]
    assert outcome.predictions.tolist() == [[0.75, 0.25], [0.375, 0.625]]
    assert simulate(table, policy_of(2, thresholds=(0.0,))).exits.tolist() == [0, 0]
    assert simulate(table, policy_of(2, thresholds=(math.inf,))).exits.tolist() == [1, 1]


def test_of_two_equally_sure_predictions_the_later_stands() -> None:
    table = torch.tensor([[[0.5625, 0.4375]], [[0.3125, 0.6875]], [[0.625, 0.375]]])
    predictions, sure = exits_of(table, policy_of(3, confidence="max_probability", monotone=True))
    # The running means are 0.5625 for the first class, as much for the second, and 1/2 for both.
    assert sure[:, 0].tolist() == [0.5625, 0.5625, 0.5625]
    assert predictions[:, 0].tolist() == [[0.5625, 0.4375], [0.4375, 0.5625], [0.4375, 0.5625]]


def test_confidences_by_hand() -> None:
    mean = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    found = {name: float(confidence_of(name, mean, torch.tensor([2]), 4)) for name in CONFIDENCES}
    nats = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    expected = {"max_probability": 0.5, "margin": 0.25, "entropy": 1 - nats / math.log(3), "agreement": 1.5 / 4}
    assert found == pytest.approx(expected)
    torch.testing.assert_close(tempered(mean, 0.5), torch.tensor([[4.0, 1, 1]], dtype=torch.float64) / 6)
    assert float(confidence_of("agreement", mean, torch.tensor([0]), 4)) == pytest.approx(0.5 / 4)  # no vote at all


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("name", sorted(CONFIDENCES))
def test_confidences_stay_between_0_and_1(name: str, classes: int) -> None:
    uniform, certain = torch.full((1, classes), 1 / classes), torch.eye(classes)[:1]
    for mean in (uniform, certain, (torch.randn(50, classes)).softmax(1)):
        for temperature in (0.05, 1.0, 20.0):
            sure = confidence_of(name, mean, torch.ones(len(mean), dtype=torch.int64), 1, temperature)
            assert float(sure.min()) >= 0 and float(sure.max()) <= 1 + 1e-6


@given(table=tables, confidence=st.sampled_from(sorted(CONFIDENCES)))
def test_kept_confidences_never_fall(table, confidence) -> None:
    predictions, sure = exits_of(table, policy_of(len(table), confidence=confidence, monotone=True))
    assert bool((sure[1:] >= sure[:-1]).all())
    plain, unsure = exits_of(table, policy_of(len(table), confidence=confidence))
    torch.testing.assert_close(sure, unsure.cummax(0).values, rtol=0, atol=0)
    kept = (sure[1:] == sure[:-1])[..., None]
    torch.testing.assert_close(predictions[1:], torch.where(kept, predictions[:-1], plain[1:]), rtol=0, atol=0)


@given(table=tables, seed=st.integers(0, 99))
def test_overthinking_equals_the_literal_count(table, seed) -> None:
    labels = torch.randint(0, table.shape[2], table.shape[1:2], generator=torch.Generator().manual_seed(seed))
    expected = anytime_reference.overthinking(table.tolist(), labels.tolist())
    assert overthinking(table, labels) == pytest.approx(expected)


def test_overthinking_by_hand() -> None:
    predictions = torch.tensor(
        [
            [[0.75, 0.25], [0.75, 0.25], [0.25, 0.75]],  # answers 0 0 1
            [[0.25, 0.75], [0.875, 0.125], [0.625, 0.375]],  # answers 1 0 0
            [[0.625, 0.375], [0.75, 0.25], [0.0, 1.0]],  # answers 0 0 1
        ]
    )
    # Label 0: right are 2, 2 and 2 of 3. Samples 0 (by the second exit) and 2 (by the third) are lost.
    expected = {"right_to_wrong": 2 / 3, "probability_drop": (0.5 + 0.125 + 0.625) / 3, "accuracy_drop": 0}
    assert overthinking(predictions, torch.tensor([0, 0, 0])) == pytest.approx(expected)
    # Labels 1 0 0: right are 1, 3 and 1 of 3.
    expected = {"right_to_wrong": 2 / 3, "probability_drop": (0.375 + 0.125 + 0.625) / 3, "accuracy_drop": 2 / 3}
    assert overthinking(predictions, torch.tensor([1, 0, 0])) == pytest.approx(expected)


# -- Calibration on tables ---------------------------------------------------------------------------------------------


def held_out(seed: int, samples: int = 300, members: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    table = softmax_table(members, samples, 5, seed, 2.0)
    labels = (10 * table.mean(0)).softmax(1).multinomial(1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return table.float(), labels


@given(
    seed=st.integers(0, 500), share=st.floats(0, 1), confidence=st.sampled_from(sorted(CONFIDENCES)),
    temperature=st.booleans(), monotone=st.booleans(),
)  # fmt: skip
def test_fitted_mean_cost_meets_its_target(seed, share, confidence, temperature, monotone) -> None:
    table, labels = held_out(seed)
    costs = COSTS[:3]
    target = costs[0] + share * (sum(costs) - costs[0])
    options = {"confidence": confidence, "temperature": temperature, "monotone": monotone}
    policy = fit_policy(table, labels, costs, NAMES[:3], ("cost", target), **options)
    cost = simulate(table, policy).mean_cost(costs)
    # Rounding may move one sample at each of the exits at once.
    assert target - 2 * sum(costs) / len(labels) - 1e-9 <= cost <= target + 1e-9
    assert policy == fit_policy(table, labels, costs, NAMES[:3], ("cost", target), **options)
    assert swe.anytime.ExitPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@given(seed=st.integers(0, 500), drop=st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_fitted_accuracy_drop_is_met_at_no_more_than_all_members_cost(seed, drop) -> None:
    table, labels = held_out(seed)
    policy = fit_policy(table, labels, COSTS[:3], NAMES[:3], ("max_accuracy_drop", drop))
    outcome = simulate(table, policy)
    full = float((table.mean(0).argmax(1) == labels).double().mean())
    assert outcome.accuracy(labels) >= full - drop
    assert outcome.mean_cost(COSTS[:3]) <= sum(COSTS[:3])
    if drop >= full:
        assert outcome.exits.eq(0).all()


def test_larger_drops_cost_no_more() -> None:
    table, labels = held_out(3)
    drops = (0.0, 0.01, 0.02, 0.05, 0.1)
    policies = [fit_policy(table, labels, COSTS[:3], NAMES[:3], ("max_accuracy_drop", drop)) for drop in drops]
    found = [simulate(table, policy).mean_cost(COSTS[:3]) for policy in policies]
    assert found == sorted(found, reverse=True) and found[-1] < found[0]


def test_monotone_answers_that_cannot_be_as_accurate_are_refused() -> None:
    sure_and_wrong = torch.tensor([[0.99, 0.01]]).expand(100, 2)
    right = torch.tensor([[0.005, 0.995]]).expand(100, 2)
    table = torch.stack([sure_and_wrong, right, right])
    labels = torch.ones(100, dtype=torch.int64)
    kwargs = {"confidence": "margin", "temperature": False}
    target = ("max_accuracy_drop", 0.1)
    assert simulate(table, fit_policy(table, labels, COSTS[:3], NAMES[:3], target, **kwargs)).accuracy(labels) == 1
    with pytest.raises(swe.SuperWeightError, match=r"monotone predictions of all members are 1\.0000 less accurate"):
        fit_policy(table, labels, COSTS[:3], NAMES[:3], target, monotone=True, **kwargs)


def test_ties_leave_together_and_never_cost_more() -> None:
    table = torch.tensor([[0.8, 0.2]]).repeat(3, 100, 1)
    labels = torch.zeros(100, dtype=torch.int64)
    for target in (1.0, 3.0, 6.9):
        policy = fit_policy(table, labels, COSTS[:3], NAMES[:3], ("cost", target), temperature=False)
        assert simulate(table, policy).mean_cost(COSTS[:3]) <= target
    everything = fit_policy(table, labels, COSTS[:3], NAMES[:3], ("cost", 7.0), temperature=False)
    assert simulate(table, everything).mean_cost(COSTS[:3]) == 7.0


def test_shares_and_thresholds_by_hand() -> None:
    assert exit_shares(3, 2.0) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    sure = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.4, 0.3], [0.0, 0.0, 0.0, 0.0]])
    assert thresholds_for(sure, [0.5, 0.25, 0.25]) == pytest.approx((0.75, 0.35))
    assert thresholds_for(sure, [0.0, 1.0, 0.0]) == (math.inf, 0.0)  # where all leave, so would any other sample


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fitted_temperature_is_the_one_that_labels_were_drawn_at(temperature: float) -> None:
    logits = 3 * torch.randn(20_000, 4, dtype=torch.float64)
    labels = (logits / temperature).softmax(1).multinomial(1)[:, 0]
    assert fit_temperature(logits.softmax(1), labels) == pytest.approx(temperature, rel=0.05)


def test_calibration_refuses_costs_out_of_reach() -> None:
    table, labels = held_out(0)
    for target in (0.5, 7.5):
        with pytest.raises(swe.SuperWeightError, match=rf"between .* 1 to 7 \(0\.143 to 1 of all\); got {target}"):
            fit_policy(table, labels, COSTS[:3], NAMES[:3], ("cost", target))


def test_fitted_weights_are_the_most_likely() -> None:
    """Against SciPy's solver on the simplex, by the logarithms of the weights."""
    table, labels = held_out(0)
    rows = fit_weights(table, labels)
    right = table.double()[:, range(len(labels)), labels]
    for index, row in enumerate(rows):
        assert len(row) == index + 1 and sum(row) == pytest.approx(1) and min(row) >= 0

        def loss(logits: np.ndarray, index: int = index) -> float:
            return -float((torch.from_numpy(logits).softmax(0) @ right[: index + 1]).log().mean())

        best = scipy.optimize.minimize(loss, np.zeros(index + 1), method="Nelder-Mead", options={"xatol": 1e-6})
        found = -float((torch.tensor(row, dtype=torch.float64) @ right[: index + 1]).log().mean())
        assert found == pytest.approx(float(best.fun), abs=2e-4)


@given(table=tables, data=st.data())
def test_no_exit_is_less_accurate_than_its_best_member(table, data) -> None:
    samples, classes = table.shape[1:]
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples)))
    networks = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(table), max_size=len(table)))
    replaces = replaced_exits(NAMES[: len(table)], dict(zip(NAMES, networks)))
    rows = fit_weights(table, labels, replaces)
    policy_of(len(table), replaces=replaces, weights=rows)  # which checks them
    for index, mean in enumerate(running_means(table, replaces, rows)):
        held = anytime_reference.in_the_mean(index + 1, replaces)
        alone = (table[held].argmax(2) == labels).double().mean(1)
        assert float((mean.argmax(1) == labels).double().mean()) >= float(alone.max()) - 1e-12


def test_a_weak_member_does_not_pull_a_strong_one_down() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    strong = torch.nn.functional.one_hot(labels, 4) * 1.5 + torch.randn(400, 4, generator=generator)
    weak = 6 * torch.randn(400, 4, generator=generator)  # sure, and knows nothing
    table = torch.stack([strong, weak]).softmax(2)
    options = {"costs": COSTS[:2], "order": NAMES[:2], "target": ("cost", 3.0)}
    equal, fitted = (fit_policy(table, labels, weights=kind, **options) for kind in ("equal", "fitted"))
    assert equal.weights == () and fitted.weights[1][0] > 0.9
    accuracies = [simulate(table, policy).accuracy(labels) for policy in (equal, fitted)]
    assert accuracies[1] > accuracies[0] + 0.1
    assert accuracies[1] >= float((strong.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("confidence", ["margin", "agreement"])
def test_every_way_to_answer_uses_the_weights(data, confidence, tmp_path) -> None:
    members = versions()
    predictor = swe.AnytimePredictor(members, tuple(members), input_shape=(3, 8, 8))
    found = predictor.calibrate(data, flops=0.5, confidence=confidence, weights="fitted")
    weights = predictor.policy.weights
    images, labels = torch.cat([part for part, _ in data]), torch.cat([part for _, part in data])
    table = table_of(predictor, images)
    assert weights == fit_weights(table, labels, predictor.replaces) == predictor.weights
    assert any(len(set(row) - {0.0}) > 1 for row in weights[1:]), "some member counts more than another"
    means = [torch.einsum("m,mnk->nk", torch.tensor(row), table[: len(row)]) for row in weights]
    for step, mean in zip(predictor.stream(images), means, strict=True):
        torch.testing.assert_close(step.probabilities, mean)
    torch.testing.assert_close(predictor(images, early_exit=False).probabilities, means[-1])
    torch.testing.assert_close(predictor(images, deadline_ms=1e9, early_exit=False).probabilities, means[-1])
    everything = sum(predictor.flops.values()) * len(images)
    torch.testing.assert_close(predictor(images, batch_flops=everything).probabilities, means[-1])
    outcome = simulate(table, predictor.policy)
    torch.testing.assert_close(predictor(images).probabilities, outcome.predictions)
    assert found.full_accuracy == pytest.approx(float((means[-1].argmax(1) == labels).double().mean()))
    read = swe.anytime.ExitPolicy.from_dict(json.loads(json.dumps(predictor.policy.to_dict())))
    assert read == predictor.policy
    with pytest.raises(swe.SuperWeightError, match="unknown weights 'fited': did you mean 'fitted'"):
        predictor.calibrate(data, flops=0.5, weights="fited")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(
            (
                {"weights": ((1.0,), *rows), "replaces": (None, None, 0)},
                "weights must give each exit one number of 0 or more for every",
            )
            for rows in [
                (), ((0.5, 0.5),), ((0.5, 0.5), (0.5, 0.5)), ((0.5, 0.4), (0.2, 0.3, 0.5)),
                ((1.5, -0.5), (0.2, 0.3, 0.5)), ((math.nan, 1.0), (0.2, 0.3, 0.5)), ((True, 0.0), (0.2, 0.3, 0.5)),
                ((0.5, 0.5), (0.2, 0.3, 0.5)),
            ]
        ),
        *(
            ({"replaces": replaces}, "replaces must name for each of 3 exits an earlier one")
            for replaces in [(None,), (None, 1), (0, None), (None, None, 3), (None, 0, 0), ("a", None, None)]
        ),
        *(
            ({"thresholds": (threshold, 0.5)}, "thresholds must be numbers; got")
            for threshold in ["0.5", None, True, torch.tensor(0.5), np.bool_(True)]
        ),
        ({"order": ("a", "b", 3)}, r"order must name at least one member, and each once; got \['a', 'b', 3\]"),
        ({"monotone": 1}, "monotone must be bool; got 1"),
        ({"confidence": ["margin"]}, "unknown confidence"),
    ],
)  # fmt: skip
def test_policies_that_are_none(changes, match) -> None:
    assert_refused(match, policy_of, 3, **changes)


# -- Budgets of a batch, orders ----------------------------------------------------------------------------------------


@given(count=st.integers(1, 200), flops=st.lists(st.integers(1, 1000), min_size=1, max_size=5), share=st.floats(0, 1.2))
def test_batch_budgets_are_never_exceeded_and_nearly_spent(count, flops, share) -> None:
    least, most = count * flops[0], count * sum(flops)
    budget = least + share * (most - least)
    numbers = samples_per_member(count, flops, budget)
    assert numbers[0] == count and list(numbers) == sorted(numbers, reverse=True)
    left = budget - sum(number * cost for number, cost in zip(numbers, flops))
    assert left >= 0
    for index in range(1, len(flops)):  # nobody else can be paid for
        assert numbers[index] == numbers[index - 1] or left < flops[index]
    assert budget < most or numbers == (count,) * len(flops)


def test_greedy_order_of_versions() -> None:
    """The small version is right for less; the large one takes its place, and a third of their network has none."""
    labels = torch.tensor([0, 0, 1, 1])
    small = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])  # half right
    large = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6]])  # all right, and not sure
    table, flops = torch.stack([small, large, small]), {"s": 1, "l": 10, "m": 5}
    versions = dict.fromkeys("slm", "network")
    assert order_greedily(("s", "l", "m"), table, labels, flops)[-1] == "m"
    assert order_greedily(("s", "l", "m"), table, labels, {**flops, "s": 100}, versions) == ("l", "s")
    assert order_greedily(("l", "m"), table[1:], labels, flops, versions) == ("l",)


def test_greedy_order_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    zero, one = [0.9, 0.1], [0.1, 0.9]
    table = torch.tensor([[zero, zero, one, zero], [zero, zero, zero, one], [one, one, one, one]])
    # Above chance of 1/2: 0 for 1 FLOP, 1/2 for 4, a loss for 1. After "good", nothing is gained; "bad" loses more.
    assert order_greedily(("poor", "good", "bad"), table, labels, {"poor": 1, "good": 4, "bad": 1})[0] == "good"
    same = torch.tensor([[zero, zero, zero, one]]).expand(2, 4, 2)
    assert order_greedily(("dear", "cheap"), same, labels, {"dear": 9, "cheap": 2}) == ("cheap", "dear")


# -- Members that are really run ---------------------------------------------------------------------------------------


def ensemble() -> swe.SuperWeightEnsemble:
    """Untrained members with fitting BatchNorm statistics and large heads: some of their answers are sure."""
    torch.manual_seed(0)
    sizes = {"wide": (10, 1), "thin": (10, 0.5), "deep": (16, 0.5)}
    members = {name: swe.wide_resnet(depth, width, 5) for name, (depth, width) in sizes.items()}
    built = swe.SuperWeightEnsemble(members, budget=0.9)
    with torch.no_grad():
        built.train()(torch.randn(64, 3, 8, 8))
        for name, parameter in built.named_parameters():
            if name.endswith("fc.weight"):
                parameter.mul_(6)
    return built.eval()


@pytest.fixture(scope="module")
def shared() -> swe.SuperWeightEnsemble:
    return ensemble()


@pytest.fixture(scope="module")
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(5)
    return [(torch.randn(60, 3, 8, 8), torch.randint(0, 5, (60,))) for _ in range(2)]


def versions() -> dict[str, nn.Module]:
    """Two networks, one of them in two smaller versions too."""
    torch.manual_seed(0)
    members = {
        "a@25%": swe.wide_resnet(10, 0.25, 5),
        "b": swe.wide_resnet(10, 0.5, 5),
        "a@50%": swe.wide_resnet(10, 0.75, 5),
        "a": swe.wide_resnet(10, 1, 5),
    }
    for name in ("a@25%", "a@50%"):
        members[name].version_of = "a"
    return members


def recorded(predictor: swe.AnytimePredictor) -> list[tuple[str, int]]:
    """Every call of a member from now on: (name, images)."""
    calls: list[tuple[str, int]] = []
    for name, module in predictor.modules.items():
        module.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, len(args[0]))))
    return calls


def table_of(predictor: swe.AnytimePredictor, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([module(images).float().softmax(1) for module in predictor.modules.values()])


def test_members_are_plain_frozen_in_eval_mode_and_cheapest_first(shared) -> None:
    predictor = swe.AnytimePredictor(shared.train(), input_shape=(3, 8, 8))
    shared.eval()
    assert predictor.order == ("thin", "deep", "wide")
    costs = swe.anytime.member_costs(shared, (3, 8, 8))
    assert predictor.flops == {name: costs[name].flops for name in predictor.order}
    assert list(predictor.flops.values()) == sorted(predictor.flops.values())
    for module in predictor.modules.values():
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_stream_means_costs_and_laziness(shared) -> None:
    predictor = swe.AnytimePredictor(shared, input_shape=(3, 8, 8))
    calls, images = recorded(predictor), torch.randn(7, 3, 8, 8)
    stream = predictor.stream(images)
    assert calls == []
    steps = [next(stream), next(stream)]
    assert calls == [(name, 7) for name in predictor.order[:2]]
    stream.close()
    assert len(calls) == 2
    steps = list(predictor.stream(images))
    table, flops = table_of(predictor, images), list(predictor.flops.values())
    for index, step in enumerate(steps):
        assert (step.member, step.members_used) == (predictor.order[index], index + 1)
        assert step.flops == sum(flops[: index + 1])
        torch.testing.assert_close(step.probabilities, table[: index + 1].mean(0))
    with torch.no_grad():
        torch.testing.assert_close(steps[-1].probabilities, shared(images).softmax(2).mean(0), rtol=1e-4, atol=1e-5)
    answer = predictor(images)
    torch.testing.assert_close(answer.probabilities, steps[-1].probabilities)
    assert answer.members_used.tolist() == [3] * 7 and answer.skipped == () and answer.latency_ms > 0
    assert answer.flops.tolist() == [sum(flops)] * 7


@pytest.mark.parametrize("order", [None, ("deep", "thin", "wide"), ("wide", "thin"), ("thin",)])
@pytest.mark.parametrize(("confidence", "monotone"), [("margin", False), ("agreement", True), ("entropy", True)])
def test_the_cascade_that_runs_answers_as_on_the_table(shared, data, order, confidence, monotone) -> None:
    predictor = swe.AnytimePredictor(shared.double(), order, input_shape=(3, 8, 8))
    shared.float()
    assert order is None or predictor.order == order
    doubles = [(images.double(), labels) for images, labels in data]
    first, *_ = predictor.flops.values()
    whole = sum(predictor.flops.values())
    found = predictor.calibrate(doubles, flops=(first + whole) / 2, confidence=confidence, monotone=monotone)
    images = torch.cat([part for part, _ in doubles])
    outcome = simulate(table_of(predictor, images), predictor.policy)
    costs = list(predictor.flops.values())
    assert found.flops == pytest.approx(outcome.mean_cost(costs))
    # A threshold is the confidence of one sample; a little lower, and the last bit of a convolution decides nothing.
    lower = tuple(threshold * (1 - 1e-6) for threshold in predictor.policy.thresholds)
    predictor.set_policy(replace(predictor.policy, thresholds=lower))
    assert simulate(table_of(predictor, images), predictor.policy).exits.equal(outcome.exits)
    calls = recorded(predictor)
    for size in (120, 64, 1):
        for start in range(0, 120 if size > 1 else 12, size):
            calls.clear()
            answer = predictor(images[start : start + size])
            exits, here = outcome.exits[start : start + size], slice(start, start + size)
            assert (answer.members_used - 1).tolist() == exits.tolist()
            torch.testing.assert_close(answer.probabilities, outcome.predictions[here])
            torch.testing.assert_close(answer.confidence, outcome.confidence[here])
            remaining = [(name, int((exits >= index).sum())) for index, name in enumerate(predictor.order)]
            assert calls == [call for call in remaining if call[1]]  # who has left is not computed
            assert answer.flops.tolist() == [sum(costs[: index + 1]) for index in exits.tolist()]
    assert len(costs) == 1 or len(set(outcome.exits.tolist())) > 1
    everyone = predictor(images, early_exit=False)
    assert everyone.members_used.tolist() == [len(costs)] * 120


def test_a_sample_that_runs_leaves_on_the_threshold() -> None:
    predictor, images = linear_predictor(), torch.zeros(3, 4)
    _, sure = exits_of(table_of(predictor, images), policy_of(2, confidence="margin"))
    for threshold, used in ((float(sure[0, 0]), 1), (float(sure[0, 0]) + 1e-4, 2)):
        policy = {"order": predictor.order, "confidence": "margin", "temperatures": (1.0, 1.0)}
        predictor.set_policy(swe.anytime.ExitPolicy(**policy, thresholds=(threshold,)))
        assert predictor(images).members_used.tolist() == [used] * 3


def test_calibration_tells_what_the_policy_does(shared, data) -> None:
    predictor = swe.AnytimePredictor(shared)
    assert_refused("not calibrated: call calibrate", predictor, data[0][0], early_exit=True)
    found = predictor.calibrate(data, flops=0.5)
    assert found.num_samples == 120 and sum(found.exits) == pytest.approx(1)
    assert found.full_flops == sum(predictor.flops.values())
    step = 2 * found.full_flops / 120
    assert found.full_flops / 2 - step <= found.flops <= found.full_flops / 2
    assert found == predictor.calibration and found.target == ("flops", found.full_flops / 2)
    first = predictor.flops[predictor.order[0]]
    assert predictor.calibrate(data, flops=first / found.full_flops).exits[0] == 1  # the fraction is reached, rounding
    assert predictor.calibrate(data, flops=found.full_flops).exits[-1] == 1
    assert predictor.calibrate(data, flops=0.7 * found.full_flops).flops <= 0.7 * found.full_flops
    exact = predictor.calibrate(data, max_accuracy_drop=0.0)
    assert exact.accuracy >= exact.full_accuracy
    labels = torch.cat([labels for _, labels in data])
    images = torch.cat([images for images, _ in data])
    assert exact.full_accuracy == pytest.approx(
        float((table_of(predictor, images).mean(0).argmax(1) == labels).double().mean())
    )


@pytest.mark.parametrize("confidence", ["margin", "agreement"])
def test_a_later_version_of_a_network_takes_the_place_of_an_earlier_one(data, confidence) -> None:
    members = versions()
    predictor = swe.AnytimePredictor(members, tuple(members), input_shape=(3, 8, 8))
    assert predictor.version_of == {"a@25%": "a", "a@50%": "a"}
    assert predictor.replaces == (None, None, 0, 2)
    images = torch.cat([part for part, _ in data])
    table = table_of(predictor, images)
    held = [[0], [0, 1], [2, 1], [3, 1]]
    for step, rows in zip(predictor.stream(images), held, strict=True):
        torch.testing.assert_close(step.probabilities, table[rows].mean(0))
    assert step.members_used == 4
    whole = sum(predictor.flops.values())
    predictor.calibrate(data, flops=0.5, confidence=confidence)
    assert predictor.policy.replaces == predictor.replaces
    lower = tuple(threshold * (1 - 1e-6) for threshold in predictor.policy.thresholds)
    predictor.set_policy(replace(predictor.policy, thresholds=lower))
    outcome, answer = simulate(table, predictor.policy), predictor(images)
    assert len(set(outcome.exits.tolist())) > 2
    assert (answer.members_used - 1).tolist() == outcome.exits.tolist()
    torch.testing.assert_close(answer.probabilities, outcome.predictions)
    everything = predictor(images, batch_flops=whole * len(images))
    torch.testing.assert_close(everything.probabilities, table[[3, 1]].mean(0))
    with pytest.raises(swe.SuperWeightError, match=r"the policy's exits replace \[\]; this predictor's replace"):
        predictor.set_policy(replace(predictor.policy, replaces=()))


@pytest.mark.parametrize("calibrated", [False, True])
def test_batch_budget_goes_to_the_least_sure(shared, data, calibrated) -> None:
    predictor = swe.AnytimePredictor(shared, input_shape=(3, 8, 8))
    if calibrated:
        predictor.calibrate(data, flops=0.5, confidence="entropy")
    images, costs = data[0][0], list(predictor.flops.values())
    calls = recorded(predictor)
    for share in (costs[0] / sum(costs), 0.5, 0.8, 1.0):
        calls.clear()
        budget = share * sum(costs) * len(images) + 1e-3
        answer = predictor(images, batch_flops=budget)
        assert budget - max(costs) <= int(answer.flops.sum()) <= budget
        numbers = samples_per_member(len(images), costs, budget)
        assert calls == [(name, number) for name, number in zip(predictor.order, numbers) if number]
        assert calibrated == (predictor.policy is not None)
        _, sure = exits_of(table_of(predictor, images), predictor.policy or policy_of(3, confidence="margin"))
        stay = torch.ones(len(images), dtype=torch.bool)
        for index, number in enumerate(numbers[1:]):
            goes_on = answer.members_used > index + 1
            assert int(goes_on.sum()) == number
            if 0 < number < int(stay.sum()):
                assert float(sure[index][goes_on].max()) <= float(sure[index][stay & ~goes_on].min()) + 1e-5
            stay = goes_on


def test_greedy_order_is_the_tables(shared, data) -> None:
    predictor = swe.AnytimePredictor(shared, "greedy", loader=data)
    plain = swe.AnytimePredictor(shared, shared.member_names, input_shape=(3, 8, 8))
    table = table_of(plain, torch.cat([images for images, _ in data]))
    labels = torch.cat([labels for _, labels in data])
    assert predictor.order == order_greedily(plain.order, table, labels, plain.flops)
    assert tuple(predictor.flops) == predictor.order and predictor.input_shape == (3, 8, 8)


def test_digits_leave_early_and_stay_right() -> None:
    held = swe.load_data("digits", validation_fraction=0.4)
    members = {
        f"mlp{width}": nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        for width in (8, 32, 128)
    }
    images, labels = next(iter(held.loader("train", len(held.train))))
    for member in members.values():
        optimizer = torch.optim.Adam(member.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(member(images), labels).backward()
            optimizer.step()
    predictor = swe.AnytimePredictor(members, input_shape=held.image_shape)
    loader = held.loader("validation", 128)
    for options in ({"max_accuracy_drop": 0.01}, {"max_accuracy_drop": 0.05, "monotone": True}):
        found = predictor.calibrate(loader, **options)
        assert found.accuracy >= found.full_accuracy - options["max_accuracy_drop"] > 0.8
        assert found.flops < 0.6 * found.full_flops
        tested = [(predictor(batch), truth) for batch, truth in held.loader("test", 100)]
        right = sum(int((answer.probabilities.argmax(1) == truth).sum()) for answer, truth in tested)
        spent = sum(int(answer.flops.sum()) for answer, _ in tested)
        assert right / len(held.test) > found.accuracy - 0.05
        assert spent / len(held.test) < 0.7 * found.full_flops


def test_bfloat16_members_and_channels_last_images(shared, data) -> None:
    images = data[0][0]
    predictor = swe.AnytimePredictor(shared, input_shape=(3, 8, 8))
    predictor.calibrate(data, flops=0.5)
    expected = predictor(images)
    moved = predictor(images.to(memory_format=torch.channels_last))
    assert int((moved.members_used != expected.members_used).sum()) <= 2  # who stands on a threshold
    same = moved.members_used == expected.members_used
    torch.testing.assert_close(moved.probabilities[same], expected.probabilities[same], rtol=1e-4, atol=1e-5)
    assert predictor.to(dtype=torch.bfloat16) is predictor
    answer = predictor(images.bfloat16())
    assert answer.probabilities.dtype == torch.float32
    outcome = simulate(table_of(predictor, images.bfloat16()), predictor.policy)
    agree = answer.members_used - 1 == outcome.exits
    assert int(agree.sum()) >= 50
    torch.testing.assert_close(answer.probabilities[agree], outcome.predictions[agree], rtol=0.1, atol=0.1)
    assert_refused(r"images are torch\.float32, the members torch\.bfloat16", predictor, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert swe.AnytimePredictor(shared)(images).members_used.tolist() == [3] * 60


def test_members_that_take_tokens(tmp_path) -> None:
    tokens = torch.randint(0, 20, (6, 5))
    built = swe.SuperWeightEnsemble({"a": Bag(8), "b": Bag(12)}, budget=1.2).eval()
    for predictor in (swe.AnytimePredictor(built), swe.AnytimePredictor(built, input_shape=(5,))):
        answer = predictor(tokens, deadline_ms=1e9)
        torch.testing.assert_close(answer.probabilities, built(tokens).softmax(2).mean(0).detach())
        assert_refused(r"images are torch\.float32, the members take integers", predictor, torch.zeros(6, 5))
        predictor.save(tmp_path / "tokens")
    loaded = swe.AnytimePredictor.load(tmp_path / "tokens", members={"a": Bag(8), "b": Bag(12)})
    torch.testing.assert_close(loaded(tokens).probabilities, answer.probabilities, rtol=0, atol=0)
    assert set(loaded.measure(2)) == {"a", "b"}


@pytest.mark.gpu
def test_cascade_on_cuda_answers_as_on_the_cpu(data) -> None:
    predictor = swe.AnytimePredictor(ensemble().double().cuda(), input_shape=(3, 8, 8))
    on_cpu = swe.AnytimePredictor(ensemble().double(), input_shape=(3, 8, 8))
    doubles = [(images.double(), labels) for images, labels in data]
    predictor.calibrate(doubles, flops=0.6)
    on_cpu.set_policy(predictor.policy)
    images = doubles[0][0]
    answer, expected = predictor(images.cuda()), on_cpu(images)
    assert (answer.members_used.cpu() == expected.members_used).float().mean() > 0.95
    same = answer.members_used.cpu() == expected.members_used
    torch.testing.assert_close(answer.probabilities.cpu()[same], expected.probabilities[same], rtol=1e-4, atol=1e-5)
    assert predictor(images.cuda(), deadline_ms=1e6).skipped == ()
    assert predictor(images.cuda(), deadline_ms=1e-6).members_used.tolist() == [1] * 60
    assert predictor(images.cuda(), batch_flops=1e12).members_used.tolist() == [3] * 60
    assert simulate(table_of(predictor, images.cuda()), predictor.policy).exits.is_cuda
    assert_refused("images are on cpu, the members on cuda", predictor, images)


# -- What is no number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("options", [{}, {"monotone": True}, {"confidence": "entropy"}, {"confidence": "agreement"}])
def test_answers_that_are_no_numbers_never_leave_early(value, threshold, options, caplog) -> None:
    predictor = swe.AnytimePredictor({name: nn.Linear(4, 3) for name in NAMES[:3]}, input_shape=(4,))
    images = torch.randn(5, 4)
    images[[1, 3]] = value
    predictor.set_policy(policy_of(3, thresholds=(threshold, threshold), **options))
    answer = predictor(images)
    assert answer.probabilities.isnan().all(1).tolist() == [False, True, False, True, False]
    assert answer.members_used[[1, 3]].tolist() == [3, 3] and answer.confidence[[1, 3]].tolist() == [0, 0]
    assert [record.message for record in caplog.records] == [
        "2 of 5 answers are NaN: the images or the members' weights are not finite"
    ]
    outcome = simulate(table_of(predictor, images), predictor.policy)
    assert outcome.exits[[1, 3]].tolist() == [2, 2] and torch.equal(outcome.exits + 1, answer.members_used)
    caplog.clear()
    assert len(list(predictor.stream(images))) == 3 and len(caplog.records) == 1
    flops = 24 * (5 + 2)
    assert predictor(images, batch_flops=flops).members_used[[1, 3]].min() >= 2  # the least sure go on
    caplog.clear()
    predictor(images[[0, 2, 4]])
    assert not caplog.records


@pytest.mark.parametrize("confidence", sorted(CONFIDENCES))
def test_masked_classes_are_numbers(confidence, caplog) -> None:
    class Masked(nn.Linear):
        def forward(self, images):
            return super().forward(images) + torch.tensor([0.0, 0.0, -math.inf])

    predictor = swe.AnytimePredictor({"a": Masked(4, 3), "b": Masked(4, 3)}, input_shape=(4,))
    found = predictor.calibrate([(torch.randn(120, 4), torch.arange(120) % 2)], flops=0.75, confidence=confidence)
    assert found.num_samples == 120 and predictor(torch.randn(9, 4)).probabilities[:, 2].tolist() == [0] * 9
    assert not caplog.records


def test_members_that_answer_nan_are_named() -> None:
    members = {"whole": nn.Linear(4, 3), "broken": nn.Linear(4, 3)}
    with torch.no_grad():
        members["broken"].bias.fill_(math.nan)
    match = "members broken answer NaN: rows 0, 1, 2, 3, 4 and 115 more of "
    for call in (
        lambda: swe.AnytimePredictor(members).predict(SAMPLES),
        lambda: swe.AnytimePredictor(members).calibrate(SAMPLES, flops=0.8),
        lambda: swe.AnytimePredictor(members, "greedy", loader=SAMPLES),
    ):
        assert_refused(f"{match}batch 0; their weights are not finite", call)
    table, labels = torch.full((2, 120, 3), 1 / 3), torch.zeros(120).long()
    table[1] = math.nan
    for call in (
        lambda: order_greedily(("whole", "broken"), table, labels, {"whole": 1, "broken": 2}),
        lambda: fit_policy(table, labels, (1.0, 2.0), ("whole", "broken"), ("cost", 2.0)),
        lambda: swe.anytime.Predictions(
            members=("whole", "broken"), probabilities=table, labels=labels, image=torch.zeros(1, 4)
        ),
    ):
        assert_refused(f"{match}the samples", call)


# -- Copies and threads ------------------------------------------------------------------------------------------------


class Keeping(nn.Linear):
    """Keeps its last answer, with the graph where there is one."""

    def forward(self, images):
        self.kept = super().forward(images)
        return self.kept


def test_predictors_are_copied_and_pickled_after_calls() -> None:
    members = {"a": Keeping(4, 3), "b": Keeping(4, 3)}
    images = torch.randn(3, 4, requires_grad=True)
    for member in members.values():
        member(images)
    predictor = swe.AnytimePredictor(members)
    predictor.calibrate(SAMPLES, flops=0.8)
    answer = predictor(images, deadline_ms=60_000)
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert torch.equal(other(images, deadline_ms=60_000).probabilities, answer.probabilities)
        assert (other.policy, other.calibration, other.flops) == (
            predictor.policy,
            predictor.calibration,
            predictor.flops,
        )
        other.to(dtype=torch.float64)
    assert next(predictor.modules["a"].parameters()).dtype == torch.float32
    assert pickle.loads(pickle.dumps(answer)).skipped == answer.skipped


def test_answers_take_part_in_autograd_later() -> None:
    predictor = linear_predictor()
    scale = torch.ones(3, requires_grad=True)
    answers = [predictor(torch.randn(2, 4)), next(predictor.stream(torch.randn(2, 4))), predictor.predict(SAMPLES)]
    for answer in answers:
        assert not answer.probabilities.requires_grad
        (answer.probabilities * scale).sum().backward()
    assert float(scale.grad.sum()) == pytest.approx(2 + 2 + 2 * 120, rel=1e-5)


def test_of_several_threads_one_measures(monkeypatch) -> None:
    members = {"c": nn.Linear(4, 32), "b": nn.Linear(4, 32), "a": nn.Linear(4, 32)}
    members = {
        name: nn.Sequential(member, *[nn.Linear(32, 32)] * depth)
        for depth, (name, member) in enumerate(members.items())
    }
    predictor = swe.AnytimePredictor(dict(reversed(members.items())))
    running, most, timed_sizes, start = [], [], [], threading.Barrier(4)
    whole_count, whole_time = costs.counted_flops, costs.timed_call

    def alone(call, *given):
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.001)  # so that other threads come by
        try:
            return call(*given)
        finally:
            running.pop()

    def timed(module, images):
        timed_sizes.append(len(images))
        return alone(whole_time, module, images)

    monkeypatch.setattr(costs, "counted_flops", lambda *given: alone(whole_count, *given))
    monkeypatch.setattr(costs, "timed_call", timed)
    answers, images = {}, torch.randn(4, 4)

    def call(size: int) -> None:
        start.wait()
        answers[size] = predictor(images[:size], deadline_ms=600_000)

    threads = [threading.Thread(target=call, args=(size,)) for size in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert sorted(timed_sizes) == sorted([1, 2, 4] * 3 * 6)  # each size once: three members, one warm-up and five times
    assert len(most) == 3 + len(timed_sizes)
    assert predictor.order == ("c", "b", "a") and list(predictor.flops) == ["c", "b", "a"]
    for size, answer in answers.items():
        assert answer.skipped == () and answer.members_used.tolist() == [3] * size
        torch.testing.assert_close(answer.probabilities, table_of(predictor, images[:size]).mean(0))
    assert torch.backends.mha.get_fastpath_enabled()


# -- Deadlines, by a clock that is made up -----------------------------------------------------------------------------


class Clock:
    """``slowdown`` multiplies what members take."""

    seconds, slowdown = 0.0, 1.0

    def now(self, like: torch.Tensor) -> float:
        return self.seconds


class Timed(nn.Module):
    """A linear member that takes a fixed time and some for each image."""

    def __init__(self, clock: Clock, fixed: float, each: float, width: int) -> None:
        super().__init__()
        self.clock, self.fixed, self.each = clock, fixed, each
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.clock.seconds += self.clock.slowdown * (self.fixed + self.each * len(images))
        return self.layers(images)

    def __deepcopy__(self, memo) -> Timed:
        return self  # the clock is shared


@pytest.fixture
def timed(monkeypatch) -> SimpleNamespace:
    """Members of 10, 20 and 40 ms a call and 1, 2 and 4 ms an image."""
    clock = Clock()
    for module in (costs, cascade):
        monkeypatch.setattr(module, "now", clock.now)
    members = {
        name: Timed(clock, 0.01 * factor, 0.001 * factor, 4 * factor)
        for name, factor in (("one", 1), ("two", 2), ("four", 4))
    }
    predictor = swe.AnytimePredictor(members, input_shape=(4,))
    return SimpleNamespace(clock=clock, members=members, predictor=predictor)


@pytest.mark.parametrize(
    ("images", "deadline_ms", "used"),
    # One image takes 11, 22 and 44 ms; ten take 20, 40 and 80.
    [(1, 1, 1), (1, 32.9, 1), (1, 33.1, 2), (1, 76.9, 2), (1, 77.1, 3), (10, 59, 1), (10, 61, 2), (10, 141, 3)],
)
def test_no_member_starts_that_would_end_too_late(timed, images, deadline_ms, used) -> None:
    timed.predictor.measure(images)
    calls = recorded(timed.predictor)
    inputs = torch.randn(images, 4)
    answer = timed.predictor(inputs, deadline_ms=deadline_ms)
    assert [name for name, _ in calls] == ["one", "two", "four"][:used]
    assert answer.skipped == ("one", "two", "four")[used:]
    assert answer.members_used.tolist() == [used] * images
    assert answer.latency_ms <= max(deadline_ms, 1e3 * (0.01 + 0.001 * images) + 1e-6)
    mean = table_of(timed.predictor, inputs)[:used].mean(0)
    torch.testing.assert_close(answer.probabilities, mean)


def test_a_deadline_counts_on_the_samples_that_are_left(timed) -> None:
    images = torch.cat([50 * torch.randn(9, 4), torch.zeros(1, 4)])
    table = table_of(timed.predictor, images)
    sure = table[0].amax(1)
    threshold = float(sure.sort().values[:2].mean())  # one sample of ten stays
    timed.predictor.set_policy(
        swe.anytime.ExitPolicy(order=timed.predictor.order, temperatures=(1.0,) * 3, thresholds=(threshold, math.inf))
    )
    timed.predictor.measure(10)
    # One: 10 images in 20 ms. Two and four: one image in 22 and 44 ms.
    for deadline_ms, used in ((41, 1), (43, 2), (85, 2), (87, 3)):
        answer = timed.predictor(images, deadline_ms=deadline_ms)
        assert int(answer.members_used.max()) == used and int((answer.members_used == 1).sum()) >= 9
        assert answer.skipped == ("one", "two", "four")[used:] and answer.latency_ms <= deadline_ms
    assert timed.predictor(images, deadline_ms=61, early_exit=False).members_used.tolist() == [2] * 10


def test_a_machine_that_slows_down_is_noticed(timed) -> None:
    images = torch.randn(1, 4)
    timed.predictor.measure(1)
    assert timed.predictor(images, deadline_ms=80).skipped == ()
    timed.clock.slowdown = 3.0
    # The first member takes 33 ms; for the next 66 are expected, three times the table's 22, so it ends after 99.
    for deadline_ms, used in ((90, 1), (100, 2), (90, 1)):
        answer = timed.predictor(images, deadline_ms=deadline_ms)
        assert int(answer.members_used) == used and answer.latency_ms <= deadline_ms
    timed.clock.slowdown = 1.0
    for _ in range(80):
        answer = timed.predictor(images, deadline_ms=80)
    assert answer.skipped == ()  # and forgotten


def test_one_slow_call_does_not_stop_the_next(timed) -> None:
    images = torch.randn(1, 4)
    timed.predictor.measure(1)
    for slowdown, skipped in ((50.0, ("two", "four")), (1.0, ())):
        timed.clock.slowdown = slowdown
        assert timed.predictor(images, deadline_ms=200).skipped == skipped


def test_latencies_between_the_measured_sizes(timed) -> None:
    table = LatencyTable(timed.members, torch.zeros(1, 4))
    for size in (1, 2, 3, 5, 7, 8, 13):
        assert table.median("two", size) == pytest.approx(0.02 + 0.002 * size)
    assert timed.predictor.measure(6) == pytest.approx({"one": 16, "two": 32, "four": 64})
    calls = recorded(timed.predictor)
    timed.predictor.measure(8)
    timed.predictor.measure(3)
    assert calls == []  # known already


def test_careful_estimates_are_the_95th_percentile_of_the_last_64_calls(timed) -> None:
    table = LatencyTable(timed.members, torch.zeros(1, 4))
    median = table.median("one", 1)
    assert table.percentile_95("one", 1) == median
    table.observe("one", 1, 0.5 * median)
    assert table.percentile_95("one", 1) == median  # never below the table
    assert table.observe("two", 4, 3 * table.median("two", 4)) == pytest.approx(3)
    assert table.percentile_95("one", 1) == median  # one outlier, beside the 45 calls that were timed
    assert table.percentile_95("one", 1, latest=3.0) == pytest.approx(3 * median)
    for _ in range(64):
        table.observe("one", 1, 1.2 * median)
    assert table.percentile_95("one", 1) == pytest.approx(1.2 * median)
    for _ in range(4):
        table.observe("one", 1, 3 * median)
    assert table.percentile_95("one", 1) == pytest.approx(3 * median)  # 4 of the last 64 are more than 5 %
    for _ in range(64):
        table.observe("one", 1, median)
    assert table.percentile_95("four", 2) == pytest.approx(table.median("four", 2))


def test_latency_targets_are_mean_costs_of_the_table(timed) -> None:
    loader = [(torch.randn(200, 4), torch.randint(0, 3, (200,)))]
    found = timed.predictor.calibrate(loader, latency_ms=8.0, batch_size=10)  # an image: 2, 4 and 8 ms
    images = loader[0][0]
    outcome = simulate(table_of(timed.predictor, images), timed.predictor.policy)
    assert 8.0 - 2 * 14 / 200 <= outcome.mean_cost([2.0, 4.0, 8.0]) <= 8.0 + 1e-9
    assert found.target == ("latency_ms", 8.0)
    with pytest.raises(swe.SuperWeightError, match=r"2 to 14 \(0\.143 to 1 of all\); got 1"):
        timed.predictor.calibrate(loader, latency_ms=1.0, batch_size=10)


# -- Folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(shared, data, tmp_path) -> SimpleNamespace:
    predictor = swe.AnytimePredictor(shared, ("deep", "thin"), input_shape=(3, 8, 8))
    predictor.calibrate(data, flops=0.8, confidence="entropy", monotone=True)
    predictor.save(tmp_path / "saved")
    return SimpleNamespace(predictor=predictor, folder=tmp_path / "saved")


def test_the_policy_travels_with_the_ensemble(shared, data, saved) -> None:
    saved.predictor.save(saved.folder)  # replaces itself
    loaded = swe.AnytimePredictor.load(saved.folder)
    assert (loaded.policy, loaded.order) == (saved.predictor.policy, ("deep", "thin"))
    assert (loaded.flops, loaded.input_shape) == (saved.predictor.flops, (3, 8, 8))
    assert loaded.calibration is None
    answer, expected = loaded(data[0][0]), saved.predictor(data[0][0])
    assert len(set(expected.members_used.tolist())) == 2
    for field in ("probabilities", "members_used", "confidence", "flops"):
        torch.testing.assert_close(getattr(answer, field), getattr(expected, field), rtol=0, atol=0)
    again = swe.SuperWeightEnsemble.load(saved.folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(data[0][0]), shared(data[0][0]), rtol=0, atol=0)
    loaded.save(saved.folder.with_name("copy"))
    first, second = ((folder / "anytime.json").read_text() for folder in (saved.folder, saved.folder.with_name("copy")))
    assert first == second


def test_uncalibrated_and_converted_predictors_are_saved_too(shared, data, tmp_path) -> None:
    predictor = swe.AnytimePredictor(shared, input_shape=(3, 8, 8))
    predictor.save(tmp_path / "saved")
    assert swe.AnytimePredictor.load(tmp_path / "saved").policy is None
    predictor.to(dtype=torch.bfloat16).save(tmp_path / "saved")


def test_what_cannot_be_saved(data, tmp_path) -> None:
    built = ensemble()
    with pytest.raises(swe.SuperWeightError, match="give input_shape=, or ask after the first call"):
        swe.AnytimePredictor(built).save(tmp_path / "saved")
    predictor = swe.AnytimePredictor(built, input_shape=(3, 8, 8))
    with torch.no_grad():
        next(built.bank.parameters()).mul_(1.5)
    with pytest.raises(
        swe.SuperWeightError, match=r"member '.*' has been trained since, or its calls change .*: make a"
    ):
        predictor.save(tmp_path / "saved")
    plain = swe.AnytimePredictor({"a": nn.Linear(4, 3)}, input_shape=(4,))
    assert_refused("plain networks has no ensemble to save", plain.save, tmp_path / "saved")
    pooling = {
        name: nn.Sequential(nn.AdaptiveAvgPool1d(8), nn.Linear(8, 8), nn.Flatten(), nn.Linear(8, 3)) for name in "ab"
    }
    huge = swe.AnytimePredictor(swe.SuperWeightEnsemble(pooling, budget=1.2), input_shape=(1, 2**26 + 1))
    assert_refused("input_shape must list sizes of at most 67,108,864", huge.save, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(swe.SuperWeightError, match="exists and is no saved ensemble"):
        swe.AnytimePredictor(built, input_shape=(3, 8, 8)).save(tmp_path / "other")


def test_folders_without_or_with_unreadable_policies(shared, saved) -> None:
    path = saved.folder / "anytime.json"
    path.write_text(path.read_text().replace("entropy", "margin"))  # which the manifest does not know
    assert_refused(r"anytime\.json has .* bytes, and .* were written", swe.AnytimePredictor.load, saved.folder)
    for text, match in (
        ("{", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object; got list"),
        ("[" * 100_000, "cannot be read as JSON"),
    ):
        rewrite(path, text)
        assert_refused(match, swe.AnytimePredictor.load, saved.folder)
    shared.save(saved.folder)  # replaces the folder as a whole: the old policy was not fitted to this ensemble
    assert_refused(r"anytime\.json is missing: .* is no saved predictor", swe.AnytimePredictor.load, saved.folder)


HUGE = 10**400
MISSING = object()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("format", 99, 'must hold "format": 1; got 99'),
        ("format", True, 'must hold "format": 1; got True'),
        ("format", MISSING, 'must hold "format": 1; got None'),
        ("extra", 1, r"\(extra: Unexpected keyword argument\): save the predictor again"),
        ("order", MISSING, r"\(order: Field required\)"),
        ("order", "deep", r"\(order must be a list \(got 'deep'\)\): save"),
        ("order", [], r"\(order: .*at least 1 item"),
        ("order", ["deep", 3], r"\(order\.1 must be a text"),
        ("order", ["deep", "deep"], "each once"),
        ("order", ["deep", "thinn"], "unknown member 'thinn': did you mean 'thin'"),
        ("order", ["thin", "deep"], r"the policy is for \['deep', 'thin'\]; this predictor runs \['thin', 'deep'\]"),
        ("input_shape", MISSING, r"\(input_shape: Field required\)"),
        ("input_shape", [], r"\(input_shape: .*at least 1 item"),
        ("input_shape", [3, 8.0, 8], r"\(input_shape\.1 must be a whole number"),
        ("input_shape", [3, True, 8], r"\(input_shape\.1 must be a whole number"),
        ("input_shape", [3, -8, 8], r"\(input_shape\.1 must be greater than 0 \(got -8\)"),
        ("input_shape", [3, 2**15, 2**15], "at most 67,108,864 numbers in all"),
        ("input_shape", [3, HUGE, 8], "at most 67,108,864 numbers in all"),
        ("input_shape", [4, 8, 8], r"member 'deep' cannot take images \(1, 4, 8, 8\)"),
        ("policy", MISSING, r"\(policy: Field required\)"),
        ("policy", [1], "policy must be an object; got list"),
        ("policy.extra", 1, "policy: unknown key 'extra'"),
        ("policy.order", MISSING, "policy: order is missing"),
        ("policy.order", ["deep", "deep"], "policy: order must name at least one member, and each once"),
        ("policy.order", ["deep"], "policy: 1 members need 1 temperatures; got 2"),
        ("policy.confidence", MISSING, "policy: confidence is missing"),
        ("policy.confidence", 3, "policy: unknown confidence 3"),
        ("policy.confidence", "margn", "policy: unknown confidence 'margn': did you mean 'margin'"),
        ("policy.temperatures", MISSING, "policy: temperatures is missing"),
        ("policy.temperatures", [1.0], "policy: 2 members need 2 temperatures; got 1"),
        ("policy.temperatures", [1.0, "1"], r"policy: temperatures must be numbers; got \[1\.0, '1'\]"),
        ("policy.temperatures", [1.0, True], "policy: temperatures must be numbers"),
        *(
            ("policy.temperatures", [1.0, temperature], "policy: temperatures must be 0.01 to 100")
            for temperature in (0.0, math.nan, math.inf, HUGE)
        ),
        ("policy.thresholds", MISSING, "policy: thresholds is missing"),
        ("policy.thresholds", [], "policy: 2 members need 1 thresholds; got 0"),
        *(("policy.thresholds", [one], "policy: thresholds must be 0 to 2") for one in (-0.1, math.nan, -HUGE)),
        ("policy.thresholds", ["0.5"], "policy: thresholds must be numbers"),
        ("policy.monotone", MISSING, "policy: monotone is missing"),
        ("policy.monotone", 1, "policy: monotone must be bool; got 1"),
        ("policy.replaces", [None, 1], "policy: replaces must name for each of 2 exits an earlier one"),
        ("policy.replaces", [None, True], "policy: replaces must name for each of 2 exits an earlier one"),
        ("policy.weights", [[1.0]], "policy: weights must give each exit one number of 0 or more"),
        ("policy.weights", [[1.0], [0.5, "0.5"]], "policy: weights must give each exit one number"),
        ("policy.weights", [1.0, 0.5], "policy: weights must be a list of lists"),
        ("policy.weights", {"a": 1.0}, r"policy: weights must be a list; got {'a': 1\.0}"),
        ("policy.replaces", [None, 0], r"the policy's exits replace \[None, 0\]"),
    ],
)
def test_damaged_policies_are_refused(damaged_folder, key, value, match) -> None:
    def damage(content: dict) -> None:
        outer, _, inner = key.rpartition(".")
        place = content[outer] if outer else content
        if value is MISSING:
            del place[inner]
        else:
            place[inner] = value

    edit_json(damaged_folder / "anytime.json", damage)
    assert_refused(match, swe.AnytimePredictor.load, damaged_folder, members=small_members())


def small_members() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {name: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5)) for name in ("thin", "deep")}


@pytest.fixture
def damaged_folder(tmp_path):
    predictor = swe.AnytimePredictor(
        swe.SuperWeightEnsemble(small_members(), budget=1.2), ("deep", "thin"), input_shape=(3, 8, 8)
    )
    predictor.set_policy(swe.anytime.ExitPolicy(order=("deep", "thin"), temperatures=(1.0, 2.0), thresholds=(0.5,)))
    predictor.save(tmp_path / "saved")
    return tmp_path / "saved"


# -- Bad input ---------------------------------------------------------------------------------------------------------


def linear_predictor(**options) -> swe.AnytimePredictor:
    return swe.AnytimePredictor({"small": nn.Linear(4, 3), "large": nn.Linear(4, 3)}, input_shape=(4,), **options)


SAMPLES = [(torch.zeros(120, 4), torch.zeros(120, dtype=torch.int64))]


class Cast(nn.Linear):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(4, 3)
        self.dtype = dtype

    def forward(self, images):
        return super().forward(images).to(self.dtype)


LINEARS = {"small": nn.Linear(4, 3), "large": nn.Linear(4, 3)}


@pytest.mark.parametrize(
    ("members", "options", "match"),
    [
        (LINEARS, {"order": ("small", "larg")}, "unknown member 'larg': did you mean 'large'"),
        (LINEARS, {"order": ("small", "small")}, r"each once; got \['small', 'small'\]"),
        (LINEARS, {"order": ()}, r"at least one member, and each once; got \[\]"),
        (LINEARS, {"order": {"small"}}, "order must be 'cost' or 'greedy', or a list of names; got"),
        (LINEARS, {"order": 5}, "or a list of names; got 5"),
        (LINEARS, {"order": "gready"}, "unknown order 'gready': did you mean 'greedy'"),
        (LINEARS, {"order": "greedy"}, "order 'greedy' needs loader="),
        (LINEARS, {"loader": SAMPLES}, "loader= is for order='greedy'"),
        (LINEARS, {"order": "greedy", "loader": []}, "the loader has no samples"),
        (
            LINEARS,
            {"order": "greedy", "loader": [(torch.zeros(9, 5), torch.zeros(9).long())]},
            r"images must be \(batch, 4\)",
        ),
        (
            LINEARS,
            {"input_shape": (5,)},
            r"member 'small' cannot take images \(1, 5\) of torch.float32: .*mat1 and mat2",
        ),
        *(
            (LINEARS, {"input_shape": shape}, "input_shape must list the sizes of one image, such as .* got " + told)
            for shape, told in [(4, "4"), ((4.0,), r"\(4.0,\)"), ((-4,), r"\(-4,\)"), ((), r"\(\)")]
        ),
        ({}, {}, "at least one member"),
        (nn.Linear(4, 3), {}, "write {'name': module}"),
        ({"a": 3}, {}, "member 'a' must be a torch.nn.Module; got int"),
        ({"a": nn.Linear(4, 3), "b": nn.Linear(4, 5)}, {}, r"same batch and classes; got a: \(1, 3\), b: \(1, 5\)"),
        ({"a": nn.Linear(4, 1)}, {}, "two classes or more; 'a' answers one"),
        *(
            ({"a": Cast(dtype)}, {}, f"member 'a' must answer floating-point logits; got {dtype}")
            for dtype in (torch.complex64, torch.int64)
        ),
        ({"a": nn.LazyLinear(3)}, {}, "member 'a' cannot be put into eval mode and frozen: .*uninitialized parameter"),
    ],
)
def test_predictors_that_cannot_be_made(members, options, match) -> None:
    assert_refused(match, swe.AnytimePredictor, members, **{"input_shape": (4,), **options})


class OneRow(nn.Linear):
    """Fails, or answers too little, for more than one image."""

    def __init__(self, raised: Exception | None = None) -> None:
        super().__init__(4, 3)
        self.raised = raised

    def forward(self, images):
        if len(images) > 1 and self.raised is not None:
            raise self.raised
        return super().forward(images[:1])


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (OneRow(), "member 'a' must answer one row an image; got 1 of 3"),
        (OneRow(KeyError("boom")), r"member 'a' cannot take images \(., 4\) of torch\.float32: KeyError: 'boom'"),
    ],
)
def test_members_that_answer_one_image_alone(member, match) -> None:
    predictor, images = swe.AnytimePredictor({"a": member}, input_shape=(4,)), torch.zeros(3, 4)
    loader = [(images, torch.zeros(3).long())]
    calls = [lambda: predictor(images), lambda: list(predictor.stream(images)), lambda: predictor.predict(loader)]
    if member.raised is not None:
        calls += [lambda: predictor.measure(3), lambda: predictor(images, deadline_ms=50)]
    for call in calls:
        assert_refused(match, call)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 5), r"images must be \(batch, 4\); got \(2, 5\)"),
        (torch.zeros(2, 4, 4), r"images must be \(batch, 4\); got \(2, 4, 4\)"),
        (torch.zeros(4), r"images must be a tensor \(batch, ...\) of at least one; got \(4,\)"),
        (torch.zeros(0, 4), r"of at least one; got \(0, 4\)|the loader has no samples"),
        ([[0.0] * 4], "of at least one; got tuple"),
        (torch.zeros(2, 4, dtype=torch.uint8), r"images are torch\.uint8, the members take torch\.float32: convert"),
        (torch.zeros(2, 4, dtype=torch.int64), r"images are torch\.int64, the members take torch\.float32: convert"),
        (torch.zeros(2, 4, dtype=torch.float64), r"images are torch\.float64, the members torch\.float32: convert one"),
        (torch.zeros(2, 4, device="meta"), "the images are on meta, the members on cpu: move one of them"),
    ],
)
def test_images_that_the_members_cannot_take(images, match) -> None:
    predictor = linear_predictor()
    calls = recorded(predictor)
    assert_refused(match, predictor, images)
    with pytest.raises(swe.SuperWeightError, match=match):
        predictor.stream(images)  # at once, not when the first step is asked for
    if isinstance(images, torch.Tensor) and images.ndim and len(images) and not images.is_meta:
        assert_refused(match, predictor.calibrate, [(images, torch.zeros(len(images), dtype=torch.int64))], flops=0.8)
    assert calls == []


def test_the_first_images_are_checked_by_the_members() -> None:
    predictor = swe.AnytimePredictor({"small": nn.Linear(4, 3)})
    with pytest.raises(swe.SuperWeightError, match=r"member 'small' cannot take images \(1, 4\) of torch\.uint8"):
        predictor(torch.zeros(2, 4, dtype=torch.uint8))
    for call in (lambda: predictor.order, lambda: predictor.measure(4)):
        assert_refused("cost is measured on the first images: give input_shape=", call)
    assert set(predictor.measure(4, (4,))) == {"small"}
    assert swe.AnytimePredictor({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}, ("b", "a")).order == ("b", "a")


@pytest.mark.parametrize("number", [np.float32, np.int64, Fraction])
def test_budgets_are_numbers_of_any_type(number) -> None:
    predictor, images = linear_predictor(), torch.zeros(2, 4)
    assert predictor(images, batch_flops=number(72)).flops.tolist() in ([24, 48], [48, 24])
    assert predictor(images, deadline_ms=number(60_000)).skipped == ()
    assert predictor.calibrate(SAMPLES, flops=number(48)).target == ("flops", 48.0)
    assert set(predictor.measure(np.int64(2))) == {"small", "large"}
    policy = swe.anytime.ExitPolicy(order=("a", "b"), temperatures=(number(1),) * 2, thresholds=(number(1),))
    assert json.dumps(policy.to_dict()["thresholds"]) == "[1.0]"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"early_exit": True}, r"not calibrated: call calibrate\(loader, flops=...\) on held-out data"),
        ({"batch_flops": 20}, "20 FLOPs is too small for 2 images: the first member alone needs 48"),
        ({"batch_flops": 90, "deadline_ms": 5}, "give no deadline_ms or early_exit with it"),
        ({"batch_flops": 90, "early_exit": True}, "give no deadline_ms or early_exit with it"),
        *(
            ({what: amount}, f"{what} must be a positive number of .*; got")
            for what in ("deadline_ms", "batch_flops")
            for amount in (
                0, -1.0, math.nan, math.inf, True, "5", np.float32("nan"), np.bool_(True), torch.tensor(5.0), 10**400,
            )
        ),
    ],
)  # fmt: skip
def test_calls_that_cannot_be(options, match) -> None:
    assert_refused(match, linear_predictor(), torch.zeros(2, 4), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "give one of flops, latency_ms, max_accuracy_drop; got none"),
        ({"flops": 0.5, "max_accuracy_drop": 0.1}, "give one of .*; got flops, max_accuracy_drop"),
        ({"flops": 0.4}, r"between the first member's and all members', 24 to 48 \(0\.5 to 1 of all\)"),
        ({"flops": 49}, "24 to 48 .* got 49"),
        *(
            ({"flops": flops}, f"flops must be a positive number of FLOPs; got {flops}")
            for flops in (0, True, math.nan)
        ),
        ({"latency_ms": -3}, "latency_ms must be a positive number of milliseconds; got -3"),
        *(
            ({"latency_ms": 3, "batch_size": size}, f"batch_size must be a whole number, at least 1; got {size}")
            for size in (0, 2.5)
        ),
        ({"max_accuracy_drop": 2}, r"from 0 to below 1 \(0\.002: 0\.2 points\); got 2"),
        *(({"max_accuracy_drop": drop}, f"from 0 to below 1 .*; got {drop}") for drop in (-0.1, math.nan)),
        ({"flops": 0.8, "confidence": "margn"}, "unknown confidence 'margn': did you mean 'margin'"),
        *(
            ({"flops": 0.8, "loader": loader}, match)
            for loader, match in [
                ([], "the loader has no samples"),
                ([(torch.zeros(99, 4), torch.zeros(99).long())], "at least 100 held-out samples; got 99"),
                ([(torch.zeros(120, 4), torch.full((120,), 3))], "labels must be 0 to 2.*has 3 to 3"),
                ([(torch.zeros(120, 4), torch.zeros(120))], r"class indices .* got torch\.float32"),
                (
                    [(torch.full((120, 4), math.nan), torch.zeros(120).long())],
                    "images hold NaN or infinite values, and so do the answers: rows 0, 1, 2",
                ),
                ([torch.zeros(120, 4)], r"a batch must be a pair \(images, labels\)"),
            ]
        ),
    ],
)
def test_calibrations_that_cannot_be(options, match) -> None:
    predictor = linear_predictor()
    assert_refused(match, predictor.calibrate, **{"loader": SAMPLES, **options})
    assert predictor.policy is None


def test_policies_of_others_are_refused() -> None:
    predictor = linear_predictor()
    with pytest.raises(swe.SuperWeightError, match=r"for \['large', 'small'\]; this predictor runs \['small'"):
        predictor.set_policy(swe.anytime.ExitPolicy(order=("large", "small"), temperatures=(1, 1), thresholds=(0.5,)))
    assert_refused(r"policy must be an ExitPolicy .* got \{\}", predictor.set_policy, {})
    predictor.set_policy(swe.anytime.ExitPolicy(order=["small", "large"], temperatures=[1, 1], thresholds=[0.5]))
    assert predictor.policy.order == ("small", "large")  # a list is taken as a tuple
    for batch_size in (0, 1.5, True):
        assert_refused("batch_size must be a whole number, at least 1; got", predictor.measure, batch_size)
