"""What members and loaders may be in a training: each works, or is refused by name before a step is taken."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler
from training_cases import assert_same, gradients_of, refused
from two_processes import run

import superweight_ensembles as swe
from superweight_ensembles.search import Untying, untie_coefficients
from superweight_ensembles.training import Execution, Hook, JointLoss, build_fabric, joint_backward
from superweight_ensembles.training.batches import leaves_one_row

FAST = swe.TrainConfig(epochs=2, batch_size=8, precision="float32", device="cpu", learning_rate=0.01)
TOGETHER = dataclasses.replace(FAST, ensemble_loss=0.5)
CLASSES = 4


class Plain(nn.Module):
    """A member that most of what follows differs from in one place."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.conv, self.inner, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.inner(self.conv(images).mean((2, 3)))

    def logits(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))

    def forward(self, images: Tensor) -> Any:
        return self.logits(images)


class Flattening(Plain):
    """Of images of 8 x 8 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).view(len(images), -1))


class FlatteningInTraining(Flattening):
    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        return self.fc(found.view(len(images), -1) if self.training else found.flatten(1))


class ViewsInBackward(Plain):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: Tensor) -> Tensor:
            ctx.save_for_backward(given)
            return given.square()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (given,) = ctx.saved_tensors
            return gradient * 2 * given.view(len(given), -1).view(given.shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.inner(self.Square.apply(self.conv(images)).mean((2, 3))))


class Normed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(images)))


class Otherwise(Plain):
    """Answers whatever a function makes of it and the images."""

    def __init__(self, answer: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self, images)


def fail(error: Exception) -> Any:
    raise error


def fails_in_backward(own: Plain, images: Tensor) -> Tensor:
    features = own.features(images)
    if features.requires_grad:
        features.register_hook(lambda gradient: 1 / 0)
    return own.fc(features)


class Caching(Plain):
    """Makes a table in its first call, as rotary embeddings do."""

    table: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(8.0) / 8
        return self.fc(self.features(images) * self.table)


def ensemble(odd: Callable[[], nn.Module] = Plain) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    return swe.SuperWeightEnsemble({"plain": Plain(), "odd": odd()}, budget=1.0)


def images(count: int = 16, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size)


def labels(count: int = 16, num_classes: int = CLASSES) -> Tensor:
    return torch.arange(count) % num_classes


def loader(given: Tensor, truth: Tensor, batch_size: int = 8, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(given, truth), batch_size, **options)


def good() -> DataLoader:
    return loader(images(), labels())


class Steps(Hook):
    """How many steps were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def after_step(self, state: object, scalars: object) -> None:
        self.taken += 1


class Listed(Dataset):
    """Tells its labels as torchvision's data sets do, and may give others."""

    def __init__(self, targets: list[int], less: int = 0) -> None:
        self.targets, self.less = targets, less

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), self.targets[row] - self.less


class Worded(Listed):
    """Tells the names of its classes, and gives their numbers."""

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), row % CLASSES


OUTSIDE = r"labels must be 0 to 3, the members' classes; the loader has "
# What a loader gives, and what is said of it before any step.
BATCHES: dict[str, tuple[Callable[[], Any], str]] = {
    "labels": (lambda: loader(images(), labels(num_classes=6)), OUTSIDE + "0 to 5"),
    "labels of the last batch": (lambda: loader(images(), labels().index_fill(0, torch.tensor(15), 4)), OUTSIDE),
    "labels of a list": (lambda: [(images(8), labels(8)), (images(8), labels(8) + 1)], OUTSIDE + "0 to 4"),
    "labels of a data set": (lambda: DataLoader(Listed([0] * 15 + [4]), 8), OUTSIDE + "4 to 4"),
    "labels of a subset": (lambda: DataLoader(Subset(Listed([0] * 15 + [4]), range(8, 16)), 4), OUTSIDE + "4 to 4"),
    "ignored labels": (lambda: loader(images(), labels().where(labels() > 0, -100)), OUTSIDE + "-100 to 3: leave out"),
    "all ignored": (lambda: loader(images(), torch.full((16,), -100)), OUTSIDE + "-100 to -100: leave out the images"),
    "float labels": (lambda: loader(images(), labels().float()), r"class indices .* torch\.float32 .*labels\.long\(\)"),
    "float16": (lambda: loader(images().half(), labels()), r"the images are torch\.float16, the members torch"),
    "bfloat16": (lambda: loader(images().bfloat16(), labels()), r"the images are torch\.bfloat16, the members"),
    "float64": (lambda: loader(images().double(), labels()), r"the images are torch\.float64, the members torch"),
    "uint8": (lambda: loader(images().byte(), labels()), r"('plain'.* images\.float|teacher cannot .*uint8)"),
    "int64": (lambda: loader(images().long(), labels()), r"('plain'.* images\.float|teacher cannot .*int64)"),
    "channels": (lambda: loader(images(channels=1), labels()), r"('plain'|teacher) cannot .* \(8, 1, 8, 8\) .*3 chan"),
    "size": (lambda: loader(images(size=9), labels()), r"member 'odd' cannot take images \(8, 3, 9, 9\) .*: mat1 and"),
    "no rows": (lambda: [(images(0), labels(0))], "rows"),
    "dictionaries": (lambda: [{"images": images(8)}], r"one mapping needs inputs and 'labels'; got images"),
}  # fmt: skip


@pytest.mark.parametrize("door", ["training", "validation", "search", "distillation"])
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_are_refused_before_any_step(kind: str, door: str) -> None:
    make, message = BATCHES[kind]
    steps = Steps()
    if door == "search":  # reads batch after batch, of tied members in an order of its own
        message = message.replace("'plain'", "'(plain|odd)'").replace("0 to 4", "1 to 4").replace("4 to 4", "0 to 4")
        with refused("samples" if message == "rows" else message):
            untie_coefficients(searched(Flattening), make())
        return
    given, validation = (make(), good()) if door != "validation" else (good(), make())
    match = f"^validation: .*{message}" if door == "validation" else message
    taught = [swe.Distillation(Plain(), weight=0.5)] if door == "distillation" else []
    with refused(match):
        swe.train(ensemble(Flattening), given, FAST, validation=validation, hooks=[steps, *taught])
    assert steps.taken == 0


def searched(odd: type[nn.Module] = Plain) -> swe.SuperWeightEnsemble:
    """Of tied members, as if it had been trained."""
    torch.manual_seed(0)
    found = swe.SuperWeightEnsemble(
        {"plain": Plain(), "odd": odd()}, budget=1.0, coefficients="tied", reserve_untied=True
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_integer_type_are_the_same_labels(dtype: torch.dtype) -> None:
    given, ends = images(), []
    for kind in (torch.int64, dtype):
        found, data = ensemble(), loader(given, labels().to(kind))
        history = swe.train(found, data, FAST, validation=data).history
        ends.append([(record["train_loss"], record["validation"]) for record in history])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Listed([1, 2, 3, 4] * 4, less=1), 8),  # its list says otherwise than its images
        lambda: DataLoader(Subset(Listed([0] * 16 + [9]), range(16)), 8),
        lambda: DataLoader(Listed([0] * 16 + [9]), 8, sampler=WeightedRandomSampler([1.0] * 16 + [0.0], 16)),
        lambda: DataLoader(Listed([9] * 16), 8, collate_fn=lambda rows: (torch.zeros(len(rows), 3, 8, 8), labels(8))),
        lambda: DataLoader(Worded(["cat"] * 16), 8),
    ],
)
def test_what_a_data_set_says_of_its_labels_is_no_reason_to_refuse_others(make: Callable[[], DataLoader]) -> None:
    assert len(swe.train(ensemble(), make(), FAST, validation=make()).history) == 2


def test_labels_of_an_objective_are_its_own_affair_and_those_of_validation_are_not() -> None:
    far = loader(images(), labels(num_classes=9))

    def objective(member: nn.Module, given: Tensor, truth: Tensor) -> Tensor:
        return (member(given).sum(1) - truth).square().mean()

    assert len(swe.train(ensemble(), far, FAST, objective=objective).history) == 2
    with refused("^validation: .*" + OUTSIDE + "0 to 7"):
        swe.train(ensemble(), far, FAST, objective=objective, validation=far)


@pytest.mark.parametrize("validated", [False, True])
def test_members_of_one_class_are_refused(validated: bool) -> None:
    found = swe.SuperWeightEnsemble({"a": Plain(1), "b": Plain(1)}, budget=1.0)
    data = loader(images(), torch.zeros(16, dtype=torch.int64))
    with refused("must answer logits of two classes or more; these answer one"):
        swe.train(found, data, FAST, validation=data if validated else None)


def test_images_in_memory_of_more_classes_than_the_members() -> None:
    found = swe.SuperWeightEnsemble({"a": Plain(3), "b": Plain(3)}, budget=1.0)
    with refused("labels must be 0 to 2, the members' classes"):
        swe.train(found, swe.load_data("synthetic", num_train=96), FAST)


# What a member answers, and what is said of it.
MEMBERS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "instance norm": (
        lambda own, images: own.fc(F.instance_norm(own.features(images)[:, :, None, None]).flatten(1)),
        r"member 'odd' cannot take .*: an instance norm needs two pixels or more: give larger images",
    ),
    "two in training": (
        lambda own, images: (None, [own.logits(images)]) if own.training else own.logits(images),
        r"member 'odd' must answer one tensor .* got tuple; select= picks it",
    ),
    "by name": (
        lambda own, images: {"logits": [own.logits(images)]},
        r"member 'odd' must answer one tensor of logits \(batch, classes\); got dict",
    ),
    "fails in training": (
        lambda own, images: fail(KeyError("tokens")) if own.training else own.logits(images),
        r"member 'odd' cannot take images \(8, 3, 8, 8\) of torch\.float32: KeyError: 'tokens'",
    ),
    "detached": (
        lambda own, images: own.logits(images).detach(),
        r"the loss of member 'odd' depends on nothing that is trained: .* detach\(\)",
    ),
    "leaves rows out": (
        lambda own, images: own.logits(images)[1:],
        r"(member 'odd' answers 7 rows for 8 images|got plain: \(8, 4\), odd: \(7, 4\))",
    ),
    "fails in backward": (
        fails_in_backward, r"(member 'odd'|the members together) fails: ZeroDivisionError: division by zero"
    ),
    "fails in validation": (
        lambda own, images: own.logits(images) if own.training else fail(NotImplementedError("inference is elsewhere")),
        r"^validation: member 'odd' cannot take .* inference is elsewhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", [FAST, TOGETHER], ids=["one by one", "together"])
@pytest.mark.parametrize(
    ("name", "validated"),
    [(name, validated) for name in MEMBERS for validated in (False, True) if validated or "validation" not in name],
)
def test_members_that_fail_are_named_before_any_step(name: str, validated: bool, config: Any) -> None:
    answer, message = MEMBERS[name]
    steps, found = Steps(), ensemble(lambda: Otherwise(answer))
    with refused(message):
        swe.train(found, good(), config, validation=good() if validated else None, hooks=[steps])
    assert steps.taken == 0


def test_members_of_different_classes_are_told_apart_in_validation_too() -> None:
    mixed = swe.SuperWeightEnsemble({"a": Plain(), "b": nn.Sequential(Plain(5), nn.Identity())}, budget=1.0)
    for validation in (None, good()):
        with refused(r"same batch and classes; got a: \(8, 4\), b: \(8, 5\)"):
            swe.train(mixed, good(), FAST, validation=validation)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda member, given, truth: 1 / 0, "the objective fails for member 'plain': ZeroDivisionError"),
        (lambda member, given, truth: member(given).sum(1), r"loss of member 'plain' must be a scalar .* got \(8,\)"),
        (lambda member, given, truth: 3.0, "the loss of member 'plain' must be a scalar tensor; got float"),
        (
            lambda member, given, truth: torch.tensor(3.0),
            "the loss of member 'plain' depends on nothing that is trained",
        ),
    ],
)
def test_objectives_that_fail_are_told_from_members(objective: Any, message: str) -> None:
    with refused(message):
        swe.train(ensemble(), good(), FAST, objective=objective)


class Penalising(Hook):
    def penalty(self, state: object) -> Any:
        return lambda member: member.no_such_layer.weight.sum()


PROMPTED = Otherwise(lambda own, images: fail(KeyError("prompt")))


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (Penalising(), "a hook's penalty fails for member 'plain': AttributeError"),
        (swe.Distillation(PROMPTED, weight=0.5), r"the teacher cannot run on images .* KeyError: 'prompt'"),
    ],
)
def test_hooks_and_teachers_that_fail_are_named(hook: Any, message: str) -> None:
    with refused(message):
        swe.train(ensemble(), good(), FAST, hooks=[hook])


def test_losses_that_fail_are_named() -> None:
    with refused("the loss fails for member 'plain': ZeroDivisionError"):
        joint_backward(ensemble(), images(8), labels(8), lambda logits, truth: 1 / 0)
    with refused("a batch has no rows"):
        joint_backward(ensemble(), images(0), labels(0), F.cross_entropy)


# One row.


def test_a_batch_of_one_row_is_refused_before_any_step_where_a_member_cannot_train_on_it() -> None:
    message = (
        r"a batch of each epoch has one row: member 'odd' cannot take .*: a batch norm needs two rows: .*drop_last"
    )
    for shuffle in (False, True):
        data, steps = loader(images(17), labels(17), shuffle=shuffle), Steps()
        with refused(message):
            swe.train(ensemble(Normed), data, FAST, hooks=[steps])
        assert steps.taken == 0
    with refused(message):
        swe.train(ensemble(Normed), [(images(8), labels(8)), (images(1), labels(1))], FAST)
    with refused(r"^member 'odd' cannot take images \(1, .* raise batch_size"):
        swe.train(ensemble(Normed), loader(images(3), labels(3), batch_size=1), FAST)
    dropping = loader(images(17), labels(17), drop_last=True)
    assert len(swe.train(ensemble(Normed), dropping, FAST).history) == 2


def test_looking_at_one_row_changes_nothing() -> None:
    """Members without batch norm over rows train on it: as without the look, bit by bit, dropout included."""

    def odd() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, CLASSES))

    given, truth = images(9), labels(9)
    known = loader(given, truth)
    unknown = [known]  # of which nothing is known

    class Unknown:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            return iter(unknown[0])

    assert leaves_one_row(known) and not leaves_one_row(Unknown())
    found, expected = ensemble(odd), ensemble(odd)
    swe.train(found, known, FAST)
    swe.train(expected, Unknown(), FAST)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("rows", "parts", "expected"), [(5, 4, [2, 3]), (8, 8, [2] * 4), (3, 2, [3]), (7, 3, [2, 2, 3])]
)
@pytest.mark.parametrize("ensemble_weight", [0.0, 0.5])
def test_no_part_of_a_batch_is_one_row(rows: int, parts: int, expected: list[int], ensemble_weight: float) -> None:
    found, seen = ensemble(Normed), []
    found.members["odd"].register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    loss = JointLoss(loss_function=F.cross_entropy, ensemble_weight=ensemble_weight)
    joint_backward(found, images(rows), labels(rows), loss, execution=Execution(micro_batches=parts))
    assert seen == expected


# Memory formats.


@pytest.mark.parametrize("config", [FAST, TOGETHER], ids=["one by one", "together"])
@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("odd", [Flattening, FlatteningInTraining, ViewsInBackward], ids=lambda odd: odd.__name__)
def test_members_that_need_contiguous_images_get_them(
    odd: type[nn.Module], validated: bool, config: Any, caplog
) -> None:
    data = good()
    validation = data if validated else None
    told, found, steps = ensemble(odd), ensemble(odd), Steps()
    swe.train(told, data, dataclasses.replace(config, channels_last=False), validation=validation)
    with caplog.at_level(logging.INFO):
        assert swe.train(found, data, config, validation=validation).channels_last is False
    assert "all members are trained contiguous" in caplog.text
    assert_same(found, told)
    match = r"'odd'.* view size is not compatible|the members together fails: view size is not compatible"
    with refused(match):
        swe.train(ensemble(odd), data, dataclasses.replace(config, channels_last=True), hooks=[steps])
    assert steps.taken == 0


# Validation before the first step.


def test_trying_validation_leaves_no_trace() -> None:
    """Buffers that evaluation counts in, modes, and generators, a loader's own included."""

    class Counting(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.drop = nn.Dropout()

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(self.drop(self.features(images)))

    given, truth = images(), labels()
    ends = []
    for validated in (False, True):
        own = torch.Generator().manual_seed(5)
        data = loader(given, truth, shuffle=True, generator=own)
        found = ensemble(Counting)
        found.members["odd"].fc.eval()
        config = dataclasses.replace(FAST, validate_every=9)
        stopped = Stopping()
        with pytest.raises(ZeroDivisionError, match=r"division by zero"):
            swe.train(found, data, config, validation=data if validated else None, hooks=[stopped])
        ends.append(found)
    assert ends[0].members["odd"].calls == 2
    assert_same(*ends)


class Stopping(Hook):
    """Ends a training before the first validation."""

    def after_epoch(self, state: object) -> Any:
        return 1 / 0


def test_what_a_member_keeps_of_a_validation_can_be_trained_with() -> None:
    found = ensemble(Caching)
    result = swe.train(found, good(), FAST, validation=good(), hooks=[swe.Distillation(Caching(), weight=0.5)])
    assert len(result.history) == 2 and not found.members["odd"].table.is_inference()


def test_training_inside_of_inference_mode_trains() -> None:
    found, expected = ensemble(), ensemble()
    with torch.inference_mode():
        swe.train(found, [(images(8).clone(), labels(8).clone())], dataclasses.replace(FAST, epochs=1))
    assert not torch.equal(found.members["odd"].fc.weight, expected.members["odd"].fc.weight)


# Members that checkpoint activations themselves.


class Checkpointing(nn.Module):
    def __init__(self, on: bool, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.on, self.reentrant = on, reentrant

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images)
        for block in self.blocks:
            run = block if not self.on else lambda x, b=block: checkpoint(b, x, use_reentrant=self.reentrant)
            found = run(found).tanh()
        return self.fc(found.mean((2, 3)))


def checkpointing(on: bool, reentrant: bool = False) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {name: Checkpointing(on, reentrant) for name in ("a", "b")}
    return swe.SuperWeightEnsemble(members, budget=0.8, coefficients="tied", reserve_untied=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["one by one", "ensemble loss", "own mean", "both"])
def test_members_may_checkpoint_activations(reentrant: bool, parts: int, kind: str) -> None:
    loss = JointLoss(
        loss_function=F.cross_entropy,
        ensemble_weight=0.5 if kind in ("ensemble loss", "both") else 0.0,
        distillation=swe.Distillation("ensemble", weight=0.5) if kind in ("own mean", "both") else None,
        penalty=lambda member: 1e-3 * member.blocks[0].weight.square().sum(),
    )
    given, truth, found = images(6), labels(6), []
    for on in (False, True):
        each = checkpointing(on, reentrant)
        losses = joint_backward(each, given, truth, loss, execution=Execution(micro_batches=parts))
        found.append((losses, gradients_of(each)))
        assert all(block.weight is None for member in each.members.values() for block in member.blocks)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_members_that_checkpoint_activations_train_and_are_searched(reentrant: bool) -> None:
    config = dataclasses.replace(TOGETHER, micro_batches=2)
    data, ends = good(), []
    for on in (False, True):
        each = checkpointing(on, reentrant)
        swe.train(each, data, config, validation=data, hooks=[Untying(epoch=1, threshold=0.9)])
        ends.append(each)
    assert ends[0].plan == ends[1].plan
    torch.testing.assert_close(ends[1].state_dict(), ends[0].state_dict(), rtol=1e-4, atol=1e-5)


def test_timm_members_may_checkpoint_activations() -> None:
    given, truth, found = images(4, size=32), labels(4), []
    for on in (False, True):
        torch.manual_seed(0)
        members = {
            name: swe.build_member("timm/vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=2)
            for name in ("a", "b")
        }
        for member in members.values():
            member.set_grad_checkpointing(on)
        each = swe.SuperWeightEnsemble(members, budget=0.8)
        joint_backward(each, given, truth, JointLoss(loss_function=F.cross_entropy, ensemble_weight=0.5))
        found.append(gradients_of(each))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


# What cannot be saved.


class Expanded(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1).expand(3))


class Forgetful(Hook):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": {1, 2}}


def test_what_cannot_be_saved_is_refused_before_any_step(tmp_path) -> None:
    steps = Steps()
    with refused(r"the ensemble cannot be saved: tensor 'members\.odd\.mask' is expanded"):
        swe.train(ensemble(Expanded), good(), FAST, out=tmp_path / "a", hooks=[steps])
    with refused(r"hook 'Forgetful': 'seen' is no plain data"):
        swe.train(ensemble(), good(), FAST, out=tmp_path / "b", hooks=[steps, Forgetful()])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "checkpoints").write_text("")
    with refused(r"c/checkpoints cannot be written: Not a directory; "):
        swe.train(ensemble(), good(), FAST, out=tmp_path / "c", hooks=[steps])
    assert steps.taken == 0
    assert not (tmp_path / "b" / "checkpoints").exists()


# What libraries say.


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_libraries_are_silent_unless_asked(precision: str, caplog, capfd, recwarn) -> None:
    config, chosen = swe.TrainConfig(precision=precision, device="cpu"), logging.getLogger("lightning_fabric")
    before = chosen.level, chosen.propagate
    try:
        chosen.propagate = True
        build_fabric(config)
        assert not caplog.records and capfd.readouterr().err == "" and not recwarn.list
        chosen.setLevel(logging.DEBUG)
        build_fabric(config)  # a level that the user has set is followed, whatever Lightning has to say
        assert logging.getLogger("lightning_fabric.utilities.rank_zero").level == logging.NOTSET
    finally:
        chosen.setLevel(before[0])
        chosen.propagate = before[1]


# Several processes.


def uneven(rank: int, folder: object) -> list[str]:
    """Batches that one process has no rows of; labels and members that all refuse."""
    build_fabric(FAST)
    heard = []
    for data, odd in (
        ([(images(8), labels(8)), (images(4 * rank), labels(4 * rank))], Plain),
        ([(images(8), labels(8) + 1)], Plain),
        ([(images(8), labels(8))], lambda: Otherwise(MEMBERS["fails in training"][0])),
    ):
        try:
            swe.train(ensemble(odd), data, FAST)
        except swe.SuperWeightError as error:
            heard.append(str(error))
    contiguous = swe.train(ensemble(Flattening), [(images(8), labels(8))], FAST, validation=[(images(4), labels(4))])
    return [*heard, str(contiguous.channels_last)]


def test_every_process_hears_of_what_is_refused(tmp_path) -> None:
    for heard in run(uneven, tmp_path):
        assert heard[0] == "1 of 2 processes have a batch without rows: give each a row"
        assert "labels must be 0 to 3" in heard[1] and "member 'odd' cannot take" in heard[2]
        assert heard[3] == "False"
