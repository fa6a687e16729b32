"""Runs whose shared arm starts from trained members: their recipe, stages and files, and resuming at each of them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_cases import refused, stages_of, stop_run, tensors_of, trained, wide_resnets
from safetensors.torch import save_file

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe, build_arms, evaluate_run, load_recipe, parse_recipe, train_run
from superweight_ensembles.experiment import stages as warm_runs
from superweight_ensembles.plan import independent_plan
from superweight_ensembles.report import write_report

CONTENT: dict = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64, "num_test": 16},
    "members": wide_resnets(deep=(16, 1), wide=(10, 2)),
    "sharing": {"budget": 0.7, "init": "svd"},
    "training": {"epochs": 2, "batch_size": 32, "precision": "float32", "device": "cpu", "learning_rate": 0.05},
    "fine_tuning": {"epochs": 1, "learning_rate": 0.01},
}


def recipe_of(**changes: object) -> Recipe:
    return parse_recipe(copy.deepcopy({**CONTENT, **changes}))


def outcome(folder: Path) -> dict:
    """What the shared arm came to, bit by bit, but for the clock."""
    start = json.loads((folder / "shared" / "warm_start.json").read_text())["errors"]
    tensors = {name: tensors_of(folder / "shared" / name) for name in ("ensemble", "warm_start")}
    return {"training": trained(folder / "shared"), "start": start, **tensors}


def assert_saved(folder: Path, ensemble: swe.SuperWeightEnsemble) -> None:
    saved = swe.SuperWeightEnsemble.load(folder).state_dict()
    for key, tensor in ensemble.state_dict().items():
        assert torch.equal(saved[key], tensor), key


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped; the baseline comes first."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert stages_of(recipe_of(), folder) == ["independent", "shared"]
    return folder


def test_the_shared_arm_starts_from_the_baseline(whole: Path) -> None:
    apart = swe.SuperWeightEnsemble.load(whole / "independent" / "ensemble")
    plan = swe.SharingPlan.from_json((whole / "plan.json").read_text())
    recipe = recipe_of()
    by_hand = swe.SuperWeightEnsemble(recipe.build_members(), plan=plan, rng=recipe.bank_generator())
    result = swe.warm_start(by_hand, apart)
    assert_saved(whole / "shared" / "warm_start", by_hand)
    written = json.loads((whole / "shared" / "warm_start.json").read_text())
    assert written == {"init_from": "independent", **result.to_dict()}
    swe.train(by_hand, recipe.load_data(), recipe.shared_training())
    assert_saved(whole / "shared" / "ensemble", by_hand)
    lengths = {arm: len(trained(whole / arm)["history"]) for arm in ("shared", "independent")}
    assert lengths == {"shared": 1, "independent": 2}


def test_members_that_come_trained_are_where_both_arms_start(whole: Path, tmp_path: Path) -> None:
    given = swe.SuperWeightEnsemble.load(whole / "independent" / "ensemble")
    members = copy.deepcopy(CONTENT["members"])
    for member in members:
        file = tmp_path / f"{member['name']}.safetensors"
        save_file(given.materialize(member["name"]).state_dict(), file)
        member["weights"] = str(file)
    recipe = recipe_of(members=members, sharing={"budget": 0.7}, fine_tuning=None)
    assert recipe.starts_warm and parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    folder = tmp_path / "run"
    assert stages_of(recipe, folder) == ["shared", "independent"]
    start = json.loads((folder / "shared" / "warm_start.json").read_text())
    assert start == {**json.loads((whole / "shared" / "warm_start.json").read_text()), "init_from": "members"}
    by_hand = swe.SuperWeightEnsemble(recipe.build_members(), plan=independent_plan(recipe.build_members()))
    for name in by_hand.member_names:
        for one, other in zip(by_hand.materialize(name).parameters(), given.materialize(name).parameters()):
            assert torch.equal(one, other)
    swe.train(by_hand, recipe.load_data(), recipe.training)
    assert_saved(folder / "independent" / "ensemble", by_hand)
    evaluate_run(folder)
    write_report(folder)
    assert (
        "The bank started from the weights that its members came with, by SVD" in (folder / "report.html").read_text()
    )


@pytest.mark.parametrize("stage", ["independent", "shared"])
@pytest.mark.parametrize("place", [1, "record"])
def test_stopped_in_any_stage_it_ends_the_same(whole: Path, tmp_path: Path, stage: str, place: int | str) -> None:
    folder = tmp_path / "run"
    stop_run(recipe_of(), folder, stage, 1, place)
    assert (folder / "shared" / "warm_start.json").is_file() == (stage == "shared")
    train_run(recipe_of(), folder, resume=True)
    assert outcome(folder) == outcome(whole)
    assert stages_of(recipe_of(), folder, resume=True) == []


@pytest.mark.parametrize("kept", [[], ["warm_start"]])
def test_stopped_between_the_arms_it_ends_the_same(whole: Path, tmp_path: Path, kept: list[str]) -> None:
    """The baseline is done, and the start is not written, or but for its last file."""
    folder = copied(whole, tmp_path)
    for path in (folder / "shared").iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert stages_of(recipe_of(), folder, resume=True) == ["shared"]
    assert outcome(folder) == outcome(whole)


def test_results_say_how_it_started(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    shared, independent = evaluate_run(folder).arms
    assert (shared.name, independent.name) == ("shared", "independent") and independent.warm_start is None
    start = shared.warm_start
    loader = recipe_of().load_data().loader("test", 256)
    expected = swe.evaluate(swe.SuperWeightEnsemble.load(folder / "shared" / "warm_start"), loader)
    assert start.ensemble.accuracy == expected.ensemble.metrics.accuracy
    assert [entry.name for entry in start.members] == ["deep", "wide"]
    assert start.members[1].metrics.accuracy == expected.by_name["wide"].metrics.accuracy
    plan = swe.SharingPlan.from_json((folder / "plan.json").read_text())
    assert len(start.errors) == sum(len(cluster.targets) for cluster in plan.clusters)
    page = write_report(folder).read_text()
    assert f"off by {start.mean_error:.3f} of their norm on average" in page
    (folder / "shared" / "warm_start.json").write_text('{"init_from": "independent", "mean_error": "x", "errors": []}')
    with refused(r"damaged \(mean_error.*train the shared arm again"):
        evaluate_run(folder)


def test_from_a_saved_ensemble(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    shutil.copytree(whole / "independent" / "ensemble", given)
    sharing = {"budget": 0.7, "init": "svd", "init_from": str(given)}
    recipe = recipe_of(sharing=sharing, baseline="none")
    stop_run(recipe, tmp_path / "run", "shared", 1, 1)
    shutil.rmtree(given)  # once the run has begun it needs it no more
    assert stages_of(recipe, tmp_path / "run", resume=True) == ["shared"]
    assert outcome(tmp_path / "run") == outcome(whole)
    with refused(rf"^sharing.init: no start from {given}: .*plan.json is missing"):
        train_run(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_saved_ensemble_that_does_not_fit(whole: Path, tmp_path: Path) -> None:
    sharing = {"budget": 0.7, "init": "svd", "init_from": str(whole / "independent" / "ensemble")}
    deep, wide = CONTENT["members"]
    for changes, message in (
        ({"width": 3}, r"no start from .*ensemble: .*does not fit: member 'wide'"),
        ({"width": 3, "name": "wider"}, "the plan is for the members deep, wide; given: deep, wider"),
    ):
        recipe = recipe_of(sharing=sharing, baseline="none", members=[deep, {**wide, **changes}])
        with refused(message):
            train_run(recipe, tmp_path / "run")


def test_a_run_does_not_replace_what_it_starts_from(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    sharing = {"budget": 0.7, "init": "svd", "init_from": str(folder / "independent" / "ensemble")}
    with refused(r"is in .*run, which --overwrite replaces: give another --out"):
        train_run(recipe_of(sharing=sharing), folder, overwrite=True)
    assert outcome(folder) == outcome(whole)


def test_a_start_that_fails_leaves_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise swe.SuperWeightError("no start")

    monkeypatch.setattr(warm_runs, "warm_start", fail)
    with refused("no start"):
        train_run(recipe_of(), tmp_path / "run")
    assert (tmp_path / "run" / "independent" / "training.json").is_file()


def test_fine_tuning_is_training_but_for_what_it_says() -> None:
    recipe = recipe_of()
    tuned = recipe.shared_training()
    assert (tuned.epochs, tuned.learning_rate, tuned.batch_size, tuned.seed) == (1, 0.01, 32, 0)
    assert recipe.training.epochs == 2
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe_of(seed=3).shared_training().seed == 3
    assert recipe_of(fine_tuning=None).shared_training() == recipe.training
    steps = {"epochs": 30, "schedule": "step", "milestones": [10, 20]}
    assert recipe_of(training=steps, fine_tuning={"schedule": "cosine"}).shared_training().milestones == ()
    assert recipe_of(training={"momentum": 0.5}, fine_tuning={"optimizer": "adamw"}).shared_training().momentum == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing": {"budget": 0.7, "init": "sdv"}}, "sharing: unknown init 'sdv': did you mean 'svd'"),
        ({"baseline": "none"}, r"sharing\.init svd needs trained members: baseline: independent, or"),
        ({"sharing": {"budget": 0.7, "init_from": "x"}}, r"sharing: init_from does nothing without init: svd"),
        ({"sharing": {"budget": 0.7}}, r"fine_tuning does nothing without sharing\.init: svd or trained members"),
        ({"fine_tuning": {"epoch": 3}}, "fine_tuning: unknown key 'epoch': did you mean 'epochs'"),
        ({"fine_tuning": {"epochs": "many"}}, r"fine_tuning: epochs must be a whole number"),
        ({"fine_tuning": {"epochs": 0}}, r"fine_tuning: epochs must be at least 1 \(got 0\)"),
        ({"fine_tuning": [1]}, r"fine_tuning must be settings by name \(got \[1\]\)"),
        (
            {"sharing": {"budget": 0.7, "init": "svd", "coefficients": "tied", "untie_epoch": 1}},
            r"untie_epoch 1 must come before the last of 1 epochs",
        ),
    ],
)  # fmt: skip
def test_recipe_mistakes(changes: dict, message: str) -> None:
    with refused(message):
        recipe_of(**changes)


def test_a_resumed_run_may_differ_in_how_it_is_computed(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    tuning = {"epochs": 1, "learning_rate": 0.01, "num_threads": 2}
    assert stages_of(recipe_of(fine_tuning=tuning), folder, resume=True) == []
    with refused("was begun with another recipe"):
        train_run(recipe_of(fine_tuning={"epochs": 1, "learning_rate": 0.02}), folder, resume=True)


def test_with_a_search_and_un_tying(tmp_path: Path) -> None:
    """The found plan is what is fitted; its tied coefficients are un-tied while the bank is tuned."""
    sharing = {"budget": 0.95, "init": "svd", "search": "gradient", "search_epochs": 1, "untie_epoch": 1}
    recipe = recipe_of(sharing=sharing, fine_tuning={"epochs": 2, "learning_rate": 0.01})
    assert stages_of(recipe, tmp_path / "run") == ["search", "independent", "shared"]
    started = swe.SuperWeightEnsemble.load(tmp_path / "run" / "shared" / "warm_start")
    assert started.plan == swe.SharingPlan.from_json((tmp_path / "run" / "plan.json").read_text())


def test_arms_of_a_comparison() -> None:
    """The shared arm trains what it starts from itself; the others start at random."""
    shared, independent, single = build_arms(recipe_of(), ("independent", "single"), ())
    assert (shared.recipe.baseline, shared.recipe.sharing.init) == ("independent", "svd")
    for arm in (independent, single):
        assert (arm.recipe.baseline, arm.recipe.sharing.init, arm.recipe.fine_tuning) == ("none", "random", None)


def test_the_carried_recipe() -> None:
    recipe = load_recipe("compress")
    assert recipe.sharing.init == "svd" and recipe.shared_training().epochs == 3
