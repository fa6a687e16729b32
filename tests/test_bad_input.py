"""What users get wrong: every mistake is a SuperWeightError that says what was given and what to do."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import assert_refused
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles import SuperWeightEnsemble, SuperWeightError, plan_sharing, wide_resnet
from superweight_ensembles.plan import find_targets


def mlp(width=6, classes=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


# Of mlp() alone: the head and three biases are its own; two shapes, one slot each with one coefficient.
PRIVATE = (6 * 3 + 3) + 6 + 6
LEAST = (6 * 4 + 1) + (6 * 6 + 1) + PRIVATE
APART = 6 * 4 + 6 * 6 + PRIVATE


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (LEAST - 1, rf"a budget of {LEAST - 1} parameters is below the minimum of this sharing, {LEAST} parameters"),
        (1, rf"below the minimum of this sharing, {LEAST} parameters"),
        (0.4, rf"a budget of 0\.4 \({int(0.4 * APART)} parameters\) is below the minimum of this sharing, {LEAST}"),
        (1e-30, rf"\(0 parameters\) is below the minimum of this sharing, {LEAST}"),
        *(
            (budget, f"must be a positive number; got {re.escape(str(budget))}")
            for budget in (0, 0.0, -5, -0.5, math.nan, math.inf, -math.inf)
        ),
        (83.0, r"is a fraction of what the members own apart; got 83\.0: write 0\.83 for 83 %"),
        (10.0, r"is a fraction of what the members own apart; got 10\.0: write 0\.1"),
        *(
            (budget, f"budget must be an int .* or a float .*; got {re.escape(repr(budget))}")
            for budget in (True, "0.83", None, [0.83], 1 + 0j)
        ),
    ],
)
def test_bad_budget(budget, message):
    assert_refused(message, plan_sharing, {"a": mlp()}, budget=budget, generator="superweight")


def test_infeasible_published_budget_states_the_minimum_of_templates():
    assert plan_sharing({"a": mlp()}, budget=LEAST).num_parameters == LEAST
    templates = 6 * 4 + 6 * 6
    with pytest.raises(SuperWeightError, match=rf"below the minimum of this sharing, {templates} parameters"):
        plan_sharing({"a": mlp()}, budget=templates - 1, budget_counts="templates", generator="superweight")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "at least one member; none was given"),
        ([], "at least one member; none was given"),
        (mlp(), r"members must be several networks.*one Sequential: write \{'name': module\} or \[module\]"),
        ([mlp(), ("a", mlp())], r"must all be modules, or all \(name, module\) pairs; got Sequential among them"),
        (("a", mlp()), r"must all be modules, or all \(name, module\) pairs; got 'a': swe.build_member"),
        ([("a", mlp(), 3)], r"must all be modules, or all \(name, module\) pairs; got tuple among them"),
        ("wrn", "must be a mapping of names to modules, or a list of modules; got 'wrn': swe.build_member"),
        (None, "members must be"),
        (7, "members must be"),
        ([("a", mlp()), ("a", mlp())], "two members are named 'a'"),
        ({"a": "resnet18"}, r"member 'a' must be a torch\.nn\.Module; got 'resnet18': swe.build_member"),
        ({"a": nn.Linear}, r"member 'a' must be a torch\.nn\.Module; got the class Linear: call it"),
        ({"": mlp()}, "'' cannot name a member"),
        ({"a.b": mlp()}, r"'a\.b' cannot name a member: use a non-empty string without dots"),
        ({3: mlp()}, "3 cannot name a member"),
        ({"keys": mlp()}, "'keys' cannot name a member"),
        ({"forward": mlp()}, "'forward' cannot name a member"),
        # Attributes that every module sets on itself, not on its class.
        ({"training": mlp()}, "'training' cannot name a member"),
        ({"_modules": mlp()}, "'_modules' cannot name a member"),
        ({"a": mlp(), "b": mlp(classes=4)}, "must answer the same classes; their heads have a: 3, b: 4"),
        ({"a": mlp(), "b": wide_resnet(10, 1, 7)}, "must answer the same classes; their heads have a: 3, b: 7"),
        ({"a": nn.Linear(4, 3)}, "no weight is left to share: a.weight is the classifier's: include it by name"),
        ({"a": mlp().requires_grad_(False)}, "no weight is left to share: .* are frozen: requires_grad_"),
        ({"a": nn.Sequential(nn.LazyLinear(3))}, r"a: 0\.weight has no shape yet"),
    ],
)
@pytest.mark.parametrize("make", [plan_sharing, SuperWeightEnsemble])
def test_bad_members(make, members, message):
    assert_refused(message, make, members, budget=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["*"]}, "no weight is left to share: .* excluded: exclude less"),
        ({"exclude": ["*.fc"]}, r"the pattern '\*\.fc' names no layer of any member"),
        ({"include": ["0", "9.weight"]}, r"the pattern '9\.weight' names no layer of any member"),
        ({"clusters": "depth_binz"}, "unknown cluster rule 'depth_binz': did you mean 'depth_bins'"),
        ({"clusters": {"x": ["nothing"]}}, "cluster 'x': 'nothing' names no target"),
        ({"clusters": {"x": [3]}}, r"cluster 'x' must be a list of globs; got \[3\]"),
        ({"exclude": [3]}, r"exclude must be a list of globs; got \[3\]"),
        # One string is no list of globs: read letter by letter, '*' would name everything.
        ({"include": "*"}, r"include must be a list of globs; got '\*'"),
        ({"exclude": "0"}, "exclude must be a list of globs; got '0'"),
        *(
            ({option: count}, rf"{option} must be a whole number, from 1 to [\d,]+; got {re.escape(repr(count))}")
            for option, counts in (("bins", (0, 2.5)), ("cap", (0, -1, 8.0, True, "8", np.int64(8))))
            for count in counts
        ),
        ({"budget_counts": "bank"}, "budget_counts must be 'all' or 'templates'; got 'bank'"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    assert_refused(message, plan_sharing, {"a": mlp()}, budget=2.0, **options)


def test_excluded_head_pattern_is_not_unused():
    # The head is left anyhow, but the pattern names a layer: no error.
    assert plan_sharing({"a": mlp()}, budget=2.0, exclude=["4"]) == plan_sharing({"a": mlp()}, budget=2.0)


def plan():
    return plan_sharing({"a": mlp(), "b": mlp()}, budget=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give either budget= .* or plan=, not both and not neither"),
        ({"budget": 2.0, "plan": plan()}, r"give either budget= .* or plan=, not both and not neither"),
        ({"plan": plan(), "bins": 2, "cap": 3}, "plan= has decided the sharing; drop bins, cap="),
    ],
    ids=["neither", "both", "options of a plan"],
)
def test_either_a_budget_or_a_plan(options, message):
    assert_refused(message, SuperWeightEnsemble, {"a": mlp(), "b": mlp()}, **options)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a": mlp()}, "the plan is for the members a, b; given: a"),
        ({"b": mlp(), "a": mlp()}, "the plan is for the members a, b; given: b, a"),
        ({"a": mlp(), "c": mlp()}, "the plan is for the members a, b; given: a, c"),
        ({"a": mlp(), "b": mlp(width=7)}, r"does not fit: b\.0\.weight is \(7, 4\), planned \(6, 4\)"),
        (
            {"a": mlp(), "b": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))},
            r"does not fit: member 'b' has no parameter '2\.weight'",
        ),
        (
            {"a": mlp(), "b": nn.Sequential(*mlp(), nn.BatchNorm1d(3))},
            rf"does not fit: member 'b' has {APART + 3 + 3} trainable parameters, planned {APART}",
        ),
        (
            {"a": mlp(), "b": mlp(classes=4)},
            rf"does not fit: member 'b' has {APART + 6 + 1} trainable parameters, planned {APART}",
        ),
    ],
)
def test_plan_that_does_not_fit(members, message):
    assert_refused(message, SuperWeightEnsemble, members, plan=plan())


def test_plans_of_tied_untied_or_trainable_weights_do_not_fit_others():
    untied, tied = ({"a": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))} for _ in range(2))
    tied["a"][1].weight = tied["a"][0].weight
    frozen = {"a": mlp(), "b": mlp()}
    frozen["b"][2].requires_grad_(False)
    for members, planned, message in (
        (untied, plan_sharing(tied, budget=3.0), r"does not fit: a\.1\.weight is not tied to 0\.weight, as planned"),
        (tied, plan_sharing(untied, budget=3.0), r"does not fit: .* planned"),
        (frozen, plan(), rf"member 'b' has {APART - 6 * 6 - 6} trainable parameters"),
    ):
        assert_refused(message, SuperWeightEnsemble, members, plan=planned)


class ConvolutionalHead(nn.Module):
    """Answers by a 1x1 convolution and says so; the linear layer inside is a gate."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, self.num_classes, 1)

    def forward(self, images):
        features = self.stem(images)
        features = features * self.gate(features.mean((2, 3)))[:, :, None, None].sigmoid()
        return self.out(features).mean((2, 3))


def test_declared_classes_are_believed_before_a_guessed_head():
    ensemble = SuperWeightEnsemble({"a": ConvolutionalHead(), "b": wide_resnet(10, 1, 3)}, budget=1.0)
    assert ensemble(torch.randn(2, 3, 8, 8)).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((11, 1, 10), r"the depth of a WideResNet is 6n \+ 4 \(10, 16, 22, 28, \.\.\.\); got 11"),
        ((4, 1, 10), r"the depth of a WideResNet is 6n \+ 4 .*; got 4"),
        *(
            ((16, width, 10), f"the width of a WideResNet is a positive number, such as 2 or 0.25; got {width!r}")
            for width in (0, -0.5, math.nan, math.inf, True, "2")
        ),
        ((16, 1, 0), "num_classes and in_channels must be at least 1; got 0, 3"),
    ],
)
def test_bad_wide_resnet(sizes, message):
    assert_refused(message, wide_resnet, *sizes)


def test_error_is_a_value_error():
    with pytest.raises(ValueError, match="has no shape yet"):
        find_targets(nn.Sequential(nn.LazyLinear(3)))


def test_what_is_given_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    ensemble = swe.SuperWeightEnsemble({"a": wide_resnet(10, 1, 4), "b": wide_resnet(16, 1, 4)}, budget=0.9)
    predictor = swe.AnytimePredictor(ensemble, input_shape=(3, 8, 8))
    with pytest.raises(SuperWeightError, match="policy is NoneType, not an ExitPolicy: predictor"):
        swe.export_cascade(predictor.modules, predictor.policy, tmp_path / "cascade", input_shape=(3, 8, 8))
    with pytest.raises(SuperWeightError, match="takes a SuperWeightEnsemble, not AnytimePredictor"):
        swe.evaluate(predictor, [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(SuperWeightError, match=r"a\.pt2 is no state-dict export .*: torch\.export\.load reads"):
        swe.export.load_member(tmp_path / "a.pt2")
