"""Writing the report of a run: its figures where they are missing or old, then the page, whole."""

from __future__ import annotations

from pathlib import Path

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
from superweight_ensembles.report.figures import draw_run, draw_search, read_arms, widths_learned
from superweight_ensembles.report.findings import sentences, tiles
from superweight_ensembles.report.sections import (
    ANYTIME_FIGURES,
    RESULT_FIGURES,
    SEARCH_FIGURES,
    SHARING_FIGURES,
    WIDTH_FIGURES,
    Picture,
    anytime_section,
    configuration_section,
    facts,
    figures,
    origin_section,
    plan_section,
    read_pictures,
    result_section,
)
from superweight_ensembles.report.template import Html, Section, join, page, tag
from superweight_ensembles.storage import read_as, write_text


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write what a run found as one HTML page; figures that are missing or older than the results are drawn first.

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
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise SuperWeightError(f"--out must name an HTML file, such as report.html; got {target}")
    if (run / "compare.json").is_file():
        raise SuperWeightError(f"{run} is a comparison, not a run: superweights plot {run} draws it")
    recipe = read_run(run)
    results, plan = read_results(run)
    read_arms(results)
    with naming_files(run / "results.json"):
        _draw_figures(run, results, plan)
        text = _page(run, recipe, results, plan, read_pictures(run / "figures"))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def _draw_figures(run: Path, results: RunResults, plan: SharingPlan) -> None:
    folder, written = run / "figures", (run / "results.json").stat().st_mtime
    if _old(folder, (*RESULT_FIGURES, *SHARING_FIGURES, *_timed(results), *_learned(results)), written):
        draw_run(results, plan, folder)
    searched = read_search(run)
    if searched is not None and _old(folder, SEARCH_FIGURES, written):
        draw_search(*searched, folder)


def _timed(results: RunResults) -> tuple[str, ...]:
    return ANYTIME_FIGURES if any(arm.anytime for arm in results.arms) else ()


def _learned(results: RunResults) -> tuple[str, ...]:
    return WIDTH_FIGURES if widths_learned(results) else ()


def _old(folder: Path, names: tuple[str, ...], written: float) -> bool:
    paths = [folder / f"{name}.png" for name in names]
    return any(not path.is_file() or path.stat().st_mtime < written for path in paths)


def _page(run: Path, recipe: Recipe, results: RunResults, plan: SharingPlan, pictures: dict[str, Picture]) -> str:
    def drawn(names: tuple[str, ...]) -> Html:
        return figures([pictures[name] for name in names if name in pictures], results, plan)

    timed, learned = _timed(results), _learned(results)
    searched = SEARCH_FIGURES if (run / "search" / "search.json").is_file() else ()
    known = {*RESULT_FIGURES, *SHARING_FIGURES, *searched, *timed, *learned}
    others = tuple(name for name in pictures if name not in known)
    sharing = [drawn(SHARING_FIGURES), tag("h3", "The plan"), plan_section(plan)]
    record = read_as(RunRecord, run / "run.json", "train the run again")
    sections = [
        Section("meaning", "What it means", join(tag("p", said) for said in sentences(results)[1:]), half=True),
        Section("run", "What was run", facts(results, recipe, plan), half=True),
        Section("results", "Results", join([result_section(results), drawn(RESULT_FIGURES)])),
        Section("sharing", "Sharing", join(sharing)),
        Section("anytime", "Anytime", anytime_section(results, drawn(timed)) if timed else None),
        Section("widths", "Widths", drawn(learned) if learned else None),
        Section("search", "Search", drawn(searched) if searched else None),
        Section("others", "Other figures", drawn(others) if others else None),
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
