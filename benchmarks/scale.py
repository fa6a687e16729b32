"""The (data x member) mesh on paper, and what the same arithmetic says of two processes that were measured.

    python benchmarks/scale.py --out benchmarks/results/scale.json

Nothing is timed here. ``check`` puts a step of two processes together from the pieces in
benchmarks/results/many_processes.json (each member alone, generation, collectives on their own) and holds it against
the step that was measured in the same run. ``paper`` does the same for devices and networks that are assumptions, named
below; every time in it is simulated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mesh import (
    NUMBER_BYTES,
    Layout,
    Link,
    Member,
    Network,
    Step,
    Workload,
    fitted_link,
    largest_batch_below,
    meshes,
    simulate,
)
from torch import nn

from superweight_ensembles.experiment import estimate_training, load_recipe
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import TrainConfig
from superweight_ensembles.training.distributed import chosen_ranks

_TIMED_ROWS = 32  # that the library times members on
DEVICES = (4, 8, 16, 64, 256, 1024)
NORM_IMAGES = 32
# Assumptions: 75 TFLOP/s reached (3,000 images of ResNet-50 a second, forward and backward), 20 microseconds a layer (a
# layer: two parameter tensors) to
# start its kernels, forward, backward and update, and 2 TB/s of memory for generating and updating numbers.
FLOPS_PER_S = 75e12
LAYER_S = 20e-6
GENERATED_S = 12 / 2e12
UPDATED_S = 20 / 2e12
NETWORKS = (
    # One device a machine; 80 % of 12.5 GB/s.
    Network(
        name="100 Gbit Ethernet",
        inside=Link(latency_s=30e-6, bytes_per_s=10e9),
        between=Link(latency_s=30e-6, bytes_per_s=10e9),
        per_machine=1,
    ),
    # Eight devices a machine; two thirds of NVLink's 450 GB/s a direction, and of 400 Gbit/s InfiniBand a device 90 %.
    Network(
        name="NVLink and InfiniBand",
        inside=Link(latency_s=5e-6, bytes_per_s=300e9),
        between=Link(latency_s=10e-6, bytes_per_s=45e9),
        per_machine=8,
    ),
)
PAPER = (("recipes/imagenet.yaml", 224, 1000), ("recipes/cifar10-depth-width.yaml", 32, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=Path("benchmarks/results/many_processes.json"))
    parser.add_argument("--batch-size", type=int, default=4096, help="of all devices together, on paper")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made_by = provenance()
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    checks = [check(found) for found in measured["recipes"]]
    for found in checks:
        for arm in found["arms"]:
            print(f"{found['recipe']}, {arm['arm']}: {arm['predicted_ms']:.0f} ms, measured {arm['measured_ms']:.0f}")
    paper = []
    for file, image_size, classes in PAPER:
        workload = on_paper(file, image_size, classes)
        for network in NETWORKS:
            paper.append(tabled(Path(file).stem, workload, network, options.batch_size))
            for row in paper[-1]["rows"]:
                print(row_line(paper[-1], row))
            print({key: value for key, value in paper[-1].items() if key.startswith("break_even")})
    assumptions = {
        "flops_per_s": FLOPS_PER_S,
        "layer_s": LAYER_S,
        "generated_s": GENERATED_S,
        "updated_s": UPDATED_S,
        "norm_images": NORM_IMAGES,
        "networks": [asdict(network) for network in NETWORKS],
    }
    write_json(
        options.out,
        {
            "benchmark": "scale",
            "provenance": made_by,
            "measured_commit": measured["provenance"]["commit"],
            "check": checks,
            "assumptions": assumptions,
            "paper": {"note": "simulated: no such machine was at hand", "tables": paper},
        },
    )


def check(found: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured steps of two processes."""
    link = fitted_link(*_points(found["network"]["all_reduce"]))
    network = Network(name="loopback", inside=link, between=link, per_machine=2)
    modules, plan = _built(f"recipes/{found['recipe']}.yaml", None)
    batch = found["batch_size"]
    kinds = {kind: _from_pieces(found, modules, plan, kind) for kind in ("linear", "norm")}
    placed = found["placement"]
    arms = [
        ("bank", kinds["linear"], Layout(data=2, members=1, shared=True, norm_images=0), None),
        ("bank synchronised", kinds["norm"], Layout(data=2, members=1, shared=True), None),
        ("ddp", kinds["linear"], Layout(data=2, members=1, shared=False, norm_images=0, overlapped=True), None),
        ("ddp synchronised", kinds["norm"], Layout(data=2, members=1, shared=False, overlapped=True), None),
        ("bank members", kinds["linear"], Layout(data=1, members=2, shared=True), placed),
        ("own members", kinds["linear"], Layout(data=1, members=2, shared=False), placed),
    ]
    rows = []
    for name, workload, layout, placement in arms:
        step, seen = simulate(workload, layout, batch, network, placement), found["arms"][name]
        counted = 2 * (step.gradient_bytes + step.norm_bytes)  # two processes send
        rows.append(
            {
                "arm": name,
                "predicted_ms": 1e3 * step.seconds,
                "measured_ms": seen["ms"],
                "error": 1e3 * step.seconds / seen["ms"] - 1,
                "exchange_ms": 1e3 * step.exchange_s,
                "norm_ms": 1e3 * step.norm_s,
                "predicted_bytes": counted,
                "loopback_bytes": seen["loopback_bytes"],
                "bytes_error": counted / seen["loopback_bytes"] - 1 if counted else None,
            }
        )
    return {
        "recipe": found["recipe"],
        "link": asdict(link),
        "arms": rows,
        "largest_error": max(abs(row["error"]) for row in rows),
        "largest_bytes_error": max(abs(row["bytes_error"]) for row in rows if row["bytes_error"] is not None),
    }


def on_paper(file: str, image_size: int, classes: int) -> Workload:
    """A recipe's members at what a device is assumed to do."""
    modules, plan = _built(file, classes)
    batch = 16
    estimate = estimate_training(
        modules, plan, (3, image_size, image_size), TrainConfig(batch_size=batch), bfloat16=True
    )
    own = _own_parameters(modules, plan)
    members = []
    for counted in estimate.members:
        module = modules[counted.name]
        size = _count(module)
        members.append(
            Member(
                name=counted.name,
                step_s=sum(1 for _ in module.parameters()) * LAYER_S / 2 + size * UPDATED_S,
                image_s=3 * counted.forward_flops / FLOPS_PER_S,
                parameters=size,
                own_parameters=own[counted.name],
                norm_channels=_norm_channels(module),
                activation_bytes=counted.activation_bytes / batch,
            )
        )
    return Workload(
        members=tuple(members),
        bank_parameters=plan.num_templates + plan.num_coefficients,
        generation_s=2 * GENERATED_S,
    )


def tabled(name: str, workload: Workload, network: Network, batch: int) -> dict[str, Any]:
    """Steps of the arms by the number of devices, and where one overtakes another."""
    one = simulate(workload, Layout(data=1, members=1, shared=True), batch, network)
    rows = [{"devices": count, "arms": _arms(workload, network, batch, count, one.seconds)} for count in DEVICES]
    return {
        "ensemble": name,
        "network": network.name,
        "batch_size": batch,
        "one_device_ms": 1e3 * one.seconds,
        "budget_fraction": workload.shared_parameters / workload.independent_parameters,
        "members": [asdict(member) for member in workload.members],
        "rows": rows,
        "weak_rows": [
            {"devices": count, "images_a_device": 32, "arms": _arms(workload, network, 32 * count, count, None)}
            for count in DEVICES
        ],
        "break_even_images_a_device": {
            str(count): _break_even(workload, network, count, NORM_IMAGES) for count in DEVICES
        },
        "break_even_images_a_device_whole_norm": {
            str(count): _break_even(workload, network, count, None) for count in DEVICES
        },
        "break_even_budget": {str(ranks): _budget(workload, ranks, batch, network) for ranks in (1, 2)},
    }


def row_line(table: dict[str, Any], row: dict[str, Any]) -> str:
    arms = "; ".join(
        f"{name} {arm['mesh'][0]}x{arm['mesh'][1]} {arm['ms']:.2f} ms ({arm['efficiency']:.2f}) "
        f"{arm['gradient_bytes'] / 1e6:.0f} MB {arm['memory_bytes'] / 2**30:.2f} GiB"
        for name, arm in row["arms"].items()
    )
    return f"{table['ensemble']}, {table['network']}, {row['devices']}: {arms}"


def _arms(workload: Workload, network: Network, batch: int, devices: int, one_s: float | None) -> dict[str, Any]:
    def rows_only(shared: bool, norm_images: int | None, overlapped: bool) -> tuple[Step, tuple[int, int]]:
        layout = Layout(data=devices, members=1, shared=shared, norm_images=norm_images, overlapped=overlapped)
        return simulate(workload, layout, batch, network), (devices, 1)

    def spread(shared: bool) -> tuple[Step, tuple[int, int]]:
        found = [
            (
                simulate(
                    workload,
                    Layout(data=data, members=ranks, shared=shared, norm_images=NORM_IMAGES, overlapped=not shared),
                    batch,
                    network,
                ),
                (data, ranks),
            )
            for data, ranks in meshes(devices, len(workload.members))
            if ranks > 1
        ]
        return min(found, key=lambda pair: pair[0].seconds)

    def chosen() -> tuple[Step, tuple[int, int]]:
        """The mesh that the library's ``auto`` takes, norms over the whole batch."""
        ranks = chosen_ranks({one.name: one.seconds(_TIMED_ROWS) for one in workload.members}, devices, True)
        layout = Layout(data=devices // ranks, members=ranks, shared=True)
        return simulate(workload, layout, batch, network), (devices // ranks, ranks)

    arms = {
        "bank, auto, whole norm": chosen(),
        "bank, rows, whole norm": rows_only(True, None, False),
        "bank, rows": rows_only(True, NORM_IMAGES, False),
        "bank, members": spread(True),
        "own, rows": rows_only(False, NORM_IMAGES, True),
        "own, rows, exchange after backward": rows_only(False, NORM_IMAGES, False),
        "own, members": spread(False),
    }
    return {
        name: {
            "mesh": list(mesh),
            "ms": 1e3 * step.seconds,
            "efficiency": None if one_s is None else one_s / devices / step.seconds,
            "compute_ms": 1e3 * step.compute_s,
            "norm_ms": 1e3 * step.norm_s,
            "exchange_ms": 1e3 * step.exchange_s,
            "gradient_bytes": step.gradient_bytes,
            "norm_bytes": step.norm_bytes,
            "memory_bytes": step.memory_bytes,
        }
        for name, (step, mesh) in arms.items()
    }


def _break_even(workload: Workload, network: Network, devices: int, norm_images: int | None) -> int:
    """Images a device up to which some members a device, on more images, beat all members on these."""

    def wins(images: int) -> bool:
        def seconds(data: int, ranks: int) -> float:
            layout = Layout(data=data, members=ranks, shared=True, norm_images=norm_images)
            return simulate(workload, layout, images * devices, network).seconds

        others = [mesh for mesh in meshes(devices, len(workload.members)) if mesh[1] > 1]
        return min(seconds(*mesh) for mesh in others) < seconds(devices, 1)

    return largest_batch_below(wins, 4096)


def _budget(workload: Workload, ranks: int, batch: int, network: Network) -> float:
    """The budget below which a bank sends fewer bytes than members with own weights on so many member ranks, for many
    data ranks: what the fullest member rank holds over what all hold."""
    step = simulate(workload, Layout(data=64, members=ranks, shared=False), batch, network)
    return step.gradient_bytes / (2 * 63 / 64 * NUMBER_BYTES) / workload.independent_parameters


def _points(measured: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [point["bytes"] for point in measured], [point["seconds"] for point in measured]


def _from_pieces(found: dict[str, Any], modules: dict[str, nn.Module], plan: SharingPlan, kind: str) -> Workload:
    """Members as they were measured alone: on half of the rows and on all, or with the synchronised norm on half."""
    pieces, half = found["pieces_ms"], found["batch_size"] / 2
    own = _own_parameters(modules, plan)
    members = []
    for name, module in modules.items():
        if kind == "norm":
            step_s, image_s = pieces[f"{name} half norm"] / 1e3, 0.0
        else:
            image_s = (pieces[f"{name} whole"] - pieces[f"{name} half"]) / 1e3 / half
            step_s = pieces[f"{name} half"] / 1e3 - image_s * half
        members.append(
            Member(
                name=name,
                step_s=step_s,
                image_s=image_s,
                parameters=_count(module),
                own_parameters=own[name],
                norm_channels=_norm_channels(module),
                activation_bytes=0.0,
            )
        )
    generated = sum(member.generated for member in members)
    return Workload(
        members=tuple(members),
        bank_parameters=plan.num_templates + plan.num_coefficients,
        generation_s=pieces["generation"] / 1e3 / generated,
    )


def _built(file: str, classes: int | None) -> tuple[dict[str, nn.Module], SharingPlan]:
    """Members and plan of a recipe, whether or not its images are here."""
    overrides = (
        []
        if classes != 1000
        else ["data={name: synthetic, num_classes: 1000, channels: 3, num_train: 1000, num_test: 1000}"]
    )
    recipe = load_recipe(file, overrides)
    with torch.random.fork_rng(devices=[]):
        members = recipe.build_members()
    return members, recipe.plan(members)


def _own_parameters(modules: dict[str, nn.Module], plan: SharingPlan) -> dict[str, int]:
    made = {(target.member, target.name) for cluster in plan.clusters for target in cluster.targets}
    return {
        name: sum(value.numel() for key, value in module.named_parameters() if (name, key) not in made)
        for name, module in modules.items()
    }


def _norm_channels(module: nn.Module) -> tuple[int, ...]:
    return tuple(layer.num_features for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
