"""Hidden widths of a module: where they are, and changes of them in layers and in the moments of an optimiser.

Parameters become new tensors under their old names, since a parameter that a graph still holds must keep its shape. In
the optimiser they take the places of the old ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive.tracing import (
    hidden_layer_of,
    is_resizable,
    neuron_axis,
    num_inputs,
    num_outputs,
)
from superweight_ensembles.models.adaptive.width import ATTRIBUTE, MOST_WIDTH, AdaptiveWidth
from superweight_ensembles.models.architecture import HiddenLayer, recall_architecture, remember_architecture
from superweight_ensembles.models.surgery import exchange_parameter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a hidden width is in a module."""

    producer: Any  # the layer that makes the neurons
    consumer: Any  # the layer that reads them
    between: tuple[nn.Module, ...]  # layers in between that hold numbers for each neuron

    @property
    def width(self) -> AdaptiveWidth | None:
        """The learned width that weighs the neurons; None where their number is not learned."""
        found = self.consumer._modules.get(ATTRIBUTE)
        return found if isinstance(found, AdaptiveWidth) else None

    def held(self) -> Iterator[tuple[nn.Module, str, int]]:
        """Tensors that hold numbers for each neuron: the layer, the tensor's name, and the axis of the neurons."""
        yield self.producer, "weight", 1 if isinstance(self.producer, _ConvTransposeNd) else 0
        if self.producer.bias is not None:
            yield self.producer, "bias", 0
        for layer in self.between:
            tensors = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
            yield from ((layer, name, 0) for name, tensor in tensors if tensor.ndim)
        yield self.consumer, "weight", self.read_axis

    @property
    def read_axis(self) -> int:
        """Axis of the neurons in the weight of the consumer."""
        return 0 if isinstance(self.consumer, _ConvTransposeNd) else 1

    def sizes(self) -> Iterator[tuple[nn.Module, str]]:
        """Attributes in which layers note how wide they are: the layer, and the name."""
        yield self.producer, "out_features" if isinstance(self.producer, nn.Linear) else "out_channels"
        yield self.consumer, "in_features" if isinstance(self.consumer, nn.Linear) else "in_channels"
        for layer in self.between:
            noted = ("groups", "in_channels", "out_channels", "num_features", "num_parameters")
            yield from ((layer, name) for name in noted if name in vars(layer))

    def new_numbers(
        self, layer: nn.Module, name: str, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Start values of new neurons, drawn on the CPU."""
        like: Tensor = getattr(layer, name)
        made = like.new_zeros(shape)
        if like.is_meta or layer is self.consumer or name in ("bias", "running_mean"):
            return made
        if layer is self.producer:
            deviation = 0.0 if self.width is None else self.width.deviation
            return made.copy_(deviation * torch.randn(shape, generator=generator))
        if isinstance(layer, _NormBase):
            return made.fill_(1.0)
        if isinstance(layer, _ConvNd):
            return made.copy_(float(like.float().std(correction=0)) * torch.randn(shape, generator=generator))
        return made.fill_(float(like.mean()))


def weigh_inputs(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The forward pre-hook of a layer that reads neurons of learned width."""
    hidden, *rest = given
    return (getattr(layer, ATTRIBUTE)(hidden), *rest)


def learned_places(module: nn.Module) -> dict[str, tuple[Place, AdaptiveWidth]]:
    """The learned widths of a module, by the path of the layer that makes the neurons."""
    found = {}
    for path, width in module.named_modules():
        if isinstance(width, AdaptiveWidth) and width.consumer:
            hidden = width.hidden_layer(path)
            found[hidden.producer] = (place_of(module, hidden), width)
    return found


def place_of(module: nn.Module, hidden: HiddenLayer) -> Place:
    """The layers that a width is between."""
    return Place(
        producer=module.get_submodule(hidden.producer),
        consumer=module.get_submodule(hidden.consumer),
        between=tuple(map(module.get_submodule, hidden.between)),
    )


def attach_width(consumer: nn.Module, width: AdaptiveWidth) -> None:
    """Have a layer weigh the neurons that it reads."""
    consumer.add_module(ATTRIBUTE, width)
    consumer.register_forward_pre_hook(weigh_inputs)


def adaptive_widths(module: nn.Module) -> dict[str, AdaptiveWidth]:
    """The learned widths of a module, at any depth, by the path of the layer that makes the neurons.

    Example:
        >>> from superweight_ensembles.models.adaptive import adaptive_mlp, adaptive_widths
        >>> network = adaptive_mlp(2, 3, rate=0.1)
        >>> {path: width.width for path, width in adaptive_widths(network).items()}
        {'hidden0': 25}
    """
    return {path: width for path, (_, width) in learned_places(module).items()}


def freeze_widths(module: nn.Module, frozen: bool = True) -> None:
    """Freeze the learned widths of a module, and their rates; with ``frozen=False``, let them change again.

    Neurons keep their importance, so the module can still be truncated.

    Raises:
        SuperWeightError: A module without learned widths.
    """
    widths = adaptive_widths(module)
    if not widths:
        raise SuperWeightError(f"{type(module).__name__} has no learned width: make_adaptive gives it some")
    for width in widths.values():
        width.frozen = frozen
        width.rho.requires_grad_(not frozen)


@torch.no_grad()
def resize_widths(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, tuple[int, int]]:
    """Give every learned width the neurons that its rate asks for by now: call it after ``optimizer.step()``.

    The rates are read once, all together; widths that stay, and frozen ones, are left alone. Growing appends neurons:
    their producer's weights are drawn with the deviation that it started with, and the consumer's weights are zero, so
    that nothing but the scale of p changes. Shrinking cuts the last neurons off. The optimiser keeps the moments of the
    numbers that stay; those of new numbers are zero.

    Args:
        module: A network that holds learned widths, at any depth.
        optimizer: Optimiser of its parameters; None where there is none.

    Raises:
        SuperWeightError: A rate that is zero or not finite.

    Returns:
        Numbers of neurons before and after, of each width that changed, by its producer's path.

    Differs from paper: the published code drops the moments, and draws all new numbers with deviation one.

    Example:
        >>> import torch
        >>> from superweight_ensembles.models.adaptive import adaptive_mlp, resize_widths
        >>> network = adaptive_mlp(2, 3, rate=0.1)
        >>> _ = network.head.input_width.rho.data.fill_(-1.0)  # a rate of 0.31
        >>> resize_widths(network), network(torch.zeros(5, 2)).shape
        ({'hidden0': (25, 9)}, torch.Size([5, 3]))
    """
    places = {name: found for name, found in learned_places(module).items() if not found[1].frozen}
    if not places:
        return {}
    return follow_rates(places, torch.stack([width.rate for _, width in places.values()]).tolist(), optimizer)


def follow_rates(
    places: Mapping[str, tuple[Place, AdaptiveWidth]],
    rates: Sequence[float],
    optimizer: torch.optim.Optimizer | None = None,
    generator_of: Callable[[int], torch.Generator] | None = None,  # source of new numbers, by a width's index
) -> dict[str, tuple[int, int]]:
    """Give each width the neurons that its rate asks for; returns neurons before and after, of widths that changed."""
    changed = {}
    for index, ((label, (place, width)), rate) in enumerate(zip(places.items(), rates)):
        before, wanted = width.width, width.wanted(rate)
        if wanted != before:
            changed[label] = (before, wanted)
            set_width(place, wanted, optimizer, None if generator_of is None else generator_of(index))
            if wanted in width.bounds:
                _LOG.warning(
                    "the width of %s is at its bound of %d neurons (%d to %d), at a rate of %.3g", label, wanted,
                    *width.bounds, rate,
                )  # fmt: skip
    return changed


@torch.no_grad()
def set_width(
    place: Place,
    size: int,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Give a width so many neurons, whatever its rate asks for; new numbers are drawn from the generator."""
    if place.producer.weight is None or place.consumer.weight is None:
        raise SuperWeightError("a bank generates the weights of this width: freeze_widths(member) before it is planned")
    for layer, name, axis in place.held():
        tensor = getattr(layer, name)
        shape = list(tensor.shape)
        shape[axis] = max(size - shape[axis], 0)
        new = place.new_numbers(layer, name, tuple(shape), generator)
        values = torch.cat([tensor.narrow(axis, 0, min(size, tensor.shape[axis])), new], axis)
        if not isinstance(tensor, nn.Parameter):
            layer.register_buffer(name, values, persistent=name not in layer._non_persistent_buffers_set)
            continue
        setattr(layer, name, now := nn.Parameter(values, requires_grad=tensor.requires_grad))
        if optimizer is not None:
            exchange_parameter(optimizer, tensor, now, partial(_carried, axis=axis, like=now))
    for layer, name in place.sizes():
        setattr(layer, name, size)
    if place.width is not None:
        place.width.width = size


def _carried(moment: Tensor, axis: int, like: Tensor) -> Tensor:
    """A moment in the new shape, zero for new neurons; in the parameter's memory format, as fused optimisers need."""
    made = torch.zeros_like(like, dtype=moment.dtype)
    kept = min(moment.shape[axis], like.shape[axis])
    made.narrow(axis, 0, kept).copy_(moment.narrow(axis, 0, kept))
    return made


def restore_widths(module: nn.Module, hidden: Sequence[HiddenLayer]) -> None:
    """Give a network that was made by its options the hidden widths that were noted, perhaps in a file."""
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
        # A learned width gets the module that weighs its neurons; its rate is any one yet, and read with the weights.
        if (how := noted.learned) is not None and ATTRIBUTE not in consumer._modules:
            width = AdaptiveWidth(
                width=min(max(noted.width, how.bounds[0]), how.bounds[1]), distribution=how.distribution,
                quantile=how.quantile, bounds=how.bounds, scale=how.scale, axis=neuron_axis(consumer),
            )  # fmt: skip
            width.producer, width.consumer, width.between = noted.producer, noted.consumer, noted.between
            width.deviation, width.width, width.frozen = how.deviation, noted.width, how.frozen
            width.rho.requires_grad_(not how.frozen)
            attach_width(consumer, width)


@torch.no_grad()
def adopt_widths(
    module: nn.Module, learned: Mapping[str, tuple[int, float]], generator: torch.Generator | None = None
) -> None:
    """Set the learned widths of a network to those that another one of its kind has learned, and freeze them.

    Start values are as if the network had been made with these widths: weights that read a width are scaled by the
    square root of the old width over the new one, and those of new neurons are drawn with the same deviation.

    Args:
        module: Changed in place.
        learned: Width and rate by the path of the producer.
        generator: Source of new numbers; torch's global one where None.

    Raises:
        SuperWeightError: Other widths than the network has, or a width or rate out of bounds.
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
        before = width.width
        deviation = float(place.consumer.weight.float().std(correction=0)) * math.sqrt(before / size)
        place.consumer.weight.mul_(math.sqrt(before / size))
        set_width(place, size, generator=generator)
        if size > before:
            new = place.consumer.weight.narrow(place.read_axis, before, size - before)
            new.copy_(torch.randn(new.shape, generator=generator) * deviation)
        width.set_rate(rate)
    freeze_widths(module)


def drop_importance(module: nn.Module) -> None:
    """Make learned widths plain ones, in place: all neurons count alike, which changes what the network answers."""
    made = recall_architecture(module)
    for place, _ in learned_places(module).values():
        for key, hook in list(place.consumer._forward_pre_hooks.items()):
            if hook is weigh_inputs:
                del place.consumer._forward_pre_hooks[key]
        delattr(place.consumer, ATTRIBUTE)
    if made is not None:
        remember_architecture(module, replace(made, hidden=tuple(replace(one, learned=None) for one in made.hidden)))
