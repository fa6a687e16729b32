"""Code that a text names: imported only where the user trusts it.

Importing ``python:package.module.Name`` from a recipe or a saved ensemble runs whatever that module holds. Code that an
installed package offers under an entry point was trusted when the package was installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError

PYTHON = "python:"
_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Allow imports of ``python:package.module.Name`` inside: for recipes and saved ensembles that you trust.

    Example:
        >>> with trusted():
        ...     named_code("python:math.prod")((2, 3))
        6
    """
    before = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def trust_from_here() -> None:
    """Trust to the end of the program, as the command line's --trust does."""
    _TRUSTED.set(True)


def named_code(name: str) -> Callable[..., Any]:
    """The callable that ``python:package.module.Name`` names, also in the working directory.

    Example:
        >>> named_code("python:math.prod")
        Traceback (most recent call last):
        ...
        superweight_ensembles.errors.SuperWeightError: 'python:math.prod' names code that would run here: ...
    """
    if not _TRUSTED.get():
        raise SuperWeightError(
            f"{name!r:.200} names code that would run here: superweights --trust COMMAND ... runs it, or, from Python, "
            "with swe.models.trusted(): ..."
        )
    module, _, attribute = name.removeprefix(PYTHON).rpartition(".")
    if not module:
        raise SuperWeightError(f"{name!r:.200}: write python:package.module.Name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module's code may raise anything
        raise SuperWeightError(f"{name!r:.200} cannot be imported: {type(error).__name__}: {error!s:.200}") from error
    return _callable(name, found)


def found_code(group: str, name: str) -> Callable[..., Any] | None:
    """The callable that ``python:...`` names, or that an installed package offers; None where none does."""
    return named_code(name) if name.startswith(PYTHON) else offered_code(group, name)


def offered_code(group: str, name: str) -> Callable[..., Any] | None:
    """The callable that an installed package offers under an entry point's name; None where none does."""
    for point in importlib.metadata.entry_points(group=group, name=name):
        try:
            return _callable(name, point.load())
        except SuperWeightError:
            raise
        except Exception as error:  # the package's code may raise anything
            raise SuperWeightError(
                f"{name!r}, which an installed package offers as {point.value}, cannot be imported: {error!s:.200}"
            ) from error
    return None


def offered_names(group: str) -> list[str]:
    """Names of a group's entry points."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=group)})


def _callable(name: str, found: Any) -> Callable[..., Any]:
    if not callable(found):
        raise SuperWeightError(f"{name!r:.200} must be a class or a function; it is a {type(found).__name__}")
    return found
