"""Un-tying: each use's own gradient, which vectors split, and training that goes on as if split by hand."""

import copy
import dataclasses
import functools
import itertools
import math
import re

import pytest
import reference
import torch
from refusals import assert_refused
from small_networks import pattern_batches as batches
from small_networks import patterns as images
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.search import use_gradients, weight_gradients
from superweight_ensembles.training import build_optimizer, build_schedule, joint_backward

CONFIG = swe.TrainConfig(epochs=1, batch_size=32, learning_rate=0.05, precision="float32", device="cpu")
FORMS = ("vector", "embedding")
PIXELS = 3 * 8 * 8
NO_NUMBERS = [(torch.full((4, 3, 8, 8), torch.nan), torch.arange(4))]


@functools.lru_cache
def members():
    torch.manual_seed(2)
    return {"deep": swe.wide_resnet(16, 1, 4), "wide": swe.wide_resnet(10, 2, 4), "thin": swe.wide_resnet(10, 1, 4)}


@functools.lru_cache
def everything():
    return torch.cat([batch for batch, _ in batches()]), torch.cat([labels for _, labels in batches()])


def drawn(**options):
    return swe.SuperWeightEnsemble(members(), rng=torch.Generator().manual_seed(0), **options)


@functools.lru_cache
def found_plan(cap=3):
    """Tied as after a search: in each cluster every third target has one leader, and the last target is alone."""
    plan = swe.plan_sharing(members(), budget=10**7, cap=cap, bins=2)
    clusters = []
    for cluster in plan.clusters:
        last = len(cluster.targets) - 1
        leaders = [t if t == last else t % 3 for t in range(last + 1)]
        used = [[] for _ in cluster.slots]
        for leader, target in zip(leaders, cluster.targets):
            for slot in range(target.slot + 1):
                used[slot] += [leader] if leader not in used[slot] else []
        targets = tuple(
            dataclasses.replace(target, vectors=tuple(used[slot].index(leader) for slot in range(target.slot + 1)))
            for leader, target in zip(leaders, cluster.targets)
        )
        slots = tuple(dataclasses.replace(slot, num_vectors=len(found)) for slot, found in zip(cluster.slots, used))
        clusters.append(dataclasses.replace(cluster, targets=targets, slots=slots))
    plan = dataclasses.replace(plan, clusters=tuple(clusters))
    assert swe.SharingPlan.from_json(plan.to_json()) == plan
    assert {len(uses) for *_, uses in uses_of(plan)} >= {1, 2, 3}
    return plan


def in_form(plan, form):
    size = 5 if form == "embedding" else 0
    clusters = (dataclasses.replace(c, coefficients=form, embedding_size=size) for c in plan.clusters)
    return dataclasses.replace(plan, clusters=tuple(clusters))


def uses_of(plan):
    """Every coefficient vector: cluster, slot, number, and the places of the targets that use it."""
    return [
        (c, slot, vector, [t for t, found in enumerate(cluster.targets) if found.vectors[slot : slot + 1] == (vector,)])
        for c, cluster in enumerate(plan.clusters)
        for slot, planned in enumerate(cluster.slots)
        for vector in range(planned.num_vectors)
    ]


@functools.lru_cache
def touched(form, cap=3):
    """An ensemble of the found plan, its coefficients far from their start; tests must leave it as it is."""
    ensemble = drawn(plan=in_form(found_plan(cap), form))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for values in [*ensemble.bank.coefficients.values(), *ensemble.bank.mixers.values()]:
            values += 0.3 * values.abs().mean() * torch.randn(values.shape, generator=generator)
        for values in ensemble.bank.templates.values():
            values.mul_(1.1)
    return ensemble.eval()


def combining(bank):
    return {
        key: reference.affine(values, bank.mixers[key]) if key in bank.mixers else values
        for key, values in bank.coefficients.items()
    }


@functools.lru_cache
def literal_gradients(form, cap=3):
    """Of every use: the gradient of the members' summed mean losses, by a leaf for each SuperWeight of each target."""
    ensemble = touched(form, cap)
    plain = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}

    def loss(weights):
        total = 0
        for name, net in plain.items():
            own = {key: weight for (member, key), weight in weights.items() if member == name}
            total = total + F.cross_entropy(functional_call(net, own, everything()[0]), everything()[1])
        return total

    templates = {key: values.detach() for key, values in ensemble.bank.templates.items()}
    found = reference.superweight_gradients(ensemble.plan, templates, combining(ensemble.bank), loss)
    gradients = {}
    for (c, t, slot), gradient in found.items():
        key = f"c{c}s{slot}"
        mixer = ensemble.bank.mixers[key].detach() if form == "embedding" else None
        gradients[c, t, slot] = reference.use_gradient(gradient, templates[key], mixer)
    return gradients


def vectors_of(plan):
    return {
        (c, t, slot): vector
        for c, cluster in enumerate(plan.clusters)
        for t, target in enumerate(cluster.targets)
        for slot, vector in enumerate(target.vectors)
    }


def split_all(plan):
    """Every use with a vector of its own, the first one keeping the vector."""
    return split(plan, {key: [float(key[1] == place) for place in range(40)] for key in vectors_of(plan)}, 0.5)


def split(plan, gradients, threshold):
    """The plan with the reference's vectors."""
    vectors = reference.untie(plan, gradients, threshold)
    clusters = []
    for c, cluster in enumerate(plan.clusters):
        targets = tuple(
            dataclasses.replace(target, vectors=tuple(vectors[c, t, slot] for slot in range(target.slot + 1)))
            for t, target in enumerate(cluster.targets)
        )
        slots = tuple(
            dataclasses.replace(
                planned, num_vectors=1 + max(found for (i, _, r), found in vectors.items() if (i, r) == (c, slot))
            )
            for slot, planned in enumerate(cluster.slots)
        )
        clusters.append(dataclasses.replace(cluster, targets=targets, slots=slots))
    return dataclasses.replace(plan, clusters=tuple(clusters))


def num_vectors(plan):
    return sum(slot.num_vectors for cluster in plan.clusters for slot in cluster.slots)


# Each use's own gradient.


@pytest.mark.parametrize("form", FORMS)
def test_use_gradients_equal_the_reference_and_add_up_to_that_of_the_tied_vector(form):
    ensemble, expected = copy.deepcopy(touched(form)), literal_gradients(form)
    sum(F.cross_entropy(logits, everything()[1]) for logits in ensemble(everything()[0])).backward()
    gradients = weight_gradients(ensemble, batches())
    tied = 0
    for c, slot, vector, uses in uses_of(ensemble.plan):
        targets = [ensemble.plan.clusters[c].targets[t] for t in uses]
        found = use_gradients(ensemble.bank, c, slot, targets, gradients)
        wanted = torch.tensor([expected[c, t, slot] for t in uses])
        # float32 sums of up to 36,864 products, over some ninety images.
        assert_close(found, wanted, atol=2e-5 * wanted.abs().max().item(), rtol=1e-3)
        together = ensemble.bank.coefficients[f"c{c}s{slot}"].grad[vector].flatten()
        assert_close(found.sum(0), together, atol=2e-5 * together.abs().max().item() + 1e-7, rtol=1e-3)
        tied += len(uses) > 1
    assert tied > 5


# Which vectors split.


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 0.9])
@pytest.mark.parametrize(("form", "cap"), [*((form, 3) for form in FORMS), ("vector", 1)])
def test_plan_is_the_references(form, cap, threshold):
    ensemble, expected = touched(form, cap), literal_gradients(form, cap)
    plan = swe.search.untie_coefficients(ensemble, batches(), threshold=threshold)
    assert vectors_of(plan) == reference.untie(ensemble.plan, expected, threshold)
    assert plan == split(ensemble.plan, expected, threshold)
    assert swe.SharingPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("form", FORMS)
def test_thresholds_of_these_tests_split_and_keep(form):
    ensemble = touched(form)
    counts = [num_vectors(split(ensemble.plan, literal_gradients(form), at)) for at in (-1.0, 0.0, 0.5, 0.9)]
    assert len(set(counts)) >= 3 and counts == sorted(counts)


@pytest.mark.parametrize("form", FORMS)
def test_first_set_keeps_the_vector_and_others_get_one_new_each(form):
    ensemble = touched(form)
    plan = swe.search.untie_coefficients(ensemble, batches(), threshold=0.5)
    after, new = vectors_of(plan), 0
    for c, slot, vector, uses in uses_of(ensemble.plan):
        numbers = list(dict.fromkeys(after[c, t, slot] for t in uses))
        assert numbers[0] == vector
        before = ensemble.plan.clusters[c].slots[slot].num_vectors
        assert all(number >= before for number in numbers[1:]) and (len(uses) > 1 or len(numbers) == 1)
        new += len(numbers) - 1
    assert num_vectors(plan) == num_vectors(ensemble.plan) + new and new > 0
    for cluster in plan.clusters:
        for slot, planned in enumerate(cluster.slots):
            used = {target.vectors[slot] for target in cluster.targets if target.slot >= slot}
            assert used == set(range(planned.num_vectors))


def test_same_batches_give_the_same_plan():
    first, second = (swe.search.untie_coefficients(touched("vector"), batches(), max_batches=2) for _ in range(2))
    assert first == second
    read = list(batches())[:2]
    assert swe.search.untie_coefficients(touched("vector"), read) == first


def test_ensemble_is_left_as_it_is():
    ensemble = copy.deepcopy(touched("vector")).train()
    ensemble.members["deep"].norm.eval()
    state = copy.deepcopy(ensemble.state_dict())
    modes, plan = {name: module.training for name, module in ensemble.named_modules()}, ensemble.plan
    swe.search.untie_coefficients(ensemble, batches())
    assert all(torch.equal(tensor, ensemble.state_dict()[name]) for name, tensor in state.items())
    assert {name: module.training for name, module in ensemble.named_modules()} == modes
    assert ensemble.plan is plan and ensemble.bank.plan is plan
    assert all(parameter.grad is None for parameter in ensemble.parameters())


def test_plan_without_ties_stays():
    ensemble = drawn(budget=0.9)
    assert swe.search.untie_coefficients(ensemble, batches()) is ensemble.plan
    split_up = drawn(plan=split_all(found_plan()))
    assert swe.search.untie_coefficients(split_up, batches()) is split_up.plan


class Silent(nn.Module):
    """Layers of one shape; no gradient reaches the first two."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(PIXELS, 12) for _ in range(4))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        quiet, still, one, other = (layer(x.flatten(1)).tanh() for layer in self.layers)
        return self.head(0 * (quiet + still) + one - other)


@pytest.mark.parametrize("cap", [1, 3])
def test_use_without_a_gradient_keeps_the_vector(cap):
    ensemble = swe.SuperWeightEnsemble({"a": Silent()}, budget=3.0, coefficients="tied", bins=1, cap=cap)
    with torch.no_grad():
        ensemble.bank.templates["c0s0"].mul_(1.1)
    plan = swe.search.untie_coefficients(ensemble, batches(), threshold=0.5)
    # The last two pull in opposite directions.
    assert [target.vectors for target in plan.clusters[0].targets] == [(0,), (0,), (0,), (1,)]


# The budget.


def test_new_vectors_beyond_the_budget_are_refused_with_their_count():
    ensemble = copy.deepcopy(touched("vector"))
    expected = split(ensemble.plan, literal_gradients("vector"), 0.9)
    new = sum(
        slot.num_templates * (slot.num_vectors - before.num_vectors)
        for cluster, old in zip(expected.clusters, ensemble.plan.clusters)
        for slot, before in zip(cluster.slots, old.slots)
    )
    for left in (0, new - 1):
        ensemble.set_plan(dataclasses.replace(ensemble.plan, budget=ensemble.plan.num_parameters + left))
        message = rf"un-tying needs {new:,} more coefficients and the budget has {left:,} left: .*reserve_untied=True"
        assert_refused(message, swe.search.untie_coefficients, ensemble, batches(), threshold=0.9)
    ensemble.set_plan(dataclasses.replace(ensemble.plan, budget=ensemble.plan.num_parameters + new))
    plan = swe.search.untie_coefficients(ensemble, batches(), threshold=0.9)
    assert plan.num_parameters == plan.budget
    ensemble.set_plan(dataclasses.replace(ensemble.plan, budget=ensemble.plan.num_templates, budget_counts="templates"))
    assert vectors_of(swe.search.untie_coefficients(ensemble, batches(), threshold=0.9)) == vectors_of(expected)


@pytest.mark.parametrize("excess", [0, 100, 3000, 10**5])
def test_a_reserve_makes_un_tying_fit_always(excess):
    least = swe.plan_sharing(members(), budget=10**9, coefficients="own").minimum_parameters
    plan = swe.plan_sharing(members(), budget=least + excess, coefficients="tied", reserve_untied=True)
    ensemble = drawn(plan=plan)
    with torch.no_grad():
        for templates in ensemble.bank.templates.values():
            templates.mul_(1.1)
    for threshold in (0.0, 0.9, 1.0):
        found = swe.search.untie_coefficients(ensemble, batches(), threshold=threshold, max_batches=1)
        assert found.num_parameters <= found.budget
    most = split_all(plan)
    assert num_vectors(most) == sum(len(uses) for *_, uses in uses_of(plan)) and most.num_parameters <= plan.budget
    swe.ensemble.adopt_plan(ensemble, most)
    assert reference.count_scalars(ensemble) == most.num_parameters


@pytest.mark.parametrize("budget", [0.75, 0.9, 1.3])
def test_a_reserve_of_a_search_makes_un_tying_fit_always(budget):
    ensemble = copy.deepcopy(touched("vector"))
    methods = [swe.search.GradientSearch(reserve_untied=reserve) for reserve in (True, False)]
    kept, spent = (swe.search_sharing(ensemble, batches(), method=one, budget=budget).plan for one in methods)
    assert split_all(kept).num_parameters <= kept.budget
    assert spent.num_parameters <= spent.budget and spent.num_templates >= kept.num_templates


# Moving to the plan.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_every_generated_weight_keeps_its_value(form, threshold):
    ensemble = copy.deepcopy(touched(form))
    before = ensemble.generate()
    old = {key: values.clone() for key, values in ensemble.bank.coefficients.items()}
    plan = swe.search.untie_coefficients(ensemble, batches(), threshold=threshold)
    swe.ensemble.adopt_plan(ensemble, plan)
    assert ensemble.plan == ensemble.bank.plan == plan and plan != touched(form).plan
    for name, weights in ensemble.generate().items():
        for key, weight in weights.items():
            # The rows are equal bit by bit; a matrix product of more rows may round its sums in another order.
            assert_close(weight, before[name][key], atol=1e-6 * weight.abs().max().item(), rtol=0)
    for name in ("thin", "deep"):  # whose programs were compiled for the plan before
        again = ensemble.bank.generate([name])[name]
        assert all(torch.allclose(again[key], weight, atol=1e-6) for key, weight in before[name].items())
    for key, values in old.items():
        assert torch.equal(ensemble.bank.coefficients[key][: len(values)], values)
    for c, slot, _, uses in uses_of(plan):
        source = vectors_of(touched(form).plan)[c, uses[0], slot]
        rows = ensemble.bank.coefficients[f"c{c}s{slot}"]
        assert torch.equal(rows[vectors_of(plan)[c, uses[0], slot]], old[f"c{c}s{slot}"][source])
    assert reference.count_scalars(ensemble) == ensemble.num_parameters == plan.num_parameters
    added = num_vectors(plan) - num_vectors(touched(form).plan)
    assert sum(map(len, ensemble.bank.coefficients.values())) == sum(map(len, old.values())) + added


def test_un_tied_ensemble_is_saved_and_loaded(tmp_path):
    ensemble = copy.deepcopy(touched("vector"))
    swe.ensemble.adopt_plan(ensemble, swe.search.untie_coefficients(ensemble, batches(), threshold=0.5))
    ensemble.save(tmp_path / "saved")
    read = swe.SuperWeightEnsemble.load(tmp_path / "saved")
    assert read.plan == ensemble.plan
    assert torch.equal(read.eval()(everything()[0]), ensemble(everything()[0]))


def stepped(optimizer, steps=2):
    """A tied ensemble after some steps, and its optimiser."""
    ensemble = drawn(plan=found_plan())
    config = dataclasses.replace(CONFIG, optimizer=optimizer, learning_rate=0.01, epochs=4)
    made = build_optimizer(ensemble, config)
    ensemble.train()
    for _ in range(steps):
        step(ensemble, made)
    return ensemble, made, config


def step(ensemble, optimizer, batch=None):
    optimizer.zero_grad()
    joint_backward(ensemble, *(batch or everything()), F.cross_entropy)
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moments_stay_with_their_rows(kind):
    ensemble, optimizer, _ = stepped(kind)
    names = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
    old_rows = dict(ensemble.bank.coefficients.items())
    before = {key: {n: optimizer.state[rows][n].clone() for n in names} for key, rows in old_rows.items()}
    steps = {key: copy.deepcopy(optimizer.state[rows].get("step")) for key, rows in old_rows.items()}
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    rest = {id(p): state for p, state in optimizer.state.items() if id(p) not in set(map(id, old_rows.values()))}
    old, plan = ensemble.plan, swe.search.untie_coefficients(ensemble, batches(), threshold=0.5)
    swe.ensemble.adopt_plan(ensemble, plan, optimizer)
    changed = 0
    for key, rows in ensemble.bank.coefficients.items():
        c, slot = map(int, key[1:].split("s"))
        sources = {vectors_of(plan)[c, t, slot]: old.clusters[c].targets[t].vectors[slot]
                   for t, target in enumerate(plan.clusters[c].targets) if target.slot >= slot}  # fmt: skip
        for name in names:
            moments = optimizer.state[rows][name]
            assert moments.shape == rows.shape
            for row, source in sources.items():
                assert torch.equal(moments[row], before[key][name][source])
        assert optimizer.state[rows].get("step") == steps[key]
        changed += rows is not old_rows[key]
        assert (rows is old_rows[key]) == (len(rows) == len(old_rows[key]))
    assert changed > 3
    # In the same places of the same groups; nothing of the old parameters is left.
    replaced = {id(rows): id(ensemble.bank.coefficients[key]) for key, rows in old_rows.items()}
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [
        [replaced.get(number, number) for number in group] for group in groups
    ]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in ensemble.parameters()
    }
    assert {id(p) for p in optimizer.state} == {id(p) for p in ensemble.parameters()}
    assert all(optimizer.state[p] is rest[id(p)] for p in optimizer.state if id(p) in rest)
    plain = optimizer.param_groups[1]
    assert plain["weight_decay"] == 0 and {id(rows) for rows in ensemble.bank.coefficients.values()} <= {
        id(p) for p in plain["params"]
    }


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_schedule_goes_on(schedule):
    rates = []
    for adopts in (False, True):
        ensemble, optimizer, config = stepped("sgd", steps=0)
        config = dataclasses.replace(config, schedule=schedule)
        schedule_ = build_schedule(optimizer, config, steps_per_epoch=2)
        found = []
        for number in range(8):
            if adopts and number == 3:
                swe.ensemble.adopt_plan(ensemble, split_all(ensemble.plan), optimizer)
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule_.step()
        rates.append(found)
    assert rates[0] == rates[1] and rates[0][3] != rates[0][4]


def some_images():
    return everything()[0][:24].double(), everything()[1][:24]


class ByHand:
    """The method with a parameter for each coefficient vector, weights made by the reference, plain optimisers."""

    def __init__(self, ensemble, kind, settings):
        self.plan = ensemble.plan
        self.plain = {name: ensemble.materialize(name).train() for name in ensemble.member_names}
        self.templates = {key: nn.Parameter(t.detach().clone()) for key, t in ensemble.bank.templates.items()}
        self.rows = {
            key: [nn.Parameter(row.detach().clone()) for row in rows]
            for key, rows in ensemble.bank.coefficients.items()
        }
        made = {(t.member, name) for c in self.plan.clusters for t in c.targets for name in t.names}
        private = [p for m, net in self.plain.items() for key, p in net.named_parameters() if (m, key) not in made]
        decayed = [*self.templates.values(), *(p for p in private if p.ndim > 1)]
        free = [*itertools.chain(*self.rows.values()), *(p for p in private if p.ndim < 2)]
        groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = getattr(torch.optim, kind)(groups, **settings)

    def step(self):
        coefficients = {key: torch.stack(rows) for key, rows in self.rows.items()}
        weights = reference.generate(self.plan, self.templates, coefficients)
        total = 0
        for name, net in self.plain.items():
            own = {key: weight for (member, key), weight in weights.items() if member == name}
            total = total + F.cross_entropy(functional_call(net, own, some_images()[0]), some_images()[1])
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def split(self, plan):
        """One new parameter for each new vector: a copy of the values and of the moments."""
        before, after = vectors_of(self.plan), vectors_of(plan)
        for key, rows in self.rows.items():
            c, slot = map(int, key[1:].split("s"))
            for new in range(len(rows), plan.clusters[c].slots[slot].num_vectors):
                use = next(place for place, number in after.items() if (place[0], place[2], number) == (c, slot, new))
                old = rows[before[use]]
                rows.append(nn.Parameter(old.detach().clone()))
                self.optimizer.state[rows[-1]] = copy.deepcopy(self.optimizer.state[old])
                self.optimizer.param_groups[1]["params"].append(rows[-1])
        self.plan = plan


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}), ("AdamW", {"lr": 0.002})],
)
def test_training_goes_on_as_with_parameters_split_by_hand(kind, settings):
    nets = {name: copy.deepcopy(members()[name]).double() for name in ("wide", "thin")}
    plan = swe.plan_sharing(nets, budget=10**7, cap=3, coefficients="tied")
    ensemble = swe.SuperWeightEnsemble(nets, plan=plan).train()
    config = dataclasses.replace(
        CONFIG, optimizer=kind.lower(), learning_rate=settings["lr"], weight_decay=5e-4, epochs=4
    )
    optimizer, by_hand = build_optimizer(ensemble, config), ByHand(ensemble, kind, settings)
    untied = None
    for number in range(4):
        if number == 2:
            untied = swe.search.untie_coefficients(ensemble, [some_images()], threshold=0.95)
            swe.ensemble.adopt_plan(ensemble, untied, optimizer)
            by_hand.split(untied)
        step(ensemble, optimizer, some_images())
        by_hand.step()
    assert num_vectors(untied) > num_vectors(plan)
    for key, rows in ensemble.bank.coefficients.items():
        assert_close(rows.detach(), torch.stack(by_hand.rows[key]).detach(), atol=1e-8, rtol=1e-6)
        assert_close(ensemble.bank.templates[key], by_hand.templates[key], atol=1e-8, rtol=1e-6)
    moved = max(
        (rows[1:] - rows[:1]).abs().max().item() for rows in ensemble.bank.coefficients.values() if len(rows) > 1
    )
    assert moved > 1e-4


def test_frozen_coefficients_stay_frozen():
    ensemble = copy.deepcopy(touched("vector"))
    ensemble.bank.coefficients.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in ensemble.parameters() if p.requires_grad], lr=0.1)
    swe.ensemble.adopt_plan(ensemble, split_all(ensemble.plan), optimizer)
    assert not any(rows.requires_grad for rows in ensemble.bank.coefficients.values())


def unchanged(ensemble, act, message):
    state, plan = copy.deepcopy(ensemble.state_dict()), ensemble.plan
    assert_refused(message, act)
    assert ensemble.plan is plan and ensemble.bank.plan is plan
    assert ensemble.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, ensemble.state_dict()[name]) for name, tensor in state.items())


def test_plans_that_are_no_un_tying_are_refused():
    ensemble = copy.deepcopy(touched("vector"))
    plan = ensemble.plan
    more = "differs from the ensemble's in more than coefficient vectors"
    for other in (
        dataclasses.replace(plan, budget=plan.budget + 1),
        dataclasses.replace(plan, clusters=plan.clusters[1:]),
        in_form(plan, "embedding"),
        swe.plan_sharing(members(), budget=0.9),
    ):
        unchanged(ensemble, functools.partial(swe.ensemble.adopt_plan, ensemble, other), more)
    split_up = drawn(plan=split_all(plan))
    strange = torch.optim.SGD(touched("embedding").parameters(), lr=0.1)
    poor = drawn(plan=dataclasses.replace(found_plan(), budget=found_plan().num_parameters))
    for adopting, given, message in (
        (split_up, (plan,), "ties coefficients that were apart; only un-tying keeps"),
        (ensemble, (split_all(plan), strange), "does not hold this ensemble's"),
        (poor, (split_all(poor.plan),), "budget"),
    ):
        unchanged(adopting, functools.partial(swe.ensemble.adopt_plan, adopting, *given), message)


# In the middle of training.


def tied_ensemble(seed=0):
    generator = torch.Generator().manual_seed(seed)
    nets = {name: members()[name] for name in ("deep", "thin")}
    return swe.SuperWeightEnsemble(nets, budget=0.95, coefficients="tied", reserve_untied=True, rng=generator)


def test_train_un_ties_once_after_the_epoch():
    config = dataclasses.replace(CONFIG, epochs=3)
    ensemble, expected, seen = tied_ensemble(), [], []
    in_order = images().loader("train", config.batch_size)

    def watch(progress):
        seen.append((progress.epoch, num_vectors(ensemble.plan)))
        if (progress.epoch, progress.step, progress.record) == (2, progress.steps_per_epoch, None):
            expected.append(swe.search.untie_coefficients(copy.deepcopy(ensemble), in_order, threshold=0.8))

    tied = ensemble.plan
    result = swe.train(ensemble, images(), config, hooks=[swe.search.Untying(epoch=2, threshold=0.8)], callback=watch)
    assert ensemble.plan == expected[0] != tied
    assert {count for epoch, count in seen if epoch < 2} == {num_vectors(tied)}
    assert {count for epoch, count in seen if epoch > 2} == {num_vectors(ensemble.plan)}
    assert ensemble.num_parameters == ensemble.plan.num_parameters <= ensemble.plan.budget
    assert len(result.history) == 3
    for c, slot, _, uses in uses_of(tied):
        rows = ensemble.bank.coefficients[f"c{c}s{slot}"]
        numbers = {vectors_of(ensemble.plan)[c, t, slot] for t in uses}
        for one, other in itertools.combinations(numbers, 2):
            assert not torch.equal(rows[one], rows[other])  # each has learned on


class Counted(list):
    """Batches that count how many of them are read."""

    read = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.read += 1
            yield batch


@pytest.mark.parametrize("max_batches", [None, 1])
def test_batches_of_ones_own_are_read_as_they_are(max_batches):
    own, config = Counted(batches()), dataclasses.replace(CONFIG, epochs=2)
    swe.train(tied_ensemble(), own, config, hooks=[swe.search.Untying(epoch=1, max_batches=max_batches)])
    assert own.read == 2 * len(own) + (max_batches or len(own))


class Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [(2, "last"), (2, "record"), (3, 1)], ids=str)
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, at, optimizer):
    config = dataclasses.replace(
        CONFIG, epochs=4, optimizer=optimizer, learning_rate=0.01, schedule="one_cycle", flip=True
    )
    untie = swe.search.Untying(epoch=2, threshold=0.8, max_batches=2)
    whole, expected = uninterrupted(config, untie)
    epoch, place = at

    def stop(progress):
        steps = progress.steps_per_epoch if place == "last" else place
        if progress.epoch == epoch and (progress.record is not None if place == "record" else progress.step == steps):
            raise Stop

    with pytest.raises(Stop, match=r"^$"):
        swe.train(tied_ensemble(), images(), config, hooks=[untie], out=tmp_path, callback=stop)
    resumed = tied_ensemble(seed=5)  # other start values: everything must come from the checkpoint
    result = swe.train(resumed, images(), config, hooks=[untie], out=tmp_path, resume=True)
    assert resumed.plan == whole.plan
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for records in zip(result.history, expected, strict=True):
        assert len({(r["epoch"], r["lr"], str(r["train_loss"]), str(r["validation"])) for r in records}) == 1


@functools.lru_cache
def uninterrupted(config, untie):
    ensemble = tied_ensemble()
    history = swe.train(ensemble, images(), config, hooks=[untie]).history
    assert num_vectors(ensemble.plan) > num_vectors(tied_ensemble().plan)
    return ensemble, history


def interrupted(folder, **options):
    """A run of four epochs that was stopped in the third."""

    def stop(progress):
        if progress.epoch == 3:
            raise Stop

    with pytest.raises(Stop, match=r"^$"):
        swe.train(tied_ensemble(), images(), FOUR, out=folder, callback=stop, **options)


FOUR = dataclasses.replace(CONFIG, epochs=4, learning_rate=0.01)


def test_un_tied_run_is_resumed_by_an_un_tied_ensemble_too_and_not_as_another(tmp_path):
    untie = swe.search.Untying(epoch=2, threshold=0.8)
    interrupted(tmp_path, hooks=[untie])
    resume = functools.partial(swe.train, out=tmp_path, resume=True)
    hooks = r"was made with hooks=\['Untying', 'LearnedWidths'\], now \['LearnedWidths'\]"
    assert_refused(hooks, resume, tied_ensemble(), images(), FOUR)
    nets = {name: members()[name] for name in ("deep", "thin")}
    other = swe.SuperWeightEnsemble(nets, budget=0.9, coefficients="tied")
    more = "differs from the ensemble's in more than coefficient vectors"
    assert_refused(more, resume, other, images(), FOUR, hooks=[untie])
    again = swe.SuperWeightEnsemble.load(tmp_path / "checkpoints" / "epoch-0002-step-000000")
    resume(again, images(), FOUR, hooks=[untie])
    whole, _ = uninterrupted(FOUR, untie)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def untying(**options):
    return {"hooks": [swe.search.Untying(**options)]}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (untying(epoch=2, threshold=0.8), untying(epoch=3, threshold=0.8)),
        (untying(epoch=2, threshold=0.8), untying(epoch=2, threshold=0.1)),
        (untying(epoch=3), {}),
        ({"members": ["deep"]}, {}),
        ({}, {"members": ["thin"]}),
    ],
    ids=["later", "other threshold", "no longer", "all members", "another member"],
)
def test_run_is_resumed_with_its_own_settings_or_refused(tmp_path, first, then):
    interrupted(tmp_path, **first)
    assert_refused("resume with", swe.train, tied_ensemble(), images(), FOUR, out=tmp_path, resume=True, **then)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"epoch": epoch}, f"epoch of Untying must be a whole number, at least 1; got {re.escape(repr(epoch))}")
            for epoch in (0, -1, True, 1.0, "2", None)
        ),
        *(
            (
                {"epoch": 1, "threshold": threshold},
                f"threshold .a cosine. must be a finite number, from -1 to 1; got {re.escape(repr(threshold))}",
            )
            for threshold in (1.1, math.nan, True, "0.9")
        ),
        *(
            ({"epoch": 1, "max_batches": number}, "max_batches .None for all. must be a whole number, at least 1")
            for number in (0, -1, 1.5, True, "2")
        ),
    ],
    ids=str,
)
def test_bad_settings(options, message):
    assert_refused(message, swe.search.Untying, **options)
    if "threshold" in options:
        with pytest.raises(swe.SuperWeightError, match=message):
            swe.search.untie_coefficients(touched("vector"), batches(), threshold=options["threshold"])


@pytest.mark.parametrize(
    ("make", "loader", "message"),
    [
        (lambda: members()["thin"], None, r"untie_coefficients\(\) takes a SuperWeightEnsemble; got WideResNet"),
        (lambda: tied_ensemble(), None, "the ensemble is untrained"),
        (lambda: touched("vector"), [], "has no samples"),
        (lambda: touched("vector"), NO_NUMBERS, r"the gradient of \S+\.weight has numbers that are not finite"),
    ],
    ids=["no ensemble", "untrained", "no samples", "no numbers"],
)
def test_what_cannot_be_un_tied(make, loader, message):
    assert_refused(message, swe.search.untie_coefficients, make(), batches() if loader is None else loader)


@pytest.mark.parametrize(
    ("ties", "epochs", "epoch", "message"),
    [
        (True, 2, 3, "before the last epoch, or none would train; got epoch 3 of 2"),
        (True, 1, 1, "un-tied before the last epoch, .*; got epoch 1 of 1"),
        (False, 2, 1, "no coefficients of the plan are tied"),
    ],
)
def test_un_tying_that_would_do_nothing_is_refused(ties, epochs, epoch, message):
    ensemble = tied_ensemble() if ties else drawn(budget=0.9)
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.train(ensemble, images(), dataclasses.replace(CONFIG, epochs=epochs), **untying(epoch=epoch))


def mixed_ensemble():
    """Tied SuperWeights beside a flat bank, with room for new vectors, after a step of training."""
    torch.manual_seed(4)
    nets = {"a": swe.wide_resnet(16, 1, 3)}
    plan = swe.plan_sharing(nets, budget=0.29, coefficients="tied")
    assert plan.ssn_groups and plan.superweight_clusters
    ensemble = swe.SuperWeightEnsemble(nets, plan=dataclasses.replace(plan, budget=plan.budget + 1000))
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.05, momentum=0.9)
    step(ensemble, optimizer, rgb())
    return ensemble, optimizer


def rgb():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3


def test_superweights_beside_a_flat_bank_are_un_tied():
    ensemble, optimizer = mixed_ensemble()
    plan = swe.search.untie_coefficients(ensemble, [rgb()], threshold=1.0)
    assert plan.num_coefficients > ensemble.plan.num_coefficients
    assert plan.ssn_groups == ensemble.plan.ssn_groups
    ((index, group),) = plan.ssn_groups.items()
    clusters = list(ensemble.plan.clusters)
    clusters[index] = dataclasses.replace(group, bank_size=group.bank_size - 1)
    other = dataclasses.replace(ensemble.plan, clusters=tuple(clusters))
    assert_refused("in more than coefficient vectors", swe.ensemble.adopt_plan, ensemble, other, optimizer)
    before = ensemble.generate()["a"]
    swe.ensemble.adopt_plan(ensemble, plan, optimizer)
    for name, weight in ensemble.generate()["a"].items():
        assert_close(weight, before[name])
    step(ensemble, optimizer, rgb())


def test_flat_banks_have_nothing_to_un_tie():
    ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 3)}, budget=0.2, generator="ssn")
    assert swe.search.untie_coefficients(ensemble, [rgb()]) is ensemble.plan
