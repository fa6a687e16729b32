"""superweights compare: arms, seeds, summaries."""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_cases import refused
from tiny_recipe import CONTENT
from typer.testing import CliRunner

from superweight_ensembles.__main__ import app
from superweight_ensembles.experiment import (
    ComparisonPlan,
    CostPoint,
    SeedResult,
    SeedSummary,
    Variant,
    build_arms,
    compare_arms,
    parse_recipe,
    parse_variant,
    read_comparison,
    spread,
    summarise,
    with_seed,
)
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.storage import as_content, content_as, read_as

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    variants = [Variant(name="less", overrides=("sharing.budget=0.7",), group="budget")]
    arms = ("independent", "single")
    return folder, compare_arms(parse_recipe(CONTENT), folder, against=arms, variants=variants, num_seeds=2)


def by_name(comparison):
    return {arm.name: arm for arm in comparison.arms}


def test_arms_have_the_parameters_that_they_stand_for():
    recipe = parse_recipe(CONTENT)
    members = recipe.build_members()
    sizes = {name: count_parameters(module) for name, module in members.items()}
    arms = {arm.name: arm for arm in build_arms(recipe, ["independent", "single"], [])}
    assert list(arms) == ["shared", "independent", "single"]
    assert arms["shared"].num_parameters == recipe.plan(members).num_parameters <= 0.83 * sum(sizes.values())
    assert arms["independent"].num_parameters == sum(sizes.values())
    assert arms["independent"].recipe.plan(members).clusters == ()
    assert arms["single"].num_parameters == sizes["large"]
    assert [member.name for member in arms["single"].recipe.members] == ["large"]
    assert all(arm.recipe.baseline == "none" for arm in arms.values())


def test_variants_and_overrides_change_one_arm_alone():
    variants = [
        parse_variant("budget/less: sharing.budget=0.7"),
        parse_variant("two: sharing.cap=4; training.epochs=2"),
    ]
    arms = {
        arm.name: arm
        for arm in build_arms(parse_recipe(CONTENT), ["single"], variants, ["single:training.learning_rate=0.2"])
    }
    assert (arms["less"].recipe.sharing.budget, arms["less"].group, arms["less"].series) == (0.7, "budget", "budget")
    assert (arms["two"].recipe.sharing.cap, arms["two"].recipe.training.epochs) == (4, 2)
    assert (arms["two"].group, arms["two"].series) == ("", "")
    assert arms["single"].recipe.training.learning_rate == 0.2
    assert arms["shared"].recipe.training.learning_rate == 0.05


def test_a_seed_moves_the_training_seed_along():
    recipe = parse_recipe({**CONTENT, "seed": 3, "training": {**CONTENT["training"], "seed": 10}})
    moved = with_seed(recipe, 5)
    assert (moved.seed, moved.training.seed) == (5, 12)
    assert with_seed(recipe, 3) == recipe


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no colon", "a variant is NAME: key.path=value"),
        ("half:", "a variant is NAME: key.path=value"),
        ("a|b: sharing.budget=1", "a variant is NAME: key.path=value"),
    ],
)
def test_bad_variants(text, match):
    with refused(match):
        parse_variant(text)


@pytest.mark.parametrize(
    ("against", "variants", "overrides", "match"),
    [
        (["independant"], [], [], "unknown arm 'independant': did you mean 'independent'"),
        (["packed"], [], [], r"unknown arm 'packed': .*benchmarks/compare_peers\.py has others"),
        (["single", "single"], [], [], "two arms are named 'single'"),
        (["single:0"], [], [], "arm 'single:0': write single:SEEDS with at least one seed"),
        ([], [Variant(name="x", overrides=("sharing.bugdet=1",))], [], "variant 'x': sharing: unknown key 'bugdet'"),
        ([], [Variant(name="x", overrides=("sharing",))], [], "variant 'x':.* write key.path=value"),
        ([], [], ["single:training.epochs=2"], "--set-for .*: write ARM:key.path=value for one of shared"),
        ([], [], ["shared:training.epoch=2"], "--set-for .*unknown key 'epoch'"),
    ],
)
def test_bad_arms(against, variants, overrides, match):
    with refused(match):
        build_arms(parse_recipe(CONTENT), against, variants, overrides)


def test_a_comparison_is_the_arithmetic_of_its_runs(finished):
    folder, comparison = finished
    assert comparison == read_comparison(folder)
    arms = by_name(comparison)
    assert list(arms) == ["shared", "independent", "single", "less"]
    for name, arm in arms.items():
        accuracies = [run.metrics.accuracy for run in arm.runs]
        assert [run.seed for run in arm.runs] == [0, 1]
        assert arm.summary["accuracy"] == spread(accuracies)
        for seed, run in enumerate(arm.runs):
            written = json.loads((folder / name / f"seed-{seed}" / "results.json").read_text())["arms"][0]
            assert as_content(run.metrics) == written["ensemble"]["metrics"]
            assert arm.num_parameters == written["num_parameters"]
    ours, theirs = ([run.metrics.nll for run in arms[name].runs] for name in ("shared", "independent"))
    differences = [mine - other for mine, other in zip(ours, theirs)]
    assert arms["independent"].difference["nll"].mean == statistics.fmean(differences)
    assert arms["independent"].difference["nll"].std == statistics.stdev(differences)
    assert as_content(arms["shared"].difference["accuracy"]) == {"mean": 0, "std": 0, "n": 2}
    assert "member small" in arms["independent"].difference and "member small" not in arms["single"].difference
    assert "diversity" not in arms["single"].summary
    assert arms["single"].runs[0].subsets == () and len(arms["shared"].runs[0].subsets) == 3


def test_what_was_asked_for_is_written(finished):
    plan = read_as(ComparisonPlan, finished[0] / "compare.json", "compare again")
    assert (plan.against, plan.overrides, plan.seeds) == (("independent", "single"), (), (0, 1))
    assert plan.variants == (Variant(name="less", overrides=("sharing.budget=0.7",), group="budget"),)


@pytest.mark.parametrize("file", sorted(COMMITTED.rglob("comparison.json")), ids=lambda file: file.parent.name)
def test_committed_comparisons_are_read_and_written_alike(file):
    assert as_content(read_comparison(file.parent)) == json.loads(file.read_text())
    plan = asdict(read_as(ComparisonPlan, file.parent / "compare.json", "compare again"))
    assert json.loads(json.dumps(plan)) == json.loads((file.parent / "compare.json").read_text())


def test_arms_of_a_seed_start_from_the_same_members_and_see_the_same_seed(finished):
    folder, _ = finished
    for seed in (0, 1):
        recipes = [(folder / arm / f"seed-{seed}" / "recipe.yaml").read_text() for arm in ("shared", "independent")]
        assert all(f"\nseed: {seed}\n" in text for text in recipes)
        assert recipes[0].split("sharing:")[0] == recipes[1].split("sharing:")[0]
        assert recipes[0].split("training:")[1] == recipes[1].split("training:")[1]


def test_resume_keeps_what_is_there_and_adds(finished):
    folder, before = finished
    kept = (folder / "shared" / "seed-0" / "results.json").stat().st_mtime_ns
    arms = ["independent", "single:2"]
    comparison = compare_arms(parse_recipe(CONTENT), folder, against=arms, num_seeds=3, resume=True)
    assert [run.seed for run in by_name(comparison)["single"].runs] == [0, 1]
    assert by_name(comparison)["single"].difference["accuracy"].n == 2
    assert (folder / "shared" / "seed-0" / "results.json").stat().st_mtime_ns == kept
    assert [run.seed for run in by_name(comparison)["shared"].runs] == [0, 1, 2]
    assert by_name(comparison)["shared"].runs[:2] == by_name(before)["shared"].runs


def test_a_comparison_holds_to_its_data(finished):
    folder, _ = finished
    known = (folder / "data.json").read_text()
    (folder / "data.json").write_text(json.dumps({**json.loads(known), "test pixels": "others"}))
    with refused(r"the data are not those of .*: test pixels: put them back"):
        compare_arms(parse_recipe(CONTENT), folder, against=[], num_seeds=1, resume=True)
    (folder / "data.json").write_text(known)


def write_images(folder, shade=0, count=48):
    for index in range(count):
        path = folder / ("train", "test")[index % 2] / ("cat", "dog")[index // 2 % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = shade if index % 2 == 0 else 0  # of training images alone
        Image.new("RGB", (8, 8), (5 * index, grey, 0)).save(path)
    return folder


def of_images(folder):
    data = {"name": "image_folder", "folder": str(folder), "validation_fraction": 0.0}
    return parse_recipe({**CONTENT, "data": data, "training": {**CONTENT["training"], "batch_size": 8}})


def test_an_arm_with_data_of_its_own_holds_to_them(tmp_path):
    recipe = of_images(write_images(tmp_path / "images"))
    other = write_images(tmp_path / "other", shade=90)
    variants = [Variant(name="other", overrides=(f"data.folder={other}",))]

    def compare(**options):
        return compare_arms(recipe, tmp_path / "out", against=[], variants=variants, **options)

    assert [arm.name for arm in compare(num_seeds=1).arms] == ["shared", "other"]
    write_images(other, shade=120)
    with refused(r"arm 'other': the data are not those of .*other/seed-0"):
        compare(num_seeds=2, resume=True)
    assert not (tmp_path / "out" / "shared" / "seed-1").exists()
    write_images(other, shade=90)
    other.rename(tmp_path / "moved")
    variants = [Variant(name="other", overrides=(f"data.folder={tmp_path / 'moved'}",))]
    assert [len(arm.runs) for arm in compare(num_seeds=2, resume=True).arms] == [2, 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"overrides": ["shared:data.num_train=500"]},
            r"arm 'shared': it would be tested on other images than the others \(test .* differ",
        ),
        ({"against": ["single"], "overrides": ["single:data.num_classes=3"]}, "arm 'single': it would be tested on"),
        (
            {"variants": [Variant(name="gone", overrides=("data={name: image_folder, folder: /nonexistent}",))]},
            "'gone': data: ",
        ),
        ({"num_seeds": 2, "recipe": {"seed": 2**32 - 1}}, "2 seeds from 4294967295 upwards go beyond the last one"),
        pytest.param(
            {"against": ["single"], "overrides": ["single:training.device=cuda"]},
            "arm 'single': device 'cuda' is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
        ),
    ],
)
def test_arms_are_held_against_their_data_before_any_is_trained(options, match, tmp_path):
    recipe = parse_recipe({**CONTENT, **options.get("recipe", {})})
    with refused(match):
        compare_arms(**{"folder": tmp_path / "out", "against": [], **options, "recipe": recipe})
    assert not (tmp_path / "out").exists()


def test_an_arm_is_not_mixed_with_another_of_its_name(finished):
    folder, _ = finished
    other = [Variant(name="less", overrides=("sharing.budget=0.6",))]
    with refused(r"less/seed-0 was trained with another recipe \(sharing.budget was 0.7, now 0.6\)"):
        compare_arms(parse_recipe(CONTENT), folder, against=[], variants=other, num_seeds=1, resume=True)


def test_folders_are_not_overwritten_by_accident(finished, tmp_path):
    folder, _ = finished
    (folder / "thesis.txt").write_text("mine")
    for place, changes, options, message in (
        (folder, {}, {}, "exists already: --resume goes on"),
        (folder, {"seed": 1}, {"resume": True}, "was begun with another recipe"),
        (tmp_path, {}, {"resume": True}, "is no comparison"),
        (folder, {}, {"overwrite": True}, r"also holds thesis.txt, which is no part of a comparison"),
        (tmp_path / "new", {}, {"resume": True, "overwrite": True}, "use one of them"),
        (tmp_path / "new", {}, {"num_seeds": 0}, "at least one seed"),
    ):
        with refused(message):
            compare_arms(parse_recipe({**CONTENT, **changes}), place, **options)
    (folder / "thesis.txt").unlink()
    with refused("holds no finished comparison"):
        read_comparison(tmp_path)


def test_command_line_and_plot(finished, tmp_path):
    folder, _ = finished
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text((folder / "recipe.yaml").read_text())
    arguments = f"compare {recipe} --against independent,single --seeds 2 --out {folder} --resume".split()
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert "largest member" in answer.output and "ours minus it" in answer.output
    assert {path.name for path in (folder / "figures").iterdir()} == {"arms_parameters.png", "arms_flops.png"}
    answer = CliRunner().invoke(app, ["plot", str(folder), "--out", str(tmp_path / "figures")], catch_exceptions=False)
    assert "2 figures" in answer.output


def own_seed(arm, recipe, folder, progress):
    """A baseline of the user's own, which knows its answers."""
    folder.mkdir(parents=True)
    entry = {"name": arm.name, **as_content(own_result(arm.num_parameters + recipe.seed))}
    (folder / "results.json").write_text(json.dumps({"arms": [entry]}))


def test_a_baseline_of_ones_own(tmp_path):
    def mine(shared, members):
        return replace(shared, label=f"mine beside {len(members)}", train=own_seed)

    def compare(**options):
        return compare_arms(
            parse_recipe(CONTENT), tmp_path / "out", against=["mine"], baselines={"mine": mine}, **options
        )

    shared, own = compare(num_seeds=2).arms
    assert (own.name, own.kind, own.label) == ("mine", "mine", "mine beside 2")
    assert [run.metrics.accuracy for run in own.runs] == [0.5, 0.5] and own.num_parameters == shared.num_parameters
    assert own.difference["accuracy"].mean == pytest.approx(shared.summary["accuracy"].mean - 0.5)
    (tmp_path / "out" / "mine" / "seed-0" / "results.json").write_text('{"arms": []}')
    with refused(r"results\.json is damaged \(arms.*remove its folder and compare again"):
        compare(num_seeds=2, resume=True)
    with refused(r"unknown arm 'min': did you mean 'mine'.*Known: [^;]*$"):
        build_arms(parse_recipe(CONTENT), ["min"], [], baselines={"mine": mine})


def own_result(num_parameters):
    metrics = {"accuracy": 0.5, "top5_accuracy": 1.0, "nll": 1.0, "ece": 0.1, "brier": 0.4}
    found = {"flops": 3, "latency_ms": 0.1, "metrics": metrics}
    content = {
        "num_samples": 8,
        "num_parameters": num_parameters,
        "members": [{"name": "small", "batch_size": 1, "num_parameters": 7, **found}],
        "ensemble": found,
        "subsets": [{"members": ["small"], **found}],
        "diversity": None,
        "reliability": [{"lower": 0.0, "upper": 1.0, "confidence": 0.5, "accuracy": 0.5, "count": 8}],
        "training": {"seconds": 60.0, "precision": "float32", "channels_last": False, "device": "cpu"},
    }
    return content_as(SeedResult, content, Path("results.json"), "no remedy")


def test_summaries_need_no_second_seed():
    assert as_content(spread([2.0])) == {"mean": 2.0, "std": 0.0, "n": 1}
    recipe = parse_recipe(CONTENT)
    arm = build_arms(recipe, [], [])[0]
    (entry,) = summarise([arm], {"shared": {0: own_result(7)}}, 0.25)
    assert entry.summary["training_seconds"].mean == 60
    assert (entry.num_parameters, entry.flops) == (7, 3)
    assert entry.runs == (SeedSummary.of(0, own_result(7)),) and "diversity" not in entry.summary


def test_an_area_is_that_of_the_first_arms_range_and_chance_before_the_first_answer():
    points = tuple(CostPoint(flops=flops, accuracy=accuracy, nll=1.0) for flops, accuracy in ((2.0, 0.6), (8.0, 0.9)))
    run = replace(SeedSummary.of(0, own_result(7)), cascade=points)
    assert run.area(1.0, 16.0, 0.2) == pytest.approx((0.2 + 2 * 0.75 + 0.9) / 4)
    assert run.area(4.0, 4.0, 0.2) is None
    assert SeedSummary.of(0, own_result(7)).area(1.0, 16.0, 0.2) is None
