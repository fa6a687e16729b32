"""How processes that torchrun starts read their place in the job and find each other, also after a restart."""

from __future__ import annotations

import atexit
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from superweight_ensembles.errors import SuperWeightError

JOIN_TIMEOUT = timedelta(minutes=10)
_ROUND = "superweights/round"
_LOG = logging.getLogger(__name__)

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A job of several processes, one device each, and this process's place in it."""

    rank: int
    local_rank: int  # on its machine
    size: int  # number of processes
    local_size: int  # number of processes on each machine
    num_nodes: int
    address: str  # where the processes meet, host:port


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """The job that torchrun started this process for, by its environment; None where it was started alone.

    Example:
        >>> shared = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}
        >>> launch_of({**shared, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
        Launch(rank=5, local_rank=1, size=8, local_size=4, num_nodes=2, address='node0:29500')
        >>> launch_of({}) is None
        True
    """
    size = _number(environment, "WORLD_SIZE", "1")
    if size <= 1:
        return None
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise SuperWeightError(
            f"WORLD_SIZE is {size}, and {', '.join(missing)} not set: start the processes by torchrun, or unset "
            "WORLD_SIZE for a single one"
        )
    local_size = _number(environment, "LOCAL_WORLD_SIZE", str(size))
    if local_size < 1 or size % local_size:
        raise SuperWeightError(
            f"{size} processes with {local_size} on this machine: every machine needs the same --nproc-per-node"
        )
    return Launch(
        rank=_number(environment, "RANK", "0"),
        local_rank=_number(environment, "LOCAL_RANK", "0"),
        size=size,
        local_size=local_size,
        num_nodes=size // local_size,
        address=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
    )


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    given = environment.get(name) or default
    if not given.isdigit():
        raise SuperWeightError(f"{name} must be a whole number, as torchrun sets it; the environment has {given!r}")
    return int(given)


def join(launch: Launch, device: torch.device) -> None:
    """Begin the default process group (NCCL on CUDA, gloo else) with the other processes, unless there is one."""
    if dist.is_initialized():
        return
    store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.size, timeout=JOIN_TIMEOUT))
    agreed = agreed_round(store, launch.rank, launch.size, JOIN_TIMEOUT.total_seconds())
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=dist.PrefixStore(agreed, store),
        rank=launch.rank,
        world_size=launch.size,
        device_id=device if on_cuda else None,
    )
    if on_cuda:
        atexit.register(_leave)
    if launch.rank == 0:
        _LOG.info("%d processes have joined, on %d machines", launch.size, launch.num_nodes)


def agreed_round(store: dist.Store, rank: int, size: int, timeout_s: float) -> str:
    """A name that processes started together agree on, and that no processes started earlier had."""
    # torchrun keeps its store over restarts, with all that earlier processes wrote: an address read from it may be that
    # of a dead process. So the first process makes up a name and confirms under it the names that the others made up; a
    # process that read an old name gets no confirmation under it, and reads again.
    own = uuid.uuid4().hex
    if rank == 0:
        store.set(_ROUND, own)
        for other in range(1, size):
            store.set(f"{own}/seen/{store.get(f'{own}/is/{other}').decode()}", "1")
        return own
    end = time.monotonic() + timeout_s
    registered = ""
    while time.monotonic() < end:
        name = store.get(_ROUND).decode()
        if name != registered:
            store.set(f"{name}/is/{rank}", own)
            registered = name
        if store.check([f"{name}/seen/{own}"]):
            return name
        time.sleep(0.02)
    raise TimeoutError(f"process 0 does not answer process {rank}")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
