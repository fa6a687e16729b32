"""The method, slow and literal: loops over targets, slots and templates, nothing batched or cached.

Written from the papers' method (Teterwak et al., WACV 2024, sections 3.1 and 3.2) and apart from the library, which
the tests compare with it. Of the library it reads the fields of a plan alone.

Shapes are (O, I, *kernel): O out, I in.
"""

from __future__ import annotations

import math

import torch


def distinct_shapes(shapes):
    """The width slots' shapes s_0, s_1, ...: distinct, by (numel, shape)."""
    return sorted({tuple(shape) for shape in shapes}, key=lambda shape: (math.prod(shape), shape))


def blocks_of(shapes, slot):
    """The column block and the row block of a slot, each a shape or None."""
    if slot == 0:
        return None, tuple(shapes[0])
    (out_before, in_before), (out_now, in_now), kernel = shapes[slot - 1][:2], shapes[slot][:2], shapes[slot][2:]
    more_out, more_in = out_now - out_before, in_now - in_before
    if more_in <= 0:
        return None, (more_out, in_now, *kernel)
    column = (min(out_before, out_now), more_in, *kernel)
    return column, ((more_out, in_now, *kernel) if more_out > 0 else None)


def slot_size(shapes, slot):
    """Numbers in a slot: what s_r needs beyond s_(r-1)."""
    return sum(math.prod(block) for block in blocks_of(shapes, slot) if block is not None)


def compose(shapes, superweights):
    """A weight of shape s_r from the SuperWeights of slots 0..r."""
    weight = superweights[0].reshape(shapes[0])
    for slot in range(1, len(superweights)):
        column, row = blocks_of(shapes, slot)
        rows, columns = min(weight.shape[0], shapes[slot][0]), min(weight.shape[1], shapes[slot][1])
        wider = weight.new_zeros(shapes[slot])
        wider[:rows, :columns] = weight[:rows, :columns]
        used = 0
        if column is not None:
            used = math.prod(column)
            wider[: column[0], columns:] = superweights[slot][:used].reshape(column)
        if row is not None:
            wider[rows:] = superweights[slot][used:].reshape(row)
        weight = wider
    return weight


def generate(plan, templates, coefficients):
    """Every weight of a plan, {(member, parameter name): tensor}, from {"c0s0": (K, Q)} and {"c0s0": (N, K)}."""
    weights = {}
    for c, cluster in enumerate(plan.clusters):
        shapes = [slot.shape for slot in cluster.slots]
        for target in cluster.targets:
            superweights = []
            for slot in range(target.slot + 1):
                bank, alpha = templates[f"c{c}s{slot}"], coefficients[f"c{c}s{slot}"][target.vectors[slot]]
                total = torch.zeros_like(bank[0])
                for k in range(bank.shape[0]):
                    total = total + alpha[k] * bank[k]
                superweights.append(total)
            weight = compose(shapes[: target.slot + 1], superweights)
            for name in target.names:
                weights[target.member, name] = weight
    return weights


def depth_bins(members, bins):
    """First clusters. ``members`` lists each member's kernels in construction order; a cluster is a set of
    (member, position). A kernel that member 0 has not is counted in the first member that has it."""
    clusters = []
    for kernel in {kernel for kernels in members for kernel in kernels}:
        first = next(kernels for kernels in members if kernel in kernels)
        num_bins = max(1, round(bins * first.count(kernel) / len(first)))
        found = [set() for _ in range(num_bins)]
        for m, kernels in enumerate(members):
            waiting = [(m, position) for position, own in enumerate(kernels) if own == kernel]
            num = len(waiting)
            for j in range(num_bins):
                take = num // num_bins + (1 if j < num % num_bins else 0)
                for _ in range(take):
                    found[j].add(waiting.pop(0))
        clusters += [cluster for cluster in found if cluster]
    return {frozenset(cluster) for cluster in clusters}


def allocate(costs, users, budget, cap=8):
    """Templates of each slot: one each, then one at a time in two phases of sweeps."""
    templates = [1 for _ in costs]
    spent = sum(costs)
    for phase in (1, 2):
        for t in range(1, cap):
            for slot, cost in enumerate(costs):
                wanted = templates[slot] == t and (phase == 2 or users[slot] > t)
                if wanted and spent + cost <= budget:
                    templates[slot] += 1
                    spent += cost
    return templates


def count_scalars(module):
    """Trainable scalars of a module, each tensor once, counted by the memory it stands in."""
    tensors = {p.data_ptr(): p.numel() for p in module.parameters() if p.requires_grad and p.numel()}
    return sum(tensors.values())
