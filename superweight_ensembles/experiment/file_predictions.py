"""Predictions of a trained run for image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from superweight_ensembles.anytime import AnytimePredictor
from superweight_ensembles.data import Preprocessing, image_files
from superweight_ensembles.ensemble import SuperWeightEnsemble, check_classes, transform_of
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.run_folder import trained_arm
from superweight_ensembles.storage import accessing


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePrediction:
    """Prediction for one file."""

    file: str  # as it was given, or as it was found in a folder that was given
    label: str = ""  # name of the most probable class; its number where names are not known
    confidence: float = 0.0  # probability of that class
    members_used: int = 0  # number of members that were asked
    flops: int = 0  # of these members
    probabilities: tuple[float, ...] = ()  # of every class, in the order of the labels
    error: str | None = None  # why the file could not be read, and there is no answer; None where it could


def predict_files(
    source: Path, files: Sequence[Path], *, deadline_ms: float | None = None, batch_size: int = 64
) -> Iterator[FilePrediction]:
    """Predict the classes of image files, by the calibrated cascade where there is one, else by all members.

    Args:
        source: A run folder, or a saved predictor or ensemble.
        files: Image files, or folders of them, from which the same files are taken as ``image_folder`` takes.
        deadline_ms: Milliseconds for each batch, reading not counted.
        batch_size: Images a batch.

    Raises:
        SuperWeightError: No such run or ensemble, an ensemble that does not know how its images are preprocessed, no
            image.
    """
    predictor, transform = load_predictor(source)
    check_classes(predictor.task, "predict")
    names = list(found_files(files))
    if deadline_ms is not None:
        predictor.measure(min(batch_size, len(names)))
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        images, broken = {}, {}
        for file in batch:
            try:
                images[file] = transform(file)
            except SuperWeightError as error:  # the other files are answered all the same
                broken[file] = FilePrediction(file=str(file), error=str(error))
        found = {**broken, **_answered(predictor, transform.classes, images, deadline_ms)}
        yield from (found[file] for file in batch)


def _answered(
    predictor: AnytimePredictor, classes: Sequence[str], images: Mapping[Path, Tensor], deadline_ms: float | None
) -> dict[Path, FilePrediction]:
    if not images:
        return {}
    answer = predictor(torch.stack(list(images.values())), deadline_ms=deadline_ms)
    confidence, index = answer.probabilities.max(1)
    rows = zip(
        images, index.tolist(), confidence.tolist(), answer.members_used.tolist(), answer.flops.tolist(),
        answer.probabilities.tolist(),
    )  # fmt: skip
    return {
        file: FilePrediction(
            file=str(file), label=classes[label] if classes else str(label), confidence=sure, members_used=used,
            flops=flops, probabilities=tuple(probabilities),
        )
        for file, label, sure, used, flops, probabilities in rows
    }  # fmt: skip


def load_predictor(source: Path) -> tuple[AnytimePredictor, Preprocessing]:
    """The predictor of a run's shared arm or of a saved ensemble, on the CPU, and its preprocessing."""
    with accessing(source, "read"):
        is_run = (source / "recipe.yaml").is_file()
    folder = trained_arm(source, "shared") if is_run else source
    if (folder / "anytime.json").is_file():
        predictor = AnytimePredictor.load(folder)
        return predictor, transform_of(predictor)
    ensemble = SuperWeightEnsemble.load(folder)
    transform = transform_of(ensemble)
    return AnytimePredictor(ensemble, input_shape=transform.image_shape), transform


def found_files(files: Sequence[Path]) -> Iterator[Path]:
    """Image files; those of a folder in the order of their names."""
    for file in files:
        with accessing(file, "read"):
            if file.is_dir():
                yield from map(Path, image_files(file))
                continue
            if not file.exists():
                raise SuperWeightError(f"{file} is missing: name image files, or folders of them")
        yield file
