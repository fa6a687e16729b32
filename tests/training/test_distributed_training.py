"""Trainings on two processes: equal to one, stopped, resumed by another number, killed and started again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import two_processes
import yaml

import superweight_ensembles as swe
from superweight_ensembles.errors import TrainingStopped
from superweight_ensembles.experiment import parse_recipe, read_results, train_run
from superweight_ensembles.training import TrainProgress, build_fabric
from superweight_ensembles.training.distributed import current_processes

CONFIG = swe.TrainConfig(
    epochs=24, batch_size=10, learning_rate=0.05, precision="float32", device="cpu", schedule="constant"
)
CONTENT = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 16},
    "members": [
        {"name": "twin", "model": "wide_resnet", "depth": 10, "width": 1},
        {"name": "deep", "model": "wide_resnet", "depth": 16, "width": 1},
        {"name": "wide", "model": "wide_resnet", "depth": 10, "width": 2},
    ],
    "sharing": {
        "budget": 0.95, "search": "gradient", "search_epochs": 1, "threshold": 0.2, "untie_epoch": 1,
        "untie_threshold": 0.8,
    },
    "training": {
        "epochs": 2, "batch_size": 16, "precision": "float32", "device": "cpu", "learning_rate": 0.002, "flip": True,
        "checkpoint_steps": 2,
    },
    "baseline": "none",
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


class Rows:
    """One batch an epoch, in float64; of it, the rows of one process, more of them for the last."""

    def __init__(self, shard: tuple[int, int]) -> None:
        (images, labels), *_ = swe.load_data("synthetic").loader("train", 10)
        self.rows = slice(0, 10) if shard[1] == 1 else (slice(0, 4), slice(4, 10))[shard[0]]
        self.images, self.labels = images.double(), labels

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield self.images[self.rows], self.labels[self.rows]


def members() -> dict[str, torch.nn.Module]:
    torch.manual_seed(5)
    return {"a": swe.wide_resnet(10, 1, 4).double(), "b": swe.wide_resnet(16, 1, 4).double()}


def losses_of_24_steps(shard: tuple[int, int]) -> torch.Tensor:
    ensemble = swe.SuperWeightEnsemble(members(), budget=0.9, rng=torch.Generator().manual_seed(1 + shard[0]))
    if not shard[0]:
        start = swe.SuperWeightEnsemble(members(), budget=0.9, rng=torch.Generator().manual_seed(9))
        ensemble.bank.load_state_dict(start.bank.state_dict())
    history = swe.train(ensemble, Rows(shard), CONFIG).history
    return torch.tensor([list(record["train_loss"].values()) for record in history], dtype=torch.float64)


def refusal(**changes: object) -> str | None:
    try:
        swe.train(swe.SuperWeightEnsemble(members(), budget=0.9), Rows((0, 1)), dataclasses.replace(CONFIG, **changes))
    except swe.SuperWeightError as error:
        return str(error)
    return None


class BadBatch(Rows):
    """Of the third batch, the second process has an image that is no number."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(5):
            images = self.images[self.rows].clone()
            if number == 2 and self.rows.start:
                images[0, 0, 0, 0] = float("nan")
            yield images, self.labels[self.rows]

    def __len__(self) -> int:
        return 5


def bad_batch(shard: tuple[int, int], **changes: int) -> dict:
    ensemble = swe.SuperWeightEnsemble(members(), budget=0.9, rng=torch.Generator().manual_seed(9))
    config = dataclasses.replace(CONFIG, epochs=1, **changes)
    try:
        history = swe.train(ensemble, BadBatch(shard), config).history
    except swe.SuperWeightError as error:
        return {"error": str(error)}
    state = {name: value.double() for name, value in ensemble.state_dict().items()}
    return {"skipped": history[0]["skipped_steps"], "state": state}


def job(rank: int, folder: Path) -> dict:
    """What each of the two does."""
    build_fabric(CONFIG)
    found = {"losses": losses_of_24_steps(current_processes().shard)}
    found["auto"] = refusal(micro_batches="auto")
    shard = current_processes().shard
    found["skipped"], found["bad"] = bad_batch(shard, skip_non_finite=1), bad_batch(shard)
    found["compiled"] = refusal(compile=True)
    found["apart"] = refusal(epochs=3 + rank)
    recipe = parse_recipe(CONTENT)
    train_run(recipe, folder / "two")
    found["stopped"] = stopped_by_a_signal_to_the_second(rank, folder / "stopped")
    train_run(recipe, folder / "one-then-two", resume=True)
    return found


def stopped_by_a_signal_to_the_second(rank: int, folder: Path) -> str | None:
    def progress_of(stage: str):
        def look(progress: TrainProgress) -> None:
            if rank == 1 and (stage, progress.epoch, progress.step) == ("shared", 2, 1) and progress.record is None:
                os.kill(os.getpid(), signal.SIGTERM)

        return look

    try:
        train_run(parse_recipe(CONTENT), folder, progress_of=progress_of)
    except TrainingStopped as stop:
        return str(stop)
    return None


def stop_one(folder: Path) -> None:
    """A run of one process, stopped in the middle of an epoch."""

    def look(progress: TrainProgress) -> None:
        if (progress.epochs, progress.epoch, progress.step) == (2, 2, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStopped, match="after step 3 of epoch 2"):
        train_run(
            parse_recipe(CONTENT),
            folder,
            progress_of=lambda stage: look if stage == "shared" else lambda progress: None,
        )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("runs")
    stop_one(folder / "one-then-two")
    answers = two_processes.run(job, folder)
    train_run(parse_recipe(CONTENT), folder / "one")
    train_run(parse_recipe(CONTENT), folder / "stopped", resume=True)
    return folder, answers


def losses(folder: Path) -> torch.Tensor:
    history = json.loads((folder / "shared" / "training.json").read_text())["history"]
    return torch.tensor([list(record["train_loss"].values()) for record in history])


def test_losses_are_those_of_one_process(done: tuple[Path, list[dict]]) -> None:
    """In float64, over 24 steps, with parts of unlike size and start values that only the first process had."""
    first, second = (answer["losses"] for answer in done[1])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, losses_of_24_steps((0, 1)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["two", "stopped", "one-then-two"])
def test_runs_have_the_plans_and_losses_of_one_process(done: tuple[Path, list[dict]], name: str) -> None:
    """Search, un-tying and training; also where the number of processes changes in the middle of an epoch."""
    folder = done[0]
    for file in ("search/plan.json", "plan.json", "shared/ensemble/plan.json"):
        assert (folder / name / file).read_text() == (folder / "one" / file).read_text(), file
    # float32: sums in another order, and what training makes of it
    torch.testing.assert_close(losses(folder / name), losses(folder / "one"), rtol=1e-4, atol=0)
    log = [json.loads(line)["epoch"] for line in (folder / name / "shared" / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2]
    assert len(list((folder / name / "shared" / "tensorboard").iterdir())) == 1 + (name != "two")


def test_a_signal_to_one_process_stops_both_after_the_same_step(done: tuple[Path, list[dict]]) -> None:
    said = [answer["stopped"] for answer in done[1]]
    assert said[0] == said[1] and "stopped by SIGTERM after step 2 of epoch 2" in said[0]


def test_a_bad_number_of_one_process_is_left_out_by_both(done: tuple[Path, list[dict]]) -> None:
    first, second = (answer["skipped"] for answer in done[1])
    assert first["skipped"] == second["skipped"] == 1
    for name, value in first["state"].items():
        assert torch.isfinite(value).all() and torch.equal(value, second["state"][name]), name


def test_a_bad_number_of_one_process_stops_both_in_the_same_words(done: tuple[Path, list[dict]]) -> None:
    said = [answer["bad"]["error"] for answer in done[1]]
    assert said[0] == said[1]
    assert "step 3 of epoch 1: " in said[0] and "the images hold numbers that are not finite" in said[0]


def test_what_several_processes_refuse(done: tuple[Path, list[dict]]) -> None:
    for answer in done[1]:
        assert "micro_batches 'auto' works in one process" in answer["auto"]
        assert "compiled members are slower with batch norm over several processes" in answer["compiled"]
        assert "the processes of the job disagree on the training's settings" in answer["apart"]


# Started by torchrun.


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env={**ENVIRONMENT, **environment}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def torchrun(*arguments: object, restarts: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", restarts)
    return python(*launcher, *arguments, **environment)


KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from superweight_ensembles import __main__ as cli
from superweight_ensembles.training.step import TrainStep

mark, call = Path(os.environ["MARK"]), TrainStep.__call__

def step(self, batches, signal_number=0):
    progress = self._state.progress
    there = (os.environ["RANK"], len(progress.history), progress.step) == (os.environ["VICTIM"], 1, 3)
    if there and not mark.exists():
        mark.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, batches, signal_number)

TrainStep.__call__ = step
recipe, run = sys.argv[1:]
for arguments in (["train", recipe, "--out", run], ["evaluate", run]):
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "victim"), [("rows", 1), ({"members": 2, "rows": 1}, 0)])
def test_torchrun_starts_a_job_again_whose_process_was_killed(mesh: object, victim: int, tmp_path: Path) -> None:
    """The job that goes on also evaluates its run."""
    recipe, script, run = tmp_path / "recipe.yaml", tmp_path / "killed.py", tmp_path / "run"
    content = {**CONTENT, "sharing": {"budget": 0.95}}
    recipe.write_text(yaml.safe_dump({**content, "training": {**CONTENT["training"], "mesh": mesh}}))
    script.write_text(KILLED_ONCE)
    mark = tmp_path / "mark"
    ended = torchrun(script, recipe, run, MARK=str(mark), VICTIM=str(victim), restarts=2)
    assert ended.returncode == 0, ended.stderr
    assert "exitcode: -9" in ended.stderr and mark.is_file()
    assert ended.stdout.count("trained:") == ended.stdout.count("results:") == 1
    assert read_results(run)[0].arms[0].num_samples == 16
    train_run(parse_recipe(content), tmp_path / "one")
    torch.testing.assert_close(losses(run), losses(tmp_path / "one"), rtol=1e-4, atol=0)


def test_what_runs_in_one_process() -> None:
    told = python("-m", "superweight_ensembles", "plot", "run", WORLD_SIZE="2", RANK="0")
    assert told.returncode == 2 and "plot runs in one process: start it without torchrun" in told.stderr
