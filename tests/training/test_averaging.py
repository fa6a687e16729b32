"""The mean of the weights over the last steps: against a plain loop, with norms, resumed, in two processes, refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import Tensor, nn
from torch.nn import functional as F
from training_cases import assert_same, deep_and_wide, refused, stop_training

import superweight_ensembles as swe
from superweight_ensembles.experiment import parse_recipe, train_run
from superweight_ensembles.models.adaptive import make_adaptive
from superweight_ensembles.training import build_fabric

CONFIG = swe.TrainConfig(epochs=3, batch_size=16, learning_rate=0.02, precision="float32", device="cpu")
DATA = swe.load_data("synthetic", num_train=53, num_test=16)  # 48 to train on: 3 batches


class Watch(swe.Hook):
    """Keeps the parameters after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def after_step(self, state: Any, scalars: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in state.ensemble.named_parameters()})


@pytest.mark.parametrize(("start", "decay", "first"), [(0.5, None, 4), (0.0, None, 0), (0.5, 0.7, 4), (0.97, 0.0, 35)])
def test_the_weights_are_the_mean_of_the_last_steps(start: float, decay: float | None, first: int) -> None:
    ensemble, watch = deep_and_wide(), Watch()
    config = dataclasses.replace(CONFIG, epochs=3 if first < 9 else 12)
    hook = swe.AveragedWeights(start=start, decay=decay)
    record = swe.train(ensemble, DATA, config, hooks=[watch, hook]).history[-1]
    kept = watch.seen[first:]
    assert record["averaged_steps"] == len(kept)
    for name, value in ensemble.named_parameters():
        expected = kept[0][name].double()
        for index, one in enumerate(kept[1:], 2):
            share = 1 / index if decay is None else 1 - decay
            expected = expected + share * (one[name].double() - expected)
        torch.testing.assert_close(value.detach(), expected.float(), rtol=1e-5, atol=1e-7)


def test_norms_are_estimated_again_on_the_batches_of_an_epoch() -> None:
    class Plain(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
            self.head = nn.Linear(width, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.norm(self.first(images)).relu().mean((2, 3)))

    torch.manual_seed(0)
    ensemble = swe.SuperWeightEnsemble({"a": Plain(6), "b": Plain(9)}, budget=1.1)
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(3)]
    found = swe.train(ensemble, batches, CONFIG, hooks=[swe.AveragedWeights(start=0.0)], validation=batches[:1])
    for name in "ab":
        member = ensemble.materialize(name)
        maps = [member.first(images).detach() for images, _ in batches]
        mean = torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0)
        variance = torch.stack([one.var((0, 2, 3)) for one in maps]).mean(0)
        torch.testing.assert_close(member.norm.running_mean, mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(member.norm.running_var, variance, rtol=1e-4, atol=1e-6)
        assert member.norm.momentum == 0.1
    images, labels = batches[0]  # the last epoch is validated with the mean
    loss = F.cross_entropy(ensemble.eval()(images)[0].detach(), labels)
    assert found.history[-1]["validation"]["members"]["a"]["nll"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("stop", [(2, 1), (3, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: tuple[int, int], tmp_path: Path) -> None:
    config, whole, resumed = dataclasses.replace(CONFIG, checkpoint_steps=1), deep_and_wide(), deep_and_wide(3)
    swe.train(whole, DATA, config, hooks=[swe.AveragedWeights(start=0.4)])
    stop_training(deep_and_wide(), DATA, config, *stop, hooks=[swe.AveragedWeights(start=0.4)], out=tmp_path)
    with refused(r"made with AveragedWeights.start=0\.4, now 0\.5"):
        swe.train(deep_and_wide(), DATA, config, hooks=[swe.AveragedWeights(start=0.5)], out=tmp_path, resume=True)
    swe.train(resumed, DATA, config, hooks=[swe.AveragedWeights(start=0.4)], out=tmp_path, resume=True)
    assert_same(whole, resumed)


def averaged(rows: slice) -> dict[str, Tensor]:
    """Parameters and norm statistics after 9 steps in float64, where a reordered sum stays far below the tolerance."""
    batches = [(images[rows].double(), labels[rows]) for images, labels in DATA.loader("train", 16)]
    ensemble = deep_and_wide().double()
    swe.train(ensemble, batches, CONFIG, hooks=[swe.AveragedWeights(start=0.4)])
    return ensemble.state_dict()


def job(rank: int, folder: Path) -> dict:
    build_fabric(CONFIG)
    return averaged(slice(8 * rank, 8 * rank + 8))


def test_two_processes_average_what_one_does(tmp_path: Path) -> None:
    answers, expected = two_processes.run(job, tmp_path), averaged(slice(0, 16))
    for name, value in expected.items():
        torch.testing.assert_close(answers[0][name], value, rtol=1e-9, atol=1e-11, msg=name)
        assert torch.equal(answers[0][name], answers[1][name]), name


def test_shapes_that_change_begin_the_mean_anew() -> None:
    torch.manual_seed(0)
    members = {name: nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 4)) for name in "ab"}
    for member in members.values():
        make_adaptive(member, [("1", "3")], rate=0.2)
    ensemble = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    config = dataclasses.replace(CONFIG, epochs=8, learning_rate=0.3)
    found = swe.train(ensemble, DATA, config, hooks=[swe.AveragedWeights(start=0.0)]).history
    assert len({str(record["widths"]) for record in found}) > 1
    assert 1 <= found[-1]["averaged_steps"] < 24
    assert all(value.isfinite().all() for value in ensemble.state_dict().values())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 1.0}, "the start of averaged weights must be a finite number, at least 0 and below 1; got 1.0"),
        ({"start": -0.1}, "the start of averaged weights"),
        ({"decay": 1}, "the decay of averaged weights must be a finite number, at least 0 and below 1; got 1"),
        ({"decay": True}, "the decay of averaged weights"),
        ({"begin": 0.5}, "unknown option of AveragedWeights 'begin'"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], match: str) -> None:
    with refused(match):
        swe.AveragedWeights(**options)


def test_a_mean_that_begins_after_the_last_step_is_refused() -> None:
    with refused(r"begin after 0\.95 of 9 steps, when none is left: lower start"):
        swe.train(deep_and_wide(), DATA, CONFIG, hooks=[swe.AveragedWeights(start=0.95)])


def test_a_recipe_averages_every_arm(tmp_path: Path) -> None:
    content = {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "num_train": 64, "num_test": 16},
        "members": [{"name": name, "model": "wide_resnet", "depth": 10, "width": 1} for name in "ab"],
        "sharing": {"budget": 0.9},
        "training": {"epochs": 2, "batch_size": 16, "precision": "float32", "device": "cpu"},
        "averaging": {"start": 0.5},
    }
    train_run(parse_recipe(content), tmp_path / "run")
    for arm in ("shared", "independent"):
        log = (tmp_path / "run" / arm / "log.jsonl").read_text().splitlines()
        assert '"averaged_steps"' in log[-1] and '"averaged_steps"' not in log[0]
    with refused(r"averaging\.start must be .*less than 1"):
        parse_recipe({**content, "averaging": {"start": 1.0}})
