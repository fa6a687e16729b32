"""Hidden widths changed in place: layers, what stands between them, and the optimiser's moments of what stays.

Parameters become new tensors under their old names, as autograd keeps the shape of a parameter that a graph still
holds. In the optimiser they take the places of the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from superweight_ensembles.adaptive.distribution import AdaptiveWidth

ATTRIBUTE = "input_width"  # of the layer that reads the neurons


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a learned width is in a module.

    Attributes:
        width: It.
        producer: The layer that makes the neurons.
        consumer: The layer that reads them.
        between: The layers in between that hold numbers for each neuron.
    """

    width: AdaptiveWidth
    producer: nn.Module
    consumer: nn.Module
    between: tuple[nn.Module, ...]

    def held(self) -> Iterator[tuple[nn.Module, str, int]]:
        """What holds numbers for each neuron: the layer, the tensor's name, and the axis of the neurons."""
        yield self.producer, "weight", 1 if isinstance(self.producer, _ConvTransposeNd) else 0
        if self.producer.bias is not None:
            yield self.producer, "bias", 0
        for layer in self.between:
            tensors = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
            yield from ((layer, name, 0) for name, tensor in tensors if tensor.ndim)
        yield self.consumer, "weight", 0 if isinstance(self.consumer, _ConvTransposeNd) else 1

    def sizes(self) -> Iterator[tuple[nn.Module, str]]:
        """Where a layer notes how wide it is."""
        yield self.producer, "out_features" if isinstance(self.producer, nn.Linear) else "out_channels"
        yield self.consumer, "in_features" if isinstance(self.consumer, nn.Linear) else "in_channels"
        for layer in self.between:
            noted = ("groups", "in_channels", "out_channels", "num_features", "num_parameters")
            yield from ((layer, name) for name in noted if name in vars(layer))

    def new_numbers(self, layer: nn.Module, name: str, shape: tuple[int, ...]) -> Tensor:
        """Start values of new neurons."""
        like: Tensor = getattr(layer, name)
        made = like.new_zeros(shape)
        if layer is self.consumer or name in ("bias", "running_mean"):
            return made
        if layer is self.producer:
            return made.normal_(std=self.width.deviation)
        if isinstance(layer, _NormBase):
            return made.fill_(1.0)
        if isinstance(layer, _ConvNd):
            return made.normal_(std=float(like.float().std(correction=0)))
        return made.fill_(float(like.mean()))


def weigh_inputs(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The forward hook of a layer that reads neurons of learned width."""
    hidden, *rest = given
    return (getattr(layer, ATTRIBUTE)(hidden), *rest)


def width_places(module: nn.Module) -> dict[str, Place]:
    """The learned widths of a module, by the path of the layer that makes the neurons."""
    found = {}
    for path, width in module.named_modules():
        if isinstance(width, AdaptiveWidth) and width.consumer:
            root = path.removesuffix(f"{width.consumer}.{ATTRIBUTE}")
            found[root + width.producer] = Place(
                width=width,
                producer=module.get_submodule(root + width.producer),
                consumer=module.get_submodule(root + width.consumer),
                between=tuple(module.get_submodule(root + one) for one in width.between),
            )
    return found


def adaptive_widths(module: nn.Module) -> dict[str, AdaptiveWidth]:
    """The learned widths of a module, at any depth, by the path of the layer that makes the neurons.

    Example:
        >>> from superweight_ensembles.adaptive import adaptive_mlp, adaptive_widths
        >>> network = adaptive_mlp(2, 3, rate=0.1)
        >>> {path: width.width for path, width in adaptive_widths(network).items()}
        {'hidden0': 25}
    """
    return {path: place.width for path, place in width_places(module).items()}


@torch.no_grad()
def resize_widths(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, tuple[int, int]]:
    """Give every learned width the neurons that its rate asks for by now: call it after ``optimizer.step()``.

    Reads the rates once, all together; widths that stay are left alone. Growing appends neurons: weights of their
    producer are drawn with the deviation that it started with, and the consumer reads them with zero, so that nothing
    but the scale of p changes. Shrinking cuts the last ones off. The optimiser's moments of what stays are kept, those
    of new numbers are zero.

    Args:
        module: That holds learned widths, at any depth.
        optimizer: Of its parameters; None where there is none.

    Raises:
        SuperWeightError: A rate that is not finite.

    Returns:
        Of each width that changed, by its producer's path, how many neurons there were and are.

    Differs from paper: the published code drops the moments, and draws all new numbers with deviation one.

    Example:
        >>> import torch
        >>> from superweight_ensembles.adaptive import adaptive_mlp, resize_widths
        >>> network = adaptive_mlp(2, 3, rate=0.1)
        >>> _ = network.head.input_width.rho.data.fill_(-1.0)  # a rate of 0.31
        >>> resize_widths(network), network(torch.zeros(5, 2)).shape
        ({'hidden0': (25, 9)}, torch.Size([5, 3]))
    """
    places = width_places(module)
    if not places:
        return {}
    rates = torch.stack([place.width.rate for place in places.values()]).tolist()
    changed = {}
    for (name, place), rate in zip(places.items(), rates):
        wanted = place.width.wanted(rate)
        if wanted != place.width.width:
            changed[name] = (place.width.width, wanted)
            set_width(place, wanted, optimizer)
    return changed


@torch.no_grad()
def set_width(place: Place, size: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give a learned width so many neurons, whatever its rate asks for."""
    for layer, name, axis in place.held():
        tensor = getattr(layer, name)
        shape = list(tensor.shape)
        shape[axis] = max(size - shape[axis], 0)
        new = place.new_numbers(layer, name, tuple(shape))
        _replace(layer, name, torch.cat([tensor.narrow(axis, 0, min(size, tensor.shape[axis])), new], axis))
        if optimizer is not None and isinstance(tensor, nn.Parameter):
            _carry_over(optimizer, tensor, getattr(layer, name), axis)
    for layer, name in place.sizes():
        setattr(layer, name, size)
    place.width.width = size


def _replace(layer: nn.Module, name: str, values: Tensor) -> None:
    held = getattr(layer, name)
    if isinstance(held, nn.Parameter):
        setattr(layer, name, nn.Parameter(values, requires_grad=held.requires_grad))
    else:
        layer.register_buffer(name, values, persistent=name not in layer._non_persistent_buffers_set)


def _carry_over(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, axis: int) -> None:
    """Put a parameter in another's place, with what the optimiser keeps of the neurons that are in both."""
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][index] = new
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    kept = min(old.shape[axis], new.shape[axis])
    for key, values in state.items():
        if isinstance(values, Tensor) and values.shape == old.shape:
            state[key] = torch.zeros_like(new, dtype=values.dtype)
            state[key].narrow(axis, 0, kept).copy_(values.narrow(axis, 0, kept))
    optimizer.state[new] = state
