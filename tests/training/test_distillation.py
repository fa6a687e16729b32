"""Learning from a teacher: the loss by arithmetic, gradients against the literal one, resumption, mistakes."""

from __future__ import annotations

import dataclasses
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

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Recipe, build_arms, estimate_lines, evaluate_run, parse_recipe, train_run
from superweight_ensembles.training import (
    Distillation,
    Execution,
    FixedTeacher,
    JointLoss,
    OwnBatches,
    TrainProgress,
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


def conv_ensemble(seed: int = 0) -> swe.SuperWeightEnsemble:
    torch.manual_seed(seed)
    members = {"deep": swe.wide_resnet(16, 1, 4), "wide": swe.wide_resnet(10, 2, 4)}
    return swe.SuperWeightEnsemble(members, budget=0.9, rng=torch.Generator().manual_seed(seed))


def conv_teacher(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return swe.wide_resnet(10, 1, 4)


def small_data() -> ImageData:
    return swe.load_data("synthetic", num_train=64, num_test=16)


def taught_by(teacher: Any, weight: float = 0.7) -> list[Distillation]:
    return [Distillation(teacher, weight=weight, temperature=3.0)]


def gradients_of(ensemble: swe.SuperWeightEnsemble) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in ensemble.named_parameters() if value.grad is not None}


def found_gradients(
    distillation: Distillation,
    images: Any = IMAGES,
    labels: Any = LABELS,
    ensemble_weight: float = 0.0,
    **options: Any,
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


def assert_equal(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12, msg=name)


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


@pytest.mark.parametrize("ensemble_weight", [0.0, 0.7])
def test_gradients_with_the_members_own_mean(ensemble_weight: float) -> None:
    own_mean = Distillation("ensemble", weight=0.6, temperature=2.5)
    found = found_gradients(own_mean, ensemble_weight=ensemble_weight)
    assert_equal(found, literal_gradients(lambda logits: (logits / 2.5).softmax(2).mean(0), ensemble_weight))


def test_gradients_with_the_mean_of_the_others() -> None:
    others = Distillation("others", weight=0.6, temperature=2.5)
    assert_equal(found_gradients(others), literal_gradients(lambda logits: (logits / 2.5).softmax(2).flip(0)))


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


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step) == (2, 1):
            raise Interrupted

    for kind, teacher in (
        ("network", conv_teacher()), ("ensemble", conv_ensemble(7)), ("own mean", "ensemble"), ("others", "others"),
        ("prefixes", "prefixes"), ("history", "history"),
    ):  # fmt: skip
        whole, data, folder = conv_ensemble(), small_data(), tmp_path / kind
        swe.train(whole, data, FAST, hooks=taught_by(teacher))
        with pytest.raises(Interrupted, match=r"^$"):
            swe.train(conv_ensemble(), data, FAST, hooks=taught_by(teacher), out=folder, callback=interrupt)
        with pytest.raises(swe.SuperWeightError, match=r"made with Distillation.teacher='.*', now 'sha256:.*': resume"):
            swe.train(conv_ensemble(), data, FAST, hooks=taught_by(conv_teacher(6)), out=folder, resume=True)
        with pytest.raises(swe.SuperWeightError, match=r"was made with Distillation.weight=0\.7, now 0\.6"):
            swe.train(conv_ensemble(), data, FAST, hooks=taught_by(teacher, 0.6), out=folder, resume=True)
        with pytest.raises(swe.SuperWeightError, match=r"was made with hooks=\['Distillation', 'LearnedWidths'\], now"):
            swe.train(conv_ensemble(), data, FAST, out=folder, resume=True)
        resumed = conv_ensemble(3)
        swe.train(resumed, data, FAST, hooks=taught_by(teacher), out=folder, resume=True)
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items()), kind


@pytest.mark.parametrize(
    "changes", [{"recompute": True}, {"compile": True}, {"micro_batches": "auto", "skip_non_finite": 1}]
)
def test_settings_of_how_steps_are_computed_change_nothing(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda member: member)
    for teacher in (conv_teacher(), "ensemble", "prefixes", "history"):
        plain, other = conv_ensemble(), conv_ensemble()
        expected = swe.train(plain, small_data(), FAST, hooks=taught_by(teacher)).history
        found = swe.train(other, small_data(), dataclasses.replace(FAST, **changes), hooks=taught_by(teacher)).history
        assert [record["train_loss"] for record in found] == [
            pytest.approx(record["train_loss"], rel=1e-4) for record in expected
        ]


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
    losses = taught_losses(current_processes().shard)
    torch.manual_seed(rank)
    teacher = network(20)
    try:
        swe.train(plain_ensemble(), Rows(current_processes().shard), FAST, hooks=taught_by(teacher))
    except swe.SuperWeightError as error:
        return {"losses": losses, "error": str(error), "remembered": remembering()}
    return {"losses": losses, "error": "", "remembered": remembering()}


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    answers, expected = two_processes.run(job, tmp_path), taught_losses((0, 1))
    for answer in answers:
        torch.testing.assert_close(answer["losses"], expected, rtol=1e-12, atol=0)
        assert "teacher" in answer["error"]  # one of other numbers in each process
        for found, wanted in zip(answer["remembered"], remembering()):
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


class Viewing(nn.Module):
    """Flattens feature maps by ``view``: channels-last ones cannot be viewed so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 8 * 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.first(images).view(len(images), -1))


def test_a_teacher_that_cannot_read_channels_last_gets_contiguous_images() -> None:
    teacher = Viewing()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        teacher(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    result = swe.train(conv_ensemble(), small_data(), dataclasses.replace(FAST, epochs=1), hooks=taught_by(teacher))
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
        *((name, {"member_batches": "own"}, "member_batches must be 'same'") for name in TOGETHER),
        (swe.wide_resnet(10, 1, 5), {}, "the teacher answers 5 classes, member 'deep' 4"),
        (swe.wide_resnet(10, 1, 4, in_channels=1), {}, r"the teacher cannot run on images \(16, 3, 8, 8\)"),
        (nn.ModuleList(), {}, r"the teacher cannot run on images \(16, 3, 8, 8\)"),
        (Answering(lambda images: images.sum()), {}, r"logits \(batch, classes\) or .*; got \(\) for a batch of 16"),
        (Answering(lambda images: [0]), {}, "must answer logits .*; got list for a batch of 16"),
        (Answering(lambda images: images.new_full((16, 4), math.nan)), {}, "the teacher's answers are not finite"),
    ],
)  # fmt: skip
def test_teachers_that_are_refused(teacher: Any, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=match):
        swe.train(conv_ensemble(), small_data(), dataclasses.replace(FAST, **changes), hooks=taught_by(teacher))


def test_teachers_that_do_not_go_with_what_is_trained() -> None:
    ensemble, data = conv_ensemble(), small_data()
    with pytest.raises(swe.SuperWeightError, match="the teacher is part of the ensemble that is trained"):
        swe.train(ensemble, data, FAST, hooks=taught_by(ensemble))
    with pytest.raises(swe.SuperWeightError, match="the teacher is part of the ensemble that is trained"):
        swe.train(ensemble, data, FAST, hooks=taught_by(ensemble.members["deep"]))
    with pytest.raises(swe.SuperWeightError, match="one alone would learn from itself"):
        swe.train(ensemble, data, FAST, hooks=taught_by("ensemble"), members=["deep"])
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(swe.SuperWeightError, match=r"remembers answers by image: train on ImageData, or on a loader"):
        swe.train(ensemble, batches, FAST, hooks=taught_by("history"))
    with pytest.raises(swe.SuperWeightError, match=r"order= must name each member .*: deep, wide; got deep"):
        swe.train(ensemble, data, FAST, hooks=[Distillation("prefixes", weight=0.5, order=["deep"])])
    with pytest.raises(swe.SuperWeightError, match="distillation is of the members' logits: it cannot go with"):
        swe.train(
            ensemble, data, FAST, hooks=taught_by("ensemble"), objective=lambda member, images, labels: images.sum()
        )


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
    with fixed.on_device(CPU), pytest.raises(swe.SuperWeightError, match=r"same classes; got \(6, 4\), \(6, 5\)"):
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
        ({"weight": 0.5, "order": ["a", "b"]}, "order= is of the teacher 'prefixes': leave it out"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=match):
        Distillation("ensemble", **changes)


def recipe_of(teacher: str | None = None, **changes: Any) -> Recipe:
    distillation = {} if teacher is None else {"distillation": {"teacher": teacher, "weight": 0.7}}
    content = {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64, "num_test": 16},
        "members": [
            {"name": "a", "model": "wide_resnet", "depth": 10, "width": 1},
            {"name": "b", "model": "wide_resnet", "depth": 16, "width": 1},
        ],
        "sharing": {"budget": 0.9},
        "training": {
            "epochs": 2, "batch_size": 16, "precision": "float32", "device": "cpu", "learning_rate": 0.02,
        },
        "baseline": "none",
    }  # fmt: skip
    return parse_recipe({**content, **distillation, **changes})


class Stop(Exception):
    """In the place of a kill."""


def stopped_in_the_second_epoch(arm: str) -> Any:
    def progress_of(name: str) -> Any:
        def look(progress: TrainProgress) -> None:
            if (name, progress.epoch, progress.step) == (arm, 2, 1):
                raise Stop

        return look

    return progress_of


def tensors_of(folder: Path) -> bytes:
    return (folder / "ensemble" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def taught_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose shared arm learned from its independent one."""
    folder, seen = tmp_path_factory.mktemp("runs") / "whole", []
    train_run(
        recipe_of(teacher="independent", baseline="independent"), folder,
        progress_of=lambda name: lambda progress: seen.append(name),
    )  # fmt: skip
    assert list(dict.fromkeys(seen)) == ["independent", "shared"]
    return folder


def test_the_independent_arm_teaches_and_learns_from_the_labels_alone(taught_apart: Path, tmp_path: Path) -> None:
    train_run(recipe_of(baseline="independent"), tmp_path / "labels")
    assert tensors_of(taught_apart / "independent") == tensors_of(tmp_path / "labels" / "independent")
    assert tensors_of(taught_apart / "shared") != tensors_of(tmp_path / "labels" / "shared")
    found = evaluate_run(taught_apart)
    assert [arm.name for arm in found.arms] == ["shared", "independent"]
    assert found.recipe["distillation"]["teacher"] == "independent"


@pytest.mark.parametrize("arm", ["independent", "shared"])
def test_a_run_with_the_independent_arm_as_teacher_goes_on(taught_apart: Path, tmp_path: Path, arm: str) -> None:
    recipe = recipe_of(teacher="independent", baseline="independent")
    with pytest.raises(Stop, match=r"^$"):
        train_run(recipe, tmp_path / "run", progress_of=stopped_in_the_second_epoch(arm))
    train_run(recipe, tmp_path / "run", resume=True)
    for name in ("shared", "independent"):
        assert tensors_of(tmp_path / "run" / name) == tensors_of(taught_apart / name)


@pytest.mark.parametrize("place", ["independent", "independent/ensemble"])
def test_a_saved_ensemble_teaches_as_the_arm_itself_did(taught_apart: Path, tmp_path: Path, place: str) -> None:
    recipe = recipe_of(teacher=str(taught_apart / place))
    with pytest.raises(Stop, match=r"^$"):
        train_run(recipe, tmp_path / "run", progress_of=stopped_in_the_second_epoch("shared"))
    train_run(recipe, tmp_path / "run", resume=True)
    assert tensors_of(tmp_path / "run" / "shared") == tensors_of(taught_apart / "shared")


@pytest.mark.parametrize("teacher", ["ensemble", "prefixes", "history"])
def test_a_run_whose_members_teach_each_other(teacher: str, tmp_path: Path) -> None:
    recipe = recipe_of(distillation={"teacher": teacher, "weight": 0.7, "ramp_up": 0.2, "ramp_down": 0.3})
    train_run(recipe, tmp_path / "whole")
    with pytest.raises(Stop, match=r"^$"):
        train_run(recipe, tmp_path / "run", progress_of=stopped_in_the_second_epoch("shared"))
    train_run(recipe, tmp_path / "run", resume=True)
    assert tensors_of(tmp_path / "run" / "shared") == tensors_of(tmp_path / "whole" / "shared")


def test_folders_that_are_no_teacher(taught_apart: Path, tmp_path: Path) -> None:
    (tmp_path / "begun" / "shared").mkdir(parents=True)
    (tmp_path / "begun" / "recipe.yaml").write_text("")
    for folder, match in (
        (
            tmp_path / "none",
            "teacher: .*none is no folder: give ensemble, .*, independent, or the folder",
        ),
        (taught_apart, "is a run: give one of its arms, such as .*shared"),
        (tmp_path / "begun" / "shared", "the arm .* is not trained to its end"),
        (tmp_path / "begun" / "shared" / "..", "is a run"),
        (tmp_path, "plan.json is missing: .* is no saved ensemble"),
    ):
        with pytest.raises(swe.SuperWeightError, match=match):
            train_run(recipe_of(teacher=str(folder)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": "independent"}, "'independent' is the baseline of that name: set baseline: independent"),
        ({"teacher": ""}, "distillation.teacher: String should have at least 1 character"),
        ({"teacher": "ensemble", "members": [{"name": "a", "model": "wide_resnet"}]}, "would learn from itself"),
        *(
            ({"teacher": name, "training": {"member_batches": "own"}}, "member_batches must be 'same'")
            for name in TOGETHER
        ),
        ({"distillation": {"teacher": "ensemble", "weight": 2.0}}, "distillation.weight must be .*at most 1"),
        ({"distillation": {"teacher": "ensemble"}}, "distillation.weight"),
        ({"distillation": {"teacher": "others", "weight": 0.5, "ramp_up": 1, "ramp_down": 1}}, "1 together at most"),
        ({"distillation": {"weight": 0.5}}, "distillation.teacher"),
        (
            {"training": {"distillation": 0.5}},
            r"training.distillation is no key any more: write distillation",
        ),
        ({"training": {"coefficient_rate": 0.1}}, "training.coefficient_rate is no key any more"),
    ],
)
def test_recipes_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=match):
        recipe_of(**changes)


def test_retired_keys_that_did_nothing_are_still_read() -> None:
    training = {"coefficient_rate": 1.0, "distillation": 0.0, "distillation_temperature": 4.0, "epochs": 2}
    assert recipe_of(training=training) == recipe_of(training={"epochs": 2})


def test_a_search_and_the_arms_of_a_comparison_learn_from_the_labels_alone() -> None:
    searching = recipe_of(teacher="ensemble", sharing={"budget": 0.95, "search": "gradient", "search_epochs": 1})
    assert searching.search_training() == dataclasses.replace(searching.training, epochs=1)
    arms = build_arms(
        recipe_of(teacher="independent", baseline="independent"), ["independent", "single"], [], []
    )  # fmt: skip
    found = {arm.name: (arm.recipe.taught_by("independent"), arm.recipe.baseline) for arm in arms}
    assert found == {"shared": (True, "independent"), "independent": (False, "none"), "single": (False, "none")}
    assert all(arm.recipe.distillation is None for arm in arms[1:])


def test_the_estimate_says_what_of_a_teacher_is_counted(taught_apart: Path) -> None:
    found = {}
    for teacher in ("ensemble", str(taught_apart / "independent")):
        recipe = recipe_of(teacher=teacher)
        members = recipe.build_members()
        estimate = recipe.estimate(members, recipe.plan(members))
        assert estimate is not None
        lines = estimate_lines(estimate, 1e9, "as given", taught=teacher != "ensemble")
        found[teacher] = (estimate.keeps_all, "without the teacher" in lines[0])
    assert list(found.values()) == [(True, False), (False, True)]


def test_a_checkpoint_of_a_training_from_labels_names_no_teacher(tmp_path: Path) -> None:
    swe.train(conv_ensemble(), small_data(), FAST, out=tmp_path / "run")
    state = next((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    settings = json.loads(state.read_text())["settings"]
    assert settings["hooks"] == ["LearnedWidths"] and "Distillation.teacher" not in settings
