"""Mistakes of users, tried one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from superweight_ensembles import SuperWeightError


def assert_refused(message: str, call: Callable[..., Any], /, *given: Any, **options: Any) -> None:
    """Assert that ``call(*given, **options)`` raises a SuperWeightError whose text matches the pattern."""
    with pytest.raises(SuperWeightError, match=message):
        call(*given, **options)
