"""The way of hidden activations from the layer that makes them, by layers with a number a neuron, to their reader.

Some hidden neurons are set to NaN in a forward pass, and the layers that see them are noted: a neuron that reaches
anything but the one layer that reads it, or mixes with others on its way there, cannot be left out by itself. Each of
several passes marks other neurons, since code may treat neurons by their place (a slice, a sort, a running sum).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.architecture import HiddenLayer, recall_architecture
from superweight_ensembles.models.surgery import evaluating, is_out_of_memory

_IMAGE_SIZE = 32


def trace_width(module: nn.Module, producer: str, consumer: str, example: Tensor) -> HiddenLayer:
    """Follow the neurons of a layer to the one that reads them, in a few passes of a batch in evaluation mode."""
    first, last = hidden_layer_of(module, producer), hidden_layer_of(module, consumer)
    made, read = num_outputs(first), num_inputs(last)
    if made != read:
        raise SuperWeightError(
            f"{producer!r} and {consumer!r} share no hidden dimension: {producer}.weight {tuple(first.weight.shape)} "
            f"makes {made} numbers, {consumer}.weight {tuple(last.weight.shape)} reads {read}"
        )
    every = torch.arange(made)
    passed: list[str] = []
    for marked in (every == made - 1, every == 0, every % 2 == 0, every >= 0):
        passed = passed or _trace_pass(_Trace(module, producer, consumer, marked), example)
    layers = {path: module.get_submodule(path) for path in passed}
    between = {path: layer for path, layer in layers.items() if [*layer.parameters(), *layer.buffers()]}
    for path, layer in between.items():
        if not is_resizable(layer, made):
            kind = type(layer).__name__
            raise SuperWeightError(
                f"between {producer!r} and {consumer!r}, {path!r} is a {kind}, whose width cannot change"
            )
    return HiddenLayer(producer=producer, consumer=consumer, between=tuple(between), width=made)


def _trace_pass(trace: _Trace, example: Tensor) -> list[str]:
    """Run a module once with some neurons marked; returns the layers that they pass on their way."""
    module, producer, consumer = trace.module, trace.producer, trace.consumer
    try:
        with evaluating(module), torch.no_grad(), trace.hooked():
            answer = module(example)
    except SuperWeightError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SuperWeightError(
            f"{type(module).__name__} does not run on an example of shape {tuple(example.shape)}: "
            f"{str(error) or type(error).__name__:.200}; give example=, a batch of its inputs"
        ) from error
    if trace.num_calls != [1, 1]:
        raise SuperWeightError(
            f"{producer!r} runs {trace.num_calls[0]} times and {consumer!r} {trace.num_calls[1]} times in a call of "
            "the module: a width is of layers that run once"
        )
    if not trace.reached:
        raise SuperWeightError(f"the outputs of {producer!r} do not all reach {consumer!r}")
    if trace.mixed_before:
        via = f" by {trace.mixing!r}" if trace.mixing else ""
        raise SuperWeightError(
            f"between {producer!r} and {consumer!r} the hidden neurons are mixed{via}: none can be left out by itself"
        )
    if trace.elsewhere or _has_nan(answer):
        seen_by = trace.elsewhere or trace.mixing
        where = f"in {seen_by!r}" if seen_by else "in the module's answer"
        raise SuperWeightError(f"the outputs of {producer!r} are used elsewhere than in {consumer!r}, too: {where}")
    return trace.passed


@dataclass(slots=True)
class _Trace:
    """What one pass saw of the marked neurons, which are NaN."""

    module: nn.Module
    producer: str
    consumer: str
    marked: Tensor
    num_calls: list[int] = field(default_factory=lambda: [0, 0])
    reached: bool = False
    mixed_before: bool = False
    mixing: str = ""
    elsewhere: str = ""
    passed: list[str] = field(default_factory=list)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        for path, layer in self.module.named_modules():
            if path == self.producer:
                handles.append(layer.register_forward_hook(self._mark))
            elif path == self.consumer:
                handles.append(layer.register_forward_pre_hook(self._clean, prepend=True))
            elif _is_whole(layer) and not self.consumer.startswith(f"{path}."):
                handles.append(layer.register_forward_hook(self._note(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mark(self, layer: nn.Module, given: Any, made: Tensor) -> Tensor:
        self.num_calls[0] += 1
        places = self.marked.nonzero()[:, 0].to(made.device)
        return made.index_fill(neuron_axis(layer), places, torch.nan)

    def _clean(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        self.num_calls[1] += 1
        hidden = given[0]
        missing = hidden.isnan()
        neurons = missing.movedim(neuron_axis(layer), 0).flatten(1).any(1).cpu()
        self.mixed_before = bool((neurons & ~self.marked).any())
        self.reached = self.mixed_before or bool(neurons[self.marked].all())
        return (hidden.nan_to_num(0.0), *given[1:])

    def _note(self, path: str) -> Any:
        def note(layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if not any(_has_nan(one) for one in given):
                return
            if self.num_calls[1]:
                self.elsewhere = self.elsewhere or path
                return
            self.passed.append(path)
            before = max(_share_missing(one) for one in given if isinstance(one, Tensor))
            if not self.mixing and isinstance(made, Tensor) and _share_missing(made) > 1.5 * before:
                self.mixing = path

        return note


def _has_nan(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isnan().any())
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, (tuple, list)) and any(map(_has_nan, value))


def _share_missing(value: Any) -> float:
    return float(value.isnan().double().mean()) if isinstance(value, Tensor) and value.is_floating_point() else 0.0


def _is_whole(layer: nn.Module) -> bool:
    """Whether a module computes by itself: it has no parts, or numbers of its own (a norm with its activation)."""
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return bool(own) or next(layer.children(), None) is None


def hidden_layer_of(module: nn.Module, path: str) -> Any:
    """The linear layer or convolution at a path; refuses any other."""
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        raise SuperWeightError(f"no layer {path!r} in {type(module).__name__}") from None
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        raise SuperWeightError(f"{path!r} is a {type(layer).__name__}: a width is between linear layers, convolutions")
    if isinstance(layer, _ConvNd) and layer.groups != 1:
        raise SuperWeightError(f"{path!r} is a convolution of {layer.groups} groups: a width is between those of one")
    return layer


def num_outputs(layer: nn.Module) -> int:
    """Outputs of a linear layer, output channels of a convolution."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def num_inputs(layer: nn.Module) -> int:
    """Inputs of a linear layer, input channels of a convolution."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def neuron_axis(layer: nn.Module) -> int:
    """Axis of the neurons in the activations that a linear layer or a convolution reads and makes."""
    return -1 if isinstance(layer, nn.Linear) else 1


def is_resizable(layer: nn.Module, width: int) -> bool:
    """Whether a layer holds numbers for each of ``width`` neurons, and nothing else."""
    if isinstance(layer, _NormBase):
        return layer.num_features == width
    if isinstance(layer, _ConvNd):  # depthwise
        return layer.groups == layer.in_channels == layer.out_channels == width
    held = list(layer.parameters(recurse=False))
    return bool(held) and all(tensor.shape == (width,) for tensor in held) and not list(layer.buffers(recurse=False))


def example_of(module: nn.Module) -> Tensor:
    """A batch of zeros that a module takes, guessed by its registry name or by its first layer."""
    like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), torch.empty(0))
    made = recall_architecture(module)
    if made is not None and made.model == "mlp":
        return like.new_zeros(2, made.in_channels * made.options["pixels"])
    if made is not None:
        size = made.options.get("img_size") or getattr(module, "default_cfg", {}).get("input_size", (_IMAGE_SIZE,))[-1]
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        return like.new_zeros(2, made.in_channels, *sides)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            return like.new_zeros(2, layer.in_features)
        if isinstance(layer, _ConvNd):
            return like.new_zeros(2, layer.in_channels, *(_IMAGE_SIZE,) * len(layer.kernel_size))
    raise SuperWeightError("nothing tells what the module reads: give example=, a batch of its inputs")
