"""What the command line does, from Python: runs, their results, and predictions of image files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_cases import refused, wide_resnets

import superweight_ensembles as swe
from superweight_ensembles.__main__ import main
from superweight_ensembles.data import Preprocessing
from superweight_ensembles.experiment import parse_recipe, predict_files
from superweight_ensembles.export import export_member

MEMBERS = wide_resnets(a=(10, 1), b=(10, 2))
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_train": 64, "num_test": 32},
    "members": MEMBERS,
    "sharing": {"budget": 0.9},
    "training": {"epochs": 1, "batch_size": 16, "device": "cpu", "num_threads": 1},
    "baseline": "none",
}
READING: dict[str, Any] = {"image_size": 16, "pool": 2, "validation_fraction": 0.6}
CLASSES = ("blue", "green", "red")


def picture(kind: str, seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 60, (*size, 3), dtype=np.uint8)
    pixels[..., ("red", "green", "blue").index(kind)] += 150
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 60), ("test", 12)):
        for kind in CLASSES:
            (root / split / kind).mkdir(parents=True)
            for seed in range(count):
                size = (20 + seed % 5, 16 + seed % 7)
                ending = ("png", "jpg")[seed % 2]
                picture(kind, 1000 * len(split) + seed, size).save(root / split / kind / f"{seed:02}.{ending}")
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {
        **TINY,
        "data": {"name": "image_folder", "folder": str(folder), **READING},
        "training": {**TINY["training"], "epochs": 4, "learning_rate": 0.05},
        "anytime": {"flops": 0.6, "num_points": 2, "timed_images": 8},
    }
    out = tmp_path_factory.mktemp("run") / "run"
    swe.run(content, out=out)
    return out


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_a_run_is_trained_evaluated_and_read_again(tmp_path: Path) -> None:
    found = swe.run(TINY, out=str(tmp_path / "run"), overrides={"training.epochs": 2, "sharing": {"budget": 1.0}})
    again = swe.results(str(tmp_path / "run"))
    assert again == swe.results(tmp_path / "run") and again.arms == found.arms
    assert len(found.arms[0].history) == 2 and found.recipe["sharing"]["budget"] == 1.0
    assert TINY["training"]["epochs"] == 1  # what was given stays
    rows = found.to_rows()
    assert [(row["kind"], row["members"]) for row in rows] == [("member", "a"), ("member", "b"), ("ensemble", "a+b")]
    assert rows[2]["accuracy"] == found.arms[0].ensemble.metrics.accuracy
    with refused("exists already"):
        swe.run(TINY, out=tmp_path / "run")
    assert swe.run(TINY, out=tmp_path / "run", overwrite=True).arms[0].history[-1].epoch == 1


def test_a_recipe_is_a_file_a_name_a_mapping_or_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(parse_recipe(TINY).to_yaml())
    for index, recipe in enumerate((file, str(file), parse_recipe(TINY))):
        assert swe.run(recipe, out=tmp_path / f"run{index}").name == "tiny"
    quick = {"training.epochs": 1, "data": {"name": "synthetic", "shape": [1, 8, 8], "num_classes": 10}}
    assert swe.run("digits", out=tmp_path / "digits", overrides={**quick, "baseline": "none", "anytime": None}).arms


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("digit", {}, "digits"),
        (TINY, {"training.epoch": 1}, "did you mean 'epochs'"),
        (parse_recipe(TINY), {"seed": 1}, "this is a recipe already"),
        (TINY, {"seed": object()}, "overrides hold plain data"),
        (TINY, ["seed=1"], "overrides are values by key"),
        (None, {}, "a recipe is a file, a name"),
    ],
)
def test_mistakes_are_told(recipe: Any, overrides: Any, message: str, tmp_path: Path) -> None:
    with refused(message):
        swe.run(recipe, out=tmp_path / "a", overrides=overrides)
    assert not (tmp_path / "a").exists()


def test_results_are_of_a_run(tmp_path: Path) -> None:
    with refused("is no run folder"):
        swe.results(tmp_path)
    with refused(r"results\(\) takes a run folder"):
        swe.results(3)


def test_rows_become_a_table_where_pandas_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = swe.run(TINY, out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused("pip install pandas"):
        found.to_pandas()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert found.to_pandas().equals(pandas.DataFrame(found.to_rows()))


def test_a_transform_reads_files_as_the_data_set_does(folder: Path, trained: Path) -> None:
    data = swe.load_data("image_folder", folder=folder, **READING)
    ensemble = swe.SuperWeightEnsemble.load(trained / "shared" / "ensemble")
    transform = swe.transform_of(ensemble)
    assert transform == Preprocessing.of(data) and transform.classes == CLASSES
    files = sorted((folder / "test").rglob("*.*"))
    images = torch.cat([batch for batch, _ in data.loader("test", 16)])
    opened = [Image.open(file) for file in files]
    as_arrays = [np.asarray(one.convert("RGB")) for one in opened]
    as_tensors = [torch.from_numpy(one.copy()).permute(2, 0, 1) for one in as_arrays]
    for given in (files, opened, as_arrays, as_tensors):
        torch.testing.assert_close(transform.batch(given), images, rtol=1e-5, atol=1e-5)


def test_one_channel_and_other_proportions_are_taken() -> None:
    grey = Preprocessing(image_shape=(1, 4, 8), mean=(0.5,), std=(0.5,))
    whole = np.zeros((20, 20, 3), np.uint8)
    whole[5:15] = 255  # the middle half is all that is left
    assert torch.equal(grey(whole)[:, 1:3], torch.ones(1, 2, 8)) and float(grey(whole).min()) > 0.5
    assert grey.batch([]).shape == (0, 1, 4, 8)
    colours = np.zeros((4, 8, 3))
    for given in (np.zeros((4, 8), np.uint8), np.zeros((0, 8, 3), np.uint8), colours, torch.zeros(3, 4, 8), 3):
        with refused("give a file, a picture of Pillow's, or uint8 pixels"):
            grey(given)
    for options in ({"std": (0.0,)}, {"mean": (0.1, 0.2)}, {"image_shape": (1, 4)}, {"pool": 0}):
        with refused(r"mean|image_shape|pool"):
            Preprocessing(**{"image_shape": (1, 4, 8), "mean": (0.5,), "std": (0.5,), **options})


def test_an_ensemble_keeps_what_it_knows(trained: Path, tmp_path: Path) -> None:
    ensemble = swe.SuperWeightEnsemble.load(trained / "shared" / "ensemble")
    swe.ensemble.without_member(ensemble, "a")[0].save(tmp_path / "less")
    assert swe.SuperWeightEnsemble.load(tmp_path / "less").images == ensemble.images
    assert swe.ensemble.reset_classifier(ensemble, 5).images.classes == ()
    config = json.loads((tmp_path / "less" / "config.json").read_text())
    config["images"]["std"] = [0.0, 1.0, 1.0]
    (tmp_path / "less" / "config.json").write_text(json.dumps(config))
    (tmp_path / "less" / "manifest.json").unlink()
    with pytest.raises(swe.SuperWeightError):
        swe.SuperWeightEnsemble.load(tmp_path / "less")
    fresh = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 3)}, budget=1.0)
    with refused("does not know how its images are preprocessed"):
        swe.transform_of(fresh)


def test_files_are_predicted(folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / "test" / "red" / "00.png", folder / "test" / "blue"]
    found = list(predict_files(trained, files, batch_size=5))
    assert len(found) == 13 and found[0].file == str(files[0])
    expected = ["red"] + ["blue"] * 12
    assert sum(one.label == wanted for one, wanted in zip(found, expected)) >= 11
    predictor = swe.AnytimePredictor.load(trained / "shared" / "ensemble")
    answer = predictor(predictor.images.batch([files[0], *sorted(files[1].iterdir())]))
    assert [one.members_used for one in found] == answer.members_used.tolist()
    torch.testing.assert_close(torch.tensor([one.probabilities for one in found]), answer.probabilities)
    command("predict", str(trained), str(files[0]), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["label"] == found[0].label and told["members_used"] == found[0].members_used
    command("predict", str(trained / "shared" / "ensemble"), str(files[1]), "--deadline-ms", "0.0001")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and all(line.endswith("%, 1 member") for line in lines)


def test_what_cannot_be_predicted_is_told(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, told in (("none.png", "none.png is missing"), ("empty", "holds no image file")):
        with refused(told):
            list(predict_files(trained, [tmp_path / name]))


def test_a_file_that_cannot_be_read_costs_no_other(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    good = folder / "test" / "red" / "00.png"
    found = list(predict_files(trained, [tmp_path / "text.png", good]))
    assert "cannot read the image" in found[0].error and found[1] == next(predict_files(trained, [good]))
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(trained), str(tmp_path / "text.png"), str(good)])
    told = capsys.readouterr()
    assert ended.value.code == 2 and "cannot read the image" in told.err and told.out.startswith(str(good))


def test_a_folder_is_read_as_a_class_folder_is(folder: Path, trained: Path, tmp_path: Path) -> None:
    for name in (".hidden.png", "b.pgm", "a.png", "c.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no picture")
        else:
            picture("red", 1, (16, 16)).convert("L").save(tmp_path / name)
    assert [Path(one.file).name for one in predict_files(trained, [tmp_path])] == ["a.png", "b.pgm"]


def exported_cascade(folder: Path) -> Any:
    """An exported cascade, by the module that stands beside it."""
    sys.path.insert(0, str(folder))
    try:
        from onnx_cascade import OnnxCascade
    finally:
        sys.path.pop(0)
        sys.modules.pop("onnx_cascade", None)
    return OnnxCascade(folder)


def test_exports_know_their_images(folder: Path, trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    command("export", str(trained), "--cascade", "--out", str(tmp_path / "cascade"))
    cascade = exported_cascade(tmp_path / "cascade")
    files = sorted((folder / "test").rglob("*.*"))
    ensemble = swe.SuperWeightEnsemble.load(trained / "shared" / "ensemble")
    assert cascade.classes == CLASSES
    np.testing.assert_allclose(cascade.read(*files), ensemble.images.batch(files).numpy(), atol=1e-5)
    answer = cascade(cascade.read(*files))
    expected = list(predict_files(trained, files))
    assert answer.members_used.tolist() == [one.members_used for one in expected]
    with pytest.raises(ValueError, match="cannot read the image"):
        cascade.read(tmp_path / "cascade" / "cascade.json")
    props = {
        one.key: json.loads(one.value) for one in onnx.load(str(tmp_path / "cascade" / "00-a.onnx")).metadata_props
    }
    assert props["images"]["classes"] == list(CLASSES) and props["num_classes"] == 3
    network = ensemble.materialize("a")
    for format, ending in (("torch-export", "pt2"), ("state-dict", "safetensors")):
        path = tmp_path / f"a.{ending}"
        export_member(network, path, format=format, input_shape=(3, 8, 8), images=ensemble.images)
    noted: dict[str, str] = {"notes.json": ""}
    torch.export.load(str(tmp_path / "a.pt2"), extra_files=noted)
    for text in (noted["notes.json"], next(tmp_path.glob("a*.json")).read_text()):
        assert json.loads(text)["images"]["classes"] == list(CLASSES)
    with refused("by their preprocessing"):
        export_member(network, tmp_path / "b.pt2", format="torch-export", input_shape=(3, 9, 9), images=ensemble.images)


def test_a_cascade_without_that_knowledge_takes_arrays_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    policy = swe.anytime.ExitPolicy(order=("a",), temperatures=(1.0,), thresholds=())
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    swe.export_cascade({"a": network}, policy, tmp_path / "cascade", input_shape=(3, 2, 2))
    cascade = exported_cascade(tmp_path / "cascade")
    assert cascade.classes == ()
    with pytest.raises(ValueError, match="exported without images="):
        cascade.read("a.png")
