"""Writing the report of a run: its figures and what they draw, then the page, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import RunRecord, naming_files, read_results, read_run
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.findings import sentences, tiles
from superweight_ensembles.report.page_tables import (
    anytime_tables,
    facts,
    plan_table,
    provenance_table,
    result_table,
    uncertainty_table,
)
from superweight_ensembles.report.pictures import Picture, run_pictures
from superweight_ensembles.storage import accessing, escape_controls, read_as, write_text

_SECTIONS = {
    "meaning": "What it means",
    "run": "What was run",
    "results": "Results",
    "sharing": "Sharing",
    "anytime": "Anytime",
    "uncertainty": "Uncertainty",
    "widths": "Widths",
    "search": "Search",
    "others": "Other figures",
    "configuration": "Configuration",
    "provenance": "Provenance",
}


def _text(value: object) -> object:
    """Text with a question mark for what UTF-8 cannot hold, and control characters spelled; markup stays."""
    if isinstance(value, Markup):
        return value
    return escape_controls(str(value).encode("utf-8", "replace").decode("utf-8"))


_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=_text,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write a run as one HTML page, its figures as SVG with their data as CSV; return the path of the page.

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
    with naming_files(run / "results.json"):
        pictures: dict[str, list[Picture]] = {}
        for picture in run_pictures(run, results, plan):
            pictures.setdefault(picture.section, []).append(picture)
        tables = {
            "results": result_table(results),
            "plan": plan_table(plan),
            "uncertainty": uncertainty_table(results),
            "provenance": provenance_table(read_as(RunRecord, run / "run.json", "train the run again"), results),
            **anytime_tables(results),
        }
        absent = {"anytime", "widths", "search", "others"} - set(pictures)
        if tables["uncertainty"] is None:
            absent.add("uncertainty")
        text = _PAGES.get_template("page.html").render(
            titles={key: title for key, title in _SECTIONS.items() if key not in absent},
            results=results,
            said=sentences(results),
            tiles=tiles(results),
            facts=facts(results, recipe, plan),
            tables=tables,
            pictures=pictures,
            configuration=recipe.to_yaml(),
        )
    with accessing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def plan_section(plan: SharingPlan) -> Markup:
    """Table of a sharing plan, as HTML: a row a cluster, a column a member, and the account of the budget."""
    module: Any = _PAGES.get_template("sheet.html").module
    return Markup(module.sheet(plan_table(plan)))
