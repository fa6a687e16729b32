"""The arms of a comparison, each as something that can be trained for one seed."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.experiment.recipe import INDEPENDENT, Recipe, parse_recipe, set_value
from superweight_ensembles.experiment.uncertainty import UNCERTAINTY_ARMS
from superweight_ensembles.models import Architecture, build_architecture, recall_architecture
from superweight_ensembles.plan import count_parameters

# FOLDED experiment.narrower: The plain network of the same kind that has a given number of parameters: what a budget
# must be better than.

_WIDEST_STAGE = 64  # channels of a WideResNet's last stage, at width 1


def narrowed(made: Architecture, num_parameters: int) -> Architecture:
    """The widest network of the same kind with at most so many parameters: narrower than the one given, or wider.

    Depth and all else stay. Of a ``wide_resnet`` the width changes, by one channel of the last stage at a time (the
    stem keeps its 16 channels, as in the paper); of a timm vision transformer ``embed_dim``, by as much as keeps the
    heads of one size, so that their number stays.

    Args:
        made: How the network was made.
        num_parameters: Trainable scalars at most.

    Raises:
        SuperWeightError: A network of another kind; fewer parameters than the narrowest one has (states them).

    Example:
        >>> wrn = Architecture(model="wide_resnet", num_classes=10, options={"depth": 16, "width": 2})
        >>> narrowed(wrn, 69_000).options
        {'depth': 16, 'width': 0.609375}
    """
    at = _by_width(made)

    def count(step: int) -> int:
        return count_parameters(_shapes(at(step)))

    if count(1) > num_parameters:
        raise SuperWeightError(
            f"the narrowest {made.model} with {made.options} has {count(1):,} parameters, more than the "
            f"{num_parameters:,} asked for: raise the budget, or leave 'narrower' out"
        )
    high = 2
    while count(high) <= num_parameters:
        high *= 2
    return at(bisect_right(range(high), num_parameters, lo=1, key=count) - 1)


def _by_width(made: Architecture) -> Callable[[int], Architecture]:
    """The networks of one kind, by a whole number that widens them."""
    if made.model == "wide_resnet":
        return lambda step: _with(made, "width", step / _WIDEST_STAGE)
    network = _shapes(made)
    if isinstance(network, VisionTransformer):
        heads = network.blocks[0].attn.num_heads
        return lambda step: _with(made, "embed_dim", step * heads)
    raise SuperWeightError(
        f"'narrower' narrows a wide_resnet or a vision transformer of timm, not {made.model!r}: leave it out"
    )


def _with(made: Architecture, option: str, value: float) -> Architecture:
    return replace(made, options={**made.options, option: value})


def _shapes(made: Architecture) -> nn.Module:
    """The network without numbers."""
    with torch.device("meta"):
        return build_architecture(made)


ARMS = ("independent", "single", "narrower", *UNCERTAINTY_ARMS)
_LABELS = {
    "shared": "shared bank",
    "independent": "independent",
    "single": "largest member",
    "narrower": "plain, equal size",
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


def parse_budgets(text: str) -> tuple[Variant, ...]:
    """Read ``0.02,0.1,0.5``: the shared ensemble at each of these budgets, as ``sharing.budget`` takes them.

    Raises:
        SuperWeightError: None, one that is no number, or one given twice.

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


def narrower_recipe(recipe: Recipe, members: Mapping[str, nn.Module], num_parameters: int) -> Recipe:
    """The largest member of a recipe alone, with weights of its own and a width of at most so many parameters.

    Args:
        recipe: Of the members.
        members: As it builds them.
        num_parameters: Trainable scalars at most; beyond what the member has, it is widened.

    Raises:
        SuperWeightError: A member of a kind that has no width to change; too few parameters for the narrowest.
    """
    name = _largest(members)
    made = recall_architecture(members[name])
    assert made is not None, "a recipe's members are built by name"
    narrow = {"name": name, "model": made.model, **narrowed(made, num_parameters).options}
    return _changed(_apart(recipe), {"members": [narrow], "baseline": "none", "anytime": None})


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
    # Then each run of the shared ensemble trains its teacher, or what it starts from.
    needs_apart = recipe.taught_by(INDEPENDENT) or (recipe.sharing.init == "svd" and recipe.sharing.init_from is None)
    alone = _changed(recipe, {"baseline": "independent" if needs_apart else "none", "anytime": None})
    members = recipe.build_members()
    size = alone.plan(members).num_parameters
    sizes = {name: count_parameters(module) for name, module in members.items()}
    arms = [Arm(name="shared", kind="shared", label=_LABELS["shared"], recipe=alone, num_parameters=size)]
    for name, seeds in num_seeds.items():
        chosen = alone
        if name == "independent":
            chosen, size = _apart(alone), sum(sizes.values())
        elif name == "single":
            largest = _largest(members)
            kept = [member for member in alone.model_dump(mode="json")["members"] if member["name"] == largest]
            chosen, size = _changed(_apart(alone), {"members": kept}), sizes[largest]
        elif name == "narrower":
            chosen = narrower_recipe(alone, members, arms[0].num_parameters)
            size = sum(count_parameters(module) for module in chosen.build_members().values())
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
    try:
        num_parameters = chosen.plan(chosen.build_members()).num_parameters
    except SuperWeightError as error:
        raise SuperWeightError(f"variant {variant.name!r}: {error}") from error
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


def _largest(members: Mapping[str, nn.Module]) -> str:
    return max(members, key=lambda name: count_parameters(members[name]))


def _apart(recipe: Recipe) -> Recipe:
    """The same members with their own weights, which learn from the labels alone."""
    sharing = {"budget": 1.0, "clusters": "none"}
    return _changed(recipe, {"sharing": sharing, "distillation": None, "baseline": "none", "fine_tuning": None})


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return parse_recipe({**recipe.to_content(), **changes}, "the recipe of an arm")
