"""What stops a training, and what is left of it then: signals, full disks, second processes, bad numbers, no memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kill_resume
import pytest
import tiny_recipe
import torch
from torch import nn
from training_cases import assert_same, at, deep_and_wide, gradients_of, refused

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.errors import TrainingStopped
from superweight_ensembles.experiment import evaluate_run, parse_recipe, train_run
from superweight_ensembles.experiment import run_folder as runs
from superweight_ensembles.storage import draft_of, is_draft, whole_folder
from superweight_ensembles.storage import folders as lock
from superweight_ensembles.training import Checkpoints, Execution, JointLoss, TrainProgress, best_epoch, joint_backward

FAST = swe.TrainConfig(epochs=3, batch_size=16, precision="float32", device="cpu", learning_rate=0.05, flip=True)
STEPS = 5
QUICK_RUN = {
    **tiny_recipe.CONTENT,
    "sharing": {"budget": 0.95, "search": "gradient", "search_epochs": 1, "search_batches": 1},
    "baseline": "none",
}


def data() -> ImageData:
    return swe.load_data("synthetic", num_train=96, num_test=16)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@functools.cache
def uninterrupted(config: swe.TrainConfig = FAST) -> swe.SuperWeightEnsemble:
    """Trained without any disturbance."""
    ensemble = deep_and_wide()
    assert len(data().train) // FAST.batch_size == STEPS
    swe.train(ensemble, data(), config)
    return ensemble


def assert_goes_on(folder: Path, config: swe.TrainConfig = FAST, **options: Any) -> None:
    """A resumed training ends bit by bit like one that was not disturbed."""
    resumed = deep_and_wide(seed=3)
    swe.train(resumed, data(), config, out=folder, resume=True, **options)
    assert_same(resumed, uninterrupted(config))


# Stopping and going on.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 3), (2, STEPS), (3, STEPS)])
def test_a_signal_ends_the_step_and_saves(tmp_path, number: int, epoch: int, step: int) -> None:
    with pytest.raises(TrainingStopped, match=f"stopped by {number.name} after step {step} of epoch {epoch}") as stop:
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path, callback=at(epoch, step, send(number)))
    assert (stop.value.signal, stop.value.saved) == (number, True)
    assert names(tmp_path)[-1] == f"epoch-{epoch - 1:04d}-step-{step:06d}"
    taken: list[TrainProgress] = []
    assert_goes_on(tmp_path, callback=taken.append)
    assert sum(progress.record is None for progress in taken) == 3 * STEPS - (epoch - 1) * STEPS - step
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_second_signal_stops_at_once(tmp_path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(TrainingStopped, match=r"^stopped by SIGINT$") as stop:
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path, callback=at(1, 2, twice))
    assert not stop.value.saved and not (tmp_path / "checkpoints").exists()


def test_without_a_folder_a_signal_does_what_it_always_does() -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        swe.train(deep_and_wide(), data(), FAST, callback=at(1, 2, send(signal.SIGINT)))


def test_handlers_of_the_program_stay(tmp_path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        config = dataclasses.replace(FAST, epochs=1)
        swe.train(deep_and_wide(), data(), config, out=tmp_path, callback=at(1, 2, send(signal.SIGTERM)))
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trains_outside_of_the_main_thread(tmp_path) -> None:
    results = []
    config = dataclasses.replace(FAST, epochs=1)
    thread = threading.Thread(target=lambda: results.append(swe.train(deep_and_wide(), data(), config, out=tmp_path)))
    thread.start()
    thread.join()
    assert len(results[0].history) == 1


class Shuffled:
    """A loader of the user's own, whose order and noise come from global generators."""

    def __init__(self) -> None:
        self.images, self.labels = torch.randn(48, 3, 8, 8), torch.randint(4, (48,))

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(48).split(8):
            yield self.images[rows] + 0.1 * torch.randn(8, 3, 8, 8), self.labels[rows]


def dropping() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    return swe.SuperWeightEnsemble({"wide": swe.wide_resnet(10, 2, 4), "drop": nn.Sequential(*layers)}, budget=0.9)


def test_generators_go_on_within_an_epoch(tmp_path) -> None:
    """Order and noise of a loader of one's own, and dropout, after a stop in the middle of an epoch."""
    batches, config = Shuffled(), dataclasses.replace(FAST, epochs=2, batch_size=8, flip=False, checkpoint_steps=1)
    first, second = dropping(), dropping()
    expected = swe.train(first, batches, config)
    with pytest.raises(TrainingStopped, match="after step 4 of epoch 2"):
        swe.train(dropping(), batches, config, out=tmp_path, callback=at(2, 4, send(signal.SIGTERM)))
    torch.manual_seed(99)
    found = swe.train(second, batches, config, out=tmp_path, resume=True)
    assert_same(first, second)
    assert [record["train_loss"] for record in found.history] == [record["train_loss"] for record in expected.history]


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch) -> None:
    from superweight_ensembles.training import loop as epochs

    accuracies = iter([0.3, 0.9, 0.5, 0.9, 0.2])

    def validate(state: object, batches: object, num_batches: int | None = None) -> dict:
        if num_batches is not None:  # tried before the first step
            return {}
        quality = {"accuracy": next(accuracies), "nll": 1.0}
        return {"members": {"deep": quality, "wide": quality}, "ensemble": quality}

    monkeypatch.setattr(epochs, "validate", validate)
    config = dataclasses.replace(FAST, epochs=5, checkpoint_steps=4)
    result = swe.train(deep_and_wide(), data(), config, out=tmp_path)
    assert result.best_epoch == best_epoch(result.history) == 2
    assert names(tmp_path) == ["epoch-0002-step-000000", "epoch-0004-step-000004", "epoch-0005-step-000000"]
    best = swe.SuperWeightEnsemble.load(tmp_path / "checkpoints" / "epoch-0002-step-000000")  # an ensemble, too
    assert best.member_names == ("deep", "wide")
    Checkpoints(tmp_path / "checkpoints").keep_best(result.history)
    assert names(tmp_path) == ["epoch-0002-step-000000"]
    Checkpoints(tmp_path / "checkpoints").keep_best(result.history[:2])  # the last is the best: it is saved as the end
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_left_for_the_one_before_it(tmp_path, caplog, victim: str) -> None:
    swe.train(deep_and_wide(), data(), FAST, out=tmp_path)
    newest = tmp_path / "checkpoints" / names(tmp_path)[-1]
    content = bytearray((newest / victim).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / victim).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_goes_on(tmp_path)
    assert f"{victim} does not have its checksum" in caplog.text and "going back" in caplog.text


def test_no_whole_checkpoint_is_an_error(tmp_path) -> None:
    swe.train(deep_and_wide(), data(), FAST, out=tmp_path)
    for name in names(tmp_path):
        moments = tmp_path / "checkpoints" / name / "optimizer.safetensors"
        moments.write_bytes(moments.read_bytes()[:-100])
    with refused(r"no checkpoint in .* can be used: .* bytes, and .* were"):
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path, resume=True)


def test_half_written_checkpoints_are_cleared_away(tmp_path) -> None:
    with pytest.raises(TrainingStopped, match="epoch 2"):
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path, callback=at(2, 1, send(signal.SIGTERM)))
    half = tmp_path / "checkpoints" / ".epoch-0001-step-000003.0123456789ab"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert_goes_on(tmp_path)
    assert not half.exists()


@pytest.mark.parametrize("count", range(1, 40, 3))
def test_a_checkpoint_that_fails_anywhere_leaves_the_one_before_it(tmp_path, monkeypatch, count: int) -> None:
    """The n-th call that puts something on the disk raises; whatever the place, going on ends the same."""
    config = dataclasses.replace(FAST, epochs=2)
    calls = []

    def failing(act: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            calls.append(act.__name__)
            if len(calls) == count:
                raise OSError(28, "No space left on device")
            return act(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        failure = None
        try:
            swe.train(deep_and_wide(), data(), config, out=tmp_path)
        except swe.SuperWeightError as error:
            failure = str(error)
    assert failure is None if len(calls) < count else "No space left on device" in str(failure)
    resumed = deep_and_wide()  # there may be no checkpoint yet
    swe.train(resumed, data(), config, out=tmp_path, resume=True)
    assert_same(resumed, uninterrupted(config))


# Disks and other processes.


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path) -> None:
    def fill(progress: TrainProgress) -> None:
        if progress.record is not None and progress.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    match = r"checkpoint .*epoch-0002-step-000000 cannot be written: .*; epoch-0001-step-000000 is whole: make room"
    with files_of_at_most(resource.RLIM_INFINITY), refused(match):
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path, callback=fill)
    assert names(tmp_path) == ["epoch-0001-step-000000"]
    assert_goes_on(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with refused(r"file/run cannot be written to: .*Not a directory"):
        swe.train(deep_and_wide(), data(), FAST, out=tmp_path / "file" / "run")


def test_a_saved_ensemble_is_whole_or_as_before(tmp_path) -> None:
    ensemble = deep_and_wide()
    ensemble.save(tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(1)
    with files_of_at_most(20_000), refused(r"cannot be written: .*the ensemble saved there is unchanged"):
        ensemble.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_folder_gets_the_permissions_that_the_user_gives(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "made") as draft:
            (draft / "file").write_text("")
        deep_and_wide().save(tmp_path / "saved")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o640}


def test_a_second_process_in_a_folder_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.2)

    def second() -> None:
        with refused(r"another process is at work in .*: wait for it"):
            swe.train(deep_and_wide(), data(), FAST, out=tmp_path, resume=True)

    config = dataclasses.replace(FAST, epochs=1)
    swe.train(deep_and_wide(), data(), config, out=tmp_path, callback=at(1, 2, second))
    swe.train(deep_and_wide(), data(), config, out=tmp_path, resume=True)  # and let go at the end


def test_a_second_process_in_a_run_folder_is_refused(tmp_path, monkeypatch) -> None:
    """Training, resuming, replacing and evaluating; what is there stays."""
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.2)
    recipe = parse_recipe(QUICK_RUN)
    train_run(recipe, tmp_path / "run")
    for path in sorted((tmp_path / "run").rglob("*")):
        path.touch()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    with lock.locked_folder(tmp_path / "run"):
        for act in (
            lambda: train_run(recipe, tmp_path / "run", resume=True),
            lambda: train_run(recipe, tmp_path / "run", overwrite=True),
            lambda: evaluate_run(tmp_path / "run"),
        ):
            with refused(r"another process is at work in .*run"):
                act()
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize("spot", ["recipe.yaml", "run.json", "plan.json"])
@pytest.mark.parametrize("done", [False, True], ids=["half written", "written"])
def test_a_run_killed_as_it_begins_goes_on(tmp_path, monkeypatch, spot: str, done: bool) -> None:
    recipe, write = parse_recipe(QUICK_RUN), runs.write_text

    class Killed(BaseException):
        pass

    def die(path: Path, text: str) -> None:
        if path.name == spot:
            if done:
                write(path, text)
            else:
                draft_of(path).write_text(text[:9])
            raise Killed
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_text", die)
        patch.setattr(runs, "write_json", lambda path, content: die(path, json.dumps(content)))
        with pytest.raises(Killed, match=r"^$"):
            train_run(recipe, tmp_path / "run")
    train_run(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "shared" / "training.json").is_file()
    assert not [path for path in (tmp_path / "run").rglob("*") if is_draft(path.name)]


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_identical(tmp_path) -> None:
    """A few of what the benchmark does a hundred times."""
    found = kill_resume.measure(parse_recipe(kill_resume.CONTENT), 4, random.Random(1), tmp_path)
    assert found["identical"] == 4, found["trials"]


# Numbers that are not finite.


class Exploding(nn.Module):
    """Answers what is not finite for the calls given; a training call changes its buffer for ever."""

    def __init__(self, bad_calls: set[int], where: str = "loss") -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)
        self.bad_calls, self.where, self.calls = bad_calls, where, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.training and self.calls in self.bad_calls:
            if self.where == "loss":
                images = images * float("inf")
            else:  # a root of zero: finite forward, and a gradient that is not
                return self.head(self.inner(images).clamp(max=0).mul(0).sqrt().mean((2, 3)))
        return self.head(self.inner(images).mean((2, 3)))


def exploding(bad_calls: set[int], where: str = "loss") -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"calm": swe.wide_resnet(10, 1, 4), "wild": Exploding(bad_calls, where)}
    return swe.SuperWeightEnsemble(members, budget=1.0)


def with_a_nan() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.zeros(16, 3, 8, 8)
    images[3, 0, 0, 0] = float("nan")
    return [(images, torch.zeros(16, dtype=torch.long))]


ALWAYS = set(range(2, 100))


@pytest.mark.parametrize(
    ("make", "batches", "changes", "match"),
    [
        (
            lambda: exploding(ALWAYS - set(range(8))), data, {},
            r"step 3 of epoch 2: the loss of member 'wild' is nan; the gradient of wild\.inner\.0\.weight, "
            r"wild\.inner\.3\.weight, .* is not finite; lower learning_rate \(skip_non_finite leaves such steps out\)",
        ),
        (
            lambda: exploding(ALWAYS, "gradient"), data, {},
            r"step 2 of epoch 1: the gradient of wild\.inner\.0\.weight, .* is not finite",
        ),
        (deep_and_wide, with_a_nan, {"flip": False}, r"step 1 of epoch 1: .*the images hold numbers"),
        (
            lambda: exploding(ALWAYS), data, {"skip_non_finite": 2},
            r"step 4 of epoch 1: .*lower learning_rate \(2 steps were left out before it\)",
        ),
    ],
    ids=["loss", "gradient", "images", "more than may be left out"],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_blamed_on_member_step_and_targets(
    tmp_path, make: Any, batches: Any, changes: dict, match: str
) -> None:
    with refused(match):
        swe.train(make(), batches(), dataclasses.replace(FAST, **changes), out=tmp_path)
    written = names(tmp_path) if (tmp_path / "checkpoints").exists() else []
    assert written == (["epoch-0001-step-000000"] if "epoch 2" in match else [])


def test_steps_can_be_left_out(tmp_path, caplog) -> None:
    """A step that is left out leaves no trace in weights, moments or norm statistics."""
    config = dataclasses.replace(FAST, epochs=1, skip_non_finite=2)
    ensemble = exploding({3})  # the call after it, which looks for the reason, is finite
    with caplog.at_level(logging.WARNING):
        result = swe.train(ensemble, data(), config, out=tmp_path)
    assert "left out (1 of at most 2): step 3 of epoch 1" in caplog.text
    assert result.history[0]["skipped_steps"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in ensemble.state_dict().values())
    assert int(ensemble.members["wild"].inner[1].num_batches_tracked) == STEPS - 1
    assert int(ensemble.members["calm"].norm.num_batches_tracked) == STEPS - 1


# Memory.


class Hungry(nn.Module):
    """Has memory for so many images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)
        self.most = most

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > self.most:
            torch.empty(2**62 // 4, dtype=torch.float32)  # what no machine has
        return self.head(self.inner(images).mean((2, 3)))


def hungry(most: int) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    return swe.SuperWeightEnsemble({"small": Hungry(10**6), "big": Hungry(most)}, budget=0.9)


def test_no_memory_names_member_and_batch() -> None:
    with refused(r"out of memory in member 'big', at a batch of 16: raise .*micro"):
        swe.train(hungry(15), data(), FAST)
    with refused(r"in member 'big', at a batch of 16 in 2 parts"):
        swe.train(hungry(7), data(), dataclasses.replace(FAST, micro_batches=2))


def test_parts_of_a_batch_are_found_by_themselves(tmp_path, caplog) -> None:
    """And the mathematics stays: members without batch norm end as if there had been memory."""
    config = dataclasses.replace(FAST, epochs=2, channels_last=False)
    whole = hungry(10**6)
    swe.train(whole, data(), config)
    found = hungry(5)
    with caplog.at_level(logging.WARNING):
        result = swe.train(found, data(), dataclasses.replace(config, micro_batches="auto"), out=tmp_path)
    assert result.micro_batches == 4
    assert "out of memory at a batch of 16: from now on in 2 parts" in caplog.text and "in 4 parts" in caplog.text
    torch.testing.assert_close(found.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    with refused("at a batch of 16 in 8 parts"):
        swe.train(hungry(0), data(), dataclasses.replace(config, micro_batches="auto"))


@pytest.mark.parametrize("ensemble_weight", [0.0, 0.5])
@pytest.mark.parametrize("parts", [2, 3, 16, 40])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts: int, ensemble_weight: float) -> None:
    ensemble = hungry(10**6).double()
    images, labels = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randint(4, (16,))
    found = []
    for count in (1, parts):
        ensemble.zero_grad()
        loss = JointLoss(loss_function=nn.functional.cross_entropy, ensemble_weight=ensemble_weight)
        losses = joint_backward(ensemble, images, labels, loss, execution=Execution(micro_batches=count))
        found.append((losses, gradients_of(ensemble)))
    torch.testing.assert_close(found[1], found[0])
