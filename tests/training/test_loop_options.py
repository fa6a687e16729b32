"""Optimizers, schedules, clipping, transforms, and the hooks that are ready to use."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from training_cases import assert_same, refused

import superweight_ensembles as swe
from superweight_ensembles.data import Augmentation
from superweight_ensembles.training import (
    CSVLog,
    EarlyStopping,
    MLflowLog,
    ProgressBar,
    TensorBoardLog,
    TrainState,
    WandbLog,
    build_optimizer,
    build_schedule,
    num_moments,
)

DATA = swe.load_data("synthetic", num_train=96)
CONFIG = swe.TrainConfig(
    epochs=2, batch_size=24, learning_rate=0.01, device="cpu", precision="float32", num_threads=1, channels_last=False
)


def build() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"a": swe.wide_resnet(10, 1, DATA.num_classes), "b": swe.wide_resnet(10, 2, DATA.num_classes)}
    return swe.SuperWeightEnsemble(members, budget=0.9)


def rates(config: swe.TrainConfig, steps_per_epoch: int = 10) -> list[float]:
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = build_schedule(optimizer, config, steps_per_epoch)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


class Interrupt(swe.Hook):
    """Raises after a number of steps."""

    watches = True

    def __init__(self, step: int) -> None:
        self.left = step

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        self.left -= 1
        if not self.left:
            raise ZeroDivisionError("as asked")


def assert_resumed_alike(config: swe.TrainConfig, out: Path, step: int) -> None:
    """What is interrupted after a step and goes on ends bit by bit like what was not."""
    whole, again, config = build(), build(), replace(config, checkpoint_steps=1)
    expected = swe.train(whole, DATA, config).history
    with pytest.raises(ZeroDivisionError):
        swe.train(again, DATA, config, out=out, hooks=[Interrupt(step)])
    found = swe.train(again, DATA, config, out=out, resume=True).history
    assert [one["train_loss"] for one in found] == [one["train_loss"] for one in expected]
    assert_same(whole, again)


@pytest.mark.parametrize(
    "name", ["lamb", "lion", "muon", "adan", "adafactor", "adafactorbv", "novograd", "madgrad", "adamw"]
)
def test_an_optimizer_by_name_trains_and_is_resumed_bit_by_bit(name: str, tmp_path: Path) -> None:
    assert_resumed_alike(replace(CONFIG, optimizer=name, learning_rate=1e-3), tmp_path, 4)


def test_options_reach_the_optimizer_and_its_groups_keep_their_decay() -> None:
    for name in ("adamw", "lamb"):
        config = replace(CONFIG, optimizer=name, optimizer_options={"betas": [0.8, 0.95]}, weight_decay=0.02)
        optimizer = build_optimizer(build(), config)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
        assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_the_state_of_an_optimizer_is_counted_by_asking_it() -> None:
    for name, moments in {"sgd": 1, "adamw": 2, "lion": 1, "adan": 4}.items():
        assert num_moments(replace(CONFIG, optimizer=name)) == moments
    assert num_moments(replace(CONFIG, optimizer="adafactor")) <= 1
    assert num_moments(replace(CONFIG, momentum=0.0, nesterov=False)) == 0


def test_a_warm_up_rises_to_the_peak_and_the_schedule_begins_there() -> None:
    config = replace(CONFIG, epochs=5, learning_rate=1.0, warmup_epochs=1.0)
    rise = [0.01 + 0.99 * step / 10 for step in range(10)]
    cosine = [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    assert rates(replace(config, schedule="cosine")) == pytest.approx([*rise, *cosine])
    falls = [1.0] * 10 + [0.2] * 20 + [0.04] * 10
    assert rates(replace(config, schedule="step", milestones=(2, 4))) == pytest.approx([*rise, *falls])
    assert rates(replace(config, schedule="constant")) == pytest.approx([*rise, *[1.0] * 40])
    assert rates(replace(config, schedule="poly")) == pytest.approx([*rise, *(1 - step / 40 for step in range(40))])
    half = rates(replace(config, schedule="cosine", warmup_epochs=0.5))
    assert half[:6] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 8),
        ("step", [1.0, 1.0, 1.0, 1.0, 0.2, 0.2, 0.04, 0.04]),
        ("cosine", [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ],
)
def test_schedules_by_the_batch(schedule: str, expected: list[float]) -> None:
    milestones = (2, 3) if schedule == "step" else ()
    config = swe.TrainConfig(epochs=4, learning_rate=1.0, schedule=schedule, milestones=milestones)
    assert rates(config, 2) == pytest.approx(expected)


def test_one_cycle_rises_to_the_learning_rate_and_falls() -> None:
    found = rates(swe.TrainConfig(epochs=5, learning_rate=0.4, schedule="one_cycle"), 4)
    assert max(found) == pytest.approx(0.4, rel=0.05)
    assert found[0] < 0.05 and found[-1] < 0.01


def test_options_reach_the_schedule() -> None:
    config = replace(CONFIG, epochs=4, learning_rate=1.0)
    found = rates(replace(config, schedule="cosine", schedule_options={"min_lr": 0.1}))
    assert found == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)])
    early = rates(replace(config, schedule="one_cycle", schedule_options={"pct_start": 0.1}))
    assert early.index(max(early)) in (3, 4)
    for name in ("wsd", "rsqrt", "tanh"):
        found = rates(replace(config, schedule=name, warmup_epochs=1.0))
        assert found[0] == pytest.approx(0.01) and max(found) <= 1.0 and found[-1] < max(found)


def test_gradients_are_clipped_over_all_parameters_together() -> None:
    norms: list[float] = []

    class Norms(swe.Hook):
        def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
            held = [one.grad for one in state.ensemble.parameters() if one.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(held)))

    swe.train(build(), DATA, CONFIG, hooks=[Norms()])
    free = list(norms)
    norms.clear()
    swe.train(build(), DATA, replace(CONFIG, clip_norm=0.5), hooks=[Norms()])
    assert min(free) > 0.5 and max(norms) <= 0.5 + 1e-4


def batches(
    transforms: Mapping[str, Mapping[str, object]], epoch: int = 1, **options: Any
) -> list[tuple[Tensor, Tensor]]:
    loader = DATA.loader("train", 24, shuffle=True, augmentation=Augmentation(transforms=transforms), **options)
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("name", ["RandAugment", "ColorJitter", "RandomErasing", "RandomRotation"])
def test_a_transform_changes_each_image_by_its_own_numbers(name: str) -> None:
    options = {"ColorJitter": {"brightness": 0.5}, "RandomErasing": {"p": 0.7}, "RandomRotation": {"degrees": 30}}
    transforms = {name: options.get(name, {})}
    state = torch.get_rng_state()
    plain, changed, again = batches({}), batches(transforms), batches(transforms)
    assert torch.equal(torch.get_rng_state(), state)
    differs = torch.cat([(one != other).flatten(1).any(1) for (one, _), (other, _) in zip(plain, changed)])
    assert 0.3 < float(differs.float().mean()) <= 1
    for (one, labels), (other, same) in zip(changed, again):
        assert torch.equal(one, other) and torch.equal(labels, same) and labels.dtype == torch.int64
    assert not torch.equal(changed[0][0], batches(transforms, epoch=2)[0][0])
    halves = [batches(transforms, shard=(index, 2)) for index in range(2)]
    for (whole, _), (first, _), (second, _) in zip(changed, *halves):
        assert torch.equal(whole, torch.cat([first, second]))


def test_mixed_images_have_the_labels_of_both() -> None:
    plain, mixed = batches({}), batches({"MixUp": {"alpha": 1.0}})
    shares = set()
    for (images, labels), (found, soft) in zip(plain, mixed):
        assert soft.shape == (len(images), DATA.num_classes) and soft.dtype == torch.float32
        torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)))
        other = images.roll(1, 0)
        share = float(((found - other) * (images - other)).sum() / (images - other).square().sum())
        torch.testing.assert_close(found, share * images + (1 - share) * other, rtol=1e-4, atol=1e-4)
        one_hot = nn.functional.one_hot(labels, DATA.num_classes).float()
        torch.testing.assert_close(soft, share * one_hot + (1 - share) * one_hot.roll(1, 0), rtol=1e-4, atol=1e-4)
        shares.add(round(share, 4))
    assert len(shares) == len(mixed)
    both = batches({"MixUp": {"alpha": 1.0}, "CutMix": {}})
    assert all(soft.shape == (len(images), DATA.num_classes) for images, soft in both)


def test_mixed_images_are_trained_on_and_resumed(tmp_path: Path) -> None:
    transforms = {"RandAugment": {"magnitude": 3}, "CutMix": {"alpha": 1.0}}
    assert_resumed_alike(replace(CONFIG, transforms=transforms), tmp_path, 3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": ({"optimizer": "lam"}, "unknown optimizer 'lam': did you mean 'lamb'"),
    "an optimizer of lists": ({"optimizer": "kron"}, "unknown optimizer 'kron'"),
    "optimizer_options": ({"optimizer_options": {"beta": 1}}, "optimizer 'sgd' with .*'beta'"),
    "an option of timm's": ({"optimizer": "lamb", "optimizer_options": {"beta": 1}}, "optimizer 'lamb' with .*'beta'"),
    "learning rate twice": ({"optimizer_options": {"lr": 1}}, "lr is not an option here: learning_rate gives it"),
    "no mapping": ({"optimizer_options": [1]}, "optimizer_options must be settings by name"),
    "schedule_options": ({"schedule_options": {"min": 1}}, "schedule 'cosine' with .*'min'"),
    "a warm-up of all": ({"warmup_epochs": 2}, "warmup_epochs must be less than the 2 epochs"),
    "two warm-ups": ({"schedule": "one_cycle", "warmup_epochs": 1}, "warmup_epochs does nothing with .*one_cycle"),
    "transform": ({"transforms": {"RandAugmen": {}}}, "did you mean 'RandAugment'"),
    "a transform's option": ({"transforms": {"RandAugment": {"x": 1}}}, "transform RandAugment: .*'x'"),
    "a transform's options": (
        {"transforms": {"RandAugment": 3}}, r"transforms.RandAugment must be settings by name \(got 3\)"
    ),
    "another size": ({"transforms": {"Resize": {"size": 4}}}, r"Resize makes images \(3, 4, 4\)"),
    "several images": ({"transforms": {"FiveCrop": {"size": 4}}}, "FiveCrop makes images tuple"),
    "a picture": ({"transforms": {"ToPILImage": {}}}, "ToPILImage makes images Image"),
    "another type": ({"transforms": {"Normalize": {"mean": [0.5], "std": [0.5]}}}, "Normalize does not take these"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_so_is_refused(name: str) -> None:
    changes, told = REFUSED[name]
    with refused(told):
        swe.train(build(), DATA, replace(CONFIG, **changes))


def test_a_loader_of_ones_own_transforms_by_itself() -> None:
    with refused("transforms and num_workers are for ImageData"):
        swe.train(build(), list(DATA.loader("train", 24)), replace(CONFIG, transforms={"RandAugment": {}}))


class Looks(swe.Hook):
    """Notes what a hook sees."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps: list[tuple[int, float, dict[str, float]]] = []
        self.records: list[Mapping[str, Any]] = []

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        self.steps.append((state.step, state.learning_rate, dict(state.losses)))
        if state.step == self.stop_at:
            state.stop("seen enough")

    def after_validation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        self.records.append(record)


def test_hooks_see_losses_rates_steps_and_records() -> None:
    looks = Looks()
    result = swe.train(build(), DATA, CONFIG, hooks=[looks])
    assert [step for step, *_ in looks.steps] == list(range(6))
    assert looks.records == result.history and result.stopped is None
    expected = [0.01 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [rate for _, rate, _ in looks.steps] == pytest.approx(expected)
    for index, record in enumerate(result.history):
        of_epoch = [losses for *_, losses in looks.steps[3 * index : 3 * index + 3]]
        assert {name: sum(one[name] for one in of_epoch) / 3 for name in "ab"} == pytest.approx(record["train_loss"])


def test_a_hook_ends_the_training_with_its_epoch_which_is_validated() -> None:
    config = replace(CONFIG, epochs=5, validate_every=4)
    result = swe.train(build(), DATA, config, hooks=[Looks(stop_at=4)])
    assert len(result.history) == 2 and result.stopped == "seen enough"
    assert result.history[0]["validation"] is None and result.history[1]["validation"] is not None


@pytest.mark.parametrize(("patience", "told"), [(1, "one epoch"), (3, "3 epochs")])
def test_early_stopping_waits_and_a_resumed_training_stays_stopped(patience: int, told: str, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=9, learning_rate=1e-9)

    def stopping(patience: int, resume: bool) -> swe.TrainResult:
        hooks = [EarlyStopping(patience=patience, min_delta=0.2)]
        return swe.train(build(), DATA, config, hooks=hooks, out=tmp_path, resume=resume)

    result, again = stopping(patience, False), stopping(patience, True)
    assert len(result.history) == patience + 1 and result.stopped == f"accuracy is no better for {told}"
    assert again.history == result.history and again.stopped == result.stopped
    with refused(rf"EarlyStopping\.patience={patience}, now 4"):
        stopping(4, True)


def test_early_stopping_remembers_over_an_interruption(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=9, learning_rate=1e-9)
    stopping = {"patience": 3, "score": "nll", "min_delta": 0.5}
    with pytest.raises(ZeroDivisionError):
        swe.train(build(), DATA, config, hooks=[EarlyStopping(**stopping), Interrupt(8)], out=tmp_path)
    result = swe.train(build(), DATA, config, hooks=[EarlyStopping(**stopping)], out=tmp_path, resume=True)
    assert len(result.history) == 4 and result.stopped == "nll is no better for 3 epochs"


def test_an_average_is_taken_and_validated_where_a_training_stops_early() -> None:
    config = replace(CONFIG, epochs=9)
    ensemble = build()
    hooks = [swe.AveragedWeights(start=0.0), EarlyStopping(patience=1, min_delta=1.0)]
    result = swe.train(ensemble, DATA, config, hooks=hooks)
    assert len(result.history) == 2 and result.history[-1]["averaged_steps"] == 6
    found = swe.evaluate(ensemble, DATA.loader("validation", 64)).ensemble.metrics
    assert result.history[-1]["validation"]["ensemble"]["nll"] == pytest.approx(found.nll, rel=1e-4)
    last = build()
    swe.train(last, DATA, replace(config, epochs=9), hooks=[EarlyStopping(patience=1, min_delta=1.0)])
    assert not all(torch.equal(one, other) for one, other in zip(ensemble.parameters(), last.parameters()))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, list(DATA.loader("train", 24)), "needs validation"),
        ({"score": "mse"}, DATA, "unknown score 'mse'.* Known.* accuracy, nll"),
        ({"patience": 0}, DATA, "patience must be"),
        ({"min_delta": -1}, DATA, "min_delta must"),
    ],
)
def test_early_stopping_needs_something_to_look_at(options: dict[str, Any], data: Any, message: str) -> None:
    with refused(message):
        swe.train(build(), data, CONFIG, hooks=[EarlyStopping(**{"patience": 1, **options})])


@pytest.mark.parametrize("training", [False, True])
def test_a_hook_that_raises_leaves_the_mode_and_the_checkpoints(training: bool, tmp_path: Path) -> None:
    ensemble = build().train(training)
    with pytest.raises(ZeroDivisionError, match="as asked"):
        swe.train(ensemble, DATA, CONFIG, hooks=[Interrupt(5)], out=tmp_path)
    assert {module.training for module in ensemble.modules()} == {training}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001-step-000000"]
    assert len(swe.train(ensemble, DATA, CONFIG, out=tmp_path, resume=True).history) == 2


class Returns(swe.Hook):
    def __init__(self, method: str, value: Any) -> None:
        setattr(self, method, lambda *given: value)


@pytest.mark.parametrize(
    ("method", "value", "told"),
    [
        ("after_epoch", 3, "after_epoch returns entries by name"),
        ("after_epoch", {"epoch": 99}, "returns 'epoch', which the record has already"),
        ("after_epoch", {"mine": torch.ones(2)}, "'mine' is no plain data"),
        ("scalars", [1.0], r"scalars gives a tensor of numbers \(n,\), or None; got list"),
        ("scalars", torch.ones(()), r"got \(\)"),
    ],
)
def test_what_hooks_return_is_looked_at(method: str, value: Any, told: str) -> None:
    with refused(f"hook 'Returns': {told}|{told}"):
        swe.train(build(), DATA, CONFIG, hooks=[Returns(method, value)])


def test_two_logs_of_one_kind_are_kept(tmp_path: Path) -> None:
    swe.train(build(), DATA, CONFIG, hooks=[CSVLog(tmp_path / "a.csv"), CSVLog(tmp_path / "b.csv")])
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    with refused("a log is written to a path"):
        CSVLog(3)


def test_a_mean_that_has_not_begun_is_told(caplog: pytest.LogCaptureFixture) -> None:
    config = replace(CONFIG, epochs=9)
    swe.train(build(), DATA, config, hooks=[swe.AveragedWeights(start=0.9), EarlyStopping(patience=1, min_delta=1.0)])
    assert "the training ends before its averaged weights begin" in caplog.text


def test_a_bar_shows_the_epochs() -> None:
    seen = io.StringIO()
    bar = ProgressBar(Console(file=seen, force_terminal=True, width=120))
    result = swe.train(build(), DATA, CONFIG, hooks=[bar])
    accuracy = 100 * result.history[-1]["validation"]["ensemble"]["accuracy"]
    assert "training" in seen.getvalue() and "100%" in seen.getvalue()
    assert f"epoch 2: loss {sum(result.history[-1]['train_loss'].values()) / 2:.3f}" in seen.getvalue()
    assert f"validation {accuracy:.1f} %" in seen.getvalue()


def test_a_bar_is_there_by_itself_where_someone_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swe.train(build(), DATA, replace(CONFIG, epochs=1))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ProgressBar, "is_seen", staticmethod(lambda: True))
    swe.train(build(), DATA, replace(CONFIG, epochs=1))
    assert "epoch 1: loss" in capsys.readouterr().err
    swe.train(build(), DATA, replace(CONFIG, epochs=1), callback=lambda progress: None)  # which shows its own
    assert capsys.readouterr().err == ""


def test_logs_hold_the_numbers_of_each_epoch_and_may_come_and_go(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table, events, out = tmp_path / "logs" / "run.csv", tmp_path / "events", tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        swe.train(build(), DATA, CONFIG, out=out, hooks=[Interrupt(5)])
    result = swe.train(build(), DATA, CONFIG, out=out, resume=True, hooks=[CSVLog(table), TensorBoardLog(events)])
    rows = list(csv.DictReader(table.open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]  # also that before the interruption
    for row, record in zip(rows, result.history):
        assert float(row["train_loss/a"]) == record["train_loss"]["a"]
        assert float(row["validation/ensemble/nll"]) == record["validation"]["ensemble"]["nll"]
    found = EventAccumulator(str(events))
    found.Reload()
    assert found.Scalars("train_loss/b")[0].value == pytest.approx(result.history[1]["train_loss"]["b"], rel=1e-6)
    again = swe.train(build(), DATA, CONFIG, out=out, resume=True, hooks=[])
    assert again.history == result.history


def test_tensorboard_is_written_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "tensorboard" or "utils.tensorboard" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    swe.train(build(), DATA, replace(CONFIG, epochs=1), out=tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 1
    assert not (tmp_path / "run" / "tensorboard").exists()
    with refused("TensorBoardLog needs tensorboard: pip install"):
        swe.train(build(), DATA, CONFIG, hooks=[TensorBoardLog(tmp_path / "events")])
    assert not (tmp_path / "events").exists()


class Recorder:
    """Stands in for wandb and mlflow, and notes what is said to it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*given: Any, **named: Any) -> Recorder:
            self.said.append((name, given, named))
            return self

        return note


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_tracking_services_are_told_config_and_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**{
        one: getattr(recorder, one)
        for one in ("init", "start_run", "log_params", "log_metrics", "end_run")
    }))  # fmt: skip
    hook = WandbLog(project="mine") if name == "wandb" else MLflowLog(run_name="mine")
    result = swe.train(build(), DATA, CONFIG, hooks=[hook])
    calls = [call for call, *_ in recorder.said]
    first, last = result.history[0], result.history[-1]
    if name == "wandb":
        assert calls == ["init", "log", "log", "finish"]
        assert recorder.said[0][2]["project"] == "mine" and recorder.said[0][2]["config"]["epochs"] == 2
        told = [(given[0], named["step"]) for _, given, named in recorder.said[1:3]]
    else:
        assert calls == ["start_run", "log_params", "log_metrics", "log_metrics", "end_run"]
        assert recorder.said[0][2] == {"run_name": "mine"} and recorder.said[1][1][0]["epochs"] == 2
        told = [(given[0], named["step"]) for _, given, named in recorder.said[2:4]]
    assert [step for _, step in told] == [1, 2]
    for (numbers, _), record in zip(told, (first, last)):
        assert numbers["train_loss/a"] == record["train_loss"]["a"] and json.dumps(numbers)


def test_a_service_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hook in (("wandb", WandbLog()), ("mlflow", MLflowLog())):
        monkeypatch.setitem(sys.modules, name, None)
        with refused(f"needs {name}: pip install {name}"):
            swe.train(build(), DATA, CONFIG, hooks=[hook])


def test_channels_last_is_left_or_refused_where_torch_corrupts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    data = swe.load_data("synthetic", num_train=32, num_test=16)

    def trained(width: float, channels_last: bool | str) -> swe.TrainResult:
        config = swe.TrainConfig(epochs=1, batch_size=16, device="cpu", channels_last=channels_last)
        return swe.train(swe.SuperWeightEnsemble([swe.wide_resnet(10, width, 4)], budget=0.9), data, config)

    assert not trained(0.25, "auto").channels_last and trained(1, "auto").channels_last
    with refused("channels_last: true: on this CPU torch corrupts memory"):
        trained(0.25, True)


def test_history_of_one_epoch_says_that_nothing_is_taught(caplog: pytest.LogCaptureFixture) -> None:
    data = swe.load_data("synthetic", num_train=32, num_test=16)
    for epochs in (2, 1):
        assert "one epoch is trained without a teacher" not in caplog.text
        ensemble = swe.SuperWeightEnsemble([swe.wide_resnet(10, 1, 4), swe.wide_resnet(16, 1, 4)], budget=0.9)
        config = swe.TrainConfig(epochs=epochs, batch_size=16, device="cpu")
        swe.train(ensemble, data, config, hooks=[swe.Distillation("history", weight=0.5)])
    assert "one epoch is trained without a teacher" in caplog.text
