"""Cutting a network whose widths were learned, against cutting one of the same, fixed widths by other rules.

    python benchmarks/truncation.py recipes/awnn-cifar10.yaml --jobs 2 --out benchmarks/results/truncation.json

For each seed the recipe's network learns its widths; then a plain network of exactly these widths is trained alike.
Both are cut to fractions of every width, with nothing trained afterwards: the learned one to its first neurons, the
plain one to those of the largest norm and to random ones. ``incoming`` is the L1 norm of the weights that make a
channel (Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710), ``outgoing`` that of the weights that
read it times the scale of the batch norm in between. All with the statistics of batch norm as they were, and estimated
again on training images.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Recipe, parse_recipe, with_seed
from superweight_ensembles.models import HiddenLayer, recall_architecture
from superweight_ensembles.models.adaptive import (
    adaptive_widths,
    adopt_widths,
    drop_importance,
    freeze_widths,
    truncate,
)
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.training import LearnedWidths

FRACTIONS = (1.0, 0.75, 0.5, 0.25)
ARMS = ("learned", "outgoing", "incoming", "random")
NORM_BATCHES = 20
KINDS = ("new_norm", "accuracy")


def main() -> None:
    options = harness.read_options(harness.recipe_parser(__doc__))
    recipe = harness.folder_recipe(options.recipe, [*options.overrides, "training.num_threads=1"], options.data_root)
    seeds = harness.run_seeds(partial(run_seed, recipe.to_content()), recipe, options, options.out, "truncation")
    cuts = [cut for seed in seeds for cut in seed["cuts"]]
    for (arm, fraction), found in harness.grouped(cuts, "arm", "fraction").items():
        texts = {kind: harness.spread_text([100 * one[kind] for one in found], ".1f") for kind in KINDS}
        harness.show([{"arm": arm, "fraction": fraction, **texts}])


@harness.quiet("lightning_fabric")
def run_seed(content: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train both networks and cut them."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    recipe = with_seed(parse_recipe(content), seed)
    data = recipe.load_data()
    (member,) = recipe.build_members().values()
    learned = trained(recipe, member, data)
    freeze_widths(learned)
    made = recall_architecture(learned)
    assert made is not None, "a recipe's members are built by name"
    (plain,) = recipe.build_members().values()
    widths = {name: (width.width, float(width.rate)) for name, width in adaptive_widths(learned).items()}
    adopt_widths(plain, widths, torch.Generator().manual_seed(seed))
    drop_importance(plain)
    fixed = trained(recipe, plain, data)
    batches = [images for (images, _), _ in zip(data.loader("train", 256), range(NORM_BATCHES))]
    test = list(data.loader("test", 500))
    generator = torch.Generator().manual_seed(seed)
    cuts = []
    for fraction in FRACTIONS:
        networks: dict[str, Callable[[], nn.Module]] = {
            "learned": partial(truncate, learned, fraction=fraction),
            **{arm: partial(cut, fixed, made.hidden, fraction, arm, generator) for arm in ARMS[1:]},
        }
        for arm, make in networks.items():
            network = make().to(memory_format=torch.channels_last)
            as_it_was = accuracy(network, test)
            update_bn(batches, network)
            cuts.append({"arm": arm, "fraction": fraction, "accuracy": as_it_was, "new_norm": accuracy(network, test)})
    return {
        "seed": seed,
        "widths": {name: width.width for name, width in adaptive_widths(learned).items()},
        "num_parameters": count_parameters(plain),
        "cuts": cuts,
        "seconds": time.perf_counter() - begin,
    }


def trained(recipe: Recipe, member: nn.Module, data: ImageData) -> nn.Module:
    """A member after the recipe's training, as a plain module."""
    ensemble = swe.SuperWeightEnsemble({"member": member}, plan=swe.independent_plan({"member": member}))
    loss = recipe.width_loss if adaptive_widths(member) else None
    swe.train(ensemble, data, recipe.training, hooks=[LearnedWidths(loss)])
    return ensemble.materialize("member").float().eval()


@torch.no_grad()
def cut(
    network: nn.Module, hidden: Sequence[HiddenLayer], fraction: float, rule: str, generator: torch.Generator
) -> nn.Module:
    """A copy that reads a fraction of each hidden width, the other neurons' weights being zero: as good as removed."""
    copied = copy.deepcopy(network)
    for one in hidden:
        consumer: Any = copied.get_submodule(one.consumer)
        scores = SCORES[rule](copied, one, generator)
        dropped = scores.argsort()[: one.width - math.ceil(fraction * one.width - 1e-9)]
        consumer.weight[:, dropped] = 0
    return copied


def incoming(network: nn.Module, hidden: HiddenLayer, generator: torch.Generator) -> Tensor:
    producer: Any = network.get_submodule(hidden.producer)
    return producer.weight.abs().flatten(1).sum(1)


def outgoing(network: nn.Module, hidden: HiddenLayer, generator: torch.Generator) -> Tensor:
    consumer: Any = network.get_submodule(hidden.consumer)
    scores = consumer.weight.abs().sum((0, *range(2, consumer.weight.ndim)))
    for path in hidden.between:
        scores = scores * network.get_submodule(path).weight.abs()  # type: ignore[operator]
    return scores


def at_random(network: nn.Module, hidden: HiddenLayer, generator: torch.Generator) -> Tensor:
    return torch.rand(hidden.width, generator=generator)


SCORES: Mapping[str, Callable[[nn.Module, HiddenLayer, torch.Generator], Tensor]] = {
    "incoming": incoming,
    "outgoing": outgoing,
    "random": at_random,
}


@torch.no_grad()
def accuracy(network: nn.Module, test: Sequence[tuple[Tensor, Tensor]]) -> float:
    right = 0
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        for images, labels in test:
            answers = network(images.contiguous(memory_format=torch.channels_last))
            right += int((answers.argmax(1) == labels).sum())
    return right / sum(len(labels) for _, labels in test)


if __name__ == "__main__":
    main()
