"""benchmarks/npas.py: which cells there are, in which order, and that a run that was stopped goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import npas
import pytest

from superweight_ensembles.experiment import parse_recipe

CONTENT = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64},
    "members": [{"name": "wrn", "model": "wide_resnet", "depth": 10, "width": 1}],
    "sharing": {"budget": 0.83},
    "training": {"epochs": 1, "batch_size": 32, "precision": "float32", "learning_rate": 0.05},
}


def test_seeds_are_outermost_then_budgets_then_arms() -> None:
    cells = [str(cell) for cell in npas.all_cells(range(2), (0.5, 2.0), ("narrower", "full", "auto"))]
    one = ["full", "auto at 0.5", "narrower at 0.5", "auto at 2"]  # a narrower network has no more than all parameters
    assert cells == [f"seed 0, {name}" for name in one] + [f"seed 1, {name}" for name in one]


def test_every_arm_at_every_budget() -> None:
    cells = list(npas.all_cells(range(3), npas.BUDGETS, list(npas.ARMS)))
    assert len(cells) == len(set(cells)) == 3 * (5 * 9 + 4 + 7 + 1)


def test_a_stopped_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(parse_recipe(CONTENT).to_yaml())
    monkeypatch.setattr(npas, "_TESTED", [])

    def run(*arguments: str) -> dict:
        base = ["npas.py", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--seeds", "1"]
        monkeypatch.setattr(sys, "argv", [*base, *arguments])
        npas.main()
        return json.loads((tmp_path / "out" / "npas.json").read_text())

    run("--budgets", "0.5", "--arms", "narrower")
    content = run("--budgets", "0.001", "0.5", "--arms", "narrower", "full")
    assert "1 cells are there, 2 to go" in capsys.readouterr().out
    cells = {(cell["arm"], cell["budget"]): cell for cell in content["cells"]}
    assert [cell["status"] for cell in cells.values()] == ["done", "done", "skipped"]
    assert "the narrowest wide_resnet" in cells["narrower", 0.001]["reason"]
    own = content["independent_parameters"]
    assert cells["full", None]["num_parameters"] == own
    assert 0.9 * 0.5 * own < cells["narrower", 0.5]["num_parameters"] <= 0.5 * own
    for cell in (cells["full", None], cells["narrower", 0.5]):
        assert 0 <= cell["accuracy"] <= 1
        assert cell["test_loss"] == cell["nll"] > 0  # of one network
        assert cell["training_loss"] > 0 and cell["seconds"] > cell["training_seconds"] > 0
    with pytest.raises(SystemExit, match="is of another recipe: give another --out"):
        run("--set", "training.epochs=2", "--arms", "full")


def test_what_no_budget_allows_is_skipped_and_other_mistakes_are_not() -> None:
    recipe = parse_recipe(CONTENT)
    with pytest.raises(npas.BelowMinimum, match="the narrowest wide_resnet"):
        npas.fitted(recipe, npas.Cell(arm="narrower", budget=0.001, seed=0))
    whole = npas.fitted(recipe, npas.Cell(arm="full", budget=None, seed=0))
    assert (whole.sharing.budget, whole.sharing.clusters) == (1.0, "none")
