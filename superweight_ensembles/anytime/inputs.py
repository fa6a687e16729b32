"""Images that members take, and what one costs them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.costs import count_flops
from superweight_ensembles.ensemble.ensemble import check_logits
from superweight_ensembles.errors import SuperWeightError


def check_images(
    images: Tensor, input_shape: tuple[int, ...] | None, like: Tensor, integers: bool | None = None
) -> None:
    """Refuse what the members cannot take.

    Args:
        images: (B, ...).
        input_shape: Of one image, where it is known.
        like: A tensor of the members' device and type.
        integers: Whether the members take integers (tokens), where it is known.

    Raises:
        SuperWeightError: No tensor, an empty batch, another shape, device or type.
    """
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise SuperWeightError(f"images must be a tensor (batch, ...) of at least one; got {shape}")
    if input_shape is not None and tuple(images.shape[1:]) != input_shape:
        wanted = ", ".join(str(size) for size in input_shape)
        raise SuperWeightError(f"images must be (batch, {wanted}); got {tuple(images.shape)}")
    if images.device != like.device:
        raise SuperWeightError(f"the images are on {images.device}, the members on {like.device}: move one of them")
    floating = images.is_floating_point()
    if integers is not None and floating == integers:
        wanted = "integers" if integers else str(like.dtype)
        raise SuperWeightError(f"the images are {images.dtype}, the members take {wanted}: convert the images")
    if floating and images.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise SuperWeightError(f"the images are {images.dtype}, the members {like.dtype}: convert one of them")


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image.

    Raises:
        SuperWeightError: No list of positive integers.
    """
    if not isinstance(shape, Sequence) or not shape or any(not _is_count(size) for size in shape):
        raise SuperWeightError(f"input_shape must list the sizes of one image, such as (3, 32, 32); got {shape!r:.80}")
    return tuple(shape)


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of images.

    Raises:
        SuperWeightError: No integer of at least 1.
    """
    if not _is_count(batch_size):
        raise SuperWeightError(f"batch_size must be an integer of at least 1; got {batch_size!r:.80}")


def check_amount(what: str, amount: float, unit: str) -> None:
    """Refuse a budget that is none.

    Raises:
        SuperWeightError: No positive, finite number.
    """
    real = isinstance(amount, Real) and not isinstance(amount, bool)
    if not (real and math.isfinite(amount) and amount > 0):
        raise SuperWeightError(f"{what} must be a positive number of {unit}; got {amount!r:.80}")


def check_drop(drop: float) -> None:
    """Refuse what is no drop of an accuracy.

    Raises:
        SuperWeightError: No number from 0 to below 1.
    """
    if isinstance(drop, bool) or not isinstance(drop, Real) or not 0 <= drop < 1:
        raise SuperWeightError(f"max_accuracy_drop must be from 0 to below 1 (0.002: 0.2 points); got {drop!r:.80}")


@torch.inference_mode()
def flops_of(modules: Mapping[str, nn.Module], image: Tensor) -> dict[str, int]:
    """FLOPs of each member for one image (1, ...).

    Raises:
        SuperWeightError: A member cannot take it (says what it said); answers that are no logits of the same classes,
            two at least.
    """
    flops, logits = {}, {}
    for name, module in modules.items():
        try:
            flops[name], logits[name] = count_flops(module, image), module(image)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise SuperWeightError(
                f"member {name!r} cannot take images {tuple(image.shape)} of {image.dtype}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}"
            ) from None
    check_logits(logits)
    name, answer = next(iter(logits.items()))
    if answer.shape[1] < 2:
        raise SuperWeightError(f"members must answer logits of two classes or more; {name!r} answers one")
    return flops


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
