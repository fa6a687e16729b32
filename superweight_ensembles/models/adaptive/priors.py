"""Terms that learned widths add to the cross-entropy in a loss: priors of a network's weights and rates.

Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.models.adaptive.resizing import adaptive_widths
from superweight_ensembles.models.adaptive.width import AdaptiveWidth
from superweight_ensembles.storage import ONLY_FIELDS, real


@names_options
@dataclass(frozen=True, slots=True, kw_only=True, config=ONLY_FIELDS)
class WidthLoss:
    """Priors of weights and of rates, as terms of a loss that is a mean over N samples.

    sum of theta^2 / (2 ``weight_deviation``^2 N) over all parameters but the rates, and
    (rate - ``prior_rate``)^2 / (2 deviation^2 N) over all rates. A prior rate above the rates that widths start with
    makes networks narrower: the smaller the deviation, the more so. Where ``final_deviation`` is given, the deviation
    moves from ``prior_deviation`` to it, geometrically, between two points of the training, which compresses the
    network while it trains.

    Attributes:
        weight_deviation: Standard deviation of the weights' prior; None for none (SGD's weight decay does the same).
        prior_rate: Mean of the rates' prior; None for no prior, as published by default.
        prior_deviation: Standard deviation of the rates' prior.
        final_deviation: Standard deviation of the rates' prior in the end; None where it stays.
        tighten_from: Fraction of the training after which the deviation begins to change.
        tighten_until: Fraction of the training after which it stays.

    Raises:
        SuperWeightError: A number that is not positive, an option that would do nothing.

    Source: Errica et al., arXiv 2501.15889, section 4.

    Example:
        >>> from superweight_ensembles.models.adaptive import WidthLoss, adaptive_mlp
        >>> loss = WidthLoss(prior_rate=0.2, prior_deviation=1.0, final_deviation=0.01)
        >>> [round(loss.deviation(progress), 3) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.1, 0.01]
        >>> round(loss(adaptive_mlp(2, 3, rate=0.1), num_samples=100, progress=0.5).item(), 6)
        0.005
    """

    weight_deviation: Annotated[float, real(gt=0)] | None = None
    prior_rate: Annotated[float, real(gt=0)] | None = None
    prior_deviation: Annotated[float, real(gt=0)] = 1.0
    final_deviation: Annotated[float, real(gt=0)] | None = None
    tighten_from: Annotated[float, real(ge=0, lt=1)] = 0.0
    tighten_until: Annotated[float, real(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        bounds = (self.tighten_from, self.tighten_until)
        if bounds[0] >= bounds[1]:
            raise SuperWeightError(
                f"tighten_from and tighten_until are fractions of the training, one before the other; got {bounds}"
            )
        if self.prior_rate is None and (self.prior_deviation != 1.0 or self.final_deviation is not None):
            raise SuperWeightError("the deviation of a prior does nothing without prior_rate: leave it out")
        if self.final_deviation is None and bounds != (0.0, 1.0):
            raise SuperWeightError("tighten_from and tighten_until do nothing without final_deviation: leave them out")

    def deviation(self, progress: float) -> float:
        """Standard deviation of the rates' prior after a fraction of the training."""
        if self.final_deviation is None:
            return self.prior_deviation
        share = (progress - self.tighten_from) / (self.tighten_until - self.tighten_from)
        return self.prior_deviation * (self.final_deviation / self.prior_deviation) ** min(max(share, 0.0), 1.0)

    def __call__(self, module: nn.Module, *, num_samples: int, progress: float = 0.0) -> Tensor:
        """The terms of a module, a differentiable scalar, after a fraction of a training on so many samples."""
        widths = list(adaptive_widths(module).values())
        terms: list[Tensor] = []
        if self.prior_rate is not None and widths:
            rates = torch.stack([width.rate for width in widths])
            terms.append((rates - self.prior_rate).square().sum() / (2 * self.deviation(progress) ** 2 * num_samples))
        if self.weight_deviation is not None:
            free = {id(width.rho) for width in module.modules() if isinstance(width, AdaptiveWidth)}
            weights = [one for one in module.parameters() if one.requires_grad and id(one) not in free]
            squares = [weight.square().sum() for weight in weights]
            if squares:
                terms.append(torch.stack(squares).sum() / (2 * self.weight_deviation**2 * num_samples))
        if not terms:
            return torch.zeros((), device=next((one.device for one in module.parameters()), None))
        return torch.stack(terms).sum()
