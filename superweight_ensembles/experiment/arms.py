"""The arms of a comparison: a shared ensemble, its baselines, and its variants, which are it under other settings."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.experiment.recipe import INDEPENDENT, Recipe, at, parse_recipe, set_value
from superweight_ensembles.experiment.run_folder import evaluate_run, planned_run, train_run
from superweight_ensembles.models import Architecture, build_architecture, recall_architecture
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.training import TrainProgress

ProgressCallback = Callable[[TrainProgress], None]


def train_seed(arm: Arm, recipe: Recipe, folder: Path, progress: ProgressCallback | None) -> None:
    """Train and evaluate a recipe into a run folder, or go on there."""
    train_run(recipe, folder, resume=folder.exists(), progress_of=None if progress is None else lambda _: progress)
    evaluate_run(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One row of a comparison: a recipe, or a network with a training of its own, over some seeds."""

    name: str  # also of its folder
    kind: str  # "shared", a baseline's name, or "variant"
    label: str  # in tables and figures
    recipe: Recipe  # with the first seed
    num_parameters: int  # trainable scalars that it should have
    group: str = ""  # heading in figures
    series: str = ""  # arms of one series differ in one quantity ("budget")
    num_seeds: int | None = None  # number of the comparison's seeds that it takes, from the first; all where None
    # Trains and evaluates one seed: takes the arm, its recipe with that seed, a folder and the callback of `train`, and
    # leaves a results.json in the folder that SeedResults reads.
    train: Callable[[Arm, Recipe, Path, ProgressCallback | None], None] = train_seed


Baseline = Callable[[Arm, Mapping[str, nn.Module]], Arm]
"""Makes an arm of the shared one and the members that its recipe builds; name, kind and seeds are given later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The shared ensemble under other settings."""

    name: str  # also of its folder
    overrides: tuple[str, ...]  # ``key.path=value``, as ``--set`` takes them
    group: str = ""  # heading in figures; empty for none
    num_seeds: int | None = None  # number of the comparison's seeds that it takes, from the first; all where None


def parse_variant(text: str) -> Variant:
    """Read a variant from ``NAME: key=value; key=value`` or ``GROUP/NAME: ...``.

    Example:
        >>> parse_variant("budget/half: sharing.budget=0.5")
        Variant(name='half', overrides=('sharing.budget=0.5',), group='budget', num_seeds=None)
    """
    heading, colon, rest = text.partition(":")
    group, _, name = heading.strip().rpartition("/")
    overrides = tuple(part.strip() for part in rest.split(";") if part.strip())
    if not colon or not overrides or not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9 ._+-]*", name):
        raise SuperWeightError(
            f"a variant is NAME: key.path=value; key.path=value (or GROUP/NAME: ...), got {text!r}: "
            "such as 'half: sharing.budget=0.5'"
        )
    return Variant(name=name, overrides=overrides, group=group)


def parse_budgets(text: str) -> tuple[Variant, ...]:
    """Read ``0.02,0.1,0.5``: a variant of the shared ensemble for each of these values of ``sharing.budget``.

    Example:
        >>> [variant.overrides for variant in parse_budgets("0.1, 500000")]
        [('sharing.budget=0.1',), ('sharing.budget=500000',)]
    """
    budgets = [part.strip() for part in text.split(",")]
    for budget in budgets:
        if not re.fullmatch(r"[0-9]+|[0-9]*[.][0-9]+", budget) or not float(budget):
            raise SuperWeightError(
                f"--budgets {text!r:.200}: {budget!r:.40} is no budget: write fractions of what the members own apart, "
                "or whole numbers of parameters, such as 0.1,0.5,2.0"
            )
    repeated = next((budget for budget in budgets if budgets.count(budget) > 1), None)
    if repeated is not None:
        raise SuperWeightError(f"--budgets {text!r:.200}: {repeated} is there twice: give each once")
    return tuple(Variant(name=f"budget {budget}", overrides=(f"sharing.budget={budget}",)) for budget in budgets)


def build_arms(
    recipe: Recipe,
    against: Sequence[str],
    variants: Sequence[Variant],
    overrides: Sequence[str] = (),
    baselines: Mapping[str, Baseline] | None = None,
) -> tuple[Arm, ...]:
    """Make the shared ensemble, its baselines and its variants, from arguments of :func:`compare_arms`."""
    named = [_named_seeds(entry, baselines or {}) for entry in against]
    names = ["shared", *(name for name, _ in named), *(variant.name for variant in variants)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SuperWeightError(f"two arms are named {repeated!r}: give each once")
    # Where these are needed, each run of the shared ensemble first trains its teacher, or the members it starts from.
    needs_apart = recipe.taught_by(INDEPENDENT) or recipe.trains_its_start
    alone = _changed(recipe, {"baseline": "independent" if needs_apart else "none"})
    if len(recipe.members) == 1:
        alone = _changed(alone, {"anytime": None})  # one network has no exits
    members, plan = planned_run(alone)
    size = plan.num_parameters
    shared = Arm(name="shared", kind="shared", label="shared bank", recipe=alone, num_parameters=size)
    known = {**_BASELINES, **(baselines or {})}
    arms = [
        shared,
        *(replace(known[name](shared, members), name=name, kind=name, num_seeds=seeds) for name, seeds in named),
        *(_variant_arm(alone, variant) for variant in variants),
    ]
    arms = _overridden(arms, overrides)
    folders = [folder_name(arm.name) for arm in arms]
    if twice := next((arm for arm in arms if folders.count(folder_name(arm.name)) > 1), None):
        raise SuperWeightError(
            f"two arms would share the folder {folder_name(twice.name)}: give each a name of its own"
        )
    for arm in arms:
        if arm.train is train_seed and arm is not arms[0]:
            with at(f"arm {arm.name!r}"):
                planned_run(arm.recipe)
    return tuple(arms)


def folder_name(arm: str) -> str:
    """Name of an arm's folder in a comparison."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", arm)


def _named_seeds(entry: str, baselines: Mapping[str, Baseline]) -> tuple[str, int | None]:
    """A baseline's name, and its number of seeds where the entry gives one: ``narrower:1``."""
    name, colon, count = entry.partition(":")
    if name not in _BASELINES and name not in baselines:
        error = unknown_name("arm", name, [*_BASELINES, *baselines])
        further = "" if baselines else "; benchmarks/compare_peers.py has others (packed, exits, ...)"
        raise SuperWeightError(f"{error}{further}")
    if colon and not (count.isdecimal() and int(count) >= 1):
        raise SuperWeightError(f"arm {entry!r}: write {name}:SEEDS with at least one seed")
    return name, int(count) if colon else None


def _overridden(arms: list[Arm], overrides: Sequence[str]) -> list[Arm]:
    """The arms, each with the ``ARM:key.path=value`` settings that were given for it alone."""
    for override in overrides:
        name, colon, setting = override.partition(":")
        place = next((index for index, arm in enumerate(arms) if arm.name == name), None)
        if not colon or place is None:
            raise SuperWeightError(
                f"--set-for {override!r}: write ARM:key.path=value for one of {', '.join(arm.name for arm in arms)}"
            )
        content = arms[place].recipe.to_content()
        set_value(content, setting, "--set-for")
        arms[place] = replace(arms[place], recipe=parse_recipe(content, f"--set-for {override!r}"))
    return arms


def _variant_arm(recipe: Recipe, variant: Variant) -> Arm:
    content = recipe.to_content()
    for override in variant.overrides:
        set_value(content, override, f"variant {variant.name!r}:")
    chosen = parse_recipe(content, f"variant {variant.name!r}")
    with at(f"variant {variant.name!r}"):
        num_parameters = chosen.plan(chosen.build_members()).num_parameters
    only = [override.partition("=")[0] for override in variant.overrides]
    return Arm(
        name=variant.name,
        kind="variant",
        label=variant.name,
        recipe=chosen,
        num_parameters=num_parameters,
        group=variant.group,
        series="budget" if only == ["sharing.budget"] else "",
        num_seeds=variant.num_seeds,
    )


def _independent(shared: Arm, members: Mapping[str, nn.Module]) -> Arm:
    """The same members with weights of their own."""
    size = sum(map(count_parameters, members.values()))
    return replace(shared, label="independent", recipe=_apart(shared.recipe), num_parameters=size)


def _single(shared: Arm, members: Mapping[str, nn.Module]) -> Arm:
    """The largest member alone."""
    largest = _largest(members)
    kept = [member for member in shared.recipe.to_content()["members"] if member["name"] == largest]
    recipe = _changed(_apart(shared.recipe), {"members": kept, "anytime": None})
    return replace(shared, label="largest member", recipe=recipe, num_parameters=count_parameters(members[largest]))


def _narrower(shared: Arm, members: Mapping[str, nn.Module]) -> Arm:
    """The largest member alone, as wide as the shared ensemble's parameters allow."""
    recipe = narrower_recipe(shared.recipe, members, shared.num_parameters)
    size = sum(map(count_parameters, recipe.build_members().values()))
    return replace(shared, label="plain, equal size", recipe=recipe, num_parameters=size)


_BASELINES: dict[str, Baseline] = {"independent": _independent, "single": _single, "narrower": _narrower}


def narrower_recipe(recipe: Recipe, members: Mapping[str, nn.Module], num_parameters: int) -> Recipe:
    """The largest of a recipe's members alone, with weights of its own, narrowed or widened by :func:`narrowed`."""
    name = _largest(members)
    made = recall_architecture(members[name])
    assert made is not None, "a recipe's members are built by name"
    narrow = {"name": name, "model": made.model, **narrowed(made, num_parameters).options}
    return _changed(_apart(recipe), {"members": [narrow], "baseline": "none", "anytime": None})


def narrowed(made: Architecture, num_parameters: int) -> Architecture:
    """The widest network of the same kind and depth with at most so many trainable scalars.

    Example:
        >>> wrn = Architecture(model="wide_resnet", num_classes=10, options={"depth": 16, "width": 2})
        >>> narrowed(wrn, 69_000).options
        {'depth': 16, 'width': 0.609375}
    """
    option, value = _width_of(made)

    def stepped(step: int) -> Architecture:
        return replace(made, options={**made.options, option: step * value})

    def count(step: int) -> int:
        return count_parameters(_on_meta(stepped(step)))

    if count(1) > num_parameters:
        raise SuperWeightError(
            f"the narrowest {made.model} with {made.options} has {count(1):,} parameters, more than the "
            f"{num_parameters:,} asked for: raise the budget, or leave 'narrower' out"
        )
    high = 2
    while count(high) <= num_parameters:
        high *= 2
    return stepped(bisect_right(range(high), num_parameters, lo=1, key=count) - 1)


def _width_of(made: Architecture) -> tuple[str, float]:
    """The option that widens a network, and the smallest step of it."""
    if made.model == "wide_resnet":
        # a step is one of the last stage's 64 channels at width 1; the stem keeps 16, as in the paper
        return "width", 1 / 64
    network = _on_meta(made)
    if isinstance(network, VisionTransformer):
        return "embed_dim", network.blocks[0].attn.num_heads  # a multiple: as many heads, all equal
    raise SuperWeightError(
        f"'narrower' narrows a wide_resnet or a vision transformer of timm, not {made.model!r}: leave it out"
    )


def _on_meta(made: Architecture) -> nn.Module:
    """The network with shapes alone, on the meta device."""
    with torch.device("meta"):
        return build_architecture(made)


def _largest(members: Mapping[str, nn.Module]) -> str:
    return max(members, key=lambda name: count_parameters(members[name]))


def _apart(recipe: Recipe) -> Recipe:
    """A recipe of the same members with weights of their own, which learn from the labels alone."""
    plain = {"budget": 1.0, "clusters": "none"}
    return _changed(recipe, {"sharing": plain, "distillation": None, "baseline": "none", "fine_tuning": None})


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return parse_recipe({**recipe.to_content(), **changes}, "the recipe of an arm")
