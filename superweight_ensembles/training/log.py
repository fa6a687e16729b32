"""What a training run writes as it goes: JSON lines, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends one record an epoch to ``log.jsonl`` and its numbers to ``tensorboard/``."""

    def __init__(self, folder: Path, history: list[dict[str, Any]]) -> None:
        self._path = folder / "log.jsonl"
        self._path.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1)

    def append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in _flatten(record):
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _flatten(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "epoch":
            pairs.append((prefix + key, float(value)))
    return pairs
