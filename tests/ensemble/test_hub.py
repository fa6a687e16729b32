"""Ensembles on the Hub, without a network: what is written, what is uploaded, what is read back."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from refusals import assert_refused
from saved_files import edit_json, rewrite
from small_networks import two_mlps

import superweight_ensembles as swe
from superweight_ensembles.ensemble import hub

SAVED = ["README.md", "config.json", "manifest.json", "model.safetensors", "plan.json"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("a test asked the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def registered(wide: int = 1, deep: int = 1) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"wide": swe.wide_resnet(10, wide, 5), "deep": swe.wide_resnet(16, deep, 5)}
    return swe.SuperWeightEnsemble(members, budget=0.5 if wide > 1 else 0.9).eval()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_round_trip(tmp_path: Path) -> None:
    ensemble, images = registered(), torch.randn(2, 3, 16, 16)
    ensemble.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == SAVED
    with torch.no_grad():
        expected = ensemble(images)
        for given in (tmp_path / "saved", str(tmp_path / "saved")):
            loaded = swe.SuperWeightEnsemble.from_pretrained(given).eval()
            assert loaded.plan == ensemble.plan
            torch.testing.assert_close(loaded(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(
            swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()(images), expected, rtol=0, atol=0
        )
    ensemble.save(tmp_path / "plain")
    for name in ("config.json", "plan.json", "model.safetensors"):  # one format, whichever method wrote it
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_the_members_are_not_stored(tmp_path: Path) -> None:
    ensemble = registered(wide=4, deep=2)
    ensemble.save_pretrained(tmp_path / "saved")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "saved").iterdir())
    buffers = sum(tensor.numel() for tensor in ensemble.buffers())
    assert on_disk < 4 * (ensemble.num_parameters + buffers) + 60_000
    assert on_disk < 0.6 * 4 * ensemble.independent_parameters


def test_a_card_that_was_written_is_kept(tmp_path: Path) -> None:
    ensemble, folder = registered(), tmp_path / "saved"
    ensemble.save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    (folder / "anytime.json").write_text("{}")  # thresholds of weights that are gone
    ensemble.save_pretrained(folder)
    assert names(folder) == SAVED and (folder / "README.md").read_text() == "mine"
    ensemble.save(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_own_modules_are_given_again(tmp_path: Path) -> None:
    ensemble = swe.SuperWeightEnsemble(two_mlps(), budget=1.2)
    ensemble.save_pretrained(tmp_path / "own")
    with pytest.raises(swe.SuperWeightError, match="member 'a' was not made by a registry name: load with members="):
        swe.SuperWeightEnsemble.from_pretrained(tmp_path / "own")
    loaded = swe.SuperWeightEnsemble.from_pretrained(tmp_path / "own", members=two_mlps())
    images = torch.randn(4, 6)
    torch.testing.assert_close(loaded(images), ensemble(images), rtol=0, atol=0)
    card = (tmp_path / "own" / "README.md").read_text()
    assert "members={'a': ..., 'b': ...}" in card and "a module of its own" in card


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"of": "another program"}')
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_refused("exists and is no saved ensemble", registered().save_pretrained, tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"of": "another program"}'
    assert_refused("config= is not taken", registered().save_pretrained, tmp_path / "new", config={"lr": 1})
    assert not (tmp_path / "new").exists()


def test_folders_that_are_no_ensemble_never_ask_the_hub(tmp_path: Path) -> None:
    assert_refused(r"plan\.json is missing: .* is no saved ensemble", swe.SuperWeightEnsemble.from_pretrained, tmp_path)
    (tmp_path / "config.json").write_text("not JSON")  # the mixin would read it first
    assert_refused(r"plan\.json is missing", swe.SuperWeightEnsemble.from_pretrained, str(tmp_path))
    (tmp_path / "file").write_text("")
    assert_refused("is no saved ensemble", swe.SuperWeightEnsemble.from_pretrained, tmp_path / "file")
    with pytest.raises(swe.SuperWeightError, match="is no folder: give what save_pretrained wrote"):
        swe.SuperWeightEnsemble.from_pretrained(tmp_path / "absent")


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    registered().save_pretrained(tmp_path / "saved")
    for name, message in (
        ("config.json", "has format 99; this version reads 3"),
        ("plan.json", 'must be a JSON object with "format": 2'),
    ):
        path = tmp_path / "saved" / name
        text = path.read_text()
        edit_json(path, lambda content: {**content, "format": 99})
        assert_refused(message, swe.SuperWeightEnsemble.from_pretrained, tmp_path / "saved")
        rewrite(path, text)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict]:
    """What would have gone to the Hub; the files in ``tmp_path / "uploaded"``."""
    seen: list[dict] = []

    def create_repo(self, repo_id, **options):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, **options):
        copied = tmp_path / "uploaded"
        copied.mkdir()
        for path in Path(folder_path).rglob("*"):
            assert path.is_file(), path
            (copied / path.name).write_bytes(path.read_bytes())
        seen.append(options)
        return "https://huggingface.co/user/mine/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return seen


def test_a_push_uploads_the_bank_and_a_card(uploads: list[dict], tmp_path: Path) -> None:
    ensemble = registered()
    assert ensemble.push_to_hub("user/mine", private=True, branch="next").endswith("commit/1")
    assert [(seen["repo_id"], seen["revision"]) for seen in uploads] == [("user/mine", "next")]
    uploaded = tmp_path / "uploaded"
    assert names(uploaded) == SAVED  # no pickle, no second configuration
    config = json.loads((uploaded / "config.json").read_text())
    assert sorted(config) == ["format", "images", "members", "select", "task"]
    card = huggingface_hub.ModelCard((uploaded / "README.md").read_text())
    assert card.data.library_name == "superweight-ensembles" and "ensemble" in card.data.tags
    assert f"{ensemble.num_parameters:,} trainable parameters" in card.text and "| wide | wide_resnet |" in card.text
    # The card's own command loads what was uploaded.
    command = next(line for line in card.text.splitlines() if "from_pretrained" in line)
    assert "from_pretrained('user/mine')" in command
    variables: dict = {"swe": swe}
    exec(command.replace("'user/mine'", repr(str(uploaded))), variables)
    assert variables["ensemble"].plan == ensemble.plan


def test_a_push_refuses_what_it_would_ignore(uploads: list[dict]) -> None:
    assert_refused("config= is not taken", registered().push_to_hub, "user/mine", config={"lr": 1})
    assert_refused("'user/a/b' is no name for a repository", registered().push_to_hub, "user/a/b")
    assert not uploads


def test_the_hub_is_asked_for_our_files_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registered().save_pretrained(tmp_path / "cache")
    asked: list[dict] = []

    def snapshot_download(repo_id, **options):
        asked.append({"repo_id": repo_id, **options})
        return str(tmp_path / "cache")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    loaded = swe.SuperWeightEnsemble.from_pretrained("user/mine", revision="v1", token="t", local_files_only=True)
    assert loaded.member_names == ("wide", "deep")
    assert asked == [
        {
            "repo_id": "user/mine", "revision": "v1", "token": "t", "local_files_only": True, "cache_dir": None,
            "force_download": False, "allow_patterns": [*SAVED[:1], "anytime.json", *SAVED[1:]],
        }
    ]  # fmt: skip


def test_names_that_the_hub_cannot_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(swe.SuperWeightError, match="'runs/mine/ensemble' is no folder here, and no repository"):
        swe.SuperWeightEnsemble.from_pretrained("runs/mine/ensemble")

    def unreachable(*arguments, **options):
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand more")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(swe.SuperWeightError, match=r"'user/mine' is no folder here.*cached snapshot folder$"):
        swe.SuperWeightEnsemble.from_pretrained("user/mine")
    with pytest.raises(TypeError, match="unexpected keyword argument 'budget'"):
        swe.SuperWeightEnsemble.from_pretrained("user/mine", budget=0.5)


def test_the_constructor_is_as_before() -> None:
    signature = inspect.signature(swe.SuperWeightEnsemble)
    assert list(signature.parameters) == ["members", "budget", "plan", "rng", "task", "select", "plan_options"]
    assert_refused("missing a required argument: 'members'", swe.SuperWeightEnsemble)
    assert_refused(r"give either budget= .* or plan=", swe.SuperWeightEnsemble, two_mlps())
    with pytest.raises(swe.SuperWeightError, match="unknown plan option 'config'"):
        swe.SuperWeightEnsemble(two_mlps(), budget=0.9, config={"budget": 1.0})


def test_nothing_holds_the_original_members() -> None:
    members = two_mlps()
    watched = [weakref.ref(module) for module in members.values()]
    ensemble = swe.SuperWeightEnsemble(members, budget=1.2)
    del members
    gc.collect()
    assert [reference() for reference in watched] == [None, None]
    assert ensemble._hub_mixin_config is None
    again = copy.deepcopy(ensemble)
    images = torch.randn(2, 6)
    torch.testing.assert_close(again(images), ensemble(images), rtol=0, atol=0)


def test_a_card_shows_names_as_text() -> None:
    members = dict(zip(("<script>alert(1)</script>|x", "b"), two_mlps().values()))
    card = swe.SuperWeightEnsemble(members, budget=1.5).generate_model_card().text
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 4 and all(line.count("|") == 4 for line in table)
    assert "<script>" not in "".join(table)
