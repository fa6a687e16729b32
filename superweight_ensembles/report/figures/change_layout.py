"""What changes from plan to plan: rows of layers, colours of clusters, letters of tied coefficients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from types import MappingProxyType

from superweight_ensembles.plan.generated_tensor import GeneratedTensor
from superweight_ensembles.plan.plan import Cluster, SharingPlan
from superweight_ensembles.report.figures.cluster_looks import cluster_looks
from superweight_ensembles.report.figures.layer_order import depth_key, layers_by_depth
from superweight_ensembles.report.figures.shades import series_color, shade
from superweight_ensembles.report.figures.short_names import short_layers

_LETTERS = ascii_lowercase + ascii_uppercase + "αβγδεζηθικλμνξπρστυφχψω"
_MANY_SHADES = 5
_HATCHES = ("", "//////", "......")
_SPARSE = 1.3

Place = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Fill of a cluster that shares, and the name of the first cluster that it comes from."""

    color: str
    hatch: str
    family: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Where layers stand.

    Attributes:
        labels: Of the rows, from the top; numbers where the members name their layers differently.
        row_of: By (member, layer).
        named: Whether the labels are names.
    """

    labels: tuple[str, ...]
    row_of: Mapping[Place, int]
    named: bool


def place_rows(plans: Sequence[SharingPlan]) -> Rows:
    """One row a layer name if members agree on most names, else each member's layers one under the other."""
    names: dict[str, dict[str, None]] = {member: {} for member in plans[0].member_names}
    for plan in plans:
        for member, layers in layers_by_depth(plan).items():
            names[member].update(dict.fromkeys(layer.target.name for layer in layers))
    own = {member: sorted(found, key=depth_key) for member, found in names.items()}
    every = sorted({name for found in own.values() for name in found}, key=depth_key)
    longest = max((len(found) for found in own.values()), default=0)
    if len(every) <= _SPARSE * longest:
        short = short_layers(every, limit=20)
        place = {name: row for row, name in enumerate(every)}
        row_of = {(member, name): place[name] for member, found in own.items() for name in found}
        return Rows(labels=tuple(short[name] for name in every), row_of=row_of, named=True)
    row_of = {(member, name): row for member, found in own.items() for row, name in enumerate(found)}
    return Rows(labels=tuple(str(row + 1) for row in range(longest)), row_of=row_of, named=False)


def place_of(target: GeneratedTensor) -> Place:
    return target.member, target.name


def family_looks(plans: Sequence[SharingPlan]) -> list[dict[int, Look]]:
    """Looks of each plan's sharing clusters by index: parts of a cluster of the first plan are shades of its colour.

    A cluster belongs to the family with which it has most layers in common. Clusters of equal layers look alike in
    every plan; a cluster without a family founds one.
    """
    roots: list[tuple[str, str, str, frozenset[Place]]] = []
    parts: dict[int, dict[frozenset[Place], None]] = {}
    families: list[dict[int, int]] = []
    first = plans[0]
    for look in cluster_looks(first):
        shared = [index for index in look.clusters if len(first.clusters[index].targets) > 1]
        roots += [(first.clusters[index].name, look.color, look.hatch, _places(first, index)) for index in shared]
    for number, plan in enumerate(plans):
        families.append({})
        order = _by_depth(plan)
        for index in order:
            own = _places(plan, index)
            common = [len(own & root[3]) for root in roots]
            if not any(common):
                roots.append((plan.clusters[index].name, series_color(len(roots)), "", own))
                common.append(1)
            family = common.index(max(common))
            families[-1][index] = family
            if number and own != roots[family][3]:
                parts.setdefault(family, {}).setdefault(own)
    return [
        {
            index: _look(roots[family], list(parts.get(family, {})), _places(plan, index))
            for index, family in own.items()
        }
        for plan, own in zip(plans, families)
    ]


def _look(root: tuple[str, str, str, frozenset[Place]], parts: list[frozenset[Place]], own: frozenset[Place]) -> Look:
    name, color, hatch, whole = root
    if own == whole or own not in parts:
        return Look(color=color, hatch=hatch, family=name)
    place = parts.index(own)
    rounds, column = divmod(place, _MANY_SHADES)
    shades = min(len(parts), _MANY_SHADES)
    further = _HATCHES[(_HATCHES.index(hatch) + rounds) % len(_HATCHES)]
    return Look(color=shade(color, column, shades), hatch=further, family=name)


def _places(plan: SharingPlan, index: int) -> frozenset[Place]:
    return frozenset(place_of(target) for target in plan.clusters[index].targets)


def _by_depth(plan: SharingPlan) -> list[int]:
    """Sharing clusters, by the place of their first layer in the first member that has one."""
    seen = [layer.cluster_index for own in layers_by_depth(plan).values() for layer in own]
    return [index for index in dict.fromkeys(seen) if len(plan.clusters[index].targets) > 1]


def plan_letters(plans: Sequence[SharingPlan]) -> list[dict[Place, str]]:
    """Letters of tied coefficients in each plan; a cluster that stays keeps its letters where its ties stay."""
    found: list[dict[Place, str]] = []
    clusters: set[frozenset[Place]] = set()
    for plan in plans:
        before = found[-1] if found else {}
        found.append({})
        for cluster in plan.superweight_clusters.values():
            places = frozenset(place_of(target) for target in cluster.targets)
            found[-1].update(tie_letters(cluster, before if places in clusters else {}))
        clusters = {_places(plan, index) for index in range(len(plan.clusters))}
    return found


def tie_letters(cluster: Cluster, before: Mapping[Place, str] = MappingProxyType({})) -> dict[Place, str]:
    """Letters of the targets whose coefficients are tied: two targets have one in common exactly where they are.

    Targets are tied where their vectors are equal in all slots that both compose: one's vectors begin the other's.
    A narrow layer can thus be tied to several wide ones that are not tied to each other, and has all their letters.

    Args:
        cluster: Of a plan.
        before: Letters to keep for the targets that have them, where they are still tied.
    """
    targets = sorted(cluster.targets, key=lambda target: depth_key(target.name))
    vectors = [target.vectors for target in targets]
    whole = [own for own in dict.fromkeys(vectors) if not any(_begins(own, other) for other in vectors)]
    groups = [
        [place_of(target) for target in targets if target.vectors == longest or _begins(target.vectors, longest)]
        for longest in whole
    ]
    kept = "".join(before.get(place_of(target), "") for target in targets)
    free = iter([letter for letter in _LETTERS if letter not in kept] + [f"({n})" for n in range(1, len(groups) + 1)])
    letters: dict[Place, str] = {}
    taken: set[str] = set()
    for group in (own for own in groups if len(own) > 1):
        old = Counter("".join(before.get(place, "") for place in group))
        letter = next((known for known, _ in old.most_common() if known in _LETTERS and known not in taken), "")
        letter = letter or next(free)
        taken.add(letter)
        for place in group:
            letters[place] = letters.get(place, "") + letter
    return letters


def _begins(short: Sequence[int], long: Sequence[int]) -> bool:
    return len(short) < len(long) and tuple(long[: len(short)]) == tuple(short)
