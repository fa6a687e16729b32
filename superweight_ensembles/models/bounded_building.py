"""Networks made by name and options, but none that the machine cannot hold or that never ends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.machine_memory import check_parameters_fit
from superweight_ensembles.storage.plain_data import check_levels

MOST_MODULES = 10_000  # four times those of the largest network of timm
_MOST_SIZE = 2**16  # of a whole number among options: sizes of images, widths, depths
_MOST_VALUES = 10_000
Made = TypeVar("Made", bound=nn.Module)


def build_bounded(build: Callable[[], Made], what: str, most_numbers: int | None = None) -> Made:
    """Build a network twice: as shapes alone, which takes no memory, and then for real where these are within bounds.

    Args:
        build: Makes it, the same each time.
        what: It is called in messages.
        most_numbers: Parameters and buffers at most; besides, never more than the machine's memory holds.

    Raises:
        SuperWeightError: More numbers, or more than 10,000 modules.
        Exception: Whatever building raises.
    """
    with _counted(what, most_numbers), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                build()
        except SuperWeightError:
            raise
        except Exception:  # not every network can be made of shapes alone; the one that is made for real is counted too
            pass
    with _counted(what, most_numbers):
        return build()


def check_options(options: dict[str, Any], what: str) -> None:
    """Refuse options that no network has, which code would loop over before it makes a layer.

    Raises:
        SuperWeightError: Numbers beyond 2**16 or too many values; names the option.
    """
    check_levels(options, f"the options of {what}", most=8)
    left = list(options.items())
    for seen, (name, value) in enumerate(left):  # grows while it is walked through
        if seen > _MOST_VALUES:
            raise SuperWeightError(f"{what}: its options hold more than {_MOST_VALUES:,} values")
        if isinstance(value, (int, float)) and abs(value) > _MOST_SIZE:
            raise SuperWeightError(f"{what}: {name} is at most {_MOST_SIZE:,}; got {value!r:.40}")
        if isinstance(value, dict):
            left += [(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(name, one) for one in value]


@contextmanager
def _counted(what: str, most_numbers: int | None) -> Iterator[None]:
    """Count what modules of this thread register, before it is filled with numbers, and stop at a bound."""
    here = threading.get_ident()
    counts = {"numbers": 0, "modules": 0}

    def add(_module: nn.Module, _name: str, value: Tensor | nn.Module | None) -> None:
        if threading.get_ident() != here or value is None:
            return
        if isinstance(value, nn.Module):
            counts["modules"] += 1
            if counts["modules"] > MOST_MODULES:
                raise SuperWeightError(f"{what} has more than {MOST_MODULES:,} modules: no such network is built")
            return
        counts["numbers"] += math.prod(value.shape)
        check_parameters_fit(counts["numbers"], what)
        if most_numbers is not None and counts["numbers"] > most_numbers:
            raise SuperWeightError(f"{what} has more than the {most_numbers:,} parameters and buffers that it may have")

    hooks = [
        registration.register_module_parameter_registration_hook(add),
        registration.register_module_buffer_registration_hook(add),
        registration.register_module_module_registration_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
