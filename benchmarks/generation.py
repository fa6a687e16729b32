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
import statistics
from typing import Any

import harness
import torch
from peak_memory import allocator_settings
from torch import nn
from training_steps import recipe_ensemble

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.training import TrainConfig, build_fabric

RECIPES = ("cifar10-small", "cifar10-depth-width", "timm-members")
TEMPLATES = (1, 2, 4, 8)


def main() -> None:
    parser = harness.new_parser(__doc__, rounds=15, recipes=list(RECIPES), device="auto", threads=None, width=384)
    options = harness.read_options(parser)
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    results, sweep = [], []
    for precision in ("float32", "bfloat16"):
        for name in options.recipes:
            recipe = load_recipe(f"recipes/{name}.yaml")
            ensemble = recipe_ensemble(recipe, TrainConfig(precision=precision, device=options.device))
            results.append({"recipe": name, **measure(ensemble, precision, options)})
            harness.show(results[-1:])
        for count in TEMPLATES:
            sweep.append({"num_templates": count, **measure(alike(count, options.width), precision, options)})
            harness.show(sweep[-1:])
    harness.write_results(options.out, "generation", environment=allocator_settings(), recipes=results, templates=sweep)


def alike(num_templates: int, width: int) -> swe.SuperWeightEnsemble:
    """Eight 3 x 3 convolutions of one shape in one slot with so many templates."""
    member = nn.Sequential(*(nn.Conv2d(width, width, 3) for _ in range(8)), nn.Flatten(), nn.Linear(width, 10))
    own = sum(parameter.numel() for parameter in member.parameters())
    ensemble = swe.SuperWeightEnsemble({"member": member}, budget=9 * own, clusters="shape", cap=num_templates)
    (cluster,) = ensemble.plan.superweight_clusters.values()
    assert [slot.num_templates for slot in cluster.slots] == [num_templates]
    return ensemble


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

    fresh: list[torch.Tensor] = []

    def renew() -> None:
        """Weights whose graph has not been gone back through."""
        ensemble.zero_grad(set_to_none=True)
        fresh[:] = generate()

    def backward() -> None:
        torch.autograd.backward(fresh, gradients)

    gradients = [torch.ones_like(weight) for weight in sources]
    calls = {"forward": forward, "copy": copy, "backward": backward, "products": products}
    times = harness.alternate(calls, options.rounds, device=fabric.device, before=renew)
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
