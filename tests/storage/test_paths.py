"""What the system says against a path is told with it and a remedy, at every door; nothing half-written stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from command_line import superweights
from fuzz_targets import refused
from tiny_recipe import CONTENT
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe, read_comparison, read_results, read_run, train_run
from superweight_ensembles.export import OnnxCascade, export_cascade, export_member, load_member
from superweight_ensembles.report import figures, write_report
from superweight_ensembles.storage import accessing, read_tensors, write_json

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"
SHAPE = (3, 2, 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 400), nn.Linear(400, 4))


def ensemble() -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble({"a": network()}, budget=1.0)


def policy() -> swe.anytime.ExitPolicy:
    return swe.anytime.ExitPolicy(order=("a",), temperatures=(1.0,), thresholds=())


def report(place: Path) -> None:
    run = next(folder for folder in place.parents if folder.is_dir()) / "run"
    if not run.exists():
        shutil.copytree(COMMITTED, run)
    write_report(run, place.with_name(f"{place.name}.html"))


def train(place: Path) -> None:
    data = [(torch.randn(4, *SHAPE), torch.randint(4, (4,)))]
    swe.train(ensemble(), data, swe.TrainConfig(epochs=1), out=place)


WRITES: dict[str, Callable[[Path], object]] = {
    "torch-export": lambda to: export_member(network(), to / "a.pt2", format="torch-export", input_shape=SHAPE),
    "onnx": lambda to: export_member(network(), to / "a.onnx", format="onnx", input_shape=SHAPE),
    "state-dict": lambda to: export_member(network(), to / "a.safetensors", format="state-dict", input_shape=SHAPE),
    "cascade": lambda to: export_cascade({"a": network()}, policy(), to, input_shape=SHAPE),
    "save": lambda to: ensemble().save(to),
    "save_pretrained": lambda to: ensemble().save_pretrained(to),
    "figures": lambda to: figures.save_figures({"one": figures.style.new_figure(1, 1)}, to),
    "report": report,
    "train": train,
}
READS: dict[str, Callable[[Path], object]] = {
    "load": swe.SuperWeightEnsemble.load,
    "from_pretrained": swe.SuperWeightEnsemble.from_pretrained,
    "predictor": swe.AnytimePredictor.load,
    "load_member": load_member,
    "recipe": load_recipe,
    "run": read_run,
    "results": read_results,
    "comparison": read_comparison,
    "report": write_report,
    "cascade": OnnxCascade,
}


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b", "file/below"], ids=["long", "null", "below a file"])
@pytest.mark.parametrize("door", [*(f"write {one}" for one in WRITES), *(f"read {one}" for one in READS)])
def test_names_that_the_system_does_not_take(tmp_path: Path, door: str, name: str) -> None:
    (tmp_path / "file").write_text("")
    verb, _, of = door.partition(" ")
    act = (WRITES if verb == "write" else READS)[of]
    kind = ValueError if door == "read cascade" else swe.SuperWeightError  # its file needs nothing of this library
    with pytest.raises(kind) as caught:
        act(tmp_path / name)
    assert type(caught.value) is ValueError or isinstance(caught.value, swe.SuperWeightError)
    assert str(tmp_path) in str(caught.value)
    if name.startswith("n") and door != "read cascade":
        assert str(caught.value).endswith(("File name too long; give a shorter name", "a file in its folder"))


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("door", WRITES)
def test_a_file_that_cannot_grow(tmp_path: Path, door: str) -> None:
    """A limit of the system stands for a full disk: whatever writes, in whichever language, gets its error."""
    if door == "report":  # whose figures are there
        report(tmp_path / "before")
    match = r"made.* cannot be written.*: File too large; .*give another place"
    with files_of_at_most(600 if door == "figures" else 1000), pytest.raises(swe.SuperWeightError, match=match):
        WRITES[door](tmp_path / "made")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and "run" not in path.parts]
    assert set(left) <= {".lock", "before.html"}


@pytest.mark.parametrize("door", [door for door in WRITES if door not in ("train", "report", "onnx")])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(swe.SuperWeightError, match=r"made.* cannot be written: No space left on device; free space"):
        WRITES[door](tmp_path / "made")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_cannot_be_written_is_not_said_of_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(COMMITTED, tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(swe.SuperWeightError, match="cannot be written: No space left on device") as raised:
        write_report(tmp_path / "run", tmp_path / "page.html")
    assert "results.json" not in str(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_what_is_written_to_an_open_file_has_its_name() -> None:
    match, full = "x cannot be read: No space left on device; free space there", Path("/dev/full")
    with pytest.raises(swe.SuperWeightError, match=match), accessing(Path("x"), "read"), full.open("w") as file:
        file.write("a")


REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EACCES: "change its permissions",
    errno.EROFS: "give a place that can be written to",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise ulimit -n",
    errno.EBUSY: "give another path",
}


@pytest.mark.parametrize("number", REMEDIES)
def test_remedies(tmp_path: Path, number: int) -> None:
    message = rf"a\.json cannot be written: {os.strerror(number)}; .*{REMEDIES[number]}"
    with pytest.raises(swe.SuperWeightError, match=message), accessing(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number), "elsewhere")
    with pytest.raises(swe.SuperWeightError, match="elsewhere cannot be written"), accessing():
        raise OSError(number, os.strerror(number), "elsewhere")


def test_what_is_said_of_a_path_alone_is_told() -> None:
    with pytest.raises(ValueError, match="no path at all") as caught, accessing(Path("x")):
        raise ValueError("no path at all")
    assert not isinstance(caught.value, swe.SuperWeightError)
    with pytest.raises(swe.SuperWeightError, match=r"x cannot be written: .*surrogates"), accessing(Path("x")):
        os.stat("\udcff\ud800")


def test_a_folder_where_a_file_must_be(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(swe.SuperWeightError, match=r"a\.json cannot be written: Is a directory; it is a folder"):
        write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("arguments", [("evaluate",), ("plot",), ("report",), ("export", "--cascade"), ("plan",)])
def test_the_command_line_says_it_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert superweights(monkeypatch, arguments[0], "n" * 5000, *arguments[1:]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said and said.endswith("File name too long; give a shorter name")


def test_a_run_that_is_evaluated_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**CONTENT, "baseline": "none"}))
    train_run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    with files_of_at_most(100):
        assert superweights(monkeypatch, "evaluate", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said and "cannot be written: File too large" in said and str(tmp_path / "run") in said
    assert not (tmp_path / "run" / "results.json").exists()


def test_pipes_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with refused("a.yaml"), pytest.raises(swe.SuperWeightError, match=r"a\.yaml is no regular file"):
        load_recipe(tmp_path / "a.yaml")
    os.mkfifo(tmp_path / "a.safetensors")
    with refused("a.safetensors"), pytest.raises(swe.SuperWeightError, match="is no regular file"):
        read_tensors(tmp_path / "a.safetensors", {})
