"""Generating all weights against copying them: forward, backward, and with one to eight templates a slot.

    python benchmarks/generation.py --out benchmarks/results/generation.json
    python benchmarks/generation.py --device cuda --out cuda.json

A copy reads and writes once the bytes of all generated weights, tensor by tensor, in their type and memory format, into
tensors that are there already. Products are the bank's matrix products alone, coefficients with templates, in float32
into tensors that are there already: what arithmetic takes at least. All alternate; medians, and their ratios. Weights
are fresh tensors in each call, as in training; on Linux a process gets memory for them from the system page by page,
unless it was told to keep what it freed: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment, which
the result notes.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peak_memory import allocator_settings
from torch import nn
from training_steps import recipe_ensemble, timed

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import TrainConfig, build_fabric

RECIPES = ("cifar10-small", "cifar10-depth-width", "timm-members")
TEMPLATES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--width", type=int, default=384, help="channels of the layers of the sweep over templates")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    made_by = provenance()
    results, sweep = [], []
    for precision in ("float32", "bfloat16"):
        for name in options.recipes:
            recipe = load_recipe(f"recipes/{name}.yaml")
            ensemble = recipe_ensemble(recipe, TrainConfig(precision=precision, device=options.device))
            results.append({"recipe": name, **measure(ensemble, precision, options)})
            print(line(name, results[-1]), flush=True)
        for count in TEMPLATES:
            sweep.append({"num_templates": count, **measure(alike(count, options.width), precision, options)})
            print(line(f"{count} templates a slot", sweep[-1]), flush=True)
    content = {"benchmark": "generation", "provenance": made_by, "environment": allocator_settings()}
    write_json(options.out, {**content, "recipes": results, "templates": sweep})


def alike(num_templates: int, width: int) -> swe.SuperWeightEnsemble:
    """Eight 3 x 3 convolutions of one shape in one slot with so many templates."""
    member = nn.Sequential(*(nn.Conv2d(width, width, 3) for _ in range(8)), nn.Flatten(), nn.Linear(width, 10))
    own = sum(parameter.numel() for parameter in member.parameters())
    ensemble = swe.SuperWeightEnsemble({"member": member}, budget=9 * own, clusters="shape", cap=num_templates)
    (cluster,) = ensemble.plan.superweight_clusters.values()
    assert [slot.num_templates for slot in cluster.slots] == [num_templates]
    return ensemble


def line(name: str, found: dict[str, Any]) -> str:
    return (
        f"{name}, {found['precision']}: {found['megabytes']:.1f} MB in {found['num_tensors']} tensors; forward "
        f"{found['forward_ms']:.2f} ms, {found['forward_to_copy']:.2f} of a copy ({found['copy_ms']:.2f} ms); backward "
        f"{found['backward_ms']:.2f} ms; products alone {found['products_ms']:.2f} ms, "
        f"{found['gflops_products']:.0f} GFLOP/s"
    )


def measure(ensemble: swe.SuperWeightEnsemble, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    fabric = build_fabric(TrainConfig(precision=precision, device=options.device))
    ensemble.to(fabric.device).to(memory_format=torch.channels_last)

    def generate() -> list[torch.Tensor]:
        with fabric.autocast():
            return [weight for found in ensemble.generate().values() for weight in found.values()]

    @torch.no_grad()
    def forward() -> list[torch.Tensor]:
        return generate()

    sources = forward()
    targets = [weight.clone() for weight in sources]

    def copy() -> None:
        for source, target in zip(sources, targets):
            target.copy_(source)

    bank = ensemble.bank
    factors = [(bank.combination(key).detach(), templates.detach()) for key, templates in bank.templates.items()]
    made = [alpha @ templates for alpha, templates in factors]

    def products() -> None:
        for (alpha, templates), room in zip(factors, made):
            torch.mm(alpha, templates, out=room)

    times: dict[str, list[float]] = {"forward": [], "copy": [], "backward": [], "products": []}
    for round_number in range(options.rounds + 3):
        weights = generate()
        gradients = [torch.ones_like(weight) for weight in weights]
        calls: dict[str, Callable[[], object]] = {
            "forward": forward,
            "copy": copy,
            "backward": partial(torch.autograd.backward, weights, gradients),
            "products": products,
        }
        for name, call in calls.items():
            seconds = timed(call, fabric.device)
            if round_number >= 3:
                times[name].append(seconds)
        ensemble.zero_grad(set_to_none=True)
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
    return {
        "precision": precision,
        "device": str(fabric.device),
        "rounds": options.rounds,
        "num_tensors": len(sources),
        "megabytes": sum(weight.nbytes for weight in sources) / 1e6,
        **medians,
        "forward_to_copy": medians["forward_ms"] / medians["copy_ms"],
        "forward_to_products": medians["forward_ms"] / medians["products_ms"],
        "gflops_products": sum(2e-6 * len(alpha) * templates.numel() for alpha, templates in factors)
        / medians["products_ms"],
    }


if __name__ == "__main__":
    main()
