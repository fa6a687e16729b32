"""A budget in trainable scalars, from how it was given."""

from __future__ import annotations

import math
import numbers

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.generated_tensor import MOST_PARAMETERS


def resolve_budget(budget: float, apart: int) -> int:
    """A budget in trainable scalars.

    Raises:
        SuperWeightError: No finite positive number, or a float of 10 and more (a percentage).

    Example:
        >>> resolve_budget(0.83, 1000), resolve_budget(700, 1000)
        (830, 700)
    """
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise SuperWeightError(f"budget must be an int (parameters) or a float (fraction); got {budget!r}")
    if (not isinstance(budget, numbers.Integral) and not math.isfinite(budget)) or budget <= 0:
        raise SuperWeightError(f"budget must be a positive number; got {budget!r:.40}")
    if isinstance(budget, numbers.Integral):
        if budget > MOST_PARAMETERS:
            raise SuperWeightError(f"a budget is at most {MOST_PARAMETERS:,} parameters; got {budget!r:.40}")
        return int(budget)
    if budget > 1000 and float(budget).is_integer():
        raise SuperWeightError(f"a number of parameters must be an int; got {budget!r}: write {int(budget)}")
    if budget >= 10:
        raise SuperWeightError(
            f"a float budget is a fraction of what the members own apart; got {budget!r}: "
            f"write {float(budget) / 100!r} for {budget:g} %, or an int for a number of parameters"
        )
    return math.floor(float(budget) * apart + 1e-9)


def percentage_hint(budget: float) -> str:
    """What to write instead of an int that looks like a percentage; empty for others."""
    if isinstance(budget, numbers.Integral) and budget < 1000:
        share = "1.0 for as many as the members own" if budget <= 10 else f"{int(budget) / 100!r} for {budget} %"
        return f"; an int counts parameters: write {share}"
    return ""


def spelled(budget: float, limit: int) -> str:
    """A budget as it was given, with the parameters that it is."""
    return f"{limit:,} parameters" if isinstance(budget, numbers.Integral) else f"{budget:g} ({limit:,} parameters)"
