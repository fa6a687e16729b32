"""Data that an ensemble was not trained on: told apart from its own, or made worse on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import reduce
from pydantic import Field
from torch import Tensor

from superweight_ensembles.anytime.evaluation import Metrics, Predictions, predict, probability_metrics
from superweight_ensembles.anytime.policy import fit_temperature, tempered
from superweight_ensembles.anytime.uncertainty import Detection, detection
from superweight_ensembles.data import Corruption, Inputs, checked_loader, checked_pair, num_rows
from superweight_ensembles.ensemble import SuperWeightEnsemble, check_classes
from superweight_ensembles.errors import names_options
from superweight_ensembles.storage import Count, Name, Positive, adapter_of, as_content
from superweight_ensembles.training.distributed import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptedResult:
    """The ensemble on test samples that are made worse: see :class:`superweight_ensembles.data.Corruption`."""

    corruption: Name
    severity: Count
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class OthersResult:
    """How well other data are told from a data set's own, by each score."""

    name: Name
    num_samples: Count
    detections: Annotated[tuple[Detection, ...], Field(max_length=16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperedResult:
    """The ensemble on test samples, its mean softmax at a temperature that was fitted on held-out samples."""

    temperature: Positive
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Results on data that differ from those trained on; empty where they were not asked for."""

    corrupted: Annotated[tuple[CorruptedResult, ...], Field(max_length=1000)] = ()
    others: OthersResult | None = None
    tempered: TemperedResult | None = None  # None without held-out samples


def measure_tempered(held: Predictions, tested: Predictions) -> TemperedResult:
    """Metrics of the ensemble on ``tested``, its mean softmax at one temperature that is fitted on ``held``.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; of the pooled prediction, Rahaman and
    Thiery, NeurIPS 2021.
    """
    before, mean = (reduce(table.probabilities, "m n k -> n k", "mean") for table in (held, tested))
    temperature = fit_temperature(before, held.labels)
    metrics = probability_metrics(tempered(mean, temperature), tested.labels)
    return TemperedResult(temperature=temperature, metrics=metrics)


@names_options
def detect_others(
    ensemble: SuperWeightEnsemble, own: Iterable[object] | Predictions, others: Iterable[object] | Predictions
) -> tuple[Detection, ...]:
    """How well the members' uncertainty tells other data from the data set's own; labels are not read.

    Args:
        ensemble: The members whose predictions are compared.
        own: Test samples of the data set, or the predictions on them.
        others: Samples of another kind, normalised as the data set's own, or the predictions on them. Batches may be
            images alone.

    Returns:
        For each score, ``entropy``, ``mutual_information``, ``disagreement`` and ``max_probability`` (one minus it),
        ``auroc`` (probability that a sample of the other kind has the higher score; 0.5 is chance) and ``fpr95`` (share
        of own samples taken for others where 95 % of the others are found; 0 is best). The best AUROC is first.

    Raises:
        SuperWeightError: Loaders without samples, or whose images the members do not take.

    Source: Hendrycks and Gimpel, ICLR 2017 (AUROC); others are the positive class, as in Yang et al., OpenOOD, NeurIPS
    2022.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic", num_train=64)
        >>> ensemble = swe.SuperWeightEnsemble([swe.wide_resnet(10, 1, data.num_classes)], budget=1.0)
        >>> noise = [(torch.randn(32, 3, 8, 8), torch.zeros(32, dtype=torch.int64))]
        >>> [found.score for found in swe.anytime.detect_others(ensemble, data.loader("test", 64), noise)][:1] != []
        True
    """
    check_classes(ensemble.task, "detect_others()")
    tables = [one if isinstance(one, Predictions) else predict(ensemble, without_labels(one)) for one in (own, others)]
    return detection(*(table.of(ensemble.member_names) for table in tables))


def measure_corrupted(
    ensemble: SuperWeightEnsemble,
    corruptions: Sequence[Corruption],
    loader_of: Callable[[Corruption], Iterable[object]],
    processes: Processes | None = None,
) -> tuple[CorruptedResult, ...]:
    """The ensemble's metrics under each corruption, on every process; ``loader_of`` gives the test samples with one."""
    processes = processes or Processes()
    found = []
    # Each process takes some of the corruptions, not of the images: noise is drawn for whole batches.
    for one in corruptions[processes.rank :: processes.size]:
        table = predict(ensemble, loader_of(one))
        mean = reduce(table.of(ensemble.member_names), "m n k -> n k", "mean")
        metrics = probability_metrics(mean, table.labels)
        found.append(CorruptedResult(corruption=one.name, severity=one.severity, metrics=metrics))
    every = processes.gather_objects(as_content(found))
    ordered = [every[place % processes.size][place // processes.size] for place in range(len(corruptions))]
    return adapter_of(tuple[CorruptedResult, ...]).validate_python(ordered)


def without_labels(loader: Iterable[object]) -> Iterator[tuple[Inputs, Tensor]]:
    """The inputs of a loader, which may be batches of inputs alone, all labelled 0."""
    for batch in checked_loader(loader):
        inputs = batch if isinstance(batch, Tensor) else checked_pair(batch)[0]
        yield inputs, torch.zeros(num_rows(inputs), dtype=torch.int64)
