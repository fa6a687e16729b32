"""The forms of coefficients: what they generate, what they cost, where they start, what is refused."""

import functools
import json

import pytest
import reference
import torch
from refusals import assert_refused
from small_networks import linear_chain, rms
from torch.testing import assert_close

from superweight_ensembles import SharingPlan, SuperWeightEnsemble, SuperWeightError, plan_sharing, wide_resnet
from superweight_ensembles.ensemble import SuperWeightBank, own_deviations
from superweight_ensembles.training import parameter_groups

KINDS = ("own", "tied", "embedding")


@functools.lru_cache
def members(case):
    torch.manual_seed(1)
    return {
        "wrn": lambda: {"a": wide_resnet(16, 1, 3), "b": wide_resnet(10, 2, 3), "c": wide_resnet(10, 1, 3)},
        # Shapes that do not nest: blocks on one side alone, and crops.
        "cropping": lambda: {"a": linear_chain(6, 2, 5, 3, 5), "b": linear_chain(3, 5, 2, 9, 2, 6)},
        "one member": lambda: {"a": linear_chain(4, 4, 4)},
    }[case]()


CASES = ("wrn", "cropping", "one member")


def plan_of(case, kind, **options):
    return plan_sharing(
        members(case),
        coefficients=kind,
        **{"budget": 10**6, "cap": 3, "bins": 1, "generator": "superweight", **options},
    )


def bank_of(case, kind, **options):
    plan = plan_of(case, kind, **options)
    return SuperWeightBank(plan, own_deviations(plan, members(case))).double()


def literal_coefficients(bank):
    """As the reference combines templates with them; maps of embeddings are applied by loops."""
    return {
        key: reference.affine(values, bank.mixers[key]) if key in bank.mixers else values
        for key, values in bank.coefficients.items()
    }


def literal_weights(bank):
    return reference.generate(bank.plan, dict(bank.templates.items()), literal_coefficients(bank))


def generated(bank, names=None):
    return {(member, name): w for member, found in bank.generate(names).items() for name, w in found.items()}


def scatter_(bank):
    """No two coefficients alike: start values repeat themselves over channels, and have no offset."""
    with torch.no_grad():
        for values in [*bank.coefficients.values(), *bank.mixers.values()]:
            values.normal_()
    return bank


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_and_gradients_equal_the_reference(kind, case):
    bank = scatter_(bank_of(case, kind))
    found, expected = generated(bank), literal_weights(bank)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        assert_close(found[key], weight, atol=1e-11, rtol=1e-12)
    names = bank.plan.member_names
    for subset in (names[-1:], names[::-2]):
        some = generated(bank, list(subset))
        assert some.keys() == {key for key in expected if key[0] in subset}
        for key, weight in some.items():
            assert_close(weight, expected[key], atol=1e-11, rtol=1e-12)
    readers = {key: torch.randn_like(weight) for key, weight in expected.items()}
    leaves = dict(bank.named_parameters())
    grads = [
        torch.autograd.grad(
            sum((made[key].square() * reader).sum() for key, reader in readers.items()), leaves.values()
        )
        for made in (found, expected)
    ]
    for name, fast, slow in zip(leaves, *grads, strict=True):
        assert_close(fast, slow, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_embedding_is_an_affine_map_of_24_numbers():
    bank = scatter_(bank_of("wrn", "embedding"))
    assert bank.mixers.keys() == bank.coefficients.keys() == bank.templates.keys()
    for key, mixer in bank.mixers.items():
        embeddings, templates = bank.coefficients[key], bank.templates[key]
        assert embeddings.shape[1] == 24 and mixer.shape == (templates.shape[0], 24 + 1)
        a, b = mixer[:, :24], mixer[:, 24]
        expected = torch.stack([a @ e + b for e in embeddings])
        assert_close(bank.combination(key), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["own", "tied"])
def test_other_forms_hold_the_coefficients_themselves(kind):
    bank = bank_of("wrn", kind)
    assert not bank.mixers
    assert all(bank.combination(key) is values for key, values in bank.coefficients.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("excess", [0, 300, 10**6])
def test_every_scalar_is_counted_and_the_budget_bounds_them(excess, kind, case):
    least = plan_of(case, kind).minimum_parameters
    ensemble = SuperWeightEnsemble(members(case), plan=plan_of(case, kind, budget=least + excess, cap=4))
    plan, bank = ensemble.plan, ensemble.bank
    assert reference.count_scalars(ensemble) == plan.num_parameters == ensemble.num_parameters <= least + excess
    assert reference.count_scalars(bank.templates) == plan.num_templates
    assert reference.count_scalars(bank.coefficients) + reference.count_scalars(bank.mixers) == plan.num_coefficients
    form = "embedding" if kind == "embedding" else "vector"
    counted = 0
    for cluster in plan.clusters:
        for index, slot in enumerate(cluster.slots):
            users = sum(target.slot >= index for target in cluster.targets)
            assert slot.num_vectors == (1 if kind == "tied" else users)
            counted += reference.num_coefficients(form, slot.num_vectors, slot.num_templates)
    assert counted == plan.num_coefficients
    if excess == 0:
        assert plan.num_parameters == least
        with pytest.raises(SuperWeightError, match=rf"below the minimum of this sharing, {least:,} parameters"):
            plan_of(case, kind, budget=least - 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("excess", [0, 57, 400, 2500])
def test_templates_are_the_reference_allocation(excess, kind, case):
    # Each template brings its coefficients along; embeddings are there with the first one.
    budget = plan_of(case, kind).minimum_parameters + excess
    plan = plan_of(case, kind, budget=budget, cap=5)
    form = "embedding" if kind == "embedding" else "vector"
    costs, users, fixed = [], [], 0
    for cluster in plan.clusters:
        shapes = reference.distinct_shapes(cluster.shape_of(target) for target in cluster.targets)
        for slot in range(len(shapes)):
            users.append(sum(target.slot >= slot for target in cluster.targets))
            vectors = 1 if kind == "tied" else users[-1]
            two, one = (reference.num_coefficients(form, vectors, k) for k in (2, 1))
            costs.append(reference.slot_size(shapes, slot) + two - one)
            fixed += one - (two - one)
    expected = reference.allocate(costs, users, budget - plan.num_private - fixed, 5)
    assert [slot.num_templates for cluster in plan.clusters for slot in cluster.slots] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_plan_is_equal_after_json_and_saved_tensors_come_back(tmp_path, kind):
    ensemble = SuperWeightEnsemble(members("wrn"), budget=1.2, coefficients=kind)
    plan = ensemble.plan
    assert SharingPlan.from_json(plan.to_json()) == plan
    scatter_(ensemble.bank)
    ensemble.save(tmp_path / "saved")
    read = SuperWeightEnsemble.load(tmp_path / "saved")
    assert read.plan == plan
    for name, tensor in ensemble.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


@pytest.mark.parametrize("budget", ["least", "twice that"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["own", "embedding"])
def test_targets_start_with_the_deviation_of_their_own_layer(kind, case, budget):
    plan = plan_of(case, kind, cap=8, bins=4)
    plan = plan_of(case, kind, cap=8, bins=4, budget=plan.minimum_parameters * (1 if budget == "least" else 2))
    weights = SuperWeightBank(plan, own_deviations(plan, members(case))).generate()
    built = {(name, key): p for name, net in members(case).items() for key, p in net.named_parameters()}
    # A target that crops a slot of a dozen numbers keeps a random part of them, so its deviation is looser.
    room = 0.5 if case == "cropping" else 0.05
    ratios = {f"{m}.{k}": rms(w) / rms(built[m, k]) for m, found in weights.items() for k, w in found.items()}
    assert len(ratios) == sum(len(cluster.targets) for cluster in plan.clusters)
    assert {label: ratio for label, ratio in ratios.items() if not 1 - room < ratio < 1 + room} == {}


@pytest.mark.parametrize("case", CASES)
def test_tied_targets_start_with_the_deviation_of_the_smallest(case):
    plan = plan_of(case, "tied", cap=8, bins=4)
    own = own_deviations(plan, members(case))
    bank = SuperWeightBank(plan, own)
    for index, cluster in enumerate(plan.clusters):
        for slot in range(len(cluster.slots)):
            key = f"c{index}s{slot}"
            users = [own[target.member, target.name] for target in cluster.targets if target.slot >= slot]
            assert rms(bank.combination(key) @ bank.templates[key]) == pytest.approx(min(users), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_draw_equal_banks(kind):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return SuperWeightEnsemble(members("wrn"), budget=1.0, coefficients=kind, rng=generator).bank.state_dict()

    first, before = drawn(4), torch.manual_seed(123).get_state()
    again, other = drawn(4), drawn(5)
    assert torch.equal(torch.get_rng_state(), before), "a generator leaves the global one alone"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if kind != "tied" or "templates" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_and_their_maps_take_no_weight_decay(kind):
    ensemble = SuperWeightEnsemble(members("wrn"), budget=1.0, coefficients=kind)
    decayed, plain = parameter_groups(ensemble, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    combining = {id(p) for held in (ensemble.bank.coefficients, ensemble.bank.mixers) for p in held.parameters()}
    assert combining <= {id(parameter) for parameter in plain["params"]}
    assert {id(p) for p in ensemble.bank.templates.parameters()} <= {id(parameter) for parameter in decayed["params"]}


@pytest.mark.parametrize("kind", KINDS)
def test_materialised_member_is_the_member(kind):
    ensemble = SuperWeightEnsemble(members("wrn"), budget=1.0, coefficients=kind).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = ensemble(images)
    for index, name in enumerate(ensemble.member_names):
        assert_close(ensemble.materialize(name)(images), expected[index], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_makes_half_weights(kind):
    bank = bank_of("wrn", kind).float()
    full = generated(bank)
    with torch.autocast("cpu", torch.bfloat16):
        weights = generated(bank)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    for key, weight in weights.items():
        # bfloat16 keeps 8 bits; templates, coefficients (twice with embeddings) and sums are each rounded.
        assert_close(weight.float(), full[key], atol=0.04 * full[key].abs().max().item(), rtol=0)


def reserved(case, **options):
    least = plan_of(case, "tied", reserve_untied=True).minimum_parameters
    return [plan_of(case, "tied", reserve_untied=keep, cap=8, budget=least + 4000, **options) for keep in (True, False)]


@pytest.mark.parametrize("case", CASES)
def test_reserve_leaves_room_for_a_vector_each(case):
    kept, spent = reserved(case)
    for plan in (kept, spent):
        assert all(slot.num_vectors == 1 for cluster in plan.clusters for slot in cluster.slots)
        assert plan.num_parameters <= plan.budget
    apart = 0
    for cluster in kept.clusters:
        for index, slot in enumerate(cluster.slots):
            apart += slot.num_templates * sum(target.slot >= index for target in cluster.targets)
    assert kept.num_templates + apart + kept.num_private <= kept.budget
    own = plan_of(case, "own", cap=8, budget=kept.budget)
    slots = [[slot.num_templates for cluster in plan.clusters for slot in cluster.slots] for plan in (kept, own)]
    assert slots[0] == slots[1]  # the reserve is exactly what own coefficients cost
    least = plan_of(case, "own").minimum_parameters
    assert plan_of(case, "tied", reserve_untied=True, budget=least).num_parameters <= least
    with pytest.raises(SuperWeightError, match=rf"below the minimum of this sharing, {least:,} parameters"):
        plan_of(case, "tied", reserve_untied=True, budget=least - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_published_count_leaves_coefficients_out(kind):
    least = plan_of("wrn", kind).minimum_templates
    plan = plan_of("wrn", kind, budget=least, budget_counts="templates")
    assert plan.num_templates == least == plan.budget < plan.num_parameters and plan.num_coefficients > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"coefficients": kind}, f"unknown coefficients {kind}") for kind in (None, 3, True)),
        ({"coefficients": "tide"}, "unknown coefficients 'tide': did you mean 'tied'"),
        ({"coefficients": "embeddings"}, "unknown coefficients 'embeddings': did you mean 'embedding'"),
        (
            {"coefficients": "channel"},
            r"^coefficients 'channel' was retired, as it trained no better .*: plan with 'own'$",
        ),
        ({"allocation": "balanced"}, r"^allocation was retired, as no other order .* in sweeps, .*; leave it out$"),
        ({"allocation": "sweeps"}, "^allocation was retired"),
        ({"alocation": "sweeps"}, "unknown plan option 'alocation'"),
        ({"coefficients": ""}, "unknown coefficients '': Known: embedding, own, tied"),
        ({"coefficients": "vector"}, "unknown coefficients 'vector': .*Known: embedding, own, tied"),
        ({"reserve_untied": True}, "reserve_untied does nothing with coefficients 'own': leave it out"),
        (
            {"coefficients": "embedding", "reserve_untied": True},
            "reserve_untied does nothing with coefficients 'embedding': leave it out",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [plan_sharing, SuperWeightEnsemble])
def test_bad_options(make, options, message):
    assert_refused(message, make, members("one member"), budget=10**6, **options)


BROKEN = {
    "form of tomorrow": ({"coefficients": "matrix"}, r"at clusters\.0: unknown coefficients 'matrix'.* vector"),
    "retired form": ({"coefficients": "channel"}, r"at clusters\.0\.coefficients: 'channel' was retired, .*'own'$"),
    "embedding without a size": ({"coefficients": "embedding"}, "embedding_size must be positive with"),
    "vector with a size": ({"embedding_size": 24}, "embedding_size must be positive with"),
    "negative size": (
        {"coefficients": "embedding", "embedding_size": -1},
        r"at clusters\.0\.embedding_size must be at least 0",
    ),
    "broken size": (
        {"coefficients": "embedding", "embedding_size": 2.5},
        r"at clusters\.0\.embedding_size must be a whole number",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plan_is_refused(case):
    damage, message = BROKEN[case]
    content = json.loads(plan_of("one member", "own").to_json())
    content["clusters"][0].update(damage)
    assert_refused(f"the sharing plan.*{message}", SharingPlan.from_json, json.dumps(content))


def test_plans_without_a_form_have_vectors_and_budgets_count_the_form():
    plan = plan_of("one member", "own")
    content = json.loads(plan.to_json())
    for cluster in content["clusters"]:
        del cluster["coefficients"], cluster["embedding_size"]
    assert SharingPlan.from_json(json.dumps(content)) == plan
    content["clusters"][0].update(coefficients="embedding", embedding_size=24)
    content["budget"] = plan.num_parameters
    with pytest.raises(SuperWeightError, match="is less than the plan costs"):
        SharingPlan.from_json(json.dumps(content))
