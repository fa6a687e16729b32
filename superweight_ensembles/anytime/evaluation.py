"""Members, ensemble and every subset of members, on one data set. Shapes: M members, N samples, B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, pairwise, zip_longest
from typing import Annotated, Any, overload

import torch
from einops import reduce
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from superweight_ensembles.anytime.costs import MemberCost, answer_of, costs_of
from superweight_ensembles.anytime.uncertainty import Uncertainty, uncertainty
from superweight_ensembles.data import (
    Inputs,
    checked_batch,
    checked_loader,
    checked_pair,
    mapped,
    num_rows,
    rows_of,
    tensors_of,
)
from superweight_ensembles.ensemble import (
    CLASSIFICATION,
    SuperWeightEnsemble,
    Task,
    check_answers,
    first_parameter,
    num_classes_in,
)
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.models import described, first_line
from superweight_ensembles.storage import Amount, Count, Name, Share, adapter_of, as_content, html_table
from superweight_ensembles.training.distributed import Processes, current_processes

_ALONE = Processes()
TABLE_HEADINGS = ("MFLOPs", "parameters", "accuracy %", "NLL", "ECE %")  # of :meth:`EnsembleResult.table_row`
MAX_EXHAUSTIVE = 10
NUM_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Metrics of one predictor on one data set.

    Attributes:
        accuracy: Fraction of the samples whose most probable class is right.
        top5_accuracy: Fraction of the samples whose five most probable classes hold the right one.
        nll: Mean negative log likelihood, in nats.
        ece: Expected calibration error over 15 equal bins of confidence.
        brier: Mean squared distance of the probabilities from the one-hot label, 0 to 2.
    """

    accuracy: Share
    top5_accuracy: Share
    nll: float
    ece: float
    brier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleResult:
    """The mean prediction of all members, and what it costs: see :class:`SubsetResult`."""

    flops: Count
    latency_ms: Amount
    metrics: Metrics

    def table_row(self, parameters: str) -> tuple[str, ...]:
        """Texts of a table's row under :data:`TABLE_HEADINGS`."""
        found = self.metrics
        quality = (f"{100 * found.accuracy:.2f}", f"{found.nll:.4f}", f"{100 * found.ece:.2f}")
        return (f"{self.flops / 1e6:,.2f}", parameters, *quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberResult(EnsembleResult):
    """One member as a plain network, and what it costs: see :class:`MemberCost`."""

    name: Name
    batch_size: Count
    num_parameters: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetResult(EnsembleResult):
    """The mean prediction of some members, and what it costs.

    Attributes:
        members: Names of the members, in ensemble order.
        metrics: Metrics of the mean of their softmax.
        flops: FLOPs of an image; the sum over the members.
        latency_ms: Milliseconds of one image on the device of the evaluation; the sum over the members' medians.
    """

    members: tuple[Name, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetScores:
    """Values of metrics for the mean prediction of some members, and what it costs: see :class:`SubsetResult`."""

    members: tuple[str, ...]
    scores: dict[str, float]
    flops: int
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Values of the caller's own metrics that :func:`evaluate` found."""

    num_samples: int
    members: dict[str, dict[str, float]]  # each metric by name, of each member
    ensemble: dict[str, float]  # of the mean of all members' predictions
    subsets: tuple[SubsetScores, ...]  # those that Evaluation has

    def _repr_html_(self) -> str:
        every = {**self.members, "ensemble": self.ensemble}
        rows = [(name, *(f"{score:.4g}" for score in scores.values())) for name, scores in every.items()]
        return html_table([("", *self.ensemble), *rows], f"{self.num_samples:,} rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Confidence and accuracy, in the mean, of samples whose confidence lies in a range; None without any."""

    lower: Share
    upper: Share
    confidence: Share | None
    accuracy: Share | None
    count: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        num_samples: Number of images evaluated.
        members: Results of the members, in ensemble order.
        ensemble: Result of the mean of all members' softmax.
        subsets: Results of every non-empty subset, singles and the whole included; for more than ten members, of the
            singles and the running ensembles from the cheapest member up.
        diversity: Mean pairwise disagreement over the ensemble's error; None for one member or no error.
        reliability: Confidence and accuracy of the ensemble in 15 bins of confidence.
        uncertainty: Uncertainty of the ensemble; None in older results.
    """

    num_samples: Count
    members: Annotated[tuple[MemberResult, ...], Field(min_length=1, max_length=256)]
    ensemble: EnsembleResult
    subsets: Annotated[tuple[SubsetResult, ...], Field(min_length=1, max_length=2**14)]
    diversity: float | None
    reliability: Annotated[tuple[ReliabilityBin, ...], Field(min_length=1, max_length=1000)]
    uncertainty: Uncertainty | None = None

    @property
    def by_name(self) -> dict[str, MemberResult]:
        return {member.name: member for member in self.members}

    def _repr_html_(self) -> str:
        rows = [(member.name, *member.table_row(f"{member.num_parameters:,}")) for member in self.members]
        whole = ("ensemble", *self.ensemble.table_row(""))
        return html_table([("", *TABLE_HEADINGS), *rows, whole], f"{self.num_samples:,} images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Answers of networks on one split, made once and read by everything that is measured on it."""

    members: tuple[str, ...]
    probabilities: Tensor  # softmax (M, N, K), on the CPU in float32
    labels: Tensor  # (N,), on the CPU
    image: Inputs  # the first image (1, ...), or row of inputs, on the CPU

    def __post_init__(self) -> None:
        check_table(self.members, self.probabilities, self.labels)

    def of(self, names: Sequence[str]) -> Tensor:
        """The softmax (names, N, K) of some networks, in the order given.

        Example:
            >>> rows = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]])
            >>> labels, image = torch.tensor([0]), torch.zeros(1, 3)
            >>> table = Predictions(members=("a", "b"), probabilities=rows, labels=labels, image=image)
            >>> table.of(["b"])
            tensor([[[0.2000, 0.8000]]])
        """
        for name in names:
            if name not in self.members:
                raise unknown_name("member", name, self.members)
        return self.probabilities[[self.members.index(name) for name in names]]


@overload
def evaluate(ensemble: SuperWeightEnsemble, loader: Iterable[object], *, gather: bool = False) -> Evaluation: ...


@overload
def evaluate(
    ensemble: SuperWeightEnsemble, loader: Iterable[object], *, metrics: Mapping[str, Metric], gather: bool = False
) -> Scores: ...


@names_options
def evaluate(
    ensemble: SuperWeightEnsemble,
    loader: Iterable[object],
    *,
    metrics: Mapping[str, Metric] | None = None,
    gather: bool = False,
) -> Evaluation | Scores:
    """Evaluate members, ensemble and every subset of members.

    Each process evaluates its own loader by itself, also in a process group of ``torch.distributed``. With ``gather``
    all processes call it alike, each with rows of its own, and all get the result of all rows::

        processes = swe.training.distributed.current_processes()
        found = swe.evaluate(ensemble, data.loader("test", 256, shard=processes.shard), gather=True)

    Args:
        ensemble: Evaluated in eval mode with materialised members; its own mode is left as it is.
        loader: Batches of images (B, C, H, W), normalised, and labels (B,), or as :func:`superweight_ensembles.train`
            takes them.
        metrics: Metrics of torchmetrics by name, in the place of the standard ones of ``classification``; other tasks
            need them. They are not changed. Each is given the mean prediction of some members, in the shape of their
            answers (probabilities, or numbers of ``regression``), and the targets.
        gather: Whether the results of all processes of the default process group are put together. A row that several
            loaders give, as a DistributedSampler pads its parts, counts several times. Only the first process times
            the members, while the others wait.

    Returns:
        The standard metrics, or the values of ``metrics``.

    Raises:
        SuperWeightError: The loader has no samples, its batches are no (images, class indices), its labels are no
            classes of the members, or the members answer a single class or NaN; a metric that does not fit the task,
            or that is not one number; with ``gather``, a process without rows, or with other members.

    Source: Teterwak et al., WACV 2024

    Example:
        >>> import superweight_ensembles as swe
        >>> from torchmetrics import MeanAbsoluteError
        >>> members = {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)) for name in "ab"}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=1.0, task="regression")
        >>> numbers = [(torch.randn(8, 4), torch.randn(8, 1))]
        >>> list(swe.evaluate(ensemble, numbers, metrics={"mae": MeanAbsoluteError()}).ensemble)
        ['mae']
    """
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(
            f"evaluate takes a SuperWeightEnsemble, not {type(ensemble).__name__}: a predictor's curves are "
            "swe.anytime.measure_curves(predictor, ...)"
        )
    processes = current_processes() if gather else _ALONE
    if metrics is not None:
        return _scores(ensemble, loader, metrics, processes)
    if not ensemble.task.has_classes:
        raise SuperWeightError(
            f"the standard metrics need one class an image: for task {ensemble.task.name!r} give metrics= of "
            "torchmetrics by name, such as {'mae': torchmetrics.MeanAbsoluteError()}"
        )
    table = predict(ensemble, loader, processes)
    if processes.size == 1:
        return evaluate_predictions(ensemble, table)
    content = processes.on_rank_zero(lambda: as_content(evaluate_predictions(ensemble, table)))
    return adapter_of(Evaluation).validate_python(content)


@torch.no_grad()
def _scores(
    ensemble: SuperWeightEnsemble, loader: Iterable[object], metrics: Mapping[str, Metric], processes: Processes
) -> Scores:
    """Every metric of every subset, batch by batch: predictions may be maps, too large for a table."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise SuperWeightError(f"metrics must be metrics of torchmetrics by name; got {metrics!r:.80}")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise SuperWeightError(f"metric {name!r} must be a metric object of torchmetrics; got {metric!r:.80}")
        if processes.size > 1 and not all(part.sync_on_compute for part in _parts(metric)):
            raise SuperWeightError(f"metric {name!r} has sync_on_compute=False, and gather sums it over processes")
    modules = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}
    like, task = first_parameter(modules), ensemble.task
    costs: dict[str, MemberCost] = {}
    running: dict[tuple[str, ...], dict[str, Metric]] = {}
    count = 0
    for index, inputs, truth, answers in answered_batches(modules, loader, like, task):
        if not costs:
            _rows_by_process([num_rows(inputs)], loader, processes)
            costs = _costs_by_first(ensemble, rows_of(inputs, slice(0, 1)), processes)
            for names in _subsets(ensemble.member_names, costs):
                running[names] = {key: metric.clone().to(like.device) for key, metric in metrics.items()}
                for metric in running[names].values():
                    metric.reset()
                    for part in _parts(metric):  # else each sums over any process group that there is
                        part.distributed_available_fn = partial(bool, processes.size > 1)
        predicted = {name: task.predicted(answer) for name, answer in answers.items()}
        for name, own in predicted.items():
            if bool(own.isnan().any()):
                raise SuperWeightError(f"member {name!r} answers NaN to batch {index}")
        for names, held in running.items():
            mean = torch.stack([predicted[name] for name in names]).mean(0)
            for key, metric in held.items():
                with _measuring(key, mean, task):
                    metric.update(mean, task.truth(truth))
        count += num_rows(inputs)
    if not count:
        _rows_by_process([], loader, processes)
    subsets = tuple(
        SubsetScores(
            members=names,
            scores={key: _number(key, metric, task) for key, metric in held.items()},
            **_summed(costs, names),
        )
        for names, held in running.items()
    )
    found = {subset.members: subset.scores for subset in subsets}
    return Scores(
        num_samples=sum(processes.gather_objects(count)),
        members={name: found[(name,)] for name in ensemble.member_names},
        ensemble=found[ensemble.member_names],
        subsets=subsets,
    )


def _parts(metric: Metric) -> list[Metric]:
    """A metric and those that it is made of."""
    return [part for part in metric.modules() if isinstance(part, Metric)]


def _costs_by_first(ensemble: SuperWeightEnsemble, row: Inputs, processes: Processes) -> dict[str, MemberCost]:
    """What members cost, timed by the first process while the others wait."""
    costs = processes.on_rank_zero(lambda: {name: asdict(cost) for name, cost in costs_of(ensemble, row).items()})
    return {name: MemberCost(**costs[name]) for name in ensemble.member_names}


@contextmanager
def _measuring(key: str, predicted: Tensor | None, task: Task) -> Iterator[None]:
    """Name the metric in whatever it raises."""
    try:
        yield
    except Exception as error:
        given = "" if predicted is None else f", whose predictions are {tuple(predicted.shape)}"
        raise SuperWeightError(f"metric {key!r} does not fit task {task.name!r}{given}: {first_line(error)}") from error


def _number(key: str, metric: Metric, task: Task) -> float:
    with _measuring(key, None, task):
        found = metric.compute()
    if not isinstance(found, Tensor) or found.numel() != 1:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SuperWeightError(f"metric {key!r} must come to one number, as by average='macro'; got {given}")
    return float(found)


def evaluate_predictions(ensemble: SuperWeightEnsemble, table: Predictions) -> Evaluation:
    """What :func:`evaluate` finds, from predictions that were made before: members run only to be timed."""
    probabilities, labels = table.of(ensemble.member_names), table.labels
    device = first_parameter({"": ensemble}).device
    costs = costs_of(ensemble, mapped(lambda one: one.to(device), table.image))
    subsets = tuple(
        SubsetResult(
            members=names,
            metrics=probability_metrics(reduce(table.of(names), "m n k -> n k", "mean"), labels),
            **_summed(costs, names),
        )
        for names in _subsets(ensemble.member_names, costs)
    )
    found = {subset.members: subset for subset in subsets}
    whole = found[ensemble.member_names]
    mean = reduce(probabilities, "m n k -> n k", "mean")
    return Evaluation(
        num_samples=len(labels),
        members=tuple(
            MemberResult(name=name, metrics=found[(name,)].metrics, **asdict(costs[name]))
            for name in ensemble.member_names
        ),
        ensemble=EnsembleResult(flops=whole.flops, latency_ms=whole.latency_ms, metrics=whole.metrics),
        subsets=subsets,
        diversity=diversity(probabilities, labels),
        reliability=reliability(mean, labels),
        uncertainty=uncertainty(probabilities, labels),
    )


def _summed(costs: Mapping[str, MemberCost], names: tuple[str, ...]) -> dict[str, Any]:
    """What some members cost together."""
    return {what: sum(getattr(costs[name], what) for name in names) for what in ("flops", "latency_ms")}


def _subsets(names: tuple[str, ...], costs: Mapping[str, MemberCost]) -> list[tuple[str, ...]]:
    if len(names) <= MAX_EXHAUSTIVE:
        return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    cheapest = sorted(names, key=lambda name: costs[name].flops)
    running = [tuple(name for name in names if name in cheapest[:size]) for size in range(2, len(names) + 1)]
    return [(name,) for name in names] + running


def answered_batches(
    modules: Mapping[str, nn.Module],
    loader: Iterable[object],
    like: Tensor,
    task: Task,
    check_inputs: Callable[[Inputs], None] | None = None,
) -> Iterator[tuple[int, Inputs, Tensor, dict[str, Tensor]]]:
    """Run every network on every batch that has rows, on the device of ``like`` and, but for autocast, in its type."""
    dtype = None if torch.is_autocast_enabled(like.device.type) else like.dtype
    for index, batch in enumerate(checked_loader(loader)):
        pair = checked_pair(batch, dtype=dtype)
        if not num_rows(pair[0]):
            continue
        inputs, given = (mapped(lambda one: one.to(like.device), part) for part in pair)
        if check_inputs is not None:
            check_inputs(inputs)
        answers = {name: answer_of(name, module, inputs, task) for name, module in modules.items()}
        check_answers(answers, task)
        first = next(iter(answers.values()))
        targets = task.targets(given, first)
        task.check_range(targets, num_classes_in(first))
        yield index, inputs, targets, answers  # place in the loader, inputs, targets as the task has them, answers


def predict(ensemble: SuperWeightEnsemble, loader: Iterable[object], processes: Processes = _ALONE) -> Predictions:
    """Softmax of every member, materialised and in eval mode, on every sample: see :func:`predict_all`."""
    modules = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}
    return predict_all(modules, loader, first_parameter(modules), processes=processes)


@torch.no_grad()
def predict_all(
    modules: Mapping[str, nn.Module],
    loader: Iterable[object],
    like: Tensor,  # on the device of the networks, of the type of their images
    check_inputs: Callable[[Inputs], None] | None = None,  # called first with each batch's inputs, on that device
    processes: Processes = _ALONE,  # each has rows of its own
) -> Predictions:
    """Run every network, in eval mode, once on every sample; the first of several processes gets all answers."""
    parts, labels, first = [], [], None
    pairs = (checked_batch(batch) for batch in checked_loader(loader))  # refuses soft labels
    for index, inputs, truth, logits in answered_batches(modules, pairs, like, CLASSIFICATION, check_inputs):
        softmax = torch.stack([answer.float().softmax(1) for answer in logits.values()]).cpu()
        _check_numbers(tuple(modules), softmax, f"batch {index}", inputs)
        parts.append(softmax)
        labels.append(truth.cpu())
        if first is None:
            first = mapped(lambda one: one.detach().clone().cpu(), rows_of(inputs, slice(0, 1)))
    sizes = _rows_by_process([len(one) for one in labels], loader, processes)
    assert first is not None, "there are rows"
    probabilities, truth = torch.cat(parts, dim=1), torch.cat(labels)
    parts.clear()
    if processes.size > 1:
        probabilities, truth = _of_all(tuple(modules), probabilities, truth, sizes, processes)
    return Predictions(members=tuple(modules), probabilities=probabilities, labels=truth, image=first)


def _of_all(
    names: tuple[str, ...], probabilities: Tensor, labels: Tensor, sizes: Sequence[Sequence[int]], processes: Processes
) -> tuple[Tensor, Tensor]:
    """Probabilities (M, N, K) and labels (N,) of all processes, batch by batch; ``sizes`` are rows of each batch."""
    processes.assert_equal_across_ranks([names, probabilities.shape[2]], "the members and their classes")
    every, truths = processes.rows_of_all(probabilities), processes.rows_of_all(labels)
    if not processes.is_first:
        return probabilities, labels

    def in_turn(tables: Sequence[Tensor], dim: int) -> Tensor:
        batches = [table.split(list(own), dim) for table, own in zip(tables, sizes)]
        return torch.cat([batch for turn in zip_longest(*batches) for batch in turn if batch is not None], dim)

    return in_turn(every, 1), in_turn(truths, 0)


def _rows_by_process(own: Sequence[int], loader: Iterable[object], processes: Processes) -> list[list[int]]:
    """Numbers of rows in each process's batches, by rank; refused on all processes if one has no batch."""
    every: list[list[int]] = processes.gather_objects(own)
    empty = next((rank for rank, sizes in enumerate(every) if not sizes), None)
    if empty is None:
        return every
    if processes.size > 1:
        raise SuperWeightError(
            f"process {empty} of {processes.size} has no samples to evaluate: give each some, or start fewer processes"
        )
    once = "; an iterator can be read once: give a list or a DataLoader" if isinstance(loader, Iterator) else ""
    raise SuperWeightError(f"the loader has no samples{once}")


def first_images(loader: Iterable[object], count: int) -> Tensor:
    """The first images of a loader (N, ...), at most so many."""
    parts: list[Tensor] = []
    for batch in checked_loader(loader):
        images = checked_batch(batch)[0]
        if not isinstance(images, Tensor):
            raise SuperWeightError(f"this is for images, one tensor (batch, ...); got {described(images)}")
        parts.append(images)
        if sum(map(len, parts)) >= count:
            break
    if not sum(map(len, parts)):
        raise SuperWeightError("the loader has no samples")
    return torch.cat(parts)[:count]


def check_table(names: Sequence[str], probabilities: Tensor, labels: Tensor) -> None:
    """Refuse what is no softmax (M, N, K) of the named members with its labels (N,)."""
    if probabilities.ndim != 3 or len(probabilities) != len(names) or probabilities.shape[2] < 2:
        raise SuperWeightError(
            f"probabilities must be (members, samples, classes), of {len(names)} members and two classes or more; "
            f"got {tuple(probabilities.shape)}"
        )
    checked_batch((probabilities.transpose(0, 1), labels), num_classes=probabilities.shape[2])
    _check_numbers(names, probabilities, "the samples")


def _check_numbers(names: Sequence[str], softmax: Tensor, where: str, inputs: Inputs = None) -> None:
    """Refuse a softmax (M, B, K) with NaN; names the inputs where these are not finite, else the members."""
    broken = softmax.isnan().any(2)
    if not bool(broken.any()):
        return
    rows = broken.any(0).nonzero()[:, 0].tolist()
    listed = f"{', '.join(map(str, rows[:5]))}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''} of {where}"
    if not all(bool(one[rows].isfinite().all()) for one in tensors_of(inputs) if one.ndim):
        raise SuperWeightError(
            f"images hold NaN or infinite values, and so do the answers: rows {listed}; mend them or leave them out"
        )
    members = ", ".join(name for name, own in zip(names, broken) if bool(own.any()))
    raise SuperWeightError(
        f"members {members} answer NaN: rows {listed}; their weights are not finite, or too large for their type"
    )


def probability_metrics(probabilities: Tensor, labels: Tensor) -> Metrics:
    """Metrics of probabilities (N, K) for labels (N,)."""
    classes = probabilities.shape[1]
    picked = probabilities.gather(1, labels[:, None])[:, 0]
    one_hot = F.one_hot(labels, classes)
    top5 = multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro", top_k=min(5, classes))
    ece = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=NUM_BINS, norm="l1")
    return Metrics(
        accuracy=float(multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro")),
        top5_accuracy=float(top5),
        nll=float(-picked.clamp_min(torch.finfo(picked.dtype).tiny).log().mean()),
        ece=float(ece),
        brier=float((probabilities - one_hot).square().sum(1).mean()),
    )


def diversity(probabilities: Tensor, labels: Tensor) -> float | None:
    """Mean pairwise disagreement in softmax (M, N, K) over the ensemble's error; None for one member or no error.

    Source: Teterwak et al., WACV 2024
    """
    answers = probabilities.argmax(2)
    error = float((probabilities.mean(0).argmax(1) != labels).double().mean())
    pairs = list(combinations(range(len(answers)), 2))
    if not pairs or error == 0:
        return None
    return sum(float((answers[a] != answers[b]).double().mean()) for a, b in pairs) / len(pairs) / error


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[ReliabilityBin, ...]:
    """Confidence and accuracy in 15 equal bins of confidence: the bars of a reliability diagram."""
    confidence, answer = probabilities.double().max(1)
    right = (answer == labels).double()
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64, device=confidence.device)
    bin_of = torch.bucketize(confidence, edges[1:-1])

    found = []
    for index, (lower, upper) in enumerate(pairwise(edges.tolist())):
        inside = bin_of == index
        count = int(inside.sum())
        sure, accuracy = (float(values[inside].mean()) if count else None for values in (confidence, right))
        found.append(ReliabilityBin(lower=lower, upper=upper, confidence=sure, accuracy=accuracy, count=count))
    return tuple(found)
