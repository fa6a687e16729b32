"""Exported members: sizes of the files, and latency in onnxruntime and as a torch.export program beside PyTorch.

    python benchmarks/export.py --out benchmarks/results/export.json
    python benchmarks/export.py --run runs/digits --input-shape 1 8 8 --out export_digits.json

One thread everywhere. Runtimes and members take turns within a round, so that a machine that slows down does so for
all of them; a ratio is the median over rounds of the times of one round. A recipe's weights are untrained.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import onnx
import onnxruntime
import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe, read_run, trained_arm
from superweight_ensembles.export import FORMATS, export_member
from superweight_ensembles.plan import count_parameters

Call = Callable[[], Any]


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipe="recipes/cifar10-small.yaml", arm="shared", input_shape=[3, 32, 32], batch_sizes=[1, 64],
        rounds=40,
    )  # fmt: skip
    parser.add_argument("--run", type=Path, help="a trained run folder instead of the recipe's untrained members")
    options = harness.read_options(parser)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, ensemble = load_ensemble(options)
    networks = {member: ensemble.materialize(member).eval() for member in ensemble.member_names}
    shape = tuple(options.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        exported = {member: export_all(network, Path(folder), shape) for member, network in networks.items()}
        members = [
            {
                "name": member,
                "num_parameters": count_parameters(network),
                "sizes_bytes": {kind: path.stat().st_size for kind, path in exported[member].items()},
            }
            for member, network in networks.items()
        ]
        latencies = [measure(networks, exported, shape, size, options.rounds) for size in options.batch_sizes]
    harness.write_results(
        options.out, "export",
        packages={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        ensemble=name, trained=options.run is not None, input_shape=list(shape), num_threads=1, rounds=options.rounds,
        members=members, latencies=latencies,
    )  # fmt: skip
    harness.show([*members, *latencies])


def load_ensemble(options: argparse.Namespace) -> tuple[str, swe.SuperWeightEnsemble]:
    if options.run is not None:
        return read_run(options.run).name, swe.SuperWeightEnsemble.load(trained_arm(options.run, options.arm))
    recipe = load_recipe(options.recipe)
    members = recipe.build_members()
    return recipe.name, swe.SuperWeightEnsemble(members, plan=recipe.plan(members), rng=recipe.bank_generator())


def export_all(network: nn.Module, folder: Path, shape: tuple[int, ...]) -> dict[str, Path]:
    """A member in every format, in a folder of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    return {
        name: export_member(network, own / f"member{kind.suffix}", format=name, input_shape=shape)
        for name, kind in FORMATS.items()
    }


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
    with torch.inference_mode():
        seconds = harness.alternate(calls, rounds)
    found: dict[str, dict[str, Any]] = {member: {} for member in networks}
    for (member, runtime), times in seconds.items():
        found[member][runtime] = {
            "latency_ms": 1e3 * statistics.median(times),
            "latency_ms_quartiles": [1e3 * value for value in harness.quartiles(times)],
            "ratio": harness.adjacent_ratio(times, seconds[member, "pytorch"])[0],
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
