"""When a sample leaves, and with which prediction. Shapes: M members, N or B samples, K classes.

A policy is pure data: an order of members, a confidence, a temperature and a threshold an exit. The prediction at an
exit is the mean of the members so far, which count alike or by weights of that exit.

Sources: maximum probability as in Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image
Classification*, ICLR 2018; entropy as in Teerapittayanon et al., *BranchyNet*, ICPR 2016; agreement as in Wang et al.,
*Wisdom of Committees*, ICLR 2022, with the maximum probability between equal votes; temperature of the pooled
prediction as in Rahaman and Thiery, *Uncertainty Quantification and Deep Ensembles*, NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name

TEMPERATURES = (0.01, 100.0)  # least, most; fitted ones lie well inside
MOST_THRESHOLD = 2.0  # no confidence is above 1, but for rounding
_TINY = 1e-30
_ROUNDING = 1e-6
_EM_STEPS = 500
_LOG_TEMPERATURES = (math.log(0.05), math.log(20.0))


def max_probability(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """The probability of the answer (B,)."""
    return probabilities.amax(1)


def margin(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """The probability of the answer minus that of the next best class (B,)."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return first - second


def entropy(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """One minus the entropy over that of the uniform distribution (B,)."""
    nats = -(probabilities * probabilities.clamp_min(_TINY).log()).sum(1)
    return (1 - nats / math.log(probabilities.shape[1])).clamp_min(0)  # rounding can go below 0


def agreement(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """Share of the members so far that vote for their mean's answer (B,); its probability decides equal votes."""
    assert votes is not None, "this one counts them"
    return ((votes - 1).clamp_min(0) + probabilities.amax(1)) / num_members


def label_margin(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """Distance of the probabilities of labels (B, L) from one half, mean over labels, scaled to 0 to 1: (B,)."""
    return (2 * probabilities - 1).abs().mean(1)


def place_margin(probabilities: Tensor, votes: Tensor | None, num_members: int) -> Tensor:
    """Margin at each place, of probabilities (B, K, ...), mean over places: (B,)."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return (first - second).flatten(1).mean(1)


_Measure = Callable[[Tensor, Tensor | None, int], Tensor]
CONFIDENCES: dict[str, _Measure] = {
    measure.__name__: measure for measure in (max_probability, margin, entropy, agreement)
}
# For tasks whose rows have several answers, by the task's name; no temperature makes them comparable between exits.
TASK_CONFIDENCES: dict[str, _Measure] = {"multilabel": label_margin, "segmentation": place_margin}
_EVERY = {**CONFIDENCES, **{measure.__name__: measure for measure in TASK_CONFIDENCES.values()}}


def check_confidence(name: str) -> None:
    """Refuse what is no name of :data:`CONFIDENCES` or of :data:`TASK_CONFIDENCES`."""
    if not isinstance(name, str) or name not in _EVERY:
        raise unknown_name("confidence", name, CONFIDENCES)


def confidence_of(name: str, mean: Tensor, votes: Tensor | None, num_members: int, temperature: float = 1.0) -> Tensor:
    """The confidence (B,), between 0 and 1, of a mean softmax (B, K), by a name of :data:`CONFIDENCES` or of a task.

    Example:
        >>> mean = torch.tensor([[0.7, 0.2, 0.1]])
        >>> round(float(confidence_of("margin", mean, torch.tensor([1]), 1)), 4)
        0.5
    """
    check_confidence(name)
    # Votes (B,) are for the mean's answer, which the temperature leaves as it is; agreement alone reads them.
    return _EVERY[name](tempered(mean, temperature), votes, num_members)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, K) at another temperature: softmax(log p / T)."""
    if temperature == 1:
        return probabilities
    return (probabilities.clamp_min(_TINY).log() / temperature).softmax(1)


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature, 0.05 to 20, at which probabilities (N, K) give labels (N,) the highest likelihood.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017
    """
    logarithms = probabilities.double().clamp_min(_TINY).log()

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(logarithms / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(math.exp(found.x))


def fit_weights(
    probabilities: Tensor, labels: Tensor, replaces: tuple[int | None, ...] = ()
) -> tuple[tuple[float, ...], ...]:
    """For each exit, convex weights of the members' softmax (M, N, K) so far that make the labels (N,) likeliest.

    Source: stacking, Wolpert, Neural Networks 1992; the mixture's weights by Dempster, Laird, Rubin, JRSS B 1977.

    Example:
        >>> softmax = torch.tensor([[[0.6, 0.4], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]])
        >>> fit_weights(softmax, torch.tensor([0, 1]))
        ((1.0,), (0.0, 1.0))
    """
    present: list[int] = []
    rows = []
    table = probabilities.double()
    right = table.gather(2, labels.expand(len(table), -1)[..., None])[..., 0].clamp_min(_TINY)  # (M, N)
    for index in range(len(table)):
        gone = replaces[index] if replaces else None
        present = [one for one in present if one != gone] + [index]
        own = right[present]
        equal = fitted = own.new_full((len(present),), 1 / len(present))
        for _ in range(_EM_STEPS):  # expectation maximisation, whose likelihood has one maximum
            fitted = fitted * (own / (fitted @ own)).mean(1)
        fitted = torch.where(fitted < _ROUNDING, 0, fitted)
        fitted = fitted / fitted.sum()
        choices = [fitted, equal, *torch.eye(len(present), dtype=own.dtype, device=own.device)]
        means = [torch.einsum("m,mnk->nk", weights, table[present]) for weights in choices]
        accuracies = [float((mean.argmax(1) == labels).double().mean()) for mean in means]
        # The likeliest weights may be less accurate than the best member: then the most accurate choice is taken.
        best = 0 if accuracies[0] >= max(accuracies[2:]) else accuracies.index(max(accuracies))
        row = dict(zip(present, choices[best].tolist()))
        rows.append(tuple(row.get(one, 0.0) for one in range(index + 1)))
    return tuple(rows)


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPolicy:
    """After each member, samples that are sure enough leave with the mean prediction of the members so far.

    Attributes:
        order: Names of the members, in the order in which they run; exit e is after member e.
        confidence: Measure of confidence: ``max_probability``, ``margin``, ``entropy`` or ``agreement``; for the task
            ``multilabel`` ``label_margin``, for ``segmentation`` ``place_margin``.
        temperatures: Temperature of each exit, 0.01 to 100; the logarithm of the mean is divided by it before the
            confidence is taken.
        thresholds: Threshold of each exit but the last, where all samples that are left leave. A sample leaves where
            its confidence is at least the threshold, 0 to 2 or infinity: at 0 all samples leave whose confidence is a
            number, at infinity none.
        monotone: Whether a sample keeps an earlier prediction that was surer than the later one, or the only one
            without NaN.
        replaces: For each exit, the index of the earlier exit whose answer it replaces in the mean, or None; empty
            where no exit replaces another.
        weights: For each exit, the weight of every member so far in the mean: 0 or more, 1 together, and 0 for a member
            that was replaced; empty where all count alike.

    Raises:
        SuperWeightError: No member or one twice, an unknown confidence, numbers missing or out of range.

    Example:
        >>> ExitPolicy(order=("a", "b"), confidence="margin", temperatures=(1.0, 1.0), thresholds=(0.9,)).thresholds
        (0.9,)
    """

    order: tuple[str, ...]
    confidence: str = "margin"
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    monotone: bool = False
    replaces: tuple[int | None, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        """Take lists and any type of number, and refuse what is no policy; files are checked here too."""
        for name in ("order", "temperatures", "thresholds", "replaces"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "weights", tuple(map(tuple, self.weights)))
        exits, names = len(self.order), all(isinstance(name, str) for name in self.order)
        if not exits or not names or len(set(self.order)) < exits:
            raise SuperWeightError(f"order must name at least one member, and each once; got {list(self.order)!r:.200}")
        check_confidence(self.confidence)
        if not isinstance(self.monotone, bool):
            raise SuperWeightError(f"monotone must be bool; got {self.monotone!r:.80}")
        for what, count in (("temperatures", exits), ("thresholds", exits - 1)):
            values = getattr(self, what)
            if len(values) != count:
                raise SuperWeightError(f"{exits} members need {count} {what}; got {len(values)}")
            if not all(map(_is_number, values)):
                raise SuperWeightError(f"{what} must be numbers; got {list(values)!r:.80}")
        least, most = TEMPERATURES
        if any(not least <= value <= most for value in self.temperatures):
            raise SuperWeightError(f"temperatures must be {least:g} to {most:g}; got {list(self.temperatures)!r:.80}")
        if any(not (0 <= value <= MOST_THRESHOLD or value == math.inf) for value in self.thresholds):
            raise SuperWeightError(
                f"thresholds must be 0 to {MOST_THRESHOLD:g}, or infinity where none leaves; got "
                f"{list(self.thresholds)!r:.80}"
            )
        if self.replaces and not _are_earlier(self.replaces, exits):
            raise SuperWeightError(
                f"replaces must name for each of {exits} exits an earlier one, each once, or none; got "
                f"{list(self.replaces)!r:.80}"
            )
        if self.weights and not _are_weights(self.weights, self.replaces or (None,) * exits):
            raise SuperWeightError(
                "weights must give each exit one number of 0 or more for every member so far, 1 together, and 0 for "
                f"those that were replaced; got {self.weights!r:.80}"
            )
        for name in ("temperatures", "thresholds"):  # JSON takes no other numbers
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "weights", tuple(tuple(map(float, row)) for row in self.weights))

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON data: an infinite threshold is null; empty ``replaces`` and ``weights`` are left out."""
        content = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        content["thresholds"] = [value if value < math.inf else None for value in self.thresholds]
        content["weights"] = [list(row) for row in self.weights]
        return {key: value for key, value in content.items() if value or key not in ("replaces", "weights")}

    @classmethod
    def from_dict(cls, content: Any, where: str = "policy") -> ExitPolicy:
        """Read what :meth:`to_dict` made.

        Raises:
            SuperWeightError: Anything else; names the field.
        """
        if not isinstance(content, dict):
            raise SuperWeightError(f"{where} must be an object; got {type(content).__name__}")
        known = [field.name for field in fields(cls)]
        for key in content:
            if key not in known:
                raise SuperWeightError(f"{where}: {unknown_name('key', str(key), known)}")
        content = {"replaces": [], "weights": [], **content}
        for key in known:
            if key not in content:
                raise SuperWeightError(f"{where}: {key} is missing")
            if key not in ("confidence", "monotone") and not isinstance(content[key], list):
                raise SuperWeightError(f"{where}: {key} must be a list; got {content[key]!r:.80}")
        if not all(isinstance(row, list) for row in content["weights"]):
            raise SuperWeightError(f"{where}: weights must be a list of lists; got {content['weights']!r:.80}")
        if math.inf in content["thresholds"]:
            raise SuperWeightError(f"{where}: thresholds must be finite, or null where none leaves; got infinity")
        thresholds = [math.inf if value is None else value for value in content["thresholds"]]
        try:
            return cls(**{**content, "thresholds": thresholds})
        except SuperWeightError as error:
            raise SuperWeightError(f"{where}: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_earlier(replaces: Sequence[int | None], exits: int) -> bool:
    """Whether each exit has an earlier one, each once, or None."""
    replaced = [value for value in replaces if value is not None]
    earlier = all(value is None or (type(value) is int and 0 <= value < index) for index, value in enumerate(replaces))
    return earlier and len(replaces) == exits and len(set(replaced)) == len(replaced)


def _are_weights(rows: Sequence[Sequence[float]], replaces: Sequence[int | None]) -> bool:
    """Whether each exit has a convex weight for every exit so far that is in the mean, and 0 for those that are not."""
    if [len(row) for row in rows] != list(range(1, len(replaces) + 1)):
        return False
    for index, row in enumerate(rows):
        if not all(_is_number(value) and 0 <= value <= 1 for value in row):
            return False
        gone = [one for one in replaces[: index + 1] if one is not None]
        if abs(sum(row) - 1) > _ROUNDING or any(row[one] for one in gone):
            return False
    return True


def replaced_exits(order: Sequence[str], version_of: Mapping[str, str]) -> tuple[int | None, ...]:
    """For each exit, the index of the last one that was a version of the same network, or None; empty where none was.

    Example:
        >>> replaced_exits(("a@25%", "b", "a@50%", "a"), {"a@25%": "a", "a@50%": "a"})
        (None, None, 0, 2)
        >>> replaced_exits(("a", "b"), {})
        ()
    """
    latest: dict[str, int] = {}
    found: list[int | None] = []
    for index, name in enumerate(order):
        network = version_of.get(name, name)
        found.append(latest.get(network))
        latest[network] = index
    return tuple(found) if len(latest) < len(found) else ()


@dataclass(slots=True)
class RunningMean:
    """The mean prediction (B, K) of the members so far, for the samples that are left."""

    replaces: tuple[int | None, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    num_run: int = 0  # members, replaced ones among them
    total: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))  # weighted sum of the members' softmax
    parts: dict[int, Tensor] = field(default_factory=dict)  # softmax of each member in the mean, by exit
    surest: tuple[Tensor, Tensor] | None = None  # with a monotone policy: the surest prediction, its confidence

    @property
    def mean(self) -> Tensor:
        """Mean softmax (B, K)."""
        return self.total if self.weights else self.total / len(self.parts)

    def add(self, probabilities: Tensor) -> None:
        """Add the softmax (B, K) of one more member."""
        replaced = self.replaces[self.num_run] if self.replaces else None
        if replaced is not None:
            del self.parts[replaced]
        self.parts[self.num_run] = probabilities
        if self.replaces or self.weights:
            row = self.weights[self.num_run] if self.weights else ()
            # Summed anew, so that NaN leaves with a replaced part; a part of weight 0 keeps its NaN, as 0 x NaN is NaN.
            weighed = [row[index] * part if row else part for index, part in self.parts.items()]
            self.total = torch.stack(weighed).sum(0)
        else:
            self.total = self.total + probabilities if self.num_run else probabilities
        self.num_run += 1

    def at_exit(self, policy: ExitPolicy | None, measure: str = margin.__name__) -> tuple[Tensor, Tensor]:
        """Prediction (B, K) and confidence (B,) of samples that leave now; by ``measure`` without a policy."""
        mean, count = self.mean, len(self.parts)
        if policy is None:
            return mean, confidence_of(measure, mean, None, count)
        votes = None
        if policy.confidence == agreement.__name__:
            votes = torch.stack([part.argmax(1) == mean.argmax(1) for part in self.parts.values()]).sum(0)
        confidence = confidence_of(policy.confidence, mean, votes, count, policy.temperatures[self.num_run - 1])
        if not policy.monotone:
            return mean, confidence
        if self.surest is not None:
            earlier = ~(confidence >= self.surest[1]) & ~self.surest[1].isnan()
            mean = torch.where(earlier.view(-1, *[1] * (mean.ndim - 1)), self.surest[0], mean)
            confidence = torch.where(earlier, self.surest[1], confidence)
        self.surest = (mean, confidence)
        return self.surest

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples alone."""
        self.total = self.total[rows]
        self.parts = {index: part[rows] for index, part in self.parts.items()}
        if self.surest is not None:
            self.surest = (self.surest[0][rows], self.surest[1][rows])


def running_means(
    probabilities: Tensor, replaces: tuple[int | None, ...] = (), weights: tuple[tuple[float, ...], ...] = ()
) -> Tensor:
    """The mean softmax (M, N, K) of the members so far, after each of them."""
    return torch.stack([running.mean for running in _run_on(probabilities, RunningMean(replaces, weights))])


def exits_of(probabilities: Tensor, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
    """The prediction (M, N, K) and its confidence (M, N) at every exit of a policy, whatever its thresholds are."""
    running = RunningMean(policy.replaces, policy.weights)
    predictions, confidences = zip(*(each.at_exit(policy) for each in _run_on(probabilities, running)))
    return torch.stack(predictions), torch.stack(confidences)


def _run_on(probabilities: Tensor, running: RunningMean) -> Iterator[RunningMean]:
    """The same running mean, after each of the members (M, N, K) is added."""
    for member in probabilities:
        running.add(member)
        yield running
