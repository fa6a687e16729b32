"""The pictures of the page: figures of a run with title, reading help, description and data."""

from __future__ import annotations

import base64
import csv
import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import RunResults, read_search
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figures import catalog, style
from superweight_ensembles.storage import escape_controls, read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE = 1000  # pixels; figures are one column (800) or a page (1400)
_MOST_SVG_BYTES = 1_000_000
_RECORDS: tuple[catalog.PageFigure[...], ...] = (*catalog.RUN_FIGURES, *catalog.SEARCH_FIGURES)
_FORMULA = ("=", "+", "-", "@")  # first characters of a text that a spreadsheet computes


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Figure as SVG or PNG, its size in pixels, and its data as CSV where they are known."""

    name: str
    width: int
    height: int
    data: bytes
    kind: str = "png"
    csv: str = ""
    section: str
    title: str
    reading: str
    alt: str

    @property
    def wide(self) -> bool:
        """Whether it takes a line of its own."""
        return self.width >= _WIDE

    @property
    def uri(self) -> Markup:
        return _data_uri(f"image/{self.kind}", self.data)

    @property
    def csv_uri(self) -> Markup:
        return _data_uri("text/csv;charset=utf-8", self.csv.encode())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")


@style.styled
def run_pictures(run: Path, results: RunResults, plan: SharingPlan) -> list[Picture]:
    """Figures of a run and of its search, then the PNG files of its folder that are not by this library."""
    others = read_pictures(run / "figures")
    drawn = catalog.draw_all(catalog.RUN_FIGURES, results, plan)
    rows = {one.name: one.rows(results, plan) for one in catalog.RUN_FIGURES}
    if (searched := read_search(run)) is not None:
        drawn |= catalog.draw_all(catalog.SEARCH_FIGURES, *searched)
        rows |= {one.name: one.rows(*searched) for one in catalog.SEARCH_FIGURES}
    return [
        _picture(one, drawn[one.name], rows[one.name], results, plan) for one in _RECORDS if one.name in drawn
    ] + others


def _picture(
    record: catalog.PageFigure[...], figure: Figure, rows: catalog.Rows, results: RunResults, plan: SharingPlan
) -> Picture:
    """Figure as SVG without a date, so that one run gives one page; as PNG where the SVG is huge."""
    data = b""
    for kind in ("svg+xml", "png"):
        written = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": record.name, "svg.fonttype": "path"}):
            undated = {"Date": None} if kind == "svg+xml" else None
            figure.savefig(written, format=kind[:3], dpi=style.DOTS_PER_INCH, metadata=undated)
        data = written.getvalue()
        if len(data) <= _MOST_SVG_BYTES:
            break
    width, height = (round(float(inches) * style.DOTS_PER_INCH) for inches in figure.get_size_inches())
    return Picture(
        name=record.name,
        width=width,
        height=height,
        data=data,
        kind=kind,
        csv=as_csv(rows),
        section=record.section,
        title=record.title,
        reading=record.reading if isinstance(record.reading, str) else record.reading(plan),
        alt=record.describe(results, plan),
    )


def read_pictures(folder: Path) -> list[Picture]:
    """PNG files of a folder that are no figures of this library, by their names; other content is refused."""
    pictures = []
    for path in sorted(folder.glob("[!.]*.png")):
        data = read_bytes(path)
        if len(data) < 24 or not data.startswith(_SIGNATURE):
            raise SuperWeightError(f"{path} is no PNG file: remove it and write the report again")
        width, height = struct.unpack(">II", data[16:24])
        if path.stem not in catalog.FIGURE_NAMES:
            picture = Picture(
                name=path.stem,
                width=width,
                height=height,
                data=data,
                section="others",
                title=title_of_file(path.stem),
                reading=f"From figures/{path.name}.",
                alt=_without_description(path.stem),
            )
            pictures.append(picture)
    return pictures


def title_of_file(name: str) -> str:
    """Title of a picture that this library does not draw.

    Example:
        >>> title_of_file("my_own-figure")
        'My own figure'
    """
    words = name.replace("_", " ").replace("-", " ").strip() or name
    return words[0].upper() + words[1:]


def describe(name: str, results: RunResults, plan: SharingPlan) -> str:
    """Words and numbers for what a figure shows, for those who do not see it."""
    found = next((one for one in _RECORDS if one.name == name), None)
    return found.describe(results, plan) if found else _without_description(name)


def _without_description(name: str) -> str:
    return f"{title_of_file(name)}: a figure in the run's folder, without a description."


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
