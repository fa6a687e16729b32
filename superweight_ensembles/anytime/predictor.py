"""Predictions at any compute budget, by members that are not run. Shapes: M members, B batch, K classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.calibration import Calibration, check_samples, describe, fit_policy
from superweight_ensembles.anytime.cascade import AnytimeAnswer, LatencyTable, run_cascade, run_within_budget
from superweight_ensembles.anytime.costs import count_flops
from superweight_ensembles.anytime.evaluation import Predictions, predict_all
from superweight_ensembles.anytime.policy import CONFIDENCES, ExitPolicy, replaced_exits, run_member
from superweight_ensembles.data import checked_batch
from superweight_ensembles.ensemble import SuperWeightEnsemble, check_logits, write_ensemble
from superweight_ensembles.errors import SuperWeightError, naming, unknown_name
from superweight_ensembles.models import VERSION_OF
from superweight_ensembles.plan import Members, named_members
from superweight_ensembles.storage import check_manifest, list_file, read_json, write_json

# FOLDED anytime.inputs: Images that members take, and what one costs them.


def check_images(
    images: Tensor, input_shape: tuple[int, ...] | None, like: Tensor, integers: bool | None = None
) -> None:
    """Refuse what the members cannot take.

    Args:
        images: (B, ...).
        input_shape: Of one image, where it is known.
        like: A tensor of the members' device and type.
        integers: Whether the members take integers (tokens), where it is known.

    Raises:
        SuperWeightError: No tensor, an empty batch, another shape, device or type.
    """
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise SuperWeightError(f"images must be a tensor (batch, ...) of at least one; got {shape}")
    if input_shape is not None and tuple(images.shape[1:]) != input_shape:
        wanted = ", ".join(str(size) for size in input_shape)
        raise SuperWeightError(f"images must be (batch, {wanted}); got {tuple(images.shape)}")
    if images.device != like.device:
        raise SuperWeightError(f"the images are on {images.device}, the members on {like.device}: move one of them")
    floating = images.is_floating_point()
    if integers is not None and floating == integers:
        wanted = "integers" if integers else str(like.dtype)
        raise SuperWeightError(f"the images are {images.dtype}, the members take {wanted}: convert the images")
    if floating and images.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise SuperWeightError(f"the images are {images.dtype}, the members {like.dtype}: convert one of them")


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image.

    Raises:
        SuperWeightError: No list of positive integers.
    """
    if not isinstance(shape, Sequence) or not shape or any(not _is_count(size) for size in shape):
        raise SuperWeightError(f"input_shape must list the sizes of one image, such as (3, 32, 32); got {shape!r:.80}")
    return tuple(shape)


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of images.

    Raises:
        SuperWeightError: No integer of at least 1.
    """
    if not _is_count(batch_size):
        raise SuperWeightError(f"batch_size must be an integer of at least 1; got {batch_size!r:.80}")


def check_amount(what: str, amount: float, unit: str) -> None:
    """Refuse a budget that is none.

    Raises:
        SuperWeightError: No positive, finite number.
    """
    real = isinstance(amount, Real) and not isinstance(amount, bool)
    if not (real and math.isfinite(amount) and amount > 0):
        raise SuperWeightError(f"{what} must be a positive number of {unit}; got {amount!r:.80}")


def check_drop(drop: float) -> None:
    """Refuse what is no drop of an accuracy.

    Raises:
        SuperWeightError: No number from 0 to below 1.
    """
    if isinstance(drop, bool) or not isinstance(drop, Real) or not 0 <= drop < 1:
        raise SuperWeightError(f"max_accuracy_drop must be from 0 to below 1 (0.002: 0.2 points); got {drop!r:.80}")


@torch.inference_mode()
def flops_of(modules: Mapping[str, nn.Module], image: Tensor) -> dict[str, int]:
    """FLOPs of each member for one image (1, ...).

    Raises:
        SuperWeightError: A member cannot take it (says what it said); answers that are no logits of the same classes,
            two at least.
    """
    flops, logits = {}, {}
    for name, module in modules.items():
        try:
            flops[name], logits[name] = count_flops(module, image), module(image)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise SuperWeightError(
                f"member {name!r} cannot take images {tuple(image.shape)} of {image.dtype}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}"
            ) from None
    check_logits(logits)
    name, answer = next(iter(logits.items()))
    if answer.shape[1] < 2:
        raise SuperWeightError(f"members must answer logits of two classes or more; {name!r} answers one")
    return flops


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# FOLDED anytime.ordering: In which order members run. Shapes: M members, N samples, K classes.

ORDERS = ("cost", "greedy")


def order_by_cost(flops: Mapping[str, int]) -> tuple[str, ...]:
    """Cheapest first; equal ones as they were given.

    Example:
        >>> order_by_cost({"a": 3, "b": 1, "c": 3})
        ('b', 'a', 'c')
    """
    return tuple(sorted(flops, key=lambda name: flops[name]))


def order_greedily(
    names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
    version_of: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Each time the member that adds most accuracy a FLOP to the mean of those before it.

    Args:
        names: Of the members.
        probabilities: Their softmax (M, N, K) on held-out samples.
        labels: (N,).
        flops: An image, of each.
        version_of: The network that a member is a version of: a dearer version takes the place of a cheaper one, and
            a cheaper one has no place after it. None where each is its own.

    Returns:
        Names; the first is the one with most accuracy above chance a FLOP.
    """
    network = {name: (version_of or {}).get(name, name) for name in names}
    left = {name: probabilities[index] for index, name in enumerate(names)}
    nothing = probabilities.new_zeros(probabilities.shape[1:])
    total, accuracy = nothing, 1 / probabilities.shape[2]
    held: dict[str, Tensor] = {}
    order: list[str] = []
    while left:
        totals = {name: total - held.get(network[name], nothing) + own for name, own in left.items()}
        found = {name: float((added.argmax(1) == labels).double().mean()) - accuracy for name, added in totals.items()}
        # A loss is counted in full, not a FLOP: else the costliest member would be the least bad.
        best = max(found, key=lambda name: found[name] / max(flops[name], 1) if found[name] > 0 else found[name])
        order.append(best)
        total, accuracy = totals[best], accuracy + found[best]
        held[network[best]] = left[best]
        left = {
            name: own
            for name, own in left.items()
            if name != best and (network[name] != network[best] or flops[name] > flops[best])
        }
    return tuple(order)


def checked_order(order: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """An explicit order; it may leave members out.

    Raises:
        SuperWeightError: No sequence of names, no member, an unknown one, or one twice.
    """
    if not isinstance(order, Sequence):
        raise SuperWeightError(f"order must be {' or '.join(map(repr, ORDERS))}, or a list of names; got {order!r:.80}")
    for name in order:
        if name not in names:
            raise unknown_name("member", name, names)
    if not order or len(set(order)) < len(order):
        raise SuperWeightError(f"order must name at least one member, and each once; got {list(order)}")
    return tuple(order)


# FOLDED anytime.saving: A predictor as a folder: a saved ensemble, and anytime.json beside it.

ANYTIME_FORMAT = 1
ANYTIME_FILE = "anytime.json"
_KEYS = ("format", "order", "input_shape", "policy")
_MOST_NUMBERS = 2**26  # a damaged file must not fill the memory with one image


def write_predictor(
    ensemble: SuperWeightEnsemble,
    folder: Path,
    order: Sequence[str],
    input_shape: Sequence[int],
    policy: ExitPolicy | None,
) -> None:
    """Write the ensemble's folder with order and policy in it, as a whole or not at all."""
    write_ensemble(
        ensemble,
        ensemble.plan,
        dict(ensemble.members.items()),
        folder,
        beside=lambda draft: _write_policy(draft, order, input_shape, policy),
    )


def write_policy(folder: Path, order: Sequence[str], input_shape: Sequence[int], policy: ExitPolicy | None) -> None:
    """Write anytime.json into the folder of a saved ensemble, and into its manifest."""
    _write_policy(folder, order, input_shape, policy)
    list_file(folder, ANYTIME_FILE)


def _write_policy(folder: Path, order: Sequence[str], input_shape: Sequence[int], policy: ExitPolicy | None) -> None:
    write_json(
        folder / ANYTIME_FILE,
        {
            "format": ANYTIME_FORMAT,
            "order": list(order),
            "input_shape": list(input_shape),
            "policy": None if policy is None else policy.to_dict(),
        },
    )


def read_predictor(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...], ExitPolicy | None]:
    """Order, input shape and policy of a saved predictor.

    Raises:
        SuperWeightError: The file is missing, damaged or of another format.
    """
    path = folder / ANYTIME_FILE
    if not path.is_file():
        raise SuperWeightError(f"{path} is missing: {folder} is no saved predictor (AnytimePredictor.save writes one)")
    check_manifest(folder, [ANYTIME_FILE])
    content = read_json(path)
    if isinstance(content.get("format"), bool) or content.get("format") != ANYTIME_FORMAT:
        raise SuperWeightError(f"{path} has format {content.get('format')!r:.80}; this version reads {ANYTIME_FORMAT}")
    for key in content:
        if key not in _KEYS:
            raise SuperWeightError(f"{path}: {unknown_name('key', key, _KEYS)}")
    for key in _KEYS:
        if key not in content:
            raise SuperWeightError(f"{path}: {key} is missing")
    order, shape, policy = content["order"], content["input_shape"], content["policy"]
    if not isinstance(order, list) or not order or any(not isinstance(name, str) for name in order):
        raise SuperWeightError(f"{path}: order must be a list of member names; got {order!r:.80}")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape)
        or math.prod(shape) > _MOST_NUMBERS
    ):
        raise SuperWeightError(
            f"{path}: input_shape must list 1 to 8 sizes of at most {_MOST_NUMBERS:,} numbers in all; got {shape!r:.80}"
        )
    return tuple(order), tuple(shape), None if policy is None else ExitPolicy.from_dict(policy, f"{path}: policy")


Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStep:
    """What is known after one more member.

    Attributes:
        member: That ran last.
        members_used: So far.
        flops: An image, of all members so far.
        probabilities: Mean softmax (B, K) of the members so far.
    """

    member: str
    members_used: int
    flops: int
    probabilities: Tensor


class AnytimePredictor:
    """Members as plain networks in eval mode, run one after the other until a caller, a clock or a threshold stops.

    Answers are means over the members so far. A module whose attribute ``version_of`` is another's name, as
    :func:`truncated_exits` gives it to truncations, is a version of that network: of several versions that have run,
    the last one alone is in the mean.

    Args:
        ensemble: Materialised here; later training of it is not seen. Or plain networks by name, which are copied.
        order: ``cost`` (FLOPs, cheapest first; the default), ``greedy`` (most accuracy a FLOP first, on ``loader``), or
            names; names may leave members out.
        loader: Held-out (images, labels), or the members' predictions on them, for ``greedy``.
        input_shape: Of one image, such as (3, 32, 32). Where None, the first images tell, and every member runs once
            on one of them for its FLOPs.

    Attributes:
        modules: The plain networks by name, in order once that is known.
        policy: When samples leave, once calibrated.
        calibration: What the policy does to the samples that it was fitted on; None for a loaded policy.

    Raises:
        SuperWeightError: No member, an unknown order or member, ``greedy`` without a loader.

    Example:
        >>> members = {"small": nn.Linear(4, 3), "large": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))}
        >>> predictor = AnytimePredictor(members, input_shape=(4,))
        >>> [(step.member, step.flops) for step in predictor.stream(torch.zeros(2, 4))]
        [('small', 24), ('large', 136)]
    """

    def __init__(
        self,
        ensemble: SuperWeightEnsemble | Members,
        order: str | Sequence[str] | None = None,
        *,
        loader: Loader | Predictions | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self._ensemble = ensemble if isinstance(ensemble, SuperWeightEnsemble) else None
        members = {} if isinstance(ensemble, SuperWeightEnsemble) else named_members(ensemble)
        names = tuple(members) if self._ensemble is None else self._ensemble.member_names
        self._order = order if isinstance(order, str) or order is None else checked_order(order, names)
        if isinstance(self._order, str) and self._order not in ORDERS:
            raise unknown_name("order", self._order, ORDERS)
        if self._order == "greedy" and loader is None:
            raise SuperWeightError("order 'greedy' needs loader=, held-out (images, labels) to choose on")
        if self._order != "greedy" and loader is not None:
            raise SuperWeightError("loader= is for order='greedy'; calibrate(loader, ...) fits thresholds")
        self.modules: dict[str, nn.Module] = {}
        for name in self._order if isinstance(self._order, tuple) else names:
            module = copy.deepcopy(members[name]) if self._ensemble is None else self._ensemble.materialize(name)
            self.modules[name] = module.eval().requires_grad_(False)
        marked = {name: getattr(module, VERSION_OF, name) for name, module in self.modules.items()}
        self._version_of = {name: network for name, network in marked.items() if network != name}
        self.policy: ExitPolicy | None = None
        self.calibration: Calibration | None = None
        self._flops: dict[str, int] | None = None
        self._latencies: LatencyTable | None = None
        self._integers: torch.dtype | None = None
        self._input_shape: tuple[int, ...] | None = None
        if input_shape is not None:
            self._measure_shape(check_shape(input_shape))
        if loader is not None:
            table = self.predict(loader)
            names = tuple(self.modules)
            self._set_order(order_greedily(names, table.of(names), table.labels, self.flops, self._version_of))

    @property
    def order(self) -> tuple[str, ...]:
        """Members in the order in which they run.

        Raises:
            SuperWeightError: Not known before the first images, as neither names nor ``input_shape`` were given.
        """
        if not isinstance(self._order, tuple):
            self._check_measured()
        return tuple(self.modules)

    @property
    def flops(self) -> dict[str, int]:
        """An image, of each member alone, in order.

        Raises:
            SuperWeightError: Not known before the first images, as no ``input_shape`` was given.
        """
        self._check_measured()
        assert self._flops is not None
        return dict(self._flops)

    @property
    def replaces(self) -> tuple[int | None, ...]:
        """Of each exit, the earlier one that it takes the place of in the mean; empty where none does."""
        return replaced_exits(tuple(self.modules), self._version_of)

    @property
    def version_of(self) -> dict[str, str]:
        """The network that each exit is a version of, where it is not its own."""
        return dict(self._version_of)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Of one image; None before the first."""
        return self._input_shape

    @property
    def device(self) -> torch.device:
        """Where the members are, and images must be."""
        return self._like.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AnytimePredictor:
        """Move the members; latencies are measured anew."""
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        self._latencies = None
        return self

    def stream(self, images: Tensor) -> Iterator[ExitStep]:
        """Run members one by one; a member is not run before it is asked for.

        Args:
            images: (B, ...), normalised as in training.

        Raises:
            SuperWeightError: Images of another shape, type or device than the members take.

        Example:
            >>> members = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}
            >>> for step in AnytimePredictor(members).stream(torch.zeros(2, 4)):
            ...     if float(step.probabilities.max()) > 0.2:
            ...         break
            >>> step.member, step.members_used
            ('a', 1)
        """
        self._check_images(images)
        return self._steps(images)

    def __call__(
        self,
        images: Tensor,
        *,
        deadline_ms: float | None = None,
        batch_flops: float | None = None,
        early_exit: bool | None = None,
    ) -> AnytimeAnswer:
        """Answer a batch.

        Samples that are sure enough leave after each member, where :meth:`calibrate` has fitted when; those that stay
        are compacted, and only they are computed. Uncalibrated, every sample runs all members.

        Args:
            images: (B, ...), normalised as in training.
            deadline_ms: Milliseconds from the call. A member is not started when it would end later, by what 95 % of
                the recent calls took; the first always runs. Latencies are measured, before the clock starts, the first
                time that a batch is larger than any before: call :meth:`measure` ahead.
            batch_flops: FLOPs for the whole batch: the samples that are least sure go on, as many as it pays for.
            early_exit: Whether samples leave when they are sure; where None, if calibrated and without ``batch_flops``.

        Raises:
            SuperWeightError: Images of another shape, type or device than the members take; a deadline that is no
                positive number; a budget below the first member's; ``early_exit=True`` before :meth:`calibrate`.
        """
        self._check_images(images)
        if batch_flops is not None and (deadline_ms is not None or early_exit):
            raise SuperWeightError("batch_flops says by itself who goes on: give no deadline_ms or early_exit with it")
        if early_exit and self.policy is None:
            raise SuperWeightError("the cascade is not calibrated: call calibrate(loader, flops=...) on held-out data")
        policy = self.policy if early_exit is not False else None
        if batch_flops is not None:
            check_amount("batch_flops", batch_flops, "FLOPs")
            return run_within_budget(self.modules, self.flops, images, batch_flops, self.policy, self.replaces)
        latencies = None
        if deadline_ms is not None:
            check_amount("deadline_ms", deadline_ms, "milliseconds")
            latencies = self._latency_table(images[:1])
            latencies.measure(len(images))
        return run_cascade(self.modules, self.flops, images, policy, latencies, deadline_ms, self.replaces)

    def predict(self, loader: Loader | Predictions) -> Predictions:
        """The table that thresholds are fitted on: every member run once on every sample.

        Args:
            loader: (images, labels); or predictions of these members, which are given back once their image fits.

        Raises:
            SuperWeightError: Images that the members do not take, labels that are no classes of theirs, no samples.
        """
        if isinstance(loader, Predictions):
            self._check_images(loader.image.to(self._like.device))
            return loader
        return predict_all(self.modules, self._checked(loader), self._like.device)

    def calibrate(
        self,
        loader: Loader | Predictions,
        *,
        flops: float | None = None,
        latency_ms: float | None = None,
        max_accuracy_drop: float | None = None,
        confidence: str = "margin",
        temperature: bool = True,
        monotone: bool = False,
        batch_size: int = 1,
    ) -> Calibration:
        """Fit one threshold an exit on held-out data; give one of the three targets.

        Args:
            loader: Held-out (images, labels), at least 100, never the test data; or the predictions on them that
                :meth:`predict` made.
            flops: Mean FLOPs an image; up to 1.0, the fraction of all members'.
            latency_ms: Mean milliseconds an image, in batches of ``batch_size``, by latencies measured here.
            max_accuracy_drop: The cheapest cascade whose accuracy on these data is at most so much (0.002: 0.2 points)
                below that of all members.
            confidence: ``margin``, ``max_probability``, ``entropy`` or ``agreement``.
            temperature: Whether each exit's temperature is fitted, so that confidences of exits compare.
            monotone: A sample keeps an earlier prediction that was surer than the later one.
            batch_size: For ``latency_ms``.

        Returns:
            What the policy does on these data; it is kept in :attr:`policy` and saved with the predictor.

        Raises:
            SuperWeightError: None or several targets, one out of reach (says the range), too few samples, labels that
                are no classes of the members.
        """
        targets = {"flops": flops, "latency_ms": latency_ms, "max_accuracy_drop": max_accuracy_drop}
        given = {name: value for name, value in targets.items() if value is not None}
        if len(given) != 1:
            raise SuperWeightError(f"give one of {', '.join(targets)}; got {', '.join(given) or 'none'}")
        (what, amount), *_ = given.items()
        if what == "max_accuracy_drop":
            check_drop(amount)
        else:
            check_amount(what, amount, "FLOPs" if what == "flops" else "milliseconds")
        check_batch_size(batch_size)
        if confidence not in CONFIDENCES:
            raise unknown_name("confidence", confidence, CONFIDENCES)
        table = self.predict(loader)
        labels = table.labels
        check_samples(labels)
        probabilities = table.of(self.order)
        costs = [float(value) for value in self.flops.values()]
        if what == "latency_ms":
            latencies = self._latency_table(table.image.to(self._like.device))
            costs = [1e3 * latencies.median(name, batch_size) / batch_size for name in self.order]
        elif what == "flops" and amount <= 1:
            amount *= sum(costs)
        self.policy = fit_policy(
            probabilities,
            labels,
            costs,
            self.order,
            ("max_accuracy_drop" if what == "max_accuracy_drop" else "cost", amount),
            confidence=confidence,
            temperature=temperature,
            monotone=monotone,
            replaces=self.replaces,
        )
        self.calibration = describe(probabilities, labels, self.policy, list(self.flops.values()), (what, amount))
        return self.calibration

    def set_policy(self, policy: ExitPolicy) -> None:
        """Take a policy that was fitted elsewhere.

        Raises:
            SuperWeightError: It is for other members or another order.
        """
        if not isinstance(policy, ExitPolicy):
            raise SuperWeightError(f"policy must be an ExitPolicy (ExitPolicy.from_dict reads one); got {policy!r:.80}")
        if policy.order != self.order:
            raise SuperWeightError(f"the policy is for {list(policy.order)}; this predictor runs {list(self.order)}")
        if policy.replaces != self.replaces:
            raise SuperWeightError(
                f"in the policy, exits take the place of {list(policy.replaces)}; in this predictor, of "
                f"{list(self.replaces)}"
            )
        self.policy, self.calibration = policy, None

    def measure(self, batch_size: int, input_shape: Sequence[int] | None = None) -> dict[str, float]:
        """Median milliseconds of each member for a batch, measured on this device now or before.

        Raises:
            SuperWeightError: No image was seen yet and no ``input_shape`` is given; a batch size below one.
        """
        check_batch_size(batch_size)
        if input_shape is not None:
            shape = check_shape(input_shape)
            if self._flops is None:
                self._measure_shape(shape)
            self._check_images(self._blank(shape))
        self._check_measured()
        assert self._input_shape is not None
        table = self._latency_table(self._blank(self._input_shape))
        return {name: 1e3 * table.median(name, batch_size) for name in self.order}

    def save(self, folder: str | Path) -> None:
        """Write the ensemble and, beside it, order and policy (anytime.json).

        Raises:
            SuperWeightError: The predictor was made of plain networks, or the ensemble has changed since; no
                image was seen yet and no ``input_shape`` was given.
        """
        self._check_measured()
        if self._ensemble is None:
            raise SuperWeightError("a predictor of plain networks has no ensemble to save: save their state dicts")
        for name, module in self.modules.items():
            now = self._ensemble.materialize(name).state_dict()
            if any(not torch.equal(value, now[key].to(value)) for key, value in module.state_dict().items()):
                raise SuperWeightError(f"member {name!r} was trained on since: make a new predictor and calibrate it")
        assert self._input_shape is not None
        write_predictor(self._ensemble, Path(folder), self.order, self._input_shape, self.policy)

    @classmethod
    def load(cls, folder: str | Path, members: Members | None = None) -> AnytimePredictor:
        """Read what :meth:`save` wrote; nothing in the folder is executed.

        Args:
            folder: A saved predictor.
            members: As :meth:`SuperWeightEnsemble.load` takes them.

        Raises:
            SuperWeightError: Files missing, damaged, of a newer format, or that do not fit each other.
        """
        with naming(Path(folder)):
            order, input_shape, policy = read_predictor(Path(folder))
            ensemble = SuperWeightEnsemble.load(folder, members)
            predictor = cls(ensemble, order, input_shape=input_shape)
            if policy is not None:
                predictor.set_policy(policy)
        return predictor

    def __repr__(self) -> str:
        state = "not calibrated" if self.policy is None else f"thresholds {list(self.policy.thresholds)}"
        return f"AnytimePredictor({', '.join(self.modules)}; {state})"

    @property
    def _like(self) -> Tensor:
        """A tensor of the members' device and type."""
        parameters = (value for module in self.modules.values() for value in module.parameters())
        return next((value for value in parameters if value.is_floating_point()), torch.empty(0))

    def _steps(self, images: Tensor) -> Iterator[ExitStep]:
        running, flops, replaces = None, 0, self.replaces
        for name, module in self.modules.items():
            with torch.inference_mode():
                running = run_member(module, images, running, replaces)
                mean = running.mean
            flops += self.flops[name]
            yield ExitStep(member=name, members_used=running.num_run, flops=flops, probabilities=mean)

    def _latency_table(self, image: Tensor) -> LatencyTable:
        if self._latencies is None:
            self._latencies = LatencyTable(self.modules, image)
        return self._latencies

    def _check_images(self, images: Tensor) -> None:
        known = None if self._flops is None else self._integers is not None
        check_images(images, self._input_shape, self._like, known)
        if self._flops is None:
            self._measure(images[:1])

    def _checked(self, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches whose images the members take, on the members' device."""
        for batch in loader:
            images, labels = checked_batch(batch)
            images = images.to(self._like.device)
            self._check_images(images)
            yield images, labels

    def _blank(self, shape: tuple[int, ...]) -> Tensor:
        """One image (1, ...) of the device and type that the members take."""
        return torch.zeros(1, *shape, device=self._like.device, dtype=self._integers or self._like.dtype)

    def _measure_shape(self, shape: tuple[int, ...]) -> None:
        """Measure with an image of this shape; members that refuse floating-point ones may take tokens."""
        image = self._blank(shape)
        try:
            self._measure(image)
        except SuperWeightError as error:
            try:
                self._measure(image.long())
            except SuperWeightError:
                raise error from None

    def _check_measured(self) -> None:
        if self._flops is None:
            raise SuperWeightError(
                "the members' cost is measured on the first images: give input_shape=, or ask after the first call"
            )

    def _measure(self, image: Tensor) -> None:
        """Count FLOPs with one image, and with them settle the order."""
        self._flops, self._input_shape = flops_of(self.modules, image), tuple(image.shape[1:])
        self._integers = None if image.is_floating_point() else image.dtype
        if self._order in (None, "cost"):
            self._set_order(order_by_cost(self._flops))

    def _set_order(self, order: tuple[str, ...]) -> None:
        assert self._flops is not None
        self.modules = {name: self.modules[name] for name in order}
        self._flops = {name: self._flops[name] for name in order}
