"""How the processes of a job find each other, also when some of them are started again."""

from __future__ import annotations

import atexit
import logging
import time
import uuid
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from superweight_ensembles.training.distributed.launch import Launch

JOIN_TIMEOUT = timedelta(minutes=10)
_ROUND = "superweights/round"
_LOG = logging.getLogger(__name__)


class Store(Protocol):
    """What is needed of a ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


def join(launch: Launch, device: torch.device) -> None:
    """Begin the default process group with the other processes of a job; nothing happens where there is one.

    Args:
        launch: This process's place in the job.
        device: Of this process; NCCL on CUDA, gloo else.

    Raises:
        RuntimeError, ValueError, OSError: The others do not come within :data:`JOIN_TIMEOUT`.
    """
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


def agreed_round(store: Store, rank: int, size: int, timeout_s: float) -> str:
    """A name that the processes started together have alike, and no process started before them has.

    torchrun keeps its store when it starts processes again, with what those before them wrote: an address read from it
    may be of a process that is dead. The first process makes up a name and answers, under it, to the name that each
    other made up; one that read an old name gets no answer under it, and looks again.

    Args:
        store: Which all processes see.
        rank: Of this process.
        size: Processes.
        timeout_s: How long to wait for an answer; the store knows how long to wait for a key.

    Raises:
        TimeoutError: No answer.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set(_ROUND, own)
        for other in range(1, size):
            store.set(f"{own}/seen/{store.get(f'{own}/is/{other}').decode()}", "1")
        return own
    end = time.monotonic() + timeout_s
    told = ""
    while time.monotonic() < end:
        name = store.get(_ROUND).decode()
        if name != told:
            store.set(f"{name}/is/{rank}", own)
            told = name
        if store.check([f"{name}/seen/{own}"]):
            return name
        time.sleep(0.02)
    raise TimeoutError(f"process 0 does not answer process {rank}")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
