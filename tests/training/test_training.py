"""Joint training: gradients, determinism, resumption, parameter groups, schedules, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import superweight_ensembles as swe
from superweight_ensembles.training import (
    JointLoss,
    OwnBatches,
    TrainProgress,
    build_optimizer,
    build_schedule,
    joint_backward,
    parameter_groups,
)

FAST = swe.TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, precision="float32", device="cpu")


def small_ensemble(seed: int = 0, budget: float = 0.9, num_classes: int = 4, **plan: Any) -> swe.SuperWeightEnsemble:
    torch.manual_seed(seed)
    members = {"deep": swe.wide_resnet(16, 1, num_classes), "wide": swe.wide_resnet(10, 2, num_classes)}
    return swe.SuperWeightEnsemble(members, budget=budget, rng=torch.Generator().manual_seed(seed), **plan)


def parameters_of(ensemble: swe.SuperWeightEnsemble) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}


def test_joint_backward_is_the_gradient_of_the_summed_losses() -> None:
    ensemble = small_ensemble().double()
    twin = small_ensemble().double()
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = joint_backward(ensemble, images, labels, F.cross_entropy)
    expected = [F.cross_entropy(logits, labels) for logits in twin(images)]
    sum(expected).backward()
    for name, loss in zip(ensemble.member_names, expected):
        torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-12, atol=0)
    for (name, parameter), other in zip(ensemble.named_parameters(), twin.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_joint_backward_generates_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, calls = small_ensemble(), []
    begin = ensemble.bank.begin
    monkeypatch.setattr(ensemble.bank, "begin", lambda *names: calls.append(names) or begin(*names))
    joint_backward(ensemble, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), F.cross_entropy)
    assert calls == [(("deep", "wide"),)]


def test_training_lowers_the_loss_and_learns_the_synthetic_classes() -> None:
    data = swe.load_data("synthetic")
    ensemble = small_ensemble()
    result = swe.train(ensemble, data, dataclasses.replace(FAST, epochs=6))
    first, last = (sum(result.history[index]["train_loss"].values()) for index in (0, -1))
    assert last < 0.5 * first
    assert result.history[-1]["validation"]["ensemble"]["accuracy"] > 0.8
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4, 5, 6]


def test_same_seed_trains_the_same_ensemble_and_another_seed_another() -> None:
    data = swe.load_data("synthetic")
    trained = []
    for seed in (0, 0, 1):
        ensemble = small_ensemble()
        swe.train(ensemble, data, dataclasses.replace(FAST, seed=seed, epochs=1, crop_padding=1))
        trained.append(parameters_of(ensemble))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not all(torch.equal(trained[0][name], trained[2][name]) for name in trained[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
# A convolution of a member's own has moments in its memory format.
@pytest.mark.parametrize("options", [{}, {"exclude": ["*.stages.1.*"]}], ids=["all shared", "own convolutions"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer: str, schedule: str, options: dict) -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    config = dataclasses.replace(
        FAST, epochs=3, optimizer=optimizer, schedule=schedule, learning_rate=0.01, flip=True,
        milestones=(2,) if schedule == "step" else (),
    )  # fmt: skip
    whole = small_ensemble(**options)
    expected = swe.train(whole, data, config)

    class Interrupted(Exception):
        pass

    def interrupt(progress) -> None:
        if progress.epoch == 3 and progress.step == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        swe.train(small_ensemble(**options), data, config, out=tmp_path, callback=interrupt)
    resumed = small_ensemble(seed=5, **options)  # other start values: everything must come from the checkpoint
    result = swe.train(resumed, data, config, out=tmp_path, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert [r["train_loss"] for r in result.history] == [r["train_loss"] for r in expected.history]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert list((tmp_path / "tensorboard").iterdir())


def test_checkpoint_of_another_plan_is_refused(tmp_path) -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    config = dataclasses.replace(FAST, epochs=1)
    swe.train(small_ensemble(), data, config, out=tmp_path)
    with pytest.raises(swe.SuperWeightError, match="another sharing plan"):
        swe.train(small_ensemble(budget=0.8), data, config, out=tmp_path, resume=True)


def test_trains_on_any_sized_iterable_of_batches() -> None:
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(3)]
    result = swe.train(small_ensemble(), batches, FAST, validation=batches[:1])
    assert 0 <= result.history[-1]["validation"]["members"]["deep"]["accuracy"] <= 1


class Viewing(nn.Module):
    """Flattens feature maps by ``view``, as many tutorials do; channels-last ones cannot be viewed so."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 8 * 8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images).relu()).view(len(images), -1))


def viewing_ensemble() -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble({"a": Viewing(10), "b": swe.wide_resnet(10, 1, 10, in_channels=1)}, budget=0.95)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_members_that_cannot_read_channels_last_are_trained_contiguous(precision: str) -> None:
    result = swe.train(
        viewing_ensemble(), swe.load_data("digits"), swe.TrainConfig(epochs=1, batch_size=400, precision=precision)
    )
    assert result.channels_last is False


def test_channels_last_is_the_choice_on_the_cpu() -> None:
    ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 10, in_channels=1)}, budget=0.95)
    result = swe.train(
        ensemble, swe.load_data("digits"), swe.TrainConfig(epochs=1, batch_size=400, precision="float32")
    )
    assert result.channels_last is True and ensemble.bank.memory_format == torch.channels_last


def test_channels_last_that_a_member_cannot_read_is_an_error_with_the_remedy() -> None:
    with pytest.raises(swe.SuperWeightError, match="set channels_last to false"):
        swe.train(
            viewing_ensemble(), swe.load_data("digits"), swe.TrainConfig(epochs=1, batch_size=400, channels_last=True)
        )


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batches_of_ones_own_are_read_contiguous_where_a_member_needs_it(tmp_path, validated, optimizer) -> None:
    """As told, and where the choice is ``auto``: bit by bit, and after a stop."""
    images = torch.randn(12, 8, 8, 1).permute(0, 3, 1, 2)  # channels-last, as pictures often come
    batches = [(images[rows], torch.arange(4)) for rows in torch.arange(12).split(4)]
    told, found, resumed = (viewing_ensemble_of_seed_3() for _ in range(3))
    validation = batches[:1] if validated else None
    config = dataclasses.replace(FAST, optimizer=optimizer, channels_last=False)
    swe.train(told, batches, config, validation=validation)
    config = dataclasses.replace(config, channels_last="auto")
    assert swe.train(found, batches, config, validation=validation).channels_last is False

    class Stop(Exception):
        pass

    def stop(progress: TrainProgress) -> None:
        if progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop, match=r"^$"):
        swe.train(viewing_ensemble_of_seed_3(), batches, config, validation=validation, out=tmp_path, callback=stop)
    swe.train(resumed, batches, config, validation=validation, out=tmp_path, resume=True)
    for name, value in told.state_dict().items():
        assert torch.equal(found.state_dict()[name], value) and torch.equal(resumed.state_dict()[name], value)


def viewing_ensemble_of_seed_3() -> swe.SuperWeightEnsemble:
    torch.manual_seed(3)
    return viewing_ensemble()


def test_bfloat16_channels_last_trains() -> None:
    data = swe.load_data("synthetic")
    config = dataclasses.replace(FAST, epochs=6, precision="bfloat16", channels_last=True)
    ensemble = small_ensemble()
    result = swe.train(ensemble, data, config)
    assert (result.precision, result.channels_last) == ("bfloat16", True)
    assert result.history[-1]["validation"]["ensemble"]["accuracy"] > 0.8
    assert {parameter.dtype for parameter in ensemble.parameters()} == {torch.float32}


def test_number_of_threads_is_set_for_the_run_alone() -> None:
    before, seen = torch.get_num_threads(), []
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,)))]
    config = dataclasses.replace(FAST, epochs=1, num_threads=before + 1)
    swe.train(small_ensemble(), batches, config, callback=lambda progress: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_no_decay_on_coefficients_norms_and_biases() -> None:
    ensemble = small_ensemble()
    decayed, plain = parameter_groups(ensemble, 5e-4)
    names = {id(parameter): name for name, parameter in ensemble.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0.0)
    assert decayed_names == {name for name in names.values() if "templates" in name or name.endswith("fc.weight")}
    assert plain_names == set(names.values()) - decayed_names


def test_decay_on_flat_banks_and_none_on_what_reads_them() -> None:
    options = swe.plan.SsnOptions(upsample="mask")
    members = {"a": swe.wide_resnet(10, 1, 4)}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.2, generator="ssn", clusters="one", ssn=options)
    decayed, plain = ({id(parameter) for parameter in group["params"]} for group in parameter_groups(ensemble, 5e-4))
    assert {id(parameter) for parameter in ensemble.bank.templates.parameters()} <= decayed
    assert {id(parameter) for parameter in ensemble.bank.coefficients.parameters()} <= plain


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
    optimizer = build_optimizer(small_ensemble(), config)
    steps = build_schedule(optimizer, config, steps_per_epoch=2)
    rates = []
    for _ in range(8):
        rates.append(steps.get_last_lr()[0])
        optimizer.step()
        steps.step()
    assert rates == pytest.approx(expected)


def test_one_cycle_rises_to_the_learning_rate_and_falls() -> None:
    config = swe.TrainConfig(epochs=5, learning_rate=0.4, schedule="one_cycle")
    optimizer = build_optimizer(small_ensemble(), config)
    steps, rates = build_schedule(optimizer, config, steps_per_epoch=4), []
    for _ in range(20):
        rates.append(steps.get_last_lr()[0])
        optimizer.step()
        steps.step()
    assert max(rates) == pytest.approx(0.4, rel=0.05)
    assert rates[0] < 0.05 and rates[-1] < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"epochs must be at least 1 \(got 0\)"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"precision": "float8"}, "unknown precision 'float8': did you mean 'float32'"),
        ({"device": "cdua"}, "unknown device 'cdua': did you mean 'cuda'"),
        ({"schedule": "step"}, "schedule 'step' needs milestones"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"label_smoothing": 2.0}, "label_smoothing must be at most 1"),
        ({"epochs": "3"}, r"epochs must be a whole number \(got '3'\)"),
        ({"epochs": 1.5}, r"epochs must be a whole number \(got 1\.5\)"),
        ({"learning_rate": "fast"}, r"learning_rate must be a number \(got 'fast'\)"),
        ({"momentum": 3.0}, r"momentum must be less than 1 \(got 3\.0\)"),
        ({"gamma": math.nan, "schedule": "step", "milestones": (2,)}, "gamma must be a finite number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"schedule": "step", "milestones": (99,)}, r"milestones must be epochs from 1 to 30; got \[99\]"),
        ({"milestones": (2,)}, "milestones does nothing with schedule 'cosine'"),
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum does nothing with optimizer 'adamw'"),
        ({"channels_last": "yes"}, "channels_last must be true or false or 'auto'"),
    ],
)
def test_config_errors(change: dict, message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.TrainConfig(**change)


def test_training_errors() -> None:
    data = swe.load_data("synthetic", num_train=40, num_test=8)
    with pytest.raises(swe.SuperWeightError, match="36 training images, fewer than batch_size 64"):
        swe.train(small_ensemble(), data, dataclasses.replace(FAST, batch_size=64))
    with pytest.raises(swe.SuperWeightError, match="resume=True needs out="):
        swe.train(small_ensemble(), data, FAST, resume=True)
    with pytest.raises(swe.SuperWeightError, match="sized iterable of at least one batch"):
        swe.train(small_ensemble(), [], FAST)
    with pytest.raises(swe.SuperWeightError, match=r"step \d of epoch 1: .*lower learning_rate"):
        swe.train(small_ensemble(), data, dataclasses.replace(FAST, batch_size=8, learning_rate=1e12))
    if not torch.cuda.is_available():
        with pytest.raises(swe.SuperWeightError, match="'cuda' is not available"):
            swe.train(small_ensemble(), data, dataclasses.replace(FAST, device="cuda"))


def test_members_that_recompute_activations_train() -> None:
    torch.manual_seed(0)
    member = swe.build_member("timm/convnext_atto", num_classes=3)
    plain = swe.SuperWeightEnsemble({"a": member}, budget=1.2, rng=torch.Generator().manual_seed(0))
    member.set_grad_checkpointing(True)
    recomputing = swe.SuperWeightEnsemble({"a": member}, budget=1.2, rng=torch.Generator().manual_seed(0))
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    for ensemble in (plain, recomputing):
        joint_backward(ensemble, images, labels, F.cross_entropy)
    for (name, parameter), other in zip(plain.named_parameters(), recomputing.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_is_resumed_with_its_own_config_or_refused(tmp_path) -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    swe.train(small_ensemble(), data, FAST, out=tmp_path)
    with pytest.raises(swe.SuperWeightError, match="holds a run already: resume=True goes on"):
        swe.train(small_ensemble(), data, FAST, out=tmp_path)
    with pytest.raises(swe.SuperWeightError, match=r"was made with epochs=2, now 5: resume with the config"):
        swe.train(small_ensemble(), data, dataclasses.replace(FAST, epochs=5), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": 1}, "one mapping needs inputs and 'labels'; got images"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2)), "yields a tuple of 3"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0])), r"integer type, one an image; got torch\.float32"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([[0, 1], [1, 0]])), r"got torch\.int64 \(2, 2\)"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 2])), r"\(3,\) for images \(2, 3, 8, 8\)"),
    ],
)
def test_batches_of_another_kind_are_refused(batch, message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.train(small_ensemble(), [batch], FAST)
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.evaluate(small_ensemble(), [batch])


def test_what_cannot_be_trained_is_refused() -> None:
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    with pytest.raises(swe.SuperWeightError, match=r"train\(\) takes a SuperWeightEnsemble; got WideResNet"):
        swe.train(swe.wide_resnet(10, 1, 4), batches, FAST)
    with pytest.raises(swe.SuperWeightError, match="training data must be ImageData"):
        swe.train(small_ensemble(), "digits", FAST)
    with pytest.raises(swe.SuperWeightError, match="let your own loader augment"):
        swe.train(small_ensemble(), batches, dataclasses.replace(FAST, flip=True))
    with pytest.raises(swe.SuperWeightError, match="every parameter is frozen"):
        swe.train(small_ensemble().requires_grad_(False), batches, FAST)
    with pytest.raises(swe.SuperWeightError, match="validation: no batch with rows that count was read"):
        swe.train(small_ensemble(), batches, FAST, validation=[])
    with pytest.raises(swe.SuperWeightError, match="validation is read every epoch, and a list_iterator can be read"):
        swe.train(small_ensemble(), batches, FAST, validation=iter(batches))
    wider = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 9), torch.nn.Linear(9, 7), torch.nn.Identity())
    mixed = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 4), "b": wider}, budget=1.2)
    with pytest.raises(swe.SuperWeightError, match=r"same batch and classes; got a: \(4, 4\), b: \(4, 7\)"):
        swe.train(mixed, batches, FAST)


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    drawn = []
    for trained in (False, True):
        torch.manual_seed(3)
        ensemble = small_ensemble()
        torch.manual_seed(3)
        if trained:
            swe.train(ensemble, swe.load_data("synthetic", num_train=96), dataclasses.replace(FAST, epochs=1))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_each_member_can_have_a_batch_of_its_own() -> None:
    ensemble = small_ensemble()
    images = OwnBatches({name: torch.randn(4, 3, 8, 8) for name in ensemble.member_names})
    rolled = {name: torch.tensor([0, 1, 2, 3]).roll(index) for index, name in enumerate(ensemble.member_names)}
    labels = OwnBatches(rolled)
    joint_backward(ensemble, images, labels, F.cross_entropy)
    found = {name: parameter.grad.clone() for name, parameter in ensemble.named_parameters()}
    ensemble.zero_grad()
    for name in ensemble.member_names:
        joint_backward(ensemble, images[name], labels[name], F.cross_entropy, members=[name])
    for name, parameter in ensemble.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_the_ensemble_loss_is_one_more_term() -> None:
    ensemble = small_ensemble()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    losses = joint_backward(ensemble, images, labels, JointLoss(loss_function=F.cross_entropy, ensemble_weight=0.7))
    found = {name: parameter.grad.clone() for name, parameter in ensemble.named_parameters()}
    ensemble.zero_grad()
    logits = ensemble(images)
    own = [F.cross_entropy(member, labels) for member in logits]
    (sum(own) - 0.7 * logits.softmax(2).mean(0)[range(4), labels].log().mean()).backward()
    torch.testing.assert_close(list(losses.values()), [loss.detach() for loss in own])
    for name, parameter in ensemble.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_own_batches_hold_every_image_once_an_epoch_in_different_orders() -> None:
    data = swe.load_data("synthetic", num_train=64, validation_fraction=0.0)
    members = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(10, 1, 4)}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
    seen: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    names = {id(member): name for name, member in ensemble.members.items()}

    def objective(member: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen[names[id(member)]].append(images.flatten(1).sum(1))
        return F.cross_entropy(member(images), labels)

    config = swe.TrainConfig(epochs=1, batch_size=16, member_batches="own", precision="float32")
    swe.train(ensemble, data, config, objective=objective)
    first, second = (torch.cat(seen[name]) for name in ("a", "b"))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort().values, second.sort().values)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"member_batches": "owm"}, "unknown member_batches 'owm': did you mean 'own'"),
        ({"member_batches": "own", "ensemble_loss": 1.0}, "member_batches must be 'same'"),
        ({"ensemble_loss": -1.0}, "ensemble_loss must be at least 0"),
    ],
)
def test_settings_of_member_batches(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=match):
        swe.TrainConfig(**changes)


def test_objectives_and_batches_that_do_not_go_together() -> None:
    ensemble = small_ensemble()
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]

    def objective(member: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(member(images), labels)

    with pytest.raises(swe.SuperWeightError, match="needs ImageData"):
        swe.train(ensemble, batches, swe.TrainConfig(member_batches="own"))
    with pytest.raises(swe.SuperWeightError, match="let the objective smooth the labels"):
        swe.train(ensemble, batches, swe.TrainConfig(label_smoothing=0.1), objective=objective)
    with pytest.raises(swe.SuperWeightError, match="cannot go with an objective"):
        swe.train(ensemble, batches, swe.TrainConfig(ensemble_loss=1.0), objective=objective)
    with pytest.raises(swe.SuperWeightError, match="unknown member 'widee'"):
        swe.train(ensemble, batches, swe.TrainConfig(), members=["widee"])
