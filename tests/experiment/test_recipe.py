"""Recipes: every committed one plans without data; mistakes get one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from run_cases import refused, wide_resnets

import superweight_ensembles as swe
from superweight_ensembles.experiment import check_overrides, load_recipe, parse_recipe, planned_run
from superweight_ensembles.experiment.recipe import distillation_of
from superweight_ensembles.storage import bundled_recipes, dump_yaml, parse_yaml, read_yaml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def minimal() -> dict:
    return {
        "name": "tiny",
        "data": {"name": "synthetic", "num_classes": 4, "channels": 3},
        "members": wide_resnets(a=(10, 1), b=(16, 1)),
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
    with refused("no recipe file") as raised:
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


@pytest.mark.parametrize("text", ["3e8", "1e-1", "1.5E+3", "-2e0", "+.5e1", "2.e3"])
def test_exponents_are_numbers_of_yaml_1_2(text: str, tmp_path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(minimal()) + f"x: {text}\n")
    assert read_yaml(path)["x"] == float(text) == parse_yaml(text, "--set")
    assert parse_yaml(dump_yaml([text, float(text)]), "again") == [text, float(text)]
    path.write_text(yaml.safe_dump(minimal()))
    assert load_recipe(path, [f"training.weight_decay={abs(float(text)):e}", "anytime.flops=3e8"]).anytime.flops == 3e8


@pytest.mark.parametrize("text", ["e8", "3e", "1e5x", "0x1e5g", "e", "1.2e3.4"])
def test_what_only_looks_like_an_exponent_is_text(text: str) -> None:
    assert parse_yaml(text, "--set") == text


def test_a_recipe_whose_name_looks_like_a_number_is_read_again() -> None:
    recipe = parse_recipe({**minimal(), "name": "1e5"})
    assert parse_recipe(parse_yaml(recipe.to_yaml(), "again")) == recipe


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
        (["training"], {"epochs": "many"}, r"training\.epochs must be a whole number \(got 'many'\)"),
        (["training"], {"epochs": "1"}, r"training\.epochs must be a whole number \(got '1'\)"),
        (["training"], {"batch_size": True}, r"training\.batch_size must be a whole number \(got True\)"),
        (["training"], {"learning_rate": "0.1"}, r"training\.learning_rate must be a number \(got '0.1'\)"),
        (["training"], {"flip": 1}, r"training\.flip must be true or false \(got 1\)"),
        (["training"], {"compile": "yes"}, r"training\.compile must be true or false \(got 'yes'\)"),
        (
            ["training"],
            {"milestones": [True], "schedule": "step"},
            r"training\.milestones\.0 must be a whole number \(got True\)",
        ),
        (["training"], [1], r"training must be (settings by name|a dictionary) or an instance"),
        (["fine_tuning"], {"epochs": "1"}, r"fine_tuning: epochs must be a whole number \(got '1'\)"),
        (["data"], {"name": "synthetic", "num_classes": 5.0}, r"data\.num_classes must be a whole number \(got 5\.0\)"),
        (["data"], {"name": "synthetic", "channels": True}, r"data\.channels must be a whole number \(got True\)"),
        (["sharing"], {"budget": 0.8, "bins": "4"}, r"sharing\.bins must be a whole number \(got '4'\)"),
        (["evaluation"], {"batch_size": 2.0}, r"evaluation\.batch_size must be a whole number \(got 2\.0\)"),
        (["anytime"], {"monotone": 1}, r"anytime\.monotone must be true or false \(got 1\)"),
        (["anytime"], {"flops": "much"}, r"^recipe: anytime\.flops must be a number \(got 'much'\)$"),
        (["anytime"], {"flops": -1.0}, r"^recipe: anytime\.flops must be greater than 0 \(got -1.0\)$"),
        (["training"], {"epochs": 0}, r"training\.epochs must be at least 1 \(got 0\)"),
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
        (["baseline"], "independant", "unknown baseline 'independant': did you mean 'independent'"),
        (["seed"], "x", "seed must be a whole number"),
    ],
)
def test_recipe_mistakes(spot: list, value: object, message: str) -> None:
    content = minimal()
    content[spot[0]] = value
    with refused(message):
        parse_recipe(content)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("recipe.yaml")), ids=lambda path: path.parent.name)
def test_recipes_of_earlier_runs_load_also_with_the_order_that_they_name(path: Path) -> None:
    newer = path.parent.name in (
        "cifar10-few-images", "cifar10-16px-teaching", "tiny-imagenet-16px", "tiny-imagenet-16px-overfit",
        "unlike-members", "unlike-members-kernels", "unlike-members-kinds-apart",
    )  # fmt: skip
    assert ("allocation: sweeps" in path.read_text()) != newer
    recipe = load_recipe(path)
    assert "allocation" not in recipe.to_yaml() and parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_file_mistakes(tmp_path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(minimal()))
    with refused(r"no recipe file .*tinny\.yaml; did you mean .*tiny\.yaml"):
        load_recipe(tmp_path / "tinny.yaml")
    for text, message in (
        ("a: [1", "is no YAML"),
        ("- 1", "must hold keys and values; got list"),
        ("name: !!python/object/apply:os.system ['true']", "is no YAML"),
    ):
        (tmp_path / "other.yaml").write_text(text)
        with refused(message):
            load_recipe(tmp_path / "other.yaml")
    for override, message in (
        ("training.epochs", "write key.path=value"),
        ("members.7.width=2", "the recipe has nothing at '7'"),
        ("name.deeper=1", "the recipe has nothing at 'deeper'"),
        ("seed=[", r"--set 'seed=\[' is no YAML"),
    ):
        with refused(message):
            load_recipe(tmp_path / "tiny.yaml", [override])


A, B = minimal()["members"]


@pytest.mark.parametrize(
    ("changes", "read", "message"),
    [
        ({"members": [A, {**B, "name": "a"}]}, "build_members", "two are named 'a'"),
        ({"members": [{**A, "wdith": 1}, B]}, "build_members", "wdith"),
        ({"data": {"name": "cifra10", "num_classes": 4}}, "load_data", "did you mean 'cifar10'"),
        (
            {"data": {"name": "digits", "num_classes": 7}},
            "load_data",
            r"the recipe says 7 classes and 1 channels; digits has 10 and 1",
        ),
    ],
)
def test_member_and_data_mistakes(changes: dict, read: str, message: str) -> None:
    with refused(message):
        getattr(parse_recipe({**minimal(), **changes}), read)()


DATA = {"name": "synthetic", "num_train": 2000}
WHOLE = {"training": {"batch_size": 32}}
REFUSED = [
    ({"data": {**DATA, "num_tests": 3}}, "data: unknown option of synthetic 'num_tests': did you mean 'num_test'"),
    ({"data": {**DATA, "num_train": "many"}}, "data: num_train must be a whole number of at least 1; got 'many'"),
    ({"data": {**DATA, "shape": [3, 8]}}, r"data: shape must be \(channels, height, width\)"),
    ({"data": {**DATA, "shape": [3, 100_000, 100_000]}}, "data: images of .* have 30,000,000,000 numbers each"),
    ({"data": {**DATA, "shape": [3, 4000, 4000]}}, "data: 1,800 images of .* would not fit into memory"),
    ({"data": {**DATA, "channels": 5}}, "data: the recipe says 4 classes and 5 channels; synthetic has 4 and 3"),
    ({"data": {"name": "digits", "num_train": 5000}}, "data: num_train is 5000; digits has about 809"),
    ({"data": {"name": "cifar10", "pool": 3}}, "data: pool=3 does not divide the 32 x 32 pixels of cifar10"),
    ({"data": {"name": "cifar10", "num_classes": 100}}, "the recipe says 100 classes and 3 channels; cifar10 has 10"),
    ({"data": {"name": "cifar10", "root": "x"}}, "unknown option of cifar10 'root': did you mean 'folder'"),
    ({"data": {"name": "image_folder", "num_classes": 3}}, "data: image_folder needs folder="),
    ({"data": {"name": "cifar10"}, "training": {"batch_size": 60_000}}, "training: cifar10 has about 45000"),
    ({"training": {"batch_size": 2001}}, "training: synthetic has about 1800 training images, fewer than batch_size"),
    ({"training": {"crop_padding": 8}}, "training: crop_padding of 8 pixels must be less than the images' 8 pixels"),
    ({"training": {"random_resized_crop": True}}, "training: random_resized_crop cuts parts out of files"),
    ({"training": {"micro_batches": 64, "batch_size": 32}}, "training: micro_batches 64 are more than batch_size 32"),
    ({"training": {"width_rate": 2.0}}, "training.width_rate does nothing without a member that is adaptive"),
    ({"training": {"lr": 0.1}}, "training: unknown key 'lr': did you mean 'learning_rate'"),
    ({"anytime": {"order": ["a", "c"]}}, "anytime: unknown member 'c'"),
    ({"anytime": {"order": "costs"}}, "anytime: unknown order 'costs': did you mean 'cost'"),
    ({"anytime": {"order": ["a"]}}, "anytime: one member alone leaves nothing to stop before"),
    ({"anytime": {"flops": 0.01}}, "anytime.flops: a mean cost must lie between the first member's and all members'"),
    ({"anytime": {"flops": 10**12}}, "anytime.flops: a mean cost must lie between"),
    ({"anytime": {}, "data": {**DATA, "num_train": 96}}, "anytime: thresholds are fitted on at least 100 validation"),
    ({"members": [{"name": "a", "model": "wide_resnet", "wdith": 1}]}, "members: 'a': unknown option of wide_resnet"),
    ({"members": [{"name": "a", "model": "timm/vit_tiny_patch16_224"}]}, "members: member 'a' cannot take images"),
    ({"sharing": {"budget": 0.9, "cap": -1}}, r"sharing: cap must be a whole number, from 1 to [\d,]+; got -1"),
    ({"distillation": {"teacher": "nowhere", "weight": 1.0}}, "distillation.teacher: nowhere is no folder"),
    ({"sharing": {"budget": 0.9, "init": "svd", "init_from": "nowhere"}}, "sharing.init: no start from nowhere"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_no_training_takes_is_refused_before_data_are_read(changes: dict, message: str, monkeypatch) -> None:
    from superweight_ensembles.experiment import recipe as recipes

    monkeypatch.setattr(recipes, "load_data", lambda *given, **options: pytest.fail("data are read"))
    content = {**minimal(), "data": DATA, **WHOLE, **changes}
    if content["data"]["name"] == "digits":
        content["members"] = content["members"][:1]
    with refused(message):
        planned_run(parse_recipe(content))


def test_a_teacher_of_other_classes_is_refused(tmp_path) -> None:
    members = {"t": swe.wide_resnet(10, 0.25, 7)}
    swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members)).save(tmp_path / "teacher")
    content = {**minimal(), "data": DATA, "distillation": {"teacher": str(tmp_path / "teacher"), "weight": 0.5}}
    with refused(r"distillation.teacher: .*it answers 7 classes, the data have 4"):
        planned_run(parse_recipe(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": {"teacher": "nowhere", "weight": 0}},
        {"distillation": 0},
        {"distillation": False},
        {"distillation": "none"},
        {"teacher": "ensemble", "training": {"batch_size": 32, "distillation": 0}},
        {"teacher": "ensemble", "distillation": 0},
        {"sharing": {"budget": 0.9, "search": None, "search_epochs": 0, "untie_epoch": 0, "init": "none"}},
        {"anytime": {"truncations": []}},
        {"anytime": False, "learn_widths": None, "width_loss": "none", "fine_tuning": {}},
        {"training": {"batch_size": 32, "optimizer": "adamw", "momentum": 0, "nesterov": False, "milestones": []}},
        {"training": {"batch_size": 32, "crop_padding": 0, "cutout": 0, "ensemble_loss": 0, "checkpoint_steps": 0}},
    ],
    ids=str,
)
def test_switches_that_are_off_are_no_mistakes(changes: dict) -> None:
    recipe = parse_recipe({**minimal(), "data": DATA, **WHOLE, **changes})
    planned_run(recipe)
    assert distillation_of(recipe) is None and recipe.sharing.search == "none"
    assert parse_recipe({**minimal(), "baseline": False}).baseline == "none"


def test_an_override_that_another_one_replaces_is_refused() -> None:
    for last in ("training.epochs=4", "training={epochs: 4}"):
        with refused(r"--set training.epochs is overridden by --set training"):
            check_overrides(["training.epochs=3", last])
    check_overrides(["training={epochs: 4}", "training.seed=3", "train.seed=3"])


def test_un_tying_comes_before_the_last_epoch() -> None:
    content = {
        "name": "late",
        "data": {"name": "digits"},
        "members": [{"name": "a", "model": "wide_resnet", "depth": 10, "width": 1}],
        "sharing": {"budget": 0.9, "coefficients": "tied", "untie_epoch": 2},
        "training": {"epochs": 2},
    }
    with refused(r"^recipe: sharing.untie_epoch 2 must come before the last of 2 epochs"):
        parse_recipe(content)
    assert "Untying" in [hook.name for hook in parse_recipe({**content, "training": {"epochs": 3}}).hooks("shared")]
