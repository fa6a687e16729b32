"""The table of results: members and ensemble, shared beside independent, and the difference of the ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superweight_ensembles.report.elements import NOTHING, Html, join, scrolled, signed, tag
from superweight_ensembles.report.findings import Results, arm_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure: its heading, where a row holds it, how it is written, and whether a difference means anything."""

    heading: str
    value: Callable[[Row], float]
    scale: float = 1.0
    decimals: int
    compared: bool = True

    def cell(self, row: Row) -> str:
        return f"{self.scale * self.value(row):,.{self.decimals}f}"

    def difference(self, row: Row, other: Row) -> str:
        if not self.compared:
            return NOTHING
        return signed(self.scale * (self.value(row) - self.value(other)), self.decimals)


def _metric(name: str) -> Callable[[Row], float]:
    return lambda row: row["metrics"][name]


_COLUMNS = (
    Column(heading="MFLOPs", value=lambda row: row["flops"], scale=1e-6, decimals=2),
    Column(heading="latency ms", value=lambda row: row["latency_ms"], decimals=2, compared=False),
    Column(heading="accuracy %", value=_metric("accuracy"), scale=100, decimals=2),
    Column(heading="NLL", value=_metric("nll"), decimals=4),
    Column(heading="ECE %", value=_metric("ece"), scale=100, decimals=2),
    Column(heading="Brier", value=_metric("brier"), decimals=4),
)


def result_section(results: Results) -> Html:
    """Members, then the ensemble, of each the arms below each other; last what the ensembles differ by."""
    arms: Sequence[Row] = results["arms"]
    headings = ("member", "arm", "parameters", *(column.heading for column in _COLUMNS))
    left = {"member", "arm"}
    head = tag(
        "tr", [tag("th", name, scope="col", class_="left" if name in left else None) for name in headings]
    )  # fmt: skip
    groups = [
        _group(
            member["name"],
            arms,
            [arm["members"][index] for arm in arms],
            [_own(arm, index) for arm in arms],
        )
        for index, member in enumerate(arms[0]["members"])
    ]  # fmt: skip
    groups.append(
        _group(
            "ensemble",
            arms,
            [arm["ensemble"] for arm in arms],
            [f"{arm['num_parameters']:,}" for arm in arms],
            class_="strong",
        )
    )
    note = _NOTE
    shared, independent = arm_of(results, "shared"), arm_of(results, "independent")
    if shared is not None and independent is not None:
        groups.append(_change(shared, independent))
        note += _NOTE_OF_ARMS
    table = tag("table", tag("caption", _caption(results)), tag("thead", head), groups)
    return join([scrolled(table, label="Results, member by member", class_="sheet"), tag("p", note, class_="note")])


_NOTE = (
    "FLOPs an image, two a multiply-add. Latency of one image, median; an ensemble's is the sum over its members. "
    "Parameters of a member: as a plain network. The ensemble is the mean of its members' probabilities. "
    "ECE in 15 bins. Of NLL, ECE and Brier, less is better."
)
_NOTE_OF_ARMS = (
    " Difference: shared minus independent, on the same images. Both arms run the same plain networks, so that their "
    "latencies differ only by what else the machine did."
)


def _own(arm: Row, index: int) -> str:
    return "in the bank" if arm["name"] == "shared" else f"{arm['members'][index]['num_parameters']:,}"


def _caption(results: Results) -> str:
    dataset, training = results["dataset"], results["arms"][0].get("training") or {}
    where = f", on {training['device']}" if training.get("device") else ""
    return f"{dataset['num_test']:,} test images of {dataset['name']}{where}"


def _group(
    name: str, arms: Sequence[Row], rows: Sequence[Row], parameters: Sequence[str], class_: str | None = None
) -> Html:
    lines = []
    for index, (arm, row) in enumerate(zip(arms, rows)):
        first = [tag("th", name, scope="rowgroup", rowspan=len(arms))] if index == 0 else []
        cells = [tag("td", parameters[index]), *(tag("td", column.cell(row)) for column in _COLUMNS)]
        lines.append(tag("tr", first, tag("td", arm["name"], class_="left"), cells))
    return tag("tbody", lines, class_=class_)


def _change(shared: Row, independent: Row) -> Html:
    """Paired: both arms saw the same test images."""
    saved = shared["num_parameters"] - independent["num_parameters"]
    cells = [column.difference(shared["ensemble"], independent["ensemble"]) for column in _COLUMNS]
    return tag(
        "tbody",
        tag(
            "tr",
            tag("th", "difference", scope="row"),
            tag("td", "paired", class_="left"),
            tag("td", signed(saved, 0)),
            [tag("td", cell) for cell in cells],
        ),
        class_="change",
    )
