"""Generated weights in their places in a member: while it is called, and again while backward goes through the call.

A member that checkpoints activations calls its layers a second time in backward, when the first call's weights have
been removed. An edge at the end of each call therefore puts that call's weights back when backward gets there; the end
of the backward pass, whether it succeeds or fails, removes them. Checkpoints of torch's older kind
(``use_reentrant=True``) run a backward pass of their own and would go through the bank once a checkpoint. Weights put
back are therefore leaves; their gradients are added at the edge where the call's weights enter, which backward reaches
last.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import set_parameter

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_REPLAYS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Replay]] = weakref.WeakKeyDictionary()


def one_call_at_a_time(member: nn.Module) -> AbstractContextManager[object]:
    """Lets one thread at a time call a member, since all calls put their weights in the same places."""
    if torch.compiler.is_compiling():
        return nullcontext()
    # backward does not take the lock: on a GPU it runs in a thread of its own, and its caller may hold the lock
    return _LOCKS.setdefault(member, threading.RLock())


class Placement:
    """Tensors in the places of a member's parameters; what stood there comes back when they are removed."""

    def __init__(self, name: str, member: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        for key in weights:
            *path, local = key.split(".")
            owner: nn.Module | None = member
            for part in path:
                owner = None if owner is None else owner._modules.get(part)
            if owner is None or local not in owner._parameters:
                raise SuperWeightError(
                    f"member {name!r} has no {key}, which the bank generates: its layers are those that it had when "
                    "the ensemble was made; for others, build a new SuperWeightEnsemble"
                )
            self._places.append((owner, local))
        self._before = [owner._parameters[local] for owner, local in self._places]
        for key, before in zip(weights, self._before):
            if isinstance(before, nn.Parameter):
                raise SuperWeightError(
                    f"member {name!r} has changed since the ensemble was made: {key}, which the bank generates, is a "
                    "parameter again; build a new SuperWeightEnsemble of the members as they are to be"
                )
        for (owner, local), weight in zip(self._places, weights.values()):
            set_parameter(owner, local, weight)

    def remove(self) -> None:
        """Put back what stood there before."""
        for (owner, local), before in zip(self._places, self._before):
            set_parameter(owner, local, before)


class Call:
    """One call of a member, through which a backward pass may go at any time."""

    def __init__(self, name: str, member: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights  # tensors that the call reads in the place of the weights given
        self._entered = torch.is_grad_enabled() and bool(weights) and not _is_traced()
        if self._entered:
            distinct = {id(weight): weight for weight in weights.values()}
            place = {key: index for index, key in enumerate(distinct)}
            self._record = _Record(name, member, {key: place[id(weight)] for key, weight in weights.items()})
            entered = _Enter.apply(self._record, *distinct.values())
            self.weights = {key: entered[index] for key, index in self._record.index.items()}
            self._distinct = entered

    def left(self, answer: Any) -> Any:
        """The answer, with an edge at which backward finds the call's weights in place."""
        if not self._entered:
            return answer
        return tree_map_only(Tensor, self._leave, answer)

    def _leave(self, tensor: Tensor) -> Tensor:
        left: Tensor = _Leave.apply(self._record, tensor, *self._distinct) if tensor.requires_grad else tensor
        return left


class _Record:
    """Backward's record of a call; of its tensors it holds only gradients that came outside of its graph."""

    def __init__(self, name: str, member: nn.Module, index: Mapping[str, int]) -> None:
        self.name, self.member, self.index = name, member, index
        self.gradients: dict[int, Tensor] = {}

    def replay(self, weights: tuple[Tensor, ...]) -> None:
        """Put the weights in place until the end of the current backward pass."""
        running = _REPLAYS.get(self.member, lambda: None)()
        if running is not None and running.record is self:  # another tensor of the same answer put them there
            return
        if running is not None:
            running.end()
        self.gradients.clear()
        leaves = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]
        for index, leaf in enumerate(leaves):
            if leaf.requires_grad:
                leaf.register_post_accumulate_grad_hook(partial(_collect, self.gradients, index))
        replay = _Replay(self, Placement(self.name, self.member, {key: leaves[at] for key, at in self.index.items()}))
        _REPLAYS[self.member] = weakref.ref(replay)
        torch.autograd.Variable._execution_engine.queue_callback(replay.end)


class _Replay:
    """Weights in place for a backward pass; removed at its end, or with this object where the pass failed."""

    def __init__(self, record: _Record, placement: Placement) -> None:
        self.record = record
        self._placement: Placement | None = placement

    def end(self) -> None:
        if self._placement is not None:
            self._placement.remove()
            self._placement = None
            _REPLAYS.pop(self.record.member, None)

    __del__ = end


class _Enter(torch.autograd.Function):
    """The weights unchanged; backward adds gradients from checkpoints' own backward passes."""

    @staticmethod
    def forward(ctx: Any, record: _Record, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.record = record
        ctx.set_materialize_grads(False)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        apart = ctx.record.gradients
        found = [
            apart.get(index) if gradient is None else gradient + apart[index] if index in apart else gradient
            for index, gradient in enumerate(gradients)
        ]
        apart.clear()
        return None, *found


class _Leave(torch.autograd.Function):
    """A copy of an answer; backward first puts the weights of the call back in their places."""

    @staticmethod
    def forward(ctx: Any, record: _Record, answer: Tensor, *weights: Tensor) -> Tensor:
        ctx.record = record
        ctx.save_for_backward(*weights)  # freed by backward, unless the graph is retained
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        ctx.record.replay(weights)
        return None, gradient, *(None for _ in weights)


def _collect(gradients: dict[int, Tensor], index: int, leaf: Tensor) -> None:
    """Take the gradient off a leaf, and add it to what came before."""
    new, leaf.grad = leaf.grad, None
    assert new is not None, "it has just been accumulated"
    gradients[index] = gradients[index] + new if index in gradients else new


def _is_traced() -> bool:
    """Whether something else than autograd records the call, and would record these edges, too."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
