"""Memory at the peak of a training step: live tensor bytes, and the process's resident set.

Live bytes are what torch's allocator has handed out and not got back, which no allocator's habits change. The resident
set is what the machine gives the process: glibc keeps some of what was freed, so the high-water mark is set back after
a warm-up step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes of one training step.

    Attributes:
        live: At the peak, everything that must be in memory: parameters, buffers, optimiser state, batch, and what the
            step makes.
        persistent: Of that, what is there before the step and after it: all but gradients and what the step makes.
        resident: High-water mark of the resident set over two steps, less the resident set before anything was built;
            on CUDA what the allocator had reserved.
    """

    live: int
    persistent: int
    resident: int


def allocator_settings() -> dict[str, str]:
    """What the environment tells glibc's allocator: it decides what a process keeps of what it frees."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")}


def look_before() -> int:
    """The resident set before anything is built; what lives now is passed over by :func:`living_bytes`."""
    before = resident_bytes()
    gc.freeze()
    return before


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, in which the library is already imported."""
    fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if fork else "spawn")
    if fork:
        context.set_forkserver_preload(["superweight_ensembles", "superweight_ensembles.training", "training_steps"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_peak(step: Callable[[], object], optimizer: torch.optim.Optimizer, before: int, live: bool = True) -> Peak:
    """The peak of a step that has run before.

    Args:
        step: All of a training step.
        optimizer: Of the step; its gradients are dropped before anything is counted.
        before: What :func:`look_before` said.
        live: Whether to count live bytes as well, with another step under the profiler; else they are 0.
    """
    optimizer.zero_grad(set_to_none=True)
    if any(parameter.is_cuda for group in optimizer.param_groups for parameter in group["params"]):
        return cuda_peak(step)
    drop_freed()
    reset_high_water_mark()
    step()
    step()
    resident = high_water_mark() - before
    if not live:
        return Peak(live=0, persistent=0, resident=resident)
    optimizer.zero_grad(set_to_none=True)
    persistent = living_bytes()
    return Peak(live=persistent + live_growth(step), persistent=persistent, resident=resident)


def cuda_peak(step: Callable[[], object]) -> Peak:
    """The same on a CUDA device: what torch's allocator handed out at most, and what it took from the device."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    persistent = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    live, resident = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Peak(live=live, persistent=persistent, resident=resident)


def live_growth(step: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator holds during a call, more than before it."""
    return max(accumulate(allocations(step), initial=0))


def living_bytes() -> int:
    """Bytes of every tensor that was made since :func:`look_before` and is still held, each storage once."""
    gc.collect()
    return tensor_bytes(thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter, nn.Buffer))


def allocations(step: Callable[[], object]) -> list[int]:
    """Bytes of each allocation during a call, in order; negative where memory is given back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    return [event["args"]["Bytes"] for event in events]


def tensor_bytes(tensors: Iterable[object]) -> int:
    """Bytes of the storages of the tensors among some values, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, Tensor)
    }
    return sum(storages.values())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's state."""
    return tensor_bytes(value for state in optimizer.state.values() for value in state.values())


def drop_freed() -> None:
    """Hand freed memory back to the machine, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """Resident set of this process, freed memory handed back first."""
    drop_freed()
    return _status("VmRSS") or _most_resident()


def high_water_mark() -> int:
    return _status("VmHWM") or _most_resident()


def reset_high_water_mark() -> None:
    """Set the high-water mark back to the resident set of now, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
