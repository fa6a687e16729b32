"""A user's own hooks: when they are called, what they add, how they are resumed, what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import assert_same, deep_and_wide, refused, stop_training

import superweight_ensembles as swe
from superweight_ensembles.training import LearnedWidths, TrainState

CONFIG = swe.TrainConfig(
    epochs=2, batch_size=16, learning_rate=0.05, precision="float32", device="cpu", checkpoint_steps=1
)


def data() -> Any:
    return swe.load_data("synthetic", num_train=64, num_test=16)


class Recorder(swe.Hook):
    """Notes every call."""

    def __init__(self, name: str = "recorder") -> None:
        self.calls: list[Any] = []
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def start(self, state: TrainState) -> None:
        self.calls.append(("start", state.epoch))

    def end(self, state: TrainState) -> None:
        self.calls.append("end")

    def scalars(self, state: TrainState) -> Tensor:
        return torch.tensor([state.progress.step, 7], dtype=torch.float32)

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        self.calls.append(("step", state.epoch, state.progress.step, list(scalars), state.num_rows))

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        self.calls.append(("epoch", state.epoch, state.fraction_done))
        return {f"{self._name} was here": state.epoch}


class MovingAverage(swe.Hook):
    """An average of the parameters that the next steps are drawn to: it changes the training, and remembers tensors."""

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength
        self.average: dict[str, Tensor] = {}
        self.steps = 0

    def settings(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        with torch.no_grad():
            for name, value in state.ensemble.named_parameters():
                mean = self.average.setdefault(name, value.detach().clone()).lerp_(value, 0.3)
                value.lerp_(mean, self.strength)
        self.steps += 1

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        return {"averaged": self.steps}

    def state_dict(self) -> Mapping[str, Any]:
        return {"steps": self.steps, **self.average}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        self.steps = content["steps"]
        self.average = {name: value for name, value in content.items() if name != "steps"}


class SquaredHeads(swe.Hook):
    """A penalty of members' own parameters."""

    def penalty(self, state: TrainState) -> Any:
        return lambda member: sum(value.square().sum() for value in member.fc.parameters())


def test_calls_in_their_order() -> None:
    hook, other = Recorder(), Recorder("other")
    history = swe.train(deep_and_wide(), data(), CONFIG, hooks=[hook, other]).history
    steps = {epoch: [("step", epoch, step, [step, 7.0], 16) for step in range(3)] for epoch in (1, 2)}
    assert hook.calls == [
        ("start", 1), *steps[1], ("epoch", 1, 0.5), *steps[2], ("epoch", 2, 1.0), "end",
    ]  # fmt: skip
    assert other.calls == hook.calls
    assert [(r["recorder was here"], r["other was here"]) for r in history] == [(1, 1), (2, 2)]


def test_a_hook_that_does_nothing_changes_nothing() -> None:
    found = [deep_and_wide(), deep_and_wide()]
    for one, hooks in zip(found, ([], [swe.Hook(), Recorder()])):
        swe.train(one, data(), CONFIG, hooks=hooks)
    assert_same(*found)


@pytest.mark.parametrize("stop", [(1, 2), (2, 1)])
def test_a_training_with_a_hook_is_resumed_bit_by_bit(tmp_path: Path, stop: tuple[int, int]) -> None:
    whole, plain, resumed, hook = deep_and_wide(), deep_and_wide(), deep_and_wide(3), MovingAverage()
    history = swe.train(whole, data(), CONFIG, hooks=[MovingAverage()]).history
    swe.train(plain, data(), CONFIG)
    assert not torch.equal(whole.state_dict()["members.deep.fc.weight"], plain.state_dict()["members.deep.fc.weight"])
    stop_training(deep_and_wide(), data(), CONFIG, *stop, hooks=[MovingAverage()], out=tmp_path)
    result = swe.train(resumed, data(), CONFIG, hooks=[hook], out=tmp_path, resume=True)
    assert_same(whole, resumed)
    assert [record["averaged"] for record in result.history] == [record["averaged"] for record in history] == [3, 6]
    assert hook.steps == 6


def test_a_training_is_resumed_with_its_hooks_or_refused(tmp_path: Path) -> None:
    swe.train(deep_and_wide(), data(), CONFIG, hooks=[MovingAverage()], out=tmp_path)
    for hooks, match in (
        ([], r"was made with hooks=\['MovingAverage', 'LearnedWidths'\], now \['LearnedWidths'\]"),
        ([MovingAverage(0.2)], r"was made with MovingAverage.strength=0\.1, now 0\.2: resume with the config"),
        ([MovingAverage(), Recorder()], "was made with hooks="),
    ):
        with refused(match):
            swe.train(deep_and_wide(), data(), CONFIG, hooks=hooks, out=tmp_path, resume=True)


def test_penalties_are_added_to_each_members_loss() -> None:
    config = swe.TrainConfig(epochs=1, batch_size=58, learning_rate=1e-9, precision="float32", device="cpu")
    made = deep_and_wide()
    heads = {
        name: sum(p.double().square().sum() for p in member.fc.parameters()) for name, member in made.members.items()
    }
    plain = swe.train(deep_and_wide(), data(), config).history[0]["train_loss"]
    twice = type("Twice", (SquaredHeads,), {})
    found = swe.train(made, data(), config, hooks=[SquaredHeads(), twice()]).history[0]["train_loss"]
    for name, loss in plain.items():
        assert found[name] == pytest.approx(loss + 2 * heads[name].item(), rel=1e-5)


def test_the_end_is_called_where_a_training_fails() -> None:
    hook = Recorder()
    with refused("not finite"):
        swe.train(deep_and_wide(), [(torch.full((4, 3, 8, 8), torch.nan), torch.arange(4))], CONFIG, hooks=[hook])
    assert hook.calls[-1] == "end" and not [call for call in hook.calls if call[0] == "step"]


@pytest.mark.parametrize(
    ("hooks", "match"),
    [
        ([Recorder], "takes objects of subclasses of swe.Hook; got Recorder"),
        ([lambda state: None], "takes objects of subclasses of swe.Hook; got function"),
        (Recorder(), "hooks= takes a list of hooks; got Recorder"),
        ([Recorder(), Recorder()], "two hooks are named 'recorder': give each a name of its own"),
        ([Recorder("my.recorder")], r"hook 'my\.recorder': a name must have no dot"),
        ([LearnedWidths(), LearnedWidths()], "two hooks are named 'LearnedWidths'"),
        ([swe.Distillation("ensemble", weight=0.5), swe.Distillation("ensemble", weight=0.1)], "two hooks are named"),
    ],
)
def test_what_is_no_hook_is_refused(hooks: Any, match: str) -> None:
    with refused(match):
        swe.train(deep_and_wide(), data(), CONFIG, hooks=hooks)


class OneTensorTwice(swe.Hook):
    """Hands out two names, and a view, of one tensor of the ensemble."""

    def start(self, state: TrainState) -> None:
        self.held = next(state.ensemble.parameters())

    def state_dict(self) -> Mapping[str, Any]:
        return {"one": self.held, "same": self.held, "part": self.held[:1]}


def test_tensors_that_share_memory_are_remembered(tmp_path: Path) -> None:
    swe.train(deep_and_wide(), data(), CONFIG, hooks=[OneTensorTwice()], out=tmp_path)
    assert swe.train(deep_and_wide(), data(), CONFIG, hooks=[OneTensorTwice()], out=tmp_path, resume=True).history


class Counting(swe.Hook):
    """Counts how often its settings are asked for: a teacher's are a checksum of all its numbers."""

    asked = 0

    def settings(self) -> dict[str, Any]:
        self.asked += 1
        return {}


def test_settings_are_asked_for_once(tmp_path: Path) -> None:
    hook = Counting()
    swe.train(deep_and_wide(), data(), CONFIG, hooks=[hook], out=tmp_path)
    assert hook.asked == 1


class SetTo(swe.Hook):
    """Has settings that no file holds."""

    def settings(self) -> dict[str, Any]:
        return {"given": torch.zeros(1)}


def test_settings_that_cannot_be_kept_are_told() -> None:
    with refused("hook 'SetTo': 'given' is no plain data"):
        swe.train(deep_and_wide(), data(), CONFIG, hooks=[SetTo()])
