"""The command line from recipe to figures, in this process; exit codes; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from command_line import superweights
from PIL import Image
from run_cases import tensors_of, wide_resnets

import superweight_ensembles as swe
from superweight_ensembles.__main__ import _complete_recipe
from superweight_ensembles.errors import stop_now
from superweight_ensembles.experiment import run_folder as runs
from superweight_ensembles.training import Checkpoints, TrainStep

TINY = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 64},
    "members": wide_resnets(a=(10, 1), b=(16, 1)),
    "sharing": {"budget": 0.9},
    "training": {"epochs": 2, "batch_size": 32, "precision": "float32", "device": "cpu"},
}


class Said(NamedTuple):
    """What was printed; the errors also without line breaks."""

    out: str
    err: str
    told: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line in this process, where it must end with a code: ``cli(2, "plot", folder)``."""

    def call(code: int, *arguments: object) -> Said:
        capsys.readouterr()
        assert superweights(monkeypatch, *arguments) == code
        out, err = capsys.readouterr()
        return Said(out, err, " ".join(err.split()))

    return call


def written(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path / "tiny.yaml")


def write_picture(path: Path, red: int, green: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, green, 0)).save(path)


def test_train_evaluate_plot(cli, tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    printed = "".join(cli(0, *call).out for call in (("train", recipe, "--out", run), ("evaluate", run), ("plot", run)))
    told = json.loads(cli(0, "evaluate", run, "--json").out)
    results = json.loads((run / "results.json").read_text())
    assert told["arms"] == results["arms"]
    assert cli(0, "--quiet", "plot", run)[:2] == ("", "")
    shown = swe.results(run)._repr_html_()
    assert shown.count("<tr>") == 7 and "<td>in the bank</td>" in shown and "64 test images of synthetic" in shown
    assert "ensemble" in printed and "independent" in printed and str(run / "figures") in printed
    shared, independent = results["arms"]
    assert (shared["name"], independent["name"]) == ("shared", "independent")
    assert shared["num_parameters"] <= 0.9 * independent["num_parameters"]
    assert independent["num_parameters"] == shared["independent_parameters"]
    assert len(shared["subsets"]) == 3 and len(shared["history"]) == 2
    assert results["provenance"]["packages"]["torch"]
    assert len(list((run / "figures").glob("*.png"))) == 6
    cli(0, "plot", run, "--out", tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*.png"))) == 6
    cli(0, "plot", run, run, "--out", tmp_path / "both")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"compare_flops.png", "compare_parameters.png"}
    ensemble = swe.SuperWeightEnsemble.load(run / "shared" / "ensemble")
    assert ensemble.num_parameters == shared["num_parameters"]
    assert swe.SharingPlan.from_json((run / "plan.json").read_text()) == ensemble.plan
    assert not (run / "shared" / "checkpoint").exists()
    # The baseline starts from the members that the recipe's seed draws: same data, epochs and seed.
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["epochs"] == 2


def test_existing_runs_are_kept_resumed_or_replaced(cli, tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", recipe, "--out", run, "--set", "baseline=none", "--set", "training.epochs=1"]

    def written_at() -> int:
        return (run / "shared" / "ensemble" / "model.safetensors").stat().st_mtime_ns

    cli(0, *arguments)
    trained = written_at()
    assert "exists already: --resume goes on, --overwrite begins anew" in cli(2, *arguments).err
    cli(0, *arguments, "--resume")  # nothing is left to do
    assert written_at() == trained
    told = cli(2, *arguments, "--resume", "--set", "seed=1").err
    assert "begun with another recipe or other overrides (seed was 0, now 1)" in told
    cli(2, *arguments, "--overwrite", "--resume")
    cli(0, *arguments, "--overwrite")
    assert written_at() != trained
    (run / "thesis.txt").write_text("years of work")
    assert "also holds thesis.txt, which is no part of a run" in cli(2, *arguments, "--overwrite").err
    keep = tmp_path / "photos"
    keep.mkdir()
    assert "is no run folder" in cli(2, "train", recipe, "--out", keep, "--overwrite").err and keep.is_dir()
    # what changes no number may differ
    other = ["--set", "training.skip_non_finite=3", "--set", "training.micro_batches=auto"]
    (run / "thesis.txt").unlink()
    cli(0, *arguments, "--resume", *other)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["skip_non_finite"] == 3
    told = cli(2, *arguments, "--resume", "--set", "training.momentum=0.5").err
    assert "resume with the same, but for training.checkpoint_steps, compile" in told


def test_a_run_that_is_not_there_is_not_resumed_in_silence(cli, caplog, tmp_path: Path, recipe: Path) -> None:
    arguments = ["train", recipe, "--set", "baseline=none", "--set", "training.epochs=1", "--resume", "--out"]
    compared = ["compare", recipe, "--set", "training.epochs=1", "--seeds", 1, "--resume", "--out", tmp_path / "both"]
    for call, messages in (
        ((*arguments, tmp_path / "run"), [f"nothing to resume in {tmp_path / 'run'}: training from the start"]),
        ((*arguments, tmp_path / "run"), []),
        ((*compared, "--against", "single"), [f"nothing to resume in {tmp_path / 'both'}: comparing from the start"]),
        (
            (*compared, "--against", "independent"),
            [f"{tmp_path / 'both'}: left out now, though compared before: single"],
        ),
    ):
        caplog.clear()
        cli(0, *call)
        assert caplog.messages == messages
    assert "both is a comparison: superweights plot draws it" in cli(2, "evaluate", tmp_path / "both").err


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
        (("--variant", "a b: seed=1", "--variant", "a-b: seed=2"), "two arms would share the folder a-b"),
        (("--variant", "..: seed=1"), "a variant is NAME: key.path=value"),
        (("--variant", "a: training.cutout=50"), "arm 'a': training: cutout of 50 pixels"),
        (("--set-for", "independent:training.crop_padding=9"), "arm 'independent': training: crop_padding of 9 pixels"),
    ],
)
def test_mistakes_in_a_comparison_leave_nothing(
    cli, tmp_path: Path, recipe: Path, arguments: tuple, message: str
) -> None:
    assert message in cli(2, "compare", recipe, "--out", tmp_path / "both", *arguments).told
    assert not (tmp_path / "both").exists()


def test_a_variant_is_explained_by_an_example(monkeypatch, cli) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(cli(0, "compare", "--help").out.split())
    assert "--variant 'half: sharing.budget=0.5; training.epochs=20'" in told
    monkeypatch.setenv("COLUMNS", "80")
    cli(2, "plan", "digits", "--json", "--flops-per-second", "1e9")


def test_interrupted_training_is_resumed(monkeypatch, cli, tmp_path: Path, recipe: Path) -> None:
    run, whole, save = tmp_path / "run", tmp_path / "whole", Checkpoints.save

    def save_and_interrupt(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        assert "--resume" in cli(130, "train", recipe, "--out", run).told
    assert "is not trained to its end" in cli(2, "evaluate", run).err
    cli(0, "train", recipe, "--out", run, "--resume")
    cli(0, "train", recipe, "--out", whole)
    for arm in ("shared", "independent"):
        assert tensors_of(run / arm / "ensemble") == tensors_of(whole / arm / "ensemble")


def test_a_run_holds_to_its_data_between_arms(cli, caplog, tmp_path: Path) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    for index in range(48):
        write_picture(images / ("cat", "dog", "emu", "fox")[index % 4] / f"{index}.png", 5 * index)
    data = {"name": "image_folder", "folder": str(images)}
    recipe = written(tmp_path / "tiny.yaml", data=data, training={**TINY["training"], "batch_size": 8})
    arguments = ["train", recipe, "--out", run, "--set", "training.epochs=1"]
    cli(0, *arguments)
    shutil.rmtree(run / "independent")  # as if the run had ended before it began
    write_picture(images / "cat" / "4.png", 0, 255)
    told = cli(2, *arguments, "--resume").told
    assert f"the data are not those of {run}; what differs: " in told
    assert f"not seen before: {images / 'cat' / '4.png'}" in told
    write_picture(images / "cat" / "4.png", 20)
    cli(0, *arguments, "--resume")
    write_picture(images / "dog" / "5.png", 0, 255)
    cli(0, "evaluate", run)
    told = f"images (such as {images / 'dog' / '5.png'}) are not those that {run} was trained with"
    assert told in caplog.text and "put them back" not in caplog.text
    (images / "cat").rename(images / "yak")
    assert "what differs: classes" in cli(2, "evaluate", run).told
    (images / "yak").rename(images / "cat")
    (images / "cat" / "0.png").unlink()
    assert "images (" in cli(2, "evaluate", run).err


def test_what_was_trained_on_is_not_evaluated(cli, tmp_path: Path) -> None:
    run, images, moved = tmp_path / "run", tmp_path / "images", tmp_path / "moved"
    for index in range(48):
        kind = ("cat", "dog")[index // 2 % 2]
        write_picture(images / ("train", "test")[index % 2] / kind / f"{index}.png", 5 * index)
    data = {"name": "image_folder", "folder": str(images), "validation_fraction": 0.0}
    training = {**TINY["training"], "batch_size": 8, "epochs": 1}
    recipe = written(tmp_path / "tiny.yaml", data=data, training=training, baseline="none")
    arguments = ("train", recipe, "--out", run)
    cli(0, *arguments)
    images.rename(moved)
    cli(2, *arguments, "--set", "data.folder=elsewhere", "--resume")
    cli(0, *arguments, "--set", f"data.folder={moved}", "--set", "data.memory_limit_mb=100", "--resume")
    cli(0, "evaluate", run)
    (moved / "train").rename(tmp_path / "train")
    (moved / "test").rename(moved / "train")
    (tmp_path / "train").rename(moved / "test")
    assert f"the data are not those of {run}" in cli(2, "evaluate", run).told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(monkeypatch, cli, tmp_path: Path, recipe: Path, number, code) -> None:
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
            told = cli(code, "train", recipe, "--out", run).told
        assert f"stopped by {number.name} after step 2 of epoch 1, which is saved in {run / 'shared'}; go on:" in told
        assert f"superweights train {run / 'recipe.yaml'} --out {run} --resume" in told
        cli(0, "train", run / "recipe.yaml", "--out", run, "--resume")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_failing_baseline_leaves_the_trained_ensemble(monkeypatch, cli, tmp_path: Path, recipe: Path) -> None:
    run, train, arms = tmp_path / "run", runs.train, []

    def fail_second(*arguments, **options):
        arms.append(options["out"].name)
        if len(arms) == 2:
            raise swe.SuperWeightError("the training loss of member 'a' is nan")
        return train(*arguments, **options)

    monkeypatch.setattr(runs, "train", fail_second)
    assert "is nan" in cli(2, "train", recipe, "--out", run).err
    assert arms == ["shared", "independent"]
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
    cli, tmp_path: Path, recipe: Path, override: str, message: str
) -> None:
    error = cli(2, "train", recipe, "--out", tmp_path / "run", "--set", override).err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.strip()]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_plan_prints_the_table_or_json_and_that_a_search_follows(cli, recipe: Path) -> None:
    untimed = ("plan", recipe, "--flops-per-second", "1e9")
    table = cli(0, *untimed).out
    assert "conv2d 3x3 bin 1/" in table and "every trainable scalar" in table and "a search" not in table
    assert swe.SharingPlan.from_json(cli(0, "plan", recipe, "--json").out).member_names == ("a", "b")
    told = cli(0, *untimed, "--set", "sharing.search=gradient", "--set", "sharing.search_epochs=3").out
    assert "a search (gradient) splits these clusters after 3 epochs of training" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("distillation.weight=0.5", "distillation.teacher=missing/teacher"),
            "distillation.teacher: missing/teacher is no folder",
        ),
        (("sharing.init=svd", "sharing.init_from=missing/start"), "sharing.init: no start from missing/start"),
    ],
)
def test_plan_refuses_folders_of_the_recipe_that_are_not_there(
    cli, recipe: Path, overrides: tuple, message: str
) -> None:
    assert message in cli(2, "plan", recipe, *(text for one in overrides for text in ("--set", one))).err


@pytest.mark.parametrize("verb", ["train", "compare", "plot", "report", "export"])
def test_an_option_is_no_path_to_write_to(monkeypatch, cli, tmp_path: Path, recipe: Path, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "error: --out --resume: a path is missing after --out" in cli(2, verb, recipe, "--out", "--resume").told
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


def test_help_and_usage(cli, tmp_path: Path) -> None:
    for verb in ("train", "evaluate", "plot", "plan"):
        assert verb in cli(0, verb, "--help").out
    assert "is no run folder" in cli(2, "evaluate", tmp_path).err
    cli(2, "plot", tmp_path)


@pytest.mark.parametrize(
    ("what", "pattern", "line"),
    [
        ("models", "timm/resnet1*", "timm/resnet18"),
        ("optimizers", "*", "sgd"),
        ("schedules", "one*", "one_cycle"),
        ("transforms", "Rand*", "RandAugment"),
    ],
)
def test_names_are_listed(cli, what: str, pattern: str, line: str) -> None:
    assert line in cli(0, "list", what, pattern).out.splitlines()


def test_names_are_listed_with_what_they_are(cli) -> None:
    listed = {one["name"]: one["about"] for one in json.loads(cli(0, "list", "recipes", "digits*", "--json").out)}
    assert listed.keys() == {"digits", "digits-search"}
    assert listed["digits"].startswith("Four small WideResNets on the digits images")
    assert "downloaded where absent" in cli(0, "list", "datasets").out


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
def test_usage_mistakes_are_one_line(monkeypatch, cli, tmp_path: Path, arguments: tuple, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    printed = cli(2, *arguments)
    assert message in printed.err and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_new_recipe_says_what_its_keys_mean(cli, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    models = [f"--model=wide_resnet,depth=10,width={width}" for width in (1, 1, 0.5)]
    arguments = ("new", out, "--data", "digits,validation_fraction=0.2", *models, "--teaching", "others")
    cli(0, *arguments, "--epochs", 3)
    recipe = swe.experiment.load_recipe(out)
    names = [member.name for member in recipe.members]
    assert names == ["wide_resnet-10-1", "wide_resnet-10-1-no2", "wide_resnet-10-0_5"]
    assert recipe.sharing.budget == 0.83 and recipe.training.epochs == 3 and recipe.teaching.teacher == "others"
    assert recipe.data.options == {"validation_fraction": 0.2}
    text = out.read_text()
    about = swe.experiment.recipe_schema()["$defs"]["TrainConfig"]["properties"]["epochs"]["description"]
    assert f"  # {about} Default: 30.\n  epochs: 3\n" in text
    line = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=file://")
    assert json.loads(Path(line).read_text()) == swe.experiment.recipe_schema()
    assert "exists already: --overwrite replaces it" in cli(2, *arguments).told
    cli(0, *arguments, "--overwrite")


def test_a_new_recipe_asks_in_a_terminal(monkeypatch, cli, tmp_path: Path) -> None:
    answers = iter(["digits", "wide_resnet,depth=10,width=1", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *question, **options: next(answers))
    cli(0, "new", tmp_path / "asked.yaml")
    assert len(swe.experiment.load_recipe(tmp_path / "asked.yaml").members) == 1


def test_the_version_and_completion_need_no_run(monkeypatch, cli, tmp_path: Path) -> None:
    assert cli(0, "--version").out.startswith("superweights 0.")
    (tmp_path / "digits-mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert _complete_recipe("digits") == ["digits", "digits-search", "digits-mine.yaml"]
    told = cli(0, "--help").out
    assert "--install-completion" in told and "<bool>" not in told and "--no-" not in told
