"""Who shares with whom, before and after: the clusters and tied coefficients of several plans side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from textwrap import wrap
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import Cluster, GeneratedTensor, SharingPlan
from superweight_ensembles.report.figures.layers import cluster_looks, depth_key, layers_by_depth
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    counted,
    is_dark,
    new_figure,
    outside_legend,
    plain_text,
    series_color,
    shade,
    short_layers,
    short_members,
)

# FOLDED report.figures.change_layout: What changes from plan to plan: rows of layers, colours of clusters, letters of
# tied coefficients.

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


_ALONE = "#D3D3D3"
_CELL_WIDTH, _CELL_HEIGHT = 0.92, 0.86
_ROW_INCHES, _LEAST_ROW_INCHES = 0.17, 0.108
_MOST_INCHES = 7.2
_LETTERS_AT_MOST = 3


@plain_text
def sharing_change(plans: Mapping[str, SharingPlan]) -> Figure:
    """The clusters of several plans of the same members, one panel a plan: a column a member, a row a layer.

    Colours are clusters; the parts into which a cluster of the first plan was split are shades of its colour. A layer
    alone in its cluster is grey, one that its member keeps is empty. Layers of one cluster with a letter in common
    have tied coefficients. Artists carry a ``gid``: ``layer``, ``alone``, ``own``, ``tied``.

    Args:
        plans: By what the panel is called, in order.

    Raises:
        SuperWeightError: No plan, plans of different members, or nothing shared in any of them.
    """
    contents = list(plans.values())
    _check(contents, list(plans))
    rows = place_rows(contents)
    looks = family_looks(contents)
    num = len(rows.labels)
    pitch = min(max(_MOST_INCHES / num, _LEAST_ROW_INCHES), _ROW_INCHES)
    members = short_members(contents[0].member_names, limit=16)
    wide = PAGE_INCHES - 0.25 - 0.06 * max(len(label) for label in rows.labels)
    upright = wide / (len(contents) * (len(members) + 0.3)) > 0.062 * max(len(name) for name in members.values())
    header = 0.15 if upright else 0.07 * max(len(name) for name in members.values())
    letters = plan_letters(contents)
    handles, note = _handles(contents, looks, rows), _note(looks, any(letters))
    titles = [_title(name, plan, wide / len(contents)) for name, plan in plans.items()]
    lines = max(title.count("\n") for title in titles) + 1
    legend_rows = -(-len(handles) // 3)
    figure = new_figure(
        PAGE_INCHES, num * pitch + header + 0.14 * lines + 0.44 + 0.14 * note.count("\n") + 0.17 * legend_rows
    )
    grid = figure.subplots(1, len(contents), sharey=True, squeeze=False)[0]
    for axes, plan, own, ties, title in zip(grid, contents, looks, letters, titles):
        _draw_plan(axes, plan, own, ties, rows, pitch)
        axes.set_xticks(range(len(members)), list(members.values()), rotation=0 if upright else 90)
        axes.set_title(title, loc="left", fontsize=SMALL_POINTS, color=INK)
    step = 1 if rows.named else 5
    ticks = range(0, num, 1) if rows.named else [0, *range(step - 1, num, step)]
    size = min(SMALL_POINTS, 0.9 * 72 * pitch)
    grid[0].set_yticks(ticks, [rows.labels[row] for row in ticks], fontsize=size)
    if not rows.named:
        grid[0].set_ylabel("layer", fontsize=SMALL_POINTS, color=INK)
    legend = outside_legend(figure, handles, loc="outside lower center", columns=3)
    legend.set_title(note, prop=FontProperties(size=SMALL_POINTS))
    legend.get_title().set(color=INK, multialignment="center")
    return figure


def _check(plans: Sequence[SharingPlan], names: Sequence[str]) -> None:
    if not plans:
        raise SuperWeightError("a figure of changes needs at least one sharing plan; none was given")
    for plan, name in zip(plans, names):
        if plan.member_names != plans[0].member_names:
            raise SuperWeightError(
                f"plan {name!r} is of the members {', '.join(plan.member_names)}, but plan {names[0]!r} of "
                f"{', '.join(plans[0].member_names)}: give plans of the same members in the same order"
            )
    if not any(plan.clusters for plan in plans):
        raise SuperWeightError(f"nothing is shared in {' or '.join(repr(name) for name in names)}: no change to draw")


def _title(name: str, plan: SharingPlan, inches: float) -> str:
    superweights = plan.superweight_clusters.values()
    vectors = sum(slot.num_vectors for cluster in superweights for slot in cluster.slots)
    lines = wrap(name, max(12, int(inches / 0.061)))
    if superweights or not plan.ssn_groups:
        lines += [counted(len(superweights), "cluster"), counted(vectors, "coefficient vector")]
    if plan.ssn_groups:
        lines.append(counted(len(plan.ssn_groups), "flat bank"))
    return "\n".join(lines)


def _draw_plan(
    axes: Axes,
    plan: SharingPlan,
    looks: Mapping[int, Look],
    letters: Mapping[Place, str],
    rows: Rows,
    pitch: float,
) -> None:
    columns = {member: column for column, member in enumerate(plan.member_names)}
    generated = set()
    for index, cluster in enumerate(plan.clusters):
        look = looks.get(index)
        for target in cluster.targets:
            place = place_of(target)
            generated.add(place)
            spot = (columns[target.member], rows.row_of[place])
            _draw_cell(axes, spot, look)
            if place in letters:
                _write_letters(axes, spot, letters[place], look, pitch)
    for place in rows.row_of.keys() - generated:
        left, top = columns[place[0]] - _CELL_WIDTH / 2, rows.row_of[place] - _CELL_HEIGHT / 2
        axes.add_patch(
            Rectangle(
                (left, top), _CELL_WIDTH, _CELL_HEIGHT, fill=False, edgecolor=MUTED, linewidth=0.5, zorder=1, gid="own"
            )
        )
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(rows.labels) - 0.45, -0.55)
    axes.tick_params(length=0, labelcolor=INK, labelsize=SMALL_POINTS, pad=2)
    axes.tick_params(axis="x", labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_cell(axes: Axes, spot: tuple[int, int], look: Look | None) -> None:
    axes.add_patch(
        Rectangle(
            (spot[0] - _CELL_WIDTH / 2, spot[1] - _CELL_HEIGHT / 2),
            _CELL_WIDTH,
            _CELL_HEIGHT,
            facecolor=look.color if look else _ALONE,
            hatch=look.hatch if look else "",
            edgecolor="white",
            linewidth=0,
            zorder=2,
            gid="layer" if look else "alone",
        )
    )


def _write_letters(axes: Axes, spot: tuple[int, int], letters: str, look: Look | None, pitch: float) -> None:
    color = look.color if look else _ALONE
    behind = {"facecolor": color, "edgecolor": "none", "pad": 0.0} if look and look.hatch else None
    axes.text(
        *spot,
        letters if len(letters) <= _LETTERS_AT_MOST else letters[: _LETTERS_AT_MOST - 1] + "+",
        ha="center",
        va="center_baseline",
        fontsize=min(SMALL_POINTS, 0.86 * 72 * pitch),
        color="white" if is_dark(color) else INK,
        zorder=3,
        gid="tied",
        bbox=behind,
    )


def _handles(plans: Sequence[SharingPlan], looks: Sequence[Mapping[int, Look]], rows: Rows) -> list[Patch]:
    """The families by their first cluster; what grey and empty cells mean, where there are any."""
    families: dict[str, Look] = {}
    for look in (look for own in looks for look in own.values()):
        families.setdefault(look.family, look)
    handles = [
        Patch(facecolor=look.color, hatch=look.hatch, edgecolor="white", linewidth=0.4, label=name)
        for name, look in families.items()
    ]
    if any(len(cluster.targets) == 1 for plan in plans for cluster in plan.clusters):
        handles.append(Patch(facecolor=_ALONE, label="alone in its cluster"))
    if any(sum(len(cluster.targets) for cluster in plan.clusters) < len(rows.row_of) for plan in plans):
        handles.append(Patch(facecolor="none", edgecolor=MUTED, linewidth=0.5, label="its member's own"))
    return handles


def _note(looks: Sequence[Mapping[int, Look]], tied: bool) -> str:
    """What shades and letters mean, where there are any."""
    families = [Counter(look.family for look in own.values()) for own in looks]
    notes = []
    if any(count > 1 for own in families for count in own.values()):
        notes.append("shades of a colour: the clusters into which one was split")
    if tied:
        notes.append("equal letters in a cluster: tied coefficients")
    return "\n".join(notes)
