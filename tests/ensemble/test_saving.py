"""Ensembles as folders."""

from __future__ import annotations

import pytest
import torch
from refusals import assert_refused
from saved_files import edit_json, rewrite

import superweight_ensembles as swe
from superweight_ensembles.anytime import write_policy


def registered() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {
        "wrn": swe.wide_resnet(10, 2, 5),
        "timm": swe.build_member("timm/resnet10t", num_classes=5),
        "vision": swe.build_member("torchvision/mobilenet_v3_small", num_classes=5),
    }
    return swe.SuperWeightEnsemble(members, budget=0.9).eval()


def small() -> swe.SuperWeightEnsemble:
    options = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
    members = {"wrn": swe.wide_resnet(10, 1, 5), "timm": swe.build_member("timm/resnet18", num_classes=5, **options)}
    return swe.SuperWeightEnsemble(members, budget=0.9).eval()


def test_folder_round_trip_by_registry_name(tmp_path) -> None:
    ensemble = registered()
    images = torch.randn(2, 3, 32, 32)
    ensemble.save(tmp_path / "saved")
    ensemble.save(tmp_path / "saved")  # replaces itself
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()
    assert loaded.plan == ensemble.plan
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), ensemble(images), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "plan.json"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    buffers = sum(tensor.numel() for tensor in ensemble.buffers())
    on_disk = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert on_disk < 4.2 * (ensemble.num_parameters + buffers) + 100_000  # the bank, not the members


def test_damaged_folders_are_refused(tmp_path) -> None:
    folder = tmp_path / "saved"
    assert_refused("is no saved ensemble", swe.SuperWeightEnsemble.load, folder)
    small().save(folder)
    config, tensors = ((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    edit_json(folder / "config.json", lambda content: {**content, "format": 99})
    assert_refused("has format 99; this version reads 3", swe.SuperWeightEnsemble.load, folder)
    rewrite(folder / "config.json", config)
    rewrite(folder / "model.safetensors", tensors[: len(tensors) // 2])
    assert_refused(r"model\.safetensors", swe.SuperWeightEnsemble.load, folder)
    (folder / "model.safetensors").unlink()
    assert_refused(r"model\.safetensors is missing", swe.SuperWeightEnsemble.load, folder)


@pytest.mark.parametrize("name", ["config.json", "plan.json", "model.safetensors"])
def test_the_manifest_sees_any_change(tmp_path, name: str) -> None:
    folder = tmp_path / "saved"
    small().save(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(swe.SuperWeightError, match=rf"{name} has .* bytes, and .* were written: the file is damaged"):
        swe.SuperWeightEnsemble.load(folder)
    (folder / name).write_bytes(content[:-40] + bytes([content[-40] ^ 4]) + content[-39:])
    assert_refused(f"{name} does not have its checksum", swe.SuperWeightEnsemble.load, folder)
    (folder / name).write_bytes(content)
    (folder / "manifest.json").unlink()
    assert_refused(r"manifest\.json is missing", swe.SuperWeightEnsemble.load, folder)


def test_saving_replaces_saved_ensembles_alone(tmp_path) -> None:
    ensemble, folder = small(), tmp_path / "mine"
    folder.mkdir()
    ensemble.save(folder)  # an empty folder is fine
    (folder / "thesis.txt").write_text("years of work")
    assert_refused("exists and is no saved ensemble", ensemble.save, folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert_refused("exists and is no saved ensemble", ensemble.save, folder / "thesis.txt")


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "weights"])
def test_a_saved_ensemble_cannot_name_weight_files(tmp_path, option: str) -> None:
    small().save(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"

    def remade(**architecture: object) -> None:
        edit_json(path, lambda content: content["members"]["timm"].update(architecture))
        swe.SuperWeightEnsemble.load(tmp_path / "saved")

    assert_refused(f"'{option}' reads trained weights", remade, options={option: "/tmp/evil.pth"})
    assert_refused(r"config\.json, members\.timm\.model must be a text", remade, model=5, options={})


def test_registry_suggests_the_nearest_model() -> None:
    with pytest.raises(swe.SuperWeightError, match=r"unknown model 'timm/resnet81': did you mean 'timm/resnet18'"):
        swe.build_member("timm/resnet81", num_classes=3)
    with pytest.raises(swe.SuperWeightError, match="unknown model 'wideresnet': did you mean 'wide_resnet'"):
        swe.build_member("wideresnet", num_classes=3)
    with pytest.raises(swe.SuperWeightError, match="unknown option of wide_resnet 'wdith': did you mean 'width'"):
        swe.build_member("wide_resnet", num_classes=3, depth=16, wdith=2)
    with pytest.raises(swe.SuperWeightError, match="reads images of 3 channels; the data have 1"):
        swe.build_member("torchvision/resnet18", num_classes=3, in_channels=1)
    assert_refused("depth of a WideResNet is 6n", swe.wide_resnet, 12, 2, 10)


def test_a_policy_beside_a_damaged_ensemble_does_not_hide_the_damage(tmp_path) -> None:
    ensemble = small()
    ensemble.save(tmp_path / "saved")
    model = tmp_path / "saved" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    write_policy(tmp_path / "saved", ensemble.member_names, (3, 32, 32), None)
    assert_refused(r"model\.safetensors does not have its checksum", swe.AnytimePredictor.load, tmp_path / "saved")
