"""What the fuzzers feed: each target reads a damaged file and holds the outcome against what may come of it.

A :class:`SuperWeightError` that names the file, or the object as it was saved; nothing else, and within five seconds.
"""

from __future__ import annotations

import atexit
import json
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import ExitPolicy, write_policy
from superweight_ensembles.ensemble import read_plan
from superweight_ensembles.experiment import RunResults, load_recipe
from superweight_ensembles.export import export_member, load_member
from superweight_ensembles.export.onnx_cascade import _check_within, _read
from superweight_ensembles.storage import MANIFEST_FILE, MANIFEST_FORMAT, file_entry, read_as

MOST_SECONDS = 5
EXPECTED: tuple[type[Exception], ...] = (swe.SuperWeightError,)
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "digits" / "results.json"
RECIPE = b"""\
name: fuzzed
seed: 3
data: {name: synthetic, num_classes: 4, channels: 3, num_train: 64, num_test: 32, validation_fraction: 0.1}
members:
  - &first {name: deep, model: wide_resnet, depth: 16, width: 1}
  - {<<: *first, name: wide, width: 2}
sharing: {budget: 0.83, clusters: depth_bins, bins: 2, cap: 8, include: ["*.fc"], search: none}
training: {epochs: 2, batch_size: 16, learning_rate: 0.1, schedule: step, milestones: [1], flip: true}
evaluation: {batch_size: 32}
anytime: {order: cost, flops: 0.5, num_points: 4}
baseline: independent
"""


@cache
def folder() -> Path:
    """One folder a process, removed at its end."""
    made = Path(tempfile.mkdtemp(prefix="fuzz"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextmanager
def refused(where: str, kind: type[Exception] | None = None) -> Iterator[None]:
    """Take a refusal that names the place; anything else that is raised goes on. Five seconds at most."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"{where}: not read within {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    caught: list[Exception] = []
    try:
        yield
    except EXPECTED if kind is None else (kind,) as error:  # noqa: B030 - a tuple of classes
        caught.append(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for found in caught:
        assert type(found) is (kind or swe.SuperWeightError), repr(found)
        assert where in str(found), f"{where} is not named in: {found}"
        assert len(str(found)) < 2000, f"an error of {len(str(found))} characters: {str(found)[:500]}"


def members() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    sizes = {"thin": 6, "wide": 8}
    return {name: nn.Sequential(nn.Linear(5, size), nn.ReLU(), nn.Linear(size, 3)) for name, size in sizes.items()}


@cache
def saved() -> tuple[Path, dict[str, bytes], dict[str, torch.Tensor], Any]:
    """A saved ensemble of plain modules: where it may be damaged, its files, tensors and plan."""
    place = folder() / "ensemble"
    ensemble = swe.SuperWeightEnsemble(members(), budget=1.5, bins=1, include=["*.2"])
    ensemble.save(place)
    order = ("thin", "wide")
    write_policy(place, order, (5,), ExitPolicy(order=order, temperatures=(1.0, 2.0), thresholds=(0.5,)))
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    return place, files, {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}, ensemble.plan


@cache
def flat_plan() -> bytes:
    """A plan of one flat bank that masks enlarge."""
    options = swe.plan.SsnOptions(combine="emb", upsample="mask", embedding_size=4)
    found = swe.plan_sharing(members(), budget=0.9, generator="ssn", clusters="one", include=["*.2"], ssn=options)
    return found.to_json().encode()


@cache
def registered() -> tuple[Path, dict[str, bytes]]:
    """A saved ensemble of registry names: where it may be damaged, and its files."""
    place = folder() / "registered"
    swe.SuperWeightEnsemble(
        {"a": swe.wide_resnet(10, 1, 3), "b": swe.build_member("wide_resnet", num_classes=3, depth=10, width=2)},
        budget=0.9,
    ).save(place)
    return place, {path.name: path.read_bytes() for path in place.iterdir()}


@cache
def exported() -> tuple[Path, bytes, bytes]:
    """A member as a state dict: its file, the content of it and of the notes beside it."""
    path = folder() / "member.safetensors"
    export_member(swe.wide_resnet(10, 1, 3), path, format="state-dict", input_shape=(3, 8, 8))
    return path, path.read_bytes(), path.with_name(f"{path.name}.json").read_bytes()


def recipe(content: bytes) -> None:
    path = folder() / "recipe.yaml"
    path.write_bytes(content)
    with refused(str(path)):
        loaded = load_recipe(path)
        again = folder() / "again.yaml"
        again.write_text(loaded.to_yaml())
        assert load_recipe(again) == loaded


def plan(content: bytes) -> None:
    path = folder() / "plan.json"
    path.write_bytes(content)
    with refused(str(path)):
        loaded = read_plan(folder())
        text = loaded.to_json()
        assert swe.SharingPlan.from_json(text) == loaded
        str(loaded)
        if loaded.fingerprint.encode() in saved()[1]["plan.json"]:
            assert loaded == saved()[3]


def ensemble_file(name: str, content: bytes) -> None:
    """A file of a saved ensemble that its manifest does not know: refused, or read as it was saved."""
    place, files, state, sharing = saved()
    _restore(place, files, {name: content})
    with refused(str(place)):
        loaded = swe.SuperWeightEnsemble.load(place, members=members())
        assert loaded.plan == sharing
        _assert_same(loaded.state_dict(), state)
    with refused(str(place)):
        read = swe.AnytimePredictor.load(place, members=members()).policy
        assert read == ExitPolicy(order=("thin", "wide"), temperatures=(1.0, 2.0), thresholds=(0.5,))


def listed_file(name: str, content: bytes) -> None:
    """A file of a saved ensemble that was written into the manifest as well: what it says itself is looked at."""
    place, files, state, sharing = saved()
    _restore(place, files, {name: content})
    _list(place, files)
    with refused(str(place)):
        loaded = swe.SuperWeightEnsemble.load(place, members=members())
        assert {key: tensor.shape for key, tensor in loaded.state_dict().items()} == {
            key: tensor.shape for key, tensor in state.items()
        }
        if name != "model.safetensors":
            _assert_same(loaded.state_dict(), state)
        if loaded.plan.fingerprint == sharing.fingerprint:
            assert loaded.plan == sharing
        loaded.eval()(torch.zeros(2, 5))
    with refused(str(place)):
        swe.AnytimePredictor.load(place, members=members())


def config(content: bytes) -> None:
    """The architectures of a saved ensemble, listed in its manifest."""
    place, files = registered()
    _restore(place, files, {"config.json": content})
    _list(place, files)
    with refused(str(place)):
        swe.SuperWeightEnsemble.load(place)


def manifest(content: bytes) -> None:
    ensemble_file("manifest.json", content)


def tensor_header(content: bytes) -> None:
    """A safetensors file whose header is this text, before the numbers that were saved."""
    whole = saved()[1]["model.safetensors"]
    (length,) = struct.unpack("<Q", whole[:8])
    listed_file("model.safetensors", struct.pack("<Q", len(content)) + content + whole[8 + length :])


def header_text() -> bytes:
    whole = saved()[1]["model.safetensors"]
    return whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]]


def notes(content: bytes) -> None:
    """The notes beside a member's tensors."""
    path, tensors, _ = exported()
    path.write_bytes(tensors)
    path.with_name(f"{path.name}.json").write_bytes(content)
    with refused(str(path)):
        load_member(path)


def member_tensors(content: bytes) -> None:
    path, tensors, beside = exported()
    path.write_bytes(content)
    path.with_name(f"{path.name}.json").write_bytes(beside)
    with refused(str(path)):
        load_member(path)
        assert content == tensors


def results(content: bytes) -> None:
    path = folder() / "results.json"
    path.write_bytes(content)
    with refused(str(path)):
        read_as(RunResults, path, "evaluate the run again")


CASCADE = {
    "format": 2,
    "input_shape": [3, 2, 2],
    "num_classes": 4,
    "members": [{"name": one, "file": f"{one}.onnx", "flops": 5, "bytes": 10, "sha256": "0" * 64} for one in "ab"],
    "policy": {
        "order": ["a", "b"],
        "confidence": "margin",
        "temperatures": [1.0, 2.0],
        "thresholds": [None],
        "monotone": False,
    },
}


def cascade(content: bytes) -> None:
    path = folder() / "cascade.json"
    path.write_bytes(content)
    with refused(str(path), ValueError):
        _read(path)


def onnx_bytes(content: bytes) -> None:
    with refused("x.onnx", ValueError):
        _check_within(Path("x.onnx"), content)


# By name: what reads the content, and a content that it takes.
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], bytes]]] = {
    "recipe": (recipe, lambda: RECIPE),
    "plan": (plan, lambda: saved()[1]["plan.json"]),
    "flat plan": (plan, flat_plan),
    "manifest": (manifest, lambda: saved()[1]["manifest.json"]),
    "listed plan": (lambda content: listed_file("plan.json", content), lambda: saved()[1]["plan.json"]),
    "listed policy": (lambda content: listed_file("anytime.json", content), lambda: saved()[1]["anytime.json"]),
    "listed tensors": (
        lambda content: listed_file("model.safetensors", content),
        lambda: saved()[1]["model.safetensors"],
    ),
    "tensor header": (tensor_header, header_text),
    "config": (config, lambda: registered()[1]["config.json"]),
    "notes": (notes, lambda: exported()[2]),
    "results": (results, lambda: _few_results()),
    "cascade": (cascade, lambda: json.dumps(CASCADE).encode()),
    "onnx": (onnx_bytes, lambda: ONNX),
}

# One graph (field 7) with one initializer (5) that has external_data (13) and one that has not.
ONNX = b"\x08\x08\x3a\x12\x2a\x06\x6a\x04\x0a\x02hi\x2a\x08\x08\x01\x4a\x04\x00\x00\x00\x00"


def _few_results() -> bytes:
    content = json.loads(RESULTS.read_text())
    for arm in content["arms"]:
        del arm["subsets"][2:], arm["reliability"][2:], arm["history"][2:]
    return json.dumps(content).encode()


def _list(place: Path, files: dict[str, bytes]) -> None:
    """As write_manifest does, without waiting for the disk."""
    entries = {name: file_entry(place / name) for name in files if name != MANIFEST_FILE}
    (place / MANIFEST_FILE).write_text(json.dumps({"format": MANIFEST_FORMAT, "files": entries}))


def _restore(place: Path, files: dict[str, bytes], changed: dict[str, bytes]) -> None:
    for name, content in {**files, **changed}.items():
        (place / name).write_bytes(content)


def _assert_same(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name
