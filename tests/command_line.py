"""The command line, run inside the test's process."""

import sys

import pytest

from superweight_ensembles import __main__ as cli


def superweights(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["superweights", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:  # noqa: PT012 - main may return or exit
        cli.main()
        sys.exit(0)
    return int(stopped.value.code or 0)
