"""One network at many parameter budgets: each way to fit it, beside a narrower network and the whole one.

    python benchmarks/npas.py recipes/npas-cifar10.yaml --seeds 3 --jobs 2 --out benchmarks/results/npas
    python benchmarks/draw.py benchmarks/results/npas --out figures/npas

Data, members and training are the recipe's; what each arm shares stands in ARMS. Seeds are the outermost loop, then
budgets, then arms, so that a machine that slows down does so for all arms. A cell is one training on one thread; with
--jobs 2 two of them run at a time, as processes. Each finished cell is written to OUT/npas.json at once, and the same
command goes on after those that are there (seeds, budgets and arms may be added). A cell below the minimum of its arm
is kept as skipped, with the reason; one that failed is tried again the next time. Seconds are those of the whole cell,
data and test included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch

from superweight_ensembles.anytime import predict, probability_metrics
from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import Recipe, narrower_recipe, parse_recipe, train_run, with_seed
from superweight_ensembles.plan import count_parameters, resolve_budget
from superweight_ensembles.storage import provenance, read_json, write_json

NPAS_FORMAT = 1
BUDGETS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.83, 1.0, 2.0, 4.0)
FULL = "full"
_TESTED: list[ImageData] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class NpasArm:
    """A way to fit a network into a budget.

    Attributes:
        label: For figures.
        sharing: The recipe's ``sharing`` section, but for the budget; None for a plain network of the budget's size.
        most: Budgets up to this.
    """

    label: str
    sharing: Mapping[str, Any] | None
    most: float = float("inf")


ARMS = {
    "auto": NpasArm(label="automatic, clusters by shape", sharing={"generator": "auto", "clusters": "shape"}),
    "superweight": NpasArm(label="SuperWeights, depth bins", sharing={"generator": "superweight"}),
    "ssn-random": NpasArm(
        label="SSN, random groups", sharing={"generator": "ssn", "clusters": "random", "num_groups": 4}
    ),
    "ssn-shape": NpasArm(label="SSN, groups by shape", sharing={"generator": "ssn", "clusters": "shape"}),
    "ssn-one": NpasArm(label="SSN, one group", sharing={"generator": "ssn", "clusters": "one"}, most=0.25),
    "ssn-learned": NpasArm(
        label="SSN, learned groups",
        sharing={"generator": "ssn", "search": "k_means", "num_groups": 4, "search_epochs": 4},
    ),
    "narrower": NpasArm(label="a narrower network", sharing=None, most=1.0),
    FULL: NpasArm(label="the whole network", sharing={"clusters": "none"}),  # at no budget but its own
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training. ``budget``: of what the members own apart; None for the whole network."""

    arm: str
    budget: float | None
    seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.arm}" + ("" if self.budget is None else f" at {self.budget:g}")


def main() -> None:
    parser = harness.recipe_parser(__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help="of what the members own apart")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = harness.read_options(parser)
    overrides = [*options.overrides, "training.num_threads=1", "baseline=none"]  # of every cell
    recipe = harness.folder_recipe(options.recipe, overrides, options.data_root)
    file = options.out / "npas.json"
    content = begun(file, recipe, options)
    done = {(cell["arm"], cell["budget"], cell["seed"]) for cell in content["cells"] if cell["status"] != "failed"}
    cells = [
        cell
        for cell in all_cells(range(recipe.seed, recipe.seed + options.seeds), options.budgets, options.arms)
        if (cell.arm, cell.budget, cell.seed) not in done
    ]
    print(f"{len(done)} cells are there, {len(cells)} to go", flush=True)
    for index, found in enumerate(harness.run_cells(partial(run_cell, recipe.to_content()), cells, options.jobs), 1):
        again = (found["arm"], found["budget"], found["seed"])
        content["cells"] = [one for one in content["cells"] if (one["arm"], one["budget"], one["seed"]) != again]
        content["cells"].append(found)
        write_json(file, content)
        print(f"{index} of {len(cells)}:", end=" ")
        harness.show([found])


def begun(file: Path, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call has written, or the head of a new file."""
    content = harness.begin_or_resume(
        file, "npas", "recipe",
        format=NPAS_FORMAT, name=recipe.name, recipe=harness.told_recipe(recipe, "sharing"),
        independent_parameters=sum(map(count_parameters, recipe.build_members().values())),
        arms=[described(name) for name in options.arms],
    )  # fmt: skip
    known = {arm["name"]: arm for arm in content["arms"]}
    for name in options.arms:
        if known.setdefault(name, described(name)) != described(name):
            raise SystemExit(f"{file} has {name!r} with other settings: give another --out")
    content["arms"] = [known[name] for name in ARMS if name in known]
    return content


def described(arm: str) -> dict[str, Any]:
    sharing = ARMS[arm].sharing
    return {"name": arm, "label": ARMS[arm].label, "sharing": None if sharing is None else dict(sharing)}


def all_cells(seeds: Sequence[int], budgets: Sequence[float], arms: Sequence[str]) -> Iterator[Cell]:
    """Seed by seed, budget by budget, arm by arm; the whole network first."""
    for seed in seeds:
        if FULL in arms:
            yield Cell(arm=FULL, budget=None, seed=seed)
        for budget in budgets:
            for arm in ARMS:
                if arm in arms and arm != FULL and budget <= ARMS[arm].most:
                    yield Cell(arm=arm, budget=budget, seed=seed)


@harness.quiet("lightning_fabric")
def run_cell(content: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Train and test one cell.

    Raises:
        SuperWeightError: The data or the settings of the arm are at fault, which no other cell would do better with.
    """
    torch.set_num_threads(1)
    recipe = with_seed(parse_recipe({**content, "baseline": "none"}), cell.seed)
    data = tested_data(recipe)
    head = {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "commit": provenance()["commit"]}
    begin = time.perf_counter()
    try:
        chosen = fitted(recipe, cell)
    except BelowMinimum as reason:
        return {**head, "status": "skipped", "reason": str(reason)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        try:
            train_run(chosen, folder)
        except SuperWeightError as error:  # a training that diverged
            return {**head, "status": "failed", "reason": str(error).replace(scratch, "")}
        trained = read_json(folder / "shared" / "training.json")
        ensemble = SuperWeightEnsemble.load(folder / "shared" / "ensemble").eval()
    answers = predict(ensemble, data.loader("test", recipe.evaluation.batch_size))
    quality = probability_metrics(answers.probabilities.mean(0), answers.labels)
    return {
        **head,
        "status": "done",
        "accuracy": quality.accuracy,
        "nll": quality.nll,
        "test_loss": sum(probability_metrics(rows, answers.labels).nll for rows in answers.probabilities),
        "training_loss": sum(trained["history"][-1]["train_loss"].values()),  # augmented, over the last epoch
        "num_parameters": ensemble.num_parameters,
        "training_seconds": trained["seconds"],
        "seconds": time.perf_counter() - begin,
    }


class BelowMinimum(Exception):
    """An arm cannot be as small as a budget asks."""


def fitted(recipe: Recipe, cell: Cell) -> Recipe:
    """The recipe of a cell.

    Raises:
        BelowMinimum: The budget is less than the arm's least.
    """
    members = recipe.build_members()
    apart = sum(map(count_parameters, members.values()))
    arm = ARMS[cell.arm]
    budget = 1.0 if cell.budget is None else cell.budget
    if arm.sharing is None:
        try:
            return narrower_recipe(recipe, members, resolve_budget(budget, apart))
        except SuperWeightError as error:
            raise BelowMinimum(str(error)) from error
    content = {**recipe.to_content(), "sharing": {**arm.sharing, "budget": budget}}
    chosen = parse_recipe(content, f"arm {cell.arm!r}")
    try:
        chosen.plan(members)
    except SuperWeightError as error:
        if "minimum" not in str(error):
            raise
        raise BelowMinimum(str(error)) from error
    return chosen


def tested_data(recipe: Recipe) -> ImageData:
    """The data of a recipe, read once a process, for their test images, which no seed changes."""
    if not _TESTED:
        _TESTED.append(recipe.load_data())
    return _TESTED[0]


if __name__ == "__main__":
    try:
        main()
    except SuperWeightError as error:
        raise SystemExit(f"error: {error}") from None
