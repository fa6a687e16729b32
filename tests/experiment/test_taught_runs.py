"""Runs whose arms learn from a teacher: what teaches, resuming, what is refused, what an estimate counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from run_cases import refused, stages_of, stop_run, tensors_of, wide_resnets

from superweight_ensembles.experiment import Recipe, build_arms, estimate_lines, evaluate_run, parse_recipe, train_run


def recipe_of(teacher: str | None = None, **changes: Any) -> Recipe:
    distillation = {} if teacher is None else {"distillation": {"teacher": teacher, "weight": 0.7}}
    content = {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64, "num_test": 16},
        "members": wide_resnets(a=(10, 1), b=(16, 1)),
        "sharing": {"budget": 0.9},
        "training": {
            "epochs": 2, "batch_size": 16, "precision": "float32", "device": "cpu", "learning_rate": 0.02,
        },
        "baseline": "none",
    }  # fmt: skip
    return parse_recipe({**content, **distillation, **changes})


@pytest.fixture(scope="module")
def taught_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose shared arm learned from its independent one."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    recipe = recipe_of(teacher="independent", baseline="independent")
    assert stages_of(recipe, folder) == ["independent", "shared"]
    return folder


def tensors(run: Path, arm: str = "shared") -> bytes:
    return tensors_of(run / arm / "ensemble")


def test_the_independent_arm_teaches_and_learns_from_the_labels_alone(taught_apart: Path, tmp_path: Path) -> None:
    train_run(recipe_of(baseline="independent"), tmp_path / "labels")
    assert tensors(taught_apart, "independent") == tensors(tmp_path / "labels", "independent")
    assert tensors(taught_apart) != tensors(tmp_path / "labels")
    found = evaluate_run(taught_apart)
    assert [arm.name for arm in found.arms] == ["shared", "independent"]
    assert found.recipe["distillation"]["teacher"] == "independent"


@pytest.mark.parametrize("arm", ["independent", "shared"])
def test_a_run_with_the_independent_arm_as_teacher_goes_on(taught_apart: Path, tmp_path: Path, arm: str) -> None:
    recipe, folder = recipe_of(teacher="independent", baseline="independent"), tmp_path / "run"
    stop_run(recipe, folder, arm, 2, 1)
    train_run(recipe, folder, resume=True)
    for name in ("shared", "independent"):
        assert tensors(folder, name) == tensors(taught_apart, name)


@pytest.mark.parametrize("place", ["independent", "independent/ensemble"])
def test_a_saved_ensemble_teaches_as_the_arm_itself_did(taught_apart: Path, tmp_path: Path, place: str) -> None:
    recipe, folder = recipe_of(teacher=str(taught_apart / place)), tmp_path / "run"
    stop_run(recipe, folder, "shared", 2, 1)
    train_run(recipe, folder, resume=True)
    assert tensors(folder) == tensors(taught_apart)


@pytest.mark.parametrize("teacher", ["ensemble", "prefixes", "history"])
def test_a_run_whose_members_teach_each_other(teacher: str, tmp_path: Path) -> None:
    recipe = recipe_of(distillation={"teacher": teacher, "weight": 0.7, "ramp_up": 0.2, "ramp_down": 0.3})
    train_run(recipe, tmp_path / "whole")
    stop_run(recipe, tmp_path / "run", "shared", 2, 1)
    train_run(recipe, tmp_path / "run", resume=True)
    assert tensors(tmp_path / "run") == tensors(tmp_path / "whole")


def test_folders_that_are_no_teacher(taught_apart: Path, tmp_path: Path) -> None:
    (tmp_path / "begun" / "shared").mkdir(parents=True)
    (tmp_path / "begun" / "recipe.yaml").write_text("")
    for folder, match in (
        (tmp_path / "none", "teacher: .*none is no folder: give ensemble, .*, independent, or the folder"),
        (taught_apart, "is a run: give one of its arms, such as .*shared"),
        (tmp_path / "begun" / "shared", "the arm .* is not trained to its end"),
        (tmp_path / "begun" / "shared" / "..", "is a run"),
        (tmp_path, "plan.json is missing: .* is no saved ensemble"),
    ):
        with refused(match):
            train_run(recipe_of(teacher=str(folder)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": "independent"}, "'independent' is the baseline of that name: set baseline: independent"),
        ({"teacher": ""}, "distillation.teacher: String should have at least 1 character"),
        ({"teacher": "ensemble", "members": [{"name": "a", "model": "wide_resnet"}]}, "would learn from itself"),
        *(
            ({"teacher": name, "training": {"member_batches": "own"}}, "set member_batches to 'same'")
            for name in ("ensemble", "others", "prefixes")
        ),
        ({"distillation": {"teacher": "ensemble", "weight": 2.0}}, r"distillation.weight must be at most 1 .got 2\.0"),
        ({"distillation": {"teacher": "ensemble"}}, "distillation.weight"),
        ({"distillation": {"teacher": "others", "weight": 0.5, "ramp_up": 1, "ramp_down": 1}}, "1 together at most"),
        ({"distillation": {"weight": 0.5}}, "distillation.teacher"),
        ({"training": {"distillation": 0.5}}, r"training.distillation is no key any more: write distillation"),
        ({"training": {"coefficient_rate": 0.1}}, "training.coefficient_rate is no key any more"),
    ],
)
def test_recipes_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with refused(match):
        recipe_of(**changes)


def test_retired_keys_that_did_nothing_are_still_read() -> None:
    training = {"coefficient_rate": 1.0, "distillation": 0.0, "distillation_temperature": 4.0, "epochs": 2}
    assert recipe_of(training=training) == recipe_of(training={"epochs": 2})


def test_a_search_and_the_arms_of_a_comparison_learn_from_the_labels_alone() -> None:
    searching = recipe_of(teacher="ensemble", sharing={"budget": 0.95, "search": "gradient", "search_epochs": 1})
    assert searching.search_training() == dataclasses.replace(searching.training, epochs=1)
    arms = build_arms(
        recipe_of(teacher="independent", baseline="independent"), ["independent", "single"], [], []
    )  # fmt: skip
    found = {arm.name: (arm.recipe.taught_by("independent"), arm.recipe.baseline) for arm in arms}
    assert found == {"shared": (True, "independent"), "independent": (False, "none"), "single": (False, "none")}
    assert all(arm.recipe.distillation is None for arm in arms[1:])


def test_the_estimate_says_what_of_a_teacher_is_counted(taught_apart: Path) -> None:
    found = {}
    for teacher in ("ensemble", str(taught_apart / "independent")):
        recipe = recipe_of(teacher=teacher)
        members = recipe.build_members()
        estimate = recipe.estimate(members, recipe.plan(members))
        assert estimate is not None
        lines = estimate_lines(estimate, 1e9, "as given", taught=teacher != "ensemble")
        found[teacher] = (estimate.keeps_all, "without the teacher" in lines[0])
    assert list(found.values()) == [(True, False), (False, True)]
