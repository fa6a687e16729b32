"""What all benchmarks share: options, alternating timings, cells in processes, results files and their provenance.

Import it before torch: it sets how OpenMP's threads wait, which torch's libraries read when they are loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.models import recall_architecture
from superweight_ensembles.storage import provenance, read_json, write_json

Cell = TypeVar("Cell")
_HELP = {
    "rounds": "of calls that take turns",
    "threads": "of torch; its own number where left out",
    "image_size": "the data's where left out",
    "jobs": "at a time, a process and a thread each",
    "recipes": "FILE:NUMBER, a recipe and its batch size or rounds",
}


def new_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with ``--out`` and an option for each default, of its type.

    Args:
        description: The module's docstring.
        defaults: By the option's name; None is an integer that may be left out, False a flag, a list any number.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in defaults.items():
        kind: dict[str, Any] = {"type": int if default is None else type(default)}
        if isinstance(default, list):
            kind = {"type": type(default[0]), "nargs": "+"}
        if default is False:
            kind = {"action": "store_true"}
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=_HELP.get(name), **kind)
    return parser


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark that trains a recipe with several seeds."""
    parser = new_parser(description, seeds=3, jobs=1)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, help="a folder with train/CLASS/* and test/CLASS/*, for the recipe's")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options; sets torch's threads, and notes the provenance of the whole run."""
    options = parser.parse_args()
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    started.cache_clear()
    started()
    return options


@cache
def started() -> dict[str, Any]:
    """Provenance of this run, as it began: files may be edited while it goes on."""
    return provenance()


def write_results(file: Path, benchmark: str, **content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"benchmark": benchmark, "provenance": started(), **content})


def show(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print a line for each row of results: its words and numbers, and pairs of numbers as ranges."""
    for row in rows:
        print(", ".join(_entries(row)), flush=True)


def _entries(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key} ")
        elif isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], float):
            yield f"{prefix}{key} {value[0]:.4g} to {value[1]:.4g}"
        elif not isinstance(value, (list, tuple)):
            yield f"{prefix}{key} {value:.4g}" if isinstance(value, float) else f"{prefix}{key} {value}"


# Timings.


def timed(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of one call, all that it began on a GPU included."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    calls: Mapping[Any, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 3,
    device: torch.device | None = None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    before: Callable[[], object] = lambda: None,
    swapped: bool = False,
) -> dict[Any, list[float]]:
    """Seconds of calls that take turns, so that a machine that slows down does so for all.

    Args:
        calls: By name.
        rounds: Counted calls of each.
        warm_up: Calls of each that are not counted.
        device: Waited for where it is a GPU.
        within: A context for each call, entered before the clock starts.
        before: Called before each round, off the clock.
        swapped: Whether every second round goes backwards.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        before()
        for name in list(calls)[:: -1 if swapped and number % 2 == 0 else 1]:
            with within():
                seconds = timed(calls[name], device)
            if number >= warm_up:
                times[name].append(seconds)
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third quartile; both the value itself where there is one alone."""
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else [values[0]] * 2


def adjacent_ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, list[float]]:
    """Median and quartiles of the ratios of calls that followed each other."""
    ratios = [a / b for a, b in zip(above, below)]
    return statistics.median(ratios), quartiles(ratios)


def compared(times: Mapping[str, Sequence[float]], arm: str, base: str) -> dict[str, Any]:
    """Medians of two arms in milliseconds, and the ratio of the first to the second."""
    ratio, ends = adjacent_ratio(times[arm], times[base])
    medians = {f"{name}_ms": 1e3 * statistics.median(times[name]) for name in (arm, base)}
    return {**medians, "ratio": ratio, "ratio_quartiles": ends}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def spread_text(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation, for a line."""
    found = spread(values)
    return f"{found['mean']:{form}} +- {found['std']:{form.lstrip('+')}}"


def grouped(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows that are alike in some of their entries, in the order of the first of each."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return found


# Recipes.


def folder_recipe(
    file: str | Path, overrides: Sequence[str], folder: Path | None, classes: int | None = None
) -> Recipe:
    """The recipe of a file, on the images of a folder with train/CLASS/* and test/CLASS/* where one is given."""
    if folder is None:
        return load_recipe(file, overrides)
    if classes is None:
        network = recall_architecture(next(iter(load_recipe(file, overrides).build_members().values())))
        assert network is not None, "a recipe's members are built by name"
        classes = network.num_classes
    data = ("data.name=image_folder", f"data.folder={json.dumps(str(folder))}", f"data.num_classes={classes}")
    return load_recipe(file, [*overrides, *data])


def told_recipe(recipe: Recipe, *left_out: str) -> dict[str, Any]:
    """A recipe's content for a results file, a folder of images by its name alone."""
    content = recipe.model_dump(mode="json", exclude=set(left_out), exclude_none=True)
    if "folder" in content["data"]:
        content["data"]["folder"] = Path(content["data"]["folder"]).name
    return content


# Cells: each a call of a function, one after the other or some at a time as processes.


def run_cells(run: Callable[[Cell], dict[str, Any]], cells: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    """The result of each cell, as soon as it has ended.

    Args:
        run: With several jobs it must be importable by name.
        cells: In this order.
        jobs: Processes at a time.
    """
    if jobs == 1:
        yield from map(run, cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(run, cell) for cell in cells]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def begin_or_resume(file: Path, benchmark: str, same: str, *, other: str = "another", **head: Any) -> dict[str, Any]:
    """What an earlier call has written to a file with ``cells``, or the content of a new one.

    Args:
        file: Written after each cell.
        benchmark: Its name.
        same: The entry of the head in which both must agree.
        other: The word before its name in the refusal.
        head: What stands beside the cells.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        return {"benchmark": benchmark, "provenance": started(), **head, "cells": []}
    content: dict[str, Any] = read_json(file)
    if content[same] != head[same]:
        raise SystemExit(f"{file} is of {other} {same}: give another --out")
    return content


def run_seeds(
    run: Callable[[int], dict[str, Any]], recipe: Recipe, options: argparse.Namespace, file: Path, benchmark: str
) -> list[dict[str, Any]]:
    """The results of all seeds of a recipe, which are written to a file as each of them ends."""
    seeds: list[dict[str, Any]] = []
    for found in run_cells(run, range(recipe.seed, recipe.seed + options.seeds), options.jobs):
        seeds = sorted([*seeds, found], key=lambda one: one["seed"])
        write_results(file, benchmark, recipe=told_recipe(recipe), seeds=seeds)
        print(f"seed {found['seed']}: {found['seconds']:.0f} s", flush=True)
    return seeds


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


def _end_with_parent() -> None:
    """Have this process end when the one that started it is killed, which it would else wait for without end."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process of the pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
