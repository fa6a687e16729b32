"""When a sample may leave: an order of members and one threshold an exit. Pure data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError, unknown_name

# FOLDED anytime.confidence: How sure a running prediction is, between 0 and 1. Shapes: B batch, K classes.
#
# Sources: maximum probability as in Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image
# Classification*, ICLR 2018; entropy as in Teerapittayanon et al., *BranchyNet*, ICPR 2016; agreement as in Wang et
# al.,
# *Wisdom of Committees*, ICLR 2022, with the maximum probability between equal votes; temperature of the pooled
# prediction as in Rahaman and Thiery, *Uncertainty Quantification and Deep Ensembles*, NeurIPS 2021.

_TINY = 1e-30
_LOG_TEMPERATURES = (math.log(0.05), math.log(20.0))


def max_probability(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """The probability of the answer (B,)."""
    return probabilities.amax(1)


def margin(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """The probability of the answer minus that of the next best class (B,)."""
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def entropy(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """One minus the entropy over that of the uniform distribution (B,)."""
    nats = -(probabilities * probabilities.clamp_min(_TINY).log()).sum(1)
    return (1 - nats / math.log(probabilities.shape[1])).clamp_min(0)  # rounding can take uniform ones below


def agreement(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """Votes of the members so far for their mean's answer, the probability of the answer between equal votes (B,)."""
    return ((votes - 1).clamp_min(0) + probabilities.amax(1)) / num_members


CONFIDENCES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "max_probability": max_probability,
    "margin": margin,
    "entropy": entropy,
    "agreement": agreement,
}


def confidence_of(name: str, mean: Tensor, votes: Tensor, num_members: int, temperature: float = 1.0) -> Tensor:
    """The confidence (B,) of a running mean.

    Args:
        name: Of :data:`CONFIDENCES`.
        mean: Mean softmax (B, K) of the members so far.
        votes: How many of them answer what their mean answers (B,).
        num_members: Members so far.
        temperature: The logarithm of the mean is divided by it first; the answer stays the same.

    Raises:
        SuperWeightError: An unknown name.

    Example:
        >>> mean = torch.tensor([[0.7, 0.2, 0.1]])
        >>> round(float(confidence_of("margin", mean, torch.tensor([1]), 1)), 4)
        0.5
    """
    if name not in CONFIDENCES:
        raise unknown_name("confidence", name, CONFIDENCES)
    return CONFIDENCES[name](tempered(mean, temperature), votes, num_members)


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
        return float(torch.nn.functional.cross_entropy(logarithms / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(math.exp(found.x))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPolicy:
    """After each member, samples that are sure enough leave with the mean prediction of the members so far.

    Attributes:
        order: Members, in the order in which they run; exit e is after member e.
        confidence: How sure a prediction is: a name of :data:`CONFIDENCES`.
        temperatures: Of each exit; the logarithm of the mean is divided by it before the confidence is taken.
        thresholds: Of each exit but the last, where all that are left leave. A sample leaves where its confidence is at
            least the threshold: 0 lets all leave, infinity none.
        monotone: Whether a sample keeps an earlier prediction that was surer than the later one.
        replaces: Of each exit, the earlier exit whose answer its own takes the place of in the mean, or None; empty
            where none does (:func:`replaced_exits`).

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

    def __post_init__(self) -> None:
        listed = ("order", "temperatures", "thresholds", "replaces")
        for name in listed:  # lists are taken too; tuples compare and hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.order or len(set(self.order)) < len(self.order):
            raise SuperWeightError(f"order must name at least one member, and each once; got {list(self.order)}")
        if self.confidence not in CONFIDENCES:
            raise unknown_name("confidence", self.confidence, CONFIDENCES)
        exits = len(self.order)
        for what, values, count in (
            ("temperatures", self.temperatures, exits),
            ("thresholds", self.thresholds, exits - 1),
        ):
            if len(values) != count:
                raise SuperWeightError(f"{exits} members need {count} {what}; got {len(values)}")
        if any(not (0 < value < math.inf) for value in self.temperatures):
            raise SuperWeightError(f"temperatures must be positive and finite; got {list(self.temperatures)}")
        if any(not value >= 0 for value in self.thresholds):
            raise SuperWeightError(f"thresholds must be at least 0; got {list(self.thresholds)}")
        taken = [value for value in self.replaces if value is not None]
        earlier = all(value is None or value in range(index) for index, value in enumerate(self.replaces))
        if len(self.replaces) not in (0, exits) or not earlier or len(set(taken)) < len(taken):
            raise SuperWeightError(
                f"replaces must name for each of {exits} exits an earlier one, each once, or none; got "
                f"{list(self.replaces)!r:.80}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: a threshold that none passes is null."""
        content = asdict(self)
        content["order"], content["temperatures"] = list(self.order), list(self.temperatures)
        content["thresholds"] = [value if value < math.inf else None for value in self.thresholds]
        if not content.pop("replaces"):
            return content
        return {**content, "replaces": list(self.replaces)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "policy") -> ExitPolicy:
        """Read what :meth:`to_dict` made.

        Raises:
            SuperWeightError: Anything else; names the field.
        """
        if not isinstance(content, dict):
            raise SuperWeightError(f"{where} must be an object; got {type(content).__name__}")
        known = set(cls.__dataclass_fields__)
        for key in content:
            if key not in known:
                raise SuperWeightError(f"{where}: {unknown_name('key', str(key), known)}")

        def listed(key: str, kinds: tuple[type, ...]) -> list[Any]:
            values = content.get(key)
            if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, kinds) for v in values):
                raise SuperWeightError(f"{where}: {key} must be a list of {kinds[0].__name__}; got {values!r:.80}")
            return values

        for key, kind in (("confidence", str), ("monotone", bool)):
            if not isinstance(content.get(key), kind):
                raise SuperWeightError(f"{where}: {key} must be {kind.__name__}; got {content.get(key)!r:.80}")
        try:
            return cls(
                order=tuple(listed("order", (str,))),
                confidence=content["confidence"],
                temperatures=tuple(float(value) for value in listed("temperatures", (float, int))),
                thresholds=tuple(
                    math.inf if value is None else float(value)
                    for value in listed("thresholds", (float, int, type(None)))
                ),
                monotone=content["monotone"],
                replaces=tuple(listed("replaces", (int, type(None)))) if "replaces" in content else (),
            )
        except OverflowError:
            raise SuperWeightError(f"{where}: temperatures and thresholds must be numbers that a float holds") from None
        except SuperWeightError as error:
            raise error if str(error).startswith(where) else SuperWeightError(f"{where}: {error}") from None


def replaced_exits(order: Sequence[str], version_of: Mapping[str, str]) -> tuple[int | None, ...]:
    """Which earlier exit each exit takes the place of: the last one that was a version of the same network.

    Args:
        order: Names of the exits.
        version_of: The network that an exit is a version of, by name; others are of their own.

    Returns:
        Of each exit, an index or None; empty where no exit takes the place of another.

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


# FOLDED anytime.running: The mean prediction of the members so far, sample by sample. Shapes: M members, N or B
# samples, K classes.


@dataclass(slots=True)
class Running:
    """What is known of the samples that are still in the running, after some members.

    Attributes:
        total: Sum of the softmax (B, K) of the members in the mean.
        answers: The class that each of them answers (members in the mean, B).
        num_run: Members so far, those that others took the place of too.
        replaces: Of every exit, the earlier one that it takes the place of; empty where none does.
        parts: Softmax (B, K) of the members in the mean by their exits, as ``answers``; only where some are replaced.
        kept: With ``monotone``: the prediction (B, K) that stands, and its confidence (B,).
    """

    total: Tensor
    answers: Tensor
    num_run: int = 1
    replaces: tuple[int | None, ...] = ()
    parts: dict[int, Tensor] = field(default_factory=dict)
    kept: tuple[Tensor, Tensor] | None = None

    def add(self, probabilities: Tensor) -> None:
        """Add one member's softmax (B, K)."""
        answers = self.answers
        replaced = self.replaces[self.num_run] if self.replaces else None
        if replaced is not None:
            rows = [row for row, index in enumerate(self.parts) if index != replaced]
            self.total, answers = self.total - self.parts.pop(replaced), answers[rows]
        self.total = self.total + probabilities
        self.answers = torch.cat([answers, probabilities.argmax(1)[None]])
        if self.replaces:
            self.parts[self.num_run] = probabilities
        self.num_run += 1

    @property
    def mean(self) -> Tensor:
        """Mean softmax (B, K)."""
        return self.total / len(self.answers)

    def keep(self, rows: Tensor) -> Running:
        """Of these samples alone."""
        kept = None if self.kept is None else (self.kept[0][rows], self.kept[1][rows])
        parts = {index: part[rows] for index, part in self.parts.items()}
        return Running(self.total[rows], self.answers[:, rows], self.num_run, self.replaces, parts, kept)

    def judge(self, confidence: str, temperature: float, monotone: bool) -> tuple[Tensor, Tensor]:
        """The prediction (B, K) that stands now, and how sure it is (B,)."""
        mean = self.mean
        votes = (self.answers == mean.argmax(1)).sum(0)
        sure = confidence_of(confidence, mean, votes, len(self.answers), temperature)
        if not monotone:
            return mean, sure
        if self.kept is not None:
            earlier = self.kept[1] > sure
            mean = torch.where(earlier[:, None], self.kept[0], mean)
            sure = torch.where(earlier, self.kept[1], sure)
        self.kept = (mean, sure)
        return mean, sure


def advance(running: Running | None, probabilities: Tensor, replaces: tuple[int | None, ...] = ()) -> Running:
    """After one more member's softmax (B, K); the first where nothing is running."""
    if running is None:
        parts = {0: probabilities} if replaces else {}
        return Running(probabilities, probabilities.argmax(1)[None], replaces=replaces, parts=parts)
    running.add(probabilities)
    return running


def run_member(
    module: nn.Module, images: Tensor, running: Running | None, replaces: tuple[int | None, ...] = ()
) -> Running:
    """Run one more member on the images (B, ...) that are left."""
    return advance(running, module(images).float().softmax(1), replaces)


def means_of(probabilities: Tensor, replaces: tuple[int | None, ...] = ()) -> Tensor:
    """The mean softmax (M, N, K) of the members so far, after each of them."""
    means = []
    running: Running | None = None
    for member in probabilities:
        running = advance(running, member, replaces)
        means.append(running.mean)
    return torch.stack(means)


def exits_of(
    probabilities: Tensor,
    confidence: str,
    temperatures: tuple[float, ...],
    monotone: bool,
    replaces: tuple[int | None, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Every exit of every sample.

    Args:
        probabilities: Softmax (M, N, K) of the members in their order.
        confidence: A name of :data:`CONFIDENCES`.
        temperatures: Of each exit.
        monotone: Whether an earlier, surer prediction stands.
        replaces: Of each exit, the earlier one that it takes the place of in the mean; empty where none does.

    Returns:
        The prediction (M, N, K) and its confidence (M, N) after each member.
    """
    predictions, sure = [], []
    running: Running | None = None
    for member, temperature in zip(probabilities, temperatures):
        running = advance(running, member, replaces)
        prediction, confident = running.judge(confidence, temperature, monotone)
        predictions.append(prediction)
        sure.append(confident)
    return torch.stack(predictions), torch.stack(sure)
