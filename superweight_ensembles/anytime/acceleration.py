"""Members in the form in which they run fastest. Shapes: B images, K classes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from numbers import Real
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from superweight_ensembles.anytime.costs import answer_of, check_count, timed_call
from superweight_ensembles.errors import SuperWeightError, check_number
from superweight_ensembles.models import MEASURING, copied, first_line

FUSED, CHANNELS_LAST, COMPILED = "fused", "channels_last", "compiled"
LOW_TYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_SAME = 1.02  # a smaller speedup is noise
_COMPARED = 64  # images a call, where answers are compared
_ROUNDS, _SECONDS = 7, 0.1  # least rounds and least seconds of timing
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpeed:
    """The form that was chosen for one member, compared with the plain network.

    Attributes:
        forms: Names among ``fused``, ``channels_last``, ``bfloat16`` or ``float16``, and ``compiled``; empty where the
            plain network is the fastest.
        speedup: Time of the plain network over time of this form: the median over pairs of calls in turn.
        largest_difference: Largest difference of a class's probability, over the images compared.
        changed: Fraction of those images whose most probable class changes.
        left_out: Reason why a form, or several together, cannot be used, by name: a network that cannot be traced,
            answers that change. A form that is neither here nor in ``forms`` is slower.
    """

    forms: tuple[str, ...]
    speedup: float
    largest_difference: float
    changed: float
    left_out: dict[str, str]


class FastNetwork(nn.Module):
    """A network, changed in place, that computes products in ``dtype`` (autocast) and answers float32 logits."""

    def __init__(self, network: nn.Module, *, channels_last: bool, dtype: torch.dtype | None) -> None:
        super().__init__()
        if dtype is not None:
            for layer in network.modules():
                if type(layer) in _CAST:  # no subclass, which may do more with its weights than multiply
                    layer.to(dtype)
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self._channels_last, self._dtype = channels_last, dtype

    def forward(self, images: Tensor) -> Tensor:
        if self._channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self._dtype is None:
            logits: Tensor = self.network(images)
            return logits
        with torch.autocast(images.device.type, dtype=self._dtype):
            logits = self.network(images)
        return logits.float()


def check_options(dtype: torch.dtype | None, max_changed: float, batch_size: int) -> None:
    """Refuse what :func:`fastest_form` cannot take."""
    if dtype is not None and dtype not in LOW_TYPES:
        raise SuperWeightError(f"dtype must be None, {' or '.join(map(str, LOW_TYPES))}; got {dtype!r:.80}")
    share = float(max_changed) if isinstance(max_changed, Real) and not isinstance(max_changed, bool) else max_changed
    check_number("max_changed (a fraction of the answers)", share, least=0, most=1)
    check_count("batch_size", batch_size)


@torch.no_grad()
def fastest_form(
    name: str,
    plain: nn.Module,
    images: Tensor,
    *,
    dtype: torch.dtype | None,
    compile: bool,
    batch_size: int,
    max_changed: float,
) -> tuple[nn.Module, MemberSpeed]:
    """The fastest form of a network in eval mode that answers ``images`` alike, compared with the plain one."""
    parts, timed = images.split(_COMPARED), images[:batch_size]
    wanted = [answer_of(name, plain, part).float().softmax(1) for part in parts]
    left_out: dict[str, str] = {}
    best: nn.Module = plain
    found = MemberSpeed(forms=(), speedup=1.0, largest_difference=0.0, changed=0.0, left_out=left_out)
    for forms in (*_combinations(plain, images, dtype), *([(COMPILED,)] if compile else [])):
        if any(form in left_out for form in forms):
            continue
        tried = (*found.forms, COMPILED) if COMPILED in forms else forms
        try:
            # Compiled for any batch size: samples that leave a cascade make batches of many sizes.
            network = (
                cast(nn.Module, torch.compile(best, dynamic=True)) if COMPILED in forms else _built(plain, forms, dtype)
            )
            difference, changed = _differences(network, parts, wanted)
        except Exception as error:  # the network's own, in a form that its author did not plan for; or no memory left
            left_out[", ".join(tried)] = first_line(error)
            continue
        if not changed <= max_changed:  # also where it is NaN
            left_out[", ".join(tried)] = f"{changed:.2%} of the answers change"
            continue
        speedup = _speedup(plain, network, timed)
        if speedup > max(found.speedup, _SAME):
            best = network
            found = MemberSpeed(
                forms=tried, speedup=speedup, largest_difference=difference, changed=changed, left_out=left_out
            )
    # No form shares tensors with the plain network: where that is the fastest, it is copied.
    return copied(plain, f"member {name!r}") if best is plain else best, found


def _combinations(plain: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Iterator[tuple[str, ...]]:
    """Every set of forms that may make a difference, but for the empty one."""
    layers = [type(layer) for layer in plain.modules()]
    fused = [(), (FUSED,)] if any(issubclass(layer, nn.modules.batchnorm._BatchNorm) for layer in layers) else [()]
    last = [(), (CHANNELS_LAST,)] if images.ndim == 4 and nn.Conv2d in layers else [()]
    low: list[tuple[str, ...]] = [()] if dtype is None else [(), (LOW_TYPES[dtype],)]
    for parts in product(fused, last, low):
        if forms := tuple(form for part in parts for form in part):
            yield forms


def _built(plain: nn.Module, forms: tuple[str, ...], dtype: torch.dtype | None) -> nn.Module:
    network: nn.Module = fuse(plain) if FUSED in forms else copied(plain, "the network")
    low = dtype if dtype is not None and LOW_TYPES[dtype] in forms else None
    return FastNetwork(network, channels_last=CHANNELS_LAST in forms, dtype=low).eval().requires_grad_(False)


def _differences(network: nn.Module, parts: tuple[Tensor, ...], wanted: list[Tensor]) -> tuple[float, float]:
    """The largest difference of a probability, and the fraction of images with another answer; both NaN with a NaN."""
    answers = [network(part).float().softmax(1) for part in parts]
    given, expected = torch.cat(answers), torch.cat(wanted)
    if bool(given.isnan().any()):
        return float("nan"), float("nan")
    changed = (given.argmax(1) != expected.argmax(1)).double().mean()
    return float((given - expected).abs().max()), float(changed)


def _speedup(plain: nn.Module, network: nn.Module, images: Tensor) -> float:
    """Median of the plain network's time over the other's, of calls in turn, so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    with MEASURING:
        while len(times[0]) < _ROUNDS or sum(times[0]) < _SECONDS:
            for own, module in zip(times, (plain, network)):
                own.append(timed_call(module, images))
    return statistics.median(own / other for own, other in list(zip(*times))[1:])
