"""The sharing plan: what it covers, what it costs, and its way through JSON."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_refused
from torch import nn

from superweight_ensembles import (
    SharingPlan,
    SuperWeightEnsemble,
    SuperWeightError,
    independent_plan,
    plan_sharing,
)
from superweight_ensembles.plan import PlanOptions, SsnOptions, find_targets
from superweight_ensembles.plan.planner import _SharingOptions

CLASSES = 3


def mlp(*widths):
    """Linear layers 4 -> widths -> classes."""
    sizes = (4, *widths)
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))


def convnet(kernel, *channels):
    sizes = (3, *channels)
    layers = [
        layer
        for i, o in pairwise(sizes)
        for layer in (nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], CLASSES))


widths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
nets = st.one_of(
    widths.map(lambda drawn: mlp(*drawn)),
    st.tuples(st.sampled_from([1, 3]), widths).map(lambda drawn: convnet(drawn[0], *drawn[1])),
)
some_members = st.lists(nets, min_size=1, max_size=4).map(lambda drawn: {f"m{i}": net for i, net in enumerate(drawn)})
options = st.one_of(
    st.fixed_dictionaries({"clusters": st.just("depth_bins"), "bins": st.integers(1, 5)}),
    st.just({"clusters": "shape"}),
)


def least_budget(members, options):
    """The minimum as the error states it."""
    with pytest.raises(SuperWeightError, match=r"below the minimum of this sharing, [\d,]+ parameters") as caught:
        plan_sharing(members, budget=1, generator="superweight", **options)
    return int(str(caught.value).split("sharing, ")[1].split(" parameters")[0].replace(",", ""))


@settings(max_examples=40)
@given(some_members, options, st.floats(0, 3), st.integers(1, 8))
def test_budget_bounds_every_trainable_scalar(members, options, excess, cap):
    least = least_budget(members, options)
    budget = least + math.floor(excess * least)
    plan = plan_sharing(members, budget=budget, cap=cap, **options)
    ensemble = SuperWeightEnsemble(members, plan=plan)
    counted = reference.count_scalars(ensemble)
    assert least == plan.minimum_parameters
    assert least <= counted <= budget
    assert counted == plan.num_parameters == ensemble.num_parameters
    assert reference.count_scalars(ensemble.bank) == plan.num_templates + plan.num_coefficients
    assert reference.count_scalars(ensemble.members) == plan.num_private
    assert plan.independent_parameters == sum(reference.count_scalars(net) for net in members.values())


@given(some_members, options, st.integers(0, 500), st.integers(1, 8))
def test_templates_are_the_reference_allocation(members, options, excess, cap):
    plan = plan_sharing(members, budget=least_budget(members, options) + excess, cap=cap, **options)
    costs, users = [], []
    for cluster in plan.clusters:
        shapes = reference.distinct_shapes(cluster.slots[target.slot].shape for target in cluster.targets)
        for slot in range(len(shapes)):
            users.append(sum(target.slot >= slot for target in cluster.targets))
            costs.append(reference.slot_size(shapes, slot) + users[-1])
    expected = reference.allocate(costs, users, plan.budget - plan.num_private, cap)
    assert [slot.num_templates for cluster in plan.clusters for slot in cluster.slots] == expected


@given(some_members, options)
def test_plans_cover_targets_once_are_deterministic_and_equal_after_json_and_told(members, options):
    plan = plan_sharing(members, budget=10**6, **options)
    covered = [
        (target.member, target.names, cluster.shape_of(target))
        for cluster in plan.clusters
        for target in cluster.targets
    ]
    found = [(name, target.names, target.shape) for name, net in members.items() for target in find_targets(net, name)]
    assert sorted(covered) == sorted(found)
    again = plan_sharing(list(members.items()), budget=10**6, **options)
    read = SharingPlan.from_json(plan.to_json())
    assert plan == again == read
    assert len({plan, again, read}) == 1
    assert plan.fingerprint == read.fingerprint
    assert read.to_json() == plan.to_json()
    assert pickle.loads(pickle.dumps(plan)) == plan
    table = str(plan)
    for cluster in plan.clusters:
        (row,) = [line for line in table.splitlines() if line.startswith(cluster.name + " ")]
        assert all(target.member in row for target in cluster.targets)
        assert f"{cluster.num_templates + cluster.num_coefficients:,}" in row
    counts = ("num_templates", "minimum_templates", "num_coefficients", "num_private", "num_parameters")
    for count in (*counts, "independent_parameters", "budget"):
        assert f"{getattr(plan, count):,}" in table
    assert f"{plan.budget - plan.num_parameters:,}" in table
    assert plan.fingerprint in table


def test_table_of_the_published_count_says_so():
    plan = plan_sharing({"a": mlp(6, 6)}, budget=10_000, budget_counts="templates")
    assert f"counts templates alone; {10_000 - plan.num_templates:,} unspent" in str(plan)


def test_plan_does_not_depend_on_the_process():
    members = (
        "{f'm{w}': nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, w, 3), nn.Conv2d(w, 8, 1), nn.Conv2d(8, w, 3),"
        " nn.Flatten(), nn.Linear(8, w), nn.Linear(w, 3)) for w in (8, 12)}"
    )
    plan = f"plan_sharing({members}, budget=0.9, bins=2)"
    code = f"from torch import nn; from superweight_ensembles.plan import plan_sharing; print({plan}.fingerprint)"
    # Another process has other hash seeds: no set or dict order may reach the plan.
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert eval(plan).fingerprint == other


def test_members_are_not_changed():
    net = mlp(6, 6)
    before = {name: (parameter, parameter.clone()) for name, parameter in net.named_parameters()}
    plan_sharing({"a": net}, budget=1.5, include=["4"], exclude=["0"])
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1])


def test_budget_as_a_fraction_and_as_a_number():
    members = {"a": mlp(8, 8, 8), "b": mlp(8, 8, 8)}
    apart = 2 * (4 * 8 + 2 * 8 * 8 + 3 * 8 + 8 * 3 + 3)
    plan = plan_sharing(members, budget=0.9)
    assert plan.independent_parameters == apart
    assert plan.budget == math.floor(0.9 * apart)
    assert plan == plan_sharing(members, budget=math.floor(0.9 * apart))


def test_private_and_minimum_by_hand():
    # Widths 8 and 16: one cluster of (8, 4), one of (8, 8) and (16, 8) from bins of the two-layer members.
    members = {"narrow": mlp(8, 8), "wide": mlp(8, 16)}
    plan = plan_sharing(members, budget=10**6, bins=2)
    heads, biases = (8 * 3 + 3) + (16 * 3 + 3), (8 + 8) + (8 + 16)
    assert plan.num_private == heads + biases
    assert plan.minimum_templates == 8 * 4 + 16 * 8
    # Coefficient vectors: two in slot 8x4, two in slot 8x8, one in slot 16x8.
    assert plan.minimum_parameters == plan.minimum_templates + (2 + 2 + 1) + plan.num_private


def test_independent_plan_shares_nothing():
    members = {"a": mlp(6), "b": mlp(5, 4)}
    plan = independent_plan(members)
    assert plan.clusters == ()
    assert plan.num_parameters == plan.num_private == plan.independent_parameters == plan.budget
    with pytest.raises(dataclasses.FrozenInstanceError, match="budget"):
        plan.budget = 3
    assert "in all" in str(independent_plan({"a": mlp(6).requires_grad_(False)}))


def test_globs_reach_the_plan():
    members = {"a": mlp(6, 6), "b": mlp(6, 6)}
    plan = plan_sharing(members, budget=10**6, include=["b.4"], exclude=["a.0"])
    labels = {target.label for cluster in plan.clusters for target in cluster.targets}
    assert labels == {"a.2.weight", "b.0.weight", "b.2.weight", "b.4.weight"}


@pytest.fixture
def content():
    """The JSON of a plan of one cluster, as nested dictionaries."""
    members = {"a": mlp(6, 6), "b": mlp(6, 7)}
    return json.loads(plan_sharing(members, budget=10**6, bins=1).to_json())


def target(content, index=0):
    return content["clusters"][0]["targets"][index]


def slot(content, index=0):
    return content["clusters"][0]["slots"][index]


BROKEN = {
    "format of tomorrow": (lambda c: c.update(format=3), r'must be a JSON object with "format": 2'),
    "no format": (lambda c: c.pop("format"), r'must be a JSON object with "format": 2'),
    "unknown key": (lambda c: c.update(colour="red"), r"at colour: "),
    "unknown key of a member": (lambda c: c["members"][0].update(colour="red"), r"at members\.0\.colour: "),
    "unknown key of a target": (lambda c: target(c).update(colour="red"), r"at clusters\.0\.targets\.0\.colour: "),
    "missing key": (lambda c: c.pop("budget"), r"at budget: "),
    "missing key of a slot": (lambda c: slot(c).pop("shape"), r"at clusters\.0\.slots\.0\.shape: "),
    "word for a number": (lambda c: c.update(budget="much"), r"at budget must be a whole number"),
    "broken number": (lambda c: slot(c).update(num_templates=1.5), r"at clusters\.0\.slots\.0\.num_templates must be"),
    "null": (lambda c: c.update(clusters=None), r"at clusters must be a list"),
    "number for a name": (
        lambda c: target(c).update(names=[3]),
        r"at clusters\.0\.targets\.0\.names\.0 must be a text",
    ),
    "other count": (lambda c: c.update(budget_counts="some"), r"budget_counts: must be 'all' or 'templates'"),
    "retired order": (lambda c: c.update(allocation="balanced"), r"at allocation: allocation was retired, .*leave it"),
    "no members": (lambda c: c.update(members=[]), r"at members: Tuple should have at least 1 item"),
    "member twice": (lambda c: c["members"].append(c["members"][0]), r"members: each needs a name of its own"),
    "more private than there are": (
        lambda c: c["members"][0].update(num_private=10**9),
        r"members: 'a': num_private and its targets do not add up to num_parameters",
    ),
    "private that leaves no room for the targets": (
        lambda c: c["members"][0].update(num_private=c["members"][0]["num_parameters"]),
        r"members: 'a': num_private and its targets do not add up to num_parameters",
    ),
    "budget below the cost": (lambda c: c.update(budget=1), r"budget"),
    "cap below the templates": (lambda c: c.update(cap=1), r"cap"),
    "no templates": (lambda c: slot(c).update(num_templates=0), r"slots\.0\.num_templates must be at least 1"),
    "no slots": (lambda c: c["clusters"][0].update(slots=[]), r"at clusters\.0\.slots: .*at least 1 item"),
    "no targets": (lambda c: c["clusters"][0].update(targets=[]), r"at clusters\.0\.targets: .*at least 1 item"),
    "slot of one dimension": (lambda c: slot(c).update(shape=[4]), r"slots\.0\.shape: .*at least 2 items"),
    "slot of no rows": (lambda c: slot(c).update(shape=[0, 4]), r"slots\.0\.shape\.0 must be at least 1"),
    "slot that adds nothing": (lambda c: slot(c, 1).update(shape=[1, 1]), r"slot 1 must add numbers"),
    "kernels mixed": (lambda c: slot(c, 1).update(shape=[6, 6, 3, 3]), r"all slots must have equally many dimensions"),
    "unused vector": (lambda c: slot(c).update(num_vectors=99), r"slot 0: its 99 coefficient vectors do not match"),
    "vector that is not there": (lambda c: target(c).update(vectors=[77]), r"slot 0: its \d+ coefficient vectors"),
    "target of no slot": (
        lambda c: target(c).update(slot=9),
        r"a\.0\.weight needs one coefficient vector for each slot up to its own",
    ),
    "target of a stranger": (lambda c: target(c).update(member="z"), r"a target of member 'z', which the plan does"),
    "target without a name": (lambda c: target(c).update(names=[]), r"targets\.0\.names: .*at least 1 item"),
    "target twice": (lambda c: target(c, 1).update(member="a", names=["0.weight"]), r"a\.0\.weight stands there twice"),
    "cluster of one name": (lambda c: c["clusters"].append(c["clusters"][0]), r"clusters: two are named '"),
}


@pytest.fixture
def flat():
    """The JSON of a plan of one flat bank that a layer of two members is larger than."""
    members = {"a": mlp(6, 6), "b": mlp(6, 7)}
    plan = plan_sharing(members, budget=0.55, generator="ssn", clusters="one", ssn=SsnOptions(upsample="mask"))
    return json.loads(plan.to_json())


def group(content):
    return content["clusters"][0]


BROKEN_GROUPS = {
    "no generator": (lambda c: group(c).pop("generator"), r"at clusters\.0: .*'generator'"),
    "unknown generator": (lambda c: group(c).update(generator="magic"), r"at clusters\.0: .*'magic'"),
    "generator of the other": (lambda c: group(c).update(generator="superweight"), r"at clusters\.0\.kind: "),
    "no bank": (lambda c: group(c).pop("bank_size"), r"at clusters\.0\.bank_size: "),
    "bank of nothing": (lambda c: group(c).update(bank_size=0), r"a bank of 0 numbers is smaller than its layers can"),
    "bank below nothing": (lambda c: group(c).update(bank_size=-5), r"a bank of -5 numbers is smaller"),
    "huge bank": (lambda c: group(c).update(bank_size=10**12), r"at clusters\.0\.bank_size must be at most"),
    "large bank": (lambda c: group(c).update(bank_size=2**36), r"clusters: claim [\d,]+ parameters; at most"),
    "bank above the budget": (lambda c: group(c).update(bank_size=10**6), r"budget: \d+ is less than the plan costs"),
    "slots": (lambda c: group(c).update(slots=[]), r"at clusters\.0\.slots: "),
    "no targets": (lambda c: group(c).update(targets=[]), r"at clusters\.0\.targets: .*at least 1 item"),
    "target twice": (lambda c: group(c)["targets"].append(target(c)), r"a\.0\.weight stands there twice"),
    "target of a stranger": (lambda c: target(c).update(member="z"), r"a target of member 'z', which the plan does"),
    "vectors": (lambda c: target(c).update(vectors=[0]), r"at clusters\.0\.targets\.0\.vectors: "),
    "shape of one dimension": (lambda c: target(c).update(shape=[24]), r"targets\.0\.shape: .*at least 2 items"),
    "shape of no rows": (lambda c: target(c).update(shape=[0, 4]), r"targets\.0\.shape\.0 must be at least 1"),
    "shape of less": (lambda c: target(c).update(shape=[-6, -4]), r"targets\.0\.shape\.0 must be at least 1"),
    "shape of other size": (lambda c: target(c).update(shape=[6, 5]), r"'a': num_private and its targets do not add"),
    "nine dimensions": (lambda c: target(c).update(shape=[1] * 9), r"at clusters\.0\.targets\.0\.shape: .*at most 8"),
    "huge dimension": (
        lambda c: target(c).update(shape=[2**32, 1]),
        r"at clusters\.0\.targets\.0\.shape\.0 must be at most",
    ),
    "huge shape": (lambda c: target(c).update(shape=[2**31] * 8), r"shapes have 68,719,476,736 numbers at most"),
    "unknown combination": (
        lambda c: group(c)["options"].update(combine="sum"),
        "options: unknown combine 'sum'.* avg",
    ),
    "unknown up-sampling": (
        lambda c: group(c)["options"].update(upsample="zoom"),
        "options: unknown upsample 'zoom'.* inter",
    ),
    "unknown option": (lambda c: group(c)["options"].update(colour="red"), r"options\.colour: "),
    "options inside options": (lambda c: group(c)["options"].update(options={"windows": 3}), r"options\.options: "),
    "negative windows": (lambda c: group(c)["options"].update(windows=-1), r"windows must be at least 1"),
    "windows past counting": (lambda c: group(c)["options"].update(windows=10**30), r"windows must be at most"),
    "broken windows": (lambda c: group(c)["options"].update(windows=2.5), r"options\.windows must be a whole number"),
    "templates beyond the bank": (
        lambda c: group(c)["options"].update(templates=4096),
        r"smaller than its layers can read, 4,096",
    ),
    "templates below nothing": (lambda c: group(c)["options"].update(templates=-1), r"templates must be at least 0"),
    "embedding of nothing": (
        lambda c: group(c)["options"].update(combine="emb", embedding_size=0),
        r"embedding_size must be at least 1",
    ),
    "masks of no window": (
        lambda c: group(c).update(mask_window=0),
        r"mask_window must be positive with upsample 'mask'",
    ),
    "masks that are not asked for": (
        lambda c: group(c)["options"].update(upsample="inter"),
        r"mask_window must be positive with upsample 'mask', and 0 with the others",
    ),
    "another window": (lambda c: group(c)["options"].update(mask_window=4), r"is \d+, but its options say 4"),
    "tiles past counting": (
        lambda c: (
            group(c).update(bank_size=2, mask_window=0, targets=[{**target(c), "shape": [2**18, 2**17]}]),
            group(c)["options"].update(upsample="wavg"),
            c.update(members=[{"name": "a", "num_parameters": 2**35, "num_private": 0}], budget=2**36),
        ),
        r"clusters: claim 68,719,476,738 parameters; at most",
    ),
}


@pytest.mark.parametrize(
    ("whole", "damage", "message"),
    [("content", *case) for case in BROKEN.values()] + [("flat", *case) for case in BROKEN_GROUPS.values()],
    ids=[*BROKEN, *(f"group: {case}" for case in BROKEN_GROUPS)],
)
def test_broken_plan_is_refused_in_little_memory(whole, damage, message, request):
    content = request.getfixturevalue(whole)
    del content["fingerprint"]
    damage(content)
    tracemalloc.start()
    assert_refused(f"the sharing plan.*{message}", SharingPlan.from_json, json.dumps(content))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**23


def test_undamaged_plans_are_read(content, flat):
    assert SharingPlan.from_json(json.dumps(content)).member_names == ("a", "b")
    (found,) = SharingPlan.from_json(json.dumps(flat)).ssn_groups.values()
    assert any(reading.is_enlarged for reading in found.window_specs)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["", "{", "members: a", "[" * 100_000, "1" * 5000], "the sharing plan is no JSON"),
        (["[]", "3", "null", '"plan"', "{}"], "must be a JSON object with"),
    ],
    ids=["no JSON", "no plan"],
)
def test_text_that_is_no_plan_is_refused(texts, message):
    for text in texts:
        assert_refused(message, SharingPlan.from_json, text)


SAVED = sorted((Path(__file__).parents[2] / "benchmarks/results").rglob("plan.json"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_plans_of_committed_results_are_read_and_written_as_they_are(path):
    text = path.read_text()
    plan = SharingPlan.from_json(text, path)
    assert plan.to_json().strip() == text.strip()
    assert json.loads(text).get("fingerprint", plan.fingerprint) == plan.fingerprint


def test_a_plan_by_hand_may_leave_the_allocation_out(content):
    assert content["allocation"] == "sweeps"
    whole = SharingPlan.from_json(json.dumps(content))
    del content["allocation"]
    assert SharingPlan.from_json(json.dumps(content)) == whole


def test_the_ensemble_names_all_options_of_a_plan() -> None:
    assert {*PlanOptions.__annotations__} == {field.name for field in dataclasses.fields(_SharingOptions)}
    assert all(f"\n        {option}: " in plan_sharing.__doc__ for option in PlanOptions.__annotations__)
