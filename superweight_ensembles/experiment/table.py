"""A comparison as tables to read in a terminal: what the arms answer, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from superweight_ensembles.storage.visible_text import cell

Cell = Callable[[dict[str, Any]], str]


def comparison_tables(comparison: dict[str, Any]) -> tuple[Table, Table]:
    """One row an arm, at most 80 columns for usual names: quality, then cost. Mean and deviation over seeds."""
    dataset = comparison["dataset"]
    seeds = len(comparison["seeds"])
    quality = _table(
        comparison,
        {
            "accuracy %": lambda arm: _spread(arm["summary"]["accuracy"]),
            "ours minus it": lambda arm: (
                "" if arm is comparison["arms"][0] else _spread(arm["difference"]["accuracy"], sign="+")
            ),
            "NLL": lambda arm: f"{arm['summary']['nll']['mean']:.4f}",
            "ECE %": lambda arm: f"{100 * arm['summary']['ece']['mean']:.2f}",
            "Brier": lambda arm: f"{arm['summary']['brier']['mean']:.4f}",
        },
    )
    quality.title = cell(
        f"{comparison['name']}: {dataset['num_test']:,} test images of {dataset['name']}, "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
    fewer = any(arm["summary"]["accuracy"]["n"] < seeds for arm in comparison["arms"])
    quality.caption = (
        "mean +- standard deviation over seeds; 'ours minus it': points of accuracy, paired by seed"
        + "; without +-: one seed" * fewer
    )
    cost = _table(
        comparison,
        {
            "parameters": lambda arm: f"{arm['num_parameters']:,}",
            "MFLOPs": lambda arm: f"{arm['flops'] / 1e6:,.1f}",
            "members %": lambda arm: f"{100 * arm['summary']['mean_member_accuracy']['mean']:.2f}",
            "diversity": lambda arm: _mean(arm, "diversity"),
            "training min": lambda arm: f"{arm['summary']['training_seconds']['mean'] / 60:.1f}",
        },
    )
    cost.caption = (
        "FLOPs an image, two a multiply-add; members: their mean accuracy; diversity: pairwise disagreement over error"
    )
    return quality, cost


def _table(comparison: dict[str, Any], columns: dict[str, Cell]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for arm in comparison["arms"]:
        row = [written(arm) for written in columns.values()]
        table.add_row(cell(arm["label"]), *row, style="bold" if arm is comparison["arms"][0] else None)
    return table


def _spread(value: dict[str, float], sign: str = "") -> str:
    """A mean in per cent, with its deviation where there are several seeds."""
    mean = f"{100 * value['mean']:{sign}.2f}"
    return mean if value["n"] == 1 else f"{mean} +- {100 * value['std']:.2f}"


def _mean(arm: dict[str, Any], name: str) -> str:
    return f"{arm['summary'][name]['mean']:.2f}" if name in arm["summary"] else ""
