"""Activation checkpointing: a member's repeated blocks keep only their inputs and are run again in backward.

Members stay unmodified: the forward of each block is wrapped for one call of the member. A block that is run again
finds the weights and buffers that it had in forward, and what it does to its buffers then is thrown away, so batch norm
counts every batch once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import set_parameter
from superweight_ensembles.training.distributed import synchronised_as_here

_LOG = logging.getLogger(__name__)
_CONTAINERS = (nn.Sequential, nn.ModuleList)

Blocks = Mapping[str, Sequence[nn.Module]]


def recomputed_blocks(members: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, ...]]:
    """The :func:`repeated_blocks` of each member; refuses to recompute where no member has any."""
    found = {name: repeated_blocks(member) for name, member in members.items()}
    without = [name for name, blocks in found.items() if not blocks]
    if len(without) == len(found):
        raise SuperWeightError(
            f"recompute has nothing to act on: {', '.join(without)} repeat no block inside nn.Sequential or "
            "nn.ModuleList; leave it out, or put the repeated layers into modules there"
        )
    if without:
        _LOG.warning("recompute leaves %s as they are: they repeat no block", ", ".join(without))
    return found


def repeated_blocks(member: nn.Module) -> tuple[nn.Module, ...]:
    """The residual blocks, transformer layers and the like of a network.

    Example:
        >>> import superweight_ensembles as swe
        >>> [type(block).__name__ for block in repeated_blocks(swe.wide_resnet(10, 1, 4))]
        ['PreActivationBlock', 'PreActivationBlock', 'PreActivationBlock']
    """
    # A block is a module with layers inside an nn.Sequential or nn.ModuleList, of a class that occurs at least twice. A
    # stage, which holds several blocks of one class, is not a block itself. In a network without blocks, groups of
    # single layers count as blocks: nn.Sequential inside such a container, at least two of them.
    return _blocks_in(member, _is_block) or _blocks_in(member, _is_group)


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Have blocks drop their activations in calls inside the context; backward may come after it."""
    with ExitStack() as ending:
        for block in blocks:
            own = block.__dict__.get("forward")
            block.forward = partial(_call_checkpointed, block, block.forward)
            ending.callback(_put_back, block, own)
        yield


def _call_checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    repeated, contexts = partial(forward, **options), partial(_contexts, block)
    return checkpoint(repeated, *inputs, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward, and of its repetition, which sees the state that the block has now."""
    weights = {module: dict(module._parameters) for module in block.modules()}
    buffers = {module: _copies(module._buffers) for module in block.modules() if module._buffers}
    # keeps the present synchronisation of batch norm: backward may run in a thread that has none
    return nullcontext(), _as_before(weights, buffers, synchronised_as_here())


@contextmanager
def _as_before(
    weights: Mapping[nn.Module, dict[str, nn.Parameter | None]],
    buffers: Mapping[nn.Module, dict[str, Tensor | None]],
    synchronisation: AbstractContextManager[object],
) -> Iterator[None]:
    """Give modules these weights and copies of these buffers; at the end the tensors from before come back."""
    with synchronisation, ExitStack() as ending:
        for module, values in weights.items():
            ending.callback(_place_all, module, dict(module._parameters))
            _place_all(module, values)
        for module, copies in buffers.items():
            ending.callback(module._buffers.update, dict(module._buffers))
            module._buffers.update(_copies(copies))
        yield


def _place_all(module: nn.Module, values: Mapping[str, Tensor | None]) -> None:
    for name, value in values.items():
        set_parameter(module, name, value)


def _copies(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.detach().clone() for name, value in buffers.items()}


def _put_back(block: nn.Module, own: Callable[..., Any] | None) -> None:
    del block.forward
    if own is not None:
        block.forward = own


def _blocks_in(member: nn.Module, is_block: Callable[[nn.Module], bool]) -> tuple[nn.Module, ...]:
    found = list(dict.fromkeys(_candidates(member, is_block)))
    times = Counter(type(block) for block in found)
    return tuple(block for block in found if times[type(block)] > 1)


def _candidates(module: nn.Module, is_block: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for child in module.children():
        inside = list(_candidates(child, is_block))
        several = max(Counter(type(block) for block in inside).values(), default=0) > 1
        if isinstance(module, _CONTAINERS) and is_block(child) and not several:
            yield child
        else:
            yield from inside


def _is_block(module: nn.Module) -> bool:
    inner = [layer for layer in module.modules() if layer is not module and layer._parameters]
    return not isinstance(module, _CONTAINERS) and bool(inner)


def _is_group(module: nn.Module) -> bool:
    layers = list(module.children())
    plain = not any(isinstance(layer, _CONTAINERS) for layer in layers)
    return (
        isinstance(module, nn.Sequential) and plain and len(layers) > 1 and any(layer._parameters for layer in layers)
    )
