"""Figures of a search: which layers agree, and who shares with whom before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_checks import (
    assert_apart,
    assert_inside,
    assert_legend_fits,
    assert_pngs,
    laid_out,
    legend_texts,
    make_plan,
    search_record,
    with_gid,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

import superweight_ensembles as swe
from superweight_ensembles.plan import Cluster, PlannedSlot, PlannedTarget, SharingPlan
from superweight_ensembles.report import figures
from superweight_ensembles.report.figures import family_looks, place_rows, plan_letters, read_panels, tie_letters

LONG_NAMES = (
    "convnextv2_tiny_in22k_384",
    "mobilenetv3_small_100_ra3",
    "resnet50_a1_in1k",
    "efficientnet_b0_noisy_stu",
    "efficientnet_b0_noisy_tea",
)


def make_cluster(
    name: str, layers: Mapping[str, int], *, followers: Sequence[str] = (), num_sets: int = 2, seed: int = 0
) -> dict[str, Any]:
    """One entry of search.json: the first member is the anchor, ``followers`` had no gradient."""
    draw = np.random.default_rng(seed)
    owners = [(member, layer) for member, count in layers.items() for layer in range(count)]
    anchors = next(iter(layers.values()))
    leaders = [place if place < anchors else int(draw.integers(anchors)) for place in range(len(owners))]
    drawn = [int(number) for number in draw.integers(num_sets, size=anchors)]
    numbers = {number: place for place, number in enumerate(dict.fromkeys(drawn))}
    vectors = draw.normal(size=(len(owners), 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    silent = [member in followers for member, _ in owners]
    return {
        "name": name,
        "targets": [f"{member}.stages.0.{layer}.conv1.weight" for member, layer in owners],
        "anchors": anchors,
        "similarity": [
            [None if silent[row] or silent[column] else float(cosines[row, column]) for column in range(len(owners))]
            for row in range(len(owners))
        ],
        "sets": [numbers[drawn[leader]] for leader in leaders],
        "leaders": leaders,
    }


def make_search(clusters: Sequence[Mapping[str, Any]], anchor: str, *others: str) -> dict[str, Any]:
    return {
        "format": 1, "threshold_given": 0.1, "threshold": 0.05, "anchor": anchor, "representatives": [anchor, *others],
        "clusters": list(clusters),
    }  # fmt: skip


FOUR = {"wrn16-2": 5, "wrn10-2": 3, "wrn16-1": 5, "wrn10-1": 3}
SEARCHES = {
    "usual": make_search(
        [make_cluster(f"conv2d 3x3 bin {part}/3", FOUR, followers=("wrn16-1",), seed=part) for part in (1, 2, 3)],
        "wrn16-2",
        "wrn10-2",
    ),
    "one target": make_search([make_cluster("linear", {"a": 1}, num_sets=1)], "a"),
    "sixty targets": make_search([make_cluster("conv2d 3x3", {"a": 25, "b": 35}, num_sets=5)], "a", "b"),
    "twelve panels": make_search([make_cluster(f"bin {part}", {"a": 4, "b": part}) for part in range(1, 13)], "a", "b"),
    "long names": make_search(
        [make_cluster("linear of a very long name that wants more than one line", dict.fromkeys(LONG_NAMES, 4))],
        *LONG_NAMES,
    ),
}
each_search = pytest.mark.parametrize("case", SEARCHES)


@cache
def similarity(case: str) -> Figure:
    """A figure of a case, laid out; tests read it and change nothing."""
    return laid_out(figures.similarity_matrix(search_record(SEARCHES[case])))


def assert_texts_inside(figure: Figure, texts: Sequence[Text]) -> None:
    assert_inside([text.get_window_extent() for text in texts], figure.bbox)


@each_search
def test_a_panel_a_cluster_shows_every_cosine_with_the_sets_together(case: str) -> None:
    search, figure = SEARCHES[case], similarity(case)
    images = with_gid(figure, "similarity")
    assert len(images) == len(search["clusters"])
    for image, cluster in zip(images, search["clusters"]):
        shown = image.get_array()
        num = len(cluster["targets"])
        assert shown.shape == (num, num)
        given = [value for row in cluster["similarity"] for value in row if value is not None]
        assert sorted(shown.compressed().tolist()) == pytest.approx(sorted(given))
        assert image.get_clim() == (-1, 1)
        assert image.axes.get_title("left").split("\n")[-1] == (
            f"{num} layer{'s' if num > 1 else ''}, {len(set(cluster['sets']))} set"
            + ("s" if len(set(cluster["sets"])) > 1 else "")
        )
        boxes = [box for box in with_gid(figure, "set") if box.axes is image.axes]
        assert sorted(box.get_width() for box in boxes) == sorted(
            cluster["sets"].count(number) for number in set(cluster["sets"])
        )
        ends = sorted((box.get_x(), box.get_x() + box.get_width()) for box in boxes)
        assert ends[0][0] == -0.5 and ends[-1][1] == num - 0.5
        assert all(first[1] == second[0] for first, second in pairwise(ends))
        assert all(box.get_xy()[0] == box.get_xy()[1] and box.get_width() == box.get_height() for box in boxes)


def test_rows_are_sorted_and_leaders_stand_in_their_columns() -> None:
    cluster = {
        "name": "c",
        "targets": ["a.l.0.weight", "a.l.1.weight", "a.l.2.weight", "b.l.0.weight", "d.l.0.weight"],
        "anchors": 3,
        "similarity": [[1, 2, 3, 4], [2, 1, 5, 6], [3, 5, 1, 7], [4, 6, 7, 1]],
        "sets": [0, 1, 0, 1, 0],
        "leaders": [0, 1, 2, 1, 0],
    }
    cluster["similarity"] = [[value / 10 for value in row] + [None] for row in cluster["similarity"]] + [[None] * 5]  # type: ignore[index]
    (panel,) = read_panels(search_record(make_search([cluster], "a", "b")))
    assert panel.labels == ("a l.0", "a l.2", "d l.0", "a l.1", "b l.0")
    assert panel.anchors == (True, True, False, True, False)
    assert panel.sets == ((0, 3), (3, 2))
    assert sorted(panel.leaders) == [(2, 0), (4, 3)]
    assert panel.silent == [(2, 1)]
    assert panel.similarity[0, 1] == 0.3 and panel.similarity[4, 3] == 0.6
    figure = figures.similarity_matrix(search_record(make_search([cluster], "a", "b")))
    (dots,) = with_gid(figure, "leader")
    assert sorted(map(tuple, dots.get_offsets().tolist())) == [(0.0, 2.0), (3.0, 4.0)]
    assert [label.get_fontweight() for label in figure.axes[0].get_yticklabels()] == [
        "bold" if anchor else "normal" for anchor in panel.anchors
    ]
    assert len(with_gid(figure, "silent")) == 2  # its row and its column


@each_search
def test_rows_are_named_where_there_is_room(case: str) -> None:
    search, figure = SEARCHES[case], similarity(case)
    for axes, cluster in zip(figure.axes, search["clusters"]):
        labels = axes.get_yticklabels()
        num = len(cluster["targets"])
        if num > 25:
            assert [label.get_text() for label in labels] == ["1", "10", "20", "30", "40", "50", "60"]
        else:
            assert len({label.get_text() for label in labels}) == num
            assert sum(label.get_fontweight() == "bold" for label in labels) == cluster["anchors"]
        assert_apart([label.get_window_extent() for label in labels])
        assert_texts_inside(figure, [*labels, axes._left_title])  # type: ignore[attr-defined]
        assert not axes.get_xticks().size
        frame = axes.get_window_extent()
        assert all(label.get_window_extent().x1 <= frame.x0 for label in labels)
    strips = with_gid(figure, "member")
    assert len(strips) == sum(len(cluster["targets"]) for cluster in search["clusters"])
    members = {target.split(".")[0] for cluster in search["clusters"] for target in cluster["targets"]}
    assert len({strip.get_facecolor() for strip in strips}) == len(members)


@each_search
def test_matrices_are_square_and_beside_each_other(case: str) -> None:
    figure = similarity(case)
    panels = [axes for axes in figure.axes if axes.images]
    assert_apart([axes.get_window_extent() for axes in panels])
    for image in with_gid(figure, "similarity"):
        box = image.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=0.01)
        assert box.width > 40
    assert_legend_fits(figure)


def test_the_colourbar_states_the_threshold() -> None:
    figure = similarity("usual")
    bar = figure.axes[-1]
    assert (
        bar.get_xlabel() == "cosine similarity of gradients\nsets are merged above 0.05 (black line), lowered from 0.1"
    )
    (line,) = with_gid(figure, "threshold")
    assert set(line.get_xdata()) == {0.05}
    assert_texts_inside(figure, [bar.xaxis.label])
    kept = {**SEARCHES["usual"], "threshold": 0.1, "similarity": "weight"}
    text = figures.similarity_matrix(search_record(kept)).axes[-1].get_xlabel()
    assert text == "cosine similarity of weights\nsets are merged above 0.1 (black line)"


def test_the_legend_names_members_and_only_what_is_drawn() -> None:
    assert legend_texts(similarity("usual"))[:4] == ["wrn16-2 (anchor)", "wrn10-2", "wrn16-1", "wrn10-1"]
    assert "not compared: the layer follows" in legend_texts(similarity("usual"))
    assert legend_texts(similarity("one target")) == ["a (anchor)", "found set", "bold: layers of the anchor"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, 'must hold "format": 1; got 2'),
        ({"clusters": []}, "no cluster to draw"),
        ({"clusters": [{**make_cluster("c", {"a": 2}), "sets": [0]}]}, "cluster 'c': similarity, sets and leaders"),
        ({"clusters": [{**make_cluster("c", {"a": 2}), "leaders": [0, 2]}]}, "for each of its 2 targets"),
        ({"clusters": [{**make_cluster("c", {"a": 2}), "similarity": [[1], [1]]}]}, "search again"),
    ],
)
def test_unreadable_searches_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        figures.similarity_matrix(search_record({**SEARCHES["usual"], **change}))


def split(plan: SharingPlan, num_sets: int, *, tied: bool) -> SharingPlan:
    """Each cluster cut in runs of each member's layers; the n-th layers of all members tied or not."""
    clusters = []
    for cluster in plan.clusters:
        place = {}
        for member in plan.member_names:
            own = [target for target in cluster.targets if target.member == member]
            for index, target in enumerate(own):
                place[target] = (index * num_sets // len(own), index if tied else target.label)
        for number in sorted({found for found, _ in place.values()}):
            chosen = [target for target in cluster.targets if place[target][0] == number]
            shapes = sorted(
                {cluster.shape_of(target) for target in chosen}, key=lambda shape: (math.prod(shape), shape)
            )
            seen: list[dict[Any, int]] = [{} for _ in shapes]
            targets = []
            for target in chosen:
                slot = shapes.index(cluster.shape_of(target))
                vectors = tuple(users.setdefault(place[target][1], len(users)) for users in seen[: slot + 1])
                targets.append(replace(target, slot=slot, vectors=vectors))
            slots = tuple(
                PlannedSlot(shape=shape, num_templates=1, num_vectors=len(users)) for shape, users in zip(shapes, seen)
            )
            name = f"{cluster.name} set {number + 1}"
            clusters.append(replace(cluster, name=name, slots=slots, targets=tuple(targets)))
    found = replace(plan, clusters=tuple(clusters), budget=10**9)
    return SharingPlan.from_json(found.to_json())


FIRST = make_plan([(16, 2), (10, 2), (16, 1), (10, 1)])
PLANS = {"first": FIRST, "found": split(FIRST, 2, tied=True), "un-tied": split(FIRST, 2, tied=False)}
DEEP = make_plan([(64, 2), (52, 1)])
CHANGES = {
    "three plans": PLANS,
    "one plan": {"first": FIRST},
    "sixty layers": {"first": DEEP, "found": split(DEEP, 6, tied=True)},
    "long names": {f"a plan of a name that needs more than a single line, number {n}": PLANS["found"] for n in (1, 2)},
}


@cache
def change(case: str) -> Figure:
    return laid_out(figures.sharing_change(CHANGES[case]))


def num_targets(plan: SharingPlan) -> int:
    return sum(len(cluster.targets) for cluster in plan.clusters)


@pytest.mark.parametrize("case", CHANGES)
def test_every_layer_of_every_plan_is_a_cell(case: str) -> None:
    plans, figure = CHANGES[case], change(case)
    for axes, (name, plan) in zip(figure.axes, plans.items()):
        title = axes.get_title("left").split("\n")
        assert " ".join(title[:-2]) == name
        assert title[-2] == f"{len(plan.clusters)} clusters"
        vectors = sum(slot.num_vectors for cluster in plan.clusters for slot in cluster.slots)
        assert title[-1] == f"{vectors} coefficient vectors"
        alone = sum(len(cluster.targets) == 1 for cluster in plan.clusters)
        cells = {gid: [cell for cell in with_gid(figure, gid) if cell.axes is axes] for gid in ("layer", "alone")}
        assert len(cells["layer"]) == num_targets(plan) - alone
        assert len(cells["alone"]) == alone
        spots = [cell.get_xy() for own in cells.values() for cell in own]
        assert len(set(spots)) == len(spots)
        assert [label.get_text() for label in axes.get_xticklabels()] == list(plan.member_names)
        letters = sum(len(tie_letters(cluster)) for cluster in plan.clusters)
        assert len([text for text in with_gid(figure, "tied") if text.axes is axes]) == letters
        assert_apart([label.get_window_extent() for label in axes.get_xticklabels()])
        assert_texts_inside(figure, [*axes.get_xticklabels(), axes._left_title])  # type: ignore[attr-defined]
    assert not with_gid(figure, "own")
    rows = figure.axes[0].get_yticklabels()
    assert len(rows) == len(_layer_names(plans))
    assert_apart([label.get_window_extent() for label in rows])
    assert_texts_inside(figure, rows)
    assert_apart([axes.get_window_extent() for axes in figure.axes])
    assert_legend_fits(figure)


def _layer_names(plans: Mapping[str, SharingPlan]) -> set[str]:
    return {target.name for plan in plans.values() for cluster in plan.clusters for target in cluster.targets}


def test_letters_fit_their_cells() -> None:
    figure = change("sixty layers")
    cells = with_gid(figure, "layer")
    height = min(cell.get_window_extent().height for cell in cells)
    for text in with_gid(figure, "tied"):
        assert text.get_fontsize() * figure.dpi / 72 <= 1.25 * height  # a small letter is half as high as its font


def test_rows_stand_in_depth_order_and_by_name() -> None:
    rows = place_rows([FIRST])
    assert rows.named
    assert rows.labels[:4] == ("stem", "0.0.conv1", "0.0.conv2", "0.0.shortcut")
    assert rows.row_of["wrn16-2", "stem.weight"] == rows.row_of["wrn10-1", "stem.weight"] == 0
    mixed = swe.plan_sharing(
        {"wrn": swe.wide_resnet(16, 1, 10), "r18": swe.build_member("timm/resnet18", num_classes=10)}, budget=0.5
    )
    rows = place_rows([mixed])
    assert not rows.named
    assert rows.labels == tuple(str(number) for number in range(1, 21))
    assert figures.sharing_change({"first": mixed}).axes[0].get_ylabel() == "layer"


def test_parts_of_a_cluster_are_shades_and_equal_clusters_look_alike() -> None:
    first, found, untied = family_looks(list(PLANS.values()))
    assert len({look.color for look in first.values()}) == len(first) == len(FIRST.clusters)
    assert found == untied  # the same clusters, in the same order
    assert {look.family for look in found.values()} == {cluster.name for cluster in FIRST.clusters}
    fills = [(look.color, look.hatch) for look in found.values()]
    assert len(set(fills)) == len(fills)
    for index, look in found.items():
        assert PLANS["found"].clusters[index].name.startswith(look.family)
    alone = [index for index, cluster in enumerate(PLANS["found"].clusters) if len(cluster.targets) == 1]
    assert not set(alone) & set(found)


def test_many_parts_are_still_told_apart() -> None:
    first, found = family_looks(list(CHANGES["sixty layers"].values()))
    fills = [(look.color, look.hatch) for look in found.values()]
    assert len(set(fills)) == len(fills) > 20
    assert {look.family for look in found.values()} == {look.family for look in first.values()}


def test_layers_share_a_letter_exactly_where_their_coefficients_are_tied() -> None:
    shapes = ((4, 4, 3, 3), (8, 4, 3, 3), (8, 8, 3, 3))
    vectors = {
        "a": (0, 0, 0), "b": (0, 0), "c": (0, 1), "d": (0,), "e": (1,), "f": (2, 2, 1), "g": (2, 2, 1), "h": (3,),
    }  # fmt: skip
    cluster = Cluster(
        name="c",
        kind="conv2d",
        slots=tuple(
            PlannedSlot(shape=shape, num_templates=1, num_vectors=num_vectors)
            for shape, num_vectors in zip(shapes, (4, 3, 2), strict=True)
        ),
        targets=tuple(
            PlannedTarget(member="m", names=(name,), slot=len(own) - 1, vectors=own) for name, own in vectors.items()
        ),
    )
    letters = {name: found for (_, name), found in tie_letters(cluster).items()}
    assert letters == {"a": "a", "b": "a", "c": "b", "d": "ab", "f": "c", "g": "c"}
    for (first, own), (second, other) in combinations(vectors.items(), 2):
        tied = all(one == two for one, two in zip(own, other))
        assert tied == bool(set(letters.get(first, "")) & set(letters.get(second, "")))


def test_ties_that_stay_keep_their_letters() -> None:
    def tied(*vectors: int) -> SharingPlan:
        """Four layers of one slot."""
        targets = tuple(
            PlannedTarget(member="m", names=(f"l.{place}.weight",), slot=0, vectors=(vector,))
            for place, vector in enumerate(vectors)
        )
        slot = PlannedSlot(shape=(4, 4, 3, 3), num_templates=1, num_vectors=max(vectors) + 1)
        cluster = Cluster(name="c", kind="conv2d", slots=(slot,), targets=targets)
        return replace(FIRST, clusters=(cluster,))

    plans = [tied(0, 0, 1, 1, 1, 2), tied(0, 3, 1, 1, 4, 2), tied(0, 3, 1, 1, 2, 2), tied(0, 0, 0, 0, 1, 1)]
    found = ["".join(own.get(("m", f"l.{place}.weight"), ".") for place in range(6)) for own in plan_letters(plans)]
    assert found == ["aabbb.", "..bb..", "..bbaa", "bbbbaa"]


def test_the_legend_explains_shades_letters_and_grey() -> None:
    figure = change("three plans")
    (legend,) = figure.legends
    note = legend.get_title().get_text()
    assert "shades of a colour" in note and "equal letters in a cluster: tied coefficients" in note
    texts = legend_texts(figure)
    assert {cluster.name for cluster in FIRST.clusters} <= set(texts)
    assert ("alone in its cluster" in texts) == bool(with_gid(figure, "alone"))
    (plain,) = change("one plan").legends
    assert plain.get_title().get_text() == "a gap: the member has no such layer"
    assert set(legend_texts(change("one plan"))) == {cluster.name for cluster in FIRST.clusters}


def test_layers_that_a_plan_leaves_to_their_members_are_empty_cells() -> None:
    members = {name: swe.wide_resnet(10, width, 10) for name, width in (("a", 1), ("b", 2))}
    kept = swe.plan_sharing(members, budget=0.9, exclude=["*shortcut*"])
    shared = swe.plan_sharing(members, budget=0.9)
    figure = figures.sharing_change({"apart": swe.independent_plan(members), "kept": kept, "shared": shared})
    total = num_targets(shared)
    empty = [sum(cell.axes is axes for cell in with_gid(figure, "own")) for axes in figure.axes]
    assert empty == [total, total - num_targets(kept), 0]
    assert "its member's own, in no cluster" in legend_texts(figure)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ({}, "at least one sharing plan"),
        ({"first": FIRST, "other": make_plan([(10, 1)])}, "plan 'other' is of the members wrn10-1, but plan 'first'"),
        ({"apart": swe.independent_plan({"a": swe.wide_resnet(10, 1, 10)})}, "nothing is shared in 'apart'"),
    ],
)
def test_plans_that_cannot_be_compared_are_refused(plans: dict[str, SharingPlan], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        figures.sharing_change(plans)


def test_a_search_is_two_pngs(tmp_path: Path) -> None:
    paths = figures.draw_search(search_record(SEARCHES["usual"]), PLANS, tmp_path / "new")
    assert_pngs(paths, "similarity_matrix", "sharing_change")
