"""Cells of a benchmark, each a function's call of its own: one after the other, or some at a time as processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from statistics import fmean, stdev
from typing import Any, TypeVar

Cell = TypeVar("Cell")


def run_cells(run: Callable[[Cell], dict[str, Any]], cells: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    """What each cell came to, as soon as it has.

    Args:
        run: Of one cell; with several jobs it must be importable by name.
        cells: In this order.
        jobs: At a time, a process each.
    """
    if jobs == 1:
        yield from map(run, cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        for future in as_completed([pool.submit(run, cell) for cell in cells]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Let loggers tell nothing below a level meanwhile: a cell may run in the caller's process."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, one in zip(loggers, before):
            logger.setLevel(one)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation, for a line."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):{form}} +- {deviation:{form.lstrip('+')}}"


def end_with_parent() -> None:
    """Have this process end when the one that started it is killed, which else it would wait for for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process of the pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
