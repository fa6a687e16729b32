"""Figures of a comparison: arms against size and compute, with their spread over seeds, and the ablation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_checks import (
    assert_apart,
    assert_legend_fits,
    assert_pngs,
    comparison_of,
    drawn_boxes,
    laid_out,
    legend_texts,
    with_gid,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

import superweight_ensembles as swe
from superweight_ensembles.report import figures
from superweight_ensembles.report.figures import pareto_front, read_measured

MEMBERS = {"wrn16-2": (64, 0.97), "wrn10-2": (25, 0.95), "wrn16-1": (17, 0.94), "wrn10-1": (7, 0.90)}
FLOPS = 98_000_000


def make_arm(
    name: str, label: str, kind: str, num_parameters: int, flops: int, accuracies: Sequence[float], *,
    subsets: bool = False, **extra: Any,
) -> dict[str, Any]:  # fmt: skip
    """One arm; the accuracy of a subset is made up from its members'."""
    total = sum(cost for cost, _ in MEMBERS.values())

    def subset(chosen: tuple[str, ...], accuracy: float) -> dict[str, Any]:
        cost = sum(MEMBERS[member][0] for member in chosen)
        best = max(MEMBERS[member][1] for member in chosen)
        right = accuracy if len(chosen) == len(MEMBERS) else accuracy * (best + 0.008 * (len(chosen) - 1))
        return {"members": list(chosen), "flops": flops * cost // total, "metrics": {"accuracy": right}}

    runs: list[dict[str, Any]] = []
    for seed, accuracy in enumerate(accuracies):
        runs.append({"seed": seed, "metrics": {"accuracy": accuracy, "nll": 1.0, "ece": 0.02, "brier": 0.4}})
        if subsets:
            every = (combinations(MEMBERS, size) for size in range(1, len(MEMBERS) + 1))
            runs[-1]["subsets"] = [subset(chosen, accuracy) for group in every for chosen in group]
    num = len(accuracies)
    summary = {"mean": float(np.mean(accuracies)), "std": float(np.std(accuracies, ddof=1)) if num > 1 else 0.0}
    return {
        "name": name, "label": label, "kind": kind, "num_parameters": num_parameters, "flops": flops, "runs": runs,
        "summary": {"accuracy": {**summary, "n": num}}, "difference": {}, **extra,
    }  # fmt: skip


def make_comparison(*arms: dict[str, Any]) -> dict[str, Any]:
    dataset = {"name": "cifar10", "num_test": 10000}
    return {"format": 1, "name": "cifar10-small", "seeds": [0, 1, 2], "dataset": dataset, "arms": list(arms)}


def around(mean: float, num_seeds: int = 3) -> list[float]:
    return [mean + 0.003 * (seed - 1) for seed in range(num_seeds)]


SHARED = make_arm("shared", "shared bank 0.83", "shared", 1_036_000, FLOPS, around(0.712), subsets=True)
INDEPENDENT = make_arm("independent", "independent", "independent", 1_248_000, FLOPS, around(0.708), subsets=True)
OTHERS = [
    make_arm(kind, f"{kind} WRN 16-2", kind, count, flops, around(mean))
    for kind, count, flops, mean in (
        ("single", 692_000, 63_000_000, 0.672),
        ("batchensemble", 720_000, 252_000_000, 0.681),
        ("packed", 760_000, 70_000_000, 0.690),
        ("mimo", 700_000, 64_000_000, 0.665),
        ("masksembles", 695_000, 255_000_000, 0.676),
    )
]
BUDGETS = [
    make_arm(
        *[f"bank {budget}"] * 2, "variant", int(1_248_000 * budget), FLOPS, around(0.71 - 0.03 * abs(budget - 0.9)),
        series="budget", group="budget",
    )
    for budget in (1.3, 0.4, 0.6, 1.0, 1.15)
]  # fmt: skip
OPTIONS = [
    make_arm(label, label, "variant", 1_036_000, FLOPS, around(mean), group=group)
    for group, label, mean in (
        ("clusters", "equal shapes", 0.705),
        ("clusters", "found by the gradients of the first epochs, at a threshold of 0.1", 0.714),
        ("coefficients", "embedding", 0.709),
        ("cap", "cap 4", 0.703),
        ("coefficients", "channel", 0.7135),
    )
]
LONG = [
    make_arm(f"arm {place}", f"a method of long name with subgroups of {place}", kind, 10**6 * 4**place, 10**9,
             around(0.8 + 0.002 * place))
    for place, kind in enumerate(("shared", "independent", "packed", "exotic"))
]  # fmt: skip
CASES = {
    "usual": make_comparison(SHARED, INDEPENDENT, *OTHERS),
    "twelve arms": make_comparison(SHARED, INDEPENDENT, *OTHERS, *BUDGETS),
    "one arm, one seed": make_comparison(make_arm("shared", "shared bank", "shared", 10**6, FLOPS, [0.7])),
    "two arms": make_comparison(SHARED, INDEPENDENT),
    "ablation": make_comparison(SHARED, INDEPENDENT, *OPTIONS, *BUDGETS),
    "long labels": make_comparison(*LONG),
    "crowd": make_comparison(
        *(
            make_arm(f"arm {place}", f"setting of long name {place}", "packed", 10**6, FLOPS, around(0.7 + place / 2e4))
            for place in range(14)
        )
    ),
}
each_case = pytest.mark.parametrize("case", CASES)
each_scatter = pytest.mark.parametrize("function", ["arms_parameters", "arms_flops"])


@cache
def drawn(function: str, case: str) -> Figure:
    """A figure of a case, laid out; tests read it and change nothing."""
    return laid_out(getattr(figures, function)(comparison_of(CASES[case])))


@each_case
@each_scatter
def test_every_arm_is_its_mean_its_deviation_and_its_seeds(function: str, case: str) -> None:
    figure = drawn(function, case)
    axes = figure.axes[0]
    assert "%" in axes.get_ylabel()
    assert ("parameters" if function == "arms_parameters" else "FLOPs per image") in axes.get_xlabel()
    for arm in CASES[case]["arms"]:
        x = arm["num_parameters" if function == "arms_parameters" else "flops"]
        summary = arm["summary"]["accuracy"]
        (mean,) = with_gid(figure, f"{arm['name']} mean")
        assert mean.get_offsets()[0].tolist() == pytest.approx([x, 100 * summary["mean"]])
        assert axes.viewLim.contains(*mean.get_offsets()[0])
        bars, seeds = with_gid(figure, f"{arm['name']} deviation"), with_gid(figure, f"{arm['name']} seeds")
        if summary["n"] == 1:
            assert not bars and not seeds
            continue
        ends = [100 * (summary["mean"] - summary["std"]), 100 * (summary["mean"] + summary["std"])]
        assert list(bars[0].get_ydata()) == pytest.approx(ends)
        accuracies = [100 * run["metrics"]["accuracy"] for run in arm["runs"]]
        assert seeds[0].get_offsets()[:, 1].tolist() == pytest.approx(accuracies)
        assert all(axes.viewLim.contains(x, percent) for percent in (*ends, *accuracies))


@each_case
@each_scatter
def test_labels_stand_apart_and_inside(function: str, case: str) -> None:
    figure = drawn(function, case)
    labels = with_gid(figure, "label")
    boxes = drawn_boxes(labels)
    assert_apart(boxes)
    frame = figure.axes[0].get_window_extent()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.width + 1 for box in boxes)
    assert all(frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1 for box in boxes)
    assert_legend_fits(figure)
    assert frame.height > 0.4 * figure.bbox.height
    texts = {label.get_text().replace("\n", " ") for label in labels}
    given = [arm["label"] for arm in CASES[case]["arms"]]
    if "1" in texts:
        assert texts == {str(number) for number in range(1, 1 + len(given))}
        assert [text for text in legend_texts(figure) if text[0].isdigit()] == [
            f"{number}  {label}" for number, label in enumerate(given, 1)
        ]
    elif "the bank, other settings" in legend_texts(figure):
        assert case == "ablation"
        assert texts == {arm["label"] for arm in CASES[case]["arms"] if arm["kind"] != "variant"}
    else:
        assert texts == set(given)


@pytest.mark.parametrize("case", ["usual", "twelve arms", "two arms"])
def test_few_arms_are_named_at_their_points(case: str) -> None:
    for function in ("arms_parameters", "arms_flops"):
        assert len(with_gid(drawn(function, case), "label")) == len(CASES[case]["arms"])


def test_a_label_that_is_a_number_is_no_number_of_the_legend() -> None:
    figure = figures.arms_parameters(
        comparison_of(make_comparison(make_arm("a", "4", "packed", 10**6, FLOPS, around(0.7))))
    )
    assert [label.get_text() for label in with_gid(figure, "label")] == ["4"]
    assert legend_texts(figure) == ["mean of 3 seeds, bar: standard deviation", "a seed"]


def test_fronts_are_of_the_means_of_subsets_over_the_seeds() -> None:
    figure = drawn("arms_flops", "usual")
    for arm in CASES["usual"]["arms"]:
        fronts = with_gid(figure, f"{arm['name']} front")
        assert len(fronts) == (arm["name"] in ("shared", "independent"))
        if not fronts:
            continue
        by_run = [
            {tuple(subset["members"]): 100 * subset["metrics"]["accuracy"] for subset in run["subsets"]}
            for run in arm["runs"]
        ]
        flops = {tuple(subset["members"]): subset["flops"] for subset in arm["runs"][0]["subsets"]}
        means = [(flops[chosen], sum(run[chosen] for run in by_run) / 3) for chosen in flops]
        expected = pareto_front(means)
        xs, ys = fronts[0].get_data()
        assert list(xs) == pytest.approx([x for x, _ in expected])
        assert list(ys) == pytest.approx([y for _, y in expected])
        assert len(xs) > 2
    assert "best subsets of members" in legend_texts(figure)
    assert not with_gid(drawn("arms_parameters", "usual"), "shared front")


def test_a_subset_that_a_seed_lacks_is_left_out() -> None:
    arm = deepcopy(SHARED)
    del arm["runs"][1]["subsets"][0]
    (found,) = read_measured(comparison_of(make_comparison(arm)))
    assert len(found.subsets) == 2 ** len(MEMBERS) - 2


def test_budgets_are_joined_with_the_shared_bank_by_size() -> None:
    figure = drawn("arms_parameters", "twelve arms")
    (line,) = with_gid(figure, "budget series")
    joined = sorted((arm["num_parameters"], 100 * arm["summary"]["accuracy"]["mean"]) for arm in [SHARED, *BUDGETS])
    assert np.stack(line.get_data(), axis=1) == pytest.approx(np.array(joined))
    assert "the bank at other budgets" in legend_texts(figure)
    assert not with_gid(drawn("arms_parameters", "usual"), "budget series")
    assert not with_gid(drawn("arms_flops", "twelve arms"), "budget series")


def test_every_figure_names_its_data_and_a_kind_has_one_colour_in_all() -> None:
    colors: dict[str, set[Any]] = {}
    for function in ("arms_parameters", "arms_flops", "ablation_bars"):
        (title,) = with_gid(drawn(function, "ablation"), "title")
        assert "cifar10, 10,000 test images" in title.get_text().replace("\n", " ")
        for case in ("usual", "twelve arms", "ablation"):
            for arm in CASES[case]["arms"]:
                (mean,) = with_gid(drawn(function, case), f"{arm['name']} mean")
                colors.setdefault(arm["kind"], set()).add(tuple(mean.get_facecolor()[0]))
    assert len(colors) == 8
    assert all(len(found) == 1 for found in colors.values())
    assert len(set().union(*colors.values())) == len(colors)


@each_case
def test_the_ablation_has_a_row_an_arm_under_its_heading(case: str) -> None:
    arms, figure = CASES[case]["arms"], drawn("ablation_bars", case)
    axes = figure.axes[0]
    rows = {arm["name"]: float(with_gid(figure, f"{arm['name']} mean")[0].get_offsets()[0][1]) for arm in arms}
    assert len(set(rows.values())) == len(arms)
    ticks = dict(zip(axes.get_yticks().tolist(), axes.get_yticklabels()))
    for arm in arms:
        x = float(with_gid(figure, f"{arm['name']} mean")[0].get_offsets()[0][0])
        assert x == pytest.approx(100 * arm["summary"]["accuracy"]["mean"])
        assert ticks[rows[arm["name"]]].get_text().replace("\n", " ") == arm["label"]
        (value,) = with_gid(figure, f"{arm['name']} value")
        assert value.get_text().startswith(f"{x:.2f}")
        assert ("±" in value.get_text()) == (len(arm["runs"]) > 1)
        assert Text.get_window_extent(value).x1 <= figure.bbox.width + 1
    headings = {label.get_text(): row for row, label in ticks.items() if label.get_gid() == "heading"}
    assert list(headings) == list(dict.fromkeys(arm["group"] for arm in arms if arm.get("group")))
    for arm in arms:  # rows grow downwards: an arm stands under its own heading and above the next
        above = [heading for heading, row in headings.items() if row < rows[arm["name"]]]
        assert (above[-1] if above else None) == arm.get("group")
    labels = list(ticks.values())
    assert_apart(drawn_boxes(labels))
    boxes = drawn_boxes(labels)
    assert max(box.x0 for box in boxes) - min(box.x0 for box in boxes) < 3
    assert all(box.x0 >= -1 and box.x1 <= axes.get_window_extent().x0 + 1 for box in boxes)


def test_the_ablation_is_read_against_the_independent_members() -> None:
    figure = drawn("ablation_bars", "ablation")
    summary = INDEPENDENT["summary"]["accuracy"]
    (line,) = with_gid(figure, "reference")
    assert list(line.get_xdata()) == pytest.approx([100 * summary["mean"]] * 2)
    (band,) = with_gid(figure, "reference band")
    box = band.get_path().transformed(band.get_patch_transform()).get_extents()
    assert [box.x0, box.x1] == pytest.approx([100 * (summary["mean"] - summary["std"]),
                                              100 * (summary["mean"] + summary["std"])])  # fmt: skip
    assert "members apart: mean and deviation" in legend_texts(figure)
    alone = drawn("ablation_bars", "one arm, one seed")
    assert not with_gid(alone, "reference") and not with_gid(alone, "reference band")
    assert legend_texts(alone) == ["one seed, spread unknown"]
    (mean,) = with_gid(alone, "shared mean")
    assert mean.get_facecolor()[0].tolist() == [1, 1, 1, 1] and mean.get_edgecolor()[0].tolist() != [1, 1, 1, 1]


def test_the_best_of_a_group_comes_first() -> None:
    figure = drawn("ablation_bars", "ablation")
    for group in ("clusters", "coefficients", "budget"):
        arms = [arm for arm in CASES["ablation"]["arms"] if arm.get("group") == group]
        places = [with_gid(figure, f"{arm['name']} mean")[0].get_offsets()[0].tolist() for arm in arms]
        by_row = [accuracy for accuracy, _ in sorted(places, key=lambda place: place[1])]
        assert by_row == sorted(by_row, reverse=True)


def test_an_axis_breaks_where_one_arm_is_far_below() -> None:
    far = make_arm("mimo", "MIMO", "mimo", 10**6, FLOPS, [0.4])
    figure = figures.arms_parameters(comparison_of(make_comparison(SHARED, INDEPENDENT, far)))
    axes = figure.axes[0]
    (line,) = with_gid(figure, "break")
    knee = line.get_ydata()[0]
    assert 40 < knee < 100 * min(run["metrics"]["accuracy"] for run in INDEPENDENT["runs"])
    assert any(f"below {knee:.1f} %: scale" in text.get_text() for text in axes.texts)
    heights = axes.transData.transform([(1e6, percent) for percent in (40, knee - 1, knee, knee + 1)])[:, 1]
    assert heights[3] - heights[2] > 3 * (heights[2] - heights[1]) > 0 and heights[0] < heights[1]
    assert not with_gid(drawn("arms_parameters", "two arms"), "break")


@each_case
def test_a_comparison_is_two_pngs_or_three(tmp_path: Path, case: str) -> None:
    paths = figures.draw_arms(comparison_of(CASES[case]), tmp_path / "new")
    grouped = any(arm.get("group") for arm in CASES[case]["arms"])
    assert_pngs(paths, "arms_parameters", "arms_flops", *["ablation_bars"] * grouped)


@pytest.mark.parametrize("function", ["arms_parameters", "arms_flops", "ablation_bars"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, 'must hold "format": 1; got 2'),
        ({"arms": []}, "comparison 'cifar10-small' holds no arm"),
        ({"arms": [{**SHARED, "runs": []}]}, "arm 'shared' of comparison 'cifar10-small' holds no run"),
    ],
)
def test_unreadable_comparisons_are_refused(function: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        getattr(figures, function)(comparison_of({**CASES["usual"], **change}))


def with_cascade(arm: dict[str, Any], curves: Sequence[Sequence[tuple[float, float]]], area: float) -> dict[str, Any]:
    """The arm with a curve of (FLOPs, accuracy) a seed."""
    runs = [
        {**run, "cascade": [{"flops": flops, "accuracy": accuracy, "nll": 1.0} for flops, accuracy in curve]}
        for run, curve in zip(arm["runs"], curves, strict=True)
    ]
    return {**arm, "runs": runs, "summary": {**arm["summary"], "area": {"mean": area, "std": 0.0, "n": len(runs)}}}


def test_cascades_are_drawn_as_means_with_bands_at_the_same_costs() -> None:
    shared = make_arm("shared", "shared bank", "shared", 10**6, FLOPS, [0.7, 0.8])
    # At 4 MFLOPs, half way from 1 to 16 on the log axis, the second seed has 0.55.
    ours = with_cascade(shared, [[(1e6, 0.3), (4e6, 0.45), (16e6, 0.7)], [(1e6, 0.4), (16e6, 0.7)]], 0.5)
    half = with_cascade(
        make_arm("half", "half", "variant", 5 * 10**5, FLOPS, [0.6, 0.6]), [[(2e6, 0.5), (16e6, 0.6)]] * 2, 0.4
    )
    single = make_arm("single", "largest member", "single", 7 * 10**5, 6 * 10**6, [0.6, 0.62])
    figure = laid_out(figures.arms_anytime(comparison_of(make_comparison(ours, half, single))))
    (line,) = with_gid(figure, "shared cascade")
    assert list(line.get_xdata()) == [1e6, 4e6, 16e6]
    assert list(line.get_ydata()) == pytest.approx([35, 50, 70])
    (band,) = with_gid(figure, "shared band")
    heights = band.get_paths()[0].vertices[:, 1]
    assert (min(heights), max(heights)) == (pytest.approx(35 - np.std([30, 40], ddof=1)), pytest.approx(70))
    (mark,) = with_gid(figure, "single mean")
    assert mark.get_offsets()[0].tolist() == pytest.approx([6e6, 61])
    (other,) = with_gid(figure, "half cascade")
    assert other.get_color() != line.get_color() and other.get_marker() != line.get_marker()
    texts = {text.get_text() for text in with_gid(figure, "label")}
    assert texts == {"shared bank, 1 M: 70.0 ± 0.0", "half, 500 k: 60.0 ± 0.0", "largest member, 700 k: 61.0 ± 1.4"}
    assert not with_gid(figure, "single cascade")
    (title,) = with_gid(figure, "title")
    assert title.get_text().startswith("Test accuracy when answers may stop early")


def test_the_title_of_cascades_says_what_the_bank_changes() -> None:
    curves = [[(1e6, 0.3), (16e6, 0.7)]] * 3
    gain = {"mean": -0.021, "std": 0.004, "n": 3}
    apart = {**with_cascade(INDEPENDENT, curves, 0.5), "difference": {"area": gain}}
    figure = figures.arms_anytime(comparison_of(make_comparison(with_cascade(SHARED, curves, 0.5), apart)))
    (title,) = with_gid(figure, "title")
    said = title.get_text().replace("\n", " ")
    assert "17 % fewer parameters than members apart, accuracy 2.1 ± 0.4 points lower" in said


def test_arms_without_exits_have_no_such_figure() -> None:
    with pytest.raises(swe.SuperWeightError, match="no arm of comparison 'cifar10-small' has exits"):
        figures.arms_anytime(comparison_of(CASES["usual"]))
