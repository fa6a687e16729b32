"""Images that stay in files: regions, reduced decoding, workers that persist, and equal batches for any of them."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as transforms

from superweight_ensembles.data import (
    Augmentation,
    ImageData,
    ImageReader,
    PathTable,
    centre_square,
    decode,
    decode_random,
    image_generator,
    image_key,
    load_data,
    random_region,
)
from superweight_ensembles.training import TrainConfig, training_loader

RANDOM_PARTS = Augmentation(flip=True, random_resized_crop=True)


def write_picture(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """A smooth random picture of (width, height) pixels, in the format of the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
    return path


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    for index in range(24):
        name = ("train/cat", "train/dog", "test/cat", "test/dog")[index % 4]
        write_picture(tmp_path / name / f"{index:02}.jpg", (40 + index, 30 + index % 7), seed=index)
    return load_data("image_folder", folder=tmp_path, image_size=12, memory_limit_mb=0, validation_fraction=0)


def epoch_of(data: ImageData, batch_size: int = 5, epoch: int = 3, **settings) -> torch.Tensor:
    loader = data.loader("train", batch_size, augmentation=RANDOM_PARTS, shuffle=True, **settings)
    loader.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_a_path_table_holds_any_name() -> None:
    paths = ["a.jpg", "", "Bäume/é.png", os.fsdecode(b"\xff\xfe.jpg")]
    table = PathTable(paths)
    assert len(table) == 4 and list(table) == paths
    assert list(table.subset(np.array([3, 0]))) == [paths[3], paths[0]]
    with pytest.raises(IndexError, match="4"):
        table[4]


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (25, 25), (63, 17), (9, 10), (500, 375), (375, 499)])
def test_the_centre_square_is_torchvisions(tmp_path: Path, size: tuple[int, int]) -> None:
    path = str(write_picture(tmp_path / "a.png", size))
    with Image.open(path) as file:
        resized = transforms.resize(file, 12, InterpolationMode.BILINEAR, antialias=True)
    expected = np.asarray(transforms.center_crop(resized, 12)).astype(int)
    # Pillow may resample rows before columns or after them, each rounded.
    assert np.abs(decode(path, 12).astype(int) - expected).max() <= 1


def test_random_regions_are_parts_of_the_standards_sizes() -> None:
    width, height, key = 500, 375, image_key(0, 0, "resized_crop")
    edges = np.array([random_region(width, height, image_generator(key, image)) for image in range(2000)])
    across, down = edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]
    assert edges.min() >= 0 and edges[:, 2].max() <= width and edges[:, 3].max() <= height
    assert np.array_equal(edges, np.rint(edges))
    areas, ratios = across * down / (width * height), across / down
    assert 0.078 < areas.min() < 0.09 and 0.9 < areas.max() <= 1.0
    assert 0.74 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.35
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.empty(3, height, width)
        drawn = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    theirs = np.array([high * wide for _, _, high, wide in drawn]) / (width * height)
    for ours, other in zip(np.quantile(areas, (0.1, 0.5, 0.9)), np.quantile(theirs, (0.1, 0.5, 0.9))):
        assert ours == pytest.approx(other, abs=0.03)
    centres = (edges[:, :2] + edges[:, 2:]) / 2 / (width, height)
    assert np.abs(centres.mean(0) - 0.5).max() < 0.02


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_narrow_pictures_give_their_centre(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    key = image_key(0, 0, "resized_crop")
    assert {random_region(*size, image_generator(key, image)) for image in range(5)} == {expected}


def test_a_random_part_is_the_region_drawn_for_the_image(tmp_path: Path, data: ImageData) -> None:
    key, path = image_key(4, 2, "resized_crop"), data.train.paths[7]
    with Image.open(path) as file:
        region = random_region(*file.size, image_generator(key, 7))
        expected = file.convert("RGB").resize((12, 12), Image.Resampling.BILINEAR, box=region)
    assert np.array_equal(decode_random(path, (12, 12), image_generator(key, 7)), np.asarray(expected))
    loader = data.loader("train", 4, augmentation=Augmentation(random_resized_crop=True), seed=4)
    loader.set_epoch(2)
    pixels = torch.cat([images for images, _ in loader])[7]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    found = ((pixels * std + mean) * 255).round().to(torch.uint8)
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_workers_and_batch_sizes_change_nothing(data: ImageData) -> None:
    expected = epoch_of(data)
    for settings in ({"num_workers": 1}, {"num_workers": 2}, {"batch_size": 4}):
        assert torch.equal(epoch_of(data, **settings), expected), settings
    for settings in ({"epoch": 4}, {"seed": 1}):
        assert not torch.equal(epoch_of(data, **settings), expected), settings


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_decode_their_own_rows_alone(
    data: ImageData, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"augmentation": RANDOM_PARTS, "shuffle": True, "num_workers": num_workers}
    whole = data.loader("train", 5, **settings)
    parts = [data.loader("train", 5, **settings, shard=(index, 3)) for index in range(3)]
    every = list(whole)
    assert [len(images) for images, _ in every] == [5, 5, 2], "a last batch that leaves one process nothing"
    for first in (0, 2):
        for loader in parts:
            loader.set_epoch(0, first_batch=first)
        for (images, labels), *shares in zip(every[first:], *parts, strict=True):
            assert torch.equal(torch.cat([found for found, _ in shares]), images)
            assert torch.equal(torch.cat([found for _, found in shares]), labels)
    decoded = []
    read = ImageReader.read
    monkeypatch.setattr(
        ImageReader, "read", lambda self, paths, *rest: decoded.append(len(paths)) or read(self, paths, *rest)
    )
    parts[2].set_epoch(0, first_batch=1)
    list(parts[2])
    assert decoded == ([] if num_workers else [2, 1]), "workers are other processes"


def test_workers_live_as_long_as_their_loader(data: ImageData) -> None:
    before = set(multiprocessing.active_children())
    loader = data.loader("train", 4, augmentation=RANDOM_PARTS, shuffle=True, num_workers=2)
    epochs, workers = [], []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in loader]))
        workers.append({child.pid for child in set(multiprocessing.active_children()) - before})
    assert len(workers[0]) == 2 and workers[0] == workers[1] == workers[2]
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    del loader
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_two_epochs_read_at_once_and_epochs_left_early(data: ImageData) -> None:
    expected = [epoch_of(data, epoch=epoch) for epoch in (0, 1)]
    loader = data.loader("train", 5, augmentation=RANDOM_PARTS, shuffle=True, num_workers=1)
    first = iter(loader)
    begun = [next(first)[0]]
    loader.set_epoch(1)
    second = [images for images, _ in loader]
    assert torch.equal(torch.cat(second), expected[1])
    assert torch.equal(torch.cat(begun + [images for images, _ in first]), expected[0])
    for _ in loader:
        break
    assert torch.equal(torch.cat([images for images, _ in loader]), expected[1])


def whole(path: Path, size: tuple[int, int], side: int) -> np.ndarray:
    """The centre square of a picture that is decoded whole."""
    with Image.open(path) as file:
        box = centre_square(*size, side)
        return np.asarray(file.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=box)).astype(int)


@pytest.mark.parametrize(
    ("name", "size", "side", "smaller"),
    [
        ("large.jpg", (667, 501), 64, True),
        ("large.jpg", (501, 667), 64, True),
        ("large.jpg", (1003, 777), 64, True),
        ("small.jpg", (333, 255), 64, False),  # less than four times 64
        ("large.png", (801, 603), 16, False),
    ],
)
def test_large_jpegs_are_decoded_smaller_and_stay_in_place(
    tmp_path: Path, name: str, size: tuple[int, int], side: int, smaller: bool
) -> None:
    path = write_picture(tmp_path / name, size, seed=3)
    difference = np.abs(decode(str(path), side).astype(int) - whole(path, size, side))
    assert (0 < difference.mean() < 0.5 and difference.max() <= 4) if smaller else not difference.any()


def test_trainings_have_random_parts(data: ImageData) -> None:
    loader = training_loader(data, TrainConfig(batch_size=4, random_resized_crop=True, flip=True))
    assert loader.augmentation == RANDOM_PARTS and math.isfinite(float(next(iter(loader))[0].sum()))
