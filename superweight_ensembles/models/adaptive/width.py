"""How much each hidden neuron counts, and how many there are: a distribution over neurons with one learned rate.

Shapes: D hidden neurons now, numbered i = 0, 1, ..., D - 1.

Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.errors import SuperWeightError, check_number, names_options, unknown_name
from superweight_ensembles.models.architecture import HiddenLayer, LearnedWidth

Distribution = Literal["exponential", "power_law"]
Scale = Literal["sum", "rms"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)
SCALES: tuple[str, ...] = get_args(Scale)
QUANTILE = 0.9
RATE = 0.01
BOUNDS = (2, 4096)
MOST_WIDTH = 2**20
ATTRIBUTE = "input_width"  # of the layer that reads the neurons


@names_options
class AdaptiveWidth(nn.Module):
    """A learned width: neuron i has importance p_i, and as many neurons exist as hold a quantile of the distribution.

    With F the distribution function, P(i) = F(i + 1) - F(i) and p_i = P(i) / sum over j < D of P(j). ``exponential``:
    F(x) = 1 - exp(-rate x). ``power_law``: F(x) = 1 - (1 + x) ** -rate, with a longer tail. The width that a rate asks
    for is floor of the quantile, plus 2. The rate is softplus(rho), and rho the one parameter; it gets its gradient
    through p alone.

    A call multiplies the hidden activations that a layer is about to read by the importance of their neurons.

    Args:
        rate: First rate; 0.01 where neither this nor ``width`` is given.
        width: First width, in the place of ``rate``: the rate becomes the one that asks for it.
        distribution: ``exponential`` or ``power_law``.
        quantile: Share of the distribution that the neurons hold, in (0, 1).
        bounds: Least and most neurons.
        scale: ``sum``: p as it is, which sums to one. ``rms``: p over its root mean square, so that weighing keeps the
            scale of activations, and a layer's own start values and learning rates suit as before. Then no decay or
            prior of the weights makes a width narrower, since a layer that reads many neurons needs smaller weights
            than one that reads few; a prior of the rates does (:class:`WidthLoss`).
        axis: Axis of the neurons in the activations.

    Attributes:
        rho: Scalar parameter, float32.
        width: Number of neurons D.
        producer: Path of the layer whose outputs are the neurons, from the module that :func:`make_adaptive` was given.
        consumer: Path of the layer that reads them.
        between: Paths of the layers in between that hold numbers for each neuron.
        deviation: Standard deviation that weights of new neurons are drawn with.
        frozen: Whether the width stays as it is (:func:`freeze_widths`).

    Raises:
        SuperWeightError: A rate that is not positive, a quantile outside (0, 1), bounds that are not two ordered whole
            numbers, a width beyond them, both ``rate`` and ``width``.

    Source: Errica et al., arXiv 2501.15889, sections 3 and 4. Differs from paper: ``rms`` and the bounds are ours.

    Example:
        >>> width = AdaptiveWidth(rate=0.5)
        >>> width.width, [round(share, 3) for share in width.importance().tolist()]
        (6, [0.414, 0.251, 0.152, 0.092, 0.056, 0.034])
    """

    def __init__(
        self,
        *,
        rate: float | None = None,
        width: int | None = None,
        distribution: str = "exponential",
        quantile: float = QUANTILE,
        bounds: tuple[int, int] = BOUNDS,
        scale: str = "sum",
        axis: int = -1,
    ) -> None:
        super().__init__()
        if distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", str(distribution), DISTRIBUTIONS)
        if scale not in SCALES:
            raise unknown_name("scale", str(scale), SCALES)
        if rate is not None and width is not None:
            raise SuperWeightError("give rate= or width= to start with, not both")
        self.distribution = distribution
        check_number("quantile", quantile, above=0, below=1)
        self.quantile = float(quantile)
        self.bounds = _checked_bounds(bounds)
        self.scale = scale
        self.axis = axis
        self.producer = self.consumer = ""
        self.between: tuple[str, ...] = ()
        self.deviation = 1.0
        self.frozen = False
        if width is None:
            check_number("rate", rate := RATE if rate is None else rate, above=0)
            rate = float(rate)
            width = width_of(rate, distribution, self.quantile)
            given = f"rate {rate:g} asks for {width:,} neurons at quantile {self.quantile:g}"
        else:
            if type(width) is not int:
                raise SuperWeightError(f"width must be a whole number; got {width!r:.40}")
            given = f"width is {width:,}"
        if not self.bounds[0] <= width <= self.bounds[1]:
            raise SuperWeightError(f"{given}: outside the bounds {self.bounds[0]:,} to {self.bounds[1]:,}")
        if rate is None:
            rate = rate_of(width, distribution, self.quantile)
        self.width = width
        self.rho = nn.Parameter(torch.tensor(_inverse_softplus(rate), dtype=torch.float32))

    @property
    def rate(self) -> Tensor:
        """Lambda: a positive scalar, differentiable, in at least float32."""
        return F.softplus(self.rho.to(torch.promote_types(self.rho.dtype, torch.float32)))

    @torch.no_grad()
    def set_rate(self, rate: float) -> None:
        """Set the rate; the width stays as it is."""
        self.rho.fill_(_inverse_softplus(rate))

    def importance(self) -> Tensor:
        """Importance of the neurons (D,), differentiable in rho: p, or p over its root mean square."""
        rate = self.rate
        place = torch.arange(self.width, device=rate.device, dtype=rate.dtype)
        if self.distribution == "exponential":
            logarithms = -rate * place
        else:
            logarithms = -rate * place.log1p() + (-torch.expm1(-rate * (1 / (place + 1)).log1p())).log()
        shares = logarithms.softmax(0)
        return shares if self.scale == "sum" else shares / shares.square().mean().sqrt()

    def wanted(self, rate: float) -> int:
        """The width that a rate asks for, within the bounds; refuses a rate that is not positive or not finite."""
        if not 0 < rate < math.inf:  # a rate of zero would never leave it
            raise SuperWeightError(
                f"the rate of the width before {self.consumer!r} is {rate}: lower learning_rate or width_rate, or give "
                "the prior of the rates more deviation"
            )
        least, most = self.bounds
        return min(max(width_of(rate, self.distribution, self.quantile), least), most)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden activations, D along ``axis``, each times the importance of its neuron."""
        importance = self.importance().to(hidden.dtype)
        if self.axis != -1:
            importance = importance.reshape(-1, *(1,) * (hidden.ndim - 1 - self.axis))
        return hidden * importance

    def hidden_layer(self, path: str) -> HiddenLayer:
        """This width, at a path of a network, as an entry of the network's architecture."""
        root = path.removesuffix(f"{self.consumer}.{ATTRIBUTE}")
        learned = LearnedWidth(
            distribution=self.distribution, quantile=self.quantile, bounds=self.bounds, scale=self.scale,
            deviation=self.deviation, frozen=self.frozen,
        )  # fmt: skip
        return HiddenLayer(
            producer=root + self.producer, consumer=root + self.consumer,
            between=tuple(root + one for one in self.between), width=self.width, learned=learned,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"width={self.width}, rate={float(self.rate.detach()):.4g}, {self.distribution}, scale={self.scale}"


def width_of(rate: float, distribution: str, quantile: float) -> int:
    """The width that a rate asks for: floor of the quantile, plus 2; never more than 2^20.

    Example:
        >>> width_of(0.01, "exponential", 0.9)
        232
    """
    if rate <= 0:
        return MOST_WIDTH
    reach = -math.log1p(-quantile) / rate
    if distribution == "power_law":
        reach = math.expm1(min(reach, 700.0))
    return min(math.floor(min(reach, float(MOST_WIDTH))) + 2, MOST_WIDTH)


def rate_of(width: int, distribution: str, quantile: float) -> float:
    """A rate that asks for a width, from the middle of those that do.

    Example:
        >>> width_of(rate_of(64, "power_law", 0.9), "power_law", 0.9)
        64
    """
    reach = max(width, 2) - 1.5
    return -math.log1p(-quantile) / (math.log1p(reach) if distribution == "power_law" else reach)


def _inverse_softplus(rate: float) -> float:
    return rate + math.log(-math.expm1(-rate))


def _checked_bounds(bounds: tuple[int, int]) -> tuple[int, int]:
    whole = isinstance(bounds, (tuple, list)) and all(type(bound) is int for bound in bounds)
    if not whole or len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1] <= MOST_WIDTH:
        raise SuperWeightError(
            f"bounds must be the least and the most neurons, from 1 to {MOST_WIDTH:,}; got {bounds!r:.60}"
        )
    return bounds[0], bounds[1]
