"""Recipes: every committed one plans without data; mistakes get one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe, parse_recipe
from superweight_ensembles.storage import bundled_recipes

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def minimal() -> dict:
    return {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "channels": 3},
        "members": [
            {"name": "a", "model": "wide_resnet", "depth": 10, "width": 1},
            {"name": "b", "model": "wide_resnet", "depth": 16, "width": 1},
        ],
        "sharing": {"budget": 0.9},
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_committed_recipes_load_and_plan_without_data(path: Path) -> None:
    recipe = load_recipe(path)
    plan = recipe.plan(recipe.build_members())
    assert plan.member_names == tuple(member.name for member in recipe.members)
    spent = plan.num_templates if plan.budget_counts == "templates" else plan.num_parameters
    assert 0.98 * plan.budget < spent <= plan.budget
    assert recipe.name == path.stem


def test_yaml_round_trip() -> None:
    recipe = parse_recipe(minimal())
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_recipes_are_found_by_name(path: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.stem).mkdir()  # a folder is no recipe
    assert load_recipe(path.stem) == load_recipe(path)


def test_a_file_goes_before_a_bundled_recipe(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text(yaml.safe_dump(minimal()))
    assert load_recipe("digits").name == "tiny"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("digit", "; did you mean digits?"),
        ("digits.yaml", "; did you mean digits?"),
        ("recipes/cifar10-smal.yaml", "; did you mean cifar10-small?"),
        ("tinny", "; did you mean tiny.yaml?"),
        ("../recipes/digits", "; did you mean digits?"),
        ("", "."),
        ("x" * 80, "."),
    ],
)
def test_unknown_recipes_suggest_bundled_ones(given: str, hint: str, monkeypatch, tmp_path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(minimal()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(swe.SuperWeightError, match="no recipe file") as raised:
        load_recipe(given)
    carried = bundled_recipes()
    there = f"By name there are {', '.join(carried)}, in {carried['digits'].parent}"
    assert str(raised.value) == f"no recipe file {Path(given)}{hint} {there}"


def test_overrides_reach_mappings_and_lists(tmp_path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    recipe = load_recipe(path, ["training.epochs=5", "members.0.width=2", "sharing.budget=400000", "seed=3"])
    assert (recipe.training.epochs, recipe.members[0].model_extra["width"], recipe.seed) == (5, 2, 3)
    assert recipe.sharing.budget == 400_000 and isinstance(recipe.sharing.budget, int)


def test_one_seed_rules_the_whole_run() -> None:
    assert parse_recipe({**minimal(), "seed": 7}).training.seed == 7
    assert parse_recipe({**minimal(), "seed": 7, "training": {"seed": 2}}).training.seed == 2


def test_members_come_from_the_recipes_seed() -> None:
    first, again = (parse_recipe(minimal()).build_members() for _ in range(2))
    other = parse_recipe({**minimal(), "seed": 1}).build_members()
    assert first["a"].stem.weight.equal(again["a"].stem.weight)
    assert not first["a"].stem.weight.equal(other["a"].stem.weight)


@pytest.mark.parametrize(
    ("spot", "value", "message"),
    [
        (["trainin"], {}, "top level: unknown key 'trainin': did you mean 'training'"),
        (["training"], {"epoch": 3}, "training: unknown key 'epoch': did you mean 'epochs'"),
        (["training"], {"epochs": "many"}, r"training\.epochs: .*valid integer.*'many'"),
        (["training"], {"epochs": 0}, "training: epochs must be at least 1; got 0"),
        (["training"], {"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        (["sharing"], {"budgte": 0.8, "budget": 0.8}, "sharing: unknown key 'budgte': did you mean 'budget'"),
        (["sharing"], {}, r"sharing\.budget is missing"),
        (
            ["sharing"],
            {"budget": 0.8, "allocation": "balanced"},
            r"sharing.allocation is no key any more: slots get their templates in sweeps, as published",
        ),
        (["members"], [], r"members: .*at least 1"),
        (["name"], "a/b", "name: "),
        (["baseline"], "independant", r"baseline: .*'independent' or 'none'.*'independant'"),
        (["seed"], "x", "seed: .*valid integer"),
    ],
)
def test_recipe_mistakes(spot: list, value: object, message: str) -> None:
    content = minimal()
    content[spot[0]] = value
    with pytest.raises(swe.SuperWeightError, match=message):
        parse_recipe(content)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("recipe.yaml")), ids=lambda path: path.parent.name)
def test_recipes_of_earlier_runs_load_with_the_order_that_they_name(path: Path) -> None:
    assert "allocation: sweeps" in path.read_text()
    recipe = load_recipe(path)
    assert "allocation" not in recipe.to_yaml() and parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_file_mistakes(tmp_path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(minimal()))
    with pytest.raises(swe.SuperWeightError, match=r"no recipe file .*tinny\.yaml; did you mean .*tiny\.yaml"):
        load_recipe(tmp_path / "tinny.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(swe.SuperWeightError, match="is no YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(swe.SuperWeightError, match="must hold keys and values; got list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(swe.SuperWeightError, match="is no YAML"):
        load_recipe(tmp_path / "code.yaml")
    for override, message in (
        ("training.epochs", "write key.path=value"),
        ("members.7.width=2", "the recipe has nothing at '7'"),
        ("name.deeper=1", "the recipe has nothing at 'deeper'"),
        ("seed=[", r"--set 'seed=\[' is no YAML"),
    ):
        with pytest.raises(swe.SuperWeightError, match=message):
            load_recipe(tmp_path / "tiny.yaml", [override])


def test_member_and_data_mistakes() -> None:
    twice = minimal()
    twice["members"][1]["name"] = "a"
    with pytest.raises(swe.SuperWeightError, match="two are named 'a'"):
        parse_recipe(twice).build_members()
    typo = minimal()
    typo["members"][0]["wdith"] = typo["members"][0].pop("width")
    with pytest.raises(swe.SuperWeightError, match="wdith"):
        parse_recipe(typo).build_members()
    unknown = minimal()
    unknown["data"]["name"] = "cifra10"
    with pytest.raises(swe.SuperWeightError, match="did you mean 'cifar10'"):
        parse_recipe(unknown).load_data()
    other = minimal()
    other["data"]["num_classes"] = 7
    other["data"]["name"] = "digits"
    other["data"].pop("channels")
    with pytest.raises(swe.SuperWeightError, match=r"the recipe says 7 classes and 1 channels; digits has 10 and 1"):
        parse_recipe(other).load_data()


def test_un_tying_comes_before_the_last_epoch() -> None:
    content = {
        "name": "late",
        "data": {"name": "digits"},
        "members": [{"name": "a", "model": "wide_resnet", "depth": 10, "width": 1}],
        "sharing": {"budget": 0.9, "coefficients": "tied", "untie_epoch": 2},
        "training": {"epochs": 2},
    }
    with pytest.raises(
        swe.SuperWeightError, match=r"^recipe: sharing.untie_epoch 2 must come before the last of 2 epochs"
    ):
        parse_recipe(content)
    assert parse_recipe({**content, "training": {"epochs": 3}}).untying() is not None
