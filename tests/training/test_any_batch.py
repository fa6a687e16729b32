"""Batches of any structure, losses and answers of every task. Shapes: B rows, K classes, L labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy
from training_cases import gradients_of, refused

import superweight_ensembles as swe
from superweight_ensembles.training import Execution, OwnBatches, joint_backward

CONFIG = swe.TrainConfig(epochs=2, batch_size=16, learning_rate=0.05, device="cpu", precision="float32")
ROWS = 48


class Dense(nn.Module):
    """A hidden layer of its own width; answers (B, *shape), in the form asked for."""

    def __init__(self, width: int, *shape: int, form: str = "tensor", inputs: str = "x") -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, width), nn.Linear(width, width)
        self.last = nn.Linear(width, max(1, torch.Size(shape).numel()))
        self.shape, self.form, self.inputs = shape, form, inputs

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        x = torch.cat([*given, *named.values()], 1)
        answer = self.last(self.middle(self.first(x).relu()).relu()).view(len(x), *self.shape)
        if self.form == "tensor":
            return answer
        if self.form == "logits":
            return {"loss": answer.sum(), "logits": answer}
        return (answer, x) if self.form == "first" else (x, answer)


@dataclass(frozen=True)
class Case:
    """A task, what its members answer a row, and what they learn of inputs (B, 6)."""

    task: str
    shape: tuple[int, ...]
    targets: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    metric: Any


def _softmax(answers: Tensor) -> Tensor:
    return answers.softmax(2).mean(0)


def _mean(answers: Tensor) -> Tensor:
    return answers.mean(0)


CASES = {
    "regression": Case("regression", (2,), lambda x: x[:, :2] * x[:, 2:4], F.mse_loss, _mean, MeanSquaredError()),
    "regression of numbers": Case(
        "regression", (), lambda x: x[:, 0] * x[:, 1], F.mse_loss, _mean, MeanSquaredError()
    ),
    "multilabel": Case(
        "multilabel", (3,), lambda x: (x[:, :3] > 0).float(), F.binary_cross_entropy_with_logits,
        lambda a: a.sigmoid().mean(0), MultilabelAccuracy(num_labels=3),
    ),
    "segmentation": Case(
        "segmentation", (3, 2, 2), lambda x: (x[:, :4].reshape(-1, 2, 2) > 0).long(), F.cross_entropy, _softmax,
        MulticlassAccuracy(num_classes=3),
    ),
}  # fmt: skip


def classes_of(num_classes: int) -> Case:
    """Classification by the sign of the first input."""
    return Case("classification", (num_classes,), lambda x: (x[:, 0] > 0).long(), F.cross_entropy, _softmax, None)


def build(case: Case, **options: Any) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"a": Dense(8, *case.shape, **options), "b": Dense(16, *case.shape, **options)}
    return swe.SuperWeightEnsemble(members, budget=0.9, task=case.task)


def numbers() -> Tensor:
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))


def loader(case: Case) -> DataLoader[Any]:
    x = numbers()
    return DataLoader(TensorDataset(x, case.targets(x)), 16)


@pytest.mark.parametrize("name", CASES)
def test_a_task_decides_the_loss_the_scores_and_the_mean(name: str) -> None:
    case = CASES[name]
    ensemble, x = build(case), numbers()
    targets, answers = case.targets(x), ensemble(x)
    assert answers.shape == (2, ROWS, *case.shape)
    expected = {member: float(case.loss(own, targets).detach()) for member, own in zip("ab", answers)}
    result = swe.train(ensemble, [(x, targets)], CONFIG, validation=loader(case))
    assert result.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert sum(result.history[1]["train_loss"].values()) < sum(expected.values())
    scores = result.history[1]["validation"]["ensemble"]
    assert list(scores) == (["mse"] if case.task == "regression" else ["accuracy", "nll"])
    mean = case.mean(ensemble(x).detach())
    if case.task == "regression":
        assert scores["mse"] == pytest.approx(float(F.mse_loss(mean, targets)), rel=1e-4)
    elif case.task == "multilabel":
        assert scores["nll"] == pytest.approx(float(F.binary_cross_entropy(mean, targets)), rel=1e-4)
        assert scores["accuracy"] == pytest.approx(float(((mean > 0.5) == (targets > 0.5)).float().mean()))
    else:
        assert scores["nll"] == pytest.approx(float(F.nll_loss(mean.log(), targets)), rel=1e-4)
        assert scores["accuracy"] == pytest.approx(float((mean.argmax(1) == targets).float().mean()))
    best = [score["validation"]["ensemble"] for score in result.history]
    better = max if "accuracy" in scores else min
    assert result.best_epoch == 1 + best.index(better(best, key=lambda one: one[next(iter(scores))]))


@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_of_the_mean_prediction(name: str) -> None:
    case = CASES[name]
    ensemble, x = build(case), numbers()
    found = swe.evaluate(ensemble, loader(case), metrics={"own": case.metric})
    mean, truth = case.mean(ensemble.eval()(x).detach()), case.targets(x)
    expected = case.metric.clone()
    expected.update(mean, truth.long() if case.task == "multilabel" else truth)
    assert found.ensemble["own"] == pytest.approx(float(expected.compute()), rel=1e-4)
    assert found.num_samples == ROWS and [one.members for one in found.subsets] == [("a",), ("b",), ("a", "b")]
    assert found.subsets[2].flops == found.subsets[0].flops + found.subsets[1].flops
    assert found.members["a"] == found.subsets[0].scores
    assert case.metric.update_count == 0  # the caller's own is not touched


@pytest.mark.parametrize("name", CASES)
def test_streams_and_deadlines_answer_every_task(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ensemble, x = build(case).eval(), numbers()
    predictor = swe.AnytimePredictor(ensemble)
    steps = list(predictor.stream(x))
    answers = ensemble(x).detach()
    assert [step.member for step in steps] == ["a", "b"]
    torch.testing.assert_close(steps[0].probabilities, case.mean(answers[:1]))
    torch.testing.assert_close(steps[1].probabilities, case.mean(answers))
    hurried, whole = predictor(x, deadline_ms=1e-6), predictor(x)
    torch.testing.assert_close(hurried.probabilities, steps[0].probabilities)
    torch.testing.assert_close(whole.probabilities, steps[1].probabilities)
    assert hurried.skipped == ("b",) and bool(whole.confidence.isnan().all()) == (case.task == "regression")
    for call in (
        lambda: predictor.accelerate(loader(case)),
        lambda: swe.AnytimePredictor(ensemble, "greedy", loader=loader(case)),
    ):
        with refused(f"the ensemble's task is '{case.task}'"):
            call()
    if case.task == "regression":
        for call in (lambda: predictor.calibrate(loader(case), flops=0.5), lambda: predictor(x, batch_flops=1e9)):
            with refused("task 'regression' has no confidence"):
                call()
    predictor.save(tmp_path / "predictor")
    members = {name: ensemble.materialize(name) for name in "ab"}
    again = swe.AnytimePredictor.load(tmp_path / "predictor", members)
    assert again.task.name == case.task
    torch.testing.assert_close(again(x).probabilities, whole.probabilities)


def sureness(case: Case, mean: Tensor) -> Tensor:
    if case.task == "multilabel":
        return (2 * mean - 1).abs().mean(1)
    best = mean.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).flatten(1).mean(1)


@pytest.mark.parametrize("name", ["multilabel", "segmentation"])
def test_rows_of_several_answers_leave_a_cascade_when_they_are_sure(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ensemble = build(case)
    swe.train(ensemble, loader(case), swe.TrainConfig(epochs=8, learning_rate=0.05, device="cpu"))
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    held = [(part, case.targets(part)) for part in x.split(64)]
    predictor = swe.AnytimePredictor(ensemble)
    found = predictor.calibrate(held, flops=0.6)
    first, last = (step.probabilities for step in predictor.stream(x))
    answer = predictor(x)
    early = sureness(case, first) >= predictor.policy.thresholds[0]
    assert answer.members_used.tolist() == [1 if one else 2 for one in early.tolist()] and 20 < int(early.sum()) < 180
    shape = (-1, *[1] * (first.ndim - 1))
    torch.testing.assert_close(answer.probabilities, torch.where(early.view(shape), first, last))
    torch.testing.assert_close(answer.confidence, torch.where(early, sureness(case, first), sureness(case, last)))
    truth = case.targets(x)
    guess = answer.probabilities > 0.5 if name == "multilabel" else answer.probabilities.argmax(1)
    assert found.accuracy == pytest.approx(float((guess == truth).float().mean()), abs=1e-6)
    assert found.flops == pytest.approx(float(answer.flops.double().mean()))
    assert found.flops <= 0.6 * found.full_flops and sum(found.exits) == pytest.approx(1)
    drop = predictor.calibrate(held, max_accuracy_drop=0.01)
    assert drop.accuracy >= drop.full_accuracy - 0.01
    budget = predictor(x, batch_flops=200 * 0.7 * found.full_flops)
    assert float(budget.flops.double().mean()) <= 0.7 * found.full_flops
    assert predictor.calibrate(held, flops=0.7, monotone=True).num_samples == 200
    predictor.save(tmp_path / "predictor")
    again = swe.AnytimePredictor.load(tmp_path / "predictor", {one: ensemble.materialize(one) for one in "ab"})
    torch.testing.assert_close(again(x).probabilities, predictor(x).probabilities)
    assert again.policy == predictor.policy
    with refused("a cascade needs one class an image"):
        swe.export_cascade(predictor.modules, predictor.policy, tmp_path / "cascade", input_shape=(6,))
    for call, told in (
        (lambda: predictor.calibrate(held, flops=0.6, confidence="entropy"), "has one measure of confidence"),
        (lambda: predictor.calibrate(held, flops=0.6, weights="fitted"), "has one measure of confidence"),
        (lambda: predictor.calibrate(held[:1], flops=0.6), "at least 100 held-out samples; got 64"),
    ):
        with refused(told):
            call()
    classes = swe.AnytimePredictor({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}, input_shape=(6,))
    with refused("is not of task 'classification'"):
        classes.set_policy(predictor.policy)


@pytest.mark.parametrize("form", ["logits", "first"])
def test_the_answer_is_logits_or_the_first_tensor(form: str) -> None:
    case = CASES["multilabel"]
    plain, ensemble, x = build(case), build(case, form=form), numbers()
    torch.testing.assert_close(ensemble(x), plain(x))
    first, second = (swe.train(each, loader(case), CONFIG).history for each in (plain, ensemble))
    assert first[-1]["train_loss"] == second[-1]["train_loss"]
    torch.testing.assert_close(
        swe.AnytimePredictor(ensemble)(x).probabilities, swe.AnytimePredictor(plain)(x).probabilities
    )


def test_select_picks_another_answer_and_is_asked_for_when_loaded(tmp_path: Path) -> None:
    case, x = CASES["multilabel"], numbers()
    members = {"a": Dense(8, 3, form="second"), "b": Dense(16, 3, form="second")}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.9, task="multilabel", select=lambda output: output[1])
    assert ensemble(x).shape == (2, ROWS, 3)
    swe.train(ensemble, loader(case), CONFIG)
    ensemble.save(tmp_path / "saved")
    with refused("was made with select="):
        swe.SuperWeightEnsemble.load(tmp_path / "saved", members)
    again = swe.SuperWeightEnsemble.load(tmp_path / "saved", members, select=lambda output: output[1])
    torch.testing.assert_close(again.eval()(x), ensemble.eval()(x))
    smaller, _ = swe.ensemble.without_member(ensemble, "a")
    assert smaller(x).shape == (1, ROWS, 3) and smaller.task.name == "multilabel"
    smaller.save(tmp_path / "smaller")
    with refused("was made with select="):
        swe.SuperWeightEnsemble.load(tmp_path / "smaller", {"b": members["b"]})
    build(case).save(tmp_path / "plain")
    with refused("was made without select="):
        swe.SuperWeightEnsemble.load(tmp_path / "plain", members, select=lambda output: output)


def structured(kind: str, x: Tensor) -> Any:
    if kind == "dictionary":
        return {"left": x[:, :2], "right": x[:, 2:]}
    return (x[:, :2], x[:, 2:]) if kind == "tuple" else [x[:, :2], x[:, 2:]]


@pytest.mark.parametrize("kind", ["dictionary", "tuple", "list"])
def test_inputs_of_several_tensors_are_keywords_or_arguments(kind: str, tmp_path: Path) -> None:
    x = numbers()
    case = classes_of(2)
    labels = case.targets(x)
    plain, ensemble = build(case), build(case)
    given = [(structured(kind, part), truth) for part, truth in zip(x.split(16), labels.split(16))]
    whole = list(zip(x.split(16), labels.split(16)))
    first, second = (
        swe.train(each, data, CONFIG, validation=data) for each, data in ((plain, whole), (ensemble, given))
    )
    assert first.history[1]["train_loss"] == second.history[1]["train_loss"]
    assert first.history[1]["validation"] == second.history[1]["validation"]
    expected, found = swe.evaluate(plain, whole), swe.evaluate(ensemble, given)
    assert found.ensemble.metrics == expected.ensemble.metrics and found.ensemble.flops == expected.ensemble.flops
    torch.testing.assert_close(ensemble(structured(kind, x)), plain(x))
    predictor = swe.AnytimePredictor(ensemble)
    held = [(structured(kind, x.repeat(3, 1)), labels.repeat(3))]
    predictor.calibrate(held, flops=0.6)
    answer = predictor(structured(kind, x))
    assert 0 < int((answer.members_used == 1).sum()) < ROWS
    assert predictor.measure(4)["a"] > 0
    with refused("as the first had; got one tensor"):
        predictor(x)
    predictor.save(tmp_path / "predictor")
    members = {name: ensemble.materialize(name) for name in "ab"}
    again = swe.AnytimePredictor.load(tmp_path / "predictor", members)
    torch.testing.assert_close(again(structured(kind, x)).probabilities, answer.probabilities)
    found_plan, wanted = (
        swe.search_sharing(each, data, method="gradient").plan for each, data in ((ensemble, given), (plain, whole))
    )
    assert found_plan.to_json() == wanted.to_json()


def test_one_mapping_with_labels_is_a_batch_and_keywords_call_the_ensemble() -> None:
    x = numbers()
    case = classes_of(2)
    labels = case.targets(x)
    ensemble, again = build(case), build(case)
    batches = [{"left": x[:, :2], "labels": labels, "right": x[:, 2:]}]
    found = swe.train(ensemble, batches, CONFIG).history[-1]["train_loss"]
    expected = swe.train(again, [(x, labels)], CONFIG).history[-1]["train_loss"]
    assert found == expected
    torch.testing.assert_close(ensemble(left=x[:, :2], right=x[:, 2:]), again(x))
    with refused("its inputs, or with keywords"):
        ensemble()


def test_an_objective_gets_the_targets_as_they_are() -> None:
    x = numbers()
    case = CASES["regression"]
    seen: list[tuple[int, ...]] = []

    def weighted(member: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        seen.append((*targets["weight"].shape, *targets["y"].shape))
        errors: Tensor = (member(**inputs) - targets["y"]).square().mean(1)
        return (targets["weight"] * errors).sum() / targets["weight"].sum()

    weights = torch.linspace(0.1, 1, ROWS)
    batch = (structured("dictionary", x), {"y": case.targets(x), "weight": weights, "scale": 2.0})
    ensemble = build(case)
    expected = [
        float((weights * (own - case.targets(x)).square().mean(1)).sum() / weights.sum())
        for own in ensemble(x).detach()
    ]
    config = swe.TrainConfig(epochs=1, batch_size=16, device="cpu", precision="float32", micro_batches=1)
    result = swe.train(ensemble, [batch], config, objective=weighted)
    assert list(result.history[0]["train_loss"].values()) == pytest.approx(expected, rel=1e-5)
    assert seen == [(ROWS, ROWS, 2)] * 2


def test_micro_batches_of_structures_give_the_same_gradient() -> None:
    x = numbers()
    found = []
    for parts in (1, 3):
        ensemble = build(CASES["regression"])
        batch = structured("dictionary", x), CASES["regression"].targets(x)
        joint_backward(ensemble, *batch, F.mse_loss, execution=Execution(micro_batches=parts))
        found.append(gradients_of(ensemble))
    torch.testing.assert_close(*found)


def test_each_member_may_have_a_structure_of_its_own() -> None:
    x = numbers()
    truth = CASES["regression"].targets(x)
    ensemble, apart = build(CASES["regression"]), build(CASES["regression"])
    inputs = OwnBatches(a=structured("dictionary", x), b=structured("dictionary", x.flip(0)))
    joint_backward(ensemble, inputs, OwnBatches(a=truth, b=truth.flip(0)), F.mse_loss)
    joint_backward(apart, x, truth, F.mse_loss, members=["a"])
    joint_backward(apart, x.flip(0), truth.flip(0), F.mse_loss, members=["b"])
    torch.testing.assert_close(gradients_of(ensemble), gradients_of(apart))


def test_soft_labels_are_trained_on() -> None:
    x = numbers()
    case = classes_of(3)
    soft = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    for config in (CONFIG, swe.TrainConfig(epochs=1, batch_size=16, ensemble_loss=0.5, device="cpu")):
        ensemble = build(case)
        expected = [float(F.cross_entropy(own, soft).detach()) for own in ensemble(x)]
        result = swe.train(ensemble, [(x, soft)], config)
        assert list(result.history[0]["train_loss"].values()) == pytest.approx(expected, rel=2e-2)
    with refused(r"class indices \(48,\)"):
        swe.evaluate(build(case), [(x, soft)])


def test_places_that_count_nothing_are_left_out() -> None:
    case, x = CASES["segmentation"], numbers()
    truth = case.targets(x)
    truth[:, 0] = -100
    ensemble = build(case)
    expected = [float(F.cross_entropy(own[:, :, 1], truth[:, 1])) for own in ensemble(x)]
    result = swe.train(ensemble, [(x, truth)], CONFIG, validation=[(x, truth)])
    assert list(result.history[0]["train_loss"].values()) == pytest.approx(expected, rel=1e-5)
    mean = ensemble(x).softmax(2).mean(0)[:, :, 1]
    accuracy = float((mean.argmax(1) == truth[:, 1]).float().mean())
    assert result.history[-1]["validation"]["ensemble"]["accuracy"] == pytest.approx(accuracy)


def test_rows_that_count_nothing_change_no_score_and_no_loss() -> None:
    case, x = CASES["segmentation"], numbers()
    truth = case.targets(x)
    ignored = truth.clone()
    ignored[:30] = -100
    ensemble = build(case)
    still = swe.TrainConfig(epochs=1, learning_rate=1e-12, device="cpu", precision="float32")
    found, expected = (
        swe.train(ensemble, [(x, truth)], still, validation=[given]).history[0]["validation"]
        for given in ((x, ignored), (x[30:], truth[30:]))
    )
    assert found["ensemble"] == pytest.approx(expected["ensemble"], rel=1e-5)
    nothing = torch.full_like(truth, -100)
    result = swe.train(ensemble, [(x, nothing), (x, truth)], still)  # a batch of nothing is a loss of 0
    assert all(0 < loss < 2 for loss in result.history[0]["train_loss"].values())
    with refused("no batch with rows that count"):
        swe.train(ensemble, [(x, truth)], still, validation=[(x, nothing)])


@pytest.mark.parametrize("empty", [False, True])
def test_micro_batches_weigh_places_that_count(empty: bool) -> None:
    case, x = CASES["segmentation"], numbers()
    truth = case.targets(x)
    truth[: ROWS // 2] = -100
    if not empty:
        truth[0, 0, 0] = 1
    ends = []
    for parts in (1, 2, 3):
        ensemble = build(case)
        config = swe.TrainConfig(epochs=2, learning_rate=0.05, device="cpu", precision="float32", micro_batches=parts)
        history = swe.train(ensemble, [(x, truth)], config).history
        ends.append([*history[0]["train_loss"].values(), *history[1]["train_loss"].values()])
    assert ends[1] == pytest.approx(ends[0], rel=1e-5) and ends[2] == pytest.approx(ends[0], rel=1e-5)


def test_members_that_select_already_go_on_so_and_new_ones_do_as_well(tmp_path: Path) -> None:
    x, case = numbers(), CASES["multilabel"]
    members = {"a": Dense(8, 3, form="second"), "b": Dense(16, 3, form="second")}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.9, task="multilabel", select=lambda output: output[1])
    plain = {name: ensemble.materialize(name) for name in "ab"}
    for again in (
        swe.SuperWeightEnsemble(plain, budget=0.9, task="multilabel"),
        swe.SuperWeightEnsemble(plain, budget=0.9, task="multilabel", select=lambda output: output[1]),
    ):
        assert again(x).shape == (2, ROWS, 3) and again.select is not None
    again.save(tmp_path / "saved")
    with refused("was made with select="):
        swe.SuperWeightEnsemble.load(tmp_path / "saved", members)
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved", plain)
    torch.testing.assert_close(loaded.eval()(x), again.eval()(x))
    larger, _ = swe.ensemble.with_member(ensemble, "c", Dense(12, 3, form="second"))
    network = larger.materialize("c")
    torch.testing.assert_close(larger.eval()(x)[2], network.eval()(x))
    larger.save(tmp_path / "larger")
    new = {**members, "c": Dense(12, 3, form="second")}
    reloaded = swe.SuperWeightEnsemble.load(tmp_path / "larger", new, select=lambda output: output[1])
    torch.testing.assert_close(reloaded.eval()(x), larger(x))
    assert swe.train(larger, loader(case), CONFIG).history


def test_searches_and_un_tying_follow_the_objective() -> None:
    x = numbers()
    truth = CASES["regression"].targets(x)

    def absolute(member: nn.Module, inputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return (member(inputs) - targets["y"]).abs().mean()

    torch.manual_seed(0)
    members = {"a": Dense(8, 2), "b": Dense(16, 2)}
    ensemble = swe.SuperWeightEnsemble(
        members, budget=0.95, task="regression", coefficients="tied", reserve_untied=True
    )
    batches = [(x, {"y": truth})]
    untying = swe.search.Untying(epoch=1, threshold=0.99)
    assert len(swe.train(ensemble, batches, CONFIG, objective=absolute, hooks=[untying]).history) == 2
    found = swe.search.weight_gradients(ensemble, batches, objective=absolute)
    joint_backward(ensemble, *batches[0], swe.training.JointLoss(objective=absolute))
    assert found and all(bool(one.isfinite().all()) for one in found.values())
    method = swe.search.GradientSearch(objective=absolute)
    assert swe.search_sharing(ensemble, batches, method=method).plan.member_names == ("a", "b")


X = numbers()
YES = (X[:, :3] > 0).float()
REGRESSION, MULTILABEL = CASES["regression"], CASES["multilabel"]
MAP = torch.full((ROWS, 2, 2), 2)


def answer(*members: nn.Module, **options: Any) -> Tensor:
    return swe.SuperWeightEnsemble(dict(zip("ab", members)), budget=1.0, **options)(X)


def fit(case: str | Case, *batches: Any, config: swe.TrainConfig = CONFIG, **options: Any) -> swe.TrainResult:
    return swe.train(build(CASES[case] if isinstance(case, str) else case), batches, config, **options)


def score(case: Case, **metrics: Any) -> Any:
    return swe.evaluate(build(case), loader(case), metrics=metrics or None)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown task": (lambda: answer(Dense(8, 2), task="regresion"), "task.*regression"),
    "logits for segmentation": (
        lambda: answer(Dense(8, 2), task="segmentation"),
        r"'a' must answer logits \(batch, classes, height, width\).*got \(48, 2\).*classification",
    ),
    "maps for classification": (lambda: answer(Dense(8, 2, 2, 2)), "got .48, 2, 2, 2.*segmentation"),
    "no tensor": (
        lambda: answer(Dense(8, 2), select=lambda output: "text"),
        "'a' must answer one tensor .*got str; select= picks it",
    ),
    "unlike shapes": (
        lambda: answer(Dense(8), Dense(8, 1), task="regression"),
        r"must answer one shape.*a: \(48,\), b: \(48, 1\)",
    ),
    "a column for numbers": (lambda: fit("regression", (X, X[:, 0])), r"targets must be numbers, \(48, 2\)"),
    "whole numbers": (lambda: fit("regression", (X, X[:, :2].long())), r"targets\.float\(\)"),
    "labels beyond 1": (lambda: fit("multilabel", (X, X[:, :3].abs() + 1)), "targets must be 0 to 1"),
    "later labels beyond 1": (lambda: fit("multilabel", (X, YES), (X, 2 + YES)), "targets must be 0 to 1"),
    "soft labels that are none": (lambda: fit(classes_of(3), (X, X[:, :3])), "soft labels must be probabilities"),
    "numbers that are none": (lambda: fit("regression", (X, X[:, :2] * float("nan"))), "targets hold numbers"),
    "numbers that are none in validation": (
        lambda: fit("regression", (X, X[:, :2]), validation=[(X, X[:, :2] * float("inf"))]),
        "validation: targets hold numbers that are not finite",
    ),
    "a class below none": (lambda: fit("segmentation", (X, MAP - 3)), "-100 marks places that count nothing"),
    "validation of an objective's targets": (
        lambda: fit(
            "regression", (X, {"y": X}), validation=[(X, {"y": X})],
            objective=lambda member, inputs, targets: member(inputs).mean(),
        ),
        "validation: targets must be numbers.*whatever the objective takes",
    ),
    "a class too many": (lambda: fit("segmentation", (X, MAP + 1)), "labels must be 0 to 2"),
    "a later class too many": (lambda: fit("segmentation", (X, MAP), (X, MAP + 1)), "labels must be 0 to 2"),
    "distillation of numbers": (
        lambda: fit("regression", (X, X[:, :2]), hooks=[swe.Distillation("others", weight=0.5)]),
        "distillation needs one class an image: the ensemble's task is 'regression'",
    ),
    "smoothed labels of yes and no": (
        lambda: fit("multilabel", (X, YES), config=swe.TrainConfig(label_smoothing=0.1)),
        "label_smoothing needs one class an image",
    ),
    "other rows": (
        lambda: fit("regression", ({"x": X, "y": X[:3]}, X[:, :2])),
        r"same rows throughout: inputs\['y'\] has 3, not 48",
    ),
    "texts": (lambda: fit("regression", ({"x": X, "name": ["a"] * 48}, X[:, :2])), "it holds a str"),
    "a mapping without labels": (lambda: fit("regression", {"x": X}), "needs inputs and 'labels'; got x"),
    "no keyword of the member": (
        lambda: swe.train(
            swe.SuperWeightEnsemble({"a": nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2))}, budget=1.0),
            [({"x": X}, X[:, 0].long())],
        ),
        r"member 'a' cannot take inputs x \(48, 6\) of torch.float32: .*unexpected keyword",
    ),
    "no metrics": (lambda: score(REGRESSION), "give metrics= of torchmetrics"),
    "a metric of classes": (
        lambda: score(REGRESSION, m=MultilabelAccuracy(num_labels=3)),
        "metric 'm' does not fit task 'regression', whose predictions are",
    ),
    "a metric of several numbers": (
        lambda: score(MULTILABEL, m=MultilabelAccuracy(num_labels=3, average=None)),
        r"metric 'm' must come to one number, as by average='macro'; got \(3,\)",
    ),
    "no metric": (lambda: score(MULTILABEL, m=F.mse_loss), "must be a metric object of torchmetrics"),
    "a task for an ensemble": (
        lambda: swe.AnytimePredictor(build(REGRESSION), task="classification"), "the ensemble's is 'reg"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    call, told = REFUSED[name]
    with refused(told):
        call()
