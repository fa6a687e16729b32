"""What notebooks show of an object, and what repr says of an ensemble."""

from __future__ import annotations

import pytest
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.storage import html_table
from superweight_ensembles.training import ProgressBar


def ensemble_of(num_members: int) -> swe.SuperWeightEnsemble:
    members = {
        f"<b>{index}": nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10)) for index in range(num_members)
    }
    return swe.SuperWeightEnsemble(members, budget=0.9)


def test_an_ensemble_is_told_in_ten_lines() -> None:
    ensemble = ensemble_of(2)
    told = repr(ensemble)
    assert told == str(ensemble) and len(told.splitlines()) == 5
    assert f"budget {ensemble.plan.budget:,}: {ensemble.num_parameters:,} parameters" in told
    assert f"bank of {len(ensemble.plan.clusters)} clusters" in told and "<b>0: Sequential, 610 parameters" in told
    many = repr(ensemble_of(9)).splitlines()
    assert len(many) == 10 and many[-1] == "  and 3 more"


def test_plans_and_results_are_tables_of_escaped_text() -> None:
    data = swe.load_data("digits")
    ensemble = ensemble_of(2)
    shown = ensemble.plan._repr_html_()
    assert shown.count("<tr>") == 1 + len(ensemble.plan.clusters) and "&lt;b&gt;0 x" in shown and "<b>" not in shown
    assert ensemble.plan.fingerprint in shown and "every trainable scalar" in shown
    trained = swe.train(ensemble, data, swe.TrainConfig(epochs=12, batch_size=512, device="cpu"))._repr_html_()
    assert trained.count("<tr>") == 11 and "12 epochs in" in trained and "the last 10 shown" in trained
    found = swe.evaluate(ensemble, data.loader("test", 512))
    shown = found._repr_html_()
    assert shown.count("<tr>") == 4 and f"<td>{100 * found.ensemble.metrics.accuracy:.2f}</td>" in shown
    assert "<b>" not in shown and "898 images" in shown
    assert html_table([("a",)], "<i>", ["\x1b"]) == (
        "<table><caption>&lt;i&gt;</caption><tr><th>a</th></tr></table><pre>\\x1b</pre>"
    )


def test_bars_are_seen_in_notebooks_and_not_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ProgressBar.is_seen()  # pytest's error stream is a file
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert ProgressBar.is_seen()
