"""Generated weights against the literal method in float64, and what generating them costs."""

import copy
import dataclasses
import math
from itertools import pairwise

import pytest
import reference
import torch
from small_networks import linear_chain
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from superweight_ensembles import SuperWeightEnsemble, plan_sharing, warm_start, wide_resnet
from superweight_ensembles.ensemble import SuperWeightBank, generation, own_deviations
from superweight_ensembles.ensemble import superweights as composition


def conv_chain(*sizes):
    return nn.Sequential(*(nn.Conv2d(i, o, 3) for i, o in pairwise(sizes)), nn.Flatten(), nn.Linear(sizes[-1], 3))


class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, images):
        query, key, value = self.qkv(images).chunk(3, -1)
        return self.proj(torch.softmax(query * key, -1) * value)


def projections(*sizes):
    """Fused projections of a layer's own and of torch's."""
    fused = nn.MultiheadAttention(sizes[-1], 2)
    return nn.ModuleDict({f"block{size}": Attention(size) for size in sizes} | {"fused": fused, "fc": nn.Linear(4, 3)})


def pointwise(*sizes):
    return nn.Sequential(*(nn.Conv1d(i, o, 1) for i, o in pairwise(sizes)), nn.Flatten(), nn.Linear(sizes[-1], 3))


def many_kernels(*sizes, groups=False):
    """Kernels of 1 and 3, of 5 x 3 and, depthwise, of 2 to 5 positions; a convolution of one dimension."""
    wide = sizes[-1]
    own = [nn.Conv2d(i, o, size) for (i, o), size in zip(pairwise(sizes), (1, 3, (5, 3), 1))]
    deep = [nn.Conv2d(wide, wide, size, groups=wide) for size in (3, 5, 2)] if groups else []
    return nn.Sequential(*own, *deep, nn.Conv1d(wide, wide, 3), nn.Flatten(), nn.Linear(wide, 3))


MEMBERS = {
    "wrn": lambda: {"a": wide_resnet(16, 1, 3), "b": wide_resnet(10, 2, 3), "c": wide_resnet(10, 1, 3)},
    "growing": lambda: {"a": linear_chain(3, 4, 6, 6), "b": linear_chain(3, 4, 6, 8)},
    "cropping": lambda: {"a": linear_chain(6, 2, 5, 3, 5), "b": linear_chain(3, 5, 2, 9, 2, 6)},
    "cropping convolutions": lambda: {"a": conv_chain(6, 2, 5, 3, 5), "b": conv_chain(3, 5, 2, 9, 2, 6)},
    "a member alone": lambda: {"a": conv_chain(3, 4, 4, 4)},
    "matrices of unlike layers": lambda: {
        "a": projections(4, 6),
        "b": linear_chain(3, 4, 6, 4),
        "c": pointwise(6, 4, 4),
    },
    "several kernels": lambda: {
        "a": many_kernels(3, 6, 5, 4, 4, groups=True),
        "b": linear_chain(3, 4, 7, 4),
        "c": many_kernels(2, 4, 6, 6, groups=True),
        "d": pointwise(2, 5),
    },
}


def bank_of(case, *, budget=10**6, cap=3, bins=1, edit=None):
    """A float64 bank of a case; ``edit`` changes the plan before the bank is built."""
    members = MEMBERS[case]()
    kernels = "centre" if case == "several kernels" else "apart"
    plan = plan_sharing(members, budget=budget, cap=cap, bins=bins, kernels=kernels)
    plan = plan if edit is None else edit(plan)
    return SuperWeightBank(plan, own_deviations(plan, members)).double()


def literal(bank):
    return reference.generate(bank.plan, dict(bank.templates.items()), dict(bank.coefficients.items()))


def flat(weights):
    return {(member, name): weight for member, found in weights.items() for name, weight in found.items()}


def assert_equal_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for key, weight in expected.items():
        assert_close(actual[key], weight, atol=1e-12, rtol=0)


def tie(plan, cluster, keep, drop):
    """The plan with one target's coefficient vectors replaced by another's, in the slots that both have."""
    chosen = plan.clusters[cluster]
    vectors = [list(target.vectors) for target in chosen.targets]
    common = min(len(vectors[keep]), len(vectors[drop]))
    vectors[drop][:common] = vectors[keep][:common]
    slots = []
    for r, slot in enumerate(chosen.slots):
        used = sorted({own[r] for own in vectors if len(own) > r})
        for own in vectors:
            if len(own) > r:
                own[r] = used.index(own[r])
        slots.append(dataclasses.replace(slot, num_vectors=len(used)))
    targets = tuple(
        dataclasses.replace(target, vectors=tuple(own)) for target, own in zip(chosen.targets, vectors, strict=True)
    )
    clusters = list(plan.clusters)
    clusters[cluster] = dataclasses.replace(chosen, slots=tuple(slots), targets=targets)
    return dataclasses.replace(plan, clusters=tuple(clusters))


def first_to_last(plan):
    """Ties of different shapes (slot 0 alone) and of one shape (all slots)."""
    chosen = plan.clusters[0]
    last = len(chosen.targets) - 1
    return tie(tie(plan, 0, 0, last), 0, last, last - 1)


@pytest.mark.parametrize("case", MEMBERS)
@pytest.mark.parametrize(("bins", "edit"), [(1, None), (3, None), (1, first_to_last)], ids=["1 bin", "3 bins", "tied"])
def test_generation_and_gradients_equal_the_reference(case, bins, edit):
    bank = bank_of(case, bins=bins, edit=edit)
    assert edit is None or bank.plan.num_coefficients < bank_of(case).plan.num_coefficients
    weights, expected = flat(bank.generate()), literal(bank)
    assert_equal_weights(weights, expected)
    leaves = dict(bank.named_parameters())
    readers = {key: torch.randn_like(weight) for key, weight in expected.items()}
    losses = [
        sum((found[key].square() * reader).sum() for key, reader in readers.items()) for found in (weights, expected)
    ]
    # of several kernels, a vector may be of a slot that has none of its target's places
    grads = [torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True) for loss in losses]
    for name, fast, slow in zip(leaves, *grads, strict=True):
        assert_close(fast, slow, atol=1e-12, rtol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("edit", [None, first_to_last])
@pytest.mark.parametrize("subset", [["a"], ["b"], ["c", "a"], []])
def test_generation_of_some_members_equals_the_reference(subset, edit):
    bank = bank_of("wrn", edit=edit)
    expected = {key: weight for key, weight in literal(bank).items() if key[0] in subset}
    weights = bank.generate(subset)
    assert list(weights) == subset
    assert_equal_weights(flat(weights), expected)


def test_tied_targets_of_one_slot_are_equal():
    bank = bank_of("a member alone", edit=lambda plan: tie(plan, 0, 1, 2))
    weights = bank.generate()["a"]
    _, first, second = bank.plan.clusters[0].targets
    assert first.vectors == second.vectors
    assert torch.equal(weights[first.name], weights[second.name])


def test_names_tied_in_a_member_hold_one_tensor():
    net = linear_chain(4, 4, 4)
    net[1].weight = net[0].weight
    weights = SuperWeightEnsemble({"a": net}, budget=3.0).generate()["a"]
    assert weights["0.weight"] is weights["1.weight"]


class Products(TorchDispatchMode):
    """Records the matrix products that run."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"mm", "bmm", "addmm", "mv", "dot", "baddbmm", "addmv", "einsum"}:
            self.shapes.append(tuple(tuple(factor.shape) for factor in args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("edit", [None, first_to_last])
@pytest.mark.parametrize("members", [None, ["a", "c"]], ids=["all", "some"])
def test_one_product_a_block_with_each_vector_of_these_members_once(edit, members):
    bank = bank_of("wrn", bins=4, edit=edit)
    expected = []
    for cluster in bank.plan.clusters:
        for index, (slot, block) in enumerate(zip(cluster.slots, cluster.blocks)):
            read = [t for t in cluster.targets if (members is None or t.member in members) and t.slot >= index]
            vectors = len({target.vectors[index] for target in read})
            assert vectors == slot.num_vectors or members
            if vectors:
                factor = (vectors, slot.num_templates)
                expected += [(factor, (slot.num_templates, math.prod(shape))) for shape in block.shapes]
    with Products() as seen:
        bank.generate(members)
    assert sorted(seen.shapes) == sorted(expected)


def test_autocast_makes_half_weights():
    bank = bank_of("wrn").float()
    full = flat(bank.generate())
    with torch.autocast("cpu", torch.bfloat16):
        weights = flat(bank.generate())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    for key, weight in weights.items():
        assert torch.equal(weight, full[key].bfloat16()), "products are taken in float32 and rounded once"


@pytest.mark.parametrize("case", ["wrn", "cropping convolutions", "several kernels"])
def test_pieces_that_the_cache_holds_make_the_same_weights_and_gradients(case, monkeypatch):
    bank = bank_of(case)
    leaves, found = list(bank.parameters()), []
    for numbers in (2**30, 50):
        monkeypatch.setattr(composition, "_NUMBERS_IN_CACHE", numbers)
        weights = flat(bank.generate())
        gradients = torch.autograd.grad(sum(weight.square().sum() for weight in weights.values()), leaves)
        found.append([*weights.values(), *gradients])
    for whole, pieces in zip(*found, strict=True):
        assert_close(pieces, whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", ["wrn", "growing", "cropping convolutions"])
def test_members_together_and_apart_make_the_same_weights_and_gradients(case, monkeypatch):
    found = []
    for numbers in (2**30, 0):
        monkeypatch.setattr(generation, "_NUMBERS_TOGETHER", numbers)
        torch.manual_seed(0)
        bank = bank_of(case)
        weights = flat(bank.generate())
        gradients = torch.autograd.grad(
            sum(weight.square().sum() for weight in weights.values()), list(bank.parameters())
        )
        found.append(([*weights.values(), *gradients], {w.untyped_storage().data_ptr() for w in weights.values()}))
    (together, few), (apart, many) = found
    assert len(few) < len(many), "one tensor for the members together"
    for one, other in zip(together, apart, strict=True):
        assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("frozen", ["", "templates", "coefficients"])
def test_gradients_in_two_halves_equal_those_of_one_graph(frozen):
    bank = bank_of("wrn", bins=3)
    if frozen:
        getattr(bank, frozen).requires_grad_(False)
    trained = {name: value for name, value in bank.named_parameters() if value.requires_grad}
    read = ("a", "c")  # nothing is asked of the other member's weights
    loss = sum(weight.square().sum() for (member, _), weight in flat(bank.generate()).items() if member in read)
    expected = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    seen = []
    for name, value in trained.items():
        value.register_hook(lambda gradient, name=name: seen.append(name))
    begun = bank.begin()
    weights = begun.weights
    assert all(weight.is_leaf for weight in flat(weights).values())
    for member in read:
        sum(weight.square().sum() for weight in weights[member].values()).backward()
        begun.collect(member, weights[member])
    begun.collect("b", weights["b"])
    assert begun.labelled().keys() == {key for key in flat(weights) if key[0] in read}
    begun.backward()
    assert not begun.labelled(), "the gradients of the weights are let go"
    assert all(value.grad is None for name, value in bank.named_parameters() if name not in trained)
    for (name, value), gradient in zip(trained.items(), expected):
        assert (value.grad is None) == (gradient is None) == (name not in seen)
        if gradient is not None:
            assert_close(value.grad, gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("generator", ["superweight", "ssn"])
def test_nothing_goes_back_to_a_bank_that_is_frozen(generator):
    members = MEMBERS["wrn"]()
    ensemble = SuperWeightEnsemble(members, budget=0.9, generator=generator)
    ensemble.bank.requires_grad_(False)
    begun = ensemble.bank.begin()
    for member, weights in begun.weights.items():
        sum(weight.sum() for weight in weights.values()).backward()
        begun.collect(member, weights)
    begun.backward()
    assert all(parameter.grad is None for parameter in ensemble.bank.parameters())


def test_a_member_that_keeps_all_its_weights_needs_no_bank():
    ensemble = SuperWeightEnsemble({"a": linear_chain(3, 4, 4), "b": nn.Linear(3, 3)}, budget=0.99)
    begun = ensemble.bank.begin(["b"])
    assert begun.weights == {"b": {}}
    begun.collect("b", {})
    begun.backward()
    assert not begun.labelled()


@pytest.mark.parametrize("subset", [["a"], ["b"], ["c", "a"]])
def test_weights_that_were_first_generated_for_inference_can_be_trained(subset):
    composition._index.cache_clear()
    bank = bank_of("wrn", edit=first_to_last)
    with torch.inference_mode():
        bank.generate(subset)
    sum(weight.sum() for weight in flat(bank.generate(subset)).values()).backward()
    assert any(rows.grad is not None and rows.grad.abs().sum() > 0 for rows in bank.coefficients.values())


def test_threads_are_given_back():
    bank, before = bank_of("wrn"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sum(weight.sum() for weight in flat(bank.generate()).values()).backward()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("read", [["a"], ["b", "c"]])
def test_gradients_of_some_weights_equal_the_reference(read):
    bank = bank_of("wrn", bins=3)
    leaves = list(bank.parameters())
    losses = [
        sum(weight.square().sum() for (member, _), weight in weights.items() if member in read)
        for weights in (flat(bank.generate()), literal(bank))
    ]
    fast, slow = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses)
    for one, other in zip(fast, slow, strict=True):
        one, other = (torch.zeros(()) if found is None else found for found in (one, other))
        assert_close(one, other.expand_as(one) if not other.ndim else other, atol=1e-12, rtol=1e-12, check_dtype=False)


def test_weights_have_the_memory_format_of_the_ensemble():
    members = MEMBERS["wrn"]()
    ensemble = SuperWeightEnsemble(members, budget=0.9)
    plain = flat(ensemble.generate())
    assert all(weight.is_contiguous() for weight in plain.values())
    assert ensemble.to(memory_format=torch.channels_last) is ensemble
    last = flat(ensemble.generate())
    assert any(weight.shape[2] > 1 for weight in last.values())
    for key, weight in last.items():
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(weight, plain[key])
    made = dict(ensemble.materialize("a").named_parameters())
    for name, weight in ensemble.generate()["a"].items():
        assert made[name].is_contiguous(memory_format=torch.channels_last)
        assert_close(made[name], weight, atol=1e-6, rtol=0)
    ensemble.to(memory_format=torch.contiguous_format)
    assert all(weight.is_contiguous() for weight in flat(ensemble.generate()).values())


def test_second_derivatives_are_refused():
    bank = bank_of("a member alone")
    weight = next(iter(bank.generate()["a"].values()))
    (first,) = torch.autograd.grad(weight.square().sum(), [bank.templates["c0s0"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def as_many_templates_as_users(plan):
    clusters = []
    for cluster in plan.clusters:
        slots = tuple(dataclasses.replace(slot, num_templates=slot.num_vectors) for slot in cluster.slots)
        clusters.append(dataclasses.replace(cluster, slots=slots))
    return dataclasses.replace(plan, clusters=tuple(clusters))


@pytest.mark.parametrize("edit", [as_many_templates_as_users, lambda plan: plan], ids=["K = users", "K > users"])
def test_sgd_on_the_bank_is_sgd_on_own_weights(edit):
    members = {"a": wide_resnet(10, 1, 5).double(), "b": wide_resnet(10, 2, 5).double()}
    plan = edit(plan_sharing(members, budget=10**9, cap=8))
    assert all(slot.num_templates >= slot.num_vectors for cluster in plan.clusters for slot in cluster.slots)
    ensemble = SuperWeightEnsemble(members, plan=plan).double()
    warm_start(ensemble, members)
    ensemble.bank.coefficients.requires_grad_(False)

    apart = copy.deepcopy(members)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3}
    shared = torch.optim.SGD([p for p in ensemble.parameters() if p.requires_grad], **settings)
    own = torch.optim.SGD([p for net in apart.values() for p in net.parameters()], **settings)
    start = {name: net.stem.weight.clone() for name, net in apart.items()}
    for _ in range(5):
        images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(5, (4,))
        shared.zero_grad()
        sum(F.cross_entropy(logits, labels) for logits in ensemble(images)).backward()
        shared.step()
        own.zero_grad()
        sum(F.cross_entropy(net(images), labels) for net in apart.values()).backward()
        own.step()
    for name, net in apart.items():
        assert (net.stem.weight - start[name]).abs().max() > 1e-3
        trained = dict(ensemble.materialize(name).named_parameters())
        for key, parameter in net.named_parameters():
            assert_close(trained[key], parameter, atol=1e-9, rtol=0)
