"""Prints the lower bound of each requirement in pyproject.toml as ``name==version``, for ``make lowest``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r'"([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?>=([\d.]+),<[\d.]+"')


def lowest(text: str) -> Iterator[str]:
    """The lines. Read by a pattern, since Python 3.10 reads no TOML; no tool's settings look like a requirement."""
    yield from sorted({f"{name}=={version}" for name, version in REQUIREMENT.findall(text)}, key=str.lower)


if __name__ == "__main__":
    print("\n".join(lowest(PYPROJECT.read_text(encoding="utf-8"))))
