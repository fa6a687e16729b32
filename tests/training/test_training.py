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
from training_cases import Viewing, assert_same, deep_and_wide, gradients_of, refused, stop_training

import superweight_ensembles as swe
from superweight_ensembles.training import JointLoss, joint_backward, parameter_groups

FAST = swe.TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, precision="float32", device="cpu")


def test_joint_backward_is_the_gradient_of_the_summed_losses() -> None:
    ensemble = deep_and_wide().double()
    twin = deep_and_wide().double()
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = joint_backward(ensemble, images, labels, F.cross_entropy)
    expected = [F.cross_entropy(logits, labels) for logits in twin(images)]
    sum(expected).backward()
    for name, loss in zip(ensemble.member_names, expected):
        torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients_of(ensemble), gradients_of(twin), rtol=1e-9, atol=1e-12)


def test_joint_backward_generates_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, calls = deep_and_wide(), []
    begin = ensemble.bank.begin
    monkeypatch.setattr(ensemble.bank, "begin", lambda *names: calls.append(names) or begin(*names))
    joint_backward(ensemble, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), F.cross_entropy)
    assert calls == [(("deep", "wide"),)]


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16", "channels_last": True}], ids=["float32", "bfloat16"])
def test_training_lowers_the_loss_and_learns_the_synthetic_classes(changes: dict[str, Any]) -> None:
    ensemble = deep_and_wide()
    result = swe.train(ensemble, swe.load_data("synthetic"), dataclasses.replace(FAST, epochs=6, **changes))
    first, last = (sum(result.history[index]["train_loss"].values()) for index in (0, -1))
    assert last < 0.5 * first
    assert result.history[-1]["validation"]["ensemble"]["accuracy"] > 0.8
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert {parameter.dtype for parameter in ensemble.parameters()} == {torch.float32}
    if changes:
        assert (result.precision, result.channels_last) == ("bfloat16", True)


def test_same_seed_trains_the_same_ensemble_and_another_seed_another() -> None:
    data = swe.load_data("synthetic")
    trained = []
    for seed in (0, 0, 1):
        ensemble = deep_and_wide()
        swe.train(ensemble, data, dataclasses.replace(FAST, seed=seed, epochs=1, crop_padding=1))
        trained.append(ensemble.state_dict())
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
    whole = deep_and_wide(**options)
    resumed = deep_and_wide(seed=5, **options)  # other start values: everything must come from the checkpoint
    expected = swe.train(whole, data, config)
    stop_training(deep_and_wide(**options), data, config, 3, 1, out=tmp_path)
    result = swe.train(resumed, data, config, out=tmp_path, resume=True)
    assert_same(whole, resumed)
    assert [r["train_loss"] for r in result.history] == [r["train_loss"] for r in expected.history]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert list((tmp_path / "tensorboard").iterdir())


def viewing_ensemble(seed: int = 0) -> swe.SuperWeightEnsemble:
    torch.manual_seed(seed)
    return swe.SuperWeightEnsemble({"a": Viewing(1, 10), "b": swe.wide_resnet(10, 1, 10, in_channels=1)}, budget=0.95)


ONE_EPOCH = swe.TrainConfig(epochs=1, batch_size=400, precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_members_that_cannot_read_channels_last_are_trained_contiguous(precision: str) -> None:
    config = dataclasses.replace(ONE_EPOCH, precision=precision)
    assert swe.train(viewing_ensemble(), swe.load_data("digits"), config).channels_last is False


def test_channels_last_is_the_choice_on_the_cpu() -> None:
    ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 10, in_channels=1)}, budget=0.95)
    assert swe.train(ensemble, swe.load_data("digits"), ONE_EPOCH).channels_last is True
    assert ensemble.bank.memory_format == torch.channels_last


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batches_of_ones_own_are_read_contiguous_where_a_member_needs_it(tmp_path, validated, optimizer) -> None:
    """As told, and where the choice is ``auto``: bit by bit, and after a stop."""
    images = torch.randn(12, 8, 8, 1).permute(0, 3, 1, 2)  # channels-last, as pictures often come
    batches = [(images[rows], torch.arange(4)) for rows in torch.arange(12).split(4)]
    told, found, resumed = (viewing_ensemble(3) for _ in range(3))
    options = {"validation": batches[:1] if validated else None}
    config = dataclasses.replace(FAST, optimizer=optimizer, channels_last=False)
    swe.train(told, batches, config, **options)
    config = dataclasses.replace(config, channels_last="auto")
    assert swe.train(found, batches, config, **options).channels_last is False
    stop_training(viewing_ensemble(3), batches, config, 2, 1, out=tmp_path, **options)
    swe.train(resumed, batches, config, out=tmp_path, resume=True, **options)
    assert_same(told, found)
    assert_same(told, resumed)


def test_number_of_threads_is_set_for_the_run_alone() -> None:
    before, seen = torch.get_num_threads(), []
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,)))]
    config = dataclasses.replace(FAST, epochs=1, num_threads=before + 1)
    swe.train(deep_and_wide(), batches, config, callback=lambda progress: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_no_decay_on_coefficients_norms_and_biases() -> None:
    ensemble = deep_and_wide()
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
        ({"micro_batches": 0}, "micro_batches must be at least 1 or 'auto' .got 0"),
        ({"micro_batches": "some"}, r"micro_batches must be .* \(got 'some'\)"),
        ({"micro_batches": True}, r"micro_batches must be .* \(got True\)"),
        ({"micro_batches": 10**12}, "micro_batches must be at most"),
        ({"num_threads": 10**9}, r"num_threads must be at most 4096 \(got 1000000000\)"),
        ({"num_workers": 5000}, r"num_workers must be at most 4096 \(got 5000\)"),
        ({"batch_size": 10**12}, "batch_size must be at most"),
        ({"skip_non_finite": -1}, "skip_non_finite must be at least 0"),
        ({"checkpoint_steps": -1}, "checkpoint_steps must be at least 0"),
        ({"sync_batch_norm": 1}, "sync_batch_norm must be true or false"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0"),
        ({"recompute": "yes"}, r"recompute must be true or false \(got 'yes'\)"),
        ({"compile": 1}, r"compile must be true or false \(got 1\)"),
        ({"compile": True, "recompute": True}, "compile and recompute do not go together"),
        ({"member_batches": "owm"}, "unknown member_batches 'owm': did you mean 'own'"),
        ({"member_batches": "own", "ensemble_loss": 1.0}, "set member_batches to 'same'"),
        ({"ensemble_loss": -1.0}, "ensemble_loss must be at least 0"),
        *(
            ({"mesh": mesh}, "mesh must be 'rows' or 'auto', or numbers of processes")
            for mesh in ({"members": 0, "rows": 1}, {"members": 2}, {"members": True, "rows": 1}, "members", 2, None)
        ),
    ],
    ids=str,
)
def test_config_errors(change: dict, message: str) -> None:
    with refused(message):
        swe.TrainConfig(**change)


BATCHES = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
FEW = swe.load_data("synthetic", num_train=40, num_test=8)


def own_loss(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(member(images), labels)


def of_unlike_classes() -> swe.SuperWeightEnsemble:
    wider = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Linear(9, 7), nn.Identity())
    return swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 4), "b": wider}, budget=1.2)


# What is given instead of a small ensemble, one batch of four images and FAST, whose settings a dictionary changes.
REFUSED: list[Any] = [
    ({"data": FEW, "config": {"batch_size": 64}}, "36 training images, fewer than batch_size 64"),
    ({"data": FEW, "resume": True}, "resume=True needs out="),
    ({"data": []}, "sized iterable of at least one batch"),
    ({"data": FEW, "config": {"batch_size": 8, "learning_rate": 1e12}}, r"step \d of epoch 1: .*lower learning_rate"),
    pytest.param(
        {"data": FEW, "config": {"device": "cuda"}}, "'cuda' is not available",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
    ),
    (
        {"ensemble": viewing_ensemble(), "data": swe.load_data("digits"), "config": {"channels_last": True}},
        "set channels_last to false",
    ),
    ({"ensemble": swe.wide_resnet(10, 1, 4)}, r"train\(\) takes a SuperWeightEnsemble; got WideResNet"),
    ({"data": "digits"}, "training data must be ImageData"),
    ({"config": {"flip": True}}, "let your own loader augment"),
    ({"ensemble": deep_and_wide().requires_grad_(False)}, "every parameter is frozen"),
    ({"validation": []}, "validation: no batch with rows that count was read"),
    ({"validation": iter(BATCHES)}, "validation is read every epoch, and a list_iterator can be read"),
    ({"ensemble": of_unlike_classes()}, r"same batch and classes; got a: \(4, 4\), b: \(4, 7\)"),
    ({"config": {"member_batches": "own"}}, "needs ImageData"),
    ({"config": {"label_smoothing": 0.1}, "objective": own_loss}, "let the objective smooth the labels"),
    ({"config": {"ensemble_loss": 1.0}, "objective": own_loss}, "cannot go with an objective"),
    ({"members": ["widee"]}, "unknown member 'widee'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_cannot_be_trained_is_refused(given: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(FAST, **given.get("config", {}))
    with refused(message):
        swe.train(**{"ensemble": deep_and_wide(), "data": BATCHES, **given, "config": config})


def test_a_run_is_resumed_with_its_own_config_and_plan_or_refused(tmp_path) -> None:
    swe.train(deep_and_wide(), FEW, FAST, out=tmp_path)
    longer = dataclasses.replace(FAST, epochs=5)
    for ensemble, config, resume, message in (
        (deep_and_wide(), FAST, False, "holds a run already: resume=True goes on"),
        (deep_and_wide(), longer, True, r"was made with epochs=2, now 5: resume with the config"),
        (deep_and_wide(budget=0.8), FAST, True, "another sharing plan"),
    ):
        with refused(message):
            swe.train(ensemble, FEW, config, out=tmp_path, resume=resume)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": 1}, "one mapping needs inputs and 'labels'; got images"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2)), "yields a tuple of 3"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0])), r"integer type, one an image; got torch\.float32"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([[0, 1], [1, 0]])), r"got torch\.int64 \(2, 2\)"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 2])), r"class indices \(2,\) .*; got torch\.int64 \(3,\)"),
    ],
)
def test_batches_of_another_kind_are_refused(batch, message: str) -> None:
    with refused(message):
        swe.train(deep_and_wide(), [batch], FAST)
    with refused(message):
        swe.evaluate(deep_and_wide(), [batch])


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    drawn = []
    for trained in (False, True):
        torch.manual_seed(3)
        ensemble = deep_and_wide()
        torch.manual_seed(3)
        if trained:
            swe.train(ensemble, swe.load_data("synthetic", num_train=96), dataclasses.replace(FAST, epochs=1))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_the_ensemble_loss_is_one_more_term() -> None:
    ensemble = deep_and_wide()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    losses = joint_backward(ensemble, images, labels, JointLoss(loss_function=F.cross_entropy, ensemble_weight=0.7))
    found = gradients_of(ensemble)
    ensemble.zero_grad()
    logits = ensemble(images)
    own = [F.cross_entropy(member, labels) for member in logits]
    (sum(own) - 0.7 * logits.softmax(2).mean(0)[range(4), labels].log().mean()).backward()
    torch.testing.assert_close(list(losses.values()), [loss.detach() for loss in own])
    torch.testing.assert_close(found, gradients_of(ensemble), rtol=1e-4, atol=1e-6)


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
