"""The one command for a GPU, rehearsed on the CPU, and how its parts end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import on_gpu
import pytest
from on_gpu import PARTS, Call, Part, run_part


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_rehearsed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "compile" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        pytest.skip("torch.compile needs a C++ compiler")
    command = ["on_gpu.py", "--out", str(tmp_path / "out"), "--rehearse", "--part", name]
    monkeypatch.setattr(sys, "argv", command)
    on_gpu.main()
    found = json.loads((tmp_path / "out" / "on_gpu.json").read_text())
    part = found["parts"][name]
    assert (part["ended"], found["rehearsed"]) == ("well", True), part
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"on_gpu.json"} | ({f"{name}.json"} if name not in ("tests", "processes") else set())


def call(folder: Path) -> Call:
    return Call(device="cpu", small=False, out=folder / "part.json", work=folder, images=None)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_part_that_fails_or_takes_too_long_is_noted(tmp_path: Path) -> None:
    failing = Part(seconds=30, commands=lambda _: [python("print('here'); 1 / 0"), python("print('never')")])
    found = run_part("failing", failing, call(tmp_path), 60)
    assert found["ended"] == "failed" and found["said"][0] == "here" and "ZeroDivisionError" in found["said"][-1]
    slow = Part(seconds=6, commands=lambda _: [python("import time; print('begun', flush=True); time.sleep(60)")])
    found = run_part("slow", slow, call(tmp_path), 60)
    assert (found["ended"], found["said"]) == ("late", ["begun"]) and found["seconds"] < 30
    endless = Part(seconds=6, commands=slow.commands, stopped=True, read=lambda _: {"read": 1})
    assert run_part("endless", endless, call(tmp_path), 60)["ended"] == "well"
    assert json.loads((tmp_path / "part.json").read_text())["read"] == 1
    unread = Part(seconds=30, commands=lambda _: [python("")], read=lambda _: {"read": [][0]})
    found = run_part("unread", unread, call(tmp_path), 60)
    assert (found["ended"], found["said"][-1]) == ("failed", "IndexError: list index out of range")


def test_a_part_without_its_packages_or_time_is_passed_over(tmp_path: Path) -> None:
    part = Part(seconds=30, commands=lambda _: [python("raise SystemExit(3)")], needs=("no_such_package",))
    found = run_part("part", part, call(tmp_path), 60)
    assert (found["ended"], found["why"]) == ("passed over", "no_such_package cannot be imported")
    late = Part(seconds=30, commands=part.commands)
    assert run_part("part", late, call(tmp_path), 2)["why"] == "no time is left"


def test_images_of_a_zip_become_the_recipes_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "zip" / "images" / split / name).mkdir(parents=True)
            (tmp_path / "zip" / "images" / split / name / "1.txt").write_text("a picture")
    file = Path(shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "zip"))
    folder = on_gpu.unzipped(file, tmp_path / "unzipped")
    assert folder == tmp_path / "unzipped" / "images"
    given = Call(device="cuda", small=False, out=tmp_path, work=tmp_path, images=folder).data(10, 100)
    assert given == ["--set", f"data={{name: image_folder, folder: '{folder}', num_classes: 2}}"]
    assert "synthetic" in Call(device="cuda", small=False, out=tmp_path, work=tmp_path, images=None).data(10, 100)[1]
