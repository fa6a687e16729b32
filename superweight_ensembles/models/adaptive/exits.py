"""Members and their truncations, as plain networks: more exits for an anytime prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive.resizing import adaptive_widths
from superweight_ensembles.models.adaptive.truncation import truncate
from superweight_ensembles.models.architecture import VERSION_OF

FRACTIONS = (0.25, 0.5, 0.75)


def truncated_exits(
    members: Mapping[str, nn.Module], fractions: Sequence[float] = FRACTIONS, *, norm_data: Iterable[Any] | None = None
) -> dict[str, nn.Module]:
    """Every member whole, and cut to fractions of its learned widths, as plain networks by name.

    Args:
        members: Plain networks by name, such as :meth:`SuperWeightEnsemble.materialize` makes.
        fractions: Of every learned width, in (0, 1).
        norm_data: Batches of inputs on which the truncations' batch norm statistics are estimated again.

    Returns:
        For a member ``a`` with learned widths ``a@25%``, ``a@50%``, ``a@75%`` and ``a``; the others alone. Truncations
        have an attribute ``version_of``, the member's name, by which an :class:`AnytimePredictor` knows that the mean
        of the members so far holds the last version of each.

    Raises:
        SuperWeightError: No member with learned widths, a fraction that is none, two that are equal.

    Source: Errica et al., arXiv 2501.15889, section 4 (truncation); as exits of an ensemble they are ours.

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"mlp": swe.adaptive_mlp(4, 3, rate=0.1), "linear": nn.Linear(4, 3)}
        >>> predictor = swe.AnytimePredictor(swe.truncated_exits(members, [0.5]), input_shape=(4,))
        >>> predictor.order
        ('linear', 'mlp@50%', 'mlp')
    """
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
            raise SuperWeightError(f"a truncation is a fraction above 0 and below 1; got {fraction!r:.40}")
    if not fractions or len(set(map(_percent, fractions))) < len(fractions):
        raise SuperWeightError(
            f"truncations must be fractions, at least one, and one a whole per cent; got {list(fractions)}"
        )
    exits: dict[str, nn.Module] = {}
    for name, module in members.items():
        if adaptive_widths(module):
            for fraction in sorted(fractions):
                exits[f"{name}@{_percent(fraction)}%"] = cut = truncate(module, fraction=fraction, norm_data=norm_data)
                setattr(cut, VERSION_OF, name)
        exits[name] = module
    if len(exits) == len(members):
        raise SuperWeightError("no member has learned widths to truncate")
    return exits


def _percent(fraction: float) -> int:
    return round(100 * fraction)
