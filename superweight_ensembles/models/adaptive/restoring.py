"""Hidden widths put back into a network that was made again by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive.distribution import ATTRIBUTE, MOST_WIDTH, AdaptiveWidth
from superweight_ensembles.models.adaptive.resizing import (
    attach_width,
    detach_width,
    freeze_widths,
    learned_places,
    place_of,
    set_width,
)
from superweight_ensembles.models.adaptive.tracing import (
    hidden_layer_of,
    is_resizable,
    neuron_axis,
    num_inputs,
    num_outputs,
)
from superweight_ensembles.models.architecture import HiddenLayer, recall_architecture, remember_architecture


def restore_widths(module: nn.Module, hidden: Sequence[HiddenLayer]) -> None:
    """Give a network the hidden widths that were noted, learned ones with what weighs them, as yet of any rate.

    Args:
        module: As its options make it; changed in place.
        hidden: As its architecture has them, which may come from a file.

    Raises:
        SuperWeightError: Layers that the network does not have, or that share no width; numbers that are none.
    """
    for noted in hidden:
        producer, consumer = (hidden_layer_of(module, path) for path in (noted.producer, noted.consumer))
        size = num_outputs(producer)
        if size != num_inputs(consumer):
            raise SuperWeightError(f"{noted.producer!r} and {noted.consumer!r} share no hidden dimension")
        if not 1 <= noted.width <= MOST_WIDTH:
            raise SuperWeightError(f"{noted.producer!r}: a width is 1 to {MOST_WIDTH:,}; got {noted.width!r:.40}")
        modules = dict(module.named_modules())
        for path in noted.between:
            if path not in modules or not is_resizable(modules[path], size):
                raise SuperWeightError(f"{path!r} is no layer whose width can change with {noted.producer!r}")
        set_width(place_of(module, noted), noted.width)
        if noted.learned is not None and ATTRIBUTE not in consumer._modules:
            attach_width(consumer, _learned(noted, consumer))


def _learned(noted: HiddenLayer, consumer: nn.Module) -> AdaptiveWidth:
    assert noted.learned is not None, "the caller has looked"
    how = noted.learned
    width = AdaptiveWidth(
        width=min(max(noted.width, how.bounds[0]), how.bounds[1]), distribution=how.distribution,
        quantile=how.quantile, bounds=how.bounds, scale=how.scale, axis=neuron_axis(consumer),
    )  # fmt: skip
    width.producer, width.consumer, width.between = noted.producer, noted.consumer, noted.between
    width.deviation, width.width, width.frozen = how.deviation, noted.width, how.frozen
    width.rho.requires_grad_(not how.frozen)
    return width


@torch.no_grad()
def adopt_widths(
    module: nn.Module, learned: Mapping[str, tuple[int, float]], generator: torch.Generator | None = None
) -> None:
    """Give a network whose widths are learned those that another of its kind has learned, and freeze them.

    Start values are as if the network had been made with these widths: weights that read a width are scaled by the
    square root of how much less, or more, they read, and those of new neurons drawn with the same deviation.

    Args:
        module: As built; changed in place.
        learned: Width and rate by path of the producer.
        generator: Source of new numbers; torch's global one where None.

    Raises:
        SuperWeightError: Widths that the network does not have, or beyond their bounds; one that is missing.
    """
    places = learned_places(module)
    if set(learned) != set(places):
        raise SuperWeightError(
            f"the widths learned are {', '.join(learned) or 'none'}; the network has {', '.join(places) or 'none'}"
        )
    for name, (size, rate) in learned.items():
        place, width = places[name]
        if not width.bounds[0] <= size <= width.bounds[1] or not 0 < rate < math.inf:
            raise SuperWeightError(f"{name!r}: no width of {size} and rate {rate} within {width.bounds}")
        consumer: Any = place.consumer
        before = width.width
        deviation = float(consumer.weight.float().std(correction=0)) * math.sqrt(before / size)
        consumer.weight.mul_(math.sqrt(before / size))
        set_width(place, size, generator=generator)
        if size > before:
            new = consumer.weight.narrow(place.read_axis, before, size - before)
            new.copy_(torch.randn(new.shape, generator=generator) * deviation)
        width.set_rate(rate)
    freeze_widths(module)


def drop_importance(module: nn.Module) -> None:
    """Make learned widths plain ones: neurons count as they do in any network, and none is more important.

    Args:
        module: Changed in place; what it answers changes with it.
    """
    made = recall_architecture(module)
    for place, _ in learned_places(module).values():
        detach_width(place.consumer)
    if made is not None:
        remember_architecture(module, replace(made, hidden=tuple(replace(one, learned=None) for one in made.hidden)))
