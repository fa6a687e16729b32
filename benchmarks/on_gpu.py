"""Everything that only a GPU can show, in one call: its tests, what is measured, whether a training starts.

    python benchmarks/on_gpu.py --out FOLDER --minutes 9
    python benchmarks/on_gpu.py --out FOLDER --part step_time --part memory
    python benchmarks/on_gpu.py --out FOLDER --images cifar10.zip     # train/CLASS/*, test/CLASS/* in it
    python benchmarks/on_gpu.py --out FOLDER --rehearse               # every part on the CPU, made small

Parts run one after the other, the most important first, each in processes of its own with a time limit of its own; one
that fails or takes too long is noted, and the next one begins. FOLDER/on_gpu.json says after each part how it ended and
the last of what it said; what it measured is in FOLDER/PART.json. A part whose packages are missing is passed over by
name. Runs from a checkout, with the package on PYTHONPATH or installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superweight_ensembles.storage import provenance, write_json

ROOT = Path(__file__).parents[1]
_TAIL_LINES = 15
_NO_TESTS = 5  # pytest's exit code where there is no GPU to run them on
_GRACE_SECONDS = 20  # for a process that is told to end
_SMALL_MEMBER = "members=[{name: wrn10-1, model: wide_resnet, depth: 10, width: 1}]"
_SMALL_MEMBERS = [
    "--set",
    "members=[{name: a, model: wide_resnet, depth: 10, width: 1}, {name: b, model: wide_resnet, depth: 10, width: 2}]",
]
_MADE_UP = "data={{name: synthetic, num_classes: {}, shape: [3, 32, 32], num_train: {}, num_test: 1024}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a part is to do.

    Attributes:
        device: ``cuda``, or ``cpu`` in a rehearsal.
        small: Whether it is a rehearsal.
        out: The file that it writes its numbers to.
        work: A folder that is thrown away.
        images: A folder of images, or None for images that are made up.
    """

    device: str
    small: bool
    out: Path
    work: Path
    images: Path | None

    def data(self, num_classes: int, num_train: int) -> list[str]:
        """Options of the command line that give a recipe these images."""
        if self.images is None:
            return ["--set", _MADE_UP.format(num_classes, num_train)]
        found = len([path for path in (self.images / "train").iterdir() if path.is_dir()])
        return ["--set", f"data={{name: image_folder, folder: '{self.images}', num_classes: {found}}}"]


Commands = Callable[[Call], list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its time limit in seconds, its commands, what they import, and what to read when they have ended.

    Attributes:
        codes: Exit codes that are no failure.
        stopped: Whether its last command runs until the limit stops it, which is then no failure.
        read: Makes the content of PART.json where the commands do not write it.
    """

    seconds: float
    commands: Commands
    needs: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    stopped: bool = False
    read: Callable[[Call], dict[str, Any]] | None = None


def script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options]


def superweights(*options: str) -> list[str]:
    return [sys.executable, "-m", "superweight_ensembles", *options]


def tests(call: Call) -> list[list[str]]:
    # only files that have such tests: to collect the others takes half a minute
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    return [[sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", *files]]


def step_time(call: Call) -> list[list[str]]:
    recipes = [
        "recipes/cifar10-depth-width.yaml:128",
        "recipes/timm-members.yaml:128",
        "recipes/cifar10-small.yaml:128",
    ]
    options = ["--precisions", "bfloat16", "--rounds", "15"]
    if call.small:
        recipes = ["recipes/digits.yaml:4"]
        options = ["--precisions", "float32", "--rounds", "2", "--set", "sharing.budget=0.83"]
    return [script("step_time", "--device", call.device, "--recipes", *recipes, *options, "--out", str(call.out))]


def generation(call: Call) -> list[list[str]]:
    options = ["--recipes", "digits", "--rounds", "2", "--width", "16"] if call.small else []
    return [script("generation", "--device", call.device, *options, "--out", str(call.out))]


def memory(call: Call) -> list[list[str]]:
    options = ["--recipes", "recipes/cifar10-depth-width.yaml:128", "recipes/timm-members.yaml:128"]
    options += ["--repetitions", "1", "--plan-targets", "10"]
    if call.small:
        options = ["--recipes", "recipes/cifar10-small.yaml:4", "--image-size", "8", *options[3:]]
    return [script("memory", "--device", call.device, *options, "--out", str(call.out))]


def compiled(call: Call) -> list[list[str]]:
    options = ["--precisions", "bfloat16"]
    if call.small:
        options = ["--precisions", "float32", "--rounds", "2", "--batch-size", "4"]
        options += ["--recipe", "recipes/cifar10-16px.yaml", "--set", _SMALL_MEMBER]
    return [script("compile", "--device", call.device, *options, "--out", str(call.out))]


def anytime(call: Call) -> list[list[str]]:
    run = str(call.work / "run")
    recipe, epochs, sizes = "recipes/cifar10-small.yaml", "3", ["1", "64", "512"]
    options = call.data(10, 8192)
    measured = ["--device", call.device, "--batch-sizes", *sizes, "--rounds", "10", "--images", "512", "--calls", "300"]
    if call.small:
        recipe, epochs, options = "recipes/digits.yaml", "1", [*_SMALL_MEMBERS, "--set", "anytime.timed_images=64"]
        measured = ["--device", call.device, "--batch-sizes", "1", "--rounds", "2", "--images", "64", "--calls", "20"]
    train = superweights("train", recipe, "--out", run, *options, "--set", f"training.epochs={epochs}")
    return [[*train, "--set", "baseline=none"], script("anytime", run, *measured, "--out", str(call.out))]


def published(call: Call) -> list[list[str]]:
    recipe, options = "recipes/cifar10-depth-width.yaml", call.data(10, 50_000)
    if call.small:
        recipe = "recipes/digits.yaml"
        options = [*_SMALL_MEMBERS, "--set", "training.epochs=3", "--set", "baseline=none"]
    return [superweights("train", recipe, "--out", str(call.work / "published"), *options)]


def epochs_a_minute(call: Call) -> dict[str, Any]:
    """Images a second and the time of 200 epochs, by the epochs that were done; the first, which warms up, left out."""
    run = call.work / "published"
    lines = (run / "shared" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    if len(seconds) < 2:
        raise RuntimeError(f"{len(seconds)} epochs were done: too few to time")
    facts = json.loads((run / "data.json").read_text(encoding="utf-8"))
    epoch, images = statistics.median(seconds[1:]), int(facts["number of train images"])
    return {
        "epochs": len(seconds),
        "epoch_s": epoch,
        "images_a_second": images / epoch,
        "minutes_of_200": epoch * 200 / 60,
    }


def processes(call: Call) -> list[list[str]]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    options = ["--set", "training.epochs=1", "--set", "baseline=none", "--set", f"training.device={call.device}"]
    if call.small:
        options += _SMALL_MEMBERS
    return [[*run, "superweight_ensembles", "train", "recipes/digits.yaml", "--out", str(call.work / "one"), *options]]


PARTS = {
    "tests": Part(seconds=150, commands=tests, needs=("pytest", "hypothesis"), codes=(0, _NO_TESTS)),
    "step_time": Part(seconds=90, commands=step_time),
    "generation": Part(seconds=50, commands=generation),
    "memory": Part(seconds=60, commands=memory),
    "compile": Part(seconds=110, commands=compiled),
    "anytime": Part(seconds=80, commands=anytime),
    "published": Part(seconds=100, commands=published, stopped=True, read=epochs_a_minute),
    "processes": Part(seconds=40, commands=processes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part alone; may be given again")
    parser.add_argument("--images", type=Path, help="a zip with train/CLASS/* and test/CLASS/* in it")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.part or list(PARTS)
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"benchmark": "on_gpu", "provenance": provenance(), "rehearsed": options.rehearse}
    found["parts"] = {}
    with tempfile.TemporaryDirectory() as work:
        images = None if options.images is None else unzipped(options.images, Path(work) / "images")
        for name in names:
            call = Call(
                device="cpu" if options.rehearse else "cuda", small=options.rehearse, work=Path(work) / name,
                out=(options.out / f"{name}.json").resolve(), images=images,
            )  # fmt: skip
            call.work.mkdir()
            found["parts"][name] = run_part(name, PARTS[name], call, end - time.monotonic())
            write_json(options.out / "on_gpu.json", found)
            ended = {key: value for key, value in found["parts"][name].items() if key != "said"}
            print(f"{name}: {ended}", flush=True)
    if any(part["ended"] not in ("well", "passed over") for part in found["parts"].values()):
        sys.exit(1)


def unzipped(file: Path, folder: Path) -> Path:
    """The folder in a zip that holds train and test."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return next(path.parent for path in [folder / "train", *folder.glob("*/train")] if path.is_dir())


def run_part(name: str, part: Part, call: Call, left: float) -> dict[str, Any]:
    """How a part ended: ``well``, ``failed``, ``late`` or ``passed over``; its seconds, and the last lines it said."""
    missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
    if missing:
        return {"ended": "passed over", "why": f"{', '.join(missing)} cannot be imported", "seconds": 0.0}
    limit = min(part.seconds * (5 if call.small else 1), left)  # a rehearsal may be on a slow CPU
    if limit < 5:
        return {"ended": "passed over", "why": "no time is left", "seconds": 0.0}
    start = time.monotonic()
    said: list[str] = []
    ended = "well"
    commands = part.commands(call)
    for command in commands:
        rest = limit - (time.monotonic() - start)
        code, late, text = run_command(command, max(rest, 1.0))
        said = [*said, *text.splitlines()][-_TAIL_LINES:]
        if late and not (part.stopped and command is commands[-1]):
            ended = "late"
        elif not late and code not in part.codes:
            ended = "failed"
        if ended != "well":
            break
    if ended == "well" and part.read is not None:
        try:
            write_json(call.out, {"benchmark": name, "provenance": provenance(), **part.read(call)})
        except Exception as error:  # what a part left unfinished must not end the others
            ended, said = "failed", [*said, f"{type(error).__name__}: {error}"]
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), "said": said}


def run_command(command: Sequence[str], seconds: float) -> tuple[int, bool, str]:
    """The exit code of a command, whether it was ended as it took too long, and what it said."""
    places = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            for kind in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(process.pid, kind)  # its workers as well
                try:
                    process.wait(_GRACE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        output.seek(0)
        return process.returncode, late, output.read()


if __name__ == "__main__":
    main()
