"""Every figure of the library, one record each: how and when it is drawn, and its texts and data on the page.

A new figure is a function that draws it, in a file beside this one, and a record here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, ParamSpec

from matplotlib.figure import Figure

from superweight_ensembles.experiment import Comparison, Epoch, RunResults, SearchRecord, WidthEpoch
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figures import accuracy, measured, run_curves, search_figures, sharing

Subject = ParamSpec("Subject")  # the arguments from which a figure is drawn
Rows = Iterator[tuple[object, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureRecord(Generic[Subject]):
    """One figure, which is drawn where it applies."""

    name: str  # of its function and its file
    draw: Callable[Subject, Figure]
    applies: Callable[Subject, bool] = lambda *_, **__: True


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFigure(FigureRecord[Subject]):
    """One figure of the page of a run."""

    section: str  # a key of the titles in write.py
    title: str
    reading: str | Callable[[SharingPlan], str]  # how to read it
    describe: Callable[[RunResults, SharingPlan], str]  # what it shows, for those who do not see it
    rows: Callable[Subject, Rows]  # what it draws: a heading with units, then a row a point, bar or cell; None is empty


def draw_all(
    records: Sequence[FigureRecord[Subject]], *subject: Subject.args, **named: Subject.kwargs
) -> dict[str, Figure]:
    """The figures that apply, by name."""
    return {one.name: one.draw(*subject, **named) for one in records if one.applies(*subject, **named)}


def _each(values: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _accuracies(results: RunResults) -> str:
    return _each((arm.name, f"{100 * arm.ensemble.metrics.accuracy:.2f} %") for arm in results.arms)


def _subset_rows(results: RunResults) -> Rows:
    yield "arm", "members", "FLOPs per image", "test accuracy (%)"
    for arm in results.arms:
        for one in arm.subsets:
            yield arm.name, " ".join(one.members), one.flops, 100 * one.metrics.accuracy


def _parameter_rows(results: RunResults) -> Rows:
    yield "arm", "network", "trainable parameters", "test accuracy (%)"
    for arm in results.arms:
        yield arm.name, "ensemble", arm.num_parameters, 100 * arm.ensemble.metrics.accuracy
        for one in arm.members if arm.name == "independent" else ():
            yield arm.name, one.name, one.num_parameters, 100 * one.metrics.accuracy


def _layer_rows(plan: SharingPlan) -> Rows:
    yield "member", "layer", "cluster", "slot", "coefficient vectors"
    for cluster in plan.clusters:
        for target in cluster.targets:
            vectors = " ".join(map(str, getattr(target, "vectors", ())))
            yield target.member, target.name, cluster.name, getattr(target, "slot", None), vectors


def _map_reading(plan: SharingPlan) -> str:
    generator = "the same templates" if plan.superweight_clusters or not plan.ssn_groups else "one bank"
    reading = (
        "A row a member, a block a layer, first to last, as wide as the square root of its weights. Blocks of one "
        f"colour come from {generator}; bands join them across members."
    )
    if generator == "the same templates":
        reading += " Lines in a block are its width slots."
    if plan.ssn_groups:
        reading += " A layer that is larger than its flat bank is pale above as many weights as it reads."
    return reading


def _clusters(plan: SharingPlan) -> str:
    words = f"{len(plan.clusters)} cluster{'s' * (len(plan.clusters) != 1)}"
    if not plan.ssn_groups:
        return words
    return words + (f" ({len(plan.ssn_groups)} of them flat banks)" if plan.superweight_clusters else " of flat banks")


def _budget_rows(plan: SharingPlan) -> Rows:
    yield "part", "template parameters", "coefficient parameters", "other parameters"
    for cluster in plan.clusters:
        yield cluster.name, cluster.num_templates, cluster.num_coefficients, 0
    yield "members' own", 0, 0, plan.num_private
    for member in plan.members:
        yield f"{member.name} apart", 0, 0, member.num_parameters


def _describe_budget(plan: SharingPlan) -> str:
    parts = _each((one.name, f"{one.num_templates + one.num_coefficients:,}") for one in plan.clusters)
    return f"Bars of trainable parameters, {plan.num_parameters:,} in all. {parts}; members' own: {plan.num_private:,}."


def _training_rows(results: RunResults) -> Rows:
    yield "arm", "network", "epoch", "training loss (nats)", "validation accuracy (%)"
    for arm in results.arms:
        for epoch in arm.history:
            losses = [loss for loss in epoch.train_loss.values() if loss is not None]
            found = epoch.validation
            whole = None if found is None else _percent(found.ensemble.accuracy)
            yield arm.name, "ensemble", epoch.epoch, fmean(losses) if losses else None, whole
            for name, one in ({} if found is None else found.members).items():
                yield arm.name, name, epoch.epoch, epoch.train_loss.get(name), _percent(one.accuracy)


def _describe_training(results: RunResults) -> str:
    losses = _each((arm.name, f"{run_curves.mean_loss(arm.history[-1]):.3f}") for arm in results.arms if arm.history)
    epochs = max(len(arm.history) for arm in results.arms)
    return f"Training loss and validation accuracy over {epochs} epochs. Loss of the last epoch: {losses}."


def _reliability_rows(results: RunResults) -> Rows:
    yield "arm", "bin from (%)", "bin to (%)", "mean confidence (%)", "accuracy (%)", "images"
    for arm in results.arms:
        for one in arm.reliability:
            yield arm.name, *map(_percent, (one.lower, one.upper, one.confidence, one.accuracy)), one.count


def _anytime_rows(results: RunResults) -> Rows:
    yield "arm", "curve", "FLOPs per image", "latency (ms per image)", "members used", "test accuracy (%)"
    for arm in results.arms:
        if (found := arm.anytime) is None:
            continue
        curves = {str(curve.name): curve for curve in found.curves}
        if found.truncated:
            curves |= {f"{curve.name} with truncations": curve for curve in found.truncated.curves}
        for name, curve in curves.items():
            for one in curve.points:
                yield arm.name, name, one.flops, one.latency_ms, one.members_used, 100 * one.accuracy
        for alone in found.members:
            yield arm.name, alone.name, alone.flops, alone.latency_ms, 1, 100 * alone.accuracy
        for exit in found.exits or ():
            yield arm.name, exit.name, exit.flops, None, 1, 100 * exit.accuracy


def _uncertainty_rows(results: RunResults) -> Rows:
    yield "arm", "panel", "corruption", "images answered (%) or severity", "error (%) or accuracy (%)"
    for arm in results.arms:
        for one in arm.uncertainty.risk_coverage if arm.uncertainty else ():
            yield arm.name, "error", None, 100 * one.coverage, 100 * one.risk
        for found in arm.shift.corrupted if arm.shift else ():
            yield arm.name, "accuracy", found.corruption, found.severity, 100 * found.metrics.accuracy


def _describe_uncertainty(results: RunResults) -> str:
    known = [(arm.name, arm.uncertainty) for arm in results.arms if arm.uncertainty]
    areas = _each((name, f"{100 * found.risk_coverage_area:.2f} %") for name, found in known)
    return f"Error of the ensembles over the share of images that they are surest of. Mean over shares: {areas}."


def _width_rows(results: RunResults) -> Rows:
    yield "arm", "epoch", "member", "layer", "hidden neurons"
    histories: list[tuple[str, Sequence[Epoch | WidthEpoch]]] = [("before", results.widths or ())]
    histories += [(arm.name, arm.history) for arm in results.arms]
    for name, history in histories:
        for epoch in history:
            for member, own in (epoch.widths or {}).items():
                for layer, width in own.items():
                    yield name, epoch.epoch, member, layer, width


def _describe_widths(results: RunResults) -> str:
    _, *rows = _width_rows(results)
    last = {f"{member}.{layer}": width for _, _, member, layer, width in rows}
    return f"Hidden neurons of each layer over the epochs in which widths were learned. Last: {_each(last.items())}."


def _similarity_rows(search: SearchRecord) -> Rows:
    yield "cluster", "layer", "set", "follows", "beside layer", "cosine"
    for cluster in search.clusters:
        for index, row in enumerate(cluster.similarity):
            follows = cluster.targets[cluster.leaders[index]]
            for other, cosine in zip(cluster.targets, (None,) * len(cluster.targets) if row is None else row):
                yield cluster.name, cluster.targets[index], cluster.sets[index], follows, other, cosine


def _change_rows(plans: Mapping[str, SharingPlan]) -> Rows:
    for place, (name, plan) in enumerate(plans.items()):
        head, *rows = _layer_rows(plan)
        yield from [("plan", *head)] * (place == 0)
        yield from ((name.replace("\n", " "), *row) for row in rows)


RUN_FIGURES: tuple[PageFigure[[RunResults, SharingPlan]], ...] = (
    PageFigure(
        name="accuracy_flops",
        draw=lambda results, _: accuracy.accuracy_flops(results),
        section="results",
        title="Accuracy against compute",
        reading="Up and to the left is better. Small dots are sets of members, large markers members alone, the star "
        "all of them; the line joins the sets that no cheaper set beats.",
        describe=lambda results, _: (
            f"Test accuracy against FLOPs of {len(results.arms[0].subsets)} sets of members. All members together, at "
            f"{results.arms[0].ensemble.flops / 1e6:,.2f} MFLOPs: {_accuracies(results)}."
        ),
        rows=lambda results, _: _subset_rows(results),
    ),
    PageFigure(
        name="accuracy_parameters",
        draw=lambda results, _: accuracy.accuracy_parameters(results),
        section="results",
        title="Accuracy against parameters",
        reading="Stars are the ensembles, squares independent members alone. The arrow is what the bank saves.",
        describe=lambda results, _: (
            "Test accuracy against trainable parameters. Parameters: "
            f"{_each((arm.name, f'{arm.num_parameters:,}') for arm in results.arms)}. "
            f"Accuracy: {_accuracies(results)}."
        ),
        rows=lambda results, _: _parameter_rows(results),
    ),
    PageFigure(
        name="sharing_map",
        draw=lambda _, plan: sharing.sharing_map(plan),
        section="sharing",
        title="Who shares with whom",
        reading=_map_reading,
        describe=lambda _, plan: (
            f"Map of the {sum(len(cluster.targets) for cluster in plan.clusters)} generated layers of "
            f"{', '.join(plan.member_names)}, coloured by the {_clusters(plan)} that generate them."
        ),
        rows=lambda _, plan: _layer_rows(plan),
    ),
    PageFigure(
        name="budget_split",
        draw=lambda _, plan: sharing.budget_split(plan),
        section="sharing",
        title="Where the parameters are",
        reading="Above, the bank by cluster, in the colours of the map, each part again under it; the dashed line is "
        "the budget. Below, the members apart, one after the other.",
        describe=lambda _, plan: _describe_budget(plan),
        rows=lambda _, plan: _budget_rows(plan),
    ),
    PageFigure(
        name="training_curves",
        draw=lambda results, _: run_curves.training_curves(results),
        section="results",
        title="Training",
        reading="Above, the training loss, mean over members; below, the error on validation images, on a logarithmic "
        "axis. Thick lines are the ensembles, thin ones their members, each with a line style of its own.",
        describe=lambda results, _: _describe_training(results),
        rows=lambda results, _: _training_rows(results),
    ),
    PageFigure(
        name="reliability_diagram",
        draw=lambda results, _: run_curves.reliability_diagram(results),
        section="results",
        title="Calibration",
        reading="On the diagonal confidence is right; below it the ensemble is too sure. Bars are one standard error; "
        "bins of few images are joined. Below, how often each confidence occurs, on a logarithmic axis.",
        describe=lambda results, _: (
            "Accuracy against confidence of the ensembles. Expected calibration error: "
            f"{_each((arm.name, f'{100 * arm.ensemble.metrics.ece:.2f} %') for arm in results.arms)}."
        ),
        rows=lambda results, _: _reliability_rows(results),
    ),
    PageFigure(
        name="anytime_curves",
        draw=lambda results, _: run_curves.anytime_curves(results),
        applies=lambda results, _: any(arm.anytime for arm in results.arms),
        section="anytime",
        title="Accuracy when members stop early",
        reading="Up and to the left is better. Solid lines are cascades, dashed steps streams, single markers members "
        "alone; by FLOPs on the left, by measured time on the right.",
        describe=lambda *_: (
            "Test accuracy against cost of streams and cascades, in FLOPs and in time. The table has their points."
        ),
        rows=lambda results, _: _anytime_rows(results),
    ),
    PageFigure(
        name="uncertainty_curves",
        draw=lambda results, _: run_curves.uncertainty_curves(results),
        applies=lambda results, _: any(arm.shift for arm in results.arms),
        section="uncertainty",
        title="What the ensembles know",
        reading="Above, the error when the least sure images are left out: lower is better. Below, accuracy on "
        "corrupted test images: thick lines are means over corruptions, thin ones each of them.",
        describe=lambda results, _: _describe_uncertainty(results),
        rows=lambda results, _: _uncertainty_rows(results),
    ),
    PageFigure(
        name="width_history",
        draw=lambda results, _: run_curves.width_history(results),
        applies=lambda results, _: bool(run_curves.widths_learned(results)),
        section="widths",
        title="Widths while they were learned",
        reading="A panel a member, a line a layer: hidden neurons after each epoch.",
        describe=lambda results, _: _describe_widths(results),
        rows=lambda results, _: _width_rows(results),
    ),
)

SEARCH_FIGURES: tuple[PageFigure[[SearchRecord, Mapping[str, SharingPlan]]], ...] = (
    PageFigure(
        name="similarity_matrix",
        draw=lambda search, _: search_figures.similarity_matrix(search),
        section="search",
        title="What the search saw",
        reading="Each square is how well the gradients of two layers agree: red together, blue against each other. "
        "Boxes are the sets found; hatched layers were not compared and follow the one with the dot.",
        describe=lambda _, plan: (
            f"Matrices of how well the gradients of the layers of {', '.join(plan.member_names)} agree, with the sets "
            "that the search found."
        ),
        rows=lambda search, _: _similarity_rows(search),
    ),
    PageFigure(
        name="sharing_change",
        draw=lambda _, plans: search_figures.sharing_change(plans),
        section="search",
        title="What the search changed",
        reading="A panel a plan, a column a member, a row a layer. Shades of a colour are the parts of one split "
        "cluster; layers with a letter in common use the same coefficients.",
        describe=lambda _, plan: (
            f"The clusters of the layers of {', '.join(plan.member_names)} before and after the search, which ended "
            f"with {_clusters(plan)}."
        ),
        rows=lambda _, plans: _change_rows(plans),
    ),
)

RUNS_FIGURES: tuple[FigureRecord[[Sequence[RunResults]]], ...] = (
    FigureRecord(name="compare_flops", draw=accuracy.compare_flops),
    FigureRecord(name="compare_parameters", draw=accuracy.compare_parameters),
)

ARMS_FIGURES: tuple[FigureRecord[[Comparison]], ...] = (
    FigureRecord(name="arms_parameters", draw=measured.arms_parameters),
    FigureRecord(name="arms_flops", draw=measured.arms_flops),
    FigureRecord(
        name="arms_anytime", draw=measured.arms_anytime, applies=lambda it: any(one.has_exits for one in it.arms)
    ),
    FigureRecord(
        name="ablation_bars", draw=measured.ablation_bars, applies=lambda it: any(one.group for one in it.arms)
    ),
)

FIGURE_NAMES = tuple(one.name for group in (RUN_FIGURES, SEARCH_FIGURES, RUNS_FIGURES, ARMS_FIGURES) for one in group)
