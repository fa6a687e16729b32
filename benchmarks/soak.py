"""A long training with validation, evaluation and checkpoints, killed once and resumed: does anything grow or get lost?

    python benchmarks/soak.py --steps 2400 --out benchmarks/results/soak.json

The four networks of the recipe digits train in a process of their own, which is killed by SIGKILL after 40 % of the
steps and resumed by another. Both note, every 20 steps, their resident memory, open files and threads. Every epoch is
validated and saved, every twentieth also evaluated on the test images, with every subset. The slope is of a line fitted
to memory over steps, without a process's first 200. At the end the log and what TensorBoard reads are compared with the
history, epoch by epoch.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.training import TrainProgress

EVERY = 20
WARM_UP = 200
BATCH = 32


def main() -> None:
    options = harness.read_options(harness.new_parser(__doc__, steps=2400))
    torch.set_num_threads(1)
    data = swe.load_data("digits", validation_fraction=0.1)
    steps_per_epoch = len(data.train) // BATCH
    epochs = -(-options.steps // steps_per_epoch)
    config = swe.TrainConfig(
        epochs=epochs, batch_size=BATCH, learning_rate=0.05, precision="float32", device="cpu", num_threads=1,
        crop_padding=1, checkpoint_steps=10,
    )  # fmt: skip
    kill_at = int(0.4 * epochs) * steps_per_epoch + steps_per_epoch // 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = [
            part_of_run(data, config, folder, "killed", kill_at),
            part_of_run(data, config, folder, "resumed", None),
        ]
        found = {
            "steps": epochs * steps_per_epoch,
            "epochs": epochs,
            "killed_after_step": kill_at,
            "parts": parts,
            **completeness(folder, epochs),
            "bytes_of_checkpoints": sum(file.stat().st_size for file in folder.glob("run/checkpoints/**/*")),
        }
    harness.write_results(options.out, "soak", **found)
    harness.show([*parts, found])


def part_of_run(
    data: ImageData, config: swe.TrainConfig, folder: Path, name: str, kill_at: int | None
) -> dict[str, Any]:
    """Train in a process of its own; what it noted."""
    notes = folder / f"{name}.jsonl"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            train(data, config, folder / "run", notes, kill_at)
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code == (0 if kill_at is None else -signal.SIGKILL), f"{name} ended with {code}"
    return summary(name, [json.loads(line) for line in notes.read_text().splitlines()])


def train(data: ImageData, config: swe.TrainConfig, out: Path, notes: Path, kill_at: int | None) -> None:
    torch.manual_seed(0)
    sizes = ((16, 2), (10, 2), (16, 1), (10, 1))
    members = {f"wrn{depth}-{width}": swe.wide_resnet(depth, width, 10, in_channels=1) for depth, width in sizes}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.83)

    def look(progress: TrainProgress) -> None:
        step = (progress.epoch - 1) * progress.steps_per_epoch + progress.step
        if progress.record is not None:
            if progress.epoch % 20 == 0:
                swe.evaluate(ensemble, data.loader("test", 256))
            return
        if step % EVERY == 0:
            with notes.open("a") as file:
                file.write(json.dumps({"step": step, **standing()}) + "\n")
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    swe.train(ensemble, data, config, out=out, resume=True, callback=look)


def standing() -> dict[str, int]:
    """Resident bytes, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def summary(name: str, notes: list[dict[str, int]]) -> dict[str, Any]:
    first = notes[0]["step"]
    warm = [note for note in notes if note["step"] >= first + WARM_UP]
    steps = np.array([note["step"] for note in warm])
    resident = np.array([note["resident"] for note in warm]) / 2**20
    return {
        "name": name,
        "steps": notes[-1]["step"] - first + EVERY,
        "slope_mib_per_1000_steps": float(np.polyfit(steps, resident, 1)[0] * 1000),
        "first_mib": float(resident[0]),
        "last_mib": float(resident[-1]),
        "most_mib": float(resident.max()),
        "open_files": [min(note["open_files"] for note in warm), max(note["open_files"] for note in warm)],
        "threads": [min(note["threads"] for note in warm), max(note["threads"] for note in warm)],
        "notes": notes,
    }


def completeness(folder: Path, epochs: int) -> dict[str, Any]:
    """Whether every epoch stands once in the log, and once in what TensorBoard shows."""
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    name = "validation/ensemble/accuracy"
    shown = {event.step: event.value for event in events.Scalars(name)}
    told = {record["epoch"]: np.float32(record["validation"]["ensemble"]["accuracy"]) for record in log}
    return {
        "log_complete": [record["epoch"] for record in log] == list(range(1, epochs + 1)),
        "tensorboard_complete": len(events.Scalars(name)) == epochs and shown == told,
        "event_files": len(list((folder / "run" / "tensorboard").iterdir())),
    }


if __name__ == "__main__":
    main()
