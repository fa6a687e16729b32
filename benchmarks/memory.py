"""Memory of a training step and of what it leaves behind: the bank against the same members with their own weights.

    python benchmarks/memory.py --out benchmarks/results/memory.json
    python benchmarks/memory.py --device cuda --out cuda.json

Both arms run member by member and hold one optimiser. The peak is counted in live tensor bytes (parameters, optimiser
state, batch and all that a step makes), with the resident set of the process beside it (on CUDA: what the allocator
reserved), each run in a process of its own. Optimiser state, saved ensembles and checkpoints stand beside the budget's
fraction; so does the time to plan four members of many targets.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from growth_point import median_seconds
from peak_memory import Peak, allocator_settings, in_fresh_process, look_before, measure_peak, state_bytes
from residual_mlp import ResidualMLP
from safetensors.torch import save_file
from torch import nn
from training_steps import Step, apart_step, joint_step, random_batch, recipe_batch, recipe_ensemble, recipe_members

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import Checkpoints, TrainConfig, TrainState, build_fabric, build_schedule


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
    options = read_options()
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    made_by = provenance()
    sizes = [size.rpartition(":")[::2] for size in options.recipes]
    settings = [
        Setting(recipe=recipe, batch_size=int(batch), image_size=options.image_size, precision=precision,
                threads=options.threads, device=options.device)
        for recipe, batch in sizes for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    content = {
        "benchmark": "memory",
        "provenance": made_by,
        "environment": allocator_settings(),
        "steps": [measure_step(setting, options.repetitions) for setting in settings],
        "kept": [in_fresh_process(measure_kept, recipe, int(batch), options.image_size) for recipe, batch in sizes],
        "planning": measure_planning(options.plan_members, options.plan_targets),
    }
    write_json(options.out, content)
    print_results(content)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", metavar="RECIPE:BATCH",
        default=["recipes/cifar10-small.yaml:128", "recipes/timm-members.yaml:16"],
    )  # fmt: skip
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plan-members", type=int, default=4)
    parser.add_argument("--plan-targets", type=int, default=300, help="of each member that is planned")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


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
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    config = TrainConfig(precision=setting.precision, device=setting.device, learning_rate=0.01)
    fabric = build_fabric(config)
    small = {"small": swe.wide_resnet(10, 1, 10)}
    with fabric.autocast():
        warming = swe.SuperWeightEnsemble(small, budget=0.9).to(fabric.device)
        joint_step(warming, config)[0](*(part.to(fabric.device) for part in random_batch(2, setting.image_size)))
    del small, warming
    before = look_before()
    recipe = load_recipe(setting.recipe)
    batch = recipe_batch(recipe, config, setting.batch_size, setting.image_size)
    step: Step
    if arm == "bank":
        step, optimizer = joint_step(recipe_ensemble(recipe, config), config)
    else:
        step, optimizer = apart_step(recipe_members(recipe, config), config)

    def whole_step() -> None:
        with fabric.autocast():
            step(*batch)

    whole_step()
    return measure_peak(whole_step, optimizer, before, live)


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
            schedule = build_schedule(optimizer, config, steps_per_epoch=1)
            training = TrainState(
                ensemble=ensemble, members=ensemble.member_names, config=config, optimizer=optimizer,
                schedule=schedule, fabric=build_fabric(config),
            )  # fmt: skip
            Checkpoints(folder / "checkpoints").save(training, {}, [])
            checkpoint[arm] = folder_bytes(folder / "checkpoints")
            if arm == "bank":
                ensemble.save(folder / "ensemble")
                saved[arm] = folder_bytes(folder / "ensemble")
            else:
                save_states(members, folder / "members")
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


def save_states(members: Mapping[str, nn.Module], folder: Path) -> None:
    """The members as anyone would save them: a file of tensors each."""
    folder.mkdir()
    for name, module in members.items():
        save_file(module.state_dict(), str(folder / f"{name}.safetensors"))


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


def print_results(content: dict[str, Any]) -> None:
    for step in content["steps"]:
        bank, own = (step["peak_bytes"][arm] / 1e6 for arm in ("bank", "own"))
        print(
            f"{step['recipe']}, {step['precision']}, batch {step['batch_size']}: peak {bank:.1f} MB, own weights "
            f"{own:.1f} MB, ratio {step['peak_ratio']:.3f}; resident ratio {step['resident_ratio']:.3f}"
        )
    for kept in content["kept"]:
        print(
            f"{kept['recipe']}: {kept['parameter_fraction']:.3f} of the parameters; of the optimiser's state "
            f"{kept['optimizer_ratio']:.3f}, saved {kept['ensemble_ratio']:.3f}, checkpoint "
            f"{kept['checkpoint_ratio']:.3f}"
        )
    planning = content["planning"]
    print(
        f"planning {planning['targets_of_members']} targets: {planning['plan_s']:.3f} s, with the ensemble built "
        f"{planning['plan_and_build_s']:.3f} s"
    )


if __name__ == "__main__":
    main()
