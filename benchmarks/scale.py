"""The (data x member) mesh on paper, and what the same arithmetic says of two processes that were measured.

    python benchmarks/scale.py --out benchmarks/results/scale.json

Nothing is timed here. ``check`` puts a step of two processes together from the pieces in
benchmarks/results/many_processes.json (each member alone, generation, collectives on their own) and holds it against
the step that was measured in the same run. ``paper`` does the same for devices and networks that are assumptions, named
below; every time in it is simulated.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
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
from superweight_ensembles.plan import SharingPlan, count_parameters
from superweight_ensembles.training import TrainConfig
from superweight_ensembles.training.distributed import chosen_ranks

_TIMED_ROWS = 32  # that the library times members on
DEVICES = (4, 8, 16, 64, 256, 1024)
NORM_IMAGES = 32
Found = tuple[Step, tuple[int, int]]
# Assumptions: 75 TFLOP/s reached (3,000 images of ResNet-50 a second, forward and backward), 20 microseconds a layer (a
# layer: two parameter tensors) to
# start its kernels, forward, backward and update, and 2 TB/s of memory for generating and updating numbers.
FLOPS_PER_S = 75e12
LAYER_S = 20e-6
GENERATED_S = 12 / 2e12
UPDATED_S = 20 / 2e12
ETHERNET = Link(latency_s=30e-6, bytes_per_s=10e9)  # 80 % of 12.5 GB/s
NVLINK = Link(latency_s=5e-6, bytes_per_s=300e9)  # two thirds of 450 GB/s a direction
INFINIBAND = Link(latency_s=10e-6, bytes_per_s=45e9)  # 90 % of 400 Gbit/s a device
NETWORKS = (
    Network(name="100 Gbit Ethernet", inside=ETHERNET, between=ETHERNET, per_machine=1),
    Network(name="NVLink and InfiniBand", inside=NVLINK, between=INFINIBAND, per_machine=8),
)
PAPER = (("recipes/imagenet.yaml", 224, 1000), ("recipes/cifar10-depth-width.yaml", 32, 10))


def main() -> None:
    parser = harness.new_parser(__doc__, batch_size=4096)
    parser.add_argument("--measured", type=Path, default=Path("benchmarks/results/many_processes.json"))
    options = harness.read_options(parser)
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    checks = [check(found) for found in measured["recipes"]]
    paper = [
        tabled(Path(file).stem, on_paper(file, image_size, classes), network, options.batch_size)
        for file, image_size, classes in PAPER
        for network in NETWORKS
    ]
    for found in checks:
        harness.show({"recipe": found["recipe"], **arm} for arm in found["arms"])
    harness.show(paper)
    assumptions = {
        "flops_per_s": FLOPS_PER_S,
        "layer_s": LAYER_S,
        "generated_s": GENERATED_S,
        "updated_s": UPDATED_S,
        "norm_images": NORM_IMAGES,
        "networks": [asdict(network) for network in NETWORKS],
    }
    harness.write_results(
        options.out, "scale",
        measured_commit=measured["provenance"]["commit"], check=checks, assumptions=assumptions,
        paper={"note": "simulated: no such machine was at hand", "tables": paper},
    )  # fmt: skip


def check(found: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured steps of two processes."""
    points = found["network"]["all_reduce"]
    link = fitted_link([point["bytes"] for point in points], [point["seconds"] for point in points])
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
    members = []
    for counted in estimate.members:
        module = modules[counted.name]
        updated_s = sum(1 for _ in module.parameters()) * LAYER_S / 2 + count_parameters(module) * UPDATED_S
        image_s, activations = 3 * counted.forward_flops / FLOPS_PER_S, counted.activation_bytes / batch
        members.append(_member(counted.name, module, plan, updated_s, image_s, activations))
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


def _arms(workload: Workload, network: Network, batch: int, devices: int, one_s: float | None) -> dict[str, Any]:
    def on(
        mesh: tuple[int, int], shared: bool, norm_images: int | None = NORM_IMAGES, overlapped: bool = False
    ) -> Found:
        layout = Layout(data=mesh[0], members=mesh[1], shared=shared, norm_images=norm_images, overlapped=overlapped)
        return simulate(workload, layout, batch, network), mesh

    def spread(shared: bool) -> Found:
        """The fastest mesh with member ranks."""
        found = [on(mesh, shared, overlapped=not shared) for mesh in meshes(devices, len(workload.members))]
        return min((pair for pair in found if pair[1][1] > 1), key=lambda pair: pair[0].seconds)

    rows = (devices, 1)
    ranks = chosen_ranks({one.name: one.seconds(_TIMED_ROWS) for one in workload.members}, devices, True)
    arms = {
        "bank, auto, whole norm": on(
            (devices // ranks, ranks), True, None
        ),  # the mesh that the library's ``auto`` takes
        "bank, rows, whole norm": on(rows, True, None),
        "bank, rows": on(rows, True),
        "bank, members": spread(True),
        "own, rows": on(rows, False, overlapped=True),
        "own, rows, exchange after backward": on(rows, False),
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


def _from_pieces(found: dict[str, Any], modules: dict[str, nn.Module], plan: SharingPlan, kind: str) -> Workload:
    """Members as they were measured alone: on half of the rows and on all, or with the synchronised norm on half."""
    pieces, half = found["pieces_ms"], found["batch_size"] / 2
    members = []
    for name, module in modules.items():
        if kind == "norm":
            step_s, image_s = pieces[f"{name} half norm"] / 1e3, 0.0
        else:
            image_s = (pieces[f"{name} whole"] - pieces[f"{name} half"]) / 1e3 / half
            step_s = pieces[f"{name} half"] / 1e3 - image_s * half
        members.append(_member(name, module, plan, step_s, image_s, activation_bytes=0.0))
    generated = sum(member.generated for member in members)
    return Workload(
        members=tuple(members),
        bank_parameters=plan.num_templates + plan.num_coefficients,
        generation_s=pieces["generation"] / 1e3 / generated,
    )


def _built(file: str, classes: int | None) -> tuple[dict[str, nn.Module], SharingPlan]:
    """Members and plan of a recipe, whether or not its images are here."""
    made_up = "data={name: synthetic, num_classes: 1000, channels: 3, num_train: 1000, num_test: 1000}"
    overrides = [made_up] if classes == 1000 else []
    recipe = load_recipe(file, overrides)
    with torch.random.fork_rng(devices=[]):
        members = recipe.build_members()
    return members, recipe.plan(members)


def _member(
    name: str, module: nn.Module, plan: SharingPlan, step_s: float, image_s: float, activation_bytes: float
) -> Member:
    made = {target.name for cluster in plan.clusters for target in cluster.targets if target.member == name}
    return Member(
        name=name, step_s=step_s, image_s=image_s, parameters=count_parameters(module),
        own_parameters=sum(value.numel() for key, value in module.named_parameters() if key not in made),
        norm_channels=tuple(layer.num_features for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)),
        activation_bytes=activation_bytes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
