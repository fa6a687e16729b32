"""Writing the report of a run: its figures and what they draw, then the page, whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import (
    Recipe,
    RunRecord,
    RunResults,
    naming_files,
    read_results,
    read_run,
    read_search,
)
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report import figures as drawing
from superweight_ensembles.report.figure_data import Rows, as_csv, result_tables, search_tables
from superweight_ensembles.report.findings import sentences, tiles
from superweight_ensembles.report.sections import (
    Picture,
    anytime_section,
    configuration_section,
    facts,
    figure_names,
    figures,
    origin_section,
    plan_section,
    read_pictures,
    result_section,
    uncertainty_section,
)
from superweight_ensembles.report.template import Html, Section, join, page, tag
from superweight_ensembles.storage import accessing, read_as, write_text

_MOST_SVG_BYTES = 1_000_000


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write what a run found as one HTML page: its figures, as SVG, with what they draw as CSV.

    Other PNG files in RUN/figures are shown as they are.

    Args:
        run: Folder of an evaluated run.
        out: The page, ``.html``; RUN/report.html where None.

    Returns:
        The page's path.

    Raises:
        SuperWeightError: No run folder, a comparison, not evaluated yet, damaged results, or ``out`` is no HTML file.

    Example:
        ``superweights report runs/mine`` is ``write_report("runs/mine")``.
    """
    run = Path(run)
    target = run / "report.html" if out is None else Path(out)
    with accessing(target):
        if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
            raise SuperWeightError(f"--out must name an HTML file, such as report.html; got {target}")
    with accessing(run, "read"):
        if (run / "compare.json").is_file():
            raise SuperWeightError(f"{run} is a comparison, not a run: superweights plot {run} draws it")
    recipe = read_run(run)
    results, plan = read_results(run)
    drawing.read_arms(results)
    with naming_files(run / "results.json"):
        names = figure_names(results, searched=(run / "search" / "search.json").is_file())
        text = _page(run, recipe, results, plan, names)
    with accessing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


@drawing.style.plain_text
def _draw(run: Path, results: RunResults, plan: SharingPlan, names: dict[str, tuple[str, ...]]) -> dict[str, Picture]:
    """The figures of a run, each with what it draws."""
    tables, drawn = result_tables(results, plan), {}
    wanted: dict[str, Callable[[], Figure]] = {}
    for name in (name for key, own in names.items() if key != "search" for name in own):
        source = plan if name in ("sharing_map", "budget_split") else results
        wanted[name] = partial(getattr(drawing, name), source)
    searched = read_search(run)
    if searched is not None:
        search, plans = searched
        tables |= search_tables(search, plans)
        wanted["similarity_matrix"] = partial(drawing.similarity_matrix, search)
        wanted["sharing_change"] = partial(drawing.sharing_change, plans)
    for name, draw in wanted.items():
        drawn[name] = _picture(name, draw(), tables[name])
    return drawn


def _picture(name: str, figure: Figure, rows: Rows) -> Picture:
    """A figure as SVG without a date, so that one run gives one page; as PNG where the SVG is huge."""
    data = b""
    for kind in ("svg+xml", "png"):
        written = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
            undated = {"Date": None} if kind == "svg+xml" else None
            figure.savefig(written, format=kind[:3], dpi=drawing.style.DOTS_PER_INCH, metadata=undated)
        data = written.getvalue()
        if len(data) <= _MOST_SVG_BYTES:
            break
    width, height = (round(float(inches) * drawing.style.DOTS_PER_INCH) for inches in figure.get_size_inches())
    return Picture(name=name, width=width, height=height, data=data, kind=kind, csv=as_csv(rows))


def _page(run: Path, recipe: Recipe, results: RunResults, plan: SharingPlan, names: dict[str, tuple[str, ...]]) -> str:
    pictures = {**read_pictures(run / "figures"), **_draw(run, results, plan, names)}
    others = [name for name in pictures if not hasattr(drawing, name)]
    drawn = {
        key: figures([pictures[name] for name in own if name in pictures], results, plan)
        for key, own in {**names, **({"others": others} if others else {})}.items()
    }
    sharing = [drawn["sharing"], tag("h3", "The plan"), plan_section(plan)]
    record = read_as(RunRecord, run / "run.json", "train the run again")
    sections = [
        Section("meaning", "What it means", join(tag("p", said) for said in sentences(results)[1:]), half=True),
        Section("run", "What was run", facts(results, recipe, plan), half=True),
        Section("results", "Results", join([result_section(results), drawn["results"]])),
        Section("sharing", "Sharing", join(sharing)),
        Section("anytime", "Anytime", anytime_section(results, drawn["anytime"]) if "anytime" in drawn else None),
        Section("uncertainty", "Uncertainty", uncertainty_section(results, drawn.get("uncertainty", ""))),
        Section("widths", "Widths", drawn.get("widths")),
        Section("search", "Search", drawn.get("search")),
        Section("others", "Other figures", drawn.get("others")),
        Section("configuration", "Configuration", configuration_section(recipe)),
        Section("provenance", "Provenance", origin_section(record, results)),
    ]
    return page(f"{results.name}: report", _header(results), sections)


def _header(results: RunResults) -> Html:
    members = len(results.arms[0].members)
    kind = f"Ensemble of {members} member{'s' * (members != 1)} on {results.dataset.name}, seed {results.seed}"
    numbers = [
        tag("div", tag("dt", tile.name), tag("dd", tile.value, class_="value"), tag("dd", tile.beside, class_="beside"))
        for tile in tiles(results)
    ]
    said = [tag("p", kind, class_="kind"), tag("h1", results.name), tag("p", sentences(results)[0], class_="lead")]
    return join([*said, tag("dl", numbers, class_="tiles")])
