"""The command line from recipe to figures, in this process; exit codes; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from command_line import superweights
from PIL import Image

import superweight_ensembles as swe
from superweight_ensembles.errors import stop_now

TINY = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 64},
    "members": [
        {"name": "a", "model": "wide_resnet", "depth": 10, "width": 1},
        {"name": "b", "model": "wide_resnet", "depth": 16, "width": 1},
    ],
    "sharing": {"budget": 0.9},
    "training": {"epochs": 2, "batch_size": 32, "precision": "float32", "device": "cpu"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_train_evaluate_plot(monkeypatch, capsys, tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    assert superweights(monkeypatch, "train", recipe, "--out", run) == 0
    assert superweights(monkeypatch, "evaluate", run) == 0
    assert superweights(monkeypatch, "plot", run) == 0
    printed = capsys.readouterr().out
    assert superweights(monkeypatch, "evaluate", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["arms"] == json.loads((run / "results.json").read_text())["arms"]
    assert superweights(monkeypatch, "--quiet", "plot", run) == 0
    assert tuple(capsys.readouterr()) == ("", "")
    shown = swe.results(run)._repr_html_()
    assert shown.count("<tr>") == 7 and "<td>in the bank</td>" in shown and "64 test images of synthetic" in shown
    assert "ensemble" in printed and "independent" in printed and str(run / "figures") in printed
    results = json.loads((run / "results.json").read_text())
    shared, independent = results["arms"]
    assert (shared["name"], independent["name"]) == ("shared", "independent")
    assert shared["num_parameters"] <= 0.9 * independent["num_parameters"]
    assert independent["num_parameters"] == shared["independent_parameters"]
    assert len(shared["subsets"]) == 3 and len(shared["history"]) == 2
    assert results["provenance"]["packages"]["torch"]
    assert len(list((run / "figures").glob("*.png"))) == 6
    assert superweights(monkeypatch, "plot", run, "--out", tmp_path / "elsewhere") == 0
    assert len(list((tmp_path / "elsewhere").glob("*.png"))) == 6
    assert superweights(monkeypatch, "plot", run, run, "--out", tmp_path / "both") == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "compare_flops.png",
        "compare_parameters.png",
    ]
    ensemble = swe.SuperWeightEnsemble.load(run / "shared" / "ensemble")
    assert ensemble.num_parameters == shared["num_parameters"]
    assert swe.SharingPlan.from_json((run / "plan.json").read_text()) == ensemble.plan
    assert not (run / "shared" / "checkpoint").exists()
    # The baseline starts from the members that the recipe's seed draws: same data, epochs and seed.
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["epochs"] == 2


def test_existing_runs_are_kept_resumed_or_replaced(monkeypatch, capsys, tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", recipe, "--out", run, "--set", "baseline=none", "--set", "training.epochs=1"]
    assert superweights(monkeypatch, *arguments) == 0
    trained = (run / "shared" / "ensemble" / "model.safetensors").stat().st_mtime_ns
    assert superweights(monkeypatch, *arguments) == 2
    assert "exists already: --resume goes on, --overwrite begins anew" in capsys.readouterr().err
    assert superweights(monkeypatch, *arguments, "--resume") == 0  # nothing is left to do
    assert (run / "shared" / "ensemble" / "model.safetensors").stat().st_mtime_ns == trained
    assert superweights(monkeypatch, *arguments, "--resume", "--set", "seed=1") == 2
    assert "begun with another recipe or other overrides (seed was 0, now 1)" in capsys.readouterr().err
    assert superweights(monkeypatch, *arguments, "--overwrite", "--resume") == 2
    assert superweights(monkeypatch, *arguments, "--overwrite") == 0
    assert (run / "shared" / "ensemble" / "model.safetensors").stat().st_mtime_ns != trained
    (run / "thesis.txt").write_text("years of work")
    assert superweights(monkeypatch, *arguments, "--overwrite") == 2
    assert "also holds thesis.txt, which is no part of a run" in capsys.readouterr().err
    keep = tmp_path / "photos"
    keep.mkdir()
    assert superweights(monkeypatch, "train", recipe, "--out", keep, "--overwrite") == 2
    assert "is no run folder" in capsys.readouterr().err and keep.is_dir()


def test_a_run_that_is_not_there_is_not_resumed_in_silence(
    monkeypatch, capsys, caplog, tmp_path: Path, recipe: Path
) -> None:
    arguments = ["train", recipe, "--set", "baseline=none", "--set", "training.epochs=1", "--resume", "--out"]
    assert superweights(monkeypatch, *arguments, tmp_path / "run") == 0
    assert caplog.messages == [f"nothing to resume in {tmp_path / 'run'}: training from the start"]
    caplog.clear()
    assert superweights(monkeypatch, *arguments, tmp_path / "run") == 0
    assert not caplog.messages
    compared = ["compare", recipe, "--set", "training.epochs=1", "--seeds", 1, "--resume", "--out", tmp_path / "both"]
    assert superweights(monkeypatch, *compared, "--against", "single") == 0
    assert caplog.messages == [f"nothing to resume in {tmp_path / 'both'}: comparing from the start"]
    caplog.clear()
    assert superweights(monkeypatch, *compared, "--against", "independent") == 0
    assert caplog.messages == [f"{tmp_path / 'both'}: left out now, though compared before: single"]
    capsys.readouterr()
    assert superweights(monkeypatch, "evaluate", tmp_path / "both") == 2
    assert "both is a comparison: superweights plot draws it" in capsys.readouterr().err


def test_an_ensemble_that_is_not_there_is_not_resumed_in_silence(caplog, tmp_path: Path) -> None:
    data = swe.load_data("synthetic")
    ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 0.25, data.num_classes)}, budget=0.9)
    swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64), out=tmp_path / "run", resume=True)
    assert f"nothing to resume in {tmp_path / 'run'}: training from the start" in caplog.messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "baseline=none"), "--set baseline=none does nothing in a comparison"),
        (("--against", "single:2", "--seeds", 1), "arm 'single:2' has more seeds than the comparison: 1"),
        (("--variant", "a: training.epoch=3"), "variant 'a': training: unknown key 'epoch': did you mean 'epochs'"),
        (("--variant", "a b: seed=1", "--variant", "a-b: seed=2"), "two arms would be in the folder a-b"),
        (("--variant", "..: seed=1"), "a variant is NAME: key.path=value"),
        (("--variant", "a: training.cutout=50"), "arm 'a': training: cutout of 50 pixels"),
        (("--set-for", "independent:training.crop_padding=9"), "arm 'independent': training: crop_padding of 9 pixels"),
    ],
)
def test_mistakes_in_a_comparison_leave_nothing(
    monkeypatch, capsys, tmp_path: Path, recipe: Path, arguments: tuple, message: str
) -> None:
    assert superweights(monkeypatch, "compare", recipe, "--out", tmp_path / "both", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "both").exists()


def test_a_variant_is_explained_by_an_example(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert superweights(monkeypatch, "compare", "--help") == 0
    assert "--variant 'half: sharing.budget=0.5; training.epochs=20'" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", "80")
    assert superweights(monkeypatch, "plan", "digits", "--json", "--flops-per-second", "1e9") == 2


def test_interrupted_training_is_resumed(monkeypatch, capsys, tmp_path: Path, recipe: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    from superweight_ensembles.training import Checkpoints

    save = Checkpoints.save

    def save_and_interrupt(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        assert superweights(monkeypatch, "train", recipe, "--out", run) == 130
    assert "--resume" in " ".join(capsys.readouterr().err.split())
    assert superweights(monkeypatch, "evaluate", run) == 2
    assert "is not trained to its end" in capsys.readouterr().err
    assert superweights(monkeypatch, "train", recipe, "--out", run, "--resume") == 0
    assert superweights(monkeypatch, "train", recipe, "--out", whole) == 0
    for arm in ("shared", "independent"):
        tensors = [(folder / arm / "ensemble" / "model.safetensors").read_bytes() for folder in (run, whole)]
        assert tensors[0] == tensors[1]


def test_a_run_holds_to_its_data_between_arms(monkeypatch, capsys, caplog, tmp_path: Path) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    for index in range(48):
        path = images / ("cat", "dog", "emu", "fox")[index % 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * index, 0, 0)).save(path)
    recipe, data = tmp_path / "tiny.yaml", {"name": "image_folder", "folder": str(images)}
    recipe.write_text(yaml.safe_dump({**TINY, "data": data, "training": {**TINY["training"], "batch_size": 8}}))
    arguments = ["train", recipe, "--out", run, "--set", "training.epochs=1"]
    assert superweights(monkeypatch, *arguments) == 0
    shutil.rmtree(run / "independent")  # as if the run had ended before it began
    Image.new("RGB", (8, 8), (0, 255, 0)).save(images / "cat" / "4.png")
    capsys.readouterr()
    assert superweights(monkeypatch, *arguments, "--resume") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"the data are not those of {run}; what differs: " in told
    assert f"not seen before: {images / 'cat' / '4.png'}" in told
    Image.new("RGB", (8, 8), (20, 0, 0)).save(images / "cat" / "4.png")
    assert superweights(monkeypatch, *arguments, "--resume") == 0
    Image.new("RGB", (8, 8), (0, 255, 0)).save(images / "dog" / "5.png")
    assert superweights(monkeypatch, "evaluate", run) == 0
    told = f"images (such as {images / 'dog' / '5.png'}) are not those that {run} was trained with"
    assert told in caplog.text and "put them back" not in caplog.text
    (images / "cat").rename(images / "yak")
    assert superweights(monkeypatch, "evaluate", run) == 2
    assert "what differs: classes" in " ".join(capsys.readouterr().err.split())
    (images / "yak").rename(images / "cat")
    (images / "cat" / "0.png").unlink()
    assert superweights(monkeypatch, "evaluate", run) == 2
    assert "images (" in capsys.readouterr().err


def test_what_was_trained_on_is_not_evaluated(monkeypatch, capsys, tmp_path: Path) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    for index in range(48):
        path = images / ("train", "test")[index % 2] / ("cat", "dog")[index // 2 % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * index, 0, 0)).save(path)
    data = {"name": "image_folder", "folder": str(images), "validation_fraction": 0.0}
    recipe, training = tmp_path / "tiny.yaml", {**TINY["training"], "batch_size": 8, "epochs": 1}
    recipe.write_text(yaml.safe_dump({**TINY, "data": data, "training": training, "baseline": "none"}))
    assert superweights(monkeypatch, "train", recipe, "--out", run) == 0
    images.rename(tmp_path / "moved")
    assert superweights(monkeypatch, "train", recipe, "--out", run, "--set", "data.folder=elsewhere", "--resume") == 2
    moved = ["--set", f"data.folder={tmp_path / 'moved'}", "--set", "data.memory_limit_mb=100"]
    assert superweights(monkeypatch, "train", recipe, "--out", run, *moved, "--resume") == 0
    assert superweights(monkeypatch, "evaluate", run) == 0
    (tmp_path / "moved" / "train").rename(tmp_path / "train")
    (tmp_path / "moved" / "test").rename(tmp_path / "moved" / "train")
    (tmp_path / "train").rename(tmp_path / "moved" / "test")
    capsys.readouterr()
    assert superweights(monkeypatch, "evaluate", run) == 2
    assert f"the data are not those of {run}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(monkeypatch, capsys, tmp_path: Path, recipe: Path, number, code) -> None:
    from superweight_ensembles.training import TrainStep

    run, call, steps = tmp_path / "run", TrainStep.__call__, []

    def step(self, *arguments) -> int:
        steps.append(call(self, *arguments))
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return steps[-1]

    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "__call__", step)
            assert superweights(monkeypatch, "train", recipe, "--out", run) == code
        told = " ".join(capsys.readouterr().err.split())
        assert f"stopped by {number.name} after step 2 of epoch 1, which is saved in {run / 'shared'}; go on:" in told
        assert f"superweights train {run / 'recipe.yaml'} --out {run} --resume" in told
        assert superweights(monkeypatch, "train", run / "recipe.yaml", "--out", run, "--resume") == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_changes_no_number_may_differ_when_a_run_goes_on(
    monkeypatch, capsys, tmp_path: Path, recipe: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["train", recipe, "--out", run, "--set", "baseline=none", "--set", "training.epochs=1"]
    assert superweights(monkeypatch, *arguments) == 0
    other = ["--set", "training.skip_non_finite=3", "--set", "training.micro_batches=auto"]
    assert superweights(monkeypatch, *arguments, "--resume", *other) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["skip_non_finite"] == 3
    assert superweights(monkeypatch, *arguments, "--resume", "--set", "training.momentum=0.5") == 2
    assert "resume with the same, but for training.checkpoint_steps, compile" in capsys.readouterr().err


def test_a_failing_baseline_leaves_the_trained_ensemble(monkeypatch, capsys, tmp_path: Path, recipe: Path) -> None:
    from superweight_ensembles.experiment import run_folder as runs

    run, train, arms = tmp_path / "run", runs.train, []

    def fail_second(*arguments, **options):
        arms.append(options["out"].name)
        if len(arms) == 2:
            raise swe.SuperWeightError("the training loss of member 'a' is nan")
        return train(*arguments, **options)

    monkeypatch.setattr(runs, "train", fail_second)
    assert superweights(monkeypatch, "train", recipe, "--out", run) == 2
    assert arms == ["shared", "independent"]
    assert "is nan" in capsys.readouterr().err
    assert swe.SuperWeightEnsemble.load(run / "shared" / "ensemble").member_names == ("a", "b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key 'epoch': did you mean 'epochs'"),
        ("sharing.budget=0.001", "is below the minimum of this sharing"),
        ("sharing.budget=83.0", "write 0.83 for 83 %"),
        ("members.0.model=timm/resnet81", "did you mean 'timm/resnet18'"),
        ("data.name=digit", "did you mean 'digits'"),
        ("training.batch_size=512", "fewer than batch_size 512"),
        ("training.cutout=50", "cutout"),
        ("members.0.num_classes=3", "must not set num_classes"),
        ("sharing.budget=83", "write 0.83 for 83 %"),
        ("sharing.budget=1", "write 1.0 for as many"),
        ("sharing.budget=true", "must be an int (parameters) or a float"),
        ("sharing.budget=1000000.0", "write 1000000"),
        ("seed=-1", "seed"),
        ("sharing.exclude=['*']", "no weight is left to share"),
        ("sharing.clusters=depth_bin", "did you mean 'depth_bins'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    monkeypatch, capsys, tmp_path: Path, recipe: Path, override: str, message: str
) -> None:
    run = tmp_path / "run"
    assert superweights(monkeypatch, "train", recipe, "--out", run, "--set", override) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.strip()]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_plan_prints_the_table_or_json(monkeypatch, capsys, recipe: Path) -> None:
    assert superweights(monkeypatch, "plan", recipe) == 0
    table = capsys.readouterr().out
    assert "conv2d 3x3 bin 1/" in table and "every trainable scalar" in table
    assert superweights(monkeypatch, "plan", recipe, "--json") == 0
    assert swe.SharingPlan.from_json(capsys.readouterr().out).member_names == ("a", "b")


def test_plan_refuses_folders_of_the_recipe_that_are_not_there(monkeypatch, capsys, recipe: Path) -> None:
    start = ("--set", "sharing.init=svd", "--set", "sharing.init_from=missing/start")
    teacher = ("--set", "distillation.weight=0.5", "--set", "distillation.teacher=missing/teacher")
    assert superweights(monkeypatch, "plan", recipe, *teacher) == 2
    assert "distillation.teacher: missing/teacher is no folder" in capsys.readouterr().err
    assert superweights(monkeypatch, "plan", recipe, *start) == 2
    assert "sharing.init: no start from missing/start" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "compare", "plot", "report", "export"])
def test_an_option_is_no_path_to_write_to(monkeypatch, capsys, tmp_path: Path, recipe: Path, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert superweights(monkeypatch, verb, recipe, "--out", "--resume") == 2
    assert "error: --out --resume: a path is missing after --out" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


@pytest.mark.parametrize(("verb", "heard"), [("train", True), ("compare", True), ("evaluate", False), ("plan", False)])
def test_sigterm_is_heard_where_there_is_something_to_go_on_with(monkeypatch, tmp_path: Path, verb, heard) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert superweights(monkeypatch, verb, tmp_path / "missing") == 2
        handler = signal.getsignal(signal.SIGTERM)
        assert handler is (stop_now if heard else signal.SIG_DFL)
        if heard:
            with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the next one ends the process
    finally:
        signal.signal(signal.SIGTERM, before)


def test_help_and_usage(monkeypatch, capsys, tmp_path: Path) -> None:
    for verb in ("train", "evaluate", "plot", "plan"):
        assert superweights(monkeypatch, verb, "--help") == 0
        assert verb in capsys.readouterr().out
    assert superweights(monkeypatch, "trian") == 2
    assert superweights(monkeypatch, "evaluate", tmp_path) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert superweights(monkeypatch, "plot", tmp_path) == 2


def test_a_plan_says_that_a_search_follows(monkeypatch, capsys) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    assert superweights(monkeypatch, "plan", recipes / "digits-search.yaml") == 0
    assert "a search (gradient) splits these clusters after 3 epochs of training" in capsys.readouterr().out
    assert superweights(monkeypatch, "plan", recipes / "digits.yaml") == 0
    assert "a search" not in capsys.readouterr().out


def test_names_are_listed_with_what_they_are(monkeypatch, capsys) -> None:
    assert superweights(monkeypatch, "list", "recipes", "digits*", "--json") == 0
    listed = {one["name"]: one["about"] for one in json.loads(capsys.readouterr().out)}
    assert listed.keys() == {"digits", "digits-search"}
    assert listed["digits"].startswith("Four small WideResNets on the digits images")
    for what, pattern, line in (
        ("models", "timm/resnet1*", "timm/resnet18"),
        ("optimizers", "*", "sgd"),
        ("schedules", "one*", "one_cycle"),
        ("transforms", "Rand*", "RandAugment"),
    ):
        assert superweights(monkeypatch, "list", what, pattern) == 0
        assert line in capsys.readouterr().out.splitlines()
    assert superweights(monkeypatch, "list", "datasets") == 0
    assert "downloaded where absent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "No such command 'trian'. Did you mean 'train'?"),
        (("train", "digits", "--outt", "x"), "No such option: --outt. Did you mean --out?"),
        (("train", "digits", "-q"), "-q goes before train: superweights -q train ..."),
        (("train",), "Missing argument 'RECIPE'."),
        (("compare", "digits", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("--quiet", "--verbose", "plan", "digits"), "--quiet and --verbose ask for less and for more"),
        (("list", "recpies"), "unknown list 'recpies': did you mean 'recipes'?"),
        (("list", "recipes", "digit"), "unknown name among recipes 'digit': did you mean 'digits'?"),
        (("new", "a.yaml", "--model", "mlp"), "--data NAME is missing, and nobody can be asked outside a terminal"),
        (("new", "a.yaml", "--data", "digits"), "--model MODEL is missing"),
        (("new", "a.yaml", "--data", "digits", "--model", "timm/resnet81"), "did you mean 'timm/resnet18'"),
        (("new", "a.yaml", "--data", "digits,fold=x", "--model", "timm/resnet18"), "unknown option of digits 'fold'"),
    ],
)
def test_usage_mistakes_are_one_line(monkeypatch, capsys, tmp_path: Path, arguments: tuple, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert superweights(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_new_recipe_says_what_its_keys_mean(monkeypatch, capsys, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    models = [f"--model=wide_resnet,depth=10,width={width}" for width in (1, 1, 0.5)]
    arguments = ("new", out, "--data", "digits,validation_fraction=0.2", *models, "--teaching", "others")
    assert superweights(monkeypatch, *arguments, "--epochs", 3) == 0
    recipe = swe.experiment.load_recipe(out)
    assert [member.name for member in recipe.members] == [
        "wide_resnet-10-1",
        "wide_resnet-10-1-no2",
        "wide_resnet-10-0_5",
    ]
    assert recipe.sharing.budget == 0.83 and recipe.training.epochs == 3 and recipe.teaching.teacher == "others"
    assert recipe.data.options == {"validation_fraction": 0.2}
    text = out.read_text()
    about = swe.experiment.recipe_schema()["$defs"]["TrainConfig"]["properties"]["epochs"]["description"]
    assert f"  # {about} Default: 30.\n  epochs: 3\n" in text
    line = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=file://")
    assert json.loads(Path(line).read_text()) == swe.experiment.recipe_schema()
    assert superweights(monkeypatch, *arguments) == 2
    assert "exists already: --overwrite replaces it" in " ".join(capsys.readouterr().err.split())
    assert superweights(monkeypatch, *arguments, "--overwrite") == 0


def test_a_new_recipe_asks_in_a_terminal(monkeypatch, capsys, tmp_path: Path) -> None:
    answers = iter(["digits", "wide_resnet,depth=10,width=1", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *question, **options: next(answers))
    assert superweights(monkeypatch, "new", tmp_path / "asked.yaml") == 0
    assert len(swe.experiment.load_recipe(tmp_path / "asked.yaml").members) == 1


def test_the_version_and_completion_need_no_run(monkeypatch, capsys, tmp_path: Path) -> None:
    from superweight_ensembles.__main__ import _complete_recipe

    assert superweights(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("superweights 0.")
    (tmp_path / "digits-mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert _complete_recipe("digits") == ["digits", "digits-search", "digits-mine.yaml"]
    assert superweights(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    assert "--install-completion" in told and "<bool>" not in told and "--no-" not in told
