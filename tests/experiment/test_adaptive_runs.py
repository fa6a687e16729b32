"""Recipes whose members learn their widths."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from figure_checks import with_gid
from run_cases import refused, stop_run, tensors_of

import superweight_ensembles as swe
from superweight_ensembles.experiment import evaluate_run, load_recipe, parse_recipe, train_run
from superweight_ensembles.models.adaptive import adaptive_widths, adopt_widths, drop_importance
from superweight_ensembles.report import write_report
from superweight_ensembles.report.figures import anytime_curves, draw_run
from superweight_ensembles.storage import as_content

PAIRS = [["stages.*.conv1", "stages.*.conv2"]]
CONTENT = {
    "name": "adaptive",
    "data": {"name": "synthetic"},
    "members": [
        {"name": "a", "model": "wide_resnet", "depth": 16, "width": 0.5, "adaptive": {"pairs": PAIRS}},
        {"name": "b", "model": "wide_resnet", "depth": 10, "width": 1},
    ],
    "learn_widths": {"epochs": 2},
    "width_loss": {"prior_rate": 1.0, "prior_deviation": 0.05},
    "sharing": {"budget": 0.8},
    "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "precision": "float32", "num_threads": 1},
}


PLAIN = [{"name": name, "model": "wide_resnet", "depth": 10, "width": 1} for name in "ab"]


def recipe_of(**changes):
    content = {**copy.deepcopy(CONTENT), **changes}
    return parse_recipe({key: value for key, value in content.items() if value is not None})


def test_widths_are_learned_then_shared_inside_the_budget(tmp_path):
    recipe = recipe_of()
    train_run(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "widths" / "widths.json").read_text())["members"]
    assert found["b"] == {}
    start = {path: width.width for path, width in adaptive_widths(recipe.build_members()["a"]).items()}
    assert set(found["a"]) == set(start)
    assert all(one["width"] < start[path] for path, one in found["a"].items())
    log = [json.loads(line) for line in (tmp_path / "run" / "widths" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert log[-1]["widths"]["a"] == {path: one["width"] for path, one in found["a"].items()}
    for arm in ("shared", "independent"):
        ensemble = swe.SuperWeightEnsemble.load(tmp_path / "run" / arm / "ensemble")
        widths = adaptive_widths(ensemble.members["a"])
        assert {path: width.width for path, width in widths.items()} == log[-1]["widths"]["a"]
        for path, width in widths.items():
            assert width.frozen and not width.rho.requires_grad
            assert float(width.rate) == pytest.approx(found["a"][path]["rate"], rel=1e-5)
    shared = swe.SuperWeightEnsemble.load(tmp_path / "run" / "shared" / "ensemble")
    assert shared.plan.clusters
    assert shared.num_parameters <= 0.8 * shared.independent_parameters
    assert not (tmp_path / "run" / "widths" / "checkpoints").exists()
    results = evaluate_run(tmp_path / "run")
    assert {arm.name for arm in results.arms} == {"shared", "independent"}
    assert [as_content(one) for one in results.widths] == [
        {"epoch": record["epoch"], "widths": record["widths"]} for record in log
    ]
    assert "width_history" in {path.stem for path in draw_run(results, shared.plan, tmp_path / "figures")}
    assert "Widths while they were learned" in write_report(tmp_path / "run").read_text()


def test_without_importance_members_are_plain_networks_of_the_learned_widths(tmp_path):
    recipe = recipe_of(
        learn_widths={"epochs": 2, "keep_importance": False}, training={**CONTENT["training"], "width_rate": 0.5},
        anytime=None,
    )  # fmt: skip
    train_run(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "widths" / "widths.json").read_text())["members"]["a"]
    for arm in ("shared", "independent"):
        member = swe.SuperWeightEnsemble.load(tmp_path / "run" / arm / "ensemble").materialize("a")
        assert adaptive_widths(member) == {}
        assert {path: member.get_submodule(path).out_channels for path in found} == {
            path: one["width"] for path, one in found.items()
        }
    assert evaluate_run(tmp_path / "run").widths[-1].widths["a"] == {k: one["width"] for k, one in found.items()}


@pytest.mark.parametrize("width", [3, 16, 40])
def test_adopted_widths_start_as_if_the_network_had_been_made_with_them(width):
    torch.manual_seed(0)
    network = swe.adaptive.make_adaptive(swe.wide_resnet(10, 1, 4), [("stages.0.0.conv1", "stages.0.0.conv2")])
    before = network.get_submodule("stages.0.0.conv2").weight.std().item()
    adopt_widths(network, {"stages.0.0.conv1": (width, 0.1)}, torch.Generator().manual_seed(1))
    weight = network.get_submodule("stages.0.0.conv2").weight
    assert weight.shape[1] == width
    assert weight.std().item() == pytest.approx(before * math.sqrt(16 / width), rel=0.1)
    for part in weight.split(8, 1):
        assert part.std().item() == pytest.approx(before * math.sqrt(16 / width), rel=0.15)
    drop_importance(network)
    plain = swe.SuperWeightEnsemble({"a": network}, plan=swe.independent_plan({"a": network})).materialize("a")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(plain.eval()(images), network.eval()(images))
    assert adaptive_widths(plain) == {}


def test_a_run_stopped_in_any_stage_ends_the_same(tmp_path):
    recipe = recipe_of(baseline="none")
    train_run(recipe, tmp_path / "whole")

    folder = tmp_path / "parts"
    checked = recipe_of(baseline="none", training={**CONTENT["training"], "checkpoint_steps": 2})
    for stage in ("widths", "shared"):
        stop_run(checked, folder, stage, 1, 3, resume=True)
    train_run(checked, folder, resume=True)
    for file in ("widths/widths.json", "plan.json"):
        assert (folder / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert tensors_of(folder / "shared" / "ensemble") == tensors_of(tmp_path / "whole" / "shared" / "ensemble")
    damaged = folder / "widths" / "widths.json"
    damaged.write_text('{"format": 1, "members": {"a": {"stages": 5}}}')
    (folder / "shared" / "training.json").unlink()
    with refused(r"widths\.json is damaged"):
        train_run(checked, folder, resume=True)


def test_widths_learned_in_the_training_itself(tmp_path):
    recipe = recipe_of(learn_widths=None, sharing={"budget": 1.0, "clusters": "none"}, baseline="none")
    train_run(recipe, tmp_path / "run")
    trained = json.loads((tmp_path / "run" / "shared" / "training.json").read_text())
    ensemble = swe.SuperWeightEnsemble.load(tmp_path / "run" / "shared" / "ensemble")
    now = {path: width.width for path, width in adaptive_widths(ensemble.members["a"]).items()}
    assert trained["history"][-1]["widths"]["a"] == now
    assert evaluate_run(tmp_path / "run").arms[0].num_parameters == ensemble.num_parameters


def test_yaml_round_trip():
    recipe = recipe_of()
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn_widths": None}, "widths change only while nothing is shared: learn them first"),
        ({"members": PLAIN[1:]}, "learn_widths does nothing"),
        ({"learn_widths": {"epochs": 0}}, r"learn_widths\.epochs"),
        (
            {"learn_widths": {"epochs": 1, "keep_importance": False}, "anytime": {"truncations": [0.5]}},
            "anytime.truncations need learn_widths.keep_importance: true",
        ),
        ({"learn_widths": {"epochs": 1, "epoch": 1}}, "learn_widths: unknown key 'epoch': did you mean 'epochs'"),
        ({"width_loss": {"prior_rte": 1}}, "width_loss: unknown key 'prior_rte': did you mean 'prior_rate'"),
        ({"width_loss": {"prior_rate": -1}}, "width_loss.prior_rate must be greater than 0"),
        (
            {"members": PLAIN, "learn_widths": None, "width_loss": None, "anytime": {"truncations": [0.5]}},
            r"anytime\.truncations do nothing: no member is adaptive",
        ),
    ],
)
def test_bad_recipes(changes, message):
    with refused(message):
        recipe_of(**changes)


@pytest.mark.parametrize(
    ("adaptive", "message"),
    [
        ({"pairs": [["stem", "stages.0.0.conv1"]]}, "members: 'a', adaptive: the outputs of 'stem' are used elsewhere"),
        ({"pairs": [["stages.0.0.conv1", "fc"]]}, "members: 'a', adaptive: .*share no hidden dimension"),
        (
            {"pairs": PAIRS, "quantile": 1.5},
            "members: 'a', adaptive: quantile must be a finite number, above 0 and below 1; got 1.5",
        ),
        ({"pairs": PAIRS, "bounds": [2, 4]}, "members: 'a', adaptive: width is .*outside the bounds"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(tmp_path, adaptive, message):
    content = copy.deepcopy(CONTENT)
    content["members"][0]["adaptive"] = adaptive
    with refused(message):
        train_run(parse_recipe(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_spirals():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "awnn-spirals.yaml")
    (network,) = recipe.build_members().values()
    assert {path: width.width for path, width in adaptive_widths(network).items()} == {"hidden0": 232}


def test_truncations_are_exits_of_a_run(tmp_path):
    data = {"name": "synthetic", "num_train": 600, "validation_fraction": 0.25}
    anytime = {"truncations": [0.5], "timed_images": 16, "batch_size": 8, "num_points": 3}
    recipe = recipe_of(data=data, anytime=anytime, baseline="none")
    train_run(recipe, tmp_path / "run")
    results = evaluate_run(tmp_path / "run")
    found = results.arms[0].anytime.truncated
    assert {one.name for one in found.exits} == {"a@50%", "a", "b"}
    whole = results.arms[0].by_name
    for one in found.exits:
        if one.name in whole:
            assert one.flops == whole[one.name].flops
            assert one.accuracy == pytest.approx(whole[one.name].metrics.accuracy, abs=0.02)
    assert set(found.order) <= {"a@50%", "a", "b"}
    figure = anytime_curves(results)
    (line,) = with_gid(figure.axes[0], "shared truncated")
    expected = sorted((point.flops, 100 * point.accuracy) for point in found.curve("cascade").points)
    np.testing.assert_allclose(np.array(line.get_data()).T, expected)
    (exits,) = with_gid(figure.axes[0], "shared exits")
    assert len(exits.get_xdata()) == 1
    assert "with truncations" in with_gid(figure.axes[0], "areas")[0].get_text()
    assert [one.name for one in results.arms[0].anytime.members] == ["a", "b"]  # the policy is of members
    swe.AnytimePredictor.load(tmp_path / "run" / "shared" / "ensemble")
