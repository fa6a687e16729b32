"""Jobs of two processes on this machine, for benchmarks."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing


def run_pair(job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``job(rank, *arguments)`` gives in each of two processes of one thread, as JSON keeps it.

    Args:
        job: Of a module's top level; joins the other by ``build_fabric``.
        arguments: The same for both.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_begun, args=(job, port, folder, arguments), nprocs=2)
        return [json.loads((Path(folder) / str(rank)).read_text(encoding="utf-8")) for rank in range(2)]


def free_port() -> int:
    """Where two processes of this machine can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def become_rank(rank: int, port: int) -> None:
    """Have this process be one of two of one thread, as torchrun would start it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    torch.set_num_threads(1)


def loopback_bytes() -> int:
    """Received over the loopback device since the machine, or its network namespace, was started."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":", 1)[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def _begun(rank: int, job: Callable[..., Any], port: int, folder: str, arguments: tuple[Any, ...]) -> None:
    become_rank(rank, port)
    (Path(folder) / str(rank)).write_text(json.dumps(job(rank, *arguments)), encoding="utf-8")
