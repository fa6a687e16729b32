"""Cluster search against the literal method: similarities, sets, ties, thresholds, budgets; what it leaves alone."""

import copy
import dataclasses
import functools
import itertools
import json
import math
import re
from itertools import pairwise

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import assert_refused
from small_networks import pattern_batches as batches
from small_networks import patterns as images
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import superweight_ensembles as swe
from superweight_ensembles.search import (
    GradientSearch,
    KMeansSearch,
    WeightSearch,
    cropped_cosines,
    merged_sets,
    searched_members,
    weight_gradients,
)

CONFIG = swe.TrainConfig(epochs=1, batch_size=32, learning_rate=0.05, precision="float32", device="cpu")
PIXELS = 3 * 8 * 8
THRESHOLDS = (-1.0, -0.15, 0.0, 0.1, 0.2, 0.45, 0.8, 1.0)


def search(ensemble, loader, *, budget=None, **options):
    return swe.search_sharing(ensemble, loader, method=GradientSearch(**options), budget=budget)


def mlp(*widths):
    sizes = (PIXELS, *widths)
    hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 4))


def cnn(kernel, *channels):
    """As torchvision's ResNets begin, without their shortcuts."""
    layers = [
        layer
        for i, o in pairwise((3, *channels))
        for layer in (nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 4))


@dataclasses.dataclass(frozen=True)
class Case:
    """Members, how deep each is, and their order: the deepest and widest first."""

    make: dict
    depth: dict
    order: tuple
    options: tuple = ()


CASES = {
    "wrn": Case(
        make={
            "thin10": lambda: swe.wide_resnet(10, 1, 4),
            "wide10": lambda: swe.wide_resnet(10, 2, 4),
            "thin16": lambda: swe.wide_resnet(16, 1, 4),
            "wide16": lambda: swe.wide_resnet(16, 2, 4),
        },
        depth={"thin10": 10, "wide10": 10, "thin16": 16, "wide16": 16},
        order=("wide16", "thin16", "wide10", "thin10"),
    ),
    "mlp pair": Case(
        make={"shallow": lambda: mlp(12, 16), "deep": lambda: mlp(12, 20, 12, 16, 16)},
        depth={"shallow": 2, "deep": 5},
        order=("deep", "shallow"),
        options=(("bins", 2),),
    ),
    # Kernels that the deepest member has not, and a pair of MLPs that share with each other alone.
    "families": Case(
        make={
            "mlp": lambda: mlp(12, 16),
            "cnn3": lambda: cnn(3, 8, 16, 8),
            "wrn": lambda: swe.wide_resnet(10, 1, 4),
            "cnn5": lambda: cnn(5, 6, 8, 6),
            "same5": lambda: cnn(5, 6, 8, 4),
            "mlp too": lambda: mlp(16, 12),
        },
        # By the commonest kernel of each: 3 x 3, 5 x 5, and none of the linear layers.
        depth={"wrn": "7 of 3", "cnn3": "3 of 3", "cnn5": "3 of 5", "same5": "3 of 5", "mlp": "0", "mlp too": "0"},
        order=("wrn", "cnn5", "cnn3", "same5", "mlp too", "mlp"),
        options=(("bins", 2),),
    ),
}


@functools.lru_cache
def members(case):
    torch.manual_seed(2)
    return {name: make() for name, make in CASES[case].make.items()}


@functools.lru_cache
def trained(case, coefficients="tied"):
    """Tests must leave it as it is; one holds the search to that."""
    ensemble = untrained(case, coefficients)
    swe.train(ensemble, images(), CONFIG, members=searched_members(ensemble))
    return ensemble


def untrained(case, coefficients="tied", budget=2.0):
    return swe.SuperWeightEnsemble(
        members(case),
        budget=budget,
        coefficients=coefficients,
        rng=torch.Generator().manual_seed(0),
        **dict(CASES[case].options),
    )


@functools.lru_cache
def literal_gradients(case):
    """Of the plain members' mean losses, with their generated weights as their own parameters."""
    everything = torch.cat([batch for batch, _ in batches()]), torch.cat([labels for _, labels in batches()])
    found = {}
    for name in trained(case).member_names:
        plain = trained(case).materialize(name).eval()
        F.cross_entropy(plain(everything[0]), everything[1]).backward()
        found.update({(name, key): parameter.grad for key, parameter in plain.named_parameters()})
    return found


@functools.lru_cache
def literal_cosine(case, first, second):
    return reference.cropped_cosine(literal_gradients(case)[first], literal_gradients(case)[second])


def literal_search(case, threshold, budget, *, similarity=None, plan=None, **costs):
    """The method on the first clusters of the trained ensemble: the threshold, then sets and leaders of each."""
    described, plan = CASES[case], plan or trained(case).plan
    targets = {(t.member, t.name): cluster.shape_of(t) for cluster in plan.clusters for t in cluster.targets}
    listed = {
        name: [(name, key) for key, _ in net.named_parameters() if (name, key) in targets]
        for name, net in members(case).items()
    }
    clusters = []
    for cluster in plan.clusters:
        here = {(target.member, target.name) for target in cluster.targets}
        clusters.append({name: [target for target in own if target in here] for name, own in listed.items()})
    place = {target: at / (len(own) - 1) for own in listed.values() for at, target in enumerate(own)}
    similarity = similarity or functools.partial(literal_cosine, case)
    private = sum(reference.count_scalars(net) for net in members(case).values())
    private -= sum(torch.Size(shape).numel() for shape in targets.values())
    return reference.search(
        clusters, described.order, described.depth, similarity, place, targets, private, budget, threshold, **costs
    )


def clusters_of(plan):
    """What a plan shares: of every cluster its targets, and which of them use one vector in each slot."""
    return [
        (
            {(target.member, target.name) for target in cluster.targets},
            [
                {
                    frozenset((t.member, t.name) for t in cluster.targets if t.slot >= slot and t.vectors[slot] == v)
                    for v in range(planned.num_vectors)
                }
                for slot, planned in enumerate(cluster.slots)
            ],
        )
        for cluster in plan.clusters
    ]


def literal_clusters(found, plan, tied=True):
    """As ``clusters_of`` says it: the sets of each first cluster by the first of member 0's targets in them."""
    shapes = {(t.member, t.name): cluster.shape_of(t) for cluster in plan.clusters for t in cluster.targets}
    expected = []
    for sets, leader in found:
        anchors = list(dict.fromkeys(leader.values()))
        vector = leader if tied else {target: target for target in leader}
        for targets in sorted(sets, key=lambda one: min(anchors.index(leader[target]) for target in one)):
            slots = reference.distinct_shapes(shapes[target] for target in targets)
            ties = []
            for slot in range(len(slots)):
                users = [target for target in targets if slots.index(shapes[target]) >= slot]
                ties.append({frozenset(other for other in users if vector[other] == vector[one]) for one in users})
            expected.append((targets, ties))
    return expected


# Similarities.


SHAPES = {
    "linear": [(4, 3), (3, 4), (4, 3), (8, 8), (1, 9), (9, 1)],
    "convolutions": [(4, 3, 3, 3), (2, 6, 3, 3), (4, 3, 3, 3), (8, 8, 3, 3), (1, 1, 3, 3)],
    "one": [(3, 2)],
}


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("case", SHAPES)
def test_cosines_equal_the_reference(case, scale):
    tensors = [scale * torch.randn(shape) for shape in SHAPES[case]]
    found = cropped_cosines(tensors)
    assert found.shape == (len(tensors), len(tensors)) and found.dtype == torch.float32
    for i, j in itertools.product(range(len(tensors)), repeat=2):
        # float32 sums of at most 576 products of unit rows.
        assert found[i, j].item() == pytest.approx(reference.cropped_cosine(tensors[i], tensors[j]), abs=2e-6)
    assert_close(found, found.T, atol=1e-6, rtol=0)


def test_zero_tensors_and_zero_crops_are_like_nothing():
    wide = torch.zeros(4, 4)
    wide[:, 3] = 1.0  # nothing in the block that it has in common with a narrow one
    tensors = [torch.zeros(4, 4), torch.ones(4, 4), wide, torch.ones(2, 2), torch.zeros(2, 2)]
    found = cropped_cosines(tensors)
    assert found.diagonal().tolist() == [1.0] * 5
    assert found[0, 1:].tolist() == found[4, :4].tolist() == [0.0] * 4
    assert found[2, 3] == 0 and found[2, 1] == pytest.approx(0.5)
    assert all(
        found[i, j].item() == pytest.approx(reference.cropped_cosine(tensors[i], tensors[j]))
        for i, j in itertools.permutations(range(5), 2)
    )


def test_cosines_do_not_change_their_arguments_and_stay_in_bounds():
    tensors = [torch.randn(5, 5)] * 2 + [torch.randn(5, 5, dtype=torch.float64)]
    before = [tensor.clone() for tensor in tensors]
    found = cropped_cosines(tensors)
    assert all(torch.equal(*pair) for pair in zip(tensors, before))
    assert found[0, 1] == pytest.approx(1.0) and found.abs().max() <= 1


some_cosines = st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@given(st.integers(1, 7).flatmap(lambda n: st.lists(some_cosines, min_size=n * n, max_size=n * n)), some_cosines)
def test_sets_are_those_of_merging_whole_sets(values, threshold):
    n = int(len(values) ** 0.5)
    similarity = torch.tensor(values).view(n, n)
    similarity = similarity.triu(1) + similarity.triu(1).T + torch.eye(n)
    numbers = merged_sets(similarity, threshold)
    sets = reference.merge(range(n), lambda i, j: similarity[i, j].item(), threshold)
    assert {frozenset(i for i in range(n) if numbers[i] == number) for number in numbers} == set(map(frozenset, sets))
    assert list(dict.fromkeys(numbers)) == list(range(len(sets)))


# Gradients.


@pytest.mark.parametrize("case", CASES)
def test_weight_gradients_are_those_of_the_plain_members(case):
    ensemble, expected = trained(case), literal_gradients(case)
    found = weight_gradients(ensemble, batches())
    assert found.keys() == {(t.member, t.name) for cluster in ensemble.plan.clusters for t in cluster.targets}
    for key, gradient in found.items():
        # Both are float32 sums over some ninety images, in other orders.
        assert_close(gradient, expected[key], atol=1e-5 * expected[key].abs().max().item(), rtol=1e-3)
        assert not gradient.requires_grad


def test_weight_gradients_of_some_members_and_some_batches_in_float32():
    ensemble = trained("wrn")
    found = weight_gradients(ensemble, batches(), ["thin16"], max_batches=2)
    first = weight_gradients(ensemble, list(batches())[:2])
    assert {member for member, _ in found} == {"thin16"}
    assert all(torch.equal(gradient, first[key]) for key, gradient in found.items())
    with torch.autocast("cpu", torch.bfloat16):
        again = weight_gradients(ensemble, batches(), ["thin16"], max_batches=2)
    for key, gradient in found.items():
        assert_close(again[key], gradient)


def test_gradient_of_a_weight_that_is_tied_inside_its_member_is_one():
    net = mlp(12, 12, 12)
    net[5].weight = net[3].weight
    ensemble = swe.SuperWeightEnsemble({"a": net}, budget=2.0)
    found = weight_gradients(ensemble, batches())
    plain = ensemble.materialize("a")
    images_, labels = next(iter(batches()))
    assert found.keys() == {("a", "1.weight"), ("a", "3.weight")}
    found = weight_gradients(ensemble, [(images_, labels)])
    F.cross_entropy(plain(images_), labels).backward()
    assert plain[3].weight is plain[5].weight
    assert_close(found["a", "3.weight"], plain[3].weight.grad, atol=1e-6, rtol=1e-4)


class Recomputing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = mlp(12, 12)[:4], nn.Linear(12, 4)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def test_gradients_of_a_member_that_recomputes_activations():
    ensemble = swe.SuperWeightEnsemble({"a": Recomputing()}, budget=2.0)
    assert weight_gradients(ensemble, batches()).keys() == {("a", "body.1.weight"), ("a", "body.3.weight")}


# The whole search.


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("case", CASES)
def test_sharing_is_the_references(case, threshold):
    ensemble = trained(case)
    result = search(ensemble, batches(), threshold=threshold, budget=10**9)
    at, found = literal_search(case, threshold, 10**9)
    assert result.threshold == result.threshold_given == at == threshold
    assert clusters_of(result.plan) == literal_clusters(found, ensemble.plan)
    if threshold == GradientSearch().threshold:  # a name stands for the defaults
        assert swe.search_sharing(ensemble, batches(), budget=10**9).plan == result.plan
        assert swe.search_sharing(ensemble, batches(), method="gradient", budget=10**9).plan == result.plan


@pytest.mark.parametrize("case", CASES)
def test_thresholds_of_these_tests_split_and_merge(case):
    numbers = {}
    for threshold in THRESHOLDS:
        _, found = literal_search(case, threshold, 10**9)
        numbers[threshold] = sum(len(sets) for sets, _ in found)
        for sets, leader in found:
            pairs = itertools.combinations(set().union(*sets) & set(leader.values()), 2)
            assert all(abs(literal_cosine(case, *sorted(pair)) - threshold) > 1e-5 for pair in pairs)
    assert numbers[-1.0] == len(trained(case).plan.clusters)
    assert numbers[1.0] == sum(len(set(leader.values())) for _, leader in found)
    assert len(set(numbers.values())) >= 3


@pytest.mark.parametrize("case", CASES)
def test_evidence_is_the_references(case):
    ensemble = trained(case)
    result = search(ensemble, batches(), threshold=0.2, budget=10**9)
    _, found = literal_search(case, 0.2, 10**9)
    order = CASES[case].order
    assert result.similarity == "gradient" and result.representatives[0] == order[0]
    for seen, cluster, (sets, leader) in zip(result.evidence, ensemble.plan.clusters, found, strict=True):
        assert seen.cluster == cluster and set(seen.targets) == set(cluster.targets)
        keys = [(target.member, target.name) for target in seen.targets]
        assert set(keys[: seen.num_anchors]) == set(leader.values())
        assert [keys[place] for place in seen.leaders] == [leader[key] for key in keys]
        numbered = {frozenset(k for k, number in zip(keys, seen.sets) if number == n) for n in seen.sets}
        assert numbered == set(map(frozenset, sets))
        compared = keys[: len(seen.similarity)]
        assert {member for member, _ in compared} <= set(result.representatives) | {keys[0][0]}
        for i, j in itertools.combinations(range(len(compared)), 2):
            assert seen.similarity[i, j].item() == pytest.approx(literal_cosine(case, keys[i], keys[j]), abs=1e-4)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("wrn", ("wide16", "wide10")),
        ("mlp pair", ("deep", "shallow")),
        ("families", ("wrn", "cnn5", "cnn3", "mlp too")),
    ],
)
def test_one_member_a_depth_is_compared(case, expected):
    assert searched_members(untrained(case)) == expected
    nets = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(10, 1, 4)}  # of equal ones, the first
    assert searched_members(swe.SuperWeightEnsemble(nets, budget=1.0, coefficients="tied")) == ("a",)


def test_tied_coefficients_are_those_of_the_target_that_was_joined():
    plan = search(trained("wrn"), batches(), threshold=0.1).plan
    assert any(slot.num_vectors > 1 for cluster in plan.clusters for slot in cluster.slots)
    ensemble = swe.SuperWeightEnsemble(members("wrn"), plan=plan)
    for cluster in plan.clusters:
        for one, other in itertools.combinations(cluster.targets, 2):
            if one.vectors == other.vectors:
                made = ensemble.generate()
                assert torch.equal(made[one.member][one.name], made[other.member][other.name])


FORMS = {"own": "vector", "tied": "vector", "embedding": "embedding"}


def fits(case, threshold, budget, kind, reserve_untied):
    reserved = kind == "tied" if reserve_untied is None else reserve_untied
    return literal_search(case, threshold, budget, form=FORMS[kind], tied=kind == "tied", reserve_untied=reserved)


@pytest.mark.parametrize(
    ("kind", "reserve_untied"),
    [("own", None), ("tied", True), ("tied", None), ("tied", False), ("embedding", None)],
)
@pytest.mark.parametrize("case", ["wrn", "mlp pair"])
def test_least_budget_works_and_one_less_does_not(case, kind, reserve_untied):
    with pytest.raises(ValueError, match=r"^\d+$") as caught:
        fits(case, 0.45, 0, kind, reserve_untied)
    least = int(str(caught.value))
    fit = functools.partial(
        search, trained(case), batches(), threshold=0.45, coefficients=kind, reserve_untied=reserve_untied
    )
    result = fit(budget=least)
    assert result.plan.num_parameters <= least and result.plan.budget == least
    assert_refused(rf"{least - 1:,} parameters is below the minimum .*, {least:,} \(", fit, budget=least - 1)
    assert_refused(rf"below the minimum .*, {least:,} \(", fit, budget=1)


@pytest.mark.parametrize("excess", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("kind", FORMS)
def test_threshold_falls_until_the_plan_fits(kind, excess):
    with pytest.raises(ValueError, match=r"^\d+$") as caught:
        fits("wrn", 0.8, 0, kind, None)
    least = int(str(caught.value))
    most = trained("wrn").independent_parameters
    budget = round(least + excess * (most - least))
    result = search(trained("wrn"), batches(), threshold=0.8, budget=budget, coefficients=kind)
    at, found = fits("wrn", 0.8, budget, kind, None)
    assert result.threshold == at and result.threshold_given == 0.8
    assert at < 0.8 if excess <= 0.1 else at > -0.5
    assert clusters_of(result.plan) == literal_clusters(found, trained("wrn").plan, tied=kind == "tied")
    assert result.plan.num_parameters <= budget
    ensemble = swe.SuperWeightEnsemble(members("wrn"), plan=result.plan)
    assert reference.count_scalars(ensemble) == result.plan.num_parameters == ensemble.num_parameters


@pytest.mark.parametrize("reserve_untied", [True, False])
def test_templates_are_the_reference_allocation(reserve_untied):
    plan = search(trained("wrn"), batches(), budget=0.9, reserve_untied=reserve_untied).plan
    costs, users = [], []
    for cluster in plan.clusters:
        shapes = [slot.shape for slot in cluster.slots]
        for index, slot in enumerate(cluster.slots):
            users.append(sum(target.slot >= index for target in cluster.targets))
            costs.append(reference.slot_size(shapes, index) + (users[-1] if reserve_untied else slot.num_vectors))
    expected = reference.allocate(costs, users, plan.budget - plan.num_private, plan.cap)
    assert [slot.num_templates for cluster in plan.clusters for slot in cluster.slots] == expected


def test_budget_cap_and_counting_are_the_ensembles_unless_given():
    ensemble = swe.SuperWeightEnsemble(
        members("mlp pair"), budget=6000, budget_counts="templates", cap=3, coefficients="tied", bins=2,
    )  # fmt: skip
    swe.train(ensemble, images(), CONFIG)
    plan = search(ensemble, batches()).plan
    assert (plan.budget, plan.budget_counts, plan.cap) == (6000, "templates", 3)
    assert plan.num_templates <= 6000 and plan.member_names == ensemble.member_names
    assert search(ensemble, batches(), budget=7000).plan.budget == 7000
    fraction = search(ensemble, batches(), budget=1.5).plan
    assert fraction.budget == int(1.5 * ensemble.independent_parameters)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::7])
def test_order_of_the_members_makes_no_difference(order):
    first = trained("wrn")
    names = [list(members("wrn"))[index] for index in order]
    by_hand = {cluster.name: [target.label for target in cluster.targets] for cluster in first.plan.clusters}
    other = swe.SuperWeightEnsemble(
        {name: members("wrn")[name] for name in names}, budget=2.0, coefficients="tied", clusters=by_hand
    )
    other.load_state_dict(first.state_dict())
    for budget in (2.0, 0.7):
        expected, found = (search(ensemble, batches(), threshold=0.2, budget=budget) for ensemble in (first, other))
        assert clusters_of(found.plan) == clusters_of(expected.plan)
        assert found.threshold == expected.threshold and found.representatives == expected.representatives
        counts = [
            [slot.num_templates for c in result.plan.clusters for slot in c.slots] for result in (expected, found)
        ]
        assert counts[0] == counts[1]


def test_members_that_share_nothing_are_left_out():
    nets = {"apart": mlp(5, 6), "a": mlp(12, 12), "b": mlp(12, 14)}
    ensemble = swe.SuperWeightEnsemble(nets, budget=1.5, coefficients="tied", exclude=["apart.*"], bins=1)
    swe.train(ensemble, images(), CONFIG)
    plan = search(ensemble, batches()).plan
    assert plan.member_names == ("apart", "a", "b")
    assert {target.member for cluster in plan.clusters for target in cluster.targets} == {"a", "b"}
    swe.SuperWeightEnsemble(nets, plan=plan)


def test_weights_can_be_compared_instead_without_batches():
    assert_refused(r"unknown option of WeightSearch .max_batches.", WeightSearch, max_batches=1)
    ensemble = trained("wrn", "own")
    result = swe.search_sharing(ensemble, method="weight", budget=10**9)
    assert result.plan == swe.search_sharing(ensemble, method=WeightSearch(threshold=0.1), budget=10**9).plan
    weights = {(m, key): w.detach() for m, found in ensemble.generate().items() for key, w in found.items()}
    cosine = functools.cache(lambda one, other: reference.cropped_cosine(weights[one], weights[other]))
    _, found = literal_search("wrn", 0.1, 10**9, similarity=cosine, plan=ensemble.plan)
    assert result.similarity == "weight"
    assert clusters_of(result.plan) == literal_clusters(found, ensemble.plan)
    again = search(ensemble, batches(), threshold=0.1, budget=10**9)
    assert clusters_of(again.plan) != clusters_of(result.plan)


@pytest.mark.parametrize("kind", FORMS)
def test_same_batches_give_the_same_plan_and_json_brings_it_back(kind):
    results = [search(trained("wrn"), batches(), coefficients=kind, max_batches=2) for _ in range(2)]
    assert results[0].plan == results[1].plan == swe.SharingPlan.from_json(results[0].plan.to_json())
    assert {cluster.coefficients for cluster in results[0].plan.clusters} == {FORMS[kind]}
    assert results[0].to_dict() == results[1].to_dict()


def test_search_is_told_in_json():
    result = search(trained("wrn"), batches(), threshold=0.2)
    said = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert said["plan"] == result.plan.fingerprint and said["anchor"] == said["representatives"][0] == "wide16"
    assert (said["threshold_given"], said["threshold"], said["similarity"]) == (0.2, result.threshold, "gradient")
    for cluster, evidence in zip(said["clusters"], result.evidence, strict=True):
        count = len(evidence.targets)
        assert cluster["targets"] == [target.label for target in evidence.targets]
        assert len(cluster["sets"]) == len(cluster["leaders"]) == len(cluster["similarity"]) == count
        assert all(len(row) == count for row in cluster["similarity"])
        assert [row[index] for index, row in enumerate(cluster["similarity"])].count(1.0) == len(evidence.similarity)


def test_ensemble_is_left_as_it_is():
    ensemble = copy.deepcopy(trained("wrn"))
    ensemble.train()
    ensemble.members["thin10"].stages[0].eval()  # a mixture of modes
    for place, parameter in enumerate(ensemble.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if place % 2 else None
    state = copy.deepcopy(ensemble.state_dict())
    modes = {name: module.training for name, module in ensemble.named_modules()}
    plan, drawn = ensemble.plan, torch.get_rng_state()
    search(ensemble, list(batches()))
    assert all(torch.equal(tensor, ensemble.state_dict()[name]) for name, tensor in state.items())
    assert {name: module.training for name, module in ensemble.named_modules()} == modes
    for place, parameter in enumerate(ensemble.parameters()):
        assert (parameter.grad == 0.5).all() if place % 2 else parameter.grad is None
    assert ensemble.plan is plan and torch.equal(drawn, torch.get_rng_state())
    assert all(parameter is None for net in ensemble.members.values() for parameter in [net.stem.weight])
    pair = r"a batch must be a pair \(images, labels\)"
    assert_refused(pair, search, ensemble, [next(iter(batches())), 3])
    assert {name: module.training for name, module in ensemble.named_modules()} == modes, "after an error, too"


# Training the compared members alone.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_other_members_alone_use_stays_as_it_is(optimizer):
    ensemble = untrained("wrn", "own", budget=0.9)
    before = copy.deepcopy(ensemble.state_dict())
    config = dataclasses.replace(CONFIG, optimizer=optimizer, learning_rate=0.01)
    result = swe.train(ensemble, images(), config, members=("thin16", "thin10"))
    assert list(result.history[0]["train_loss"]) == ["thin16", "thin10"]
    assert list(result.history[0]["validation"]["members"]) == ["thin16", "thin10"]
    after, rows, slots = ensemble.state_dict(), set(), set()
    for c, cluster in enumerate(ensemble.plan.clusters):
        for target in cluster.targets:
            if target.member.startswith("thin"):
                slots |= {f"c{c}s{slot}" for slot in range(target.slot + 1)}
                rows |= {(f"c{c}s{slot}", vector) for slot, vector in enumerate(target.vectors)}
    for name, tensor in before.items():
        kind, _, key = name.removeprefix("bank.").partition(".")
        if name.startswith("members.wide") or (kind == "templates" and key not in slots):
            assert torch.equal(after[name], tensor), name
        elif kind == "coefficients":
            for row in range(len(tensor)):
                assert torch.equal(after[name][row], tensor[row]) == ((key, row) not in rows), (name, row)
        elif kind == "templates" or name.endswith("fc.weight"):
            assert not torch.equal(after[name], tensor), name
    assert len(slots) < len(ensemble.bank.templates)


def test_members_that_are_not_there_or_no_list_of_names_are_refused():
    unknown = "unknown member 'thin11': did you mean 'thin1"
    assert_refused(unknown, swe.train, untrained("wrn"), images(), CONFIG, members=["thin10", "thin11"])
    assert_refused(unknown, weight_gradients, trained("wrn"), batches(), ["thin11"])
    ensemble = swe.SuperWeightEnsemble({"a": mlp(5, 5), "b": mlp(5, 6)}, budget=1.5)
    for names in ("ab", (), ["a", "a"]):
        assert_refused("members", swe.train, ensemble, images(), CONFIG, members=names)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"threshold": threshold},
                f"threshold .a cosine. must be a finite number, from -1 to 1; got {re.escape(repr(threshold))}",
            )
            for threshold in (1.5, -1.01, math.nan, math.inf, True, "0.1", None)
        ),
        ({"coefficients": "tide"}, "unknown coefficients 'tide': did you mean 'tied'"),
        ({"budget": 83.0}, r"is a fraction of what the members own apart; got 83\.0: write 0\.83 for 83 %"),
        ({"budget": -1}, "budget must be a positive number; got -1"),
        ({"budget": "0.8"}, r"budget must be an int .* or a float .*; got '0\.8'"),
        ({"budget": 0.01}, "below the minimum at every threshold"),
        ({"coefficients": None}, "unknown coefficients None"),
        *(
            ({"max_batches": number}, "max_batches .None for all. must be a whole number, at least 1")
            for number in (0, -1, 1.5, True, "2")
        ),
        ({"loader": []}, "has no samples"),
        ({"loader": iter([])}, "has no samples"),
        ({"loader": [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))]}, "has no samples"),
        ({"loader": [torch.zeros(2, 3, 8, 8)]}, r"a batch must be a pair \(images, labels\)"),
        ({"loader": [(torch.zeros(2, 3, 8, 8), torch.zeros(2))]}, "labels must be class indices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_options_and_loaders(options, message):
    assert_refused(message, search, trained("mlp pair"), **{"loader": batches(), **options})


@pytest.mark.parametrize(
    ("method", "reads", "message"),
    [
        ("gradeint", True, "unknown method 'gradeint': did you mean 'gradient'"),
        ("weights", False, "unknown method 'weights': did you mean 'weight'"),
        (None, True, "unknown method None"),
        ("gradient", False, "method 'gradient' needs loader=, batches of training images and labels"),
        (GradientSearch(), False, "method 'gradient' needs loader="),
        ("weight", True, "loader does nothing with WeightSearch, which reads no batches: leave it out"),
        (KMeansSearch(num_groups=2), True, "loader does nothing with KMeansSearch"),
        ("k_means", False, r"method 'k_means' needs num_groups: method=swe\.search\.KMeansSearch\(num_groups=4\)"),
        ("weight", False, "all coefficients are tied, so all weights of a cluster are alike"),
    ],
    ids=str,
)
def test_bad_methods(method, reads, message):
    assert_refused(message, swe.search_sharing, trained("mlp pair"), batches() if reads else None, method=method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(12), "a search takes a SuperWeightEnsemble; got Sequential"),
        (lambda: untrained("mlp pair"), "the ensemble is untrained"),
        (
            lambda: swe.SuperWeightEnsemble(members("mlp pair"), plan=swe.independent_plan(members("mlp pair"))),
            "the ensemble shares nothing",
        ),
    ],
    ids=["no ensemble", "untrained", "apart"],
)
def test_what_cannot_be_searched(make, message):
    assert_refused(message, search, make(), batches())


@pytest.mark.parametrize("options", [{"budget": 0.29}, {"budget": 0.5, "generator": "ssn"}], ids=["mixed", "flat"])
def test_flat_banks_cannot_be_searched(options):
    ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(16, 1, 3)}, **options)
    message = "splits clusters of SuperWeights, and 'conv2d 1x1 bin 1/1' reads a flat bank: plan with generator="
    assert_refused(message, search, ensemble, batches())
    assert_refused(message, searched_members, ensemble)


class Odd(nn.Module):
    """Three layers; the gradient of the first is no number, or none reaches any of them."""

    def __init__(self, detach):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(PIXELS, 12) for _ in range(3))
        self.head, self.detach = nn.Linear(12, 4), detach

    def forward(self, x):
        x = x.flatten(1)
        if self.detach:
            return self.head((self.first(x) + self.second(x) + self.third(x)).detach())
        return self.head(self.third(x) + self.second(x) + (0 * self.first(x)).sqrt())


def odd_ensemble(detach):
    ensemble = swe.SuperWeightEnsemble({"good": mlp(12, 12), "odd": Odd(detach)}, budget=2.0, bins=1)
    with torch.no_grad():
        for templates in ensemble.bank.templates.values():
            templates.mul_(1.01)  # as if trained
    return ensemble


def test_gradients_that_are_no_numbers_or_all_zero_are_named():
    with pytest.raises(swe.SuperWeightError, match=r"the gradient of odd\.first\.weight has numbers that are not"):
        search(odd_ensemble(False), batches())
    hot = [(torch.full((4, 3, 8, 8), torch.nan), torch.arange(4))]
    assert_refused(r"the gradient of \S+\.weight has numbers that are not finite", search, trained("wrn"), hot)
    assert_refused("all gradients of member 'odd' are zero", search, odd_ensemble(True), batches())
