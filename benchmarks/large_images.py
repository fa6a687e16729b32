"""Images that do not fit in memory: decoding, memory over an epoch, and what share of a step the data take.

    python benchmarks/large_images.py --folder FOLDER --out benchmarks/results/large_images.json

FOLDER gets --images JPEG files of 500 x 375 pixels (a few hundred random pictures, shifted and encoded again), unless
it has them already; keep it outside the repository. Measured are images a second through the loader (random resized
crop to 224 pixels, flip) with 0, 1 and 2 workers in turn; the resident memory of this process and its workers along one
epoch over all images (alone with --memory-only: with MALLOC_MMAP_THRESHOLD_=65536 in the environment, glibc gives back
what is freed); and the data's share of training steps: cifar10-small from memory, ResNets at 224 pixels from files.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from peak_memory import allocator_settings
from PIL import Image
from training_steps import joint_step, recipe_ensemble

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData, ImageLoader, MemorySplit
from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.training import TrainConfig, build_fabric, prepared_batch, training_loader

SIZE = (500, 375)
PICTURES = 200
CLASSES = 10
IMAGE_SIZE = 224
BATCH = 64
AUGMENTED = TrainConfig(batch_size=BATCH, random_resized_crop=True, flip=True)


def main() -> None:
    parser = harness.new_parser(__doc__, images=20_000, timed_images=1_024, rounds=4, steps=20, memory_only=False)
    parser.add_argument("--folder", type=Path, required=True, help="outside the repository")
    options = harness.read_options(parser)
    make_images(options.folder, options.images)
    data = folder_data(options.folder)
    files = list((options.folder / "train" / "class0").iterdir())
    results: dict[str, Any] = {
        "environment": allocator_settings(),
        "image_pixels": list(SIZE),
        "image_size": IMAGE_SIZE,
        "mean_file_bytes": statistics.mean(file.stat().st_size for file in files[:500]),
        "memory": measure_memory(data),  # first: what this process decoded itself would hide what its workers take
    }
    if not options.memory_only:
        results |= measure_speed(data, options)
    harness.write_results(options.out, "large_images", **results)
    arms = [{"recipe": entry["recipe"], **arm} for entry in results.get("steps", []) for arm in entry["arms"]]
    harness.show([*results.get("throughput", []), results["memory"], *arms])


def measure_speed(data: ImageData, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "throughput": measure_throughput(data, options.timed_images, options.rounds),
        "steps": [
            measure_steps(load_recipe("recipes/cifar10-small.yaml"), random_images(128 * options.steps), 128, [0]),
            measure_steps(
                load_recipe("recipes/imagenet.yaml", [f"data.num_classes={CLASSES}"]),
                first_images(data, 16 * max(2, options.steps // 5)),
                16,
                [0, 1],
            ),
        ],
    }


def make_images(folder: Path, count: int) -> None:
    """Write ``count`` training images, and a test image a class; nothing where they are there."""
    done = folder / f"made-{count}"
    if done.exists():
        return
    for index in range(CLASSES):
        (folder / "train" / f"class{index}").mkdir(parents=True, exist_ok=True)
        (folder / "test" / f"class{index}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as workers:
        for _ in workers.map(partial(write_variants, folder, count), range(PICTURES)):
            pass
    done.touch()


def write_variants(folder: Path, count: int, picture: int) -> None:
    """All images that come from one random picture: shifted, at a quality of their own."""
    random = np.random.default_rng(picture)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = (smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
    for index in range(picture, count, PICTURES):
        shifted = np.roll(pixels, tuple(random.integers(0, SIZE[0], 2)), axis=(0, 1))
        name = folder / "train" / f"class{index % CLASSES}" / f"{index:07}.jpg"
        Image.fromarray(shifted).save(name, quality=int(random.integers(80, 95)))
    if picture < CLASSES:
        Image.fromarray(pixels).save(folder / "test" / f"class{picture}" / "0.jpg")


def folder_data(folder: Path) -> ImageData:
    return swe.load_data("image_folder", folder=folder, image_size=IMAGE_SIZE, memory_limit_mb=0, validation_fraction=0)


def first_images(data: ImageData, count: int) -> ImageData:
    """The same data with so many training images, of all classes in turn."""
    indices = torch.arange(len(data.train)).view(CLASSES, -1).T.flatten()[:count]
    return ImageData(
        name=data.name, classes=data.classes, image_shape=data.image_shape, mean=data.mean, std=data.std,
        train=data.train.subset(indices), validation=data.validation, test=data.test,
    )  # fmt: skip


def random_images(count: int) -> ImageData:
    """Images in memory of CIFAR's shape; what is in them takes no time."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = MemorySplit(pixels, torch.arange(count) % CLASSES)
    return ImageData(
        name="random", classes=tuple(map(str, range(CLASSES))), image_shape=(3, 32, 32), mean=(0.5,) * 3,
        std=(0.25,) * 3, train=split, validation=split, test=split,
    )  # fmt: skip


def measure_throughput(data: ImageData, count: int, rounds: int) -> list[dict[str, Any]]:
    """Images a second of whole epochs, the numbers of workers taking turns; workers were started before."""
    few, epochs = first_images(data, count), itertools.count()
    loaders = {workers: loader_with(few, workers) for workers in (0, 1, 2)}

    def next_epoch() -> None:
        epoch = next(epochs)
        for loader in loaders.values():
            loader.set_epoch(epoch)

    # A deque of no length reads a loader to its end.
    calls: dict[int, Callable[[], object]] = {
        workers: partial(collections.deque, loader, maxlen=0) for workers, loader in loaders.items()
    }
    times = harness.alternate(calls, rounds, warm_up=1, before=next_epoch)
    images = len(loaders[0]) * BATCH
    rates = {workers: [images / seconds for seconds in found] for workers, found in times.items()}
    return [
        {
            "workers": workers,
            "batch_size": BATCH,
            "images": count,
            "rounds": rounds,
            "images_per_second": statistics.median(found),
            "quartiles": harness.quartiles(found),
        }
        for workers, found in rates.items()
    ]


def loader_with(data: ImageData, workers: int) -> ImageLoader:
    return training_loader(data, replace(AUGMENTED, num_workers=workers))


def measure_memory(data: ImageData, workers: int = 2, every: int = 8) -> dict[str, Any]:
    """Resident memory along one epoch over all images, and its slope after the first tenth."""
    loader = loader_with(data, workers)
    start, others = time.perf_counter(), {child.pid for child in active_children()}
    images, main_mib, worker_mib = [], [], []
    for number, _ in enumerate(loader):
        if number % every == 0:
            mine = sorted(child.pid for child in active_children() if child.pid not in others and child.pid)
            images.append((number + 1) * BATCH)
            main_mib.append(resident_mib(os.getpid()))
            worker_mib.append([resident_mib(process) for process in mine])
    seconds = time.perf_counter() - start
    late = [index for index, count in enumerate(images) if count > len(data.train) / 10]

    def slope(values: list[float]) -> float:
        x = np.array([images[index] for index in late]) / 10_000
        return float(np.polyfit(x, np.array([values[index] for index in late]), 1)[0])

    columns = [list(column) for column in zip(*worker_mib)]
    return {
        "workers": workers,
        "batch_size": BATCH,
        "images": len(loader) * BATCH,
        "seconds": seconds,
        "images_per_second": len(loader) * BATCH / seconds,
        "main_mib": {"after_a_tenth": main_mib[late[0]], "end": main_mib[-1], "peak": max(main_mib)},
        "workers_mib": [
            {"after_a_tenth": column[late[0]], "end": column[-1], "peak": max(column)} for column in columns
        ],
        "main_mib_per_10000_images": slope(main_mib),
        "workers_mib_per_10000_images": [slope(column) for column in columns],
        "samples": {"images": images, "main_mib": main_mib, "workers_mib": columns},
    }


def resident_mib(process: int) -> float:
    """Resident memory of a process, pages that it shares with others included."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_steps(recipe: Recipe, data: ImageData, batch_size: int, workers: list[int]) -> dict[str, Any]:
    """Seconds that each step waits for its batch, and seconds of the step itself; loaders take turns."""
    config = TrainConfig(
        batch_size=batch_size, precision="bfloat16", flip=recipe.training.flip, cutout=recipe.training.cutout,
        crop_padding=recipe.training.crop_padding, random_resized_crop=recipe.training.random_resized_crop,
    )  # fmt: skip
    fabric = build_fabric(config)
    step, _ = joint_step(recipe_ensemble(recipe, config), config)
    loaders = [training_loader(data, replace(config, num_workers=number), fabric.device) for number in workers]
    times: dict[int, list[tuple[float, float]]] = {number: [] for number in workers}
    epochs: dict[int, Iterator[tuple[torch.Tensor, torch.Tensor]]] = {}
    for round_number in range(len(loaders[0])):
        for number, loader in zip(workers, loaders):
            start = time.perf_counter()
            if round_number == 0:
                epochs[number] = iter(loader)  # draws the epoch's random numbers
            images, labels = prepared_batch(next(epochs[number]), fabric.device, channels_last=True)
            waited = time.perf_counter() - start
            with fabric.autocast():
                times[number].append((waited, harness.timed(partial(step, images, labels), fabric.device)))
    return {
        "recipe": recipe.name,
        "precision": "bfloat16",
        "device": str(fabric.device),
        "batch_size": batch_size,
        "image_shape": list(data.image_shape),
        "arms": [step_shares(number, found[1:]) for number, found in times.items()],
    }


def step_shares(workers: int, times: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and the data's share of all steps but the first together."""
    data, step = ([pair[index] for pair in times] for index in (0, 1))
    return {
        "workers": workers,
        "steps": len(times),
        "data_ms": 1e3 * statistics.median(data),
        "step_ms": 1e3 * statistics.median(step),
        "data_share": sum(data) / (sum(data) + sum(step)),
    }


if __name__ == "__main__":
    main()
