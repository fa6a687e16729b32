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
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
import typer.core
from rich.console import Console
from rich.progress import Progress, TaskID

from superweight_ensembles.errors import SuperWeightError, stop_now, unknown_name
from superweight_ensembles.storage import (
    bundled_recipes,
    escape_controls,
    parse_yaml,
    read_yaml,
    recipe_comment,
    trust_from_here,
)

if TYPE_CHECKING:
    from superweight_ensembles.experiment import Baseline, Recipe
    from superweight_ensembles.training import TrainProgress


class _PlainFlags:
    """A command whose help names no type beside a flag."""

    def get_params(self, context: Any) -> list[Any]:
        found: list[Any] = super().get_params(context)  # type: ignore[misc]
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found


class _Group(_PlainFlags, typer.core.TyperGroup):
    pass


class _Command(_PlainFlags, typer.core.TyperCommand):
    pass


app = typer.Typer(
    cls=_Group,
    context_settings={"help_option_names": ["--help", "-h"]},
    invoke_without_command=True,  # which shows the help
    pretty_exceptions_enable=False,
    help="Ensembles of different networks inside one parameter budget.",
)
_command = partial(app.command, cls=_Command)
_SEVERAL = os.environ.get("WORLD_SIZE", "") not in ("", "0", "1")
_RANK = int(os.environ["RANK"]) if _SEVERAL and os.environ.get("RANK", "").isdecimal() else 0
_CONSOLE = Console(quiet=_RANK > 0)  # of several processes, only the first prints
_NOTES = Console(quiet=_RANK > 0)  # what --quiet and --json leave out
_ERRORS = Console(stderr=True)
_BARS = Console(stderr=True, quiet=_RANK > 0)
_UsageError: Any = typer.BadParameter.__base__  # click's; some versions of typer bundle click


def _complete_recipe(incomplete: str) -> list[str]:
    """Names of bundled recipes, and files."""
    beside = Path(incomplete + "_").parent
    files = [str(path) for path in beside.glob("*.y*ml")] + [f"{path}/" for path in beside.glob("*/")]
    return [name for name in (*bundled_recipes(), *sorted(files)) if name.startswith(incomplete)]


def _complete_member(context: typer.Context, incomplete: str) -> list[str]:
    """Members of the run that is named before."""
    try:
        members = read_yaml(Path(context.params["run"]) / "recipe.yaml")["members"]
        return [name for name in (str(member["name"]) for member in members) if name.startswith(incomplete)]
    except (KeyError, TypeError, SuperWeightError):
        return []  # no such run yet


RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a bundled recipe (superweights list recipes).",
        autocompletion=_complete_recipe,
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `superweights train` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key: --set training.epochs=5. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same numbers as JSON, and nothing else.")]


def _no_option(given: Path | None) -> Path | None:
    """Refuse a path that was meant as the next option."""
    if given is not None and str(given).startswith("--"):
        raise SuperWeightError(f"--out {given}: a path is missing after --out, and no path may begin with '--'")
    return given


def _out(help: str, metavar: str | None = None) -> Any:
    return typer.Option("--out", metavar=metavar, help=help, callback=_no_option)


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"superweights {importlib.metadata.version('superweight-ensembles')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that recipes and ensembles name (python:MODULE.NAME).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    if quiet and verbose:
        raise SuperWeightError("--quiet and --verbose ask for less and for more: leave one of them out")
    _NOTES.quiet = _BARS.quiet = quiet or _RANK > 0
    if trust:
        trust_from_here()
    if _SEVERAL and context.invoked_subcommand not in ("train", "evaluate"):
        raise SuperWeightError(f"{context.invoked_subcommand} runs in one process: start it without torchrun")
    if context.invoked_subcommand in ("train", "compare"):  # which say how to go on
        _hear_sigterm()
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(levelname)s %(message)s"))
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    if not verbose:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # else it says that it builds its font cache


def _hear_sigterm() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop_now)


@_command()
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
    kept = folder / "recipe.yaml"
    with _progress_bars(f"superweights train {kept} --out {folder} --resume", kept.is_file) as progress_of:
        train_run(chosen, folder, resume=resume, overwrite=overwrite, progress_of=progress_of)
    _say(f"trained: {folder}", _NOTES)


@_command()
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Evaluate a trained run on its test data: members, ensemble and (in results.json) every subset, with their costs.

    On several processes: torchrun --nproc-per-node N -m superweight_ensembles evaluate RUN
    """
    from superweight_ensembles.experiment import anytime_table, evaluate_run, result_table, uncertainty_table

    with _BARS.status("evaluating members, ensemble and every subset"):
        results = evaluate_run(run)
    if as_json:
        _print_json(results)
        return
    _CONSOLE.print(result_table(results))
    for table in (anytime_table(results), uncertainty_table(results)):
        if table is not None:
            _CONSOLE.print(table)
    _say(f"results: {run / 'results.json'} (every subset of members, too)", _NOTES)


@_command()
def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a folder of a saved ensemble or predictor.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    deadline_ms: Annotated[float | None, typer.Option("--deadline-ms", help="Milliseconds for each batch.")] = None,
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


@_command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Evaluated run folders; or the folder of a comparison.")
    ],
    out: Annotated[Path | None, _out("Folder for the figures; RUN/figures, or runs/comparison for several.")] = None,
    formats: Annotated[str, typer.Option("--format", metavar="FORMAT,...", help="By comma: png, pdf, svg.")] = "png",
    width: Annotated[
        str | None,
        typer.Option("--width", help="Width of all figures: column (4 inches), page (7) or inches; else each its own."),
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
    _say(f"{len({path.stem for path in drawn})} figures: {folder}", _NOTES)


def _refuse_benchmark(folder: Path) -> None:
    """Refuse a folder that holds results of a benchmark of this project instead of a run."""
    from superweight_ensembles.storage import read_json

    files = [] if (folder / "recipe.yaml").is_file() else sorted(folder.glob("*.json"))
    if file := next((file for file in files if "benchmark" in read_json(file)), None):
        raise SuperWeightError(
            f"{file} is of a benchmark, not of a run: python benchmarks/draw.py {folder} draws it, if it has a figure"
        )


@_command()
def report(
    run: RunPath,
    out: Annotated[Path | None, _out(metavar="FILE", help="The page; RUN/report.html where not given.")] = None,
) -> None:
    """Write an evaluated run as one HTML page that needs nothing else: results, figures, sharing, provenance."""
    from superweight_ensembles.report import write_report

    with _BARS.status("drawing figures and writing the page"):
        page = write_report(run, out)
    _say(f"report: {page}", _NOTES)


@_command()
def export(
    run: RunPath,
    member: Annotated[
        str | None, typer.Option("--member", help="The member to export.", autocompletion=_complete_member)
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Format of a member: torch-export (the default), onnx or state-dict.")
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
    with _BARS.status("exporting"):
        if member is None:
            written = export_run_cascade(run, arm=arm, out=out, overwrite=overwrite)
        else:
            written = export_run_member(
                run, member, format=format or "torch-export", arm=arm, out=out, overwrite=overwrite
            )
    _say(f"exported: {written}", _NOTES)


@_command()
def compare(
    context: typer.Context,
    recipe: RecipePath,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="By comma: independent, single, narrower; NAME:N for N seeds only: --against independent,single:1.",
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
        typer.Option("--set-for", metavar="ARM:KEY=VALUE", help="Override a recipe key for one arm only. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; arms and seeds may be added.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's ensemble beside other ensembles, over several seeds; print a table and draw figures."""
    from superweight_ensembles.experiment import compare_arms, comparison_tables, parse_budgets, parse_variant
    from superweight_ensembles.report.figures import draw_arms

    if idle := next((one for one in overrides or () if re.match(r"baseline\b", one)), None):
        raise SuperWeightError(
            f"--set {idle} does nothing in a comparison, which has the arms of --against: leave it out"
        )
    chosen = _chosen(recipe, overrides)
    folder = out or Path("runs") / f"{chosen.name}-comparison"
    with _progress_bars("the same command with --resume") as progress_of:
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
    drawn = draw_arms(comparison, folder / "figures")
    if as_json:
        _print_json(comparison)
        return
    for table in comparison_tables(comparison):
        _CONSOLE.print(table)
    _say(f"comparison: {folder / 'comparison.json'}", _NOTES)
    _say(f"{len(drawn)} figures: {folder / 'figures'}", _NOTES)


@_command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")] = False,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            "--flops-per-second",
            help="Speed of another machine, for the time there; without it, steps of every training are timed here.",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=2**20, help="Number of processes that divide the training.")
    ] = 1,
) -> None:
    """Print what a recipe would share, and what it costs; nothing is trained and no data are read."""
    from superweight_ensembles.experiment import planned_run, preview_lines

    if as_json and (flops_per_second is not None or processes > 1):
        raise SuperWeightError("--json prints the plan alone: leave --flops-per-second and --processes out")
    chosen = _chosen(recipe, overrides)
    members, found = planned_run(chosen)
    if as_json:
        _say(found.to_json())
        return
    _say("\n".join(preview_lines(chosen, members, found, flops_per_second, processes)))


_LISTED = ("recipes", "models", "datasets", "optimizers", "schedules", "transforms")


@_command("list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="|".join(_LISTED), help="What to list.")],
    pattern: Annotated[str | None, typer.Argument(metavar="[GLOB]", help="Names to list: 'timm/resnet*'.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a recipe may name: bundled recipes, models, data sets, optimizers, schedules, transforms."""
    known = {name: about for name, about in _named(what).items() if pattern is None or fnmatchcase(name, pattern)}
    if not known:
        raise unknown_name(f"name among {what}", str(pattern), _named(what))
    if as_json:
        _print_json([{"name": name, "about": about} if about else {"name": name} for name, about in known.items()])
        return
    width = max(map(len, known))
    for name, about in known.items():
        _say(f"{name:<{width}}  {about}".rstrip())


def _named(what: str) -> dict[str, str]:
    """Names, and what each is, where that is known."""
    if what == "recipes":
        return {name: recipe_comment(path) for name, path in bundled_recipes().items()}
    if what == "datasets":
        from superweight_ensembles.data import data_set_needs

        return data_set_needs()
    if what == "models":
        from superweight_ensembles.models import model_names as names
    elif what == "transforms":
        from superweight_ensembles.data import transform_names as names
    elif what == "optimizers":
        from superweight_ensembles.training import optimizer_names as names
    elif what == "schedules":
        from superweight_ensembles.training import SCHEDULES

        return dict.fromkeys(SCHEDULES, "")
    else:
        raise unknown_name("list", what, _LISTED)
    return dict.fromkeys(names(), "")


@_command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors: every key, its type, default and meaning."""
    from superweight_ensembles.experiment import recipe_schema

    _print_json(recipe_schema())


@_command()
def new(
    out: Annotated[Path, typer.Argument(metavar="OUT.yaml", help="The recipe file to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME[,KEY=VALUE...]",
            help="Data set (superweights list datasets) and its options: --data image_folder,folder=photos.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL[,KEY=VALUE...]",
            help="A member: its model (superweights list models) and its options, also its name: "
            "--model wide_resnet,depth=16,width=2,name=wide. Repeatable.",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="Parameters (an int), or the fraction of what the members own apart.")
    ] = "0.83",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training data.")] = 30,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")] = 128,
    teaching: Annotated[
        str | None,
        typer.Option(
            "--teaching", help="Who teaches the members, besides labels: ensemble, others, prefixes, history."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe with a comment on every key; in a terminal, ask for what is missing."""
    from superweight_ensembles.experiment import write_new_recipe

    asks = sys.stdin is not None and sys.stdin.isatty()
    given = list(models or ())
    if data is None:
        data = _asked("Data set (superweights list datasets)", "--data NAME", asks)
    if not given:
        given = [_asked("A member's model, such as timm/resnet18", "--model MODEL", asks)]
        while more := typer.prompt("Another member (nothing for no more)", default="", show_default=False, err=True):
            given.append(more)
    content = {
        "name": out.stem,
        "data": _with_options(data, "name", "--data"),
        "members": _members(given),
        "sharing": {"budget": parse_yaml(budget, f"--budget {budget!r:.80}")},
        "training": {"epochs": epochs, "batch_size": batch_size},
        **({} if teaching is None else {"distillation": {"teacher": teaching, "weight": 0.5}}),
    }
    recipe = write_new_recipe(out, content, overwrite=overwrite)
    _say(f"recipe of {len(recipe.members)} members: {out}", _NOTES)


def _asked(question: str, option: str, asks: bool) -> str:
    if not asks:
        raise SuperWeightError(f"{option} is missing, and nobody can be asked outside a terminal")
    return str(typer.prompt(question, err=True))


def _with_options(text: str, key: str, option: str) -> dict[str, Any]:
    """``NAME,KEY=VALUE,...`` as a section of a recipe."""
    from superweight_ensembles.experiment import set_value

    name, *options = re.split(r",(?=\w+=)", text)
    content: dict[str, Any] = {key: name}
    for one in options:
        set_value(content, one, option)
    return content


def _members(given: Sequence[str]) -> list[dict[str, Any]]:
    """Members, each with a name of its own: the one given, or one of its model's name and its options' numbers."""
    members: list[dict[str, Any]] = []
    for text in given:
        content = _with_options(text, "model", "--model")
        numbers = [str(value) for value in content.values() if type(value) in (int, float)]
        plain = "-".join([content["model"].rpartition("/")[2], *numbers]).replace(".", "_")
        taken = [member["name"] for member in members]
        free = next(name for name in (plain, *(f"{plain}-no{count}" for count in range(2, 10**6))) if name not in taken)
        members.append({"name": free, **content})
    return members


def _print_json(content: Any) -> None:
    from superweight_ensembles.storage import as_content

    print(json.dumps(as_content(content), indent=1))


def _chosen(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe that a command is given."""
    from superweight_ensembles.experiment import check_overrides, load_recipe

    check_overrides(overrides or ())
    return load_recipe(path, overrides or ())


def _say(text: str, console: Console = _CONSOLE, style: str | None = None) -> None:
    """Print text as it is: names in it are no markup, and no controls of the terminal."""
    console.print(escape_controls(text), style=style, markup=False, soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None, baselines: Mapping[str, Baseline] | None = None) -> None:
    """Entry point: a user's mistake is one line and exit code 2, never a traceback.

    Args:
        arguments: Arguments of the command; those of the process where None.
        baselines: Further baselines for ``compare --against``, by name.
    """
    try:
        code = app(arguments, obj=baselines, standalone_mode=False)
    except _UsageError as error:
        _say(f"error: {_usage(error)}", _ERRORS, style="red")
        sys.exit(2)
    except typer.Abort:  # Ctrl-C at a question
        sys.exit(130)
    except (SuperWeightError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            from superweight_ensembles.storage import PathError

            error = PathError(None, "read or written", error)
        who = f"process {_RANK}: " if _RANK else ""
        _say(f"error: {who}{error}", _ERRORS, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def _usage(error: Any) -> str:
    """What is wrong with a command, with the nearest name, on one line."""
    context, option = error.ctx, getattr(error, "option_name", None)
    said = " ".join(error.format_message().split())
    above = None if context is None else context.parent
    if option and above is not None and any(option in one.opts for one in above.command.params):
        said = f"{option} goes before {context.info_name}: superweights {option} {context.info_name} ..."
    elif option and context is not None and context.info_name in ("train", "compare", "plan") and _is_setting(option):
        said = f"No such option: {option}. A recipe's keys are given as --set training.{_key(option)}=..."
    elif near := getattr(error, "possibilities", None):
        said = f"No such option: {option}. Did you mean {near[0]}?"
    about = "" if context is None else f" ({context.command_path} --help says more)"
    return said + about


def _key(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _is_setting(option: str) -> bool:
    from superweight_ensembles.training import TrainConfig

    return _key(option) in TrainConfig.__dataclass_fields__


@contextmanager
def _progress_bars(
    go_on: str, can_go_on: Callable[[], bool] = lambda: True
) -> Iterator[Callable[[str], Callable[[TrainProgress], None]]]:
    """Gives a function that makes a stage's bar on the error stream; after an interruption, says how to go on."""
    from superweight_ensembles.training import describe_epoch, progress_columns

    with Progress(*progress_columns(), console=_BARS) as bars:

        def progress_of(stage: str) -> Callable[[TrainProgress], None]:
            tasks: dict[str, TaskID] = {}

            def show(progress: TrainProgress) -> None:
                if stage not in tasks:
                    total = progress.epochs * progress.steps_per_epoch
                    tasks[stage] = bars.add_task(escape_controls(stage), total=total, state="")
                done = (progress.epoch - 1) * progress.steps_per_epoch + progress.step
                bars.update(tasks[stage], completed=done)
                if progress.record is not None:
                    bars.update(tasks[stage], state=describe_epoch(progress.record))

            return show

        try:
            yield progress_of
        except KeyboardInterrupt as stop:
            bars.stop()
            if can_go_on() and not _RANK:
                saved = str(stop) if getattr(stop, "saved", False) else "interrupted; the last checkpoint is kept"
                _say(f"{saved}; go on: {go_on}", _ERRORS)
            # As shells say it: 130 for Ctrl-C, 143 for SIGTERM.
            raise typer.Exit(128 + int(getattr(stop, "signal", signal.SIGINT))) from None


if __name__ == "__main__":
    main()
