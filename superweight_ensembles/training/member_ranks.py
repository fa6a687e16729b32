"""Members on several ranks: which rank runs which members, and how members' own state reaches the other ranks.

A member's own parameters, buffers and moments are trained where it runs, and are sent to all processes after an epoch
and for a checkpoint; hooks, searches and exports then find the whole ensemble as on one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.data import ImageData, checksum, tensors_of
from superweight_ensembles.ensemble import SuperWeightEnsemble, first_parameter
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import answer_in, call_with, calling
from superweight_ensembles.training.batches import SizedBatches
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.device import precision_of
from superweight_ensembles.training.distributed import Mesh, Processes, build_mesh, chosen_ranks, placed
from superweight_ensembles.training.hooks import TrainState
from superweight_ensembles.training.randomness import own_randomness

_TIMED_ROWS = 32
_LOG = logging.getLogger(__name__)


def mesh_of(
    ensemble: SuperWeightEnsemble,
    members: Sequence[str],
    data: ImageData | SizedBatches,
    config: TrainConfig,
    processes: Processes,
) -> Mesh:
    """The mesh that a config asks for; the first process times the members and places them."""
    asked = config.mesh
    splits = processes.size > 1 and (asked["members"] > 1 if isinstance(asked, Mapping) else asked == "auto")
    why = _why_whole(ensemble, members, config) if splits else ""
    if isinstance(asked, Mapping) and why:
        raise SuperWeightError(why)
    if not splits or why or (asked == "auto" and not isinstance(data, ImageData)):
        return build_mesh(processes, [members])
    costs: dict[str, float] = processes.on_rank_zero(lambda: member_costs(ensemble, members, data))
    if isinstance(asked, Mapping):
        ranks = asked["members"]
    else:
        ranks = chosen_ranks(costs, processes.size, config.sync_batch_norm)
    placement = placed(costs, ranks)
    listed = "; ".join(", ".join(own) for own in placement)
    _LOG.info("mesh: %d member ranks (%s), %d of rows", ranks, listed, processes.size // ranks)
    return build_mesh(processes, placement)


def _why_whole(ensemble: SuperWeightEnsemble, members: Sequence[str], config: TrainConfig) -> str:
    """Why a training cannot have member ranks; empty where it can."""
    if precision_of(config) == "float16":
        return "precision 'float16' scales the losses of all members at once: take 'bfloat16', or mesh 'rows'"
    if "lamb" in config.optimizer and config.optimizer_options.get("max_grad_norm", 1.0) is not None:
        return (
            f"optimizer {config.optimizer!r} clips by the norm of all gradients, of which a member rank has a part: "
            "take optimizer_options {'max_grad_norm': None} and clip_norm, or mesh 'rows'"
        )
    owner: dict[int, str] = {}
    for name in members:
        member = ensemble.members[name]
        extra = next((key for key, one in member.state_dict().items() if not isinstance(one, Tensor)), None)
        if extra is not None:
            return f"member {name!r} keeps {extra}, no tensor, which processes cannot exchange: take mesh 'rows'"
        for key, tensor in (*member.named_parameters(), *member.named_buffers()):
            other = owner.setdefault(id(tensor), name)
            if other != name:
                return (
                    f"members {other!r} and {name!r} share a tensor outside of the bank, {key}, and could run on two "
                    "member ranks: give each its own, or take mesh 'rows'"
                )
    return ""


def member_costs(
    ensemble: SuperWeightEnsemble, members: Sequence[str], data: ImageData | SizedBatches
) -> dict[str, float]:
    """Seconds of each member's forward and backward, the faster of two; without ImageData, numbers of parameters."""
    if not isinstance(data, ImageData):
        return {one.name: float(one.num_parameters) for one in ensemble.plan.members if one.name in members}
    device = first_parameter({"": ensemble}).device
    images, _ = next(iter(data.loader("train", min(_TIMED_ROWS, len(data.train)), device=device)))
    found = {}
    with own_randomness(device), torch.inference_mode(False), torch.enable_grad():
        for name in members:
            network = ensemble.materialize(name).train()
            images = images.to(first_parameter({name: network}).dtype)
            seconds = []
            for _ in range(2):
                _settle(device)
                start = time.perf_counter()
                with calling(name, images):
                    answer_in(call_with(network, images)).sum().backward()
                _settle(device)
                seconds.append(time.perf_counter() - start)
            found[name] = min(seconds)
    return found


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gather_members(state: TrainState) -> None:
    """Send each member's parameters and buffers, and what hooks keep for it, from where it runs to all processes."""
    if not state.is_split:
        state.processes.broadcast_(list(state.ensemble.buffers()))  # they differ without sync_batch_norm
        return
    for name in state.members:
        member, source = state.ensemble.members[name], state.mesh.source_of(name)
        forms = state.processes.broadcast_object(
            source, {key: _form(one) for key, one in _kept_buffers(member).items()}
        )
        held = [*member.parameters(), *(_buffer_like(member, key, form) for key, form in forms.items())]
        state.processes.broadcast_(held, source)
    for hook in state.hooks:
        hook.gather(state)


def _kept_buffers(member: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict holds; a member makes all others again in its calls."""
    kept = member.state_dict()
    return {key: one for key, one in member.named_buffers(remove_duplicate=False) if key in kept}


def _buffer_like(member: nn.Module, key: str, form: dict[str, Any]) -> Tensor:
    """A member's buffer, made anew where the process that runs the member has another shape or type of it."""
    owner, _, local = key.rpartition(".")
    module = member.get_submodule(owner)
    shape, dtype = tuple(form["shape"]), getattr(torch, form["dtype"])
    held = module._buffers.get(local)
    if held is None or tuple(held.shape) != shape or held.dtype != dtype:
        held = torch.zeros(shape, dtype=dtype, device=first_parameter({"": member}).device)
        module._buffers[local] = held
    return held


def moment_owners(state: TrainState) -> dict[str, int]:
    """Rank that keeps the optimizer's state of each bank parameter, where the config divides that state."""
    if not state.config.shard_moments or state.processes.size == 1:
        return {}
    bank = {f"bank.{key}": one for key, one in state.ensemble.bank.named_parameters() if one.requires_grad}
    owners = placed({name: float(one.numel()) for name, one in bank.items()}, state.processes.size)
    return {name: rank for rank, own in enumerate(owners) for name in own}


def step_optimizer(state: TrainState) -> None:
    """Step the optimizer; where its state is divided, each process steps its part of the bank and sends it."""
    if not state.moment_owners:
        state.optimizer.step()
        return
    named = dict(state.ensemble.named_parameters())
    owners = {name: owner for name, owner in state.moment_owners.items() if name in named}
    others = [named[name] for name, owner in owners.items() if owner != state.processes.rank]
    gradients = [parameter.grad for parameter in others]
    for parameter in others:
        parameter.grad = None
    state.optimizer.step()
    for parameter, gradient in zip(others, gradients):
        parameter.grad = gradient
    for rank in sorted(set(owners.values())):
        state.processes.broadcast_([named[name] for name, owner in owners.items() if owner == rank], rank)


def gather_moments(state: TrainState) -> None:
    """Bring the optimizer's state from where it is kept to all processes, for a checkpoint."""
    for source, _, parameters in _kept_apart(state):
        held = [state.optimizer.state.get(parameter, {}) for parameter in parameters]
        forms = state.processes.broadcast_object(
            source, [{key: _form(value, True) for key, value in one.items()} for one in held]
        )
        if state.processes.rank != source:
            for parameter, own in zip(parameters, forms):
                if own:
                    state.optimizer.state[parameter] = {key: _room(form, parameter) for key, form in own.items()}
            held = [state.optimizer.state.get(parameter, {}) for parameter in parameters]
        tensors = [value for one, own in zip(held, forms) for key, value in one.items() if "shape" in own[key]]
        state.processes.broadcast_(tensors, source)


def drop_moments(state: TrainState) -> None:
    """Let go of the optimizer's state that other processes keep."""
    for _, is_kept, parameters in _kept_apart(state):
        for parameter in () if is_kept else parameters:
            state.optimizer.state.pop(parameter, None)


def _kept_apart(state: TrainState) -> list[tuple[int, bool, list[nn.Parameter]]]:
    """Parameters whose optimizer state only some processes keep: (first keeper, whether this one keeps it, them)."""
    found: list[tuple[int, bool, list[nn.Parameter]]] = []
    if state.is_split:
        for name in state.members:
            own = [one for one in state.ensemble.members[name].parameters() if one.requires_grad]
            found.append((state.mesh.source_of(name), name in state.own_members, own))
    named = dict(state.ensemble.named_parameters())
    for rank in sorted(set(state.moment_owners.values())):
        own = [named[name] for name, owner in state.moment_owners.items() if owner == rank and name in named]
        found.append((rank, rank == state.processes.rank, own))
    return found


def _form(value: Any, counters: bool = False) -> dict[str, Any]:
    """Description of a buffer or of a value in an optimizer's state: a number as it is, a tensor's shape and type."""
    if not isinstance(value, Tensor):
        return {"number": value}
    dtype = str(value.dtype).removeprefix("torch.")
    if counters and value.numel() == 1 and value.device.type == "cpu":  # NCCL would refuse it
        return {"number": value.item(), "dtype": dtype, "sides": list(value.shape)}
    return {"shape": list(value.shape), "dtype": dtype}


def _room(form: dict[str, Any], parameter: nn.Parameter) -> Any:
    if "shape" in form:
        dtype, shape = getattr(torch, form["dtype"]), tuple(form["shape"])
        if shape == tuple(parameter.shape):  # fused optimizers walk through both in one order
            return torch.empty_like(parameter, dtype=dtype)
        return torch.empty(shape, dtype=dtype, device=parameter.device)
    if "dtype" in form:
        return torch.full(form["sides"], form["number"], dtype=getattr(torch, form["dtype"]))
    return form["number"]


def agree_on_rows(state: TrainState, targets: Any) -> None:
    """Check that processes that are to run different members on the same rows were given the same rows."""
    if state.is_split and len(state.own_loaders) == len(state.loaders) == 1:
        sums = [checksum(one) for one in tensors_of(targets)]
        state.peers.assert_equal_across_ranks(
            sums, f"the first batch (of {state.processes.size} processes, those p with the same p % {state.rows.size} "
            "must have the same rows, for other members)",
        )  # fmt: skip


def own_answers(state: TrainState, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`answers_of_all` without other processes: zeros for members that run elsewhere."""
    like = next(iter(own.values())).detach()
    return {name: own[name] if name in own else torch.zeros_like(like) for name in state.members}


def answers_of_all(state: TrainState, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answers of all members to the rows of this process; without gradient for members that run elsewhere."""
    if not state.is_split:
        return dict(own)
    like = next(iter(own.values())).detach()
    if not state.answers_agree:  # else the exchange would fail with the backend's own error
        shown = [list(like.shape), str(like.dtype == torch.float64)]
        state.peers.assert_equal_across_ranks(shown, "the shape of the members' answers to the rows that they share")
        state.answers_agree = True
    exact = torch.promote_types(like.dtype, torch.float32)  # members may answer in several types under autocast
    every = like.new_zeros(len(state.members), *like.shape, dtype=exact)
    for place, name in enumerate(state.members):
        if name in own:
            every[place] = own[name].detach()
    state.peers.all_reduce_([every])
    return {name: own.get(name, answer) for name, answer in zip(state.members, every)}
