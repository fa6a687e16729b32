"""What tests of figures share: results of runs, finding artists, reading legends, holding texts apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import superweight_ensembles as swe
from superweight_ensembles.experiment import Comparison, RunResults, SearchRecord
from superweight_ensembles.storage import content_as

METRICS = {"accuracy": 0.9, "top5_accuracy": 1.0, "nll": 0.1, "ece": 0.01, "brier": 0.02}
EVALUATED = {"flops": 1_000_000, "latency_ms": 1.0, "metrics": METRICS}
DATASET = {
    "name": "digits", "num_train": 1293, "num_validation": 144, "num_test": 360, "classes": [], "image_shape": [],
}  # fmt: skip
ARM = {
    "num_samples": 360,
    "num_parameters": 83,
    "independent_parameters": 100,
    "budget": 83,
    "members": [{"name": "a"}],
    "ensemble": EVALUATED,
    "subsets": [{"members": ["a"], **EVALUATED}],
    "diversity": None,
    "reliability": [{"lower": 0.0, "upper": 1.0, "confidence": None, "accuracy": None, "count": 0}],
    "history": [],
    "training": {"seconds": 1.0, "precision": "float32", "channels_last": False, "device": "cpu"},
}


def run_results(content: dict[str, Any]) -> RunResults:
    """What a test says of a run's results, as their type; the rest is made up."""
    filled = {"format": 1, "name": "digits", "seed": 0, "provenance": {}, "recipe": {}, **content}
    filled["dataset"] = {**DATASET, **content.get("dataset", {})}
    filled["arms"] = [{**ARM, **arm} for arm in content["arms"]]
    for arm in filled["arms"]:
        arm["members"] = [{**EVALUATED, "batch_size": 1, "num_parameters": 10, **one} for one in arm["members"]]
        arm["history"] = [
            {"lr": 0.1, "train_loss": {}, "validation": None, "seconds": 1.0, **one} for one in arm["history"]
        ]
    return content_as(RunResults, filled, Path("results.json"), "evaluate the run again")


def search_record(content: dict[str, Any]) -> SearchRecord:
    return content_as(SearchRecord, {"plan": "", **content}, Path("search.json"), "search again")


def comparison_of(content: dict[str, Any]) -> Comparison:
    """What a test says of a comparison, as its type; the rest is made up."""
    filled = {"format": 1, "name": "digits", "provenance": {}, "recipe": {}, "overrides": [], "seeds": [0], **content}
    filled["dataset"] = {**{key: DATASET[key] for key in DATASET if key != "classes"}, **content.get("dataset", {})}
    told = {"members": {}, "mean_member_accuracy": 0.9, "diversity": None, "training_seconds": 1.0, "subsets": []}
    arms = [{**arm, "runs": [{**told, **run} for run in arm["runs"]]} for arm in content["arms"]]
    for one in (one for arm in arms for run in arm["runs"] for one in (run, *run["subsets"])):
        one["metrics"] = {**METRICS, **one["metrics"]}
        one.setdefault("latency_ms", 1.0)
    return content_as(Comparison, {**filled, "arms": arms}, Path("comparison.json"), "compare again")


def with_gid(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def drawn_boxes(texts: Iterable[Artist]) -> list[Any]:
    """Extents in pixels of a figure laid out, of the texts alone: leaders and arrows left out."""
    return [Text.get_window_extent(text) for text in texts if isinstance(text, Text)]


def make_plan(sizes: Sequence[tuple[int, int]], budget: float = 0.83, **options: Any) -> swe.SharingPlan:
    """The plan of wide residual networks of these depths and widths."""
    members = {f"wrn{depth}-{width}": swe.wide_resnet(depth, width, 10, in_channels=1) for depth, width in sizes}
    return swe.plan_sharing(members, budget=budget, **options)


def assert_pngs(paths: Sequence[Path], *names: str) -> None:
    """These files, as wide as a column or a page of 200 dots an inch, and of sensible height."""
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    for path in paths:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 5_000
        width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
        assert width in (800, 1400) and 150 <= height <= 2400, (path.name, width, height)


def laid_out(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def assert_legend_fits(figure: Figure) -> None:
    """The figure's one legend is in it, and over no axes."""
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1 and box.y0 >= -1 and box.y1 <= figure.bbox.height + 1
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def assert_inside(boxes: Iterable[Any], frame: Bbox) -> None:
    for box in boxes:
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, box
        assert frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1, box


def assert_apart(boxes: Sequence[Any]) -> None:
    for first, second in combinations(boxes, 2):
        apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
        assert apart, (first, second)
