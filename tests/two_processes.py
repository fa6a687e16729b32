"""Jobs of two processes on this machine, joined as torchrun would join them, for tests."""

import os
import socket
import traceback
from pathlib import Path

import torch
from torch import multiprocessing

TIMEOUT_S = 300


def run(job, folder: Path, count: int = 2, lost: int | None = None) -> list:
    """What ``job(rank, folder)`` gives in each process, tensors and plain values alone.

    Args:
        job: A function of a module's top level; joins the others by ``build_fabric`` or ``current_processes``.
        folder: Of the test, for its own files and the answers.
        count: Processes.
        lost: A rank that does not answer.
    """
    # Importing torch again takes seconds. A process forked from this one would have it, but autograd's threads, once
    # begun, do not outlive a fork: they are of a server that has imported it and done nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["superweight_ensembles.experiment"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_answer, args=(job, rank, count, port, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    answers = [rank for rank in range(count) if rank != lost]
    missing = [rank for rank in answers if not (folder / f"{rank}.pt").is_file()]
    assert not missing, f"no answer from {missing}: {[process.exitcode for process in processes]}"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in answers]


def _answer(job, rank: int, count: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        torch.save(job(rank, folder), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
