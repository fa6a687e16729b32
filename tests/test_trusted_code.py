"""Own networks and data sets in recipes: code that a text names runs where it is trusted, and not otherwise."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused

import superweight_ensembles as swe
from superweight_ensembles.__main__ import main
from superweight_ensembles.experiment import load_recipe, parse_recipe
from superweight_ensembles.models import trusted

CODE = """
import superweight_ensembles as swe
from torch import nn

ran = True


class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.layers(images))


def net_of_any_channels(**told):
    assert sorted(told) == ["in_channels", "num_classes"]
    return Net(told["num_classes"])


def patterns(count=64, seed=0):
    return swe.load_data("synthetic", num_train=count, num_test=32, seed=seed)


def no_network(num_classes):
    return [num_classes]


def no_data():
    return [1]


number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's in the working directory."""
    (tmp_path / "own_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    import sys

    sys.modules.pop("own_code", None)


def content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "data": {"name": "python:own_code.patterns", "count": 48, "num_classes": 4, "channels": 3},
        "members": [
            {"name": "a", "model": "python:own_code.Net", "width": 12},
            {"name": "b", "model": "python:own_code.Net"},
            {"name": "c", "model": "python:own_code.net_of_any_channels"},
        ],
        "sharing": {"budget": 0.9},
        "training": {"epochs": 1, "batch_size": 8, "device": "cpu", "num_threads": 1},
        "baseline": "none",
        **changes,
    }


def test_nothing_runs_without_trust(code: Path) -> None:
    for call in (
        lambda: swe.build_member("python:own_code.Net", num_classes=4),
        lambda: swe.load_data("python:own_code.patterns"),
        lambda: parse_recipe(content()),
        lambda: parse_recipe(content(data={"name": "synthetic"})).prepare(),
    ):
        assert_refused(r"names code that would run here: superweights --trust", call)
    import sys

    assert "own_code" not in sys.modules


def test_a_run_of_own_code_is_trained_and_read_where_it_is_trusted(code: Path) -> None:
    with trusted():
        found = swe.run(content(), out="run")
        assert [member.name for member in found.arms[0].members] == ["a", "b", "c"]
        assert found.dataset.num_train == 43
        ensemble = swe.SuperWeightEnsemble.load("run/shared/ensemble")
    assert ensemble(torch.zeros(2, 3, 8, 8)).shape == (3, 2, 4)
    assert_refused("names code that would run here", swe.SuperWeightEnsemble.load, "run/shared/ensemble")
    members = {name: ensemble.materialize(name) for name in "abc"}
    again = swe.SuperWeightEnsemble.load("run/shared/ensemble", members)  # networks that are there need no trust
    torch.testing.assert_close(again(torch.ones(2, 3, 8, 8)), ensemble(torch.ones(2, 3, 8, 8)))


def test_the_command_line_asks_for_trust(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = code / "own.yaml"
    with trusted():
        recipe.write_text(parse_recipe(content()).to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(recipe)])
    assert ended.value.code == 2 and "superweights --trust" in capsys.readouterr().err
    for command in (["train", str(recipe), "--out", "run"], ["evaluate", "run"], ["plan", str(recipe)]):
        with trusted(), pytest.raises(SystemExit) as ended:  # what --trust sets is set back for the tests after it
            main(["--trust", *command])
        assert ended.value.code == 0, command
    assert (code / "run" / "results.json").is_file()


MISTAKES: dict[str, tuple[Any, str]] = {
    "no module": (lambda: swe.build_member("python:Net", num_classes=4), "write python:package.module.Name"),
    "no such module": (lambda: swe.build_member("python:absent.Net", num_classes=4), "cannot be imported: Mod"),
    "no such name": (lambda: swe.build_member("python:own_code.Nets", num_classes=4), "cannot be imported: Attribute"),
    "a number": (lambda: swe.build_member("python:own_code.number", num_classes=4), "must be a class or a function"),
    "no network": (lambda: swe.build_member("python:own_code.no_network", num_classes=4), "must make a torch.nn.Mod"),
    "no data": (lambda: swe.load_data("python:own_code.no_data"), "must make ImageData; it makes a list"),
    "an unknown option": (lambda: swe.load_data("python:own_code.patterns", counts=3), "did you mean 'count'"),
    "an unknown option of a network": (
        lambda: swe.build_member("python:own_code.Net", num_classes=4, widths=3), "width"
    ),
    "weights": (
        lambda: swe.build_member("python:own_code.Net", num_classes=4, pretrained=True), "own_code.Net"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str, code: Path) -> None:
    call, told = MISTAKES[name]
    with trusted(), pytest.raises(swe.SuperWeightError, match=told):
        call()


def test_options_of_a_loader_go_through_as_for_others(code: Path) -> None:
    with trusted():
        data = swe.load_data("python:own_code.patterns", count=60, num_train=20)
        assert len(data.train) == 20
        seeds = [parse_recipe(content(seed=seed)).load_data() for seed in (1, 1, 2)]
    images = [next(iter(one.loader("test", 32)))[0] for one in seeds]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_installed_packages_offer_models_and_data_sets(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [
        importlib.metadata.EntryPoint("offered_net", "own_code:Net", "superweight_ensembles.models"),
        importlib.metadata.EntryPoint("offered_data", "own_code:patterns", "superweight_ensembles.datasets"),
        importlib.metadata.EntryPoint("broken_net", "own_code:Nothing", "superweight_ensembles.models"),
    ]

    def entry_points(group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        return [one for one in offered if one.group == group and name in (None, one.name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert swe.build_member("offered_net", num_classes=4, width=5).fc.in_features == 5
    assert len(swe.load_data("offered_data", count=40).train) == 36
    assert_refused("did you mean 'offered_net'", swe.build_member, "offered_nett", num_classes=4)
    assert_refused("did you mean 'offered_data'", swe.load_data, "offered_dat")
    with pytest.raises(swe.SuperWeightError, match="which an installed package offers as own_code:Nothing"):
        swe.build_member("broken_net", num_classes=4)
    members = [{"name": "a", "model": "offered_net"}, {"name": "b", "model": "offered_net", "width": 12}]
    recipe = parse_recipe(content(data={"name": "offered_data", "num_classes": 4, "channels": 3}, members=members))
    assert swe.run(recipe, out=code / "run").arms[0].members[0].name == "a"
    ensemble = swe.SuperWeightEnsemble.load(code / "run" / "shared" / "ensemble")
    assert ensemble.member_names == ("a", "b")
    assert load_recipe(code / "run" / "recipe.yaml") == recipe
