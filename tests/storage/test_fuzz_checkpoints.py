"""Damaged checkpoints: none is gone on from as if it were whole, and none ends in a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from damage import damaged_bytes, damaged_json
from fuzz_targets import members, refused
from test_fuzz import feed

import superweight_ensembles as swe
from superweight_ensembles.storage import write_manifest
from superweight_ensembles.training import (
    Checkpoints,
    LearnedWidths,
    TrainState,
    build_fabric,
    build_optimizer,
    build_schedule,
    load_checkpoint,
)

CONFIG = swe.TrainConfig(
    epochs=1, batch_size=32, precision="float32", device="cpu", optimizer="adamw", learning_rate=0.01
)
DAMAGED = {
    "manifest.json": 100, "plan.json": 80, "config.json": 60, "state.json": 100, "model.safetensors": 100,
    "optimizer.safetensors": 100, "random.safetensors": 60, "hooks.safetensors": 30,
}  # fmt: skip
SEALED = {"state.json": 300, "optimizer.safetensors": 120, "random.safetensors": 120, "hooks.safetensors": 60}


def ensemble() -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble(members(), budget=1.5, bins=1, include=["*.2"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    swe.train(ensemble(), [(torch.randn(8, 5), torch.randint(3, (8,)))] * 2, CONFIG, out=folder)
    (found,) = (folder / "checkpoints").iterdir()
    return found


@pytest.fixture
def files(checkpoint: Path) -> Iterator[dict[str, bytes]]:
    """Of the checkpoint, which is whole again afterwards."""
    content = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    yield content
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    for name, value in content.items():
        (checkpoint / name).write_bytes(value)


def test_the_checkpoint_is_whole(checkpoint: Path) -> None:
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(DAMAGED)
    assert Checkpoints(checkpoint.parent).newest() == checkpoint
    load(checkpoint)


def load(folder: Path) -> None:
    fresh = ensemble()
    optimizer = build_optimizer(fresh, CONFIG)
    schedule = build_schedule(optimizer, CONFIG, 2)
    state = TrainState(
        ensemble=fresh, members=fresh.member_names, config=CONFIG, optimizer=optimizer, schedule=schedule,
        fabric=build_fabric(CONFIG), hooks=(LearnedWidths(),),
    )  # fmt: skip
    load_checkpoint(folder, state)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_seen_before_anything_is_read(name: str, checkpoint: Path, files: dict[str, bytes]) -> None:
    def read(content: bytes) -> None:
        (checkpoint / name).write_bytes(content)
        with refused(str(checkpoint)):
            found = Checkpoints(checkpoint.parent).newest()
            assert found == checkpoint and _says_the_same(content, files[name]), "taken for whole"

    feed(damaged_bytes(files[name]), DAMAGED[name], read)


def _says_the_same(one: bytes, other: bytes) -> bool:
    """Damage to the manifest may change nothing that it says."""
    return one == other or json.loads(one) == json.loads(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEALED)
def test_a_checkpoint_with_other_content_and_the_right_sums(
    name: str, checkpoint: Path, files: dict[str, bytes]
) -> None:
    """From an author with bad intent: it is refused, or it is a checkpoint."""

    def read(content: bytes) -> None:
        (checkpoint / name).write_bytes(content)
        write_manifest(checkpoint)
        with refused(str(checkpoint)):
            load(checkpoint)

    damaged = damaged_json if name.endswith(".json") else damaged_bytes
    feed(damaged(files[name]), SEALED[name], read)
