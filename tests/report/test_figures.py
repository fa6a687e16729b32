"""Figures: what they say, for runs of one to eight members, close or wide accuracies, with and without a baseline."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_checks import (
    METRICS,
    assert_apart,
    assert_inside,
    assert_legend_fits,
    assert_pngs,
    drawn_boxes,
    laid_out,
    legend_texts,
    make_plan,
    run_results,
    with_gid,
)  # fmt: skip
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from typer.testing import CliRunner

import superweight_ensembles as swe
from superweight_ensembles.__main__ import app
from superweight_ensembles.experiment import read_results
from superweight_ensembles.report import figures
from superweight_ensembles.report.figures import (
    cluster_looks,
    layers_by_depth,
    place_cells,
    shared_segments,
)

BOTH = ("shared", "independent")
LONG_NAMES = (
    "convnextv2_tiny_in22k_384",
    "mobilenetv3_small_100_ra3",
    "resnet50_a1_in1k",
    "vit_tiny_patch16_224",
    "efficientnet_b0_noisy_stu",
    "regnety_032_ra",
    "resnet18",
    "deit3_small_patch16_224ls",
)
LONG_FLOPS = (13e9, 1.2e8, 8.2e9, 2.2e9, 8e8, 6.4e9, 3.6e9, 9.2e9)
LONG_ACCURACIES = (0.83, 0.67, 0.80, 0.75, 0.77, 0.82, 0.70, 0.81)


COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"


def make_results(
    names: Sequence[str],
    flops: Sequence[float],
    accuracies: Sequence[float],
    *,
    arms: Sequence[str] = BOTH,
    validation: bool = True,
    epochs: int = 12,
    name: str = "digits",
) -> dict[str, Any]:
    """A results.json in which subsets are a little better than their members, with noise from a fixed seed."""
    draw = np.random.default_rng(0)
    costs = dict(zip(names, flops))
    parameters = {member: 10_000 * (index + 2) for index, member in enumerate(names)}

    def arm(kind: str) -> dict[str, Any]:
        alone = {member: right - 0.004 * (kind != "shared") for member, right in zip(names, accuracies)}

        def subset(chosen: Sequence[str]) -> dict[str, Any]:
            right = max(alone[member] for member in chosen)
            gain = 0 if len(chosen) == 1 else (1 - right) * draw.uniform(-0.1, 0.3)
            cost = int(sum(costs[member] for member in chosen))
            metrics = {**METRICS, "accuracy": right + gain}
            return {"members": list(chosen), "flops": cost, "latency_ms": 1.0, "metrics": metrics}

        subsets = [subset(chosen) for size in range(1, len(names) + 1) for chosen in combinations(names, size)]
        history = [
            {
                "epoch": epoch,
                "train_loss": {member: 2.3 * math.exp(-epoch / 4) + 0.1 * index for index, member in enumerate(names)},
                "validation": {
                    "members": {
                        member: {"accuracy": alone[member] * (1 - 1 / (epoch + 1)), "nll": 1} for member in names
                    },
                    "ensemble": {"accuracy": 1 - 1 / (epoch + 1), "nll": 1.0},
                }
                if validation
                else None,
            }
            for epoch in range(1, epochs + 1)
        ]
        total = sum(parameters.values())
        edges = [index / 15 for index in range(16)]
        return {
            "name": kind,
            "num_parameters": total if kind == "independent" else int(0.83 * total),
            "independent_parameters": total,
            "members": [{**subset([member]), "name": member, "num_parameters": parameters[member]} for member in names],
            "ensemble": {key: subsets[-1][key] for key in ("flops", "latency_ms", "metrics")},
            "subsets": subsets,
            "reliability": [
                {"lower": lower, "upper": upper, "confidence": None, "accuracy": None, "count": 0}
                if lower < 0.3
                else {"lower": lower, "upper": upper, "confidence": upper - 0.02, "accuracy": lower, "count": 5}
                for lower, upper in pairwise(edges)
            ],
            "history": history,
        }

    return {"name": name, "arms": [arm(kind) for kind in arms]}


FOUR = make_plan([(16, 2), (16, 1), (10, 2), (10, 1)])
FOUR_NAMES = FOUR.member_names
USUAL = make_results(FOUR_NAMES, (9.9e6, 2.6e6, 3.9e6, 1.05e6), (0.975, 0.971, 0.972, 0.962))
CASES = {
    "usual": USUAL,
    "one arm": make_results(FOUR_NAMES, (9.9e6, 2.6e6, 3.9e6, 1.05e6), (0.975, 0.971, 0.972, 0.962), arms=("shared",)),
    "one member": make_results(["wrn16-2"], [9.9e6], [0.97], epochs=1),
    "eight long names": make_results(LONG_NAMES, LONG_FLOPS, LONG_ACCURACIES),
    "eight close": make_results(
        [f"wrn{depth}-{width}" for depth in (28, 22, 16, 10) for width in (2, 1)],
        (2e7, 5.3e6, 1.5e7, 4e6, 9.9e6, 2.6e6, 3.9e6, 1.05e6),
        (0.985, 0.98, 0.984, 0.979, 0.982, 0.978, 0.979, 0.975),
    ),
    "no validation": make_results(FOUR_NAMES, (9.9e6, 2.6e6, 3.9e6, 1.05e6), (0.9, 0.5, 0.7, 0.1), validation=False),
    "all alike": make_results(["a", "b", "c"], [1e6] * 3, [1.0] * 3),
}
each_case = pytest.mark.parametrize("case", CASES)


def caption(figure: Figure) -> str:
    (text,) = with_gid(figure, "caption")
    return " ".join(text.get_text().split())


@cache
def drawn(function: str, case: str) -> Figure:
    """A figure of a case, laid out; tests read it and change nothing."""
    return laid_out(getattr(figures, function)(run_results(CASES[case])))


@pytest.mark.parametrize("case", ["usual", "no validation"])
def test_a_run_is_six_pngs_of_sensible_size(tmp_path: Path, case: str) -> None:
    paths = figures.draw_run(run_results(CASES[case]), FOUR, tmp_path / "new" / "folder")
    names = ("accuracy_flops", "accuracy_parameters", "sharing_map", "budget_split")
    assert_pngs(paths, *names, "training_curves", "reliability_diagram")


def test_figures_use_no_pyplot() -> None:
    for file in Path(figures.__file__).parent.glob("*.py"):
        assert "matplotlib.pyplot" not in file.read_text()


@each_case
def test_accuracy_flops_shows_every_subset_front_and_star(case: str) -> None:
    results, figure = CASES[case], drawn("accuracy_flops", case)
    axes = figure.axes[0]
    assert "FLOPs per image" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()
    assert axes.get_xscale() == "log"
    for arm in results["arms"]:
        num_members = len(arm["members"])
        (dots,) = with_gid(figure, f"{arm['name']} subsets")
        assert len(dots.get_offsets()) == 2**num_members - 1
        (front,) = with_gid(figure, f"{arm['name']} front")
        flops, percents = front.get_data()
        assert np.all(np.diff(flops) > 0)
        assert np.all(np.diff(percents) > 0)
        assert max(percents) == pytest.approx(max(100 * subset["metrics"]["accuracy"] for subset in arm["subsets"]))
        (star,) = with_gid(figure, f"{arm['name']} ensemble")
        ensemble = arm["ensemble"]
        assert star.get_offsets()[0].tolist() == pytest.approx(
            [ensemble["flops"], 100 * ensemble["metrics"]["accuracy"]]
        )
        inside = axes.viewLim
        assert all(inside.contains(x, y) for x, y in dots.get_offsets())


@each_case
def test_member_names_stand_once_apart_and_inside(case: str) -> None:
    results = CASES[case]
    for function in ("accuracy_flops", "accuracy_parameters"):
        figure = drawn(function, case)
        labels = with_gid(figure, "label")
        names = [label.get_text() for label in labels]
        baseline = len(results["arms"]) == 2
        expected = [member["name"] for member in results["arms"][0]["members"]]
        assert sorted(names) == (sorted(expected) if function == "accuracy_flops" or baseline else [])
        boxes = drawn_boxes(labels)
        assert_apart(boxes)
        assert_inside(boxes, figure.axes[0].get_window_extent())


def test_accuracy_parameters_states_the_saving() -> None:
    figure = drawn("accuracy_parameters", "usual")
    (saving,) = with_gid(figure, "saving")
    assert saving.get_text() == "\N{MINUS SIGN}17 % parameters"
    assert "parameters" in figure.axes[0].get_xlabel()
    (star,) = with_gid(figure, "shared ensemble")
    assert star.get_offsets()[0][0] == USUAL["arms"][0]["num_parameters"]
    (singles,) = with_gid(figure, "independent members")
    assert len(singles.get_offsets()) == 4
    assert_apart(drawn_boxes([saving, *with_gid(figure, "label")]))

    alone = drawn("accuracy_parameters", "one arm")
    assert with_gid(alone, "saving")[0].get_text() == "\N{MINUS SIGN}17 % parameters"
    assert not with_gid(alone, "independent members")
    assert "members apart" in legend_texts(alone)  # as a line
    results = deepcopy(USUAL)
    results["arms"][0]["num_parameters"] = results["arms"][0]["independent_parameters"]
    as_large = figures.accuracy_parameters(run_results(results))
    assert with_gid(as_large, "saving")[0].get_text() == "as many parameters"
    assert not with_gid(as_large, "saving arrow")


@pytest.mark.parametrize("sizes", [[(16, 2)], [(16, 2), (16, 1), (10, 2), (10, 1)], [(40, 2), (40, 1), (64, 1)]])
def test_sharing_map_shows_every_layer_and_names_every_cluster(sizes: Sequence[tuple[int, int]]) -> None:
    plan = make_plan(sizes)
    figure = figures.sharing_map(plan)
    assert len(with_gid(figure, "layer")) == sum(len(cluster.targets) for cluster in plan.clusters)
    assert bool(with_gid(figure, "ribbon")) == (len(sizes) > 1)
    assert not with_gid(figure, "tied")
    texts = legend_texts(figure)
    for cluster in plan.clusters:
        (text,) = [text for text in texts if text.startswith(cluster.name)]
        assert f"{len(cluster.targets)} layers" in text
        assert f"{sum(slot.num_templates for slot in cluster.slots)} templates" in text
    rows = [label.get_text().split("\n")[0] for label in figure.axes[0].get_yticklabels()]
    assert rows == list(plan.member_names)
    assert_apart(drawn_boxes(laid_out(figure).axes[0].get_yticklabels()))


FLAT = {
    "mixed": ([(16, 2)], {"budget": 0.29}),
    "single": ([(16, 2)], {"budget": 0.05}),
    "two": ([(16, 2), (10, 1)], {"budget": 0.3, "generator": "ssn"}),
    "four": ([(16, 2), (16, 1), (10, 2), (10, 1)], {"budget": 1.5, "generator": "ssn", "clusters": "one"}),
    "many": ([(40, 2), (40, 1), (64, 1)], {"budget": 0.1, "generator": "ssn", "clusters": "shape"}),
}


@pytest.mark.parametrize("case", FLAT)
def test_flat_banks_on_the_map_and_in_the_budget(case: str) -> None:
    sizes, options = FLAT[case]
    plan = make_plan(sizes, **options)
    assert bool(plan.superweight_clusters) == (case == "mixed") and plan.ssn_groups
    figure = figures.sharing_map(plan)
    layers = [layer for own in layers_by_depth(plan).values() for layer in own]
    enlarged = [layer for layer in layers if layer.reading is not None and layer.reading.is_enlarged]
    assert len(with_gid(figure, "layer")) == len(layers)
    assert len(with_gid(figure, "enlarged")) == len(enlarged) and bool(enlarged) == (case != "four")
    texts = legend_texts(figure)
    assert ("beyond its bank: enlarged" in texts) == bool(enlarged)
    for look in cluster_looks(plan):
        cluster = plan.clusters[look.clusters[0]]
        (text,) = [text for text in texts if text.startswith(f"{look.label}: ")]
        if len(look.clusters) == 1:
            assert ("bank of" in text and "window" in text) == (cluster.generator == "ssn")
            name = {"superweight": " (SuperWeights)", "ssn": " (SSN)"}[cluster.generator]
            assert look.label == f"{cluster.name}{name if case == 'mixed' else ''}"
    shares = drawn_boxes(with_gid(laid_out(figure), "share"))
    assert (case == "single") <= bool(shares) and len(shares) <= len(enlarged)
    assert_apart([*shares, *drawn_boxes(figure.axes[0].get_yticklabels()), figure.legends[0].get_window_extent()])
    box = figure.legends[0].get_window_extent()
    assert_legend_fits(figure)
    assert box.y1 <= figure.axes[0].get_tightbbox().y0 + 1
    segments = shared_segments(plan)
    assert sum(segment.count for segment in segments) == plan.budget
    for look in cluster_looks(plan):
        (segment,) = [segment for segment in segments if segment.label == look.label]
        assert segment.count == sum(plan.clusters[index].num_templates for index in look.clusters)
    laid_out(figures.budget_split(plan))


def test_a_layer_is_as_high_as_what_it_reads_and_as_wide_as_the_root_of_its_weights() -> None:
    plan = make_plan([(16, 2)], budget=0.05)
    (cell, *_) = [cell for own in place_cells(plan).values() for cell in own if cell.read is not None]
    reading = cell.layer.reading
    assert reading is not None and cell.read is not None and 0 < cell.read < cell.tops[-1]
    assert reading.num_windows == 2 and reading.mixed  # the halves of the bank
    assert cell.read == 2 * reading.size / cell.layer.num_weights < 1
    cells = [cell for own in place_cells(FOUR).values() for cell in own]
    units = {(cell.right - cell.left) / math.sqrt(cell.layer.num_weights) for cell in cells}
    assert max(units) == pytest.approx(min(units))
    assert max(cell.right for cell in cells) == pytest.approx(1)
    figure = figures.sharing_map(FOUR)
    assert "as wide as the square root of its weights" in caption(figure)
    for ribbon in with_gid(figure, "ribbon"):
        assert ribbon.get_alpha() is None  # crossing bands make no third colour


def test_a_cluster_is_dashed_past_a_member_without_it() -> None:
    plan = make_plan([(10, 2), (10, 1), (16, 2)], clusters="shape")
    figure = figures.sharing_map(plan)
    assert with_gid(figure, "passing") and "dashed past a member without it" in caption(figure)
    assert not with_gid(figures.sharing_map(make_plan([(10, 2), (16, 2)], clusters="shape")), "passing")


def test_every_point_has_its_standard_error_and_is_hollow() -> None:
    figure = drawn("accuracy_flops", "usual")
    assert len(with_gid(figure, "shared error")) == 5
    ensemble = 100 * USUAL["arms"][0]["ensemble"]["metrics"]["accuracy"]
    (bar,) = [line for line in with_gid(figure, "shared error") if line.get_xdata()[0] > 1.7e7]
    low, high = bar.get_ydata()
    assert low < ensemble < high
    assert (high - low) / 2 == pytest.approx(100 * math.sqrt(ensemble * (100 - ensemble) / 360) / 100, rel=0.1)
    (markers,) = with_gid(figure, "shared members")
    assert markers.get_facecolor()[0].tolist() == [1, 1, 1, 1]
    assert "360 test images, one of which is 0.28 %" in caption(figure)
    assert "joined: no cheaper subset is better" in legend_texts(figure)


@each_case
@pytest.mark.parametrize(
    "function", ["accuracy_flops", "accuracy_parameters", "training_curves", "reliability_diagram"]
)
def test_title_legend_plot_and_caption_are_apart(case: str, function: str) -> None:
    figure = drawn(function, case)
    assert_legend_fits(figure)
    texts = drawn_boxes([*with_gid(figure, "title"), *with_gid(figure, "caption")])
    boxes = [*texts, figure.legends[0].get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
    assert_apart([box.padded(-1) for box in boxes])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in texts)


def test_formats_hold_the_same_bytes_twice(tmp_path: Path) -> None:
    results = run_results(USUAL)
    options = figures.FigureOptions(formats=("svg", "pdf"))
    for name in ("one", "two"):
        figures.save_figures({"map": figures.accuracy_flops(results)}, tmp_path / name, options)
    for suffix in options.formats:
        first, second = (tmp_path / name / f"map.{suffix}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in (tmp_path / "one" / "map.pdf").read_bytes()
    assert "dc:date" not in (tmp_path / "one" / "map.svg").read_text()


@pytest.mark.parametrize(("width", "inches"), [("column", 4.0), ("page", 7.0), (5.5, 5.5), ("3.5", 3.5)])
def test_every_figure_has_the_width_asked_for(width: str | float, inches: float) -> None:
    results = run_results(USUAL)
    with figures.FigureOptions(width=width).applied():
        drawn = [figures.accuracy_flops(results), figures.training_curves(results), figures.budget_split(FOUR)]
        drawn.append(figures.sharing_map(FOUR))
    assert {figure.get_figwidth() for figure in drawn} == {inches}
    for figure in drawn:
        figure.draw_without_rendering()
        for text in with_gid(figure, "caption"):
            assert text.get_window_extent().x1 <= figure.bbox.width
    assert figures.accuracy_flops(results).get_figwidth() == 4.0


def test_a_style_colours_the_whole_figure(tmp_path: Path) -> None:
    own = tmp_path / "own.mplstyle"
    own.write_text("axes.facecolor: 102030\ntext.color: yellow\naxes.prop_cycle: cycler('color', ['ff0000'])\n")
    for name, paper, ink in (
        ("dark", "#161616", "#f4f4f4"),
        (str(own), "#102030", "#ffff00"),
        ("ggplot", "#e5e5e5", ""),
    ):
        options = figures.FigureOptions(style=name)
        with options.applied():
            figure = figures.accuracy_flops(run_results(USUAL))
            figures.save_figures({"one": figure}, tmp_path, options)
        axes = figure.axes[0]
        assert to_hex(axes.get_facecolor()) == paper
        (markers,) = with_gid(figure, "shared members")
        assert to_hex(markers.get_facecolor()[0]) == paper  # hollow
        if ink:
            low, title = (np.array(to_rgb(color)) for color in (paper, figure.texts[0].get_color()))
            assert np.abs(title - to_rgb(ink)).max() < 0.2 < np.abs(title - low).max()
        if name == str(own):
            (front,) = with_gid(figure, "shared front")
            assert to_hex(front.get_color()) == "#ff0000"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("gif",)}, "figure formats gif: give any of png, pdf, svg"),
        ({"formats": ()}, "figure formats none"),
        ({"formats": ("png", "png")}, "each once"),
        ({"width": "wide"}, "figure width wide: give column, page, or inches from 3 to 20"),
        ({"width": 0.0}, "figure width 0.0"),
        ({"width": "nan"}, "figure width nan"),
        ({"style": "gglot"}, "'gglot' is no style of Matplotlib, and no file: give light, dark"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        figures.FigureOptions(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("axes.facecolour: red\n", "line 1: 'axes.facecolour' is no setting"), ("text.color: nothing\n", "mend that")],
)
def test_a_style_file_with_an_error_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.mplstyle").write_text(content)
    with pytest.raises(swe.SuperWeightError, match=message):
        figures.FigureOptions(style=str(tmp_path / "own.mplstyle"))


def test_changes_of_a_plan_with_flat_banks() -> None:
    plans = {"sought": make_plan([(16, 2)], budget=0.29), "one": make_plan([(16, 2)], budget=0.05)}
    figure = figures.sharing_change(plans)
    mixed, flat = (axes.get_title(loc="left") for axes in figure.axes)
    assert "3 clusters" in mixed and "1 flat bank" in mixed
    assert "1 flat bank" in flat and "coefficient vector" not in flat
    assert len(with_gid(figure, "layer")) == 2 * 16


def test_layers_stand_in_depth_order() -> None:
    names = [layer.target.name for layer in layers_by_depth(make_plan([(64, 1)]))["wrn64-1"]]
    assert names[0] == "stem.weight"
    blocks = [tuple(int(part) for part in name.split(".")[1:3]) for name in names[1:]]
    assert blocks == sorted(blocks)
    assert max(blocks) == (2, 9)


def test_tied_coefficients_are_joined() -> None:
    cluster = FOUR.clusters[0]
    first, second = cluster.targets[:2]
    assert first.vectors == (0,)
    targets = tuple(
        replace(target, vectors=(max(target.vectors[0] - 1, 0), *target.vectors[1:])) for target in cluster.targets
    )
    slots = (replace(cluster.slots[0], num_vectors=cluster.slots[0].num_vectors - 1), *cluster.slots[1:])
    plan = replace(FOUR, clusters=(replace(cluster, targets=targets, slots=slots), *FOUR.clusters[1:]))
    plan = swe.SharingPlan.from_json(plan.to_json())
    figure = figures.sharing_map(plan)
    (line,) = with_gid(figure, "tied")
    assert (first.member, second.member) == FOUR_NAMES[:2]
    assert len(line.get_xdata()) == 2
    assert "tied coefficients" in legend_texts(figure)


def test_clusters_of_one_layer_are_grey_and_counted() -> None:
    plan = make_plan([(16, 4), (16, 3), (10, 5)], budget=1.0, clusters="shape")
    looks = cluster_looks(plan)
    assert sorted(index for look in looks for index in look.clusters) == list(range(len(plan.clusters)))
    alone = [cluster for cluster in plan.clusters if len(cluster.targets) == 1]
    assert f"{len(alone)} clusters of one layer" in legend_texts(figures.sharing_map(plan))[-1]
    assert sum(segment.count for segment in shared_segments(plan)) == plan.budget


def test_nothing_shared_is_said() -> None:
    plan = swe.independent_plan({"a": swe.wide_resnet(10, 1, 10)})
    figure = figures.sharing_map(plan)
    assert any("nothing is shared" in text.get_text() for text in figure.texts)
    assert sum(segment.count for segment in shared_segments(plan)) == plan.num_parameters
    laid_out(figures.budget_split(plan))


@pytest.mark.parametrize("budget_counts", ["all", "templates"])
def test_budget_bars_sum_to_the_plan(budget_counts: str) -> None:
    plan = make_plan([(16, 2), (16, 1), (10, 1)], budget=0.6, budget_counts=budget_counts)
    figure = figures.budget_split(plan)
    widths = {
        gid: sum(box.get_width() for box in with_gid(figure, gid) if isinstance(box, Rectangle))
        for gid in ("shared", "part", "independent", "member")
    }
    uncounted = 0 if budget_counts == "all" else plan.num_coefficients + plan.num_private
    assert widths["shared"] == widths["part"] == plan.budget + uncounted
    assert widths["independent"] == widths["member"] == plan.independent_parameters
    segments = {segment.label: segment.count for segment in shared_segments(plan)}
    assert segments["coefficients"] == plan.num_coefficients
    assert segments["members' own"] == plan.num_private
    assert sum(segments[cluster.name] for cluster in plan.clusters) == plan.num_templates
    assert widths["shared"] - segments["unspent"] == plan.num_parameters
    (line,) = with_gid(figure, "budget")
    assert set(line.get_xdata()) == {plan.budget}
    assert "parameters" in figure.axes[0].get_xlabel()
    figure.draw_without_rendering()
    rows = figure.axes[0].get_yticklabels()
    names = [row.get_text() for row in rows]
    assert {cluster.name for cluster in plan.clusters} | set(plan.member_names) < set(names)
    assert_apart(drawn_boxes(rows))
    assert f"{100 * plan.budget / plan.independent_parameters:.0f} % of the members apart" in caption(figure)


@each_case
def test_training_curves_leave_out_validation_only_without_one(case: str) -> None:
    results, figure = CASES[case], drawn("training_curves", case)
    validated = results["arms"][0]["history"][0]["validation"] is not None
    assert len(figure.axes) == (2 if validated else 1)
    assert "epoch" in {axes.get_xlabel() for axes in figure.axes}
    assert "nats" in figure.axes[0].get_ylabel()
    for arm in results["arms"]:
        (loss,) = with_gid(figure, f"{arm['name']} loss")
        means = [sum(epoch["train_loss"].values()) / len(arm["members"]) for epoch in arm["history"]]
        assert list(loss.get_ydata()) == pytest.approx(means)
        assert len(with_gid(figure, f"{arm['name']} member")) == (len(arm["members"]) if validated else 0)
        assert len(with_gid(figure, f"{arm['name']} ensemble")) == int(validated)
    if validated:
        assert figure.axes[1].get_ylabel() == "validation error (%)" and figure.axes[1].get_yscale() == "log"
        texts = legend_texts(figure)
        once = len(results["arms"][0]["history"]) == 1
        columns = [label.get_text() for label in figure.axes[1].get_xticklabels()]
        for member in results["arms"][0]["members"]:
            assert member["name"] in (columns if once else texts)
        lines = with_gid(figure, "shared member")
        looks = {line.get_linestyle() + str(line._dash_pattern) for line in lines}
        assert once or len(looks) == min(len(lines), 7)


def test_training_curves_draw_validated_epochs_alone() -> None:
    results = deepcopy(USUAL)
    for arm in results["arms"]:
        for epoch in arm["history"]:
            if epoch["epoch"] % 4:
                epoch["validation"] = None
    (line,) = with_gid(figures.training_curves(run_results(results)), "shared ensemble")
    assert list(line.get_xdata()) == [4, 8, 12]


def test_reliability_leaves_out_empty_bins_and_states_the_ece() -> None:
    figure = drawn("reliability_diagram", "usual")
    upper, lower = figure.axes
    assert "%" in upper.get_ylabel() and "%" in lower.get_xlabel()
    eces = [100 * arm["ensemble"]["metrics"]["ece"] for arm in USUAL["arms"]]
    assert legend_texts(figure) == [f"shared bank, ECE {eces[0]:.2f} %", f"independent, ECE {eces[1]:.2f} %"]
    full = [entry for entry in USUAL["arms"][0]["reliability"] if entry["count"]]
    (line,) = with_gid(figure, "shared bins")  # each of two bins of five images
    assert len(full) == 10 and len(line.get_xdata()) == 5
    first, second = full[:2]
    assert line.get_xdata()[0] == pytest.approx(50 * (first["confidence"] + second["confidence"]))
    assert line.get_ydata()[-1] == pytest.approx(100 * sum(entry["accuracy"] for entry in full[-2:]) / 2)
    assert lower.get_yscale() == "log"
    assert [bar.get_height() for bar in lower.containers[0]] == [
        entry["count"] for entry in USUAL["arms"][0]["reliability"]
    ]
    assert "ten at least" in caption(figure)


def test_a_comparison_is_two_pngs_and_tells_runs_of_one_name_apart(tmp_path: Path) -> None:
    contents = [USUAL, CASES["eight close"], {**USUAL}, {**CASES["eight long names"], "name": "imagenet"}]
    runs = [run_results(content) for content in contents]
    paths = figures.draw_comparison([*runs[:2], run_results(CASES["one arm"])], tmp_path)
    assert_pngs(paths, "compare_flops", "compare_parameters")
    figure = figures.compare_flops(runs)
    texts = legend_texts(figure)
    assert len(set(texts)) == len(texts)
    assert {"imagenet", "independent", "all members"} < set(texts)
    assert sum(text.startswith("digits") for text in texts) == 3
    labels = with_gid(laid_out(figures.compare_parameters(runs)), "label")
    assert len({label.get_text() for label in labels}) == 4
    assert_apart(drawn_boxes(labels))


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_figures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(COMMITTED, run)
    for name in ("results.json", "plan.json", "recipe.yaml"):
        text = re.sub(r"wrn1[06]-[12]", lambda found: found[0] + "x" * 190, (run / name).read_text())
        (run / name).write_text(re.sub(r' "fingerprint": "[^"]*",', "", text, count=1))
    results, plan = read_results(run)
    assert len(figures.draw_run(results, plan, tmp_path / "figures")) >= 6
    figure = laid_out(figures.accuracy_parameters(results))
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert all(len(word) <= 40 for text in texts for word in text.split())
    assert any(re.search("^wrn16-2x+…x+$", text) for text in texts)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"format": 2, "arms": []}, 'must hold "format": 1; got 2'),
        ({"format": 1, "name": "digits", "arms": []}, "run 'digits' hold no arm"),
    ],
)
def test_unreadable_results_are_refused(results: dict[str, Any], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        figures.accuracy_flops(run_results(results))


def test_no_runs_are_refused() -> None:
    for draw in (figures.compare_flops, figures.compare_parameters):
        with pytest.raises(swe.SuperWeightError, match="at least one run"):
            draw([])


def test_the_command_line_passes_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[figures.FigureOptions] = []
    monkeypatch.setattr(figures, "draw_run", lambda results, plan, folder, options: seen.append(options) or [])
    arguments = ["plot", str(COMMITTED), "--out", str(tmp_path), "--format", "svg, pdf"]
    CliRunner().invoke(app, [*arguments, "--width", "column", "--style", "dark"], catch_exceptions=False)
    assert seen == [figures.FigureOptions(formats=("svg", "pdf"), width="column", style="dark")]
    with pytest.raises(swe.SuperWeightError, match="figure width 99: give column, page, or inches"):
        CliRunner().invoke(app, [*arguments, "--width", "99"], catch_exceptions=False)
