"""The tables at the end of an evaluation: members and ensemble, shared beside independent; and stopping early."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from superweight_ensembles.storage.visible_text import cell

_COLUMNS = ("", "", "MFLOPs", "parameters", "accuracy %", "NLL", "ECE %")


def result_table(results: dict[str, Any]) -> Table:
    """Members, then the ensemble; of each the arms below each other. At most 80 columns for usual names."""
    arms = results["arms"]
    dataset = results["dataset"]
    table = Table(
        title=cell(f"{results['name']}: {dataset['num_test']:,} test images of {dataset['name']}"),
        caption="FLOPs an image, two a multiply-add; parameters of a member: as a plain network",
        box=SIMPLE,
    )
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for index, member in enumerate(arms[0]["members"]):
        for arm in arms:
            row = arm["members"][index]
            bank = arm["name"] == "shared"
            _add(table, arm, arms, member["name"], row, "in the bank" if bank else f"{row['num_parameters']:,}")
    for arm in arms:
        _add(table, arm, arms, "ensemble", arm["ensemble"], f"{arm['num_parameters']:,}", style="bold")
    return table


def anytime_table(results: dict[str, Any]) -> Table | None:
    """The calibrated cascade beside all members, and the areas of the curves; None without an anytime section."""
    arms = [arm for arm in results["arms"] if "anytime" in arm]
    if not arms:
        return None
    table = Table(
        title="stopping early: thresholds from validation images, figures from test images",
        caption="ms: an image, in batches; area: mean accuracy over the logarithm of the FLOPs",
        box=SIMPLE,
    )
    for column in ("", "", "MFLOPs", "ms", "members", "accuracy %", "area %"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for arm in arms:
        found = arm["anytime"]
        curves = {curve["name"]: curve for curve in found["curves"]}
        rows = (
            ("all", curves["stream"]["points"][-1], f"{100 * curves['stream']['area']:.2f}"),
            ("cascade", found["calibrated"], f"{100 * curves['cascade']['area']:.2f}"),
        )
        for what, point, area in rows:
            table.add_row(
                cell(arm["name"]) if what == "all" else "",
                what,
                f"{point['flops'] / 1e6:,.2f}",
                f"{point['latency_ms']:.3f}",
                f"{point['members_used']:.2f}",
                f"{100 * point['accuracy']:.2f}",
                area,
                end_section=what == "cascade",
            )
    return table


def _add(
    table: Table, arm: dict[str, Any], arms: list[dict[str, Any]], name: str, row: dict[str, Any], parameters: str,
    style: str | None = None,
) -> None:  # fmt: skip
    metrics = row["metrics"]
    table.add_row(
        cell(name) if arm is arms[0] else "",
        cell(arm["name"]),
        f"{row['flops'] / 1e6:,.2f}",
        parameters,
        f"{100 * metrics['accuracy']:.2f}",
        f"{metrics['nll']:.4f}",
        f"{100 * metrics['ece']:.2f}",
        style=style,
        end_section=arm is arms[-1],
    )
