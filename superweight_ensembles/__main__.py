"""The command line: one verb a job. Exit codes: 0 done, 1 a defect of this program, 2 a mistake of the user."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from superweight_ensembles.errors import SuperWeightError, stop_now
from superweight_ensembles.storage import bundled_recipes, escape_controls, trust_from_here

if TYPE_CHECKING:
    from superweight_ensembles.experiment import Baseline, Recipe
    from superweight_ensembles.training import TrainProgress

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Ensembles of different networks inside one parameter budget.",
)
_SEVERAL = os.environ.get("WORLD_SIZE", "") not in ("", "0", "1")
_RANK = int(os.environ["RANK"]) if _SEVERAL and os.environ.get("RANK", "").isdecimal() else 0
_CONSOLE = Console(quiet=_RANK > 0)  # of several processes, the first alone tells what all of them do
_ERRORS = Console(stderr=True)
_BARS = Console(stderr=True, quiet=_RANK > 0)

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help=f"A recipe file; or by name one that the library carries: {', '.join(bundled_recipes())}.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `superweights train` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key: --set training.epochs=5. Repeatable."),
]


def _no_option(given: Path | None) -> Path | None:
    """Refuse what was meant for the next option."""
    if given is not None and str(given).startswith("--"):
        raise SuperWeightError(f"--out {given}: a path is missing after --out, and no path may begin with '--'")
    return given


def _out(help: str, metavar: str | None = None) -> Any:
    return typer.Option("--out", metavar=metavar, help=help, callback=_no_option)


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


@app.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that recipes and ensembles name (python:MODULE.NAME).")
    ] = False,
) -> None:
    if trust:
        trust_from_here()
    if _SEVERAL and context.invoked_subcommand != "train":
        raise SuperWeightError(f"{context.invoked_subcommand} runs in one process: start it without torchrun")
    if context.invoked_subcommand in ("train", "compare"):  # which say how to go on
        _hear_sigterm()
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    if not verbose:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it builds its cache of fonts


def _hear_sigterm() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop_now)


@app.command()
def train(
    recipe: RecipePath,
    out: Annotated[Path | None, _out("Run folder; runs/NAME where not given.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a run folder that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run folder that is there.")] = False,
) -> None:
    """Train a recipe's ensemble, and the same members apart as its baseline, into a run folder.

    On several processes: torchrun --nproc-per-node N -m superweight_ensembles train RECIPE
    """
    from superweight_ensembles.experiment import train_run

    chosen = _chosen(recipe, overrides)
    folder = out or Path("runs") / chosen.name
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:  # torchrun starts the same command again
        resume, overwrite = True, False
    with _progress_bars() as (bars, progress_of):
        try:
            train_run(chosen, folder, resume=resume, overwrite=overwrite, progress_of=progress_of)
        except KeyboardInterrupt as stop:
            bars.stop()
            if (folder / "recipe.yaml").is_file():
                command = f"superweights train {folder / 'recipe.yaml'} --out {folder} --resume"
                _say_stopped(stop, f"go on: {command}")
            raise typer.Exit(_exit_code(stop)) from None
    _say(f"trained: {folder}")


@app.command()
def evaluate(run: RunPath) -> None:
    """Evaluate a trained run on its test data: members, ensemble and every subset, with their costs."""
    from superweight_ensembles.experiment import anytime_table, evaluate_run, result_table, uncertainty_table

    with _ERRORS.status("evaluating members, ensemble and every subset"):
        results = evaluate_run(run)
    _CONSOLE.print(result_table(results))
    for table in (anytime_table(results), uncertainty_table(results)):
        if table is not None:
            _CONSOLE.print(table)
    _say(f"results: {run / 'results.json'}")


@app.command()
def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a folder of a saved ensemble or predictor.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    deadline_ms: Annotated[
        float | None,
        typer.Option("--deadline-ms", help="Milliseconds for each batch."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images that are answered together.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with every probability.")] = False,
) -> None:
    """Say what is on images: the most probable class of each, how sure that is, and how many members were asked."""
    from superweight_ensembles.experiment import predict_files
    from superweight_ensembles.storage import as_content

    broken = 0
    for found in predict_files(run, images, deadline_ms=deadline_ms, batch_size=batch_size):
        if found.error is not None:
            broken += 1
            _say(f"error: {found.error}", _ERRORS, style="red")
        elif as_json:
            print(json.dumps(as_content(found)))
        else:
            members = f"{found.members_used} member{'s' * (found.members_used != 1)}"
            _say(f"{found.file}: {found.label} {100 * found.confidence:.1f} %, {members}")
    if broken:
        raise typer.Exit(2)


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Evaluated run folders; or the folder of a comparison.",
        ),
    ],
    out: Annotated[Path | None, _out("Folder for the figures; RUN/figures, or runs/comparison for several.")] = None,
    formats: Annotated[str, typer.Option("--format", metavar="FORMAT,...", help="By comma: png, pdf, svg.")] = "png",
    width: Annotated[
        str | None,
        typer.Option("--width", help="Of every figure: column (4 inches), page (7) or inches; each one's own if left."),
    ] = None,
    style: Annotated[
        str, typer.Option("--style", help="light, dark, a style of Matplotlib by name, or an .mplstyle file.")
    ] = "light",
) -> None:
    """Draw the figures of one run, those that compare several, or those of a comparison."""
    from superweight_ensembles.experiment import naming_files, read_comparison, read_results, read_search
    from superweight_ensembles.report.figures import FigureOptions, draw_arms, draw_comparison, draw_run, draw_search

    options = FigureOptions(formats=tuple(one.strip() for one in formats.split(",")), width=width, style=style)
    folder = out or (runs[0] / "figures" if len(runs) == 1 else Path("runs") / "comparison")
    with naming_files(*runs):
        if len(runs) > 1:
            drawn = draw_comparison([read_results(run)[0] for run in runs], folder, options)
        elif (runs[0] / "compare.json").is_file():
            drawn = draw_arms(read_comparison(runs[0]), folder, options)
        else:
            _refuse_benchmark(runs[0])
            evaluated, searched = read_results(runs[0]), read_search(runs[0])
            drawn = draw_run(*evaluated, folder, options)
            if searched is not None:
                drawn += draw_search(*searched, folder, options)
    _say(f"{len({path.stem for path in drawn})} figures: {folder}")


def _refuse_benchmark(folder: Path) -> None:
    """A folder without a run may hold what a benchmark of this project measured."""
    from superweight_ensembles.storage import read_json

    files = [] if (folder / "recipe.yaml").is_file() else sorted(folder.glob("*.json"))
    if file := next((file for file in files if "benchmark" in read_json(file)), None):
        raise SuperWeightError(
            f"{file} is of a benchmark, not of a run: python benchmarks/draw.py {folder} draws it, if it has a figure"
        )


@app.command()
def report(
    run: RunPath,
    out: Annotated[Path | None, _out(metavar="FILE", help="The page; RUN/report.html where not given.")] = None,
) -> None:
    """Write an evaluated run as one HTML page that needs nothing else: results, figures, sharing, provenance."""
    from superweight_ensembles.report import write_report

    with _ERRORS.status("drawing figures and writing the page"):
        page = write_report(run, out)
    _say(f"report: {page}")


@app.command()
def export(
    run: RunPath,
    member: Annotated[str | None, typer.Option("--member", help="The member to export.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Of a member: torch-export (the default), onnx or state-dict.")
    ] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="The whole calibrated cascade, as ONNX files with their loader.")
    ] = False,
    arm: Annotated[str, typer.Option("--arm", help="shared or independent.")] = "shared",
    out: Annotated[Path | None, _out("File or folder; RUN/export/MEMBER.* or RUN/export/cascade.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write one member of a trained run, or its calibrated cascade, as files that do not need this library."""
    from superweight_ensembles.experiment import export_run_cascade, export_run_member

    if cascade == (member is not None):
        raise SuperWeightError("give either --member NAME or --cascade")
    if cascade and format is not None:
        raise SuperWeightError("--cascade writes ONNX files: leave --format out")
    with _ERRORS.status("exporting"):
        if member is None:
            written = export_run_cascade(run, arm=arm, out=out, overwrite=overwrite)
        else:
            written = export_run_member(
                run, member, format=format or "torch-export", arm=arm, out=out, overwrite=overwrite
            )
    _say(f"exported: {written}")


@app.command()
def compare(
    context: typer.Context,
    recipe: RecipePath,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="By comma: independent, single, narrower; NAME:N for N seeds alone: --against independent,single:1.",
        ),
    ] = "independent",
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="'NAME: KEY=VALUE; ...'",
            help="The shared ensemble under other settings, as one more arm: --variant 'half: sharing.budget=0.5; "
            "training.epochs=20'. GROUP/NAME: ... stands under a heading in figures. Repeatable.",
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets", metavar="BUDGET,...", help="The shared ensemble at these budgets as well: 0.1,0.5,2.0."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds, from the recipe's upwards.")] = 3,
    out: Annotated[Path | None, _out("Folder; runs/NAME-comparison where not given.")] = None,
    overrides: Overrides = None,
    overrides_of_arms: Annotated[
        list[str] | None,
        typer.Option("--set-for", metavar="ARM:KEY=VALUE", help="Override a recipe key for one arm alone. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; arms and seeds may be added.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that is there.")] = False,
) -> None:
    """Train a recipe's ensemble beside other ensembles, over several seeds; print a table and draw figures."""
    from superweight_ensembles.experiment import (
        compare_arms,
        comparison_tables,
        parse_budgets,
        parse_variant,
    )
    from superweight_ensembles.report.figures import draw_arms

    if idle := next((one for one in overrides or () if re.match(r"baseline\b", one)), None):
        raise SuperWeightError(
            f"--set {idle} does nothing in a comparison, which has the arms of --against: leave it out"
        )
    chosen = _chosen(recipe, overrides)
    folder = out or Path("runs") / f"{chosen.name}-comparison"
    with _progress_bars() as (bars, progress_of):
        try:
            comparison = compare_arms(
                chosen,
                folder,
                against=[name.strip() for name in against.split(",") if name.strip()],
                variants=[
                    *(parse_variant(text) for text in variants or ()),
                    *(parse_budgets(budgets) if budgets is not None else ()),
                ],
                overrides=overrides_of_arms or (),
                baselines=context.obj,
                num_seeds=seeds,
                resume=resume,
                overwrite=overwrite,
                progress_of=progress_of,
            )
        except KeyboardInterrupt as stop:
            bars.stop()
            _say_stopped(stop, "go on: the same command with --resume")
            raise typer.Exit(_exit_code(stop)) from None
    for table in comparison_tables(comparison):
        _CONSOLE.print(table)
    drawn = draw_arms(comparison, folder / "figures")
    _say(f"comparison: {folder / 'comparison.json'}")
    _say(f"{len(drawn)} figures: {folder / 'figures'}")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")] = False,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            "--flops-per-second",
            help="Of another machine, for the time there; not given, some steps of every training are timed here.",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=2**20, help="Tell how so many processes would divide the training.")
    ] = 1,
) -> None:
    """Print what a recipe would share, and what it costs; nothing is trained and no data are read."""
    from superweight_ensembles.experiment import planned_run, preview_lines

    if json and (flops_per_second is not None or processes > 1):
        raise SuperWeightError("--json prints the plan alone: leave --flops-per-second and --processes out")
    chosen = _chosen(recipe, overrides)
    members, found = planned_run(chosen)
    if json:
        _say(found.to_json())
        return
    _say("\n".join(preview_lines(chosen, members, found, flops_per_second, processes)))


def _chosen(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe that a command is given."""
    from superweight_ensembles.experiment import check_overrides, load_recipe

    check_overrides(overrides or ())
    return load_recipe(path, overrides or ())


def _say_stopped(stop: KeyboardInterrupt, remedy: str) -> None:
    what = str(stop) if getattr(stop, "saved", False) else "interrupted; the last checkpoint is kept"
    _say(f"{what}; {remedy}", _BARS)


def _exit_code(stop: KeyboardInterrupt) -> int:
    """As shells say it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + int(getattr(stop, "signal", signal.SIGINT))


def _say(text: str, console: Console = _CONSOLE, style: str | None = None) -> None:
    """Print text as it is: names in it are no markup, and no controls of the terminal."""
    console.print(escape_controls(text), style=style, markup=False, soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None, baselines: Mapping[str, Baseline] | None = None) -> None:
    """Entry point: a user's mistake is one line and exit code 2, never a traceback.

    Args:
        arguments: Of the command; those of the process where None.
        baselines: What ``compare`` takes ``--against`` besides the library's own, by name.
    """
    try:
        app(arguments, obj=baselines)
    except (SuperWeightError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            from superweight_ensembles.storage import PathError

            error = PathError(None, "read or written", error)
        who = f"process {_RANK}: " if _RANK else ""
        _say(f"error: {who}{error}", _ERRORS, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _progress_bars() -> Iterator[tuple[Progress, Callable[[str], Callable[[TrainProgress], None]]]]:
    """Bars on the error stream, and what makes one for a stage by name."""
    from superweight_ensembles.training import describe_epoch, progress_columns

    with Progress(*progress_columns(), console=_BARS) as bars:

        def progress_of(stage: str) -> Callable[[TrainProgress], None]:
            tasks: dict[str, TaskID] = {}

            def show(progress: TrainProgress) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(
                        escape_controls(stage), total=progress.epochs * progress.steps_per_epoch, state=""
                    )
                done = (progress.epoch - 1) * progress.steps_per_epoch + progress.step
                bars.update(tasks[stage], completed=done)
                if progress.record is not None:
                    bars.update(tasks[stage], state=describe_epoch(progress.record))

            return show

        yield bars, progress_of


if __name__ == "__main__":
    main()
