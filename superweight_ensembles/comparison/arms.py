"""The arms of a comparison, each as something that can be trained for one seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from superweight_ensembles.comparison.uncertainty import UNCERTAINTY_ARMS
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.planning import count_parameters
from superweight_ensembles.recipe import Recipe, parse_recipe
from superweight_ensembles.recipe_overrides import set_value

ARMS = ("independent", "single", *UNCERTAINTY_ARMS)
_LABELS = {
    "shared": "shared bank",
    "independent": "independent",
    "single": "largest member",
    "batchensemble": "BatchEnsemble",
    "packed": "Packed",
    "mimo": "MIMO",
    "masksembles": "Masksembles",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The shared ensemble under other settings.

    Attributes:
        name: Of the arm, and of its folder.
        overrides: ``key.path=value``, as ``--set`` takes them.
        group: A heading in figures, empty for none.
        num_seeds: So many of the comparison's seeds, from the first; all where None.
    """

    name: str
    overrides: tuple[str, ...]
    group: str = ""
    num_seeds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One row of a comparison.

    Attributes:
        name: Of the arm, and of its folder.
        kind: ``shared``, one of :data:`ARMS`, or ``variant``.
        label: For tables and figures.
        recipe: What this library trains for it; of the arms of another library: the data and the training.
        num_parameters: Trainable scalars that it should have; the arms of another library come as near as they can.
        group: A heading in figures.
        series: Arms of one series differ in one quantity (``budget``).
        num_seeds: So many of the comparison's seeds; all where None.
    """

    name: str
    kind: str
    label: str
    recipe: Recipe
    num_parameters: int
    group: str = ""
    series: str = ""
    num_seeds: int | None = None


def parse_variant(text: str) -> Variant:
    """Read ``NAME: key=value; key=value`` or ``GROUP/NAME: ...``.

    Raises:
        SuperWeightError: Not of that form.

    Example:
        >>> parse_variant("budget/half: sharing.budget=0.5")
        Variant(name='half', overrides=('sharing.budget=0.5',), group='budget', num_seeds=None)
    """
    heading, colon, rest = text.partition(":")
    group, _, name = heading.strip().rpartition("/")
    overrides = tuple(part.strip() for part in rest.split(";") if part.strip())
    if not colon or not overrides or not re.fullmatch(r"[A-Za-z0-9 ._+-]+", name):
        raise SuperWeightError(
            f"a variant is NAME: key.path=value; key.path=value (or GROUP/NAME: ...), got {text!r}: "
            "such as 'half: sharing.budget=0.5'"
        )
    return Variant(name=name, overrides=overrides, group=group)


def build_arms(
    recipe: Recipe, against: Sequence[str], variants: Sequence[Variant], overrides: Sequence[str] = ()
) -> tuple[Arm, ...]:
    """The recipe's shared ensemble first, then what it is held against, then its variants.

    Args:
        recipe: Of the shared ensemble.
        against: Of :data:`ARMS`; ``NAME:SEEDS`` for an arm that takes fewer of the seeds.
        variants: The shared ensemble under other settings.
        overrides: ``ARM:key.path=value``, for one arm alone.

    Raises:
        SuperWeightError: An unknown or repeated arm; a variant that is no recipe; an override for no arm.
    """
    num_seeds = dict(_named_seeds(entry) for entry in against)
    names = ["shared", *(_named_seeds(entry)[0] for entry in against), *(variant.name for variant in variants)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SuperWeightError(f"two arms are named {repeated!r}: give each once")
    starts_apart = recipe.sharing.init == "svd" and recipe.sharing.init_from is None
    alone = _changed(recipe, {"baseline": "independent" if starts_apart else "none", "anytime": None})
    members = recipe.build_members()
    size = alone.plan(members).num_parameters
    sizes = {name: count_parameters(module) for name, module in members.items()}
    arms = [Arm(name="shared", kind="shared", label=_LABELS["shared"], recipe=alone, num_parameters=size)]
    for name, seeds in num_seeds.items():
        chosen = alone
        if name == "independent":
            chosen, size = _apart(alone), sum(sizes.values())
        elif name == "single":
            largest = max(sizes, key=lambda member: sizes[member])
            kept = [member for member in alone.model_dump(mode="json")["members"] if member["name"] == largest]
            chosen, size = _changed(_apart(alone), {"members": kept}), sizes[largest]
        else:
            size = arms[0].num_parameters
        arms.append(Arm(name=name, kind=name, label=_LABELS[name], recipe=chosen, num_parameters=size, num_seeds=seeds))
    arms += [_variant_arm(alone, variant) for variant in variants]
    return tuple(_overridden(arms, overrides))


def _named_seeds(entry: str) -> tuple[str, int | None]:
    """An arm's name, and its number of seeds where one is given.

    Example:
        >>> _named_seeds("packed:1"), _named_seeds("single")
        (('packed', 1), ('single', None))
    """
    name, colon, count = entry.partition(":")
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    if colon and not (count.isdecimal() and int(count) >= 1):
        raise SuperWeightError(f"arm {entry!r}: write {name}:SEEDS with at least one seed")
    return name, int(count) if colon else None


def _overridden(arms: list[Arm], overrides: Sequence[str]) -> list[Arm]:
    """The arms with the settings that were given for one of them alone."""
    for override in overrides:
        name, colon, setting = override.partition(":")
        place = next((index for index, arm in enumerate(arms) if arm.name == name), None)
        if not colon or place is None:
            raise SuperWeightError(
                f"--set-for {override!r}: write ARM:key.path=value for one of {', '.join(arm.name for arm in arms)}"
            )
        content: dict[str, Any] = arms[place].recipe.to_content()
        set_value(content, setting, "--set-for")
        arms[place] = replace(arms[place], recipe=parse_recipe(content, f"--set-for {override!r}"))
    return arms


def _variant_arm(recipe: Recipe, variant: Variant) -> Arm:
    content: dict[str, Any] = recipe.to_content()
    for override in variant.overrides:
        set_value(content, override, f"variant {variant.name!r}:")
    chosen = parse_recipe(content, f"variant {variant.name!r}")
    only = [override.partition("=")[0] for override in variant.overrides]
    return Arm(
        name=variant.name,
        kind="variant",
        label=variant.name,
        recipe=chosen,
        num_parameters=chosen.plan(chosen.build_members()).num_parameters,
        group=variant.group,
        series="budget" if only == ["sharing.budget"] else "",
        num_seeds=variant.num_seeds,
    )


def _apart(recipe: Recipe) -> Recipe:
    """The same members with their own weights."""
    plain = {"sharing": {"budget": 1.0, "clusters": "none"}, "baseline": "none", "fine_tuning": None}
    return _changed(recipe, plain)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return parse_recipe({**recipe.to_content(), **changes}, "the recipe of an arm")
