"""Curves of stream and cascade: pure arithmetic, the recipe section, the run's results, the table and the figure."""

import json
import math
from collections import Counter
from pathlib import Path

import figure_checks
import pytest
import torch
from refusals import assert_refused
from rich.console import Console
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import superweight_ensembles as swe
from superweight_ensembles.anytime import (
    AnytimeResult,
    calibration,
    fit_temperature,
    log_area,
    measure_curves,
    predict,
    probability_metrics,
    tempered,
)
from superweight_ensembles.experiment import (
    anytime_table,
    build_arms,
    compare_arms,
    comparison_tables,
    evaluate_run,
    load_recipe,
    parse_recipe,
    read_comparison,
    read_results,
    train_run,
)
from superweight_ensembles.models import WideResNet
from superweight_ensembles.report.figures import anytime_curves, draw_arms
from superweight_ensembles.storage import as_content, content_as

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"
DIGITS = Path(__file__).parents[2] / "recipes" / "digits.yaml"
DATA = swe.load_data("digits", validation_fraction=0.3, num_train=320)
HELD, TEST = DATA.loader("validation", 128), DATA.loader("test", 128)
SMALL = (
    'members=[{"name": "b", "model": "wide_resnet", "depth": 10, "width": 1}, '
    '{"name": "a", "model": "wide_resnet", "depth": 16, "width": 1}]',
    "training.epochs=2",
    "data.validation_fraction=0.2",
    "anytime.num_points=3",
    "anytime.timed_images=64",
    "data.num_train=300",
)


def test_area_of_steps_and_of_a_line_by_hand() -> None:
    points = [(2.0, 0.6), (8.0, 0.9)]
    # From 1 to 16 there are four octaves: one before the first point, two on the first, one on the second.
    assert log_area(points, 1, 16, before=0.1, steps=True) == pytest.approx((0.1 + 2 * 0.6 + 0.9) / 4)
    assert log_area(points, 1, 16, before=0.1, steps=False) == pytest.approx((0.1 + 2 * 0.75 + 0.9) / 4)
    # A range inside the points: half way between them on the log axis the line has half of the gain.
    assert log_area(points, 2, 4, before=0.1, steps=False) == pytest.approx((0.6 + 0.75) / 2)
    assert log_area(points, 4, 32, before=0.1, steps=True) == pytest.approx((0.6 + 2 * 0.9) / 3)
    # Order does not matter, and a finer list of the same steps has the same area.
    finer = [(4.0, 0.6), (8.0, 0.9), (2.0, 0.6)]
    assert log_area(finer, 1, 16, before=0.1, steps=True) == log_area(points, 1, 16, before=0.1, steps=True)


@pytest.mark.parametrize(("points", "low", "high"), [([], 1, 2), ([(1, 0.5)], 2, 2), ([(1, 0.5)], 0, 2)])
def test_an_area_needs_points_and_a_range(points: list, low: float, high: float) -> None:
    assert_refused("an area needs points and a range of costs", log_area, points, low, high, before=0.0, steps=True)


@pytest.fixture(scope="module")
def measured() -> tuple[swe.AnytimePredictor, AnytimeResult, swe.SuperWeightEnsemble]:
    torch.manual_seed(0)
    members = {f"wrn{depth}-1": swe.wide_resnet(depth, 1, 10, in_channels=1) for depth in (16, 10)}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
    swe.train(ensemble, DATA, swe.TrainConfig(epochs=3, batch_size=64, schedule="one_cycle", precision="float32"))
    predictor = swe.AnytimePredictor(ensemble, input_shape=DATA.image_shape)
    return predictor, measure_curves(predictor, HELD, TEST, num_points=4, timed_images=128), ensemble


def test_curves_say_what_evaluate_and_running_say(measured) -> None:
    predictor, found, ensemble = measured
    evaluation = swe.evaluate(ensemble, TEST)
    stream, cascade = found.curves
    assert (stream.name, cascade.name) == ("stream", "cascade")
    assert found.order == ("wrn10-1", "wrn16-1")
    assert [point.accuracy for point in stream.points] == pytest.approx(
        [evaluation.by_name["wrn10-1"].metrics.accuracy, evaluation.ensemble.metrics.accuracy]
    )
    assert stream.points[-1].nll == pytest.approx(evaluation.ensemble.metrics.nll, abs=1e-5)
    assert [point.flops for point in stream.points] == [
        evaluation.by_name["wrn10-1"].flops,
        evaluation.by_name["wrn10-1"].flops + evaluation.by_name["wrn16-1"].flops,
    ]
    # The kept policy, really run on the test images, costs and answers what the curve says.
    flops = right = count = 0
    for images, labels in TEST:
        answer = predictor(images)
        flops += int(answer.flops.sum())
        right += int((answer.probabilities.argmax(1) == labels).sum())
        count += len(labels)
    assert found.calibrated.flops == pytest.approx(flops / count, rel=2e-3)
    assert found.calibrated.accuracy == pytest.approx(right / count, abs=2 / count)
    assert found.policy == predictor.policy


def test_the_cascade_goes_from_the_first_member_to_all(measured) -> None:
    _, found, _ = measured
    stream, cascade = found.curves
    costs = [point.flops for point in cascade.points]
    assert len(costs) == 4 and costs == sorted(costs)
    for end in (0, -1):
        for key in ("flops", "accuracy", "members_used"):
            assert getattr(cascade.points[end], key) == pytest.approx(getattr(stream.points[end], key))
    for curve in (stream, cascade):
        assert all(point.latency_ms > 0 for point in curve.points)
        low, high = (min(p.accuracy for p in curve.points), max(p.accuracy for p in curve.points))
        assert low - 1e-9 <= curve.area <= high + 1e-9 and low - 1e-9 <= curve.latency_area <= high + 1e-9
    content = as_content(found)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content_as(AnytimeResult, content, Path("results.json"), "measure again") == found


def test_one_member_has_curves_of_one_point() -> None:
    predictor = swe.AnytimePredictor({"only": swe.wide_resnet(10, 1, 10, in_channels=1)}, input_shape=DATA.image_shape)
    found = measure_curves(predictor, HELD, TEST, target=("flops", 1.0), num_points=3, timed_images=8, batch_size=4)
    for curve in found.curves:
        assert curve.area == curve.latency_area == curve.points[-1].accuracy


def test_a_run_with_an_anytime_section(tmp_path) -> None:
    recipe = load_recipe(DIGITS, SMALL)
    train_run(recipe, tmp_path / "run")
    evaluated = evaluate_run(tmp_path / "run")
    results, _ = read_results(tmp_path / "run")
    assert results == evaluated
    assert as_content(results) == json.loads((tmp_path / "run" / "results.json").read_text())
    assert [arm.name for arm in results.arms if arm.anytime is not None] == ["shared", "independent"]
    predictor = swe.AnytimePredictor.load(tmp_path / "run" / "shared" / "ensemble")
    assert predictor.policy == results.arms[0].anytime.policy
    assert predictor.input_shape == (1, 8, 8)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(anytime_table(results))
    shown = console.export_text()
    assert "cascade" in shown and "…" not in shown
    for arm in results.arms:
        assert f"{100 * arm.anytime.calibrated.accuracy:.2f}" in shown
    figure = anytime_curves(results)
    assert figure_checks.legend_texts(figure) == ["shared bank", "independent", "cascade", "stream", "a member alone"]
    for axes in figure.axes:
        figure_checks.assert_apart(figure_checks.drawn_boxes([axes.xaxis.label, *axes.texts]))
    for axes, cost in zip(figure.axes, ("flops", "latency_ms")):
        for arm in results.arms:
            lines = {line.get_gid(): line for line in axes.get_lines()}
            curve = arm.anytime.curve("cascade")
            costs, percents = lines[f"{arm.name} cascade"].get_data()
            wanted = sorted((getattr(point, cost), 100 * point.accuracy) for point in curve.points)
            assert costs.tolist() == pytest.approx([x for x, _ in wanted])
            assert percents.tolist() == pytest.approx([y for _, y in wanted])


def without_times(found: dict) -> dict:
    """Results without what the clock says."""
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if "latency" not in key}
    return [without_times(value) for value in found] if isinstance(found, (list, tuple)) else found


@pytest.mark.parametrize("order", ["greedy", ("wrn16-1", "wrn10-1"), ("wrn10-1",)])
def test_curves_of_tables_equal_those_of_loaders(measured, order: str | tuple[str, ...]) -> None:
    _, _, ensemble = measured
    options = {"target": ("flops", 0.7 if len(order) > 1 else 1.0), "num_points": 3, "timed_images": 8}
    found = []
    for source, tested in ((HELD, None), (predict(ensemble, HELD), predict(ensemble, TEST))):
        greedy = {"loader": source} if order == "greedy" else {}
        predictor = swe.AnytimePredictor(ensemble, order, input_shape=DATA.image_shape, **greedy)
        found.append(as_content(measure_curves(predictor, source, TEST, tested=tested, **options)))
    assert without_times(found[0]) == without_times(found[1])
    by_itself = predictor.calibrate(HELD, flops=options["target"][1], batch_size=64)
    assert predictor.policy.to_dict() == found[1]["policy"]
    assert without_times(as_content(by_itself)) == without_times(found[1]["calibration"])
    evaluation = swe.evaluate(ensemble, TEST)
    for member in found[1]["members"]:
        assert member["accuracy"] == evaluation.by_name[member["name"]].metrics.accuracy
        assert member["nll"] == evaluation.by_name[member["name"]].metrics.nll


def test_evaluation_of_a_run_has_each_member_see_each_split_once(tmp_path) -> None:
    recipe = load_recipe(DIGITS, (*SMALL, "training.epochs=1", "baseline=none", "anytime.order=greedy",
                                  "evaluation.batch_size=97", "anytime.batch_size=16"))  # fmt: skip
    train_run(recipe, tmp_path / "run")
    data = recipe.load_data()
    table_sizes = {97, len(data.validation) % 97, len(data.test) % 97}
    assert min(table_sizes) > 16  # at most 16 images go through a member for its cost or the clock
    seen: Counter[int] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, WideResNet) and len(inputs[0]) in table_sizes:
            seen[sum(len(stage) for stage in module.stages)] += len(inputs[0])

    hook = register_module_forward_pre_hook(count)
    try:
        evaluate_run(tmp_path / "run")
    finally:
        hook.remove()
    assert seen == dict.fromkeys((3, 6), len(data.validation) + len(data.test))  # by blocks: depth 10 and 16


def test_predictions_of_other_members_are_refused(measured) -> None:
    predictor, _, _ = measured
    other = swe.AnytimePredictor({"wrn10-1": swe.wide_resnet(10, 1, 10, in_channels=1)}, input_shape=DATA.image_shape)
    table = other.predict(HELD)
    assert_refused("unknown member 'wrn16-1'", predictor.calibrate, table, flops=0.7)


def test_figure_without_curves_says_so(tmp_path) -> None:
    committed, _ = read_results(COMMITTED / "digits-search")
    assert_refused("no anytime curves: give its recipe an anytime section", anytime_curves, committed)
    assert anytime_table(committed) is None


def test_too_few_validation_images_stop_before_training(tmp_path) -> None:
    recipe = load_recipe(DIGITS, (*SMALL[:2], "data.validation_fraction=0.1", "anytime.num_points=3"))
    assert_refused("at least 100 validation images; digits has 90", train_run, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"flops": 0.5, "max_accuracy_drop": 0.01}, "anytime: give one of flops, max_accuracy_drop"),
        ({"flop": 0.5}, "anytime: unknown key 'flop': did you mean 'flops'"),
        ({"flops": 0}, "anytime.flops must be greater than 0"),
        ({"confidence": "gut feeling"}, "anytime: unknown confidence"),
        ({"num_points": 1}, "anytime.num_points"),
        ({"batch_size": 0}, "anytime.batch_size"),
    ],
)
def test_mistakes_in_the_section(section: dict, message: str) -> None:
    content = load_recipe(DIGITS).model_dump(mode="json", exclude_none=True)
    assert_refused(message, parse_recipe, {**content, "anytime": section})
    alone = {**content, "members": content["members"][:1]}
    assert_refused("one member alone leaves nothing to stop before", parse_recipe, alone)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_points": 0}, "num_points must be a whole number, at least 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, at least 1; got 2.5"),
        ({"timed_images": True}, "timed_images must be a whole number, at least 1; got True"),
        ({"target": ("flop", 0.5)}, "unknown target 'flop': did you mean 'flops'"),
        ({"test": iter([])}, "test is read twice, and an iterator can be read once: give a list or a DataLoader"),
        ({"test": []}, "the loader has no samples"),
        ({"test": [(torch.zeros(3, 4), torch.full((3,), 9))]}, "labels must be 0 to 2.*has 9 to 9"),
        ({"test": [(torch.full((3, 4), math.nan), torch.zeros(3).long())]}, "images hold NaN"),
    ],
)
def test_curves_that_cannot_be_measured(options, match) -> None:
    predictor = swe.AnytimePredictor({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}, input_shape=(4,))
    loader = [(torch.randn(120, 4), torch.zeros(120).long())]
    assert_refused(match, measure_curves, predictor, loader, **{"test": loader, "target": ("flops", 0.75), **options})


def test_weights_and_temperatures_are_fitted_once_for_all_points(measured, monkeypatch) -> None:
    predictor, found, _ = measured
    held, tested = predictor.predict(HELD), predictor.predict(TEST)
    fits = []

    def counting(*args: object) -> float:
        fits.append(args)
        return fit_temperature(*args)

    monkeypatch.setattr(calibration, "fit_temperature", counting)
    again = measure_curves(predictor, held, TEST, tested=tested, num_points=4, timed_images=128)
    assert len(fits) == 2 * len(predictor.order)  # for the policy that is kept, and for the points
    same = ("flops", "accuracy", "nll", "members_used")
    for point, other in zip(again.curve("cascade").points, found.curve("cascade").points, strict=True):
        assert [getattr(point, name) for name in same] == [getattr(other, name) for name in same]
    assert again.tempered == probability_metrics(
        tempered(tested.of(predictor.order).mean(0), again.policy.temperatures[-1]), tested.labels
    )


def test_arms_of_a_comparison_have_exits_where_they_have_several_members() -> None:
    recipe = load_recipe(DIGITS)
    arms = build_arms(recipe, ["independent", "single", "narrower"], [])
    assert [len(arm.recipe.members) for arm in arms] == [4, 4, 1, 1]
    assert [arm.recipe.anytime for arm in arms] == [recipe.anytime, recipe.anytime, None, None]


def test_a_comparison_says_how_accurate_early_answers_are(tmp_path: Path) -> None:
    recipe = load_recipe(DIGITS, (*SMALL, "training.epochs=1"))
    found = compare_arms(recipe, tmp_path / "out", against=["independent", "single:1"], num_seeds=2)
    assert found == read_comparison(tmp_path / "out")
    shared, independent, single = found.arms
    assert (shared.has_exits, independent.has_exits, single.has_exits) == (True, True, False)
    assert not {"area", "tempered_nll", "tempered_ece"} & set(single.summary)
    for arm in (shared, independent):
        areas = []
        for seed, run in enumerate(arm.runs):
            anytime = read_results(tmp_path / "out" / arm.name / f"seed-{seed}")[0].arms[0].anytime
            points = [(point.flops, point.accuracy, point.nll) for point in anytime.curve("cascade").points]
            assert [(point.flops, point.accuracy, point.nll) for point in run.cascade] == points
            assert run.tempered == anytime.tempered and run.tempered.accuracy == run.metrics.accuracy
            areas.append(anytime.curve("cascade").area)
        assert arm.summary["area"].mean == pytest.approx(sum(areas) / 2)
    ends = [shared.runs[0].cascade[place].flops for place in (0, -1)]
    gains = [ours.area(*ends, 0.1) - theirs.area(*ends, 0.1) for ours, theirs in zip(shared.runs, independent.runs)]
    assert independent.difference["area"].mean == pytest.approx(sum(gains) / 2)
    quality, early, cost = comparison_tables(found)
    assert (quality.row_count, early.row_count, cost.row_count) == (3, 2, 3)
    console = Console(width=80, record=True)
    console.print(early)
    assert f"{100 * shared.summary['area'].mean:.2f} +- " in console.export_text()
    assert [path.name for path in draw_arms(found, tmp_path / "figures")][-1] == "arms_anytime.png"
