"""Batch norm over the batches of all processes, for members as their authors wrote them, on any device.

Shapes: B rows of this process's batch, C channels, N values a channel over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from superweight_ensembles.training.distributed.group import Processes

_PARAMETERS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}  # of F.batch_norm
_ACTIVE: ContextVar[SynchronisedNorm | None] = ContextVar("_ACTIVE", default=None)


def synchronised(processes: Processes) -> AbstractContextManager[object]:
    """A context in which batch norm in training mode takes mean and variance over the batches of all processes."""
    # Outputs, running statistics and gradients are those of one process on all the rows, whose number may differ from
    # process to process; a loss that is a mean must weigh each process by its rows before backward.
    # Covered: layers that call F.batch_norm (torch.nn, torchvision, timm's BatchNormAct2d) or torch.batch_norm. Not
    # covered: layers that compute batch statistics themselves (InPlaceABN). nn.SyncBatchNorm synchronises by itself.
    return SynchronisedNorm(processes) if processes.size > 1 else nullcontext()


def synchronised_as_here() -> AbstractContextManager[object]:
    """The :func:`synchronised` in force now, as a context to enter later, perhaps in another thread."""
    active = _ACTIVE.get()
    return nullcontext() if active is None else SynchronisedNorm(active.processes)


class SynchronisedNorm(TorchFunctionMode):
    """See :func:`synchronised`."""

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self._token: Token[SynchronisedNorm | None] | None = None

    def __enter__(self) -> SynchronisedNorm:
        self._token = _ACTIVE.set(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._token is not None:
            _ACTIVE.reset(self._token)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run batch norm in training mode over the rows of all processes, and every other call unchanged."""
        if func in _PARAMETERS:
            given = {**_DEFAULTS, **dict(zip(_PARAMETERS[func], args)), **(kwargs or {})}
            if given["training"]:
                return _normalised(
                    *(given[name] for name in _PARAMETERS[F.batch_norm] if name != "training"), self.processes
                )
        return func(*args, **(kwargs or {}))


@torch.compiler.disable
def _normalised(*given: Any) -> Tensor:
    """Synchronised batch norm; never compiled, as the compiler would trace the exchange anew for every count."""
    found: Tensor = _BatchNorm.apply(*given)
    return found


class _BatchNorm(torch.autograd.Function):
    """Forward gathers each process's (mean, sum of squares about it, count), backward sums two numbers a channel.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
        processes: Processes,
    ) -> Tensor:
        count, mean, squares = _statistics_of_all(images, processes)
        variance = squares / count
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
        if running_var is not None:
            running_var.lerp_((squares / (count - 1)).to(running_var), momentum)
        ctx.save_for_backward(images, weight, mean, variance, count)
        ctx.eps, ctx.processes, ctx.bias_dtype = eps, processes, None if bias is None else bias.dtype
        return torch.batch_norm(
            images, _as(weight, mean), _as(bias, mean), mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, variance, count = ctx.saved_tensors
        factor = torch.ones_like(mean) if weight is None else weight.to(mean)
        by_weight = by_bias = torch.zeros_like(mean)
        if images.numel():  # else a process without rows, which has its part in the exchange all the same
            _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, images, factor, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
        of_images = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([by_weight, by_bias])
            ctx.processes.all_reduce_([sums])
            summed_weight, summed_bias = sums.chunk(2)
            # d/dx = factor / std (gradient - (sum of gradients + normalised x * sum of gradients times it) / N), where
            # the normalised x is put as (x - mean) / std, so that everything is linear in gradient and x a channel.
            scale = (variance + ctx.eps).rsqrt()
            slope = -(scale.square() * factor * summed_weight) / count
            offset = -(scale * factor * summed_bias) / count - slope * mean
            shape = (1, -1, *[1] * (images.ndim - 2))
            of_images = torch.addcmul(offset.view(shape), images, slope.view(shape))
            of_images = of_images.addcmul_(gradient, (scale * factor).view(shape)).to(images.dtype)
        of_weight = by_weight.to(weight.dtype) if weight is not None else None
        of_bias = by_bias.to(ctx.bias_dtype) if ctx.bias_dtype is not None else None
        return of_images, None, None, of_weight, of_bias, None, None, None


def _statistics_of_all(images: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Values a channel N (1,), their mean (C,) and the sum of their squares about it (C,)."""
    channels = images.shape[1]
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32  # as torch's own batch norm
    own = images.numel() // channels
    zeros = torch.zeros(channels, dtype=dtype, device=images.device)
    mean, squares = zeros, zeros
    if own:
        # The two buffers make statistics come in their type; a momentum of 0 leaves them as they are.
        mean, variance = torch.batch_norm_update_stats(images, zeros, torch.ones_like(zeros), 0.0)
        squares = variance * own
    gathered = processes.all_gather(torch.cat([mean, squares, mean.new_full((1,), own)]))
    means, all_squares, counts = gathered.split([channels, channels, 1], dim=1)
    count = counts.sum(0)
    if own <= 1 and int(count) <= 1:  # own first: int() makes the CPU wait for the GPU
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(images.shape)}")
    together = (means * counts).sum(0) / count
    spread = all_squares.sum(0) + (counts * (means - together).square()).sum(0)
    return count, together, spread


def _as(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like.dtype)
