"""What each choice of the method is worth: clusters, coefficients, cap, training and budget.

    python benchmarks/ablations.py recipes/cifar10-16px.yaml --seeds 3 --out runs/ablations

The rows that matter most take several seeds, the others the first alone. Each row is a variant of one ``superweights
compare`` run, so rows can be added, and a stopped run goes on with the same command. Writes OUT/comparison.json and
OUT/figures; ``--keep EARLIER`` takes over the arms that EARLIER/comparison.json has and this run has not, with the
provenance of theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console

from superweight_ensembles.experiment import (
    Comparison,
    Recipe,
    Variant,
    compare_arms,
    comparison_tables,
    load_recipe,
    read_comparison,
)
from superweight_ensembles.report.figures import draw_arms
from superweight_ensembles.storage import as_content, write_json

SEARCH = ("sharing.search=gradient", "sharing.search_epochs=2", "sharing.search_batches=20")
SEEDS = {
    "by shape": 3,
    "gradient search": 3,
    "search, tied then un-tied": 3,
    "ensemble loss": 3,
    "budget 0.5": 2,
}  # of others, one
APART = ("sharing.budget=1.0", "sharing.clusters=none")
ROWS = (
    Variant(group="clusters", name="by shape", overrides=("sharing.clusters=shape",)),
    Variant(group="clusters", name="by shape, half", overrides=("sharing.clusters=shape", "sharing.budget=0.5")),
    Variant(
        group="clusters",
        name="weight similarity",
        overrides=("sharing.search=weight", "sharing.search_epochs=2", "sharing.coefficients=own"),
    ),
    Variant(group="clusters", name="gradient search", overrides=(*SEARCH, "sharing.coefficients=own")),
    Variant(group="coefficients", name="search, tied", overrides=SEARCH),
    Variant(group="coefficients", name="search, tied then un-tied", overrides=(*SEARCH, "sharing.untie_epoch=2")),
    Variant(group="coefficients", name="embedding", overrides=("sharing.coefficients=embedding",)),
    Variant(group="cap", name="cap 2", overrides=("sharing.cap=2",)),
    Variant(group="cap", name="cap 4", overrides=("sharing.cap=4",)),
    Variant(group="training", name="own batches", overrides=("training.member_batches=own",)),
    Variant(group="training", name="ensemble loss", overrides=("training.ensemble_loss=1.0",)),
    Variant(group="training", name="learning rate 0.4", overrides=("training.learning_rate=0.4",)),
    Variant(group="training", name="apart, learning rate 0.4", overrides=(*APART, "training.learning_rate=0.4")),
    Variant(group="training", name="apart, own batches", overrides=(*APART, "training.member_batches=own")),
    Variant(group="training", name="apart, ensemble loss", overrides=(*APART, "training.ensemble_loss=1.0")),
    *(
        Variant(group="budget", name=f"budget {budget}", overrides=(f"sharing.budget={budget}",))
        for budget in (0.4, 0.5, 0.6, 1.0, 1.3)
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--row", dest="rows", action="append", help="only this one; repeatable")
    parser.add_argument("--keep", type=Path, help="an earlier comparison of the same recipe")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    rows = [replace(row, num_seeds=SEEDS.get(row.name, 1)) for row in (random_row(recipe), *ROWS)]
    comparison = compare_arms(
        recipe,
        options.out,
        against=["independent"],
        variants=[row for row in rows if options.rows is None or row.name in options.rows],
        num_seeds=options.seeds,
        resume=options.out.exists(),
    )
    if options.keep is not None:
        comparison = keep_arms(comparison, read_comparison(options.keep))
        write_json(options.out / "comparison.json", as_content(comparison))
    draw_arms(comparison, options.out / "figures")
    for table in comparison_tables(comparison):
        Console().print(table)


def keep_arms(new: Comparison, earlier: Comparison) -> Comparison:
    """The arms of an earlier comparison, in its order, and behind them those that only the new one has."""
    first, second = ({**found.recipe, "data": {**found.recipe["data"], "folder": ""}} for found in (earlier, new))
    if first != second:  # but for where the images lie
        raise SystemExit("the earlier comparison is of another recipe")
    kept, arms = (
        [replace(arm, provenance=arm.provenance or found.provenance) for arm in found.arms] for found in (earlier, new)
    )
    known = {arm.name for arm in kept}
    added = [arm for arm in arms if arm.name not in known]
    return replace(new, seeds=tuple(sorted({*earlier.seeds, *new.seeds})), arms=(*kept, *added))


def random_row(recipe: Recipe) -> Variant:
    """As many clusters a kernel as the depth bins, of the same sizes, filled at random."""
    plan = recipe.plan(recipe.build_members())
    shuffled = random.Random(0)
    pools: dict[tuple[str, tuple[tuple[int, ...], ...]], list[str]] = {}
    for cluster in plan.superweight_clusters.values():
        pools.setdefault((cluster.kind, cluster.kernels), []).extend(target.label for target in cluster.targets)
    for pool in pools.values():
        shuffled.shuffle(pool)
    clusters = {
        f"random {cluster.name}": [pools[cluster.kind, cluster.kernels].pop() for _ in cluster.targets]
        for cluster in plan.superweight_clusters.values()
    }
    return Variant(group="clusters", name="random", overrides=(f"sharing.clusters={json.dumps(clusters)}",))


if __name__ == "__main__":
    main()
