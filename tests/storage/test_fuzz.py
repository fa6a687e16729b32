"""Thousands of damaged files, the same in every run: each is refused by name, or changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import fuzz_targets as targets
import pytest
from damage import damaged_bytes, damaged_json, damaged_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Examples of each kind of damage.
EXAMPLES = {
    "recipe": 900, "plan": 700, "flat plan": 400,
    "manifest": 300, "listed plan": 400, "listed policy": 150, "listed tensors": 150,
    "tensor header": 400, "config": 100, "notes": 120, "results": 400, "cascade": 300, "onnx": 300,
}  # fmt: skip
FLIPPED = {"plan.json": 60, "config.json": 60, "model.safetensors": 120, "manifest.json": 60, "anytime.json": 60}
NUM_FLIPPED_MEMBERS = 60


def feed(strategy: st.SearchStrategy[bytes], count: int, read: Callable[[bytes], None]) -> None:
    """Have so many contents read, nearly half of them different from one another."""
    seen: set[bytes] = set()

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def each(content: bytes) -> None:
        read(content)
        seen.add(content)

    each()
    assert len(seen) >= 0.45 * count, f"{len(seen)} different contents of {count}"


def test_there_are_enough() -> None:
    assert set(EXAMPLES) == set(targets.TARGETS)
    assert 0.45 * (sum(EXAMPLES.values()) + sum(FLIPPED.values()) + NUM_FLIPPED_MEMBERS) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_content(name: str) -> None:
    read, original = targets.TARGETS[name]
    content = original()
    damaged = (
        damaged_yaml if name == "recipe" else damaged_bytes if name in ("listed tensors", "onnx") else damaged_json
    )
    feed(damaged(content), EXAMPLES[name], read)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLIPPED)
def test_files_that_the_manifest_does_not_know(name: str) -> None:
    feed(damaged_bytes(targets.saved()[1][name]), FLIPPED[name], lambda content: targets.ensemble_file(name, content))


@pytest.mark.slow
def test_members_whose_notes_do_not_know_their_tensors() -> None:
    feed(damaged_bytes(targets.exported()[1]), NUM_FLIPPED_MEMBERS, targets.member_tensors)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("onnx", "cascade")])
def test_undamaged_content(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not damaged is not refused: the targets do read what they are given."""
    monkeypatch.setattr(targets, "EXPECTED", ())
    read, original = targets.TARGETS[name]
    read(original())
