"""Exported members: sizes of the files, and latency in onnxruntime and as a torch.export program beside PyTorch.

    python benchmarks/export.py --out benchmarks/results/export.json
    python benchmarks/export.py --run runs/digits --input-shape 1 8 8 --out export_digits.json

One thread everywhere. Runtimes and members take turns within a round, so that a machine that slows down does so for
all of them; a ratio is the median over rounds of the times of one round. A recipe's weights are untrained.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import onnx
import onnxruntime
import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe, read_run, trained_arm
from superweight_ensembles.export import FORMATS, export_member
from superweight_ensembles.storage import provenance, write_json

WARM_UP = 3
Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/cifar10-small.yaml", help="its members, untrained")
    parser.add_argument("--run", type=Path, default=None, help="a trained run folder instead of a recipe")
    parser.add_argument("--arm", default="shared")
    parser.add_argument("--input-shape", type=int, nargs="+", default=[3, 32, 32])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made_by = provenance()
    name, ensemble = load_ensemble(options)
    networks = {member: ensemble.materialize(member).eval() for member in ensemble.member_names}
    shape = tuple(options.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        exported = {member: export_all(network, Path(folder), shape) for member, network in networks.items()}
        members = [
            {"name": member, "num_parameters": count(network), "sizes_bytes": sizes(exported[member])}
            for member, network in networks.items()
        ]
        latencies = [measure(networks, exported, shape, size, options.rounds) for size in options.batch_sizes]
    write_json(
        options.out,
        {
            "benchmark": "export",
            "provenance": made_by,
            "packages": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
            "ensemble": name,
            "trained": options.run is not None,
            "input_shape": list(shape),
            "num_threads": 1,
            "rounds": options.rounds,
            "members": members,
            "latencies": latencies,
        },
    )
    for entry in latencies:
        for member, found in entry["members"].items():
            listed = ", ".join(
                f"{runtime} {one['latency_ms']:.3f} ms (x {one['ratio']:.2f})" for runtime, one in found.items()
            )
            print(f"batch {entry['batch_size']}, {member}: {listed}")


def load_ensemble(options: argparse.Namespace) -> tuple[str, swe.SuperWeightEnsemble]:
    if options.run is not None:
        return read_run(options.run).name, swe.SuperWeightEnsemble.load(trained_arm(options.run, options.arm))
    recipe = load_recipe(options.recipe)
    members = recipe.build_members()
    return recipe.name, swe.SuperWeightEnsemble(members, plan=recipe.plan(members), rng=recipe.bank_generator())


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def export_all(network: nn.Module, folder: Path, shape: tuple[int, ...]) -> dict[str, Path]:
    """A member in every format, in a folder of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    return {
        name: export_member(network, own / f"member{kind.suffix}", format=name, input_shape=shape)
        for name, kind in FORMATS.items()
    }


def sizes(paths: dict[str, Path]) -> dict[str, int]:
    return {name: path.stat().st_size for name, path in paths.items()}


def measure(
    networks: dict[str, nn.Module],
    exported: dict[str, dict[str, Path]],
    shape: tuple[int, ...],
    batch_size: int,
    rounds: int,
) -> dict[str, Any]:
    images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    calls = {
        (member, runtime): call
        for member, network in networks.items()
        for runtime, call in runtimes(network, exported[member], images).items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        for round_number in range(rounds + WARM_UP):
            for key, call in calls.items():
                start = time.perf_counter()
                call()
                if round_number >= WARM_UP:
                    seconds[key].append(time.perf_counter() - start)
    found: dict[str, dict[str, Any]] = {member: {} for member in networks}
    for (member, runtime), times in seconds.items():
        quartiles = statistics.quantiles(times, n=4)
        found[member][runtime] = {
            "latency_ms": 1e3 * statistics.median(times),
            "latency_ms_quartiles": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "ratio": statistics.median(own / plain for own, plain in zip(times, seconds[member, "pytorch"])),
        }
    return {"batch_size": batch_size, "members": found}


def runtimes(network: nn.Module, paths: dict[str, Path], images: torch.Tensor) -> dict[str, Call]:
    """What answers the images: the network itself, its torch.export program and its ONNX file."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(paths["onnx"]), settings, providers=["CPUExecutionProvider"])
    program = torch.export.load(paths["torch-export"]).module()
    array = images.numpy()
    return {
        "pytorch": lambda: network(images),
        "torch-export": lambda: program(images),
        "onnxruntime": lambda: session.run(["logits"], {"images": array}),
    }


if __name__ == "__main__":
    main()
