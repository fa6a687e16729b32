"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from superweight_ensembles.experiment.arms import Arm

METRICS = ("accuracy", "nll", "ece", "brier")


def summarise(arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry an arm: every seed's numbers, their mean and spread, and the first arm's minus its own, seed by seed.

    Args:
        arms: The one that differences are taken from first.
        results: By arm, an entry a seed: ``seed`` and what results.json holds of an arm.
    """
    runs = {arm.name: [_run(result) for result in results[arm.name]] for arm in arms}
    first = runs[arms[0].name]
    entries = []
    for arm in arms:
        own = runs[arm.name]
        numbers = [_quantities(run) for run in own]
        theirs = [_quantities(run) for run in first[: len(own)]]
        known = [name for name in numbers[0] if all(run[name] is not None for run in numbers)]
        both = [name for name in known if all(run.get(name) is not None for run in theirs)]
        entries.append(
            {
                "name": arm.name,
                "kind": arm.kind,
                "label": arm.label,
                **({"group": arm.group} if arm.group else {}),
                **({"series": arm.series} if arm.series else {}),
                "architecture": results[arm.name][0].get("architecture"),
                "num_parameters": results[arm.name][0]["num_parameters"],
                "flops": results[arm.name][0]["ensemble"]["flops"],
                "runs": own,
                "summary": {name: spread([run[name] for run in numbers]) for name in known},
                "difference": {
                    name: spread([ours[name] - run[name] for ours, run in zip(theirs, numbers)]) for name in both
                },
            }
        )
    return entries


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds (0 for one), and their number.

    Example:
        >>> spread([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951, 'n': 2}
    """
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def _run(result: dict[str, Any]) -> dict[str, Any]:
    members = {member["name"]: member["metrics"]["accuracy"] for member in result["members"]}
    return {
        "seed": result["seed"],
        "metrics": result["ensemble"]["metrics"],
        "members": members,
        "mean_member_accuracy": statistics.fmean(members.values()),
        "diversity": result["diversity"],
        "training_seconds": result["training"]["seconds"],
        "subsets": result["subsets"] if len(members) > 1 else [],
    }


def _quantities(run: dict[str, Any]) -> dict[str, Any]:
    """Every number of a run that is summarised."""
    return {
        **{name: run["metrics"][name] for name in METRICS},
        "diversity": run["diversity"],
        "mean_member_accuracy": run["mean_member_accuracy"],
        "training_seconds": run["training_seconds"],
        **{f"member {name}": accuracy for name, accuracy in run["members"].items()},
    }
