"""Members that come with trained weights: of a library that is stood in for, or of a file of tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from refusals import assert_refused
from safetensors.torch import save_file
from torch import nn

import superweight_ensembles as swe

WRN = {"num_classes": 3, "depth": 10, "width": 1}
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}


def equal(one: nn.Module, other: nn.Module, *, but: str = "nothing") -> bool:
    held, given = one.state_dict(), other.state_dict()
    return all(torch.equal(held[name], given[name]) for name in held if not name.startswith(but))


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """What timm and torchvision hand out when they are asked for trained weights; nothing is fetched."""
    made: dict[str, nn.Module] = {}
    create, get_model = timm.create_model, torchvision.models.get_model

    def create_trained(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        made[name] = create(name, **options)
        return made[name]

    def get_trained(name: str, weights: str | None = None, **options: object) -> nn.Module:
        made[name] = get_model(name, weights=None, **options)
        return made[name]

    monkeypatch.setattr("superweight_ensembles.models.pretrained.timm.create_model", create_trained)
    monkeypatch.setattr("superweight_ensembles.models.pretrained.torchvision.models.get_model", get_trained)
    return made


def test_weights_of_timm_are_kept(offered: dict[str, nn.Module]) -> None:
    member = swe.build_member("timm/resnet18", num_classes=3, pretrained=True, **SMALL)
    assert equal(member, offered["resnet18"]) and member.fc.out_features == 3


def test_weights_of_torchvision_are_kept_but_for_a_head_of_other_classes(offered: dict[str, nn.Module]) -> None:
    member = swe.build_member("torchvision/resnet18", num_classes=3, pretrained=True)
    assert offered["resnet18"].fc.out_features == 1000 and member.fc.out_features == 3
    assert equal(member, offered["resnet18"], but="fc.")


@pytest.mark.parametrize("model", ["wide_resnet", "mlp"])
def test_networks_without_trained_weights_are_named(model: str) -> None:
    options = {"wide_resnet": {"depth": 10, "width": 1}, "mlp": {"widths": [4], "pixels": 4}}[model]
    with pytest.raises(
        swe.SuperWeightError, match=rf"model '{model}': no trained weights: .* weights= takes a .safetensors file"
    ):
        swe.build_member(model, num_classes=3, pretrained=True, **options)


def test_weights_that_cannot_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    get_model = torchvision.models.get_model

    def refuse(name: str, weights: str | None = None, **options: object) -> nn.Module:
        if weights is not None:
            raise OSError("no network")
        return get_model(name, weights=None, **options)

    monkeypatch.setattr("superweight_ensembles.models.pretrained.torchvision.models.get_model", refuse)
    with pytest.raises(
        swe.SuperWeightError, match=r"no trained weights: .*no network; weights= takes a .safetensors file"
    ):
        swe.build_member("torchvision/resnet18", num_classes=3, pretrained=True)


def test_a_file_of_tensors_is_read(tmp_path: Path) -> None:
    trained = swe.wide_resnet(10, 1, 7)
    trained(torch.randn(4, 3, 8, 8))  # moves norm statistics
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    same = swe.build_member("wide_resnet", num_classes=7, depth=10, width=1, weights=tmp_path / "trained.safetensors")
    assert equal(same, trained)
    other = swe.build_member("wide_resnet", **WRN, weights=str(tmp_path / "trained.safetensors"))
    head = next(name for name, layer in other.named_modules() if isinstance(layer, nn.Linear))
    assert equal(other, trained, but=head) and other.get_submodule(head).out_features == 3
    # An ensemble of members that came with weights is loaded like any other.
    ensemble = swe.SuperWeightEnsemble({"a": same}, budget=1.0)
    ensemble.save(tmp_path / "saved")
    assert equal(swe.SuperWeightEnsemble.load(tmp_path / "saved").materialize("a"), ensemble.materialize("a"))


def test_counters_of_norms_may_be_missing(tmp_path: Path) -> None:
    trained = swe.wide_resnet(10, 1, 3)
    kept = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    save_file(kept, tmp_path / "trained.safetensors")
    assert equal(
        swe.build_member("wide_resnet", **WRN, weights=tmp_path / "trained.safetensors"),
        trained,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("stem.weight"), r"has no stem\.weight, \(16, 3, 3, 3\) in this network"),
        (lambda state: state.update(extra=torch.zeros(2)), r"this network has no extra"),
        (
            lambda state: state.update({"stem.weight": torch.zeros(16, 1, 3, 3)}),
            r"stem\.weight is \(16, 1, 3, 3\), in this network \(16, 3, 3, 3\)",
        ),
        (lambda state: state.update({"stem.weight": torch.tensor(1.0)}), r"stem\.weight is \(\), in this network"),
    ],
)
def test_weights_of_another_architecture_are_refused(change, message: str, tmp_path: Path) -> None:
    state = dict(swe.wide_resnet(10, 1, 3).state_dict())
    assert "stem.weight" in state
    change(state)
    save_file(state, tmp_path / "trained.safetensors")
    with pytest.raises(swe.SuperWeightError, match=f"trained.safetensors.*{message}"):
        swe.build_member("wide_resnet", **WRN, weights=tmp_path / "trained.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["trained.pth", "trained.bin", "trained.ckpt", "trained"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    told = r'save_file\(torch\.load\("trained.*", weights_only=True\), "trained\.safetensors"\)'
    with pytest.raises(swe.SuperWeightError, match=rf"no \.safetensors file, .*{told}"):
        swe.build_member("wide_resnet", **WRN, weights=name)
    assert not (tmp_path / "exploded").exists()


def test_what_contradicts_itself_or_is_not_there() -> None:
    for options, message in (
        ({"pretrained": True, "weights": "x.safetensors"}, "pretrained and weights both say"),
        ({"pretrained": "yes"}, "pretrained must be true or false; got 'yes'"),
        ({"weights": "missing.safetensors"}, r"weights: no file missing\.safetensors"),
    ):
        assert_refused(message, swe.build_member, "wide_resnet", **WRN, **options)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_damaged_files_of_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    path.write_bytes(content)
    assert_refused(r"trained\.safetensors", swe.build_member, "wide_resnet", **WRN, weights=path)
