"""Files that somebody made to do harm, and files that broke: refused by name, quickly, with nothing done."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import operator
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
import yaml
from fuzz_targets import members, refused
from rich.console import Console
from safetensors.torch import save_file
from saved_files import edit_json, rewrite
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles import __main__ as cli
from superweight_ensembles.experiment import (
    Comparison,
    comparison_tables,
    load_recipe,
    read_results,
    read_run,
    result_table,
    train_run,
)
from superweight_ensembles.export import OnnxCascade, export_cascade, export_member, load_member, onnx_cascade
from superweight_ensembles.report import figures, write_report
from superweight_ensembles.storage import (
    check_no_links,
    contained_file,
    content_as,
    read_module,
    read_tensors,
)
from superweight_ensembles.storage import limits as machine_memory

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"
MINIMAL = {
    "name": "mine",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 64},
    "members": [{"name": "a", "model": "wide_resnet", "depth": 10, "width": 1}],
    "sharing": {"budget": 0.9},
}
NAMES = [
    "$x$",
    "$\\frac{",
    "a$b",
    "[red]x[/red]",
    "[/]",
    "[bold",
    "\x1b[31mred\x1b]0;t\x07",
    "\u202eabc",
    "<b>&",
    "\x00",
]
TOO_DEEP = "[" * 65 + "]" * 65
ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 10)}]\n" for level in range(9)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} {{<<: [{', '.join(['*' + chr(97 + level)] * 10)}]}}\n" for level in range(9)
)


def put(content: Any, place: str, value: Any) -> None:
    """Set a place of plain data, such as ``arms.0.name``, to a value, or to what a function makes of its own."""
    *holders, last = (int(part) if part.isdigit() else part for part in place.split("."))
    holder = functools.reduce(operator.getitem, holders, content)
    holder[last] = value(holder[last]) if callable(value) else value


def edit(path: Path, place: str, value: Any) -> None:
    """:func:`put` in a JSON file."""
    content = json.loads(path.read_text())
    put(content, place, value)
    path.write_text(json.dumps(content))


# Recipes.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: {TOO_DEEP}", "more than 64 levels of lists and keys in each other at line 1"),
        ("- " * 100_000, "more than 64 levels"),
        ("[" * 200_000, "more than 64 levels"),
        (ALIASES, "aliases make more than 100,000 values of it"),
        (MERGES, "aliases make more than 100,000 values of it"),
        ("a: &a [*a]", "an alias stands inside what it names"),
        ("a: &a {<<: *a}", "an alias stands inside what it names"),
        ("a: &a {b: {c: [*a]}}", "an alias stands inside what it names"),
        ("name: a\nname: b", "the key 'name' is given twice at line 2"),
        ("a: {b: 1, 'b': 2}", "the key 'b' is given twice"),
        ("a: {<<: {b: 1, b: 2}}", "the key 'b' is given twice"),
        ("a: 1\n" * 60_000, "is longer than 262,144 bytes"),
        ("- a\n" * 60_000, "more than 20,000 values"),
        (f"a: {'9' * 100_000}", "is no YAML: Exceeds the limit"),
        (f"a: {'9' * 400}", "a: a whole number of 2\\*\\*63 or more"),
        (f"a: 0x{'f' * 100_000}", "a: a whole number of 2\\*\\*63 or more"),
        (f"a: {'1:' * 50_000}0.0", "is no YAML: int too large to convert to float"),
        ("a: 2020-99-99", "is no YAML: month must be in 1..12"),
        ("a: 2020-01-01", "a: datetime.date.* of the type date, which no setting is: put it in quotes"),
        ("a: {b: [1, .inf]}", r"a\.b\.1: inf is no finite number"),
        ("a: .nan", "a: nan is no finite number"),
        ("a: 1e400", "a: inf is no finite number|got '1e400'|unknown key"),
        ("a: {1: 2}", "a: the key 1 must be text: put it in quotes"),
        ("a: {[1]: 2}", "is no YAML: .*unhashable key"),
        ("a: {null: 2}", "a: the key None must be text"),
        ('a: "\\e[31m"', "a: .* holds control characters"),
        ('a: "\\ud800"', "a: .* holds control characters"),
        ("a: \x07", "is no YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is no YAML: could not determine a constructor"),
        ("a: !!binary aGk=", "a: b'hi' is of the type bytes"),
        ("a: !!set {b, c}", "a: .* is of the type set"),
        ("a: !!omap [b: c]", "is of the type tuple|must be"),
        ("--- a\n--- b", "is no YAML: expected a single document"),
        ("a: 1\r\n\tb: 2", "is no YAML"),
        ("", "must hold keys and values; got NoneType"),
        (b"\xff\xfe", "is no YAML: 'utf-8' codec"),
        (f"name: {'x' * 20_000}", "name: a text of 20,000 characters; at most 10,000 are taken"),
    ],
)
def test_recipes_that_are_no_data(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused("", AssertionError), pytest.raises(swe.SuperWeightError, match=rf"recipe\.yaml.*({message})"):
        load_recipe(path)


def test_modest_anchors_and_merges_are_taken(tmp_path: Path) -> None:
    content = yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "members"})
    (tmp_path / "recipe.yaml").write_text(
        f"{content}members:\n  - &one {{name: a, model: wide_resnet, depth: 10, width: 1}}\n"
        "  - {<<: *one, name: b, width: 2}\n"
    )
    assert [member.model_extra for member in load_recipe(tmp_path / "recipe.yaml").members] == [
        {"depth": 10, "width": 1}, {"depth": 10, "width": 2}
    ]  # fmt: skip


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), {1: 2}, [[]], b"a", "\x1b", None])
def test_every_place_of_a_recipe_is_checked(value: object) -> None:
    from superweight_ensembles.experiment import parse_recipe

    whole = parse_recipe(MINIMAL).model_dump(mode="json", exclude_none=True)
    spots = [(key,) for key in whole] + [
        (key, inner) for key, content in whole.items() if isinstance(content, dict) for inner in content
    ]
    for spot in spots:
        content = json.loads(json.dumps(whole))
        holder = content if len(spot) == 1 else content[spot[0]]
        holder[spot[-1]] = value
        try:
            parse_recipe(content)
        except swe.SuperWeightError as error:
            message = str(error)
        else:
            message = spot[0]
            assert value is None or spot[0] == "data", f"{spot} takes {value!r:.20}"
        assert spot[0] in message and len(message) < 2000


@pytest.mark.parametrize(
    "override", ["members.99999999999999999999999.width=2", "a.b=[", "x={a: *b}", f"seed={TOO_DEEP}"]
)
def test_overrides_are_data_too(tmp_path: Path, override: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(swe.SuperWeightError, match="--set"):
        load_recipe(tmp_path / "recipe.yaml", [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ".."}, "name: String should match pattern"),
        ({"name": "x" * 101}, "name: String should have at most 100 characters"),
        ({"members": MINIMAL["members"] * 1001}, "members: Tuple should have at most 1000 items"),
        ({"sharing": {"budget": 0.9, "include": ["a"] * 1001}}, "sharing.include: Tuple should have at most 1000"),
    ],
)
def test_recipes_of_too_much(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps({**MINIMAL, **changes}))
    with pytest.raises(swe.SuperWeightError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


# Networks.


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("wide_resnet", {"depth": 10**9, "width": 2}, "depth is at most 65,536"),
        ("wide_resnet", {"depth": 6 * 10**4 + 4, "width": 1}, "more than 10,000 modules"),
        ("wide_resnet", {"depth": 16, "width": 6 * 10**4}, "parameters take .* GiB; this machine has"),
        ("wide_resnet", {"depth": 16, "width": 10**400}, "width is at most 65,536"),
        ("wide_resnet", {"depth": "deep", "width": 2}, "depth of a WideResNet is 6n"),
        ("wide_resnet", {"depth": 16.5, "width": 2}, "model 'wide_resnet' with|depth of a WideResNet is 6n"),
        ("wide_resnet", {"depth": [16], "width": {}}, "depth of a WideResNet is 6n"),
        ("timm/vit_tiny_patch16_224", {"depth": 6 * 10**4}, "more than 10,000 modules"),
        ("timm/vit_tiny_patch16_224", {"img_size": 64_000}, "parameters take .* GiB; this machine has"),
        ("timm/vit_tiny_patch16_224", {"num_heads": 0}, "model 'timm/vit_tiny"),
        ("timm/vit_tiny_patch16_224", {"embed_dim": -5}, "model 'timm/vit_tiny"),
        ("timm/resnet18", {"layers": [6 * 10**4] * 4}, "more than 10,000 modules"),
        ("timm/resnet18", {"layers": [2] * 10_001}, "its options hold more than 10,000 values"),
        ("timm/resnet18", {"block_args": json.loads("[" * 20 + "]" * 20)}, "more than 8 levels"),
        ("timm/resnet18", {"cache_dir": "/tmp"}, "'cache_dir' reads trained weights"),
        ("timm/resnet18.../../evil", {}, "timm/resnet18"),
        ("timm/hf-hub:user/model", {}, "unknown model"),
        ("torchvision/vit_b_16", {"image_size": 2**15}, "parameters take .* GiB; this machine has"),
        (
            "torchvision/regnet_y_400mf",
            {"block_width": 3},
            "unknown option of torchvision/regnet_y_400mf 'block_width'",
        ),
    ],
)
def test_networks_that_nobody_builds(model: str, options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "memory_bytes", lambda: 2**32)  # whatever this machine has
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.build_member(model, num_classes=5, **options)


@pytest.mark.parametrize("size", [10**12, 0, -1, True])
def test_classes_that_nobody_has(size: int) -> None:
    with pytest.raises(swe.SuperWeightError, match="num_classes must be 1 to 1,048,576"):
        swe.build_member("timm/resnet18", num_classes=size)


@pytest.mark.parametrize(
    ("library", "create", "name"),
    [
        ("timm", timm.create_model, "resnet10t"),
        # reads its own numbers while it is made, and so cannot be made of shapes alone
        ("torchvision", torchvision.models.get_model, "regnet_x_400mf"),
    ],
)
def test_shapes_alone_change_no_start_value(library: str, create: Callable[..., nn.Module], name: str) -> None:
    torch.manual_seed(3)
    made = swe.build_member(f"{library}/{name}", num_classes=4).state_dict()
    torch.manual_seed(3)
    plain = create(name, num_classes=4).state_dict()
    assert list(made) == list(plain) and all(torch.equal(made[key], plain[key]) for key in made)


def test_a_saved_ensemble_gets_no_other_networks_than_its_plan_knows(tmp_path: Path) -> None:
    swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 3)}, budget=1.0).save(tmp_path / "saved")
    edit_json(tmp_path / "saved" / "config.json", lambda content: content["members"]["a"]["options"].update(width=30))
    with pytest.raises(swe.SuperWeightError, match=r"config\.json, members\.a: .* has more than the .* parameters"):
        swe.SuperWeightEnsemble.load(tmp_path / "saved")


# Plans.


@pytest.fixture
def plan() -> dict[str, Any]:
    return json.loads(swe.SuperWeightEnsemble(members(), budget=1.5, bins=1).plan.to_json())


SLOT, TARGET = "clusters.0.slots.0", "clusters.0.targets.0"
PLANS = [
    ("members.0.num_parameters", 10**12, r"at members\.0\.num_parameters must be at most"),
    ("members.0.num_private", 10**12, r"at members\.0\.num_private"),
    ("budget", 10**12, "at budget must be at most"),
    (f"{SLOT}.shape", [2**32, 5], r"slots\.0\.shape\.0 must be at most"),
    (f"{SLOT}.shape", [2] * 9, r"slots\.0\.shape: .*at most 8"),
    (f"{SLOT}.shape", [2**31, 2**31], "slot 1 must add numbers|add up"),
    (f"{SLOT}.num_templates", 10**9, "num_templates must be at most"),
    (f"{SLOT}.num_vectors", 10**12, "num_vectors must be at most"),
    (f"{SLOT}.num_vectors", 10**6, "coefficient vectors do not match"),
    (f"{TARGET}.vectors", [10**18], "coefficient vectors do not match"),
    ("clusters.0.slots", lambda slots: slots * 5000, "slots: .*at most 4096"),
    ("clusters", lambda clusters: clusters * 3, "clusters: two are named"),
    ("members", lambda members: members * 10_000, "members: .*at most 10000"),
    ("clusters.0.name", "x" * 5000, r"clusters\.0\.name: .*at most 4096"),
    ("clusters", json.loads("[" * 200 + "]" * 200), "more than 64 levels"),
    ("twice", 5, "the key 'budget' is given twice"),
]


@pytest.mark.parametrize(("place", "value", "message"), PLANS)
def test_plans_that_claim_too_much(plan: dict[str, Any], place: str, value: Any, message: str) -> None:
    del plan["fingerprint"]
    put(plan, place, value)
    text = json.dumps(plan).replace('"twice"', '"budget"')
    with pytest.raises(swe.SuperWeightError, match=rf"plan\.json, the sharing plan.*({message})"):
        swe.SharingPlan.from_json(text, "plan.json")


def test_the_fingerprint_sees_an_edit(plan: dict[str, Any]) -> None:
    assert swe.SharingPlan.from_json(json.dumps(plan, indent=7, sort_keys=True)).fingerprint == plan["fingerprint"]
    plan["clusters"][0]["name"] = "renamed"
    with pytest.raises(swe.SuperWeightError, match=r"'.*' is not that of its content, .*: the file is damaged"):
        swe.SharingPlan.from_json(json.dumps(plan))
    del plan["fingerprint"]
    assert swe.SharingPlan.from_json(json.dumps(plan)).clusters[0].name == "renamed"


def test_a_bank_that_the_machine_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "memory_bytes", lambda: 100)
    with pytest.raises(swe.SuperWeightError, match=r"bank of this plan: .* parameters take .* GiB; this machine has"):
        swe.SuperWeightEnsemble(members(), budget=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 10**12}, "a budget is at most 68,719,476,736 parameters"),
        ({"budget": 10**400}, "a budget is at most"),
        ({"budget": 1.5, "cap": 10**9}, "cap must be a whole number, from 1 to 4,096"),
        ({"budget": 1.5, "bins": 10**18}, "bins must be a whole number, from 1 to 10,000"),
    ],
)
def test_settings_that_would_never_end(options: dict, message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        swe.plan_sharing(members(), **options)


# Tensors.


def test_tensors_are_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2, 3), "n": torch.tensor(5)}, path)
    expected = {"x": ((2, 3), torch.float32), "n": ((), torch.int64)}
    assert int(read_tensors(path, expected)["n"]) == 5
    assert read_tensors(path, {**expected, "x": ((2, 3), torch.bfloat16)})["x"].dtype == torch.float32
    for changes, message in (
        ({"x": ((3, 2), torch.float32)}, r"'x' has the shape \(2, 3\), expected \(3, 2\)"),
        ({"x": ((2, 3), torch.int64)}, r"'x' is torch.float32, expected torch.int64"),
        ({"n": ((), torch.float32)}, r"'n' is torch.int64, expected torch.float32"),
        ({"n": ((), torch.int32)}, r"'n' is torch.int64, expected torch.int32"),
        ({"y": ((1,), torch.float32)}, "'y' is missing"),
    ):
        with pytest.raises(swe.SuperWeightError, match=rf"a\.safetensors does not fit: tensor {message}"):
            read_tensors(path, {**expected, **changes})
    with pytest.raises(swe.SuperWeightError, match=r"a\.safetensors does not fit: nothing takes its tensor 'n'"):
        read_tensors(path, {"x": expected["x"]})


def safetensors(header: object, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TWICE = json.dumps({"x": F32, "y": {**F32, "data_offsets": [4, 8]}}).replace('"y"', '"x"').encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (struct.pack("<Q", 2**60) + b"{}", "header too large"),
        (struct.pack("<Q", 2**20) + b"{}", "header too large|invalid header length"),
        (struct.pack("<Q", 0), "invalid JSON in header"),
        (safetensors([]), "invalid JSON in header: invalid type: sequence"),
        (safetensors(b"\xff\xff"), "invalid UTF-8 in header"),
        (safetensors(b"[" * 5000 + b"]" * 5000), "invalid JSON in header"),
        (safetensors(b'{"x": ' * 5000 + b"}" * 5000), "invalid JSON in header"),
        (safetensors(TWICE, b"\0" * 8), "invalid offset for tensor `x`"),
        (safetensors({"x": 3}), "invalid type: integer `3`, expected struct TensorInfo"),
        (safetensors({"x": {**F32, "dtype": "F31"}}, b"\0" * 4), "unknown variant `F31`, expected one of `BOOL`"),
        (safetensors({"x": {**F32, "dtype": "F4", "shape": [8]}}, b"\0" * 4), "'x' is of type F4, which torch lacks"),
        (safetensors({"x": {**F32, "shape": [-1]}}, b"\0" * 4), "invalid value: integer `-1`, expected usize"),
        (safetensors({"x": {**F32, "shape": [10**12]}}, b"\0" * 4), "invalid shape, data type, or offset for tensor"),
        (safetensors({"x": {**F32, "shape": [2**62, 4]}}, b"\0" * 4), "overflow computing buffer size from shape"),
        (safetensors({"x": {**F32, "shape": [True]}}, b"\0" * 4), "invalid type: boolean `true`, expected usize"),
        (
            safetensors({"x": {**F32, "data_offsets": [0, 8]}}, b"\0" * 8),
            "invalid shape, data type, or offset for tensor",
        ),
        (safetensors({"x": {**F32, "data_offsets": [4, 0]}}, b"\0" * 4), "invalid offset for tensor `x`"),
        (safetensors({"x": {**F32, "data_offsets": [4, 8]}}, b"\0" * 8), "invalid offset for tensor `x`"),
        (safetensors({"x": {"dtype": "F32", "shape": [1]}}, b"\0" * 4), "missing field `data_offsets`"),
        (safetensors({"x": F32}), "incomplete metadata, file not fully covered"),
        (safetensors({"x": F32}, b"\0" * 40), "incomplete metadata, file not fully covered"),
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(swe.SuperWeightError, match=rf"a\.safetensors (is damaged|does not fit): .*{message}"):
        read_tensors(tmp_path / "a.safetensors", {"x": ((1,), torch.float32)})


def test_tied_tensors_stand_in_a_file_once(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    tied["b"].weight = tied["a"].weight
    path = tmp_path / "a.safetensors"
    for name in ("a.weight", "b.weight"):  # whichever was kept
        save_file({name: torch.eye(3)}, path)
        read_module(path, tied)
        assert torch.equal(tied["b"].weight.detach(), torch.eye(3))
    save_file({"a.weight": torch.zeros(3, 3), "b.weight": torch.ones(3, 3)}, path)
    with pytest.raises(swe.SuperWeightError, match=r"'b\.weight' is the same as another one that it holds"):
        read_module(path, tied)
    assert torch.equal(tied["a"].weight.detach(), torch.eye(3))
    save_file({"c": torch.zeros(3, 3)}, path)
    with pytest.raises(swe.SuperWeightError, match="nothing takes its tensor 'c'"):
        read_module(path, tied)


def test_a_plan_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    swe.SuperWeightEnsemble(members(), budget=1.5).save(tmp_path / "saved")
    rewrite(tmp_path / "saved" / "model.safetensors", safetensors({"x": F32}, b"\0" * 4))
    with pytest.raises(swe.SuperWeightError, match=r"does not fit the plan: it holds 1 numbers, the bank has"):
        swe.SuperWeightEnsemble.load(tmp_path / "saved", members=members())


# Links and places.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    swe.SuperWeightEnsemble(members(), budget=1.5).save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    policy = swe.anytime.ExitPolicy(order=("a",), temperatures=(1.0,), thresholds=())
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    return export_cascade({"a": network}, policy, tmp_path / "cascade", input_shape=(3, 2, 2))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("saved", name) for name in ("config.json", "plan.json", "model.safetensors", "manifest.json")),
        *(("cascade", name) for name in ("cascade.json", "00-a.onnx")),
    ],
)
@pytest.mark.parametrize(
    "instead", ["link", "relative link", "pipe", "folder", "loop", "broken link", "device", "socket"]
)
def test_files_that_are_none(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, name: str, instead: str
) -> None:
    folder, elsewhere = request.getfixturevalue(kind), tmp_path / "elsewhere"
    path = folder / name
    path.rename(elsewhere)
    if instead == "pipe":
        os.mkfifo(path)
    elif instead == "folder":
        path.mkdir()
    elif instead == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    else:
        targets = {"link": elsewhere, "relative link": "../elsewhere", "loop": name, "device": "/dev/zero"}
        path.symlink_to(targets.get(instead, "nowhere"))
    error, other = (ValueError, "|cannot be read") if kind == "cascade" else (swe.SuperWeightError, "")
    match = rf"{re.escape(str(path))} (is a link, which may lead anywhere|is no regular file|is missing{other})"
    with refused(str(path), error), pytest.raises(error, match=match):
        OnnxCascade(folder) if kind == "cascade" else swe.SuperWeightEnsemble.load(folder, members=members())


def in_hub_cache(folder: Path, place: Path) -> Path:
    """A snapshot of links into blobs, as the Hugging Face Hub's cache holds a folder."""
    snapshot, blobs = place / "hub/models--user--mine/snapshots/abc", place / "hub/models--user--mine/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = hashlib.sha256(path.name.encode()).hexdigest()
        shutil.copy(path, blobs / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_the_cache_of_the_hub_is_made_of_links(saved: Path, cascade: Path, tmp_path: Path) -> None:
    assert OnnxCascade(in_hub_cache(cascade, tmp_path / "a")).members == ("a",)
    snapshot = in_hub_cache(saved, tmp_path / "b")
    assert swe.SuperWeightEnsemble.from_pretrained(snapshot, members=members()).member_names == ("thin", "wide")
    (tmp_path / "by link").symlink_to(snapshot)
    assert swe.SuperWeightEnsemble.load(tmp_path / "by link", members=members()).member_names == ("thin", "wide")
    (snapshot / "plan.json").unlink()
    (snapshot / "plan.json").symlink_to(saved / "plan.json")
    with pytest.raises(swe.SuperWeightError, match=r"plan\.json is a link, which may lead anywhere"):
        swe.SuperWeightEnsemble.from_pretrained(snapshot, members=members())


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a\\b", "C:a", "a\0b", "a\nb", "x" * 300])
def test_names_that_lead_elsewhere(saved: Path, name: str) -> None:
    with pytest.raises(swe.SuperWeightError, match="is no plain name of a file in its folder"):
        contained_file(saved, name)
    edit(saved / "manifest.json", "files", lambda files: {**files, name: files["plan.json"]})
    with pytest.raises(swe.SuperWeightError, match=r"manifest\.json, files: .* is no plain name"):
        swe.SuperWeightEnsemble.load(saved, members=members())


def test_a_card_that_is_a_link_is_not_copied(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (saved / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(swe.SuperWeightError, match=r"README\.md is a link"):
        swe.SuperWeightEnsemble(members(), budget=1.5).save(saved)


@pytest.mark.parametrize("place", ["shared/log.jsonl", "shared", "results.json", "figures/a.png", "search/checkpoint"])
def test_runs_are_not_written_through_links(tmp_path: Path, place: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / place).parent.mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL))
    (run / "run.json").write_text("{}")
    outside.write_text("mine")
    (run / place).symlink_to(outside)
    for action in (
        lambda: train_run(load_recipe(run / "recipe.yaml"), run, resume=True),
        lambda: train_run(load_recipe(run / "recipe.yaml"), run, overwrite=True),
        lambda: read_run(run),
        lambda: write_report(run),
    ):
        with pytest.raises(swe.SuperWeightError, match="is a link, which may lead anywhere: remove it from"):
            action()
    assert outside.read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    check_no_links(tmp_path / "link")


def test_figures_replace_links(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "growth_curves.png").symlink_to(tmp_path / "outside")
    figures.save_figures({"growth_curves": figures.style.new_figure(1, 1)}, tmp_path)
    assert (tmp_path / "outside").read_text() == "mine" and not (tmp_path / "growth_curves.png").is_symlink()


# Exports.


def test_a_member_whose_tensors_were_changed(tmp_path: Path) -> None:
    path = export_member(
        swe.wide_resnet(10, 1, 3), tmp_path / "a.safetensors", format="state-dict", input_shape=(3, 8, 8)
    )
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(swe.SuperWeightError, match=r"a\.safetensors does not have its checksum"):
        load_member(path)
    path.write_bytes(content[:-4])
    with pytest.raises(swe.SuperWeightError, match=r"a\.safetensors has .* bytes, and .* were written"):
        load_member(path)
    path.write_bytes(content)
    edit(tmp_path / "a.safetensors.json", "architecture.options.width", 40)
    with pytest.raises(swe.SuperWeightError, match=r"architecture: .* has more than the .* parameters and buffers"):
        load_member(path)


def replace_model(folder: Path, content: bytes) -> None:
    """Put other content in the place of a cascade's only model, its size and checksum in cascade.json."""
    (path,) = folder.glob("*.onnx")
    path.write_bytes(content)
    edit(folder / "cascade.json", "members.0.bytes", len(content))
    edit(folder / "cascade.json", "members.0.sha256", hashlib.sha256(content).hexdigest())


SPOTS: dict[str, Callable[[onnx.ModelProto], onnx.TensorProto]] = {
    "initializer": lambda model: model.graph.initializer[0],
    "sparse initializer": lambda model: model.graph.sparse_initializer.add().values,
    "sparse indices": lambda model: model.graph.sparse_initializer.add().indices,
    "constant": lambda model: model.graph.node.add(op_type="Constant").attribute.add(name="value").t,
    "constants": lambda model: model.graph.node.add(op_type="Constant").attribute.add(name="value").tensors.add(),
    "sparse constant": lambda model: model.graph.node.add().attribute.add().sparse_tensor.values,
    "sparse constants": lambda model: model.graph.node.add().attribute.add().sparse_tensors.add().indices,
    "subgraph": lambda model: model.graph.node.add(op_type="If").attribute.add(name="then_branch").g.initializer.add(),
    "subgraphs": lambda model: model.graph.node.add().attribute.add().graphs.add().initializer.add(),
    "function": lambda model: model.functions.add().node.add().attribute.add().t,
    "function's default": lambda model: model.functions.add().attribute_proto.add().t,
    "training": lambda model: model.training_info.add().algorithm.initializer.add(),
    "start of training": lambda model: model.training_info.add().initialization.initializer.add(),
}


@pytest.mark.parametrize("parser", ["onnx", "none"])
@pytest.mark.parametrize("spot", SPOTS)
def test_onnx_files_that_name_other_files(
    cascade: Path, spot: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = cascade.glob("*.onnx")
    plain = onnx.load(path)
    if parser == "none":
        monkeypatch.setitem(sys.modules, "onnx", None)
    else:
        monkeypatch.setattr(onnx_cascade, "_check_within", lambda *_: None)
    OnnxCascade(cascade)
    for place in ("weights.bin", "../../secret", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        tensor = SPOTS[spot](model)
        tensor.raw_data = b""
        onnx.external_data_helper.set_external_data(tensor, place)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        replace_model(cascade, model.SerializeToString())
        with pytest.raises(ValueError, match=r"\.onnx keeps tensors in other files"):
            OnnxCascade(cascade)


def test_every_place_of_a_tensor_is_walked_through() -> None:
    """The table of the loader is what onnx's own descriptors say."""
    kinds = {
        "model": "ModelProto", "training": "TrainingInfoProto", "function": "FunctionProto", "graph": "GraphProto",
        "node": "NodeProto", "attribute": "AttributeProto", "sparse tensor": "SparseTensorProto",
        "tensor": "TensorProto",
    }  # fmt: skip
    names = {proto: kind for kind, proto in kinds.items()}
    left, holding = [getattr(onnx, proto).DESCRIPTOR for proto in kinds.values()], {}
    while left:
        message = left.pop()
        if message.name not in holding:
            inner = {field.number: field.message_type for field in message.fields if field.message_type}
            holding[message.name] = {number: kind.name for number, kind in inner.items()}
            left += inner.values()
    reach = {"TensorProto"}
    while True:
        more = {name for name, inner in holding.items() if reach.intersection(inner.values())} - reach
        if not more:
            break
        reach |= more
    assert reach == set(names)
    for kind, proto in kinds.items():
        expected = {number: names[held] for number, held in holding[proto].items() if held in reach}
        assert onnx_cascade._FIELDS[kind] == expected


def outside_weights(folder: Path) -> tuple[bytes, bytes]:
    """An ONNX model whose weights are in another file of the folder: all but its graph, and the graph."""
    np.arange(48, dtype=np.float32).tofile(folder / "secret.bin")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[12, 4], raw_data=b"0")
    onnx.external_data_helper.set_external_data(weights, "secret.bin")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    flat = onnx.helper.make_node("Flatten", ["images"], ["flat"])
    product = onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"])
    graph = onnx.helper.make_graph(
        [flat, product],
        "graph",
        [onnx.helper.make_tensor_value_info("images", 1, ["b", 3, 2, 2])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["b", 4])],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model.ClearField("graph")
    return model.SerializeToString(), graph.SerializeToString()


TAGS = {
    "plain": b"\x3a",
    "two bytes": b"\xba\x00",
    "five bytes": b"\xba\x80\x80\x80\x00",
    "above": b"\xba\x80\x80\x80\x10",
}


@pytest.mark.parametrize("parser", ["onnx", "none"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_hides_the_graph(
    cascade: Path, tmp_path: Path, tag: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checks onnxruntime reads a file that lies outside of the cascade, where the process happens to be."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before, graph = outside_weights(tmp_path / "work")
    size = bytes([len(graph) & 127 | 128, len(graph) >> 7])
    replace_model(cascade, before + TAGS[tag] + size + graph)
    if parser == "none":
        monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ValueError, match=r"\.onnx (keeps tensors in other files|is no ONNX file: its fields are damaged)"
    ):
        OnnxCascade(cascade)
    images = np.ones((1, 3, 2, 2), np.float32)
    for check in ("_check_within", "_check_parsed"):
        monkeypatch.setattr(onnx_cascade, check, lambda *_: None)
    with pytest.raises(ValueError, match=r"no ONNX file that onnxruntime reads: .*xternal data path"):
        OnnxCascade(cascade)  # it is told to look where nothing is
    monkeypatch.setattr(onnx_cascade, "_CLOSED", {})
    expected = np.arange(48, dtype=np.float32).reshape(12, 4).sum(0)
    logits = OnnxCascade(cascade).sessions[0].run(["logits"], {"images": images})[0]
    np.testing.assert_array_equal(logits[0], expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x08" * 100,
        b"no ONNX file",
        b"\x0b\x0c",
        b"\x0b\x3a\x00\x0c",  # a group around a graph
        b"\x3b\x3c",  # a graph as a group
        b"\x02\x00",  # a field without a number
        b"\x3a\x80\x00",  # a size written too long
        b"\x08\x88\x80\x80\x80\x80\x80\x80\x80\x80\x02",  # a number above 64 bits
        b"\x3e\x00",
        b"\x3f\x00",
        b"\x92\x00\x00\x00ORTM",  # onnxruntime's own format
    ],
)
def test_bytes_that_are_no_onnx_file(cascade: Path, content: bytes) -> None:
    replace_model(cascade, content)
    with pytest.raises(ValueError, match=r"\.onnx is no ONNX file|\.onnx .*no ONNX"):
        OnnxCascade(cascade)


def test_programs_that_name_other_files(cascade: Path) -> None:
    (path,) = cascade.glob("*.onnx")
    model = onnx.load(path)
    model.graph.node.add(op_type="EPContext", domain="com.microsoft")
    replace_model(cascade, model.SerializeToString())
    with pytest.raises(ValueError, match=r"\.onnx runs a compiled program \(EPContext\)"):
        OnnxCascade(cascade)


def test_a_model_in_the_format_of_onnxruntime_is_not_taken_for_onnx(cascade: Path, tmp_path: Path) -> None:
    (path,) = cascade.glob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    replace_model(cascade, (tmp_path / "model.ort").read_bytes())
    with pytest.raises(ValueError, match=r"\.onnx .*no ONNX"):
        OnnxCascade(cascade)


@pytest.mark.parametrize("size", [40 * 2**30, 2**31 + 1])
def test_sizes_are_known_before_a_file_is_read(cascade: Path, size: int) -> None:
    (path,) = cascade.glob("*.onnx")
    os.truncate(path, size)  # takes no room
    with refused(str(path), ValueError), pytest.raises(ValueError, match=rf"has {size:,} bytes, and .* were exported"):
        OnnxCascade(cascade)
    edit(cascade / "cascade.json", "members.0.bytes", size)
    with refused(str(path), ValueError), pytest.raises(ValueError, match="is longer than 2,147,483,648 bytes"):
        OnnxCascade(cascade)
    os.truncate(cascade / "cascade.json", size)
    with refused("", ValueError), pytest.raises(ValueError, match=r"cascade\.json is longer than 1,048,576 bytes"):
        OnnxCascade(cascade)


# What is shown.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(COMMITTED / "digits", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["$x$ [red]x[/red]", "$\\frac{ [/]", "".join(NAMES)])
def test_names_are_shown_as_they_are(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run / "results.json").read_text())
    results["name"] = results["dataset"]["name"] = results["provenance"]["cpu"] = results["provenance"]["commit"] = name
    results["dataset"]["classes"] = [name] * len(results["dataset"]["classes"])
    for arm in results["arms"]:
        old, arm["members"][0]["name"] = arm["members"][0]["name"], name
        arm["training"]["device"] = name
        for subset in arm["subsets"]:
            subset["members"] = [name if one == old else one for one in subset["members"]]
    (run / "results.json").write_text(json.dumps(results))
    text = (run / "plan.json").read_text().replace(json.dumps(old), json.dumps(name))
    content = {key: value for key, value in json.loads(text).items() if key != "fingerprint"}
    for cluster in content["clusters"]:
        cluster["name"] += name
    (run / "plan.json").write_text(json.dumps(content))
    found, plan = read_results(run)
    figures.draw_run(found, plan, run / "figures")
    page = write_report(run).read_text()
    assert "<b>&" not in page and "\x1b" not in page and "<script" not in page
    out = Console(file=sys.stdout, width=200, force_terminal=True, color_system=None)
    out.print(result_table(found))
    cli._say(str(plan))
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and "\x07" not in shown and "\u202e" not in shown and "\x00" not in shown
    if name.isprintable():
        assert name in shown


@pytest.mark.parametrize("name", NAMES)
def test_comparisons_show_names_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = json.loads((COMMITTED / "digits-seeds" / "comparison.json").read_text())
    comparison["name"] = comparison["dataset"]["name"] = name
    for index, arm in enumerate(comparison["arms"]):
        arm.update(label=f"{name}{index}", group=name, series=name)
    read = content_as(Comparison, comparison, tmp_path, "no remedy")
    figures.draw_arms(read, tmp_path)
    out = Console(file=sys.stdout, width=200, force_terminal=True, color_system=None)
    for table in comparison_tables(read):
        out.print(table)
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and "\x07" not in shown and "\x00" not in shown
    if name.isprintable():
        assert f"{name}0" in shown


def test_a_dollar_is_a_dollar(tmp_path: Path) -> None:
    comparison = json.loads((COMMITTED / "digits-seeds" / "comparison.json").read_text())
    for arm in comparison["arms"]:
        arm["label"] = "$\\alpha$"
    drawn = figures.arms_flops(content_as(Comparison, comparison, tmp_path, "no remedy"))
    texts = [text for text in drawn.findobj() if getattr(text, "get_text", lambda: "")() == "$\\alpha$"]
    assert texts and not any(text.get_parse_math() for text in texts)


def test_errors_do_not_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "\x1b[31mrecipe.yaml").write_text("a: [")
    monkeypatch.setattr(sys, "argv", ["superweights", "plan", str(tmp_path / "\x1b[31mrecipe.yaml")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    shown = capsys.readouterr().err
    assert "\x1b[31mrecipe" not in shown and "\\x1b[31mrecipe.yaml is no YAML" in shown
    record = logging.LogRecord("a", logging.WARNING, "", 1, "%s", ("\x1b]0;title\x07",), None)
    assert "\x1b" not in cli._EscapingFormatter("%(message)s").format(record)


RESULTS = (
    "arms.0.num_parameters", "arms.0.members", "arms.0.members.0.flops", "arms.0.members.0.metrics.accuracy",
    "arms.0.ensemble.latency_ms", "arms.1.name", "arms.0.subsets.0.members", "arms.0.reliability.0.count",
    "arms.0.history", "arms.0.history.0.train_loss", "dataset.num_test", "dataset.image_shape", "seed",
    "arms.0.anytime.curves.0.points.0.flops", "provenance.packages", "name",
)  # fmt: skip
TAKEN = {("name", "many"), ("arms.1.name", "many"), ("provenance.packages", "{'a': {}}")}


@pytest.mark.parametrize("place", RESULTS)
@pytest.mark.parametrize(
    "value", ["many", -5, 10**400, [None], {"a": {}}, float("nan")], ids=lambda value: f"{value!r:.9}"
)
def test_results_that_were_edited(run: Path, place: str, value: object) -> None:
    edit(run / "results.json", place, value)
    if (place, str(value)[:99]) in TAKEN:
        read_results(run)
        return
    match = rf"results\.json is damaged \({re.escape(place)}.*\): evaluate the run again"
    with pytest.raises(swe.SuperWeightError, match=match):
        write_report(run)
    assert not (run / "report.html").exists()


FILES = {
    "search": ("digits-search", "search/search.json", [
        "clusters.0.similarity", "clusters.0.targets", "clusters.0.leaders", "anchor",
    ]),
    "comparison": ("digits-seeds", "comparison.json", [
        "arms.0.runs", "arms.0.summary", "arms.0.num_parameters", "arms.0.summary.accuracy.mean",
        "arms.0.runs.0.metrics",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("value", [-5, [None], {"a": [[]]}, float("nan")], ids=lambda value: f"{value!r:.9}")
def test_other_files_that_were_edited(
    tmp_path: Path, kind: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, name, places = FILES[kind]
    run = shutil.copytree(COMMITTED / folder, tmp_path / "run")
    whole = (run / name).read_text()
    for place in places:
        (run / name).write_text(whole)
        edit(run / name, place, value)
        monkeypatch.setattr(sys, "argv", ["superweights", "plot", str(run), "--out", str(tmp_path / "figures")])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        shown = capsys.readouterr().err
        where = place.removesuffix(".accuracy.mean") if isinstance(value, (int, float)) else place
        assert f"{name} is damaged ({where}" in shown or f"{run}: the {kind}" in shown, shown
        assert where == place or "needs the mean of accuracy, from 0 to 1" in shown


@pytest.mark.parametrize("change", [lambda members: members[:-1], lambda members: members[::-1]])
def test_arms_of_other_members(run: Path, change: Callable[[list], list]) -> None:
    edit(run / "results.json", "arms.1.members", change)
    with pytest.raises(swe.SuperWeightError, match="the members of its arms must have the same names"):
        read_results(run)
