"""Where the numbers come from: what was run, its whole configuration, and what it ran on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.report.elements import NOTHING, Html, join, scrolled, tag
from superweight_ensembles.report.findings import Results

_KEYS = {
    "time": "time",
    "commit": "commit",
    "python": "Python",
    "cpu": "CPU",
    "cpu_capability": "CPU instructions",
    "gpu": "GPU",
    "num_threads": "threads",
    "omp_wait_policy": "OMP_WAIT_POLICY",
}


def facts(results: Results, recipe: Recipe, plan: SharingPlan) -> Html:
    """Name, data, members, budget, seed: what was run, at a glance."""
    dataset, training = results["dataset"], recipe.training
    members = [f"{member.name}: {member.model}{_options(member.model_extra or {})}" for member in recipe.members]
    images = " x ".join(str(size) for size in dataset["image_shape"])
    entries: dict[str, str | list[Html]] = {
        "Data": f"{dataset['name']}: {len(dataset['classes'])} classes, images {images}; {dataset['num_train']:,} to "
        f"train, {dataset['num_validation']:,} to validate, {dataset['num_test']:,} to test",
        "Members": [tag("div", member) for member in members],
        "Budget": f"{plan.budget:,} parameters; the members own {plan.independent_parameters:,} apart",
        "Training": f"{training.epochs} epochs, batches of {training.batch_size}, {training.optimizer}, "
        f"{training.schedule} from {training.learning_rate:g}, {training.precision}",
        "Seed": str(results["seed"]),
        "Arms": ", ".join(str(arm["name"]) for arm in results["arms"]),
    }
    return tag("dl", [join([tag("dt", key), tag("dd", value)]) for key, value in entries.items()], class_="facts")


def configuration_section(recipe: Recipe) -> Html:
    """The recipe with every default, folded."""
    text = scrolled(tag("pre", tag("code", recipe.to_yaml())), label="Configuration as YAML", class_="sheet")
    return tag("details", tag("summary", "The whole recipe as YAML, every default in it"), text)


def origin_section(run: Mapping[str, Any], results: Results) -> Html:
    """Versions, machine, commit and date: of the training, and of the evaluation."""
    sources = {"training": run.get("provenance") or {}, "evaluation": results.get("provenance") or {}}
    names = list(dict.fromkeys(name for source in sources.values() for name in source.get("packages") or {}))
    rows = [
        _row(label, [source.get(key) for source in sources.values()])
        for key, label in _KEYS.items()
        if any(source.get(key) is not None for source in sources.values())
    ]
    rows += [_row(name, [(source.get("packages") or {}).get(name) for source in sources.values()]) for name in names]
    head = tag("tr", tag("td"), [tag("th", name, scope="col") for name in sources])
    took = [
        f"{arm['name']} {arm['training']['seconds']:,.0f} s on {arm['training'].get('device', 'an unknown device')}"
        for arm in results["arms"]
        if (arm.get("training") or {}).get("seconds") is not None
    ]
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="lines wrap")
    note = tag("p", f"Training took: {', '.join(took)}.", class_="note") if took else ""
    return join([scrolled(table, label="Versions and machines", class_="sheet"), note])


def _row(name: str, values: list[Any]) -> Html:
    written = [NOTHING if value is None else _plain(value) for value in values]
    cells = [tag("td", value) for value in written]
    return tag("tr", tag("th", name, scope="row"), cells)


def _options(options: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in options.items())


def _plain(value: object) -> str:
    """As people write it: a time of day without its T."""
    text = str(value)
    return text.replace("T", " ").replace("+00:00", " UTC") if text.endswith("+00:00") else text
