"""What each figure of a run draws, as CSV: a heading with units, then a row a point, bar or cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from superweight_ensembles.experiment import Epoch, RunResults, SearchRecord, WidthEpoch
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import escape_controls

Rows = list[tuple[object, ...]]
_FORMULA = ("=", "+", "-", "@")  # what makes a spreadsheet compute a text


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """The rows as CSV; None is empty, and no text is a formula to a spreadsheet.

    Example:
        >>> as_csv([("arm", "accuracy (%)"), ("=1+1", 91.5), ("b", None)]).splitlines()
        ['arm,accuracy (%)', "'=1+1,91.5", 'b,']
    """
    written = io.StringIO()
    csv.writer(written).writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = escape_controls(value.encode("utf-8", "replace").decode("utf-8"))
    return f"'{text}" if text.startswith(_FORMULA) else text


def result_tables(results: RunResults, plan: SharingPlan) -> dict[str, Rows]:
    """Heading and rows of every figure that is drawn from results or a plan, by its name."""
    return {
        "accuracy_flops": _accuracy(results),
        "accuracy_parameters": _parameters(results),
        "training_curves": _training(results),
        "reliability_diagram": _reliability(results),
        "sharing_map": [("member", *_PLAN_HEAD), *_layers(plan)],
        "budget_split": _budget(plan),
        "anytime_curves": _anytime(results),
        "uncertainty_curves": _uncertainty(results),
        "width_history": width_rows(results),
    }


_PLAN_HEAD = ("layer", "cluster", "slot", "coefficient vectors")


def search_tables(search: SearchRecord, plans: Mapping[str, SharingPlan]) -> dict[str, Rows]:
    """Heading and rows of every figure of a search, by its name."""
    cosines: Rows = [("cluster", "layer", "set", "follows", "beside layer", "cosine")]
    for cluster in search.clusters:
        for index, row in enumerate(cluster.similarity):
            follows = cluster.targets[cluster.leaders[index]]
            first = (cluster.name, cluster.targets[index], cluster.sets[index], follows)
            values = (None,) * len(cluster.targets) if row is None else row
            cosines += [(*first, *pair) for pair in zip(cluster.targets, values)]
    changes: Rows = [("plan", "member", *_PLAN_HEAD)]
    for name, plan in plans.items():
        changes += [(name.replace("\n", " "), *row) for row in _layers(plan)]
    return {"similarity_matrix": cosines, "sharing_change": changes}


def _layers(plan: SharingPlan) -> Rows:
    return [
        (target.member, target.name, cluster.name, getattr(target, "slot", None),
         " ".join(map(str, getattr(target, "vectors", ()))))
        for cluster in plan.clusters
        for target in cluster.targets
    ]  # fmt: skip


def _accuracy(results: RunResults) -> Rows:
    rows: Rows = [("arm", "members", "FLOPs per image", "test accuracy (%)")]
    for arm in results.arms:
        rows += [(arm.name, " ".join(one.members), one.flops, 100 * one.metrics.accuracy) for one in arm.subsets]
    return rows


def _parameters(results: RunResults) -> Rows:
    rows: Rows = [("arm", "network", "trainable parameters", "test accuracy (%)")]
    for arm in results.arms:
        rows.append((arm.name, "ensemble", arm.num_parameters, 100 * arm.ensemble.metrics.accuracy))
        if arm.name == "independent":
            rows += [(arm.name, one.name, one.num_parameters, 100 * one.metrics.accuracy) for one in arm.members]
    return rows


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _training(results: RunResults) -> Rows:
    rows: Rows = [("arm", "network", "epoch", "training loss (nats)", "validation accuracy (%)")]
    for arm in results.arms:
        for epoch in arm.history:
            losses = [loss for loss in epoch.train_loss.values() if loss is not None]
            found = epoch.validation
            whole = None if found is None else _percent(found.ensemble.accuracy)
            rows.append((arm.name, "ensemble", epoch.epoch, fmean(losses) if losses else None, whole))
            for name, one in ({} if found is None else found.members).items():
                rows.append((arm.name, name, epoch.epoch, epoch.train_loss.get(name), _percent(one.accuracy)))
    return rows


def _reliability(results: RunResults) -> Rows:
    rows: Rows = [("arm", "bin from (%)", "bin to (%)", "mean confidence (%)", "accuracy (%)", "images")]
    for arm in results.arms:
        for one in arm.reliability:
            shares = (one.lower, one.upper, one.confidence, one.accuracy)
            rows.append((arm.name, *map(_percent, shares), one.count))
    return rows


def _budget(plan: SharingPlan) -> Rows:
    rows: Rows = [("part", "template parameters", "coefficient parameters", "other parameters")]
    rows += [(cluster.name, cluster.num_templates, cluster.num_coefficients, 0) for cluster in plan.clusters]
    rows.append(("members' own", 0, 0, plan.num_private))
    rows += [(f"{member.name} apart", 0, 0, member.num_parameters) for member in plan.members]
    return rows


def _anytime(results: RunResults) -> Rows:
    rows: Rows = [("arm", "curve", "FLOPs per image", "latency (ms per image)", "members used", "test accuracy (%)")]
    for arm in results.arms:
        found = arm.anytime
        for kept in (found, found.truncated) if found else ():
            for curve in kept.curves if kept else ():
                name = curve.name if kept is found else f"{curve.name} with truncations"
                for one in curve.points:
                    costs = (one.flops, one.latency_ms, one.members_used)
                    rows.append((arm.name, name, *costs, 100 * one.accuracy))
        for alone in found.members if found else ():
            rows.append((arm.name, alone.name, alone.flops, alone.latency_ms, 1, 100 * alone.accuracy))
        for exit in (found.exits or ()) if found else ():
            rows.append((arm.name, exit.name, exit.flops, None, 1, 100 * exit.accuracy))
    return rows


def _uncertainty(results: RunResults) -> Rows:
    rows: Rows = [("arm", "panel", "corruption", "images answered (%) or severity", "error (%) or accuracy (%)")]
    for arm in results.arms:
        for one in arm.uncertainty.risk_coverage if arm.uncertainty else ():
            rows.append((arm.name, "error", None, 100 * one.coverage, 100 * one.risk))
        for found in arm.shift.corrupted if arm.shift else ():
            rows.append((arm.name, "accuracy", found.corruption, found.severity, 100 * found.metrics.accuracy))
    return rows


def width_rows(results: RunResults) -> Rows:
    rows: Rows = [("arm", "epoch", "member", "layer", "hidden neurons")]
    histories: list[tuple[str, Sequence[Epoch | WidthEpoch]]] = [("before", results.widths or ())]
    histories += [(arm.name, arm.history) for arm in results.arms]
    for name, history in histories:
        for epoch in history:
            for member, own in (epoch.widths or {}).items():
                rows += [(name, epoch.epoch, member, layer, width) for layer, width in own.items()]
    return rows
