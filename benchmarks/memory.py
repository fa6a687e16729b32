"""Memory of a training step and of what it leaves behind: the bank against the same members with their own weights.

    python benchmarks/memory.py --out benchmarks/results/memory.json
    python benchmarks/memory.py --device cuda --out cuda.json

Both arms run member by member and hold one optimiser. The peak is counted in live tensor bytes (parameters, optimiser
state, batch and all that a step makes), with the resident set of the process beside it (on CUDA: what the allocator
reserved), each run in a process of its own. Optimiser state, saved ensembles and checkpoints stand beside the budget's
fraction; so does the time to plan four members of many targets.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from growth_point import ResidualMLP, median_seconds
from peak_memory import Peak, allocator_settings, in_fresh_process, state_bytes
from safetensors.torch import save_file
from training_steps import (
    Batch,
    Step,
    apart_step,
    joint_step,
    random_batch,
    recipe_batch,
    recipe_ensemble,
    recipe_members,
    step_peak,
    training_state,
)

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.training import Checkpoints, TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One recipe at one precision."""

    recipe: str
    batch_size: int
    image_size: int
    precision: str
    threads: int
    device: str


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipes=["recipes/cifar10-small.yaml:128", "recipes/timm-members.yaml:16"], image_size=32,
        repetitions=3, device="cpu", plan_members=4, plan_targets=300, threads=0,
    )  # fmt: skip
    options = harness.read_options(parser)
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    sizes = [size.rpartition(":")[::2] for size in options.recipes]
    settings = [
        Setting(recipe=recipe, batch_size=int(batch), image_size=options.image_size, precision=precision,
                threads=options.threads, device=options.device)
        for recipe, batch in sizes for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    steps = [measure_step(setting, options.repetitions) for setting in settings]
    kept = [in_fresh_process(measure_kept, recipe, int(batch), options.image_size) for recipe, batch in sizes]
    planning = measure_planning(options.plan_members, options.plan_targets)
    harness.write_results(
        options.out, "memory", environment=allocator_settings(), steps=steps, kept=kept, planning=planning
    )
    harness.show([*steps, *kept, planning])


def measure_step(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Peaks of both arms; repetitions alternate, and live bytes, which do not vary, are counted in the first."""
    peaks: dict[str, list[Peak]] = {"bank": [], "own": []}
    for repetition in range(repetitions):
        for arm, found in peaks.items():
            found.append(in_fresh_process(peak_of, setting, arm, repetition == 0))
    live = {arm: found[0] for arm, found in peaks.items()}
    resident = {arm: statistics.median(peak.resident for peak in found) for arm, found in peaks.items()}
    return {
        **asdict(setting),
        "peak_bytes": {arm: peak.live for arm, peak in live.items()},
        "persistent_bytes": {arm: peak.persistent for arm, peak in live.items()},
        "peak_ratio": live["bank"].live / live["own"].live,
        "resident_bytes": {arm: [peak.resident for peak in found] for arm, found in peaks.items()},
        "resident_ratio": resident["bank"] / resident["own"],
    }


def peak_of(setting: Setting, arm: str, live: bool) -> Peak:
    """The peak of a training step of one arm; call it in a fresh process."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    config = TrainConfig(precision=setting.precision, device=setting.device, learning_rate=0.01)

    def build() -> tuple[Step, torch.optim.Optimizer, Batch]:
        recipe = load_recipe(setting.recipe)
        batch = recipe_batch(recipe, config, setting.batch_size, setting.image_size)
        if arm == "bank":
            return *joint_step(recipe_ensemble(recipe, config), config), batch
        return *apart_step(recipe_members(recipe, config), config), batch

    return step_peak(swe.wide_resnet(10, 1, 10), build, config, live)


def measure_kept(recipe_file: str, batch_size: int, image_size: int) -> dict[str, Any]:
    """Bytes of the optimiser's state after a step, of a saved ensemble and of a checkpoint; float32, both arms."""
    recipe = load_recipe(recipe_file)
    members = recipe.build_members()
    plan = recipe.plan(members)
    plans = {"bank": plan, "own": swe.independent_plan(members)}
    batch = random_batch(batch_size, image_size)
    state, saved, checkpoint = {}, {}, {}
    config = TrainConfig(precision="float32", device="cpu", learning_rate=0.01)
    for arm, sharing in plans.items():
        ensemble = swe.SuperWeightEnsemble(members, plan=sharing)
        step, optimizer = joint_step(ensemble, config)
        step(*batch)
        state[arm] = state_bytes(optimizer)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            training = training_state(ensemble, config, optimizer)
            Checkpoints(folder / "checkpoints").save(training, {}, [])
            checkpoint[arm] = folder_bytes(folder / "checkpoints")
            if arm == "bank":
                ensemble.save(folder / "ensemble")
                saved[arm] = folder_bytes(folder / "ensemble")
            else:
                (folder / "members").mkdir()
                for member, module in members.items():  # as anyone would save them
                    save_file(module.state_dict(), str(folder / "members" / f"{member}.safetensors"))
                saved[arm] = folder_bytes(folder / "members")
    return {
        "recipe": recipe.name,
        "num_parameters": plan.num_parameters,
        "independent_parameters": plan.independent_parameters,
        "parameter_fraction": plan.num_parameters / plan.independent_parameters,
        "optimizer_bytes": state,
        "optimizer_ratio": state["bank"] / state["own"],
        "ensemble_bytes": saved,
        "ensemble_ratio": saved["bank"] / saved["own"],
        "checkpoint_bytes": checkpoint,
        "checkpoint_ratio": checkpoint["bank"] / checkpoint["own"],
    }


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_planning(num_members: int, num_targets: int) -> dict[str, Any]:
    """Seconds to plan members of different widths with so many targets each, and to plan and build; medians."""
    members = {
        f"member{index}": ResidualMLP(num_targets // 2, 16 * (index + 1), image_size=8) for index in range(num_members)
    }
    plan_s, plan = median_seconds(lambda: swe.plan_sharing(members, budget=0.5), seconds=60, most=10)
    build_s, _ = median_seconds(lambda: swe.SuperWeightEnsemble(members, budget=0.5), seconds=20, most=10)
    return {
        "targets_of_members": [len(swe.plan.find_targets(module, name)) for name, module in members.items()],
        "num_parameters": plan.num_parameters,
        "plan_s": plan_s,
        "plan_and_build_s": build_s,
    }


if __name__ == "__main__":
    main()
