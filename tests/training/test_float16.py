"""Training in float16: the scale of the losses, gradients that overflow, and what a checkpoint keeps."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from training_cases import assert_same, refused, stop_training
from two_processes import run

import superweight_ensembles as swe
from superweight_ensembles.models.adaptive import make_adaptive
from superweight_ensembles.plan import independent_plan
from superweight_ensembles.training import Hook, build_fabric
from superweight_ensembles.training.device import LossScale, precision_of, scaler_of

HALF = swe.TrainConfig(
    epochs=3, batch_size=16, precision="float16", device="cpu", learning_rate=0.05, channels_last=False
)
STEPS = 5


class Amplifying(nn.Module):
    """The gradient that comes to its features is multiplied, in float16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)
        self.factor = factor

    def forward(self, images):
        features = self.inner(self.conv(images).mean((2, 3)))
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient * self.factor)
        return self.head(features)


class Scales(Hook):
    """Notes the scale at each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def penalty(self, state):
        self.seen.append(scaler_of(state.fabric).get_scale())


def ensemble(factor: float = 1.0) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    return swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 4), "b": Amplifying(factor)}, budget=1.0)


def data() -> swe.data.ImageData:
    return swe.load_data("synthetic", num_train=96, num_test=16)


def test_it_trains_as_float32_does() -> None:
    half, full = ensemble(), ensemble()
    found = swe.train(half, data(), HALF)
    expected = swe.train(full, data(), dataclasses.replace(HALF, precision="float32"))
    assert (found.precision, expected.precision) == ("float16", "float32")
    for one, other in zip(found.history, expected.history):
        assert one["skipped_steps"] == 0
        for name, loss in other["train_loss"].items():
            assert one["train_loss"][name] == pytest.approx(loss, rel=0.05)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


def test_gradients_that_overflow_are_left_out_and_the_scale_falls(recwarn) -> None:
    """No step counts as skipped, and none is taken, until the scale is low enough."""
    found, before, scales = ensemble(2.0**6), ensemble(2.0**6), Scales()
    one_epoch = dataclasses.replace(HALF, epochs=1, schedule="constant", batch_size=48)
    result = swe.train(found, data(), one_epoch, hooks=[scales])
    assert scales.seen == [2.0**16] and result.history[0]["skipped_steps"] == 0
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), before.parameters()))
    scales = Scales()
    swe.train(found, data(), HALF, hooks=[scales])
    assert scales.seen[0] == 2.0**16 > scales.seen[-1] == min(scales.seen) > 1
    assert not any(torch.equal(one, other) for one, other in zip(found.parameters(), before.parameters()))
    assert not [one for one in recwarn if "lr_scheduler" in str(one.message)]


@pytest.mark.parametrize("allowed", [0, 2])
def test_at_the_lowest_scale_an_overflow_is_a_step_that_is_not_finite(allowed: int) -> None:
    scales = Scales()
    config = dataclasses.replace(HALF, epochs=9, skip_non_finite=allowed)
    with refused(r"gradient of b\.\w+\.\w+, .* is not finite; lower learning_rate"):
        swe.train(ensemble(float("inf")), data(), config, hooks=[scales])
    assert scales.seen.count(1.0) >= 1 and scales.seen[: 16 + 1] == [2.0**power for power in range(16, -1, -1)]


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale() -> None:
    bad = [(torch.full((4, 3, 8, 8), float("nan")), torch.arange(4))]
    with refused("step 1 of epoch 1: the loss of member 'a' is nan"):
        swe.train(ensemble(), bad, HALF)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batches": 2},
        {"ensemble_loss": 0.5, "optimizer": "adamw"},
        {"schedule": "one_cycle", "recompute": True, "skip_non_finite": 1},
    ],
    ids=str,
)
def test_a_resumed_training_ends_the_same_bit_by_bit(tmp_path, changes: dict) -> None:
    """Stopped while the scale falls."""
    config = dataclasses.replace(HALF, learning_rate=0.01, **changes)
    whole, resumed, scales = ensemble(2.0**6), ensemble(2.0**6), Scales()
    swe.train(whole, data(), config, hooks=[scales])

    saving, resumed_scales = dataclasses.replace(config, checkpoint_steps=1), Scales()
    stop_training(ensemble(2.0**6), data(), saving, 2, 2, out=tmp_path, hooks=[Scales()])
    swe.train(resumed, data(), saving, out=tmp_path, resume=True, hooks=[resumed_scales])
    assert resumed_scales.seen == scales.seen[-len(resumed_scales.seen) :] and len(resumed_scales.seen) == 3 * STEPS - 6
    assert_same(resumed, whole)


def test_a_checkpoint_of_no_scale_is_refused(tmp_path) -> None:
    swe.train(ensemble(), data(), dataclasses.replace(HALF, epochs=1), out=tmp_path)
    path = next((tmp_path / "checkpoints").glob("*")) / "state.json"
    assert json.loads(path.read_text())["hooks"]["LossScale"] == {"scale": 2.0**16, "growth_tracker": STEPS}
    hook = LossScale(torch.amp.GradScaler("cpu"))
    for content in ({"scale": 0, "growth_tracker": 0}, {"scale": 1.0, "growth_tracker": -1}):
        with refused("a loss scale of .* is out of range"):
            hook.load_state_dict(content)


def test_widths_are_learned() -> None:
    torch.manual_seed(0)
    member = make_adaptive(nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 4)), [("1", "3")])
    found = swe.SuperWeightEnsemble({"a": member}, plan=independent_plan({"a": member}))
    result = swe.train(found, data(), HALF)
    assert result.history[-1]["train_loss"]["a"] < result.history[0]["train_loss"]["a"]


def test_members_of_sixteen_bits_are_refused() -> None:
    with refused(r"trains members of float32: call ensemble\.float\(\)"):
        swe.train(ensemble().half(), data(), HALF)


def test_auto_never_is_float16_nor_an_emulation(monkeypatch) -> None:
    for emulated, expected in ((True, "float32"), (False, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, e=emulated: including_emulation or not e
        )
        assert precision_of(swe.TrainConfig(device="cuda")) == expected


def job(rank, folder):
    config = dataclasses.replace(HALF, epochs=2)
    build_fabric(config)
    found, scales = ensemble(2.0**6), Scales()
    result = swe.train(found, data(), config, hooks=[scales])
    return {"scales": scales.seen, "state": dict(found.state_dict()), "loss": result.history[-1]["train_loss"]["a"]}


def test_several_processes_have_one_scale(tmp_path) -> None:
    first, second = run(job, tmp_path)
    assert first["scales"] == second["scales"] and first["scales"][-1] < 2.0**16
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    alone = swe.train(ensemble(2.0**6), data(), dataclasses.replace(HALF, epochs=2))
    assert first["loss"] == pytest.approx(alone.history[-1]["train_loss"]["a"], rel=0.1)
