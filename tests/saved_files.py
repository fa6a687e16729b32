"""Edits of saved files, as a careful person or an enemy would make them: the manifest says what the files then hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superweight_ensembles.storage import write_manifest


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a JSON file in place, or replace its content by what ``edit`` returns; the manifest beside it follows."""
    content = json.loads(path.read_text())
    changed = edit(content)
    rewrite(path, json.dumps(content if changed is None else changed))


def rewrite(path: Path, content: str | bytes) -> None:
    """Replace a file of a saved ensemble, and its entry in the manifest."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    write_manifest(path.parent)
