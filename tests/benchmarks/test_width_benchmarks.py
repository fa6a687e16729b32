"""Benchmarks of learned widths: what they compare is comparable, and a run that was stopped goes on."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import adaptive_ensemble
import learned_widths
import pytest
import torch
import truncation

import superweight_ensembles as swe
from superweight_ensembles.experiment import parse_recipe
from superweight_ensembles.models import recall_architecture
from superweight_ensembles.plan import count_parameters

RESIDUAL = [["stages.*.conv1", "stages.*.conv2"]]
CONTENT = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 512, "validation_fraction": 0.25},
    "members": [
        {"name": "a", "model": "wide_resnet", "depth": 10, "width": 1, "adaptive": {"pairs": RESIDUAL}},
        {"name": "b", "model": "wide_resnet", "depth": 10, "width": 0.5, "adaptive": {"pairs": RESIDUAL}},
    ],
    "sharing": {"budget": 0.83},
    "training": {"epochs": 2, "batch_size": 64, "precision": "float32", "learning_rate": 0.05},
}
ENSEMBLE = {
    **CONTENT,
    "learn_widths": {"epochs": 2},
    "width_loss": {"prior_rate": 1.0, "prior_deviation": 0.03},
    "anytime": {"truncations": [0.5]},
}


def test_widths_of_three_tasks_and_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learned_widths, "EPOCHS", dict.fromkeys(learned_widths.EPOCHS, 2))

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(
            sys, "argv", ["learned_widths.py", "--out", str(tmp_path), "--start-seeds", "1", *arguments]
        )
        learned_widths.main()
        return json.loads((tmp_path / "learned_widths.json").read_text())

    loggers = [logging.getLogger(name) for name in ("superweight_ensembles", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    run("--seeds", "1")
    assert [logger.level for logger in loggers] == levels, "a cell in this process leaves its messages as they were"
    capsys.readouterr()
    content = run("--seeds", "2")
    told = capsys.readouterr().out
    assert "double_moon, seed 1" in told and "double_moon, seed 0" not in told
    assert "seed 1:" in told
    places = [(cell["task"], cell["seed"]) for cell in content["cells"]]
    assert places == [(task, seed) for task in ("double_moon", "spiral", "spiral_hard") for seed in range(2)]
    for cell in content["cells"]:
        rates = [0.01, 0.001, 0.1] if cell["seed"] == 0 else [0.01]
        assert [one["rate"] for one in cell["learned"]] == rates
        assert [one["width"] for one in cell["fixed"]] == [8, 16, 24, 128, 256]
        for one in cell["learned"]:
            assert one["history"][0][0] == 1 and one["history"][-1] == [2, one["width"]]
            assert 0.3 < one["test"]["accuracy"] <= 1 and 0.7 < one["width"] / one["start"] < 1.4


def test_validation_chooses_the_fixed_width_never_the_test() -> None:
    def tried(width: int, accuracy: float, nll: float, test: float) -> dict:
        return {"width": width, "validation": {"accuracy": accuracy, "nll": nll}, "test": {"accuracy": test}}

    fixed = [tried(8, 0.9, 0.1, 1.0), tried(16, 0.95, 0.3, 0.5), tried(24, 0.95, 0.2, 0.4)]
    assert learned_widths.best_fixed({"fixed": fixed})["width"] == 24


@pytest.mark.parametrize("rule", truncation.SCORES)
def test_weights_of_zero_are_as_good_as_removed(rule: str) -> None:
    torch.manual_seed(0)
    network = swe.adaptive.make_adaptive(swe.wide_resnet(10, 1, 4), [("stages.*.conv1", "stages.*.conv2")])
    hidden = recall_architecture(network).hidden
    plain = swe.adaptive.truncate(network, fraction=1.0).eval()
    images = torch.randn(4, 3, 8, 8)
    before = plain(images)
    cut = truncation.cut(plain, hidden, 0.3, rule, torch.Generator().manual_seed(0)).eval()
    torch.testing.assert_close(plain(images), before)
    for one in hidden:
        read = cut.get_submodule(one.consumer).weight.abs().sum((0, 2, 3)) > 0
        scores = truncation.SCORES[rule](plain, one, torch.Generator().manual_seed(0))
        assert int(read.sum()) == -(-3 * one.width // 10)
        if rule != "random":  # which goes on where the last width stopped
            assert scores[read].min() >= scores[~read].max()
        producer = cut.get_submodule(one.producer)
        with torch.no_grad():
            producer.weight[~read] = 7.0
    torch.testing.assert_close(
        cut(images), truncation.cut(plain, hidden, 0.3, rule, torch.Generator().manual_seed(0))(images)
    )


def test_hand_chosen_ensembles_are_as_large_as_the_learned_one(tmp_path: Path) -> None:
    recipe = parse_recipe(ENSEMBLE)
    found = adaptive_ensemble.run_seed(recipe.to_content(), tmp_path, 0)["arms"]
    assert list(found) == ["learned", "plain", "sized", "given"]
    learned = found["learned"]
    assert found["plain"]["independent_parameters"] == learned["independent_parameters"]
    for arm in ("plain", "sized", "given"):
        assert 0.98 * learned["num_parameters"] < found[arm]["num_parameters"] <= learned["num_parameters"]
        assert set(found[arm]["areas"]) == {"members"}
    assert 0.9 < found["sized"]["independent_parameters"] / learned["independent_parameters"] <= 1
    given = sum(map(count_parameters, recipe.build_members().values()))
    assert found["given"]["independent_parameters"] == given - 6  # the rates of two networks of three blocks
    assert learned["independent_parameters"] < 0.9 * given
    assert set(learned["areas"]) == set(learned["areas_from_cheapest"]) == {"members", "truncated"}
    cheapest = min(point[0] for point in learned["curves"]["truncated"])
    assert cheapest < min(point[0] for point in found["given"]["curves"]["members"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "learned", "plain", "sized"]
    assert not list(tmp_path.rglob("*.safetensors"))
