"""A run goes on with the data that it began with, and with no others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_files import edit_json
from torch.utils.data import DataLoader, TensorDataset

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData
from superweight_ensembles.training import TrainProgress

CONFIG = swe.TrainConfig(epochs=2, batch_size=8, learning_rate=0.05, precision="float32", device="cpu")


def members() -> dict[str, torch.nn.Module]:
    return {name: torch.nn.Sequential(torch.nn.Flatten(), *linears()) for name in ("a", "b")}


def linears() -> list[torch.nn.Module]:
    return [torch.nn.Linear(48, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)]


def stop_after_an_epoch(progress: TrainProgress) -> None:
    if progress.record is not None and progress.epoch == 1:
        raise InterruptedError


def begin(data: Any, out: Path, **more: Any) -> None:
    with pytest.raises(InterruptedError):
        swe.train(
            swe.SuperWeightEnsemble(members(), budget=0.8), data, CONFIG, out=out, callback=stop_after_an_epoch, **more
        )


def go_on(data: Any, out: Path, **more: Any) -> int:
    ensemble = swe.SuperWeightEnsemble(members(), budget=0.8)
    return len(swe.train(ensemble, data, CONFIG, out=out, resume=True, **more).history)


def synthetic(seed: int = 0, num_train: int = 64) -> ImageData:
    return swe.load_data("synthetic", num_train=num_train, shape=(3, 4, 4), seed=seed)


def batches(count: int = 16, label: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(count, 3, 4, 4), torch.full((count,), label)), batch_size=8)


def test_a_run_goes_on_with_the_same_data(tmp_path: Path) -> None:
    begin(synthetic(), tmp_path)
    assert go_on(synthetic(), tmp_path) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: synthetic(seed=1),
            r"train labels, train pixels, .*test pixels; not seen before: train image 0, .*: put them back",
        ),
        (lambda: synthetic(num_train=60), r"number of train images \(58, now 54\)"),
    ],
    ids=["other images", "fewer"],
)
def test_other_data_are_refused(tmp_path: Path, other: Any, message: str) -> None:
    begin(synthetic(), tmp_path)
    with pytest.raises(swe.SuperWeightError, match=message):
        go_on(other(), tmp_path)


def test_other_batches_of_a_loader_are_refused(tmp_path: Path) -> None:
    begin(batches(), tmp_path, validation=batches())
    with pytest.raises(swe.SuperWeightError, match=r"number of training images \(16, now 15\)"):
        go_on(batches(15), tmp_path, validation=batches())
    with pytest.raises(swe.SuperWeightError, match=r"number of validation batches \(2, now 3\)"):
        go_on(batches(), tmp_path, validation=batches(24))
    with pytest.raises(swe.SuperWeightError, match="what differs: training labels"):
        go_on(batches(label=1), tmp_path, validation=batches())
    with pytest.raises(swe.SuperWeightError, match=r"number of training images a batch \(8, now 4\)"):
        go_on(DataLoader(batches().dataset, batch_size=4), tmp_path, validation=batches())
    changed = TensorDataset(torch.zeros(16, 3, 4, 4), torch.zeros(16, dtype=torch.int64))
    with pytest.raises(swe.SuperWeightError, match="what differs: training tensors: put them back"):
        go_on(DataLoader(changed, batch_size=8), tmp_path, validation=batches())
    assert go_on(batches(), tmp_path, validation=batches()) == 2


def test_other_batches_of_a_list_are_refused(tmp_path: Path) -> None:
    begin(list(batches()), tmp_path)
    with pytest.raises(swe.SuperWeightError, match="what differs: training tensors"):
        go_on(list(batches(label=1)), tmp_path)
    assert go_on(list(batches()), tmp_path) == 2


def folder_of_images(root: Path, grey: int = 0) -> Path:
    for index in range(24):
        path = root / ("cat", "dog", "emu", "fox")[index % 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, grey, 0)).save(path)
    return root


@pytest.mark.parametrize("limit", [0, 64])
def test_the_file_that_is_new_is_named(tmp_path: Path, limit: int) -> None:
    root, out = folder_of_images(tmp_path / "images"), tmp_path / "out"

    def data() -> ImageData:
        return swe.load_data("image_folder", folder=root, memory_limit_mb=limit)

    begin(data(), out)
    Image.new("RGB", (4, 4), (0, 255, 0)).save(root / "cat/8.png")
    with pytest.raises(swe.SuperWeightError, match=r"(pixels|contents); not seen before: .*cat.8\.png: put them"):
        go_on(data(), out)
    (root / "cat/8.png").unlink()
    with pytest.raises(swe.SuperWeightError, match=r"number of (train|test) images \(\d+, now \d+\)"):
        go_on(data(), out)
    root.rename(tmp_path / "moved")
    root = folder_of_images(tmp_path / "moved")
    assert go_on(data(), out) == 2


def test_a_checkpoint_that_does_not_say_its_data_is_resumed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(synthetic(), tmp_path)
    (state,) = tmp_path.glob("checkpoints/*/state.json")

    edit_json(state, lambda content: {key: value for key, value in content.items() if key != "data"})
    with caplog.at_level(logging.WARNING):
        assert go_on(synthetic(), tmp_path) == 2
    assert "does not say what it was trained on" in caplog.text
