"""The command line, run inside the test's process."""

import sys
from pathlib import Path

import draw
import pytest

from superweight_ensembles import __main__ as cli


def superweights(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["superweights", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:  # noqa: PT012 - main may return or exit
        cli.main()
        sys.exit(0)
    return int(stopped.value.code or 0)


def draw_benchmark(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Run benchmarks/draw.py on a folder, into its ``figures``; the exit code."""
    monkeypatch.setattr(sys, "argv", ["draw.py", str(folder), "--out", str(folder / "figures")])
    try:
        draw.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0
