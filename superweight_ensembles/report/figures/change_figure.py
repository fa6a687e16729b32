"""Who shares with whom, before and after: the clusters and tied coefficients of several plans side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.report.figures.change_layout import (
    Look,
    Place,
    Rows,
    family_looks,
    place_of,
    place_rows,
    plan_letters,
)
from superweight_ensembles.report.figures.shades import is_dark
from superweight_ensembles.report.figures.short_names import counted, short_members
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    new_figure,
    outside_legend,
    plain_text,
)

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
