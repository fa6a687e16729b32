"""Plain narrower networks, made of the most important neurons of one with learned widths, and such networks as exits.

Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.models.adaptive.resizing import (
    adaptive_widths,
    drop_importance,
    learned_places,
    set_width,
)
from superweight_ensembles.models.adaptive.width import AdaptiveWidth
from superweight_ensembles.models.architecture import VERSION_OF, Module, is_positive
from superweight_ensembles.models.surgery import copied, kept_modes

FRACTIONS = (0.25, 0.5, 0.75)


@torch.no_grad()
def truncate(
    module: Module,
    *,
    fraction: float | None = None,
    widths: int | Mapping[str, int] | None = None,
    norm_data: Iterable[Any] | None = None,
) -> Module:
    """Keep the first, most important neurons of every learned width: a plain narrower network.

    The importance of the kept neurons, p_0 to p_(k-1) of the whole width, is multiplied into the weights that read
    them; nothing is trained. With all neurons kept the network answers as before.

    Args:
        module: A network that holds learned widths; copied, not changed.
        fraction: Share of every width to keep, in (0, 1]; neurons are rounded up. Give this or ``widths``.
        widths: Number of neurons to keep, of every width or by the path of the layer that makes them; widths left out
            keep all.
        norm_data: Batches of inputs, or (inputs, labels), on which batch norm statistics are estimated again, since
            layers after a truncated width see other numbers than in training. Augment them as in training: statistics
            of plain images may be so different that they cost more than they gain.

    Raises:
        SuperWeightError: No learned width, a path without one, both or neither of ``fraction`` and ``widths``, fewer
            than one neuron or more than there are.

    Source: Errica et al., arXiv 2501.15889, section 4. Differs from paper: batch norm that is estimated again is ours.

    Example:
        >>> from superweight_ensembles.models.adaptive import adaptive_mlp, truncate
        >>> small = truncate(adaptive_mlp(2, 3, rate=0.1), fraction=0.5)
        >>> small.hidden0, small.head
        (Linear(in_features=2, out_features=13, bias=True), Linear(in_features=13, out_features=3, bias=True))
    """
    plain = copied(module)
    places = learned_places(plain)
    if not places:
        raise SuperWeightError(f"{type(module).__name__} has no learned width: make_adaptive gives it some")
    kept = _kept({name: width for name, (_, width) in places.items()}, fraction, widths)
    for name, size in kept.items():
        place, width = places[name]
        weight: Any = place.consumer.weight
        shape = [1] * weight.ndim
        shape[place.read_axis] = -1
        weight.mul_(width.importance().to(weight).view(shape))  # moves the importance into the reader's weights
        set_width(place, size)
    drop_importance(plain)
    if norm_data is not None:
        with kept_modes(plain):
            update_bn(norm_data, plain, next(plain.parameters()).device)
    return plain


def _kept(
    places: Mapping[str, AdaptiveWidth], fraction: float | None, widths: int | Mapping[str, int] | None
) -> dict[str, int]:
    """Neurons to keep of each width."""
    if (fraction is None) == (widths is None):
        raise SuperWeightError("give either fraction= or widths=, not both and not neither")
    if fraction is not None:
        if not is_positive(fraction) or fraction > 1:
            raise SuperWeightError(f"fraction must be above 0 and at most 1; got {fraction!r:.40}")
        return {name: max(1, math.ceil(fraction * width.width - 1e-9)) for name, width in places.items()}
    wanted: Mapping[str, Any] = widths if isinstance(widths, Mapping) else dict.fromkeys(places, widths)
    for name, size in wanted.items():
        if name not in places:
            raise unknown_name("learned width", str(name), places)
        learned = places[name].width
        if type(size) is not int or not 1 <= size <= learned:
            raise SuperWeightError(
                f"of {name!r}, 1 to {learned} neurons can be kept, as many as it has; got {size!r:.40}"
            )
    return {name: wanted.get(name, width.width) for name, width in places.items()}


def truncated_exits(
    members: Mapping[str, nn.Module], fractions: Sequence[float] = FRACTIONS, *, norm_data: Iterable[Any] | None = None
) -> dict[str, nn.Module]:
    """Every member whole, and cut to fractions of its learned widths, as plain networks by name.

    Args:
        members: Plain networks by name, such as :meth:`SuperWeightEnsemble.materialize` makes.
        fractions: Shares of every learned width to keep, in (0, 1).
        norm_data: Batches of inputs on which the truncations' batch norm statistics are estimated again.

    Returns:
        ``a@25%``, ``a@50%``, ``a@75%`` and ``a`` for a member ``a`` with learned widths; other members whole only.
        Truncations have an attribute ``version_of``, the member's name, by which an :class:`AnytimePredictor` knows to
        take the mean over the last version so far of each member.

    Raises:
        SuperWeightError: No member with learned widths, a fraction outside (0, 1), two fractions of the same per cent.

    Source: Errica et al., arXiv 2501.15889, section 4 (truncation); as exits of an ensemble they are ours.

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"mlp": swe.adaptive.adaptive_mlp(4, 3, rate=0.1), "linear": nn.Linear(4, 3)}
        >>> predictor = swe.AnytimePredictor(swe.adaptive.truncated_exits(members, [0.5]), input_shape=(4,))
        >>> predictor.order
        ('linear', 'mlp@50%', 'mlp')
    """
    check_fractions(fractions)
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


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions outside (0, 1), and two of the same whole per cent, whose names would be one."""
    for fraction in fractions:
        if not is_positive(fraction, 1.0):
            raise SuperWeightError(f"a truncation is a fraction above 0 and below 1; got {fraction!r:.40}")
    if not fractions or len(set(map(_percent, fractions))) < len(fractions):
        raise SuperWeightError(
            f"truncations must be fractions, at least one, and one a whole per cent; got {list(fractions)}"
        )


def _percent(fraction: float) -> int:
    return round(100 * fraction)
