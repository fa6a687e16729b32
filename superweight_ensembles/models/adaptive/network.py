"""Networks whose hidden widths are learned: any module's, and a multilayer perceptron's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from superweight_ensembles.errors import SuperWeightError, check_number, names_options
from superweight_ensembles.models.adaptive.resizing import (
    adaptive_widths,
    attach_width,
    place_of,
    set_width,
)
from superweight_ensembles.models.adaptive.tracing import example_of, neuron_axis, trace_width
from superweight_ensembles.models.adaptive.width import BOUNDS, QUANTILE, RATE, AdaptiveWidth
from superweight_ensembles.models.architecture import Architecture, HiddenLayer, Module, remember_architecture
from superweight_ensembles.models.surgery import copied


@names_options
def make_adaptive(
    module: Module,
    pairs: Sequence[tuple[str, str]],
    *,
    rate: float | None = None,
    width: int | None = None,
    distribution: str = "exponential",
    quantile: float = QUANTILE,
    bounds: tuple[int, int] = BOUNDS,
    scale: str = "rms",
    example: Tensor | None = None,
) -> Module:
    """Make hidden widths of a module learned, each between two of its layers.

    The neurons between a producer (linear, convolution) and its consumer are weighed by their importance before the
    consumer reads them; call :func:`resize_widths` after each step of the optimiser. Layers in between that hold a
    number for each neuron, such as batch norm, are found and change with them.

    Args:
        module: Changed in place. Each width becomes a submodule ``input_width`` of its consumer, with one parameter.
        pairs: (producer, consumer) paths. A glob stands for all paths that match it, and the globs of a pair for the
            same text: ``("blocks.*.mlp.fc1", "blocks.*.mlp.fc2")`` are a vision transformer's feed-forward widths.
        rate: First rate, which decides the first number of neurons. Where neither this nor ``width`` is given, each
            width starts with the neurons that it has.
        width: First number of neurons.
        distribution: ``exponential`` or ``power_law``.
        quantile: Share of the distribution that the neurons hold, in (0, 1).
        bounds: Least and most neurons.
        scale: ``rms``: importances have a root mean square of one, so that the module's own start values and learning
            rates suit. ``sum``: importances sum to one, as published, and the consumer's weights are scaled up once, by
            sqrt(D / sum of p^2), to keep the deviation of its outputs.
        example: A batch of inputs with which neurons are traced through the module; guessed where None.

    Raises:
        SuperWeightError: Pairs that share no hidden dimension (names both shapes), neurons that mix or are used
            elsewhere (names where), a width that is learned already, or one that the module depends on otherwise;
            whatever :class:`AdaptiveWidth` raises.

    Source: Errica et al., arXiv 2501.15889. Differs from paper: ``rms``, and widths of any pair of layers, are ours.

    Example:
        >>> import superweight_ensembles as swe
        >>> from superweight_ensembles.models.adaptive import adaptive_widths, make_adaptive
        >>> network = swe.wide_resnet(10, 1, num_classes=10)
        >>> network = make_adaptive(network, [("stages.*.conv1", "stages.*.conv2")])
        >>> [width.width for width in adaptive_widths(network).values()]
        [16, 32, 64]
    """
    options: dict[str, Any] = {"distribution": distribution, "quantile": quantile, "bounds": bounds, "scale": scale}
    example = example_of(module) if example is None else example
    taken = set(adaptive_widths(module))
    traced = []
    for producer, consumer in _matched(module, pairs):
        if producer in taken:
            raise SuperWeightError(f"the width between {producer!r} and {consumer!r} is learned already")
        traced.append(trace_width(module, producer, consumer, example))
        _check_untied(module, producer, consumer, *traced[-1].between)
        taken.add(producer)

    def attach(to: nn.Module) -> None:
        for hidden in traced:
            start = hidden.width if rate is None and width is None else width
            axis = neuron_axis(to.get_submodule(hidden.consumer))
            learned = AdaptiveWidth(rate=rate, width=start, axis=axis, **options)
            _attach(to, hidden, learned)

    _check_free(module, traced, example)
    attach(copied(module))  # first to a copy: a refusal leaves the module as it is
    attach(module)
    return module


def _matched(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of paths, with globs resolved."""
    if isinstance(pairs, str) or not pairs:
        raise SuperWeightError(f"pairs must be (producer, consumer) paths, at least one; got {pairs!r:.80}")
    paths = [path for path, _ in module.named_modules()]
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(path, str) for path in pair):
            raise SuperWeightError(f"a pair is (producer, consumer), two paths; got {pair!r:.80}")
        producer, consumer = pair
        if producer.count("*") != consumer.count("*"):
            raise SuperWeightError(f"the globs {producer!r} and {consumer!r} must hold as many '*', for the same text")
        if "*" not in producer:
            yield producer, consumer
            continue
        pattern = re.compile("(.*)".join(map(re.escape, producer.split("*"))))
        found = [match for match in map(pattern.fullmatch, paths) if match]
        if not found:
            raise SuperWeightError(f"no layer of {type(module).__name__} matches {producer!r}")
        for match in found:
            parts = consumer.split("*")
            yield match.group(0), "".join(f"{part}{text}" for part, text in zip(parts, (*match.groups(), "")))


def _check_untied(module: nn.Module, *paths: str) -> None:
    """Refuse layers that share tensors with other layers."""
    owners: dict[int, set[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(tensor), set()).add(name)
    for path in paths:
        for name, tensor in module.get_submodule(path).named_parameters(recurse=False):
            others = sorted(owners[id(tensor)] - {f"{path}.{name}"})
            if others:
                raise SuperWeightError(f"{path}.{name} is tied to {others[0]}: its width cannot change by itself")


def _attach(module: nn.Module, hidden: HiddenLayer, learned: AdaptiveWidth) -> None:
    """Have a consumer weigh what it reads, and start with the neurons that the learned width asks for."""
    producer: Any = module.get_submodule(hidden.producer)
    consumer: Any = module.get_submodule(hidden.consumer)
    learned.producer, learned.consumer, learned.between = hidden.producer, hidden.consumer, hidden.between
    learned.deviation = float(producer.weight.detach().float().std(correction=0))
    attach_width(consumer, learned.to(producer.weight.device))
    if learned.width != hidden.width:
        fan_in = _reads(consumer)
        deviation = float(consumer.weight.detach().float().std(correction=0))
        set_width(place_of(module, hidden), learned.width)
        with torch.no_grad():  # as the layer would have started at this width
            consumer.weight.normal_(std=deviation * math.sqrt(fan_in / _reads(consumer)))
    if learned.scale == "sum":
        with torch.no_grad():
            consumer.weight *= (learned.width / learned.importance().square().sum()).sqrt()


def _reads(layer: Any) -> int:
    """Number of inputs of one output."""
    weight: Tensor = layer.weight
    return weight.shape[0] if isinstance(layer, _ConvTransposeNd) else weight[0].numel()


def _check_free(module: nn.Module, traced: Sequence[HiddenLayer], example: Tensor) -> None:
    """Refuse a module whose answer changes when neurons that nothing reads, the last of each width, are removed."""
    whole, narrow = copied(module).eval(), copied(module).eval()
    for hidden in traced:
        place = place_of(whole, hidden)
        for layer, name, axis in place.held():
            if layer is place.consumer and name == "weight":
                with torch.no_grad():
                    getattr(layer, name).select(axis, -1).zero_()
        if hidden.width > 1:
            set_width(place_of(narrow, hidden), hidden.width - 1)
    try:
        with torch.no_grad():
            expected, again, answer = whole(example), whole(example), narrow(example)
        # The answers of a module that is random are not compared.
        repeats = torch.allclose(expected, again, equal_nan=True)
        same = torch.allclose(answer, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
        difference = "its answer changes without neurons that add nothing" if repeats and not same else ""
    except Exception as error:
        difference = f"{error!s:.200}"
    if difference and all(hidden.width > 1 for hidden in traced):
        raise SuperWeightError(
            f"{type(module).__name__} depends on the hidden widths in another way than by its layers: {difference}"
        )


class MultilayerPerceptron(nn.Sequential):
    """Linear ``hidden0``, ``hidden1``, ..., an activation after each, and ``head``: (B, ...) to logits (B, K)."""

    def __init__(
        self, in_features: int, num_classes: int, widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU6
    ) -> None:
        super().__init__()
        for index, (made, read) in enumerate(zip(widths, (in_features, *widths))):
            self.add_module(f"hidden{index}", nn.Linear(read, made))
            self.add_module(f"activation{index}", activation())
        self.add_module("head", nn.Linear((in_features, *widths)[-1], num_classes))
        self.num_classes = num_classes
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Inputs (B, ...) to logits (B, K)."""
        return super().forward(images.flatten(1))


@names_options
def multilayer_perceptron(
    widths: Sequence[int], num_classes: int, in_channels: int = 3, pixels: int = 1
) -> MultilayerPerceptron:
    """A multilayer perceptron of images.

    Args:
        widths: Neurons of each hidden layer.
        num_classes: K.
        in_channels: Channels of the images.
        pixels: Pixels of an image, height times width.
    """
    if isinstance(widths, (str, int)) or not widths:
        raise SuperWeightError(f"widths must be the neurons of each hidden layer, at least one; got {widths!r:.60}")
    _check_counts(num_classes=num_classes, in_channels=in_channels, pixels=pixels)
    for width in widths:
        _check_counts(widths=width)
    network = MultilayerPerceptron(in_channels * pixels, num_classes, widths)
    return remember_architecture(network, _mlp_architecture(widths, num_classes, in_channels, pixels))


@names_options
def adaptive_mlp(
    in_features: int,
    num_classes: int,
    *,
    hidden_layers: int = 1,
    rate: float | None = None,
    width: int | None = None,
    distribution: str = "exponential",
    quantile: float = QUANTILE,
    bounds: tuple[int, int] = BOUNDS,
    scale: str = "sum",
    activation: Callable[[], nn.Module] = nn.ReLU6,
) -> MultilayerPerceptron:
    """A multilayer perceptron whose hidden widths are learned, as published.

    First weights are Kaiming normal, those that read a learned width N(0, 2 / sum of p^2), biases zero.

    Args:
        in_features: Numbers of an input, flattened.
        num_classes: K.
        hidden_layers: Number of layers of learned width.
        rate: First rate of all widths; 0.01 where neither this nor ``width`` is given.
        width: First number of neurons of each hidden layer.
        distribution: As in :func:`make_adaptive`.
        quantile: As in :func:`make_adaptive`.
        bounds: As in :func:`make_adaptive`.
        scale: As in :func:`make_adaptive`.
        activation: Function that makes the activation after each hidden layer.

    Raises:
        SuperWeightError: No hidden layer, or an error of :class:`AdaptiveWidth`.

    Source: Errica et al., arXiv 2501.15889, sections 3 and 4.

    Example:
        >>> import torch
        >>> from superweight_ensembles.models.adaptive import adaptive_mlp
        >>> network = adaptive_mlp(2, 3, hidden_layers=2)
        >>> network(torch.zeros(5, 2)).shape, network.hidden1.weight.shape
        (torch.Size([5, 3]), torch.Size([232, 232]))
    """
    _check_counts(in_features=in_features, num_classes=num_classes, hidden_layers=hidden_layers)
    options: dict[str, Any] = {"distribution": distribution, "quantile": quantile, "bounds": bounds, "scale": scale}
    rate = RATE if rate is None and width is None else rate
    start = AdaptiveWidth(rate=rate, width=width, **options).width
    network = MultilayerPerceptron(in_features, num_classes, (start,) * hidden_layers, activation)
    if activation is nn.ReLU6:
        remember_architecture(network, _mlp_architecture([start] * hidden_layers, num_classes, in_features, 1))
    names = [f"hidden{index}" for index in range(hidden_layers)] + ["head"]
    example = torch.zeros(2, in_features)
    return make_adaptive(network, list(pairwise(names)), rate=rate, width=width, example=example, **options)


def _mlp_architecture(widths: Sequence[int], num_classes: int, in_channels: int, pixels: int) -> Architecture:
    options = {"widths": list(widths), "pixels": pixels}
    return Architecture(model="mlp", num_classes=num_classes, in_channels=in_channels, options=options)


def _check_counts(**counts: object) -> None:
    for name, count in counts.items():
        check_number(name, count, whole=True, least=1)
