"""An ensemble whose members learned their widths, against ones whose widths were chosen by hand, at equal parameters.

    python benchmarks/adaptive_ensemble.py recipes/adaptive-cifar10.yaml --out benchmarks/results/adaptive-ensemble

Arms: ``learned``, the recipe; ``plain``, the same with plain networks of the learned widths; ``sized``, the same
members with hand-chosen widths, each as a whole narrowed or widened to at most the parameters that its learned one has;
``given``, the recipe's members at their own widths. All share a bank of as many parameters as the learned one's. The
hand-chosen arms train for as many epochs as learning widths and training take together. All but the first have no
truncations. Areas under the cascades' curves are over one range of costs, up to the dearest ensemble: from where all
arms have an exit, and from the cheapest exit of any (what an arm has no exit for counts as chance). Seeds are the
outermost loop. The runs of seed 0 stay in OUT/ARM, without trained parameters, for ``superweights plot``;
OUT/adaptive_ensemble.json has all seeds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch

from superweight_ensembles.anytime import log_area
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.experiment import (
    Recipe,
    RunResults,
    evaluate_run,
    narrowed,
    parse_recipe,
    train_run,
    with_seed,
)
from superweight_ensembles.models import recall_architecture
from superweight_ensembles.plan import count_parameters

ARMS = ("learned", "plain", "sized", "given")


def main() -> None:
    options = harness.read_options(harness.recipe_parser(__doc__))
    overrides = [*options.overrides, "training.num_threads=1", "baseline=none"]
    recipe = harness.folder_recipe(options.recipe, overrides, options.data_root)
    options.out.mkdir(parents=True, exist_ok=True)
    run = partial(run_seed, recipe.to_content(), options.out)
    seeds = harness.run_seeds(run, recipe, options, options.out / "adaptive_ensemble.json", "adaptive_ensemble")
    for arm in ARMS:
        found = [seed["arms"][arm] for seed in seeds]
        texts = {
            f"{key} {kind}": harness.spread_text([100 * one[key][kind] for one in found])
            for key in ("areas", "areas_from_cheapest")
            for kind in found[0][key]
        }
        accuracy = harness.spread_text([100 * one["accuracy"] for one in found])
        harness.show([{"arm": arm, "parameters": found[0]["num_parameters"], "accuracy": accuracy, **texts}])


@harness.quiet("lightning_fabric")
def run_seed(content: dict[str, Any], out: Path, seed: int) -> dict[str, Any]:
    """Train and evaluate all arms of a seed."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    recipe = with_seed(parse_recipe(content), seed)
    results = {"learned": evaluated(recipe, out, "learned")}
    folder = out / f"learned-seed-{seed}" / "shared" / "ensemble"
    ensemble = SuperWeightEnsemble.load(folder)
    learned = {name: count_parameters(ensemble.materialize(name)) for name in ensemble.member_names}
    results["plain"] = evaluated(without_importance(recipe, ensemble.num_parameters), out, "plain")
    for arm in ("sized", "given"):
        hand = by_hand(recipe, learned if arm == "sized" else None, ensemble.num_parameters)
        results[arm] = evaluated(hand, out, arm)
    keep(recipe, out)
    return {"seed": seed, "arms": compared(results), "seconds": time.perf_counter() - begin}


def without_importance(recipe: Recipe, num_parameters: int) -> Recipe:
    """The recipe with plain networks of the widths that it learns, in a bank of so many parameters."""
    content = recipe.to_content()
    changes = {
        "learn_widths": {**content["learn_widths"], "keep_importance": False},
        "sharing": {**content.get("sharing", {}), "budget": num_parameters},
        "anytime": {key: value for key, value in content["anytime"].items() if key != "truncations"},
    }
    return parse_recipe({**content, **changes})


def by_hand(recipe: Recipe, learned: Mapping[str, int] | None, num_parameters: int) -> Recipe:
    """The recipe without learned widths, in a bank of so many parameters, its members as large as the learned ones."""
    content = recipe.to_content()
    assert recipe.learn_widths is not None, "the recipe learns widths"
    epochs = recipe.learn_widths.epochs + recipe.training.epochs
    plain = []
    for member in content["members"]:
        member = {key: value for key, value in member.items() if key != "adaptive"}
        if learned is not None:
            made = recall_architecture(recipe.build_members()[member["name"]])
            assert made is not None, "a recipe's members are built by name"
            member.update(narrowed(replace(made, hidden=()), learned[member["name"]]).options)
        plain.append(member)
    changes = {
        "members": plain,
        "sharing": {**content.get("sharing", {}), "budget": num_parameters},
        "training": {**content["training"], "epochs": epochs, "validate_every": epochs},
        "anytime": {key: value for key, value in content["anytime"].items() if key != "truncations"},
    }
    left_out = ("learn_widths", "width_loss")
    return parse_recipe({key: value for key, value in {**content, **changes}.items() if key not in left_out})


def evaluated(recipe: Recipe, out: Path, arm: str) -> RunResults:
    folder = out / f"{arm}-seed-{recipe.seed}"
    train_run(recipe, folder, overwrite=folder.is_dir())
    return evaluate_run(folder)


def keep(recipe: Recipe, out: Path) -> None:
    """Of the first seed keep the runs without trained parameters, naming no folder in full; of others nothing."""
    read_from = recipe.to_content()["data"].get("folder")
    for arm in ARMS:
        folder = out / f"{arm}-seed-{recipe.seed}"
        if recipe.seed == 0:
            (out / arm).mkdir(exist_ok=True)
            for name in ("recipe.yaml", "results.json", "plan.json"):
                text = (folder / name).read_text(encoding="utf-8")
                if read_from is not None:
                    text = text.replace(read_from, Path(read_from).name)
                (out / arm / name).write_text(text, encoding="utf-8")
        shutil.rmtree(folder)


def compared(results: Mapping[str, RunResults]) -> dict[str, Any]:
    """What each arm came to, areas over one range of costs."""
    shared = {arm: found.arms[0] for arm, found in results.items()}
    curves = {
        (arm, kind): measured.curve("cascade").points
        for arm, found in shared.items()
        for kind, measured in (("members", found.anytime), ("truncated", found.anytime and found.anytime.truncated))
        if measured is not None
    }
    cheapest = [min(point.flops for point in points) for points in curves.values()]
    high = max(point.flops for points in curves.values() for point in points)

    def areas(arm: str, low: float) -> dict[str, float]:
        return {
            kind: log_area([(one.flops, one.accuracy) for one in points], low, high, before=0.1, steps=False)
            for (owner, kind), points in curves.items()
            if owner == arm
        }

    return {
        arm: {
            "num_parameters": found.num_parameters,
            "independent_parameters": found.independent_parameters,
            "accuracy": found.ensemble.metrics.accuracy,
            "nll": found.ensemble.metrics.nll,
            "flops": found.ensemble.flops,
            "members": {member.name: member.accuracy for member in found.anytime.members} if found.anytime else {},
            "areas": areas(arm, max(cheapest)),
            "areas_from_cheapest": areas(arm, min(cheapest)),
            "curves": {
                kind: [[point.flops, point.accuracy] for point in points]
                for (owner, kind), points in curves.items()
                if owner == arm
            },
        }
        for arm, found in shared.items()
    }


if __name__ == "__main__":
    main()
