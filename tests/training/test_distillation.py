"""Learning from a teacher: the loss by arithmetic, gradients against the literal one, resumption, mistakes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import Tensor, nn
from torch.nn import functional as F
from training_cases import Viewing, assert_same, deep_and_wide, gradients_of, refused, stop_training

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.training import (
    Distillation,
    Execution,
    FixedTeacher,
    JointLoss,
    OwnBatches,
    build_fabric,
    joint_backward,
)
from superweight_ensembles.training.distributed import current_processes

CPU = torch.device("cpu")
FAST = swe.TrainConfig(
    epochs=2, batch_size=16, learning_rate=0.02, precision="float32", device="cpu"
)  # fmt: skip
TOGETHER = ("ensemble", "others", "prefixes")
IMAGES = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def network(width: int, classes: int = 4) -> nn.Module:
    """Without a norm, so that parts of a batch are as good as the whole."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, classes)).double()


def plain_ensemble(seed: int = 0) -> swe.SuperWeightEnsemble:
    torch.manual_seed(seed)
    members = {"narrow": network(8), "wide": network(12)}
    return swe.SuperWeightEnsemble(members, budget=0.95, rng=torch.Generator().manual_seed(seed))


def conv_teacher(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return swe.wide_resnet(10, 1, 4)


def small_data() -> ImageData:
    return swe.load_data("synthetic", num_train=64, num_test=16)


def taught_by(teacher: Any, weight: float = 0.7) -> list[Distillation]:
    return [Distillation(teacher, weight=weight, temperature=3.0)]


def found_gradients(
    distillation: Distillation, images: Any = IMAGES, labels: Any = LABELS, ensemble_weight: float = 0.0, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    ensemble = plain_ensemble()
    loss = JointLoss(loss_function=F.cross_entropy, ensemble_weight=ensemble_weight, distillation=distillation)
    losses = joint_backward(ensemble, images, labels, loss, execution=Execution(**options))
    return losses, gradients_of(ensemble)


@contextmanager
def teaching(teacher: Any) -> Iterator[Distillation]:
    """As a training has it from its start to its end."""
    distillation = Distillation(teacher, weight=0.6, temperature=2.5)
    assert distillation.teacher is not None
    with distillation.teacher.on_device(CPU):
        yield distillation


def literal_gradients(target: Any, ensemble_weight: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of (1 - w) CE + w T^2 sum p log(p / q), w = 0.6 and T = 2.5; ``target`` is p, or makes it of the logits."""
    ensemble = plain_ensemble()
    logits = ensemble(IMAGES)
    p = target(logits.detach()) if callable(target) else target
    q = (logits / 2.5).softmax(2)
    divergence = (p * (p / q).log()).sum(2).mean(1)
    own = [0.4 * F.cross_entropy(one, LABELS) + 0.6 * 2.5**2 * far for one, far in zip(logits, divergence)]
    mean_loss = -logits.softmax(2).mean(0)[range(6), LABELS].log().mean()
    (sum(own) + ensemble_weight * mean_loss).backward()
    return dict(zip(ensemble.member_names, (loss.detach() for loss in own))), gradients_of(ensemble)


assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def test_the_loss_is_what_arithmetic_says() -> None:
    logits = torch.tensor([[1.0, 3.0], [0.0, -2.0]], dtype=torch.float64)
    taught = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    distillation = Distillation("ensemble", weight=0.25, temperature=2.0)
    first = math.e / (math.e + 1)  # softmax of (2, 0) / 2
    target = distillation.target(taught)
    torch.testing.assert_close(
        target, torch.tensor([[first, 1 - first], [0.5, 0.5]], dtype=torch.float64), rtol=1e-12, atol=0
    )
    own = 1 / (math.e + 1)  # of (1, 3) / 2 the first, of (0, -2) / 2 the second
    rows = [
        first * math.log(first / own) + (1 - first) * math.log((1 - first) / (1 - own)),
        0.5 * math.log(0.5 / (1 - own)) + 0.5 * math.log(0.5 / own),
    ]
    hard = torch.tensor(0.8, dtype=torch.float64)
    found = distillation.loss("a", hard, logits, target)
    assert float(found) == pytest.approx(0.75 * 0.8 + 0.25 * 2**2 * sum(rows) / 2, rel=1e-12)


def test_a_sure_teacher_gives_no_loss_that_is_no_number() -> None:
    distillation = Distillation("ensemble", weight=1.0, temperature=1.0)
    target = distillation.target(torch.tensor([[[0.0, -math.inf]]]))
    loss = distillation.loss("a", torch.tensor(0.3), torch.tensor([[0.0, 0.0]]), target)
    assert float(loss) == pytest.approx(math.log(2))


def test_gradients_with_a_network_as_teacher() -> None:
    teacher = nn.Sequential(nn.Dropout(0.5), network(20)).train()
    teacher[0].eval()  # modes of its own come back
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    calls: list[int] = []
    teacher.register_forward_hook(lambda *given: calls.append(len(given[1][0])))
    with teaching(teacher) as fixed:
        assert not any(module.training for module in teacher.modules())
        found = found_gradients(fixed)
        assert calls == [6]  # once for both members
        with torch.no_grad():
            target = (teacher(IMAGES) / 2.5).softmax(1)
        together = found_gradients(fixed, ensemble_weight=0.7)
    assert [module.training for module in teacher.children()] == [False, True] and teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(value.grad is None for value in teacher.parameters())
    assert_equal(found, literal_gradients(target))
    assert_equal(together, literal_gradients(target, 0.7))


class Stacked(nn.Module):
    """Several networks in one that answers (M, B, K)."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([one(images) for one in self.networks])


@pytest.mark.parametrize("stacked", [False, True])
def test_gradients_with_an_ensemble_as_teacher(stacked: bool) -> None:
    ensemble = plain_ensemble(seed=9).train()
    networks = [ensemble.materialize(name) for name in ensemble.member_names]
    with teaching(Stacked(networks) if stacked else ensemble) as fixed:
        found = found_gradients(fixed)
    assert ensemble.training and all(value.grad is None for value in ensemble.parameters())
    target = sum((one(IMAGES).detach() / 2.5).softmax(1) for one in networks) / 2
    assert_equal(found, literal_gradients(target))


@pytest.mark.parametrize(
    ("teacher", "ensemble_weight", "target"),
    [
        ("ensemble", 0.0, lambda logits: (logits / 2.5).softmax(2).mean(0)),
        ("ensemble", 0.7, lambda logits: (logits / 2.5).softmax(2).mean(0)),
        ("others", 0.0, lambda logits: (logits / 2.5).softmax(2).flip(0)),
    ],
)
def test_gradients_with_means_of_the_members(teacher: str, ensemble_weight: float, target: Any) -> None:
    found = found_gradients(Distillation(teacher, weight=0.6, temperature=2.5), ensemble_weight=ensemble_weight)
    assert_equal(found, literal_gradients(target, ensemble_weight))


def three_members() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"wide": network(24), "narrow": network(8), "middle": network(12)}
    return swe.SuperWeightEnsemble(members, budget=0.95, rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", [("narrow", "middle", "wide"), ("middle", "wide", "narrow")])
def test_gradients_with_prefixes(order: tuple[str, ...]) -> None:
    """sum CE + w T^2 sum over j < M of sum p log(p / mean of the first j), p the mean of all without gradient."""
    by_cost = order == ("narrow", "middle", "wide")
    prefixes = Distillation("prefixes", weight=0.6, temperature=2.5, order=None if by_cost else order)
    ensemble = three_members()
    loss = JointLoss(loss_function=F.cross_entropy, distillation=prefixes)
    found = joint_backward(ensemble, IMAGES, LABELS, loss), gradients_of(ensemble)
    ensemble = three_members()
    logits = dict(zip(ensemble.member_names, ensemble(IMAGES)))
    one, two, three = (logits[name] for name in order)
    first, second = (one / 2.5).softmax(1), ((one / 2.5).softmax(1) + (two / 2.5).softmax(1)) / 2
    p = ((2 * second + (three / 2.5).softmax(1)) / 3).detach()
    losses = {name: F.cross_entropy(answer, LABELS) for name, answer in logits.items()}
    for name, q in zip(order, (first, second)):
        losses[name] = losses[name] + 0.6 * 2.5**2 * (p * (p / q).log()).sum(1).mean()
    sum(losses.values()).backward()
    assert_equal(found, ({name: value.detach() for name, value in losses.items()}, gradients_of(ensemble)))


@pytest.mark.parametrize("kind", ["network", *TOGETHER])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(kind: Any, parts: int) -> None:
    teacher, rows = network(20), []
    teacher.register_forward_hook(lambda *given: rows.append(len(given[1][0])))
    with teaching(teacher) as fixed:
        given = fixed if kind == "network" else Distillation(kind, weight=0.6, temperature=2.5)
        assert_equal(found_gradients(given, micro_batches=parts), found_gradients(given))
    assert rows == ({2: [3, 3], 4: [2, 2, 2]}[parts] + [6] if kind == "network" else [])


class Known:
    """Two batches of three images an epoch, and which those are."""

    num_images = 8
    rows = (torch.tensor([0, 2, 4]), torch.tensor([5, 3, 7]))  # nothing answers to 1 and 6
    images, labels = torch.cat([IMAGES, -IMAGES[:2]]), torch.cat([LABELS, LABELS[:2]])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        for rows in self.rows:
            yield self.images[rows], self.labels[rows]

    def indices(self, batch: int) -> Tensor:
        return self.rows[batch]


def soft_targets(logits: Tensor, p: Tensor) -> Tensor:
    """T^2 KL(p || each member at T = 2.5), of each image: (M, B)."""
    return 2.5**2 * (p * (p / (logits / 2.5).softmax(2)).log()).sum(2)


@pytest.mark.parametrize("parts", [1, 2])
def test_history_is_the_mean_of_earlier_answers(parts: int) -> None:
    """By a plain loop: z(t) = m z(t - 1) + (1 - m) mean softmax at T, m = 0.6, and z(t) / (1 - m^t) teaches."""
    config = dataclasses.replace(
        FAST, epochs=3, batch_size=3, micro_batches=parts, momentum=0.0, weight_decay=0.0, schedule="constant"
    )
    trained, history = plain_ensemble(), Distillation("history", weight=0.6, temperature=2.5)
    records = swe.train(trained, Known(), config, hooks=[history]).history
    plain, seen, losses = plain_ensemble(), torch.zeros(8, 4, dtype=torch.float64), []
    for epoch in range(3):
        for rows, (images, labels) in zip(Known.rows, Known()):
            logits = plain(images)
            own = torch.stack([F.cross_entropy(one, labels) for one in logits])
            if epoch:
                own = 0.4 * own + 0.6 * soft_targets(logits, seen[rows] / (1 - 0.6**epoch)).mean(1)
            seen[rows] = 0.6 * seen[rows] + 0.4 * (logits.detach() / 2.5).softmax(2).mean(0)
            plain.zero_grad()
            own.sum().backward()
            with torch.no_grad():
                for value in plain.parameters():
                    value -= FAST.learning_rate * value.grad
            losses.append(own.tolist())
    found = torch.tensor([list(record["train_loss"].values()) for record in records])
    torch.testing.assert_close(found, torch.tensor(losses).view(3, 2, 2).mean(1), rtol=1e-5, atol=0)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert history.history is not None
    weights = history.history.state_dict()["weights"]
    assert weights[[1, 6]].tolist() == [0, 0] and float(weights[0]) == pytest.approx(1 - 0.6**3)


def test_an_image_that_is_new_has_its_label_alone() -> None:
    class Changing(Known):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.rows = (torch.tensor([0, 2]), torch.tensor([5, 3])) if epoch == 1 else (torch.tensor([0, 6, 1]),) * 2

    config = dataclasses.replace(FAST, epochs=2, batch_size=3, learning_rate=1e-12, schedule="constant")
    ensemble, history = plain_ensemble(), Distillation("history", weight=0.6, temperature=2.5)
    found = swe.train(ensemble, Changing(), config, hooks=[history]).history[1]["train_loss"]
    logits, labels = plain_ensemble()(Known.images[[0, 6, 1]]).detach(), Known.labels[[0, 6, 1]]
    p = (logits / 2.5).softmax(2).mean(0)  # what nearly no learning leaves as it was
    far, first = soft_targets(logits, p), torch.tensor([1.0, 0.0, 0.0])
    for index, name in enumerate(ensemble.member_names):
        hard = F.cross_entropy(logits[index], labels)
        new, known = ((1 - 0.6 * seen.mean()) * hard + 0.6 * (far[index] * seen).mean() for seen in (first, first**0))
        assert found[name] == pytest.approx(float(new + known) / 2, rel=1e-5), name  # two batches of the same images


@pytest.mark.parametrize(
    ("ramps", "expected"),
    [
        ({}, [0.8, 0.8, 0.8, 0.8]),
        ({"ramp_up": 0.5}, [0.0, 0.4, 0.8, 0.8]),
        ({"ramp_down": 0.5}, [0.8, 0.8, 0.8, 0.0]),
        ({"ramp_up": 0.25, "ramp_down": 0.75}, [0.0, 0.8, 0.8 * 2 / 3, 0.0]),
    ],
)
def test_the_weight_grows_and_falls(ramps: dict[str, float], expected: list[float]) -> None:
    distillation = Distillation("ensemble", weight=0.8, **ramps)
    assert [distillation.weight_at(done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected)


def test_a_training_follows_the_weight() -> None:
    found = []
    for hooks in ([], [Distillation("ensemble", weight=0.8, ramp_up=0.5)], taught_by("ensemble")):
        ensemble = plain_ensemble()
        swe.train(ensemble, Rows((0, 1)), dataclasses.replace(FAST, epochs=1, batch_size=6), hooks=hooks)
        found.append(ensemble.state_dict())
    labels, grown, taught = ([*state.values()] for state in found)
    assert all(map(torch.equal, labels, grown))  # w is 0 at the first step
    assert not all(map(torch.equal, labels, taught))


def test_members_with_batches_of_their_own_are_taught_on_them() -> None:
    images = OwnBatches(narrow=IMAGES, wide=IMAGES.flip(0))
    labels = OwnBatches(narrow=LABELS, wide=LABELS.flip(0))
    with teaching(network(20)) as fixed:
        assert_equal(found_gradients(fixed, images, labels), found_gradients(fixed))


TEACHERS = {"network": conv_teacher(), "another ensemble": deep_and_wide(7), **{name: name for name in TOGETHER}}
TEACHERS["history"] = "history"


@functools.cache
def uninterrupted(kind: str) -> tuple[swe.SuperWeightEnsemble, list[dict[str, Any]]]:
    """What two epochs with this teacher end with, and their records."""
    trained = deep_and_wide()
    return trained, swe.train(trained, small_data(), FAST, hooks=taught_by(TEACHERS[kind])).history


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    teacher, resumed, data = TEACHERS[kind], deep_and_wide(3), small_data()
    stop_training(deep_and_wide(), data, FAST, 2, 1, hooks=taught_by(teacher), out=tmp_path)
    for hooks, message in (
        (taught_by(conv_teacher(6)), r"made with Distillation.teacher='.*', now 'sha256:.*': resume"),
        (taught_by(teacher, 0.6), r"was made with Distillation.weight=0\.7, now 0\.6"),
        ([], r"was made with hooks=\['Distillation', 'LearnedWidths'\], now"),
    ):
        with refused(message):
            swe.train(deep_and_wide(), data, FAST, hooks=hooks, out=tmp_path, resume=True)
    swe.train(resumed, data, FAST, hooks=taught_by(teacher), out=tmp_path, resume=True)
    assert_same(uninterrupted(kind)[0], resumed)


@pytest.mark.parametrize(
    "changes", [{"recompute": True}, {"compile": True}, {"micro_batches": "auto", "skip_non_finite": 1}]
)
def test_settings_of_how_steps_are_computed_change_nothing(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda member: member)
    for kind in ("network", "ensemble", "prefixes", "history"):
        config = dataclasses.replace(FAST, **changes)
        found = swe.train(deep_and_wide(), small_data(), config, hooks=taught_by(TEACHERS[kind])).history
        for one, other in zip(found, uninterrupted(kind)[1], strict=True):
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


class Rows:
    """One batch an epoch, in float64; of it, the rows of one process."""

    def __init__(self, shard: tuple[int, int]) -> None:
        self.rows = slice(0, 6) if shard[1] == 1 else (slice(0, 2), slice(2, 6))[shard[0]]

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        yield IMAGES[self.rows], LABELS[self.rows]


def taught_losses(shard: tuple[int, int]) -> Tensor:
    found = []
    torch.manual_seed(1)
    for teacher in (network(20), "ensemble", "others", "prefixes"):
        config = dataclasses.replace(FAST, epochs=6, batch_size=6)
        history = swe.train(plain_ensemble(), Rows(shard), config, hooks=taught_by(teacher)).history
        found.append([list(record["train_loss"].values()) for record in history])
    return torch.tensor(found, dtype=torch.float64)


def remembering() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state, and the history, after epochs whose batches the processes share."""
    torch.manual_seed(1)
    members = {"narrow": network(8), "wide": network(12)}
    pooled = {name: nn.Sequential(nn.AvgPool2d(2), module.float()) for name, module in members.items()}
    ensemble = swe.SuperWeightEnsemble(pooled, budget=0.95, rng=torch.Generator().manual_seed(1))
    history = Distillation("history", weight=0.6)
    swe.train(ensemble, small_data(), dataclasses.replace(FAST, epochs=3, batch_size=15), hooks=[history])
    assert history.history is not None
    return ensemble.state_dict(), history.history.state_dict()


def job(rank: int, folder: Path) -> dict:
    build_fabric(FAST)
    found = {"losses": taught_losses(current_processes().shard), "error": "", "remembered": remembering()}
    torch.manual_seed(rank)
    hooks = taught_by(network(20))
    try:
        swe.train(plain_ensemble(), Rows(current_processes().shard), FAST, hooks=hooks)
    except swe.SuperWeightError as error:
        found["error"] = str(error)
    return found


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    answers, expected = two_processes.run(job, tmp_path), taught_losses((0, 1))
    for answer in answers:
        torch.testing.assert_close(answer["losses"], expected, rtol=1e-12, atol=0)
        assert "teacher" in answer["error"]  # one of other numbers in each process
        for found, wanted in zip(answer["remembered"], remembering()):
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_teacher_that_cannot_read_channels_last_gets_contiguous_images(memory_format: torch.memory_format) -> None:
    teacher = Viewing().to(memory_format=memory_format)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        teacher(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    result = swe.train(deep_and_wide(), small_data(), dataclasses.replace(FAST, epochs=1), hooks=taught_by(teacher))
    assert result.channels_last


class Answering(nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


@pytest.mark.parametrize(
    ("teacher", "changes", "match"),
    [
        (None, {}, r"a network \(nn.Module\) or one of ensemble, others, .*; got NoneType"),
        ("ensembel", {}, "unknown teacher 'ensembel': did you mean 'ensemble'"),
        (lambda images: images, {}, r"a network \(nn.Module\) or one of ensemble, others, .*; got function"),
        *((name, {"member_batches": "own"}, "set member_batches to 'same'") for name in TOGETHER),
        (swe.wide_resnet(10, 1, 5), {}, "the teacher answers 5 classes, member 'deep' 4"),
        (swe.wide_resnet(10, 1, 4, in_channels=1), {}, r"the teacher cannot run on images \(16, 3, 8, 8\)"),
        (nn.ModuleList(), {}, r"the teacher cannot run on images \(16, 3, 8, 8\)"),
        (Answering(lambda images: images.sum()), {}, r"logits \(batch, classes\) or .*; got \(\) for a batch of 16"),
        (Answering(lambda images: [0]), {}, "must answer logits .*; got list for a batch of 16"),
        (Answering(lambda images: images.new_full((16, 4), math.nan)), {}, "the teacher's answers are not finite"),
    ],
)  # fmt: skip
def test_teachers_that_are_refused(teacher: Any, changes: dict[str, Any], match: str) -> None:
    with refused(match):
        swe.train(deep_and_wide(), small_data(), dataclasses.replace(FAST, **changes), hooks=taught_by(teacher))


TRAINED = deep_and_wide()
MISFITS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "itself": (taught_by(TRAINED), {}, "the teacher is part of the ensemble that is trained"),
    "a part": (taught_by(TRAINED.members["deep"]), {}, "the teacher is part of the ensemble that is trained"),
    "one member": (taught_by("ensemble"), {"members": ["deep"]}, "one alone would learn from itself"),
    "batches without numbers": (
        taught_by("history"), {"data": [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]},
        r"remembers answers by image: train on ImageData, or on a loader",
    ),
    "part of an order": (
        [Distillation("prefixes", weight=0.5, order=["deep"])], {},
        r"order= must name each trained member once: deep, wide; got deep",
    ),
    "an objective": (
        taught_by("ensemble"), {"objective": lambda member, images, labels: images.sum()},
        "distillation needs the members' logits: it cannot go with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_teachers_that_do_not_go_with_what_is_trained(name: str) -> None:
    hooks, options, message = MISFITS[name]
    with refused(message):
        swe.train(TRAINED, **{"data": small_data(), "config": FAST, "hooks": hooks, **options})


class Padded(nn.Module):
    """Answers a class more than its head has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(8)

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(self.inner(images), (0, 1))


def test_a_teacher_of_two_kinds_of_answers_is_refused() -> None:
    whole = swe.SuperWeightEnsemble({"a": network(8), "b": Padded()}, budget=1.0)
    fixed = FixedTeacher(whole)
    with fixed.on_device(CPU), refused(r"same classes; got \(6, 4\), \(6, 5\)"):
        fixed.logits(IMAGES)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight": 1.1}, "the weight of a distillation must be a finite number, from 0 to 1; got 1.1"),
        ({"weight": -0.1}, "the weight of a distillation must be a finite number, from 0 to 1; got -0.1"),
        ({"weight": math.nan}, "the weight of a distillation must be a finite number, from 0 to 1; got nan"),
        ({"weight": True}, "the weight of a distillation must be a finite number, from 0 to 1; got True"),
        (
            {"weight": 0.5, "temperature": 0.0},
            "the temperature of a distillation must be a finite number, above 0; got 0.0",
        ),
        ({"weight": 0.5, "temperature": math.inf}, "must be a finite number, above 0; got inf"),
        (
            {"weight": 0.5, "ramp_up": 1.5},
            "the ramp_up of a distillation must be a finite number, from 0 to 1; got 1.5",
        ),
        ({"weight": 0.5, "ramp_up": 0.7, "ramp_down": 0.7}, "must be 1 together at most; got 0.7 and 0.7"),
        ({"weight": 0.5, "order": ["a", "b"]}, "order= goes with the teacher 'prefixes' only: leave it out"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with refused(match):
        Distillation("ensemble", **changes)


def test_a_checkpoint_of_a_training_from_labels_names_no_teacher(tmp_path: Path) -> None:
    swe.train(deep_and_wide(), small_data(), FAST, out=tmp_path / "run")
    state = next((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    settings = json.loads(state.read_text())["settings"]
    assert settings["hooks"] == ["LearnedWidths"] and "Distillation.teacher" not in settings
