"""What every format starts from: a copy of the network on the CPU in eval mode, and a batch that it answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble, check_logits
from superweight_ensembles.errors import SuperWeightError

_MOST_NUMBERS = 2**26
_EXAMPLE_BATCH = 2  # torch takes a size of 1 as a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMember:
    """A network to export.

    Attributes:
        module: A copy on the CPU, in eval mode; the network that was given stays as it is.
        images: An example batch (B, ...) in the network's floating-point type, or of int64 where it takes tokens.
        fixed_batch: Whether B is the only batch size that the export must take.
        num_classes: Logits an image.
    """

    module: nn.Module
    images: Tensor
    fixed_batch: bool
    num_classes: int


def plain_member(module: nn.Module, input_shape: Sequence[int], batch_size: int | None = None) -> PlainMember:
    """Copy a network and see that it answers logits (B, K).

    Args:
        module: A network that holds its weights.
        input_shape: Of one image, (C, H, W).
        batch_size: The one batch size; None for any.

    Raises:
        SuperWeightError: No module, an ensemble or one of its members without weights, sizes below one, or images that
            the network does not take.
    """
    if isinstance(module, SuperWeightEnsemble):
        raise SuperWeightError(
            f"an ensemble is exported member by member: give ensemble.materialize({module.member_names[0]!r})"
        )
    if not isinstance(module, nn.Module):
        raise SuperWeightError(f"export needs an nn.Module; got {type(module).__name__}")
    shape = checked_shape(input_shape)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise SuperWeightError(f"batch_size must be an int of at least 1, or None for any batch; got {batch_size!r}")
    plain = copy.deepcopy(module).cpu().eval()
    images, logits = _answered(plain, shape, batch_size or _EXAMPLE_BATCH)
    check_logits({type(module).__name__: logits})
    if len(logits) != len(images):
        raise SuperWeightError(f"the network answers {len(logits)} rows of logits for {len(images)} images")
    return PlainMember(
        module=plain, images=images, fixed_batch=batch_size is not None, num_classes=int(logits.shape[1])
    )


def _answered(module: nn.Module, shape: tuple[int, ...], batch_size: int) -> tuple[Tensor, Tensor]:
    """An example batch, floating-point or else tokens, and what the network answers.

    Raises:
        SuperWeightError: It takes neither; says what it said of the first.
    """
    images, tokens = (example_images(module, shape, batch_size, tokens=tokens) for tokens in (False, True))
    with torch.no_grad():
        try:
            return images, module(images)
        except Exception as error:  # whatever the network's own code raises
            try:
                return tokens, module(tokens)
            except Exception:
                raise SuperWeightError(
                    f"the network does not take images {tuple(images.shape)}: {said(error)} "
                    "(check input_shape; a member of an ensemble is given as ensemble.materialize(name))"
                ) from error


def checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image as a tuple.

    Raises:
        SuperWeightError: No sequence of positive ints.
    """
    listed = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not listed or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in listed):
        raise SuperWeightError(f"input_shape is that of one image, such as (3, 32, 32); got {input_shape!r}")
    if math.prod(listed) > _MOST_NUMBERS:
        raise SuperWeightError(f"an image has at most {_MOST_NUMBERS:,} numbers; input_shape is {input_shape!r:.80}")
    return listed


def example_images(
    module: nn.Module, shape: tuple[int, ...], batch_size: int, seed: int = 0, *, tokens: bool = False
) -> Tensor:
    """Normal noise (B, ...) in the floating-point type of the module; or tokens, which all its embeddings have."""
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        tables = (layer for layer in module.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)))
        most = min((table.num_embeddings for table in tables), default=1) or 1
        return torch.randint(most, (batch_size, *shape), generator=generator)
    return torch.randn(batch_size, *shape, generator=generator).to(float_type(module))


def float_type(module: nn.Module) -> torch.dtype:
    """Of the first floating-point parameter; float32 where there is none."""
    types = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(types, torch.float32)


def said(error: BaseException) -> str:
    """The first paragraph of what an exception's first cause says, on one line of at most 240 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."
