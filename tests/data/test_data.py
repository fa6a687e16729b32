"""Data sets and loaders: splits, order, augmentation, files, and every error that a user can cause."""

from __future__ import annotations

import hashlib
import pickle
import random
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.datasets import CIFAR10, CIFAR100

from superweight_ensembles.data import (
    DATA_SETS,
    Augmentation,
    Draws,
    ImageData,
    ImageLoader,
    MemorySplit,
    crop_and_flip,
    cut_out_,
    draw,
    load_data,
    stratified_split,
)
from superweight_ensembles.errors import SuperWeightError

ALL = Augmentation(flip=True, crop_padding=2, cutout=3)
SHAPE = (2, 5, 7)  # neither square nor of as many channels as rows: an exchanged axis shows


def numbered(count: int, shape: tuple[int, int, int] = SHAPE) -> MemorySplit:
    """Random images, each labelled with its own index."""
    images = torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return MemorySplit(images, torch.arange(count))


def plain_loader(split: MemorySplit, batch_size: int, **settings: Any) -> ImageLoader:
    channels = split.image_shape[0]
    return ImageLoader(split, batch_size, mean=(0.4,) * channels, std=(0.3,) * channels, **settings)


def epoch_of(loader: ImageLoader, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    loader.set_epoch(epoch)
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


def same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


# Order and random numbers.


def test_epochs_and_seeds_differ_in_order_and_in_augmentation() -> None:
    split = numbered(40)
    loaders = [plain_loader(split, 8, shuffle=True, seed=seed) for seed in (0, 1)]
    orders = [epoch_of(loaders[seed], epoch)[1].tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    augmented = plain_loader(split, 8, augmentation=ALL)
    assert not torch.equal(epoch_of(augmented, 0)[0], epoch_of(augmented, 1)[0])


def test_a_resumed_epoch_is_the_epoch_whatever_was_drawn_before() -> None:
    split = numbered(30)
    travelled = plain_loader(split, 4, augmentation=ALL, shuffle=True)
    for epoch in range(3):
        epoch_of(travelled, epoch)
    next(iter(travelled))
    torch.rand(100)
    assert same(epoch_of(travelled, 3), epoch_of(plain_loader(split, 4, augmentation=ALL, shuffle=True), 3))


def test_set_epoch_does_not_change_an_epoch_that_has_begun() -> None:
    loader = plain_loader(numbered(20), 6, augmentation=ALL, shuffle=True)
    expected = epoch_of(loader, 1)
    begun = iter(loader)
    loader.set_epoch(2)
    images, labels = zip(*begun)
    assert same((torch.cat(images), torch.cat(labels)), expected)


def test_global_generators_are_untouched() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = load_data("synthetic")
    load_data("digits", seed=3)
    epoch_of(data.loader("train", 16, augmentation=ALL, shuffle=True), 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_batch_size_changes_neither_order_nor_augmentation() -> None:
    split = numbered(24)
    small, large = (epoch_of(plain_loader(split, size, augmentation=ALL, shuffle=True), 1) for size in (4, 9))
    assert same(small, large)


def test_one_augmentation_leaves_the_draws_of_the_others() -> None:
    alone = draw(Augmentation(crop_padding=2), 10, SHAPE, seed=0, epoch=0)
    together = draw(ALL, 10, SHAPE, seed=0, epoch=0)
    assert alone.flip is None and alone.cutout is None
    assert torch.equal(alone.crop, together.crop)


def test_draws_cover_every_value_evenly() -> None:
    draws = draw(Augmentation(flip=True, crop_padding=2, cutout=2), 7000, SHAPE, seed=0, epoch=0)
    for column, values in zip((draws.flip.long(), *draws.crop.T, *draws.cutout.T), (2, 5, 5, 5, 7), strict=True):
        counts = torch.bincount(column)
        assert len(counts) == values
        assert 0.85 * 7000 / values < counts.min() and counts.max() < 1.15 * 7000 / values
    assert not torch.equal(draws.crop[:, 0], draws.crop[:, 1])


# Several processes, and epochs begun in the middle.


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_put_together_are_the_batches_of_one_process(count: int, drop_last: bool) -> None:
    settings: dict[str, Any] = {"augmentation": ALL, "shuffle": True, "seed": 3, "drop_last": drop_last}
    split = numbered(40)
    whole = plain_loader(split, 9, **settings)
    parts = [plain_loader(split, 9, **settings, shard=(index, count)) for index in range(count)]
    for loader in (whole, *parts):
        loader.set_epoch(2)
    assert {len(loader) for loader in parts} == {len(whole)}
    for (images, labels), *shares in zip(whole, *parts, strict=True):
        sizes = [len(found) for found, _ in shares]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([found for found, _ in shares]), images)
        assert torch.equal(torch.cat([found for _, found in shares]), labels)


def test_an_epoch_begun_in_the_middle_is_its_end() -> None:
    loader = plain_loader(numbered(40), 9, augmentation=ALL, shuffle=True)
    loader.set_epoch(1)
    every = list(loader)
    for first in range(6):
        loader.set_epoch(1, first_batch=first)
        found = list(loader)
        assert len(found) == 5 - first and len(loader) == 5
        assert all(same(one, other) for one, other in zip(found, every[first:], strict=True))
    loader.set_epoch(1)
    assert len(list(loader)) == 5


# Augmentation against parts of single images.


def crop_one(image: torch.Tensor, top: int, left: int, padding: int) -> torch.Tensor:
    return functional.pad(image, (padding,) * 4)[:, top : top + image.shape[1], left : left + image.shape[2]]


def cut_out_one(image: torch.Tensor, y: int, x: int, size: int) -> torch.Tensor:
    result, top, left = image.clone(), y - size // 2, x - size // 2
    result[:, max(0, top) : top + size, max(0, left) : left + size] = 0
    return result


def test_crop_is_the_shifted_image_with_black_around_it() -> None:
    images = numbered(9).images
    corners = torch.tensor([[top, left] for top in (0, 2, 4) for left in (0, 3, 4)])
    expected = torch.stack([crop_one(image, *corner, padding=2) for image, corner in zip(images, corners.tolist())])
    result = crop_and_flip(images, Draws(crop=corners), 2)
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)


def test_flip_mirrors_the_images_drawn_and_no_others() -> None:
    images = numbered(4).images
    expected = torch.stack([images[0], images[1].flip(2), images[2].flip(2), images[3]])
    assert torch.equal(crop_and_flip(images, Draws(flip=torch.tensor([False, True, True, False])), 0), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_zeroes_a_square_clipped_at_the_border(size: int) -> None:
    centres = [(0, 0), (4, 6), (2, 3), (0, 5), (3, 0)]
    images = torch.randn(len(centres), *SHAPE)
    expected = torch.stack([cut_out_one(image, y, x, size) for image, (y, x) in zip(images, centres)])
    assert torch.equal(cut_out_(images.clone(), Draws(cutout=torch.tensor(centres)), size), expected)
    inner = cut_out_(torch.ones(1, 1, 9, 9), Draws(cutout=torch.tensor([[4, 4]])), size)
    assert (inner == 0).sum() == size * size


def test_loader_crops_then_flips_then_normalises_then_cuts_out() -> None:
    split = numbered(11)
    images, labels = epoch_of(plain_loader(split, 4, augmentation=ALL, shuffle=True, seed=2), 5)
    draws = draw(ALL, 11, SHAPE, seed=2, epoch=5)
    for position, label in enumerate(labels.tolist()):
        image = crop_one(split.images[label], *draws.crop[position].tolist(), padding=2)
        image = image.flip(2) if draws.flip[position] else image
        image = cut_out_one((image / 255 - 0.4) / 0.3, *draws.cutout[position].tolist(), size=3)
        torch.testing.assert_close(images[position], image, rtol=1e-5, atol=1e-6)


# Normalisation, lengths and types.


def test_normalisation_is_per_channel_of_pixels_in_0_to_1() -> None:
    pixels = torch.tensor([[[[0]], [[51]], [[255]]]], dtype=torch.uint8)
    split = MemorySplit(pixels, torch.zeros(1, dtype=torch.int64))
    ((images, _),) = ImageLoader(split, 1, mean=(0.1, 0.2, 0.4), std=(0.5, 0.25, 0.3))
    expected = torch.tensor([(0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (1 - 0.4) / 0.3])
    torch.testing.assert_close(images.flatten(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [(4, False, [4, 4, 2]), (4, True, [4, 4]), (5, True, [5, 5]), (10, False, [10]), (99, False, [10])],
)
def test_lengths_of_loaders(batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    loader = plain_loader(numbered(10), batch_size, drop_last=drop_last, augmentation=ALL, shuffle=True)
    batches = list(loader)
    assert len(loader) == len(batches) == len(sizes)
    assert [len(labels) for _, labels in batches] == sizes
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert images.shape == (len(labels), *SHAPE)
        assert images.is_contiguous()
        assert labels.dtype == torch.int64


def test_without_shuffle_and_augmentation_the_split_comes_as_it_is() -> None:
    split = numbered(10)
    images, labels = epoch_of(plain_loader(split, 3))
    assert labels.tolist() == list(range(10))
    torch.testing.assert_close(images * 0.3 + 0.4, split.images / 255)


def test_a_loader_does_not_change_the_images() -> None:
    split = numbered(6)
    before = split.images.clone()
    epoch_of(plain_loader(split, 6, augmentation=ALL))
    assert torch.equal(split.images, before)


# Splits.


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_stratified_split_shares_every_image_out_once(labels: list[int], fraction: float, seed: int) -> None:
    given_labels = torch.tensor(labels)
    keep, hold = stratified_split(given_labels, fraction, seed)
    assert sorted(keep.tolist() + hold.tolist()) == list(range(len(labels)))
    for label in set(labels):
        count, held = labels.count(label), int((given_labels[hold] == label).sum())
        assert held < count
        assert (held >= 1) == (count >= 2 and fraction > 0)
        assert held <= max(1, fraction * count + 1)


def test_stratified_split_holds_out_the_same_images_for_good() -> None:
    # A literal: another split in a later version would make its figures incomparable with earlier ones.
    labels = torch.arange(20) % 2
    assert stratified_split(labels, 0.2, 0)[1].tolist() == [4, 7, 11, 16]


def test_digits_splits_are_disjoint_complete_and_stratified() -> None:
    data = load_data("digits")
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1797 - 898 - 90, 90, 898]
    assert (data.image_shape, data.classes) == ((1, 8, 8), tuple("0123456789"))
    # All 1,797 images differ from one another, so that their bytes tell them apart.
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 1797
    assert {(int(part.images.min()), int(part.images.max())) for part in parts} == {(0, 255)}
    everything = torch.cat([part.labels for part in parts])
    for part, fraction in ((data.test, 0.5), (data.validation, 0.05)):
        assert (torch.bincount(part.labels) - torch.bincount(everything) * fraction).abs().max() <= 1.5


def test_digits_test_split_is_constant_and_validation_follows_the_seed() -> None:
    zero, again, one = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(zero.test.images, one.test.images)
    assert (zero.mean, zero.std) == (one.mean, one.std)
    assert torch.equal(zero.validation.images, again.validation.images)
    assert not torch.equal(zero.validation.images, one.validation.images)


def test_digits_are_normalised_by_their_own_mean_and_std() -> None:
    data = load_data("digits", validation_fraction=0)
    images, _ = epoch_of(data.loader("train", 100))
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-3


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_no_validation(name: str) -> None:
    data = load_data(name, validation_fraction=0)
    assert len(data.validation) == 0
    loader = data.loader("validation", 8, shuffle=True, augmentation=Augmentation(flip=True, crop_padding=1))
    assert len(loader) == len(list(loader)) == 0


def test_synthetic_follows_its_options_and_seed() -> None:
    data = load_data("synthetic", num_train=40, num_test=21, num_classes=3, shape=[1, 4, 6], seed=2)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (36, 4, 21, 3)
    again, other = (
        load_data("synthetic", num_train=40, num_test=21, num_classes=3, shape=(1, 4, 6), seed=s) for s in (2, 3)
    )
    assert torch.equal(data.test.images, again.test.images)
    assert not torch.equal(data.test.images, other.test.images)


def test_synthetic_is_learnable() -> None:
    data = load_data("synthetic", validation_fraction=0)
    (train, labels), (test, answers) = (epoch_of(data.loader(split, 64)) for split in ("train", "test"))
    centres = torch.stack([train[labels == label].mean(0) for label in range(4)]).flatten(1)
    nearest = torch.cdist(test.flatten(1), centres).argmin(1)
    assert (nearest == answers).float().mean() > 0.95


# CIFAR, from files in torchvision's format and never from the network.


def fake_cifar(monkeypatch: pytest.MonkeyPatch, root: Path, source: Any, num_classes: int) -> np.ndarray:
    """Write files of two images a class and have torchvision's class expect their checksums; the test images."""
    fine = source is CIFAR100
    base = root / source.base_folder
    base.mkdir(parents=True)
    labels = [index % num_classes for index in range(2 * num_classes)]
    random_state = np.random.RandomState(0)

    def write(name: str, content: dict[str, Any]) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    def write_all(names: list[list[str]]) -> tuple[list[list[str]], np.ndarray]:
        pixels = random_state.randint(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, "fine_labels" if fine else "labels": labels}
        return [[name, write(name, content)] for name, _ in names], pixels

    monkeypatch.setattr(source, "train_list", write_all(source.train_list)[0])
    test_list, pixels = write_all(source.test_list)
    monkeypatch.setattr(source, "test_list", test_list)
    names = {source.meta["key"]: [f"class{index}" for index in range(num_classes)]}
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": write(source.meta["filename"], names)})
    return pixels.reshape(-1, 3, 32, 32)


STATISTICS = {  # as published, in levels of 0 to 255
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}


@pytest.mark.parametrize(
    ("name", "source", "num_classes", "num_files"), [("cifar10", CIFAR10, 10, 5), ("cifar100", CIFAR100, 100, 1)]
)
def test_cifar_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: Any, num_classes: int, num_files: int
) -> None:
    pixels = fake_cifar(monkeypatch, tmp_path, source, num_classes)
    data = load_data(name, folder=tmp_path, validation_fraction=0.5)
    assert data.classes == tuple(f"class{index}" for index in range(num_classes))
    assert data.image_shape == (3, 32, 32)
    for found, levels in zip((data.mean, data.std), STATISTICS[name]):
        assert found == pytest.approx([level / 255 for level in levels])
    assert len(data.train) == len(data.validation) == num_classes * num_files
    assert torch.bincount(data.validation.labels).tolist() == [num_files] * num_classes
    assert torch.equal(data.test.images, torch.from_numpy(pixels))
    assert data.test.labels.tolist() == [index % num_classes for index in range(2 * num_classes)]


def test_cifar_is_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = fake_cifar(monkeypatch, tmp_path, CIFAR10, 10)
    data = load_data("cifar10", folder=tmp_path, pool=2)
    assert data.image_shape == (3, 16, 16) == data.train.image_shape
    means = pixels.reshape(-1, 3, 16, 2, 16, 2).astype(np.float64).mean(axis=(3, 5))
    assert np.abs(data.test.images.numpy() - means).max() <= 0.5
    with pytest.raises(SuperWeightError, match="pool=3 does not divide the 32 x 32 pixels of cifar10"):
        load_data("cifar10", folder=tmp_path, pool=3)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "cifar10",
            r"data_batch_1, .*data_batch_5, test_batch, batches\.meta absent or damaged in .*cifar-10-batches-py",
        ),
        ("cifar100", r"train, test, meta absent or damaged in .*cifar-100-python"),
    ],
)
def test_absent_cifar_without_download(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(SuperWeightError, match=rf"{files} and download is off.\nUnpack https://.* or download=True"):
        load_data(name, folder=tmp_path / "none", download=False)


def test_folders_of_cifar_in_other_places(tmp_path: Path) -> None:
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"archive")
    with pytest.raises(SuperWeightError, match=r"is cifar-10-batches-py: go up by one, and give the folder that holds"):
        load_data("cifar10", folder=base)
    with pytest.raises(SuperWeightError, match=r"python\.tar\.gz is a file: unpack it, and give the folder that holds"):
        load_data("cifar10", folder=tmp_path / "cifar-10-python.tar.gz")
    for folder in (tmp_path, base):
        with pytest.raises(SuperWeightError, match=r"is no folder of images: load_data\('cifar10', folder=...\)"):
            load_data("image_folder", folder=folder)


@pytest.mark.parametrize("error", [URLError("no route"), OSError("no route"), RuntimeError("no route")])
def test_cifar_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(SuperWeightError, match=r"data_batch_1.*download failed \(.*no route.*\)\.\nUnpack https://"):
        load_data("cifar10", folder=tmp_path)


def test_damaged_cifar_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(monkeypatch, tmp_path, CIFAR10, 10)
    witness = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    (tmp_path / CIFAR10.base_folder / "data_batch_3").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(SuperWeightError, match="cifar10: data_batch_3 absent or damaged"):
        load_data("cifar10", folder=tmp_path, download=False)
    assert not witness.exists()


# Errors of names and settings.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifra10", {}, "unknown data set 'cifra10': did you mean 'cifar10'"),
        ("CIFAR-10", {}, "unknown data set 'CIFAR-10': did you mean 'cifar10'"),
        ("ImageFolder", {}, "did you mean 'image_folder'"),
        ("tiny-imagenet", {}, "did you mean 'image_folder'"),
        ("data/pets", {}, r"got the path 'data/pets': its images are load_data\('image_folder', folder=...\)"),
        (Path("pets"), {}, "got the path 'pets'"),
        (["digits"], {}, "unknown data set"),
        ("image_folder", {}, "image_folder needs folder="),
        ("image_folder", {"image_size": 0}, "image_size must be a whole number of at least 1; got 0"),
        ("image_folder", {"pool": 0}, "pool must be a whole number"),
        ("image_folder", {"memory_limit_mb": "2G"}, "memory_limit_mb must be a whole number of at least 0; got '2G'"),
        ("image_folder", {"mean": (0.5,)}, "mean must be three numbers"),
        ("image_folder", {"std": (0.5, 0.5, 0)}, "std must be three positive numbers"),
        ("digits", {"num_train": 0}, "num_train must be a whole number of at least 1; got 0"),
        ("spiral", {"num_points": 5}, "num_points must be a whole number of at least 20; got 5"),
        ("spiral", {"num_points": 10**15}, "spiral: .* GiB; this machine has"),
        ("spiral", {"turns": 3}, "unknown option of spiral 'turns'"),
        ("image_folder", {"folder": ""}, "folder must be the path of a folder; got '' .*an empty text"),
        ("image_folder", {"root": "x"}, "unknown option of image_folder 'root': did you mean 'folder'"),
        ("image_folder", {"directory": "x"}, "did you mean 'folder'"),
        ("image_folder", {"folder": ".", "resolution": 8}, "did you mean 'image_size'"),
        ("image_folder", {"folder": ".", "n_classes": 8}, "n_classes is no option of image_folder, whose classes are"),
        ("image_folder", {"folder": "absent/images"}, "image_folder: no folder absent/images in /"),
        ("image_folder", {"folder": "~/absent/images"}, r"image_folder: no folder /.*absent/images$"),
        ("synthetic", {"n_classes": 8}, "unknown option of synthetic 'n_classes': did you mean 'num_classes'"),
        ("digits", {"batch_size": 8}, "batch_size is no option of a data set: TrainConfig"),
        ("digits", {"transform": None}, "transform is no option of a data set: TrainConfig"),
        ("digits", {"validation_fractoin": 0.1}, "unknown option of digits .*did you mean 'validation_fraction'"),
        ("digits", {"folder": "data"}, "unknown option of digits 'folder'"),
        ("digits", {"validation_fraction": 1.0}, "validation_fraction must be a number from 0 to less than 1; got 1.0"),
        ("digits", {"validation_fraction": float("nan")}, "validation_fraction must be .*got nan"),
        ("digits", {"validation_fraction": "some"}, "validation_fraction must be .*got 'some'"),
        ("digits", {"seed": -1}, "seed must be a whole number of at least 0"),
        ("digits", {"seed": 2**32}, "seed must be .* less than 4294967296"),
        ("digits", {"seed": True}, "seed must be .*got True"),
        ("synthetic", {"shape": (3, 8)}, r"shape must be \(channels, height, width\); got \(3, 8\)"),
        ("synthetic", {"shape": (3, 8, 0)}, "shape must be a whole number of at least 1; got 0"),
        ("synthetic", {"num_classes": 1}, "num_classes must be a whole number of at least 2; got 1"),
        ("synthetic", {"num_train": 2}, "num_train must be a whole number of at least 4; got 2"),
        ("cifar10", {"seed": 0.5}, "seed must be a whole number of at least 0 .*got 0.5"),
    ],
)
def test_load_data_errors(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuperWeightError, match=message):
        load_data(name, **options)


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_every_data_set_takes_seed_and_validation_fraction(name: str) -> None:
    for options, message in (({"seed": -1}, "seed must be"), ({"validation_fraction": 2}, "validation_fraction must")):
        with pytest.raises(SuperWeightError, match=message):
            load_data(name, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1; got 2.0"),
        ({"batch_size": 400, "drop_last": True}, "drop_last leaves no batch: the split has 230 images, a batch 400"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0; got -1"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"shard": 2}, "shard must be a pair"),
        ({"shard": (2, 2)}, "index of shard must be a whole number of at least 0 and less than 2; got 2"),
        ({"shard": (0, 0)}, "count of shard must be a whole number of at least 1; got 0"),
        ({"shard": (0, 9)}, "9 processes cannot share batches of 8 images"),
        ({"split": "tests"}, "unknown split 'tests': did you mean 'test'"),
        ({"num_worker": 2}, "unknown option of ImageLoader 'num_worker': did you mean 'num_workers'"),
        ({"augmentation": {"cutout": 8}}, "cutout of 8 pixels must be less than the images' 8 pixels"),
        ({"augmentation": {"crop_padding": 9}}, "crop_padding of 9 pixels must be less"),
        ({"augmentation": {"random_resized_crop": True}}, "cuts parts out of files, .* memory_limit_mb: 0"),
        ({"augmentation": {"random_resized_crop": 1}}, "random_resized_crop must be true or false; got 1"),
        ({"augmentation": {"flip": 1}}, "flip must be true or false; got 1"),
        ({"augmentation": {"crop_padding": -1}}, "crop_padding must be a whole number of at least 0; got -1"),
        ({"augmentation": {"cutout": 1.5}}, "cutout must be a whole number of at least 0; got 1.5"),
    ],
)
def test_loader_errors(settings: dict[str, Any], message: str) -> None:
    data = load_data("synthetic")
    given = {"split": "train", "batch_size": 8, **settings}
    with pytest.raises(SuperWeightError, match=message):
        data.loader(**{**given, "augmentation": Augmentation(**settings.get("augmentation", {}))})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "epoch must be a whole number of at least 0; got -1"),
        ((0.5,), "epoch must be a whole number of at least 0; got 0.5"),
        ((None,), "epoch must be a whole number of at least 0; got None"),
        ((0, -1), "first_batch must be a whole number of at least 0; got -1"),
        ((0, 30), "first_batch 30 is past the end: an epoch has 29 batches"),
    ],
)
def test_epoch_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SuperWeightError, match=message):
        load_data("synthetic").loader("train", 8).set_epoch(*arguments)


ZEROS, TWO = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (ZEROS.numpy(), TWO, "images must be a tensor; got ndarray: torch.as_tensor"),
        (ZEROS, TWO.numpy(), r"labels must be a tensor of class indices \(2,\), .*ndarray: torch.as_tensor"),
        (ZEROS.long(), TWO, r"got torch.int64 .*: images.to\(torch.uint8\)"),
        (ZEROS.to_sparse(), TWO, r"got torch.float32 .*: images.to_dense\(\)"),
        (ZEROS[:, :, :0], TWO, r"got torch.float32 \(2, 3, 0, 4\)$"),
        (ZEROS.double(), TWO, r"uint8 or float32 .*float64.*: images.float\(\)"),
        (ZEROS.half(), TWO, r"got torch.float16 .*: images.float\(\)"),
        (ZEROS[:, 0], TWO, r"\(N, C, H, W\); got torch.float32 \(2, 4, 4\)$"),
        (ZEROS / 0, TWO, "image 0 holds numbers that are not finite"),
        (ZEROS, torch.tensor(1), r"got torch.int64 \(\)$"),
        (ZEROS, torch.zeros(3).long(), r"class indices \(2,\) of an integer type, .*got torch.int64 \(3,\)$"),
        (ZEROS, TWO.bool(), r"got torch.bool \(2,\): labels.long\(\)"),
        (ZEROS, TWO.float(), r"class indices \(2,\) of an integer .*got torch.float32 \(2,\): labels.long\(\)"),
        (ZEROS, TWO[:, None], r"class indices \(2,\) of an integer type.*: labels.squeeze\(1\)"),
        (ZEROS, torch.eye(2), r"labels.argmax\(1\)"),
    ],
)
def test_images_and_labels_that_no_split_holds(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(SuperWeightError, match=message):
        MemorySplit(images, labels)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_of_every_integer_type_are_kept_as_int64(dtype: torch.dtype) -> None:
    assert MemorySplit(ZEROS, TWO.to(dtype)).labels.dtype == torch.int64


def test_images_with_a_graph_and_in_any_order_are_held() -> None:
    images = torch.rand(2, 4, 5, 3, requires_grad=True).permute(0, 3, 1, 2)
    split = MemorySplit(images, TWO.int())
    assert split.images.is_contiguous() and not split.images.requires_grad and torch.equal(split.images, images)
    assert list(split.fingerprint()) == ["labels", "pixels", "image marks"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mine: 3 channels need as many means and positive stds"),
        ({"std": (0.5, 0.5, 0.0)}, "mine: 3 channels need as many means and positive stds"),
        ({"train": numbered(0, (3, 4, 4))}, "mine: no image is left to train on"),
        ({"test": numbered(2, (3, 4, 5))}, r"mine: test images have the shape \(3, 4, 5\), not \(3, 4, 4\)"),
        ({"classes": ("a", "b")}, "mine: train labels must be 0 to 1; they are 0 to 2"),
        ({"classes": "abc"}, "classes a list of names; got 'mine', 'abc'"),
        ({"classes": ("only",)}, r"mine: a network tells two classes or more apart; got \['only'\]"),
        ({"classes": ("a", "b", "b")}, "mine: two classes are named 'b'"),
        ({"name": None}, "name must be a text"),
        ({"mean": 0.5}, "mine: 3 channels need as many means"),
        ({"mean": ("a", "b", "c")}, "mine: 3 channels need as many means"),
        ({"mean": (0.0, 0.0, float("nan"))}, "mine: 3 channels need as many means"),
        ({"std": (1.0, 1.0, float("inf"))}, "mine: 3 channels need as many means and positive stds"),
        ({"image_shape": (3,)}, r"mine: image_shape must be \(channels, height, width\); got \(3,\)"),
        ({"train": None}, r"mine: train must be MemorySplit\(images, labels\) or another split, .*; got NoneType"),
        ({"validation": (torch.zeros(1), torch.zeros(1))}, "mine: validation must be MemorySplit.*; got tuple"),
        ({"train": numbered(3, (4, 4, 3))}, r"not \(3, 4, 4\): images.permute\(0, 3, 1, 2\) puts channels first"),
    ],
)
def test_data_of_ones_own_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SuperWeightError, match=message):
        mine(**changes)


def mine(**changes: Any) -> ImageData:
    part = numbered(3, (3, 4, 4))
    good = {"classes": ("a", "b", "c"), "image_shape": (3, 4, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return ImageData(**{"name": "mine", **good, "train": part, "validation": part, "test": part, **changes})


def test_data_of_ones_own_may_be_given_as_lists_and_tensors() -> None:
    lists = mine(classes=[0, 1, 2], mean=torch.zeros(3), std=np.ones(3))
    assert (lists.classes, lists.mean, lists.std) == (("0", "1", "2"), (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(("highest", "warned"), [(1.0, 0), (255.0, 1)])
def test_float_images_of_another_range_than_mean_and_std_are_said(
    highest: float, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    mine(train=MemorySplit(torch.linspace(0, highest, 96).view(2, 3, 4, 4), torch.arange(2)))
    assert caplog.text.count("float images go from 0 to 255") == warned
