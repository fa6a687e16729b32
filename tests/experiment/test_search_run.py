"""A run with a search: its recipe, its stages, its files, and resuming at every one of them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from run_cases import Stop, refused, stages_of, stop_run, tensors_of, trained, wide_resnets

import superweight_ensembles as swe
from superweight_ensembles.ensemble import read_plan
from superweight_ensembles.experiment import Recipe, load_recipe, parse_recipe, read_search, train_run
from superweight_ensembles.experiment import run_folder as runs
from superweight_ensembles.experiment import stages as search_runs
from superweight_ensembles.search import GradientSearch, searched_members

SEARCH = {"budget": 0.95, "search": "gradient", "search_epochs": 2, "threshold": 0.2}
UNTYING = {**SEARCH, "untie_epoch": 2, "untie_threshold": 0.8, "search_batches": 2}


TRAINING = {
    "epochs": 3, "batch_size": 24, "precision": "float32", "device": "cpu", "learning_rate": 0.05, "flip": True,
}  # fmt: skip


def recipe_of(sharing: dict, **changes: object) -> Recipe:
    content = {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64, "num_test": 16},
        "members": wide_resnets(twin=(10, 1), deep=(16, 1), wide=(10, 2)),
        "sharing": sharing,
        "training": TRAINING,
        "baseline": "none",
    }
    return parse_recipe({**content, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert stages_of(recipe_of(UNTYING), folder) == ["search", "shared"]
    return folder


def outcome(folder: Path) -> dict:
    """What a run came to, bit by bit, but for the clock."""
    names = ("plan.json", "search/plan.json", "search/search.json", "shared/ensemble/plan.json")
    texts = {name: (folder / name).read_text() for name in names}
    return {"training": trained(folder / "shared"), "tensors": tensors_of(folder / "shared" / "ensemble"), **texts}


def num_vectors(plan: swe.SharingPlan) -> int:
    return sum(slot.num_vectors for cluster in plan.clusters for slot in cluster.slots)


def test_files_of_a_run(whole: Path) -> None:
    before, found, last = (
        swe.SharingPlan.from_json((whole / name).read_text())
        for name in ("search/plan.json", "plan.json", "shared/ensemble/plan.json")
    )
    # The first plan ties every cluster; the found one ties followers to whom they joined; training un-tied some.
    assert all(slot.num_vectors == 1 for cluster in before.clusters for slot in cluster.slots)
    assert len(found.clusters) > len(before.clusters)
    assert num_vectors(found) < num_vectors(last)
    assert before.budget == found.budget == last.budget >= last.num_parameters
    ensemble = swe.SuperWeightEnsemble.load(whole / "shared" / "ensemble")
    assert ensemble.plan == last and ensemble.num_parameters == last.num_parameters
    logged = [json.loads(line)["epoch"] for line in (whole / "search" / "log.jsonl").read_text().splitlines()]
    assert logged == [1, 2]
    assert sorted(path.name for path in (whole / "search").iterdir()) == [
        ".lock",
        "log.jsonl",
        "plan.json",
        "search.json",
        "tensorboard",
    ]
    assert not list((whole / "shared" / "checkpoints").glob("*-step-000003"))
    assert load_recipe(whole / "recipe.yaml") == recipe_of(UNTYING)


def test_search_is_read_again(whole: Path) -> None:
    evidence, plans = read_search(whole)
    assert list(plans) == ["before the search", "found", "un-tied"]
    assert plans["un-tied"] == read_plan(whole / "shared" / "ensemble")
    assert evidence.plan == plans["found"].fingerprint
    assert (evidence.similarity, evidence.threshold_given) == ("gradient", 0.2)
    assert evidence.representatives == ("deep", "wide") and evidence.anchor == "deep"
    labels = {target.label for cluster in plans["found"].clusters for target in cluster.targets}
    assert {label for cluster in evidence.clusters for label in cluster.targets} == labels


def test_stages_are_those_of_the_library(whole: Path) -> None:
    recipe = recipe_of(UNTYING)
    members, data = recipe.build_members(), recipe.load_data()
    first = swe.plan_sharing(members, budget=0.95, coefficients="tied", reserve_untied=True)
    ensemble = swe.SuperWeightEnsemble(members, plan=first, rng=recipe.bank_generator())
    start = copy.deepcopy(ensemble.state_dict())
    assert searched_members(ensemble) == ("deep", "wide")
    swe.train(ensemble, data, recipe.search_training(), members=("deep", "wide"))
    for name, tensor in ensemble.state_dict().items():
        assert torch.equal(tensor, start[name]) or not name.startswith("members.twin")
    method = GradientSearch(threshold=0.2, max_batches=2)
    found = swe.search_sharing(ensemble, data.loader("train", 24), method=method)
    assert found.plan.to_json() == (whole / "plan.json").read_text()
    assert found.to_dict() == json.loads((whole / "search" / "search.json").read_text())
    # The weights are thrown away: a new ensemble, from the recipe's seed.
    final = swe.SuperWeightEnsemble(members, plan=found.plan, rng=recipe.bank_generator())
    untie = swe.search.Untying(epoch=2, threshold=0.8, max_batches=2)
    swe.train(final, data, recipe.training, hooks=[untie])
    read = swe.SuperWeightEnsemble.load(whole / "shared" / "ensemble")
    assert read.plan == final.plan
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in final.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "epoch", "place", "left"),
    [
        ("search", 1, 1, ["search", "shared"]),
        ("search", 2, "record", ["shared"]),  # the search's training is whole: its checkpoint alone is read
        ("shared", 1, 1, ["shared"]),
        ("shared", 2, "last", ["shared"]),
        ("shared", 2, "record", ["shared"]),
        ("shared", 3, "record", []),
    ],
)
def test_run_stopped_anywhere_ends_like_one_never_stopped(
    whole: Path, tmp_path: Path, stage: str, epoch: int, place: int | str, left: list[str]
) -> None:
    recipe, folder = recipe_of(UNTYING), tmp_path / "run"
    stop_run(recipe, folder, stage, epoch, place)
    assert stages_of(recipe, folder, resume=True) == left
    assert outcome(folder) == outcome(whole)
    assert stages_of(recipe, folder, resume=True) == []


@pytest.mark.parametrize("spot", ["write_json", "write_text", "SuperWeightEnsemble"])
def test_run_stopped_between_its_stages_ends_like_one_never_stopped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: str
) -> None:
    """Before and after the evidence of the search is written, and before the final ensemble is built."""
    recipe, folder, calls = recipe_of(UNTYING), tmp_path / "run", []
    home = runs if spot == "write_text" else search_runs
    act = getattr(home, spot)

    def stop(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        late = {
            "write_json": arguments[0] == folder / "search" / "search.json",
            "write_text": arguments[0] == folder / "plan.json",
            "SuperWeightEnsemble": len(calls) == 2,  # the search builds the first
        }
        if late[spot]:
            raise Stop
        return act(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(home, spot, stop)
        with pytest.raises(Stop, match=r"^$"):
            train_run(recipe, folder)
    assert stages_of(recipe, folder, resume=True) == ["shared"]
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize(("sharing", "expected"), [(SEARCH, False), (UNTYING, True)], ids=["never un-tied", "un-tied"])
def test_room_is_kept_where_a_run_un_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharing: dict, expected: bool
) -> None:
    def look(*arguments: object, method: GradientSearch) -> None:
        assert method.reserve_untied is expected
        raise Stop

    monkeypatch.setattr(search_runs, "search_sharing", look)
    with pytest.raises(Stop, match=r"^$"):
        train_run(recipe_of({**sharing, "search_epochs": 1}), tmp_path / "run")
    first = recipe_of(sharing).plan(recipe_of(sharing).build_members())
    own = sum((target.slot + 1) for cluster in first.clusters for target in cluster.targets)
    assert first.budget - first.num_parameters >= (own - num_vectors(first) if expected else 0)


def test_search_is_read_as_far_as_the_run_has_come(whole: Path, tmp_path: Path) -> None:
    recipe, folder = recipe_of(UNTYING), tmp_path / "run"
    stop_run(recipe, folder, "search", 2, "record")
    assert read_search(folder) is None
    stop_run(recipe, folder, "shared", 1, 1, resume=True)
    evidence, plans = read_search(folder)
    expected, all_plans = read_search(whole)
    assert evidence == expected and list(plans) == ["before the search", "found"]
    assert all(all_plans[name] == plan for name, plan in plans.items())


@pytest.mark.parametrize(
    ("sharing", "first", "final"),
    [
        ({"budget": 0.95}, None, "vector"),
        ({"budget": 0.95, "coefficients": "embedding"}, None, "embedding"),
        (SEARCH, "tied", "vector"),
        ({**SEARCH, "coefficients": "embedding"}, "tied", "embedding"),
        ({**SEARCH, "search": "weight"}, "own", "vector"),
    ],
    ids=str,
)
def test_what_other_recipes_do(tmp_path: Path, sharing: dict, first: str | None, final: str) -> None:
    recipe, folder = recipe_of(sharing, training={**TRAINING, "epochs": 1}), tmp_path / "run"
    assert stages_of(recipe, folder) == (["search", "shared"] if first else ["shared"])
    plan = swe.SharingPlan.from_json((folder / "plan.json").read_text())
    assert {cluster.coefficients for cluster in plan.clusters} == {final}
    assert plan == read_plan(folder / "shared" / "ensemble") and plan.num_parameters <= plan.budget
    read = read_search(folder)
    if first is None:
        assert read is None and not (folder / "search").exists()
        return
    evidence, found = read
    assert list(found) == ["before the search", "found"] and evidence.similarity == recipe.sharing.search
    most = max(slot.num_vectors for cluster in found["before the search"].clusters for slot in cluster.slots)
    assert (most == 1) == (first == "tied")
    # Targets that joined use the coefficients of the one that they joined, where the recipe ties at all.
    users = sum(target.slot + 1 for cluster in plan.clusters for target in cluster.targets)
    assert (num_vectors(plan) < users) == (recipe.sharing.coefficient_kind == "tied")


def test_un_tying_without_a_search(tmp_path: Path) -> None:
    sharing = {"budget": 0.95, "coefficients": "tied", "untie_epoch": 1, "untie_threshold": 1.0}
    recipe, folder = recipe_of(sharing), tmp_path / "run"
    assert stages_of(recipe, folder) == ["shared"]
    tied = swe.SharingPlan.from_json((folder / "plan.json").read_text())
    untied = read_plan(folder / "shared" / "ensemble")
    assert num_vectors(tied) < num_vectors(untied) and untied.num_parameters <= untied.budget
    assert read_search(folder) is None


def test_baseline_knows_nothing_of_the_search(tmp_path: Path) -> None:
    tensors = []
    for name, sharing, stages in (("found", UNTYING, ["search"]), ("plain", {"budget": 0.95}, [])):
        recipe = recipe_of(sharing, baseline="independent")
        assert stages_of(recipe, tmp_path / name) == [*stages, "shared", "independent"]
        tensors.append(tensors_of(tmp_path / name / "independent" / "ensemble"))
    assert tensors[0] == tensors[1]


# Recipes.


def test_kinds_and_plans_of_a_recipe() -> None:
    assert recipe_of({"budget": 1.0}).sharing.coefficient_kind == "own"
    assert recipe_of(SEARCH).sharing.coefficient_kind == "tied"
    assert recipe_of({**SEARCH, "coefficients": "embedding"}).sharing.coefficient_kind == "embedding"
    untying = swe.search.Untying(epoch=2, threshold=0.8, max_batches=2)
    for recipe, expected in ((SEARCH, []), (UNTYING, [untying])):
        hooks = recipe_of(recipe).hooks("shared")
        assert [hook for hook in hooks if isinstance(hook, swe.search.Untying)] == expected
    options = recipe_of(UNTYING).sharing.plan_options()
    assert (options["coefficients"], options["reserve_untied"]) == ("tied", True)
    options = recipe_of({**SEARCH, "search": "weight"}).sharing.plan_options()
    assert (options["coefficients"], options["reserve_untied"]) == ("own", False)


@pytest.mark.parametrize("sharing", [{"budget": 0.95}, SEARCH, UNTYING, {**SEARCH, "search": "weight"}], ids=str)
def test_yaml_round_trip(sharing: dict) -> None:
    recipe = recipe_of(sharing)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_training_before_a_search_is_the_final_one_in_fewer_epochs() -> None:
    assert recipe_of(SEARCH).search_training() == swe.TrainConfig(
        **{**TRAINING, "epochs": 2, "seed": recipe_of(SEARCH).training.seed}
    )
    steps = {**TRAINING, "schedule": "step", "milestones": [3], "gamma": 0.5}
    config = recipe_of(SEARCH, training=steps).search_training()
    assert (config.schedule, config.milestones, config.epochs, config.learning_rate) == ("constant", (), 2, 0.05)


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({"search": "gradient"}, "a search needs search_epochs"),
        ({"search": "weight"}, "a search needs search_epochs"),
        ({"search": "gradeint", "search_epochs": 1}, r"sharing: unknown search 'gradeint': did you mean 'gradient'"),
        ({**SEARCH, "generator": "ssn"}, "search 'gradient' splits clusters of SuperWeights: generator must be"),
        ({**SEARCH, "ssn": {"combine": "avg"}}, "ssn does nothing with search 'gradient'"),
        ({**SEARCH, "clusters": "none"}, "a search splits clusters, and clusters 'none' makes none"),
        ({"search_epochs": 2}, "search_epochs does nothing without a search"),
        ({"threshold": 0.3}, "threshold does nothing without search: gradient"),
        ({"search_batches": 3}, "search_batches does nothing without search: gradient or untie_epoch"),
        ({**SEARCH, "search": "weight", "search_batches": 3}, "search_batches does nothing without search: gradient"),
        ({"untie_threshold": 0.5}, "untie_threshold does nothing without untie_epoch"),
        ({"untie_epoch": 2}, "untie_epoch does nothing without tied coefficients"),
        ({**UNTYING, "coefficients": "own"}, "untie_epoch does nothing without tied coefficients"),
        ({**UNTYING, "coefficients": "embedding"}, "untie_epoch does nothing without tied coefficients"),
        ({**SEARCH, "threshold": 1.5}, r"sharing\.threshold must be .*at most 1 .*1\.5"),
        ({**SEARCH, "threshold": -2}, r"sharing\.threshold must be .*at least -1 .*-2"),
        ({**SEARCH, "threshold": float("nan")}, r"sharing\.threshold(:| must be) .*nan"),
        ({**SEARCH, "threshold": "much"}, r"sharing\.threshold must be .*'much'"),
        ({**UNTYING, "untie_threshold": 1.1}, r"sharing\.untie_threshold must be .*1\.1"),
        ({**UNTYING, "untie_epoch": 0}, "untie_threshold does nothing without untie_epoch"),
        ({**UNTYING, "untie_epoch": -1}, r"sharing\.untie_epoch must be .*-1"),
        ({**SEARCH, "search_epochs": 0}, "a search needs search_epochs"),
        ({**SEARCH, "search_batches": 0}, r"sharing\.search_batches must be .*0"),
        ({**SEARCH, "search_epochs": 1.5}, r"sharing\.search_epochs must be .*1\.5"),
        ({"thresold": 0.5}, "sharing: unknown key 'thresold': did you mean 'threshold'"),
        ({"untie_epochs": 3}, "sharing: unknown key 'untie_epochs': did you mean 'untie_epoch'"),
        ({**SEARCH, "threshold": True}, r"sharing\.threshold"),
        ({**SEARCH, "threshold": "0.3"}, r"sharing\.threshold"),
        ({**SEARCH, "search_epochs": True}, r"sharing\.search_epochs"),
        ({**SEARCH, "search_epochs": "2"}, r"sharing\.search_epochs"),
        ({**SEARCH, "search_batches": "1"}, r"sharing\.search_batches"),
    ],
    ids=str,
)
def test_recipe_mistakes(sharing: dict, message: str) -> None:
    with refused(message):
        recipe_of({"budget": 0.95, **sharing})


def mistake(tmp_path: Path, sharing: dict, message: str, **changes: object) -> tuple[list[str], Path]:
    """Train a run that fails; the stages that took a step before it did."""
    folder, seen = tmp_path / "run", []
    with refused(message):
        train_run(recipe_of(sharing, **changes), folder, progress_of=lambda name: lambda p: seen.append(name))
    return list(dict.fromkeys(seen)), folder


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({**SEARCH, "budget": 0.05}, "is below the minimum of this sharing"),
        ({**SEARCH, "coefficients": "embeding"}, "unknown coefficients 'embeding': did you mean 'embedding'"),
        ({**SEARCH, "coefficients": "channel"}, r"sharing\.coefficients: 'channel' was retired, .*: plan with 'own'"),
        ({**SEARCH, "coefficients": "embedding", "budget": 0.24}, "is below the minimum of this sharing"),
        ({**UNTYING, "untie_epoch": 9}, r"un-tied after epoch 9 of 3|untie_epoch"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_the_search_is_trained(tmp_path: Path, sharing: dict, message: str) -> None:
    assert mistake(tmp_path, sharing, message) == ([], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_search_that_cannot_fit_states_the_minimum_before_it_is_trained(tmp_path: Path) -> None:
    members, least = recipe_of(SEARCH).build_members(), []
    for coefficients in ("tied", "own"):  # of the plan before the search, and of one with which it can end
        with refused(r"sharing, [\d,]+ parameters") as caught:
            swe.plan_sharing(members, budget=1000, generator="superweight", coefficients=coefficients)
        least.append(int(re.search(r"sharing, ([\d,]+) parameters", str(caught.value))[1].replace(",", "")))
    first, own = least
    seen, folder = mistake(tmp_path, {**SEARCH, "budget": first}, f"below the minimum of this sharing, {own:,} ")
    assert seen == [] and first < own
    assert stages_of(recipe_of({**SEARCH, "budget": own}), folder, overwrite=folder.exists()) == ["search", "shared"]


def test_failing_training_leaves_the_search_that_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = runs.train

    def fail_second(*arguments: object, **options: Path) -> object:
        if options["out"].name == "shared":
            raise swe.SuperWeightError("the training loss of member 'deep' is nan")
        return train(*arguments, **options)

    monkeypatch.setattr(runs, "train", fail_second)
    seen, folder = mistake(tmp_path, SEARCH, "is nan")
    assert seen == ["search"]
    assert (folder / "search" / "search.json").is_file() and (folder / "plan.json").is_file()
