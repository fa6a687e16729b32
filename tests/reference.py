"""The method, slow and literal: loops over targets, slots and templates, nothing batched or cached.

Written from the papers' method (Teterwak et al., WACV 2024, sections 3.1 and 3.2) and apart from the library, which
the tests compare with it. Of the library it reads the fields of a plan alone.

Shapes are (O, I, *kernel): O out, I in; N coefficient vectors, K templates, E numbers in an embedding.
"""

from __future__ import annotations

import itertools
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


def several_kernels(shapes):
    return len({tuple(shape[2:]) for shape in shapes}) > 1


def places_of(shape):
    """Every (row, column, *kernel position) of a weight, kernel positions from the centre."""
    rows, columns, *kernel = shape
    axes = [range(rows), range(columns), *(range(-(size // 2), size - size // 2) for size in kernel)]
    return set(itertools.product(*axes))


def pieces_of(shapes, slot):
    """A slot among those of several kernels: the places that no slot before it has, block by block in its order."""
    pieces = [places_of(shapes[slot])]
    for before in reversed(range(slot)):
        taken, finer = places_of(shapes[before]), []
        for piece in pieces:
            both = piece & taken
            if not both:
                finer.append(piece)
                continue
            left, own = set(piece), []
            for axis in range(len(shapes[slot])):  # new rows with all columns, then new columns, then kernel positions
                low, high = min(place[axis] for place in both), max(place[axis] for place in both)
                below = {place for place in left if place[axis] < low}
                above = {place for place in left if place[axis] > high}
                own = [part for part in (below, above) if part] + own
                left -= below | above
            finer += own
        pieces = finer
    return [sorted(piece, key=lambda place: (place[0], *place[2:], place[1])) for piece in pieces]


def slot_size(shapes, slot):
    """Numbers in a slot: what s_r needs beyond s_(r-1)."""
    if several_kernels(shapes):
        return sum(map(len, pieces_of(shapes, slot)))
    return sum(math.prod(block) for block in blocks_of(shapes, slot) if block is not None)


def block(numbers, shape):
    """A block (O, I, *k) from its numbers, which stand in the order (O, *k, I)."""
    rows, columns, *kernel = shape
    return numbers.reshape(rows, *kernel, columns).movedim(-1, 1)


def compose_kernels(shapes, superweights):
    """The same where the cluster has several kernels: each place from the first slot that has it."""
    held = {}
    for slot, numbers in enumerate(superweights):
        places = [place for piece in pieces_of(shapes, slot) for place in piece]
        held.update(zip(places, numbers))
    shape = shapes[len(superweights) - 1]
    weight = superweights[0].new_zeros(shape)
    for row, column, *position in places_of(shape):
        spot = [place + size // 2 for place, size in zip(position, shape[2:])]
        weight[(row, column, *spot)] = held[(row, column, *position)]
    return weight


def compose(shapes, superweights):
    """A weight of shape s_r from the SuperWeights of slots 0..r; the shapes are those of all slots."""
    if several_kernels(shapes):
        return compose_kernels(shapes, superweights)
    weight = block(superweights[0], shapes[0])
    for slot in range(1, len(superweights)):
        column, row = blocks_of(shapes, slot)
        rows, columns = min(weight.shape[0], shapes[slot][0]), min(weight.shape[1], shapes[slot][1])
        wider = weight.new_zeros(shapes[slot])
        wider[:rows, :columns] = weight[:rows, :columns]
        used = 0
        if column is not None:
            used = math.prod(column)
            wider[: column[0], columns:] = block(superweights[slot][:used], column)
        if row is not None:
            wider[rows:] = block(superweights[slot][used:], row)
        weight = wider
    return weight


def affine(embeddings, mixer):
    """Coefficients alpha = A e + b, (N, K), of embeddings (N, E); the mixer is [A b], (K, E + 1)."""
    alphas = []
    for e in embeddings:
        alpha = []
        for k in range(mixer.shape[0]):
            total = mixer[k, -1]
            for place in range(len(e)):
                total = total + mixer[k, place] * e[place]
            alpha.append(total)
        alphas.append(torch.stack(alpha))
    return torch.stack(alphas)


def superweight(alpha, bank):
    """alpha . T, (Q,)."""
    total = torch.zeros_like(bank[0])
    for k in range(bank.shape[0]):
        total = total + alpha[k] * bank[k]
    return total


def generate(plan, templates, coefficients):
    """Every weight of a plan, {(member, parameter name): tensor}, from {"c0s0": (K, Q)} and {"c0s0": (N, K)}.

    Embeddings are to be mixed before (``affine``)."""
    weights, parts = {}, {}
    for c, cluster in enumerate(plan.clusters):
        shapes = [slot.shape for slot in cluster.slots]
        for target in cluster.targets:
            superweights = []
            for slot in range(target.slot + 1):
                bank, alpha = templates[f"c{c}s{slot}"], coefficients[f"c{c}s{slot}"][target.vectors[slot]]
                superweights.append(superweight(alpha, bank))
            weight = compose(shapes, superweights)
            for _ in range(target.ones):
                weight = weight[..., None]
            for _ in range(-target.ones):
                weight = weight[:, :, 0]
            for name in target.names:
                if target.part is None:
                    weights[target.member, name] = weight
                else:
                    parts.setdefault((target.member, name), {})[target.part[0]] = weight
    for label, found in parts.items():
        weights[label] = torch.cat([found[index] for index in range(len(found))])
    return weights


def depth_bins(members, bins):
    """First clusters. ``members`` lists each member's kernels in construction order; a cluster is a set of
    (member, position). A kernel that member 0 has not is counted in the first member that has it;
    linear layers (0) and convolutions of kernel 1 are alike."""
    members = [[0 if kernel == 1 else kernel for kernel in kernels] for kernels in members]
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


def num_coefficients(form, vectors, templates, embedding=24):
    """Coefficient scalars of a slot: vectors, or embeddings with their affine map."""
    if form == "embedding":
        return vectors * embedding + templates * (embedding + 1)
    return vectors * templates


def least_budget(clusters, private, form="vector", reserve_untied=False):
    """Trainable scalars with one template a slot. ``clusters`` lists, for each, every target's (shape, leader): targets
    of one leader use one vector, unless room is reserved for one each."""
    total = private
    for targets in clusters:
        shapes = distinct_shapes(shape for shape, _ in targets)
        for slot in range(len(shapes)):
            users = [leader for shape, leader in targets if shapes.index(tuple(shape)) >= slot]
            vectors = len(users) if reserve_untied else len(set(users))
            total += slot_size(shapes, slot) + num_coefficients(form, vectors, 1)
    return total


def cropped_cosine(first, second):
    """Cosine of two tensors on the leading (O, I) block that both have; what has no direction is like nothing."""
    inner = first_square = second_square = 0.0
    columns = min(first.shape[1], second.shape[1])
    for o in range(min(first.shape[0], second.shape[0])):
        one, other = first[o, :columns].double().flatten(), second[o, :columns].double().flatten()
        inner += float((one * other).sum())
        first_square += float((one * one).sum())
        second_square += float((other * other).sum())
    if first_square == 0 or second_square == 0:
        return 0.0
    return inner / (math.sqrt(first_square) * math.sqrt(second_square))


def merge(items, similarity, threshold):
    """Each item starts alone; pairs are visited from the most similar down, and whole sets are merged while the
    similarity of the pair exceeds the threshold."""
    sets = [{item} for item in items]
    pairs = sorted(((similarity(*pair), *pair) for pair in itertools.combinations(items, 2)), reverse=True)
    for alike, first, second in pairs:
        if alike <= threshold:
            break
        one = next(found for found in sets if first in found)
        other = next(found for found in sets if second in found)
        if one is not other:
            sets.remove(other)
            one |= other
    return sets


def split_cluster(cluster, order, depth, similarity, place, threshold):
    """One first cluster, split: its final sets of targets, and for each target that of member 0 whose coefficients it
    takes.

    Args:
        cluster: {member: its targets in this cluster, in construction order}.
        order: The members, member 0 (the deepest, widest) first.
        depth: Of every member; the first in order of each depth is compared, the others follow it.
        similarity: Of two targets.
        place: Of every target: how far down its member it stands, 0 to 1.
        threshold: Merge above it.
    """
    there = [member for member in order if cluster[member]]
    first_of = {}
    for member in order:
        first_of.setdefault(depth[member], member)
    compared = [member for member in there if first_of[depth[member]] == member] or there[:1]
    own = cluster[compared[0]]
    leader = {target: target for target in own}
    for member in compared[1:]:
        for target in cluster[member]:
            leader[target] = max(own, key=lambda other, target=target: similarity(target, other))
    for member in there:
        if member not in compared:
            like = first_of[depth[member]] if first_of[depth[member]] in compared else compared[0]
            for index, target in enumerate(cluster[member]):
                others = cluster[like]
                if len(others) == len(cluster[member]):
                    same = others[index]
                else:
                    same = min(others, key=lambda other, target=target: abs(place[other] - place[target]))
                leader[target] = leader[same]
    sets = merge(own, similarity, threshold)
    return [{target for target in leader if leader[target] in found} for found in sets], leader


def search(clusters, order, depth, similarity, place, shape, private, budget, threshold, **costs):
    """Clusters split at the highest of threshold, threshold - 0.05, ... at which one template a slot fits the budget.

    Returns the threshold, then sets and leaders of every first cluster. ``ValueError`` holds the minimum with no
    cluster split. ``costs`` are of ``least_budget``; with ``tied=False`` every target has a vector of its own.
    """
    tied = costs.pop("tied", True)
    while True:
        found = [split_cluster(cluster, order, depth, similarity, place, threshold) for cluster in clusters]
        least = least_budget(
            [
                [(shape[target], leader[target] if tied else target) for target in one]
                for sets, leader in found
                for one in sets
            ],
            private,
            **costs,
        )
        if least <= budget:
            return threshold, found
        if all(len(sets) == 1 for sets, _ in found):
            raise ValueError(least)
        threshold = round(threshold - 0.05, 2)


def superweight_gradients(plan, templates, coefficients, loss):
    """dL/dSuperWeight, (Q,), of every {(cluster, place of the target, slot)}, where ``loss`` takes the weights as
    ``generate`` returns them: each SuperWeight of each target is a leaf of its own."""
    leaves, weights = {}, {}
    for c, cluster in enumerate(plan.clusters):
        shapes = [slot.shape for slot in cluster.slots]
        for t, target in enumerate(cluster.targets):
            for slot in range(target.slot + 1):
                bank, alpha = templates[f"c{c}s{slot}"], coefficients[f"c{c}s{slot}"][target.vectors[slot]]
                made = superweight(alpha, bank)
                leaves[c, t, slot] = made.detach().requires_grad_()
            used = [leaves[c, t, slot] for slot in range(target.slot + 1)]
            for name in target.names:
                weights[target.member, name] = compose(shapes[: target.slot + 1], used)
    found = torch.autograd.grad(loss(weights), list(leaves.values()), allow_unused=True)
    return {
        key: torch.zeros_like(leaf) if gradient is None else gradient
        for (key, leaf), gradient in zip(leaves.items(), found)
    }


def use_gradient(gradient, bank, mixer=None):
    """A use's own gradient, g[n] = <dL/dSuperWeight, T_n>, as a flat list; of an embedding, which has a mixer,
    through alpha = A e + b."""
    found = [float((gradient * row).sum()) for row in bank]
    if mixer is not None:
        return [sum(found[k] * float(mixer[k, e]) for k in range(len(found))) for e in range(mixer.shape[1] - 1)]
    return found


def untie(plan, gradients, threshold):
    """The coefficient vector of {(cluster, place of the target, slot)} after un-tying; ``gradients`` are by the same
    keys. A use without any gradient conflicts with nothing."""
    vectors = {
        (c, t, slot): target.vectors[slot]
        for c, cluster in enumerate(plan.clusters)
        for t, target in enumerate(cluster.targets)
        for slot in range(target.slot + 1)
    }
    for c, cluster in enumerate(plan.clusters):
        for slot in range(len(cluster.slots)):
            of_slot = [key for key in vectors if key[0] == c and key[2] == slot]
            tied = {vector: [key for key in of_slot if vectors[key] == vector] for vector in map(vectors.get, of_slot)}
            new = max(tied) + 1
            for vector in sorted(tied):
                heard = [key for key in tied[vector] if any(gradients[key])] if len(tied[vector]) > 1 else []
                sets = merge(heard, lambda one, other: _cosine(gradients[one], gradients[other]), threshold)
                for found in sorted(sets, key=min)[1:]:
                    for key in found:
                        vectors[key] = new
                    new += 1
    return vectors


def _cosine(first, second):
    inner = sum(a * b for a, b in zip(first, second))
    return inner / (math.sqrt(sum(a * a for a in first)) * math.sqrt(sum(b * b for b in second)))
