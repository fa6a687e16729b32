"""Runs that stop early, and that are measured on corrupted images and on those of another data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_cases import refused, wide_resnets

from superweight_ensembles.experiment import evaluate_run, parse_recipe, read_results, train_run, uncertainty_rows
from superweight_ensembles.report import write_report
from superweight_ensembles.report.figures import draw_run

RECIPE: dict[str, Any] = {
    "name": "uncertain",
    "data": {"name": "synthetic", "num_train": 96, "num_test": 48},
    "members": wide_resnets(a=(10, 1), b=(10, 2)),
    "sharing": {"budget": 0.9},
    "training": {"epochs": 9, "batch_size": 24, "learning_rate": 1e-9, "device": "cpu", "num_threads": 1},
    "early_stopping": {"patience": 2, "min_delta": 0.5},
    "uncertainty": {
        "corruptions": ["gaussian_noise", "jpeg"],
        "severities": [1, 5],
        "others": {"name": "synthetic", "num_train": 16, "num_test": 40, "num_classes": 7},
    },
}


def test_a_run_stops_early_and_is_measured_on_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_run(parse_recipe(RECIPE), folder)
    for arm in ("shared", "independent"):
        content = json.loads((folder / arm / "training.json").read_text())
        assert len(content["history"]) == 3 and content["stopped"] == "accuracy is no better for 2 epochs"
    evaluate_run(folder)
    results, plan = read_results(folder)
    for arm in results.arms:
        assert arm.training.stopped and arm.uncertainty is not None and arm.shift is not None
        cells = [(one.corruption, one.severity) for one in arm.shift.corrupted]
        assert cells == [("gaussian_noise", 1), ("gaussian_noise", 5), ("jpeg", 1), ("jpeg", 5)]
        assert arm.shift.others is not None and arm.shift.others.num_samples == 40
        assert arm.shift.tempered is not None and arm.shift.tempered.metrics.accuracy == arm.ensemble.metrics.accuracy
        assert {one.score for one in arm.shift.others.detections} == {
            "entropy", "mutual_information", "disagreement", "max_probability",
        }  # fmt: skip
    first = results.arms[0]
    rows = uncertainty_rows(results)
    mean = sum(one.metrics.accuracy for one in first.shift.corrupted if one.severity == 5) / 2
    assert rows["accuracy %, corrupted, severity 5"][0] == f"{100 * mean:.2f}"
    assert rows["disagreement of members %"][0] == f"{100 * first.uncertainty.disagreement:.2f}"
    assert "uncertainty_curves.png" in {path.name for path in draw_run(results, plan, tmp_path / "figures")}
    page = write_report(folder).read_text()
    assert 'id="uncertainty"' in page and rows["entropy"][0] in page and "AUROC %, synthetic by entropy" in page


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing asked": ({"uncertainty": {}}, "give corruptions, others or both"),
    "idle severities": (
        {"uncertainty": {"severities": [2], "others": {"name": "digits"}}}, "severities does nothing without"
    ),
    "no corruption": ({"uncertainty": {"corruptions": ["fog"]}}, "unknown corruptions 'fog'"),
    "no severity": ({"uncertainty": {"corruptions": ["jpeg"], "severities": [6]}}, "severity of a corruption is"),
    "twice": ({"uncertainty": {"corruptions": ["jpeg", "jpeg"]}}, "corruptions must name each once"),
    "no data set": ({"uncertainty": {"others": {"name": "digit"}}}, "did you mean 'digits'"),
    "other images": ({"uncertainty": {"others": {"name": "digits"}}}, r"digits has images \(1, 8, 8\), synthetic"),
    "its own data": (
        {"uncertainty": {"others": {"name": "synthetic", "num_train": 96, "num_test": 48}}}, "is the run's own data"
    ),
    "no patience": ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
    "no validation": (
        {"data": {"name": "synthetic", "num_train": 96, "validation_fraction": 0.0}}, "early stopping needs validation"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_before_training(name: str, tmp_path: Path) -> None:
    changes, told = REFUSED[name]
    with refused(told):
        train_run(parse_recipe({**RECIPE, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
