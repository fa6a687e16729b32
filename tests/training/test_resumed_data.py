"""A run goes on with the data that it began with, and with no others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_files import edit_json
from torch.utils.data import DataLoader, TensorDataset
from training_cases import assert_same, refused, stop_training

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
def test_a_run_goes_on_with_the_same_data_alone(tmp_path: Path, other: Any, message: str) -> None:
    begin(synthetic(), tmp_path)
    with refused(message):
        go_on(other(), tmp_path)
    assert go_on(synthetic(), tmp_path) == 2


def test_other_batches_of_a_loader_are_refused(tmp_path: Path) -> None:
    begin(batches(), tmp_path, validation=batches())
    zeros = TensorDataset(torch.zeros(16, 3, 4, 4), torch.zeros(16, dtype=torch.int64))
    for data, validation, message in (
        (batches(15), batches(), r"number of training images \(16, now 15\)"),
        (batches(), batches(24), r"number of validation batches \(2, now 3\)"),
        (batches(label=1), batches(), "what differs: training labels"),
        (DataLoader(batches().dataset, 4), batches(), r"number of training images a batch \(8, now 4\)"),
        (DataLoader(zeros, batch_size=8), batches(), "what differs: training tensors: put them back"),
    ):
        with refused(message):
            go_on(data, tmp_path, validation=validation)
    assert go_on(batches(), tmp_path, validation=batches()) == 2


def test_other_batches_of_a_list_are_refused(tmp_path: Path) -> None:
    begin(list(batches()), tmp_path)
    with refused("what differs: training tensors"):
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
    with refused(r"(pixels|contents); not seen before: .*cat.8\.png: put them"):
        go_on(data(), out)
    (root / "cat/8.png").unlink()
    with refused(r"number of (train|test) images \(\d+, now \d+\)"):
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


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_training(two_members(), SYNTHETIC, RESUMED, 2, 2, out=folder)
    return folder


SYNTHETIC = swe.load_data("synthetic", num_train=64)
RESUMED = swe.TrainConfig(
    epochs=3, batch_size=16, precision="float32", device="cpu", schedule="one_cycle", checkpoint_steps=1
)  # fmt: skip


def two_members() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(16, 1, 4)}
    return swe.SuperWeightEnsemble(members, budget=0.9, rng=torch.Generator().manual_seed(0))


def edited(stopped: Path, folder: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy of the run whose checkpoints all say something else."""
    copy = shutil.copytree(stopped, folder / "run")
    for path in (copy / "checkpoints").glob("*/state.json"):
        edit_json(path, edit)
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1), ("step", 2), ("step", "1"), ("step", True), ("num_summed", -1), ("num_skipped", -1),
        ("micro_batches", 0), ("micro_batches", -1), ("seconds", -1.0), ("seconds", "x"), ("learning_rate", -0.1),
        ("loss_sums", []), ("history", []), ("history", {}), ("history", [{}]),
    ],
)  # fmt: skip
def test_progress_that_does_not_agree_is_refused(stopped: Path, tmp_path: Path, key: str, value: Any) -> None:
    copy = edited(stopped, tmp_path, lambda content: content["progress"].update({key: value}))
    with refused(r"the checkpoint .*epoch-0001-step-00000\d is damaged"):
        swe.train(two_members(), SYNTHETIC, RESUMED, out=copy, resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "x"), ("epoch", 7), ("lr", -1), ("lr", "x"), ("train_loss", 3), ("skipped_steps", -1),
        ("seconds", "x"), ("validation", {"members": {}, "ensemble": {"accuracy": "x", "nll": 0.1}}), ("validation", 1),
        ("validation", {"members": {}, "ensemble": {"accuracy": 2.0, "nll": 0.1}}),
    ],
)  # fmt: skip
def test_records_that_are_none_are_refused(stopped: Path, tmp_path: Path, key: str, value: Any) -> None:
    copy = edited(stopped, tmp_path, lambda content: content["progress"]["history"][0].update({key: value}))
    with refused("is damaged"):
        swe.train(two_members(), SYNTHETIC, RESUMED, out=copy, resume=True)


def test_rates_and_the_optimisers_settings_are_the_configs(stopped: Path, tmp_path: Path) -> None:
    """What a checkpoint of before held of them is not read: it could turn descent into ascent."""
    whole, resumed = two_members(), two_members()

    def as_before(content: dict[str, Any]) -> None:
        groups = [{"maximize": True, "lr": -1.0, "params": [0]}]
        content["optimizer"] = {"numbers": content["optimizer"], "groups": groups}
        content["schedule"] = {"total_steps": -1}

    swe.train(whole, SYNTHETIC, RESUMED)
    swe.train(resumed, SYNTHETIC, RESUMED, out=edited(stopped, tmp_path, as_before), resume=True)
    assert_same(whole, resumed)
    (tmp_path / "other").mkdir()
    copy = edited(
        stopped, tmp_path / "other", lambda content: content["optimizer"].update({"0": {"momentum_buffer": "x"}})
    )
    with refused("state holds something that is no number"):
        swe.train(two_members(), SYNTHETIC, RESUMED, out=copy, resume=True)
