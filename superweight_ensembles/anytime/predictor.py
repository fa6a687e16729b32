"""Predictions at any compute budget, by leaving members out. Shapes: M members, B batch, K classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.acceleration import MemberSpeed, check_options, fastest_form
from superweight_ensembles.anytime.calibration import (
    Calibration,
    ExitFit,
    ThresholdFit,
    check_enough,
    order_greedily,
    samples_per_member,
    tabulate_exits,
)
from superweight_ensembles.anytime.cascade import (
    AnytimeAnswer,
    Deadline,
    default_confidence,
    run_cascade,
    stop_at_counts,
    stop_when_sure,
    warn_of_nan,
)
from superweight_ensembles.anytime.costs import (
    LatencyTable,
    answer_of,
    check_count,
    checked_shape,
    flops_of_members,
)
from superweight_ensembles.anytime.evaluation import Predictions, first_images, predict_all
from superweight_ensembles.anytime.policy import CONFIDENCES, ExitPolicy, RunningMean, replaced_exits
from superweight_ensembles.anytime.saved_predictor import SavedPredictor, read_saved, write_saved
from superweight_ensembles.data import Inputs, Preprocessing, mapped, num_rows, plain, rows_of, tensors_of
from superweight_ensembles.ensemble import (
    CLASSIFICATION,
    Select,
    SuperWeightEnsemble,
    check_classes,
    first_parameter,
    task_named,
    write_ensemble,
)
from superweight_ensembles.errors import SuperWeightError, names_options, naming, unknown_name
from superweight_ensembles.models import MEASURING, VERSION_OF, copied, first_line
from superweight_ensembles.plan import Members, named_members

ORDERS = ("cost", "greedy")
WEIGHTS = ("equal", "fitted")
TARGETS = ("flops", "latency_ms", "max_accuracy_drop")
Loader = Iterable[object]  # of pairs of inputs and labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStep:
    """State of the prediction after one more member.

    Attributes:
        member: Name of the member that ran last.
        members_used: Number of members so far.
        flops: FLOPs of an image, of all members so far.
        probabilities: Mean softmax (B, K) of the members so far; of another task, their mean prediction (B, ...).
    """

    member: str
    members_used: int
    flops: int
    probabilities: Tensor


@names_options
class AnytimePredictor:
    """Members as plain networks in eval mode, run one by one until a caller, a clock or a threshold stops them.

    Answers are means over the members so far. A module whose attribute ``version_of`` is another's name, as
    :func:`truncated_exits` gives it to truncations, is a version of that network: of several versions that have run,
    the last one alone is in the mean.

    Args:
        ensemble: An ensemble, which is materialised here, so that its later training is not seen; or plain networks by
            name, which are copied.
        order: ``cost`` (FLOPs, cheapest first; the default), ``greedy`` (most accuracy a FLOP first, on ``loader``), or
            names; names may leave members out.
        loader: Held-out (images, labels), or the members' predictions on them, for ``greedy``.
        input_shape: Shape of one image, such as (3, 32, 32). Where None, it is that of the first images, on one of
            which every member runs once for its FLOPs.
        task: Task of plain networks, as :class:`SuperWeightEnsemble` takes it; an ensemble has its own. Streams and
            deadlines are for every task; exits, budgets and calibration for all but ``regression``, whose answers have
            no confidence; greedy orders and other forms of members for ``classification``.

    Attributes:
        task: The task.
        images: Preprocessing of the ensemble's images, with the names of classes; None where that is not known.
        modules: The plain networks by name, in order once that is known.
        policy: Rule by which samples leave; None before it is calibrated.
        calibration: Effect of the policy on the samples that it was fitted on; None for a loaded policy.
        speeds: Result of :meth:`accelerate` for each member; empty before.

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
        task: str | None = None,
    ) -> None:
        self._ensemble: SuperWeightEnsemble | None = None
        self.images: Preprocessing | None = None
        member_of: Callable[[str], nn.Module]
        if isinstance(ensemble, SuperWeightEnsemble):
            if task is not None:
                raise SuperWeightError(f"task= is for plain networks: the ensemble's is {ensemble.task.name!r}")
            self._ensemble, self.images, self.task = ensemble, ensemble.images, ensemble.task
            names, member_of = ensemble.member_names, ensemble.materialize
        else:
            members = named_members(ensemble)
            self.task = task_named(task or CLASSIFICATION.name)
            names, member_of = tuple(members), lambda name: copied(members[name], f"member {name!r}")
        self._order = checked_order("cost" if order is None else order, names)
        if self._order == "greedy" and loader is None:
            raise SuperWeightError("order 'greedy' needs loader=, held-out (images, labels) to choose on")
        if self._order == "greedy":
            check_classes(self.task, "order 'greedy'")
        if self._order != "greedy" and loader is not None:
            raise SuperWeightError("loader= is for order='greedy'; calibrate(loader, ...) fits thresholds")
        self.modules: dict[str, nn.Module] = {}
        for name in names if isinstance(self._order, str) else self._order:
            module = member_of(name)
            try:
                self.modules[name] = module.eval().requires_grad_(False)
            except Exception as error:  # a layer without weights yet, or a program that cannot change its mode
                raise SuperWeightError(
                    f"member {name!r} cannot be put into eval mode and frozen: {first_line(error)}"
                ) from error
        marked = {name: getattr(module, VERSION_OF, name) for name, module in self.modules.items()}
        self._version_of = {name: network for name, network in marked.items() if network != name}
        self.policy: ExitPolicy | None = None
        self.calibration: Calibration | None = None
        self.speeds: dict[str, MemberSpeed] = {}
        self._latencies: LatencyTable | None = None
        self._takes: Tensor | None = None  # has the images' device and type, where parameters do not show them
        # Known once the first image was seen, and all empty before.
        self._flops: dict[str, int] = {}
        self._input_shape: tuple[int, ...] = ()
        self._row: Inputs = None
        self._tokens: torch.dtype | None = None
        if input_shape is not None:
            self._measure_shape(checked_shape(input_shape))
        if loader is not None:
            table = self.predict(loader)
            names = tuple(self.modules)
            order = order_greedily(names, table.of(names), table.labels, self.flops, self._version_of)
            self._set_order(order, self.flops)

    @property
    def order(self) -> tuple[str, ...]:
        """Members in the order in which they run; an order by cost needs ``input_shape`` or a first call."""
        if isinstance(self._order, str):
            self._check_measured()
        return tuple(self.modules)

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs of an image, of each member alone, in order; they need ``input_shape`` or a first call."""
        self._check_measured()
        return dict(self._flops)

    @property
    def replaces(self) -> tuple[int | None, ...]:
        """For each exit, the index of the earlier one that it replaces in the mean, or None; empty where none does."""
        return replaced_exits(tuple(self.modules), self._version_of)

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """The policy's weights of the members in the mean at each exit; empty where all count alike."""
        return () if self.policy is None else self.policy.weights

    @property
    def version_of(self) -> dict[str, str]:
        """For each exit that is a version of another network, that network's name."""
        return dict(self._version_of)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one image; None before the first, and where inputs are no single tensor."""
        return self._input_shape or None

    @property
    def device(self) -> torch.device:
        """Device of the members, on which images must be."""
        return self._like.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AnytimePredictor:
        """Move the members; latencies are measured anew.

        Raises:
            SuperWeightError: A ``dtype`` for networks that :meth:`with_networks` was given, which have their own.
        """
        if dtype is not None and self._takes is not None:
            raise SuperWeightError("these networks have types of their own: convert the predictor before")
        if self._takes is not None:
            self._takes = self._takes.to(device)
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        self._latencies, floating = None, self._like.dtype
        self._row = mapped(lambda one: one.to(self.device, floating if one.is_floating_point() else None), self._row)
        return self

    @names_options
    def stream(self, images: Inputs) -> Iterator[ExitStep]:
        """Run members one by one; a member is not run before it is asked for.

        Args:
            images: (B, ...), normalised as in training; or a dictionary or a tuple, as the ensemble takes them.

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
        inputs = plain(images)
        self._check_images(inputs)
        return self._steps(inputs)

    def _steps(self, inputs: Inputs) -> Iterator[ExitStep]:
        running, flops, warned = RunningMean(self.replaces, self.weights), 0, False
        for name, module in self.modules.items():
            with torch.no_grad():
                running.add(self.task.predicted(answer_of(name, module, inputs, self.task)))
                mean = running.mean
            warned = warned or warn_of_nan(mean.reshape(len(mean), -1)[:, 0])
            flops += self._flops[name]
            yield ExitStep(member=name, members_used=running.num_run, flops=flops, probabilities=mean)

    @names_options
    def __call__(
        self,
        images: Inputs,
        *,
        deadline_ms: float | None = None,
        batch_flops: float | None = None,
        early_exit: bool | None = None,
    ) -> AnytimeAnswer:
        """Answer a batch.

        After each member the samples leave whose confidence reaches the threshold that :meth:`calibrate` has fitted;
        only those that stay are computed further. Without calibration every sample runs all members.

        Args:
            images: (B, ...), normalised as in training; or a dictionary or a tuple, as the ensemble takes them.
            deadline_ms: Milliseconds from the call. A member is not started when it would end later, by the 95th
                percentile of the recent calls; the first always runs. Latencies are measured, before the clock starts,
                the first time that a batch is larger than any before: call :meth:`measure` ahead.
            batch_flops: FLOPs for the whole batch: as many samples go on as it pays for, the least sure ones.
            early_exit: Whether samples leave when they are sure; None for yes where calibrated and without
                ``batch_flops``.

        Raises:
            SuperWeightError: Images of another shape, type or device than the members take; a deadline that is no
                positive number; a budget below the first member's; ``early_exit=True`` before :meth:`calibrate`.
        """
        images = plain(images)
        self._check_images(images)
        if batch_flops is not None and (deadline_ms is not None or early_exit):
            raise SuperWeightError("batch_flops decides which samples go on: give no deadline_ms or early_exit with it")
        if early_exit and self.policy is None:
            raise SuperWeightError("the cascade is not calibrated: call calibrate(loader, flops=...) on held-out data")
        policy, rule, deadline, count = self.policy, None, None, num_rows(images)
        if batch_flops is not None:
            self._checked_confidence()
            batch_flops = _checked_amount("batch_flops", batch_flops, "FLOPs")
            rule = stop_at_counts(samples_per_member(count, [*self._flops.values()], batch_flops))
        elif early_exit is False:
            policy = None
        elif policy is not None:
            rule = stop_when_sure(policy)
        if deadline_ms is not None:
            deadline_ms = _checked_amount("deadline_ms", deadline_ms, "milliseconds")
            deadline = Deadline(deadline_ms, self._latency_table(rows_of(images, slice(0, 1))))
            deadline.latencies.measure(count)
        running = RunningMean(self.replaces, self.weights)
        return run_cascade(self.modules, self._flops, images, running, policy, rule, deadline, self.task)

    def predict(self, loader: Loader | Predictions) -> Predictions:
        """Run every member once on every sample, for the table that thresholds are fitted on.

        Args:
            loader: (images, labels); or predictions of these members, whose image is checked, and which are returned.

        Raises:
            SuperWeightError: Images that the members do not take, labels that are no classes of theirs, no samples.
        """
        if isinstance(loader, Predictions):
            self._check_images(mapped(lambda one: one.to(self.device), loader.image))
            return loader
        check_classes(self.task, "a table of probabilities")
        return predict_all(self.modules, loader, self._like, self._check_images)

    @names_options
    def calibrate(
        self,
        loader: Loader | Predictions,
        *,
        flops: float | None = None,
        latency_ms: float | None = None,
        max_accuracy_drop: float | None = None,
        confidence: str | None = None,
        temperature: bool = True,
        monotone: bool = False,
        weights: Literal["equal", "fitted"] = "equal",
        batch_size: int = 1,
    ) -> Calibration:
        """Fit one threshold an exit on held-out data; give one of the three targets.

        Args:
            loader: Held-out (images, labels), at least 100, never the test data; or the predictions on them that
                :meth:`predict` made.
            flops: Mean FLOPs of an image; a number up to 1.0 is a fraction of all members' FLOPs.
            latency_ms: Mean milliseconds of an image, in batches of ``batch_size``, by latencies measured here.
            max_accuracy_drop: Largest difference (0.002: 0.2 points) by which the accuracy on these data may be below
                that of all members; the cheapest such cascade is taken.
            confidence: ``margin`` (where None), ``max_probability``, ``entropy`` or ``agreement``; tasks of several
                answers a row have their own: the mean margin of labels, or of places.
            temperature: Whether each exit's temperature is fitted, so that confidences of different exits compare; for
                ``classification`` only.
            monotone: Whether a sample keeps an earlier prediction that was surer than the later one.
            weights: ``fitted`` lets members count at each exit by weights that are fitted on these data, so that a weak
                member does not pull a strong one down: no exit is less accurate on them than its best member. Streams,
                deadlines and budgets use them too.
            batch_size: Images in a batch, for ``latency_ms``.

        Returns:
            The effect of the policy on these data; the policy is kept in :attr:`policy` and saved with the predictor.

        Raises:
            SuperWeightError: None or several targets, one out of reach (says the range), too few samples, labels that
                are no classes of the members.
        """
        targets = zip(TARGETS, (flops, latency_ms, max_accuracy_drop))
        given = {name: value for name, value in targets if value is not None}
        if len(given) != 1:
            raise SuperWeightError(f"give one of {', '.join(TARGETS)}; got {', '.join(given) or 'none'}")
        ((what, amount),) = given.items()
        if what != "max_accuracy_drop":
            amount = _checked_amount(what, amount, "FLOPs" if what == "flops" else "milliseconds")
        elif not 0 <= _as_float(amount) < 1:
            raise SuperWeightError(
                f"max_accuracy_drop must be from 0 to below 1 (0.002: 0.2 points); got {amount!r:.80}"
            )
        amount = float(amount)
        check_count("batch_size", batch_size)
        measure = self._measure_of_confidence(confidence, weights)
        if weights not in WEIGHTS:
            raise unknown_name("weights", weights, WEIGHTS)
        fit: ThresholdFit
        if self.task.has_classes:
            table = self.predict(loader)
            check_enough(len(table.labels))
            fit = ExitFit(
                table.of(self.order), table.labels, self.order, confidence=measure, temperature=temperature,
                monotone=monotone, replaces=self.replaces, weights=weights,
            )  # fmt: skip
        else:
            if isinstance(loader, Predictions):
                raise SuperWeightError("a table of probabilities needs one class an image: give the loader")
            exits = len(self.modules)
            never = ExitPolicy(
                order=tuple(self.modules), confidence=measure, temperatures=(1.0,) * exits, monotone=monotone,
                thresholds=(math.inf,) * (exits - 1), replaces=self.replaces,
            )  # fmt: skip
            fit = tabulate_exits(self.modules, loader, self.task, never, self._like, self._check_images)
        costs = [float(value) for value in self.flops.values()]
        if what == "latency_ms":
            latencies = self._latency_table(self._row)
            costs = [1e3 * latencies.median(name, batch_size) / batch_size for name in self.order]
        elif what == "flops" and amount <= 1:
            amount *= sum(costs)
        self.policy = fit.policy(costs, (what if what == "max_accuracy_drop" else "cost", amount))
        self.calibration = fit.described(self.policy, [*self._flops.values()], (what, amount))
        return self.calibration

    def _measure_of_confidence(self, confidence: str | None, weights: str) -> str:
        """The measure asked for, or the task's own."""
        own = self._checked_confidence()
        if self.task.has_classes:
            if confidence is not None and confidence not in CONFIDENCES:
                raise unknown_name("confidence", confidence, CONFIDENCES)
            return confidence or own
        if confidence not in (None, own) or weights != "equal":
            raise SuperWeightError(
                f"task {self.task.name!r} has one measure of confidence, {own!r}, and members that count alike: leave "
                "confidence= and weights= out"
            )
        return own

    def _checked_confidence(self) -> str:
        """The name of the task's measure of confidence; a task without one is refused."""
        own = default_confidence(self.task)
        if own is None:
            raise SuperWeightError(
                f"task {self.task.name!r} has no confidence, by which samples could leave: use stream() or deadline_ms"
            )
        return own

    def set_policy(self, policy: ExitPolicy) -> None:
        """Take a policy that was fitted elsewhere.

        Raises:
            SuperWeightError: A policy for other members, another order or another task.
        """
        if not isinstance(policy, ExitPolicy):
            raise SuperWeightError(f"policy must be an ExitPolicy (ExitPolicy.from_dict reads one); got {policy!r:.80}")
        of_task = CONFIDENCES if self.task.has_classes else (default_confidence(self.task),)
        if policy.confidence not in of_task:
            raise SuperWeightError(f"the policy's confidence {policy.confidence!r} is not of task {self.task.name!r}")
        if policy.order != self.order:
            raise SuperWeightError(f"the policy is for {list(policy.order)}; this predictor runs {list(self.order)}")
        if policy.replaces != self.replaces:
            raise SuperWeightError(
                f"the policy's exits replace {list(policy.replaces)}; this predictor's replace {list(self.replaces)}"
            )
        self.policy, self.calibration = policy, None

    def with_networks(self, networks: Members) -> AnytimePredictor:
        """A predictor with the same order, costs and policy, whose answers come from other forms of the members.

        Other forms are, for instance, quantised networks or those of another runtime: modules that take the same images
        and answer the same logits (B, K). This method does not check that they do; :meth:`accelerate` does.

        Args:
            networks: The networks by the members' names. They are not copied, and are put into eval mode.

        Raises:
            SuperWeightError: Names other than the members'; no cost is known yet (give ``input_shape``).
        """
        self._check_measured()
        given = named_members(networks)
        for name in {**given, **self.modules}:
            if name not in self.modules:
                raise unknown_name("member", name, self.modules)
            if name not in given:
                raise SuperWeightError(f"no network is given for member {name!r}")
        other = copy.copy(self)
        other.modules = {name: given[name].eval() for name in self.order}
        other._takes, other._latencies, other._ensemble, other.calibration = self._like[:0].clone(), None, None, None
        return other

    def accelerate(
        self,
        loader: Loader,
        *,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        batch_size: int = 64,
        max_changed: float = 0.01,
        num_images: int = 512,
    ) -> AnytimePredictor:
        """A predictor whose members run in the fastest form that answers as they do.

        Each member is tried with norms fused into the convolutions before them (PyTorch's own fusion), with channels
        last, and with products in ``dtype``, in every combination; all are timed against the plain network, in turn,
        and the fastest is kept. This predictor stays as it is; the policy is taken over, so calibrate before or after.

        Args:
            loader: Held-out (images, labels), on whose images the forms are compared with the plain members.
            dtype: Type allowed for products, ``torch.bfloat16`` or ``torch.float16``; None for the members' own only.
            compile: Whether to try ``torch.compile`` too, which takes minutes and a compiler.
            batch_size: Number of images in a timed call; the fastest form for one image is not that for many.
            max_changed: Largest fraction of the images whose most probable class may change, of each member.
            num_images: Number of images to compare on.

        Returns:
            The predictor; its :attr:`speeds` give, by member, the form, how much faster it is, how answers change, and
            why other forms cannot be used.

        Raises:
            SuperWeightError: Images that the members do not take, no images, options out of range.

        Example:
            >>> members = {"a": nn.Linear(4, 3), "b": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))}
            >>> images = [(torch.randn(64, 4), torch.zeros(64, dtype=torch.long))]
            >>> fast = AnytimePredictor(members).accelerate(images)
            >>> fast.speeds["a"].changed
            0.0
        """
        check_options(dtype, max_changed, batch_size)
        check_count("num_images", num_images)
        check_classes(self.task, "accelerate()")
        images = first_images(loader, num_images).to(self.device)
        self._check_images(images)
        networks: dict[str, nn.Module] = {}
        speeds: dict[str, MemberSpeed] = {}
        for name, module in self.modules.items():
            networks[name], speeds[name] = fastest_form(
                name, module, images, dtype=dtype, compile=compile, batch_size=int(batch_size), max_changed=max_changed
            )
        fast = self.with_networks(networks)
        fast.speeds = speeds
        return fast

    def measure(self, batch_size: int, input_shape: Sequence[int] | None = None) -> dict[str, float]:
        """Median milliseconds of each member for a batch, measured on this device now or before.

        Raises:
            SuperWeightError: No image was seen yet and no ``input_shape`` is given; a batch size below one.
        """
        check_count("batch_size", batch_size)
        if input_shape is not None:
            shape = checked_shape(input_shape)
            if not self._flops:
                self._measure_shape(shape)
            self._check_images(self._blank(shape))
        self._check_measured()
        table = self._latency_table(self._row)
        return {name: 1e3 * table.median(name, batch_size) for name in self.order}

    def save(self, folder: str | Path) -> None:
        """Write the ensemble and, beside it, order and policy (anytime.json).

        Raises:
            SuperWeightError: The predictor was made of plain networks, or the ensemble has changed since; no
                image was seen yet and no ``input_shape`` was given.
        """
        self._check_measured()
        if self._ensemble is None:
            raise SuperWeightError(
                "a predictor of plain networks has no ensemble to save: save their state dicts, or the predictor that "
                "this one was made of"
            )
        for name, module in self.modules.items():
            now = self._ensemble.materialize(name).state_dict()
            for key, value in module.state_dict().items():
                if isinstance(value, Tensor) and not torch.allclose(
                    value, now[key].to(value), rtol=0, atol=0, equal_nan=True
                ):
                    raise SuperWeightError(
                        f"member {name!r} has been trained since, or its calls change {key}: make a new predictor and "
                        "calibrate it"
                    )
        saved = SavedPredictor(order=self.order, input_shape=self._input_shape or None, policy=self.policy)
        write_ensemble(
            self._ensemble, self._ensemble.plan, dict(self._ensemble.members.items()), Path(folder),
            beside=lambda draft: write_saved(draft, saved),
        )  # fmt: skip

    @classmethod
    def load(
        cls, folder: str | Path, members: Members | None = None, *, select: Select | None = None
    ) -> AnytimePredictor:
        """Read what :meth:`save` wrote; nothing in the folder is executed.

        Args:
            folder: A saved predictor.
            members: As :meth:`SuperWeightEnsemble.load` takes them.
            select: Likewise.

        Raises:
            SuperWeightError: Files that are missing, damaged, of another format, or that do not fit each other.
        """
        with naming(Path(folder)):
            saved = read_saved(Path(folder))
            ensemble = SuperWeightEnsemble.load(folder, members, select=select)
            predictor = cls(ensemble, saved.order, input_shape=saved.input_shape)
            if saved.policy is not None:
                predictor.set_policy(saved.policy)
        return predictor

    def __repr__(self) -> str:
        state = "not calibrated" if self.policy is None else f"thresholds {list(self.policy.thresholds)}"
        return f"AnytimePredictor({', '.join(self.modules)}; {state})"

    @property
    def _like(self) -> Tensor:
        """A tensor of the device and type that the members take."""
        return first_parameter(self.modules) if self._takes is None else self._takes

    def _blank(self, shape: tuple[int, ...]) -> Tensor:
        """One image (1, ...) of the device and type that the members take."""
        return torch.zeros(1, *shape, device=self.device, dtype=self._tokens or self._like.dtype)

    def _latency_table(self, row: Inputs) -> LatencyTable:
        table = self._latencies  # another thread may reset it meanwhile
        if table is None:
            with MEASURING:
                table = self._latencies = self._latencies or LatencyTable(self.modules, row)
        return table

    def _check_images(self, images: Inputs) -> None:
        """Refuse inputs that the members cannot take; the members' costs are measured on the first image."""
        tensors = [tensor for tensor in tensors_of(images) if tensor.ndim]
        if (isinstance(images, Tensor) and images.ndim < 2) or not tensors or not len(tensors[0]):
            given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise SuperWeightError(f"images must be a tensor (batch, ...) of at least one; got {given}")
        like, autocast = self._like, torch.is_autocast_enabled(self._like.device.type)
        for tensor in tensors:
            if tensor.device != like.device:
                raise SuperWeightError(
                    f"the images are on {tensor.device}, the members on {like.device}: move one of them"
                )
            if tensor.is_floating_point() and tensor.dtype != like.dtype and not autocast:
                raise SuperWeightError(f"the images are {tensor.dtype}, the members {like.dtype}: convert one of them")
        if not self._flops:
            with MEASURING:
                if not self._flops:  # another thread may have measured meanwhile
                    self._measure(rows_of(images, slice(0, 1)))
        if _keys_of(images) != _keys_of(self._row):
            raise SuperWeightError(f"inputs must have {_keys_of(self._row)}, as the first had; got {_keys_of(images)}")
        if not isinstance(images, Tensor):
            return
        if images.shape[1:] != self._input_shape:
            wanted = ", ".join(map(str, self._input_shape))
            raise SuperWeightError(f"images must be (batch, {wanted}); got {tuple(images.shape)}")
        if images.is_floating_point() == (self._tokens is not None):
            wanted = "integers" if images.is_floating_point() else str(like.dtype)
            raise SuperWeightError(f"the images are {images.dtype}, the members take {wanted}: convert the images")

    def _check_measured(self) -> None:
        if not self._flops:
            raise SuperWeightError(
                "the members' cost is measured on the first images: give input_shape=, or ask after the first call"
            )

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

    def _measure(self, row: Inputs) -> None:
        """Count FLOPs with one row, and with them settle the order by cost."""
        flops = flops_of_members(self.modules, row, self.task)
        self._row = mapped(lambda one: one.detach().clone(), row)
        if isinstance(row, Tensor):
            self._input_shape, self._tokens = tuple(row.shape[1:]), None if row.is_floating_point() else row.dtype
        cheapest = sorted(flops, key=flops.__getitem__)  # equal ones as they were given
        self._set_order(cheapest if self._order == "cost" else [*flops], flops)

    def _set_order(self, order: Sequence[str], flops: Mapping[str, int]) -> None:
        self.modules = {name: self.modules[name] for name in order}
        self._flops = {name: flops[name] for name in order}  # set last: it shows other threads that all is measured


def _keys_of(inputs: Inputs) -> str:
    """What inputs are made of, in words."""
    if isinstance(inputs, dict):
        return f"the keywords {', '.join(map(str, inputs))}"
    return f"{len(inputs)} arguments" if isinstance(inputs, tuple) else "one tensor"


def checked_order(order: str | Sequence[str], names: Sequence[str]) -> str | tuple[str, ...]:
    """A name of :data:`ORDERS`, or members, of which an explicit order may leave some out."""
    if isinstance(order, str):
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        return order
    if not isinstance(order, Sequence):
        raise SuperWeightError(f"order must be {' or '.join(map(repr, ORDERS))}, or a list of names; got {order!r:.80}")
    for name in order:
        if name not in names:
            raise unknown_name("member", name, names)
    if not order or len(set(order)) < len(order):
        raise SuperWeightError(f"order must name at least one member, and each once; got {list(order)}")
    return tuple(order)


def _checked_amount(what: str, amount: float, unit: str) -> float:
    """A positive number as a float, whichever type of number it was."""
    number = _as_float(amount)
    if not (math.isfinite(number) and number > 0):
        raise SuperWeightError(f"{what} must be a positive number of {unit}; got {amount!r:.80}")
    return number


def _as_float(value: object) -> float:
    """The value as a float; NaN where it is no number, or too large for a float."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
