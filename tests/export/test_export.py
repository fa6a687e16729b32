"""Members and cascades as files: what runs them answers as the network does, and needs nothing of this library."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anytime_reference
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from command_line import superweights
from refusals import assert_refused
from safetensors.torch import load_model
from small_networks import two_mlps
from torch import nn
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.anytime import CONFIDENCES, AnytimePredictor, ExitPolicy, exits_of
from superweight_ensembles.anytime import policy as exit_policy
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.export import OnnxCascade, export_cascade, export_member, load_member, onnx_cascade
from superweight_ensembles.export import member as onnx_file

SHAPE, CLASSES = (3, 32, 32), 5
SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx", "state-dict": ".safetensors"}
MODELS = {
    "wrn": lambda: swe.wide_resnet(10, 2, CLASSES),
    "resnet": lambda: swe.build_member("timm/resnet10t", num_classes=CLASSES),
    "vit": lambda: swe.build_member("timm/vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=3),
}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Members of one bank as plain networks, with norm statistics of their own."""
    torch.manual_seed(0)
    ensemble = swe.SuperWeightEnsemble({name: make() for name, make in MODELS.items()}, budget=0.9).train()
    with torch.no_grad():
        ensemble(torch.randn(8, *SHAPE))
    return {name: ensemble.materialize(name).eval() for name in ensemble.member_names}


@pytest.fixture(scope="module")
def exported(networks, tmp_path_factory) -> Path:
    """A folder with every network in every format."""
    folder = tmp_path_factory.mktemp("exported")
    for name, network in networks.items():
        for format, suffix in SUFFIXES.items():
            path = export_member(network, folder / f"{name}{suffix}", format=format, input_shape=SHAPE)
            assert path == (folder / f"{name}{suffix}").resolve()
    return folder


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize("name", MODELS)
def test_every_format_answers_as_the_network(exported: Path, networks, name: str) -> None:
    program = torch.export.load(exported / f"{name}.pt2").module()
    loaded = load_member(exported / f"{name}.safetensors")
    for batch_size in (1, 7, 64):
        images = torch.randn(batch_size, *SHAPE)
        with torch.no_grad():
            expected = networks[name](images)
            assert_close(program(images), expected, atol=1e-6, rtol=1e-6)
            assert_close(loaded(images), expected, atol=0, rtol=0)
        assert_close(run_onnx(exported / f"{name}.onnx", images), expected, atol=1e-4, rtol=0)


def test_nothing_else_is_written(exported: Path) -> None:
    expected = {f"{name}{suffix}" for name in MODELS for suffix in (*SUFFIXES.values(), ".safetensors.json")}
    assert {path.name for path in exported.iterdir()} == expected
    source = str(Path(swe.__file__).parent).encode()
    assert [path.name for path in exported.iterdir() if source in path.read_bytes()] == []


def test_files_need_nothing_of_this_library(exported: Path, networks, tmp_path: Path) -> None:
    images = torch.randn(3, *SHAPE)
    np.save(tmp_path / "images.npy", images.numpy())
    code = f"""
import sys
sys.modules["superweight_ensembles"] = None
import numpy, onnxruntime, torch
images = numpy.load(r"{tmp_path / "images.npy"}")
program = torch.export.load(r"{exported / "wrn.pt2"}").module()
numpy.save(r"{tmp_path / "program.npy"}", program(torch.from_numpy(images)).detach().numpy())
session = onnxruntime.InferenceSession(r"{exported / "wrn.onnx"}", providers=["CPUExecutionProvider"])
numpy.save(r"{tmp_path / "session.npy"}", session.run(None, {{"images": images}})[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with torch.no_grad():
        expected = networks["wrn"](images).numpy()
    for answers in ("program", "session"):
        np.testing.assert_allclose(np.load(tmp_path / f"{answers}.npy"), expected, atol=1e-5)


def test_a_state_dict_is_the_authors_own(exported: Path, networks) -> None:
    plain = timm.create_model("resnet10t", num_classes=CLASSES).eval()
    load_model(plain, str(exported / "resnet.safetensors"))
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(plain(images), networks["resnet"](images))
    notes = json.loads((exported / "resnet.safetensors.json").read_text())
    assert notes["architecture"]["model"] == "timm/resnet10t"
    assert (notes["input_shape"], notes["num_classes"]) == ([3, 32, 32], CLASSES)
    assert notes["num_parameters"] == sum(parameter.numel() for parameter in plain.parameters())


def small(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


SMALL_SHAPE = (3, 2, 2)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1)).relu()))


@pytest.mark.parametrize("format", SUFFIXES)
def test_tied_weights(tmp_path: Path, format: str) -> None:
    network, images = Tied().eval(), torch.randn(7, *SMALL_SHAPE)
    path = export_member(network, tmp_path / f"tied{SUFFIXES[format]}", format=format, input_shape=SMALL_SHAPE)
    with torch.no_grad():
        expected = network(images)
        if format == "onnx":
            answered = run_onnx(path, images)
        elif format == "torch-export":
            answered = torch.export.load(path).module()(images)
        else:
            other = Tied()
            load_model(other, str(path))
            assert other.second.weight is other.first.weight
            answered = other.eval()(images)
    assert_close(answered, expected, atol=1e-5, rtol=0)
    if format == "state-dict":
        assert_refused("no registry made this network: build it", load_member, path)


def test_attention_in_eval_mode_is_exported(tmp_path: Path) -> None:
    """PyTorch's fused encoder call has no ONNX form."""
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    network = nn.Sequential(nn.Flatten(2), encoder, nn.Flatten(), nn.Linear(12, 4)).eval()
    path = export_member(network, tmp_path / "attention.onnx", format="onnx", input_shape=SMALL_SHAPE)
    images = torch.randn(7, *SMALL_SHAPE)
    with torch.no_grad():
        assert_close(run_onnx(path, images), network(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", SUFFIXES)
def test_the_network_stays_as_it_is(tmp_path: Path, format: str) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), small()).train()
    network[0].eval()
    before, drawn = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    parameters = [id(parameter) for parameter in network.parameters()]
    export_member(network, tmp_path / f"net{SUFFIXES[format]}", format=format, input_shape=SMALL_SHAPE)
    assert [module.training for module in network] == [False, True, True]
    assert [id(parameter) for parameter in network.parameters()] == parameters
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_close(network.state_dict(), before, atol=0, rtol=0)


class FixedBatch(nn.Module):
    def forward(self, images):
        return images.reshape(2, -1)


class DataDependent(nn.Module):
    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class NotInOnnx(nn.Module):
    def forward(self, images):
        return torch.special.bessel_j0(images).flatten(1)


def test_networks_that_cannot_be_exported_say_why(tmp_path: Path) -> None:
    for network, file, format, message in (
        (FixedBatch(), "fixed.pt2", "torch-export", "cannot trace FixedBatch: Constraints violated.*batch_size= fixes"),
        (DataDependent(), "data.onnx", "onnx", "cannot trace DataDependent: .*data-dependent.*'state-dict' takes"),
        (NotInOnnx(), "bessel.onnx", "onnx", r"torch\.onnx cannot translate NotInOnnx: .*bessel_j0"),
    ):
        path = tmp_path / "new" / file
        assert_refused(message, export_member, network, path, format=format, input_shape=SMALL_SHAPE)
    assert list((tmp_path / "new").iterdir()) == []
    options = {"format": "torch-export", "input_shape": SMALL_SHAPE, "batch_size": 2}
    path = export_member(FixedBatch(), tmp_path / "new" / "fixed.pt2", **options)
    images = torch.randn(2, *SMALL_SHAPE)
    assert torch.equal(torch.export.load(path).module()(images), images.flatten(1))


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = export_member(small(), tmp_path / "four.onnx", format="onnx", input_shape=SMALL_SHAPE, batch_size=4)
    assert run_onnx(path, torch.zeros(4, *SMALL_SHAPE)).shape == (4, 4)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run_onnx(path, torch.zeros(5, *SMALL_SHAPE))


def test_an_onnx_file_that_answers_otherwise_is_not_written(monkeypatch, tmp_path: Path) -> None:
    network = small()
    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "_TOLERANCE", -1.0)
        with pytest.raises(swe.SuperWeightError, match=r"onnxruntime and PyTorch differ by .* nothing is written"):
            export_member(network, tmp_path / "net.onnx", format="onnx", input_shape=SMALL_SHAPE)
    with torch.no_grad():
        network[1].weight.fill_(math.nan)
    with pytest.raises(swe.SuperWeightError, match="differ by nan"):
        export_member(network, tmp_path / "net.onnx", format="onnx", input_shape=SMALL_SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(monkeypatch, tmp_path: Path, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    policy = ExitPolicy(order=("a",), temperatures=(1.0,), thresholds=())
    remedy = rf'needs the package {package}: pip install "superweight-ensembles\[export\]"'
    assert_refused(remedy, export_member, small(), tmp_path / "net.onnx", format="onnx", input_shape=SMALL_SHAPE)
    assert_refused(remedy, export_cascade, {"a": small()}, policy, tmp_path / "cascade", input_shape=SMALL_SHAPE)
    assert list(tmp_path.iterdir()) == []
    export_member(small(), tmp_path / "net.pt2", format="torch-export", input_shape=SMALL_SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "onxx"}, "unknown export format 'onxx': did you mean 'onnx'"),
        ({"path": "net.pth"}, r"format 'torch-export' ends in \.pt2; got net\.pth"),
        ({"path": "folder.pt2"}, r"folder\.pt2 is a folder"),
        ({"path": "taken.pt2"}, r"taken\.pt2 exists already: overwrite"),
        ({"format": "state-dict", "path": "new.safetensors"}, r"new\.safetensors\.json exists already: overwrite"),
        ({"input_shape": (3, 0, 2)}, r"input_shape is that of one image, such as \(3, 32, 32\); got \(3, 0, 2\)"),
        ({"input_shape": 3}, "input_shape is that of one image"),
        ({"input_shape": (1, 2, 2)}, r"does not take images \(2, 1, 2, 2\): .*mat1 and mat2 .*check input_shape"),
        ({"batch_size": 0}, "batch_size .None for any. must be a whole number, at least 1"),
        ({"batch_size": 2.0}, "batch_size .None for any. must be a whole number, at least 1"),
        ({"format": "state-dict", "path": "n.safetensors", "batch_size": 2}, "has no batch size: leave batch_size out"),
        ({"module": "net"}, "export needs an nn.Module; got str"),
        ({"module": nn.Flatten(0)}, r"'Flatten' must answer one tensor of logits"),
        ({"module": nn.Sequential(nn.Flatten(), nn.Unflatten(0, (1, 2)), nn.Flatten(1))}, "answers 1 rows of logits"),
        ({"module": small().half(), "format": "onnx", "path": "n.onnx"}, r"float16: give module\.float\(\)"),
    ],
)
def test_bad_inputs(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "taken.pt2").write_text("mine")
    (tmp_path / "new.safetensors.json").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    options = {"module": small(), "path": "net.pt2", "format": "torch-export", "input_shape": SMALL_SHAPE, **changes}
    options["path"] = tmp_path / options["path"]
    assert_refused(message, export_member, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_members_are_materialised_first(tmp_path: Path) -> None:
    ensemble = swe.SuperWeightEnsemble(two_mlps(), budget=1.2)
    with pytest.raises(swe.SuperWeightError, match=r"give ensemble\.materialize\('a'\)"):
        export_member(ensemble, tmp_path / "net.pt2", format="torch-export", input_shape=(6,))
    with pytest.raises(swe.SuperWeightError, match=r"is given as ensemble\.materialize\(name\)"):
        export_member(ensemble.members["a"], tmp_path / "net.pt2", format="torch-export", input_shape=(6,))


def test_overwriting(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_text("old")
    options = {"format": "torch-export", "input_shape": SMALL_SHAPE, "overwrite": True}
    export_member(small(), tmp_path / "net.pt2", **options)
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.zeros(3, *SMALL_SHAPE)).shape == (3, 4)
    assert_refused("cannot trace", export_member, FixedBatch(), tmp_path / "net.pt2", **options)
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.zeros(3, *SMALL_SHAPE)).shape == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "has format 1; this version reads 2"),
        ({"dtype": "torch.int8"}, "dtype must be one of torch.float32"),
        ({"architecture": {"model": "wide_resnet"}}, "architecture.num_classes: Field required"),
        ({"architecture": {"model": "timm/resnet10t", "num_classes": 7}}, r"resnet\.safetensors does not fit"),
    ],
)
def test_damaged_and_missing_state_dicts(exported: Path, tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "resnet.safetensors"
    assert_refused(r"resnet\.safetensors\.json is missing", load_member, path)
    notes = tmp_path / "resnet.safetensors.json"
    shutil.copy(exported / notes.name, notes)
    assert_refused(r"resnet\.safetensors is missing", load_member, path)
    shutil.copy(exported / path.name, path)
    notes.write_text(json.dumps({**json.loads(notes.read_text()), **changes}))
    assert_refused(message, load_member, path)


# A materialised member beside the network as its author makes it, with the same weights.


def as_made(networks, name: str) -> nn.Module:
    original = MODELS[name]().eval()
    original.load_state_dict(networks[name].state_dict())
    return original


def both(networks, name: str, change, images: torch.Tensor) -> list[torch.Tensor]:
    """Answers of the bank's network and of the author's."""
    with torch.no_grad():
        return [change(one)(images) for one in (copy.deepcopy(networks[name]), as_made(networks, name))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(networks, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    images = torch.randn(4, *SHAPE).to(dtype)
    ours, original = both(networks, name, lambda network: network.to(dtype), images)
    assert ours.dtype == dtype and torch.equal(ours, original)
    half = copy.deepcopy(networks[name]).to(dtype)
    path = export_member(half, tmp_path / "half.safetensors", format="state-dict", input_shape=SHAPE)
    with torch.no_grad():
        assert torch.equal(load_member(path)(images), ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiling(networks, name: str) -> None:
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        expected = networks[name](images)
    ours, original = both(networks, name, lambda network: torch.compile(network, backend="aot_eager"), images)
    assert_close(ours, original, atol=0, rtol=0)
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_dynamic_quantisation(networks, name: str) -> None:
    def quantise(network: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it moves to torchao
            quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
        assert any(type(layer).__module__.startswith("torch.ao") for layer in quantised.modules())
        return quantised

    images = torch.randn(4, *SHAPE)
    ours, original = both(networks, name, quantise, images)
    assert torch.equal(ours, original)
    with torch.no_grad():
        expected = networks[name](images)
    assert 0 < (ours - expected).abs().max() < 0.1 * expected.abs().max()


# Cascades.

ORDER = ("b/2", "a", "../c")
FLOPS = {"a": 20, "b/2": 3, "../c": 100}
TEMPERATURES = (1.0, 0.6, 1.7)
WEIGHTS = ((1.0,), (0.3, 0.7), (0.2, 0.1, 0.7))


def literal(networks, policy: ExitPolicy, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction (M, B, K) and confidence (M, B) after each member, image by image, in float64."""
    predictions, confidences = torch.zeros(3, len(images), 4), torch.zeros(3, len(images))
    for row, image in enumerate(images.double()):
        softmaxes: list[torch.Tensor] = []
        kept = None
        for index, name in enumerate(policy.order):
            with torch.no_grad():
                softmaxes.append(copy.deepcopy(networks[name]).double()(image[None])[0].softmax(0))
            held = [softmaxes[m] for m in anytime_reference.in_the_mean(index + 1, policy.replaces)]
            mean = torch.stack(held).mean(0)
            if policy.weights:
                mean = sum(weight * softmax for weight, softmax in zip(policy.weights[index], softmaxes))
            tempered = (mean.log() / policy.temperatures[index]).softmax(0)
            best, second = sorted(tempered.tolist(), reverse=True)[:2]
            votes = [int(softmax.argmax()) for softmax in held].count(int(mean.argmax()))
            confidence = {
                "max_probability": best,
                "margin": best - second,
                "entropy": 1 + sum(p * math.log(p) for p in tempered.tolist()) / math.log(4),
                "agreement": (max(votes - 1, 0) + best) / len(held),
            }[policy.confidence]
            if policy.monotone and kept is not None and kept[1] > confidence:
                mean, confidence = kept
            kept = (mean, confidence)
            predictions[index, row], confidences[index, row] = mean, confidence
    return predictions, confidences


@pytest.fixture(scope="module")
def small_networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    networks = {"a": small(), "b/2": small(), "../c": nn.Sequential(small(6), nn.ReLU(), nn.Linear(6, 4))}
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data *= 4  # some answers sure, some not
    return {name: network.eval() for name, network in networks.items()}


@pytest.fixture(scope="module")
def cascade(small_networks, tmp_path_factory) -> Path:
    policy = ExitPolicy(order=ORDER, temperatures=TEMPERATURES, thresholds=(0.6, math.inf))
    folder = tmp_path_factory.mktemp("cascades") / "cascade"
    return export_cascade(small_networks, policy, folder, input_shape=SMALL_SHAPE, flops=FLOPS)


def edited(cascade: Path, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of a cascade whose cascade.json is changed in place."""
    shutil.copytree(cascade, folder)
    content = json.loads((folder / "cascade.json").read_text())
    change(content)
    (folder / "cascade.json").write_text(json.dumps(content))
    return folder


def with_policy(cascade: Path, folder: Path, policy: ExitPolicy) -> Path:
    return edited(cascade, folder, lambda content: content.update(policy=policy.to_dict()))


ELSEWHERE = """
import sys
sys.modules["torch"] = sys.modules["superweight_ensembles"] = None
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy
from onnx_cascade import OnnxCascade

class Counted:
    def __init__(self, session):
        self.session, self.sizes = session, []
    def run(self, names, inputs):
        self.sizes.append(len(inputs["images"]))
        return self.session.run(names, inputs)

images = numpy.load(sys.argv[2])
for folder in map(Path, sys.argv[3:]):
    cascade = OnnxCascade(folder)
    cascade.sessions = [Counted(session) for session in cascade.sessions]
    answer = cascade(images)
    sizes = [session.sizes for session in cascade.sessions]
    numpy.savez(folder / "answer.npz", sizes=sizes, **answer._asdict())
"""


def test_the_loader_elsewhere_decides_as_the_policy_says(cascade: Path, small_networks, tmp_path: Path) -> None:
    images = torch.randn(60, *SMALL_SHAPE)
    np.save(tmp_path / "images.npy", images.numpy())
    cases: dict[Path, tuple[ExitPolicy, torch.Tensor, torch.Tensor]] = {}
    kinds = ((), ()), ((None, None, 0), ()), ((), WEIGHTS), ((None, None, 0), ((1.0,), (0.3, 0.7), (0.0, 0.6, 0.4)))
    for confidence, monotone, (replaces, weights) in itertools.product(CONFIDENCES, (False, True), kinds):
        options = {"order": ORDER, "confidence": confidence, "temperatures": TEMPERATURES, "monotone": monotone}
        options |= {"replaces": replaces, "weights": weights}
        predictions, sure = literal(small_networks, ExitPolicy(thresholds=(0.0, 0.0), **options), images)
        policy = ExitPolicy(thresholds=(float(sure[0].quantile(0.7)), float(sure[1].quantile(0.6))), **options)
        folder = with_policy(cascade, tmp_path / f"{confidence} {monotone} {len(replaces)} {len(weights)}", policy)
        cases[folder] = policy, predictions, sure
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, cascade, tmp_path / "images.npy", *cases],
        check=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    modules = {f"m{index}": copy.deepcopy(small_networks[name]) for index, name in enumerate(ORDER)}
    for folder, (policy, predictions, sure) in cases.items():
        answer = np.load(folder / "answer.npz")
        thresholds = torch.tensor([*policy.thresholds, 0.0])[:, None]
        exits = (sure >= thresholds).int().argmax(0)
        rows = torch.arange(60)
        assert sorted(set(exits.tolist())) == [0, 1, 2], folder.name
        assert answer["members_used"].tolist() == (exits + 1).tolist(), folder.name
        np.testing.assert_allclose(answer["probabilities"], predictions[exits, rows], atol=1e-5)
        np.testing.assert_allclose(answer["confidence"], sure[exits, rows], atol=1e-5)
        assert answer["flops"].tolist() == [(3, 23, 123)[index] for index in exits]
        assert answer["sizes"].tolist() == [[60], [int((exits > 0).sum())], [int((exits > 1).sum())]]
        modules["m0"].version_of = "m2" if policy.replaces else "m0"
        predictor = AnytimePredictor(modules, order=tuple(modules), input_shape=SMALL_SHAPE)
        predictor.set_policy(replace(policy, order=tuple(modules)))
        ours = predictor(images)
        assert ours.members_used.tolist() == answer["members_used"].tolist()
        np.testing.assert_allclose(ours.probabilities, answer["probabilities"], atol=1e-5)
        np.testing.assert_allclose(ours.confidence, answer["confidence"], atol=1e-5)


def test_monotone_keeps_an_earlier_surer_answer(cascade: Path, small_networks, tmp_path: Path) -> None:
    images = torch.randn(60, *SMALL_SHAPE)
    answers = []
    for monotone in (False, True):
        policy = ExitPolicy(
            order=ORDER, confidence="max_probability", temperatures=(1.0,) * 3, thresholds=(math.inf,) * 2,
            monotone=monotone,
        )  # fmt: skip
        answers.append(OnnxCascade(with_policy(cascade, tmp_path / str(monotone), policy))(images.numpy()))
    plain, kept = answers
    assert (kept.members_used == 3).all() and (kept.confidence >= plain.confidence).all()
    assert (kept.confidence > plain.confidence).any()
    np.testing.assert_allclose(kept.confidence, kept.probabilities.max(1), atol=1e-6)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_what_is_not_a_number_is_never_sure(
    cascade: Path, small_networks, tmp_path: Path, caplog: pytest.LogCaptureFixture, confidence: str, monotone: bool
) -> None:
    policy = ExitPolicy(
        order=ORDER, confidence=confidence, temperatures=(1.0, 2.0, 0.5), thresholds=(0.0, 0.0), monotone=monotone
    )
    loaded = OnnxCascade(with_policy(cascade, tmp_path / "cascade", policy))
    images = torch.randn(5, *SMALL_SHAPE)
    images[1, 0, 0, 0], images[3, 1, 1, 1] = math.nan, -math.inf
    answer = loaded(images.numpy())
    assert answer.members_used.tolist() == [1, 3, 1, 3, 1]
    assert np.isnan(answer.probabilities).all(1).tolist() == [False, True, False, True, False]
    assert [record.getMessage()[:30] for record in caplog.records] == ["2 of 5 answers are not numbers"]
    caplog.clear()
    list(loaded.stream(images.numpy()))
    loaded(images[:1].numpy())
    assert [record.getMessage()[:30] for record in caplog.records] == ["2 of 5 answers are not numbers"]


def test_a_member_that_answers_no_numbers(cascade: Path, small_networks, tmp_path: Path) -> None:
    """A monotone cascade keeps the answer that is one, from before or after; versions that are replaced leave."""
    images = torch.randn(6, *SMALL_SHAPE)
    for broken, replaces, expected in ((1, (), [False] * 2), (0, (None, 0, None), [True, False])):
        policy = ExitPolicy(
            order=ORDER, temperatures=(1.0,) * 3, thresholds=(math.inf,) * 2, monotone=True, replaces=replaces
        )
        loaded = OnnxCascade(with_policy(cascade, tmp_path / str(broken), policy))
        whole = loaded.sessions[broken]
        loaded.sessions[broken] = SimpleNamespace(run=lambda *given, whole=whole: [whole.run(*given)[0] * np.nan])
        answer = loaded(images.numpy())
        with torch.no_grad():
            table = torch.stack([small_networks[name](images).softmax(1) for name in ORDER])
        table[broken] = math.nan
        predictions, confidences = exits_of(table, policy)
        np.testing.assert_allclose(answer.probabilities, predictions[-1], atol=1e-5)
        np.testing.assert_allclose(answer.confidence, confidences[-1], atol=1e-5)
        assert np.isfinite(answer.probabilities).all()
        assert predictions[:2].isnan().flatten(1).any(1).tolist() == expected


@pytest.mark.parametrize(
    ("key", "values", "taken"),
    [
        ("temperatures", [0.01, 100.0, 1], True),
        *(
            ("temperatures", [first, 1, 1], False)
            for first in (1e-42, 0.0099, 100.1, -1, math.nan, math.inf, None, True, 10**400)
        ),
        ("thresholds", [0, 2.0], True),
        ("thresholds", [None, 0.5], True),
        *(("thresholds", [first, 0.5], False) for first in (-1e-9, 2.1, math.nan, math.inf, -math.inf, 10**400, "0.5")),
    ],
)
def test_a_policy_and_its_loader_have_the_same_bounds(cascade: Path, tmp_path: Path, key: str, values, taken: bool):
    assert (onnx_cascade._TEMPERATURES, onnx_cascade._MOST_THRESHOLD) == (
        exit_policy.TEMPERATURES,
        exit_policy.MOST_THRESHOLD,
    )
    folder = edited(cascade, tmp_path / "cascade", lambda content: content["policy"].update({key: values}))
    policy = json.loads((folder / "cascade.json").read_text())["policy"]
    for read, message in (
        (lambda: ExitPolicy.from_dict(policy), f"policy: .*{key}"),
        (lambda: OnnxCascade(folder), f"policy.{key} is damaged"),
    ):
        if taken:
            read()
        else:
            with pytest.raises(ValueError, match=message):
                read()


def test_what_a_cascade_folder_holds(cascade: Path, small_networks) -> None:
    names = ["00-b_2.onnx", "01-a.onnx", "02-c.onnx"]
    assert sorted(path.name for path in cascade.iterdir()) == [*names, "cascade.json", "onnx_cascade.py"]
    content = json.loads((cascade / "cascade.json").read_text())
    assert [member["file"] for member in content["members"]] == names
    assert [member["flops"] for member in content["members"]] == [3, 20, 100]
    assert (content["format"], content["input_shape"], content["num_classes"]) == (2, [3, 2, 2], 4)
    assert content["packages"]["torch"] == torch.__version__
    assert content["packages"]["onnxruntime"] == onnxruntime.__version__
    assert ExitPolicy.from_dict(content["policy"]).thresholds == (0.6, math.inf)
    images = torch.randn(7, *SMALL_SHAPE)
    with torch.no_grad():
        for name, file in zip(ORDER, names):
            assert_close(run_onnx(cascade / file, images), small_networks[name](images), atol=1e-5, rtol=0)


def test_streams_and_empty_batches(cascade: Path, small_networks) -> None:
    loaded, images = OnnxCascade(cascade), torch.randn(7, *SMALL_SHAPE)
    steps = list(loaded.stream(images.numpy()))
    assert [(step.member, step.flops) for step in steps] == [("b/2", 3), ("a", 23), ("../c", 123)]
    with torch.no_grad():
        softmaxes = torch.stack([small_networks[name](images).softmax(1) for name in ORDER])
    for index, step in enumerate(steps):
        np.testing.assert_allclose(step.probabilities, softmaxes[: index + 1].mean(0), atol=1e-6)
    answer = loaded(np.zeros((0, *SMALL_SHAPE), np.float32))
    assert [part.shape for part in answer] == [(0, 4), (0,), (0,), (0,)]


def test_flops_are_counted_where_none_are_given(tmp_path: Path) -> None:
    policy = ExitPolicy(order=("a",), temperatures=(1.0,), thresholds=())
    folder = export_cascade({"a": small()}, policy, tmp_path / "one", input_shape=SMALL_SHAPE)
    loaded = OnnxCascade(str(folder))
    assert loaded.flops == (2 * 12 * 4,)
    assert loaded(np.zeros((3, *SMALL_SHAPE), np.float32)).members_used.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 2, 2)), r"float32 array \(B, 3, 2, 2\); got float64: images\.astype"),
        (np.zeros((2, 3, 2, 3), np.float32), r"got the shape \(2, 3, 2, 3\)"),
        (np.zeros((3, 2, 2), np.float32), r"got the shape \(3, 2, 2\)"),
        (np.float32(1) * np.ones(()), r"got float64|got the shape \(\)"),
        ([[0.0]], "got list"),
    ],
)
def test_images_that_a_cascade_does_not_take(cascade: Path, images, message: str) -> None:
    loaded = OnnxCascade(cascade)
    with pytest.raises(ValueError, match=message):
        loaded(images)
    with pytest.raises(ValueError, match=message):
        list(loaded.stream(images))


def first_file(name: str):
    def change(content: dict) -> None:
        content["members"][0]["file"] = name

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=1), "has format 1; this loader reads 2"),
        (first_file("../00-b_2.onnx"), "no plain name of a file in its folder"),
        (first_file("/etc/hostname"), "no plain name of a file in its folder"),
        (first_file("..\\00-b_2.onnx"), "no plain name of a file in its folder"),
        (first_file(".."), "no plain name of a file in its folder"),
        (first_file("gone.onnx"), r"gone\.onnx is missing"),
        (lambda content: content.pop("members"), "members is damaged"),
        (lambda content: content["members"].pop(), "policy is damaged or does not fit"),
        (lambda content: content["members"][0].update(flops=-1), "members is damaged"),
        (lambda content: content["members"][0].update(flops=2**70), "members is damaged"),
        (lambda content: content["members"][0].pop("sha256"), "members is damaged"),
        (lambda content: content["members"][0].update(bytes=5), r"00-b_2\.onnx has .* bytes, and 5 were exported"),
        (lambda content: content["members"][0].update(sha256="0" * 64), r"00-b_2\.onnx does not have its checksum"),
        (lambda content: content["policy"].update(temperatures=[10**400, 1, 1]), "policy.temperatures is damaged"),
        (lambda content: content["policy"].update(confidence="sure"), "policy.confidence is damaged"),
        (lambda content: content["policy"].update(temperatures=[1.0, 1.0]), "policy.temperatures is damaged"),
        (lambda content: content["policy"].update(temperatures=[1.0, 0.0, 1.0]), "policy.temperatures is damaged"),
        (lambda content: content["policy"].update(thresholds=[0.5, -1]), "policy.thresholds is damaged"),
        (lambda content: content["policy"].update(monotone=1), "policy.monotone is damaged"),
        (lambda content: content["policy"].update(replaces=[None, 0]), "policy.replaces is damaged"),
        (lambda content: content["policy"].update(replaces=[None, None, 2]), "policy.replaces is damaged"),
        (lambda content: content["policy"].update(replaces=[None, 0, 0]), "policy.replaces is damaged"),
        (lambda content: content["policy"].update(weights=[[1.0]]), "policy.weights is damaged"),
        (lambda content: content["policy"].update(weights=[[1], [0.5, 0.4], [0, 0, 1]]), "policy.weights is damaged"),
        (lambda content: content["policy"].update(weights=[[1], [2, -1], [0, 0, 1]]), "policy.weights is damaged"),
        (lambda content: content["policy"].update(weights=[1, 1, 1]), "policy.weights is damaged"),
        (lambda content: content.update(input_shape=[3, "2"]), "input_shape is damaged"),
        (lambda content: content.update(num_classes=1), "num_classes is damaged"),
        (lambda content: content.update(num_classes=2**34), "num_classes is damaged"),
        (lambda content: content.update(num_classes=3), r"00-b_2\.onnx must answer logits \(batch, 3\); it answers"),
        (lambda content: content.update(input_shape=[3, 2, 3]), r"must take images \(batch, \(3, 2, 3\)\) of float32"),
        (lambda content: content.update(format=2.0), r"has format 2\.0"),
        (
            lambda content: [
                content["members"][1].update(name="b/2"),
                content["policy"]["order"].__setitem__(1, "b/2"),
            ],
            "policy is damaged",
        ),
    ],
)
def test_damaged_cascades(cascade: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxCascade(edited(cascade, tmp_path / "cascade", change))


TYPE = onnx.TensorProto


def linear_model(logits: int = TYPE.FLOAT, images: int = TYPE.FLOAT, batch: int | None = None) -> bytes:
    """A linear classifier that casts its logits to a type."""
    helper = onnx.helper
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [12, 4], np.linspace(-9, 9, 48))
    nodes = [
        helper.make_node("Cast", ["images"], ["given"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Flatten", ["given"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["answer"]),
        helper.make_node("Cast", ["answer"], ["logits"], to=logits),
    ]
    given = [helper.make_tensor_value_info("images", images, (batch, *SMALL_SHAPE))]
    graph = helper.make_graph(
        nodes, "g", given, [helper.make_tensor_value_info("logits", logits, (batch, 4))], [weight]
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def with_model(cascade: Path, folder: Path, model: bytes) -> Path:
    """A cascade whose first member is another model, its size and checksum as they should be."""

    def change(content: dict) -> None:
        first = content["members"][0]
        (folder / first["file"]).write_bytes(model)
        first.update(bytes=len(model), sha256=hashlib.sha256(model).hexdigest())

    return edited(cascade, folder, change)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linear_model(TYPE.INT8), r"must answer logits \(batch, 4\); it answers .*int8"),
        (linear_model(TYPE.BOOL), "must answer logits .*bool"),
        (linear_model(TYPE.STRING), "must answer logits .*string"),
        (linear_model(images=TYPE.DOUBLE), "must take images .* of float32; it takes .*double"),
        (linear_model(batch=1), "must take images"),
        (linear_model().replace(b"logits", b"logitz"), "must answer logits .*logitz"),
        (linear_model().replace(b"images", b"imagez"), "must take images .*imagez"),
    ],
)
def test_members_that_answer_something_else_are_refused(cascade: Path, tmp_path: Path, model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxCascade(with_model(cascade, tmp_path / "cascade", model))


@pytest.mark.parametrize("kind", [TYPE.FLOAT16, TYPE.DOUBLE])
def test_logits_of_any_floating_point_type(cascade: Path, tmp_path: Path, kind: int) -> None:
    images = np.random.default_rng(0).standard_normal((6, *SMALL_SHAPE)).astype(np.float32)
    first = [
        next(OnnxCascade(with_model(cascade, tmp_path / str(index), linear_model(one))).stream(images)).probabilities
        for index, one in enumerate((TYPE.FLOAT, kind))
    ]
    np.testing.assert_allclose(first[1], first[0], atol=2e-2 if kind == TYPE.FLOAT16 else 1e-6)


def test_a_member_that_fails_is_named(cascade: Path, tmp_path: Path) -> None:
    loaded = OnnxCascade(with_model(cascade, tmp_path / "cascade", linear_model()))

    class Failing:
        def run(self, *given: object) -> None:
            raise RuntimeError("no memory")

    loaded.sessions[0] = Failing()
    with pytest.raises(ValueError, match="member 'b/2' fails on 2 images: no memory"):
        loaded(np.zeros((2, *SMALL_SHAPE), np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cascade\.json is missing: .* is no exported cascade"),
        ("{", "cannot be read as JSON"),
        ("[]", "has format None"),
        ('{"format": 2, "format": 2}', "cannot be read as JSON: a key is there twice"),
    ],
)
def test_unreadable_cascades(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "cascade.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        OnnxCascade(tmp_path)


def test_cascades_that_are_not_exported(cascade: Path, small_networks, tmp_path: Path) -> None:
    def export(modules=small_networks, folder: Path = tmp_path / "new", order=ORDER, **options) -> Path:
        policy = ExitPolicy(order=order, temperatures=(1.0,) * len(order), thresholds=(0.5,) * (len(order) - 1))
        return export_cascade(modules, policy, folder, **{"input_shape": SMALL_SHAPE, **options})

    for options, message in (
        ({"order": ("a", "d")}, "unknown member of the policy's order 'd'"),
        ({"flops": {"a": 1}}, "unknown member of flops 'b/2'"),
        ({"order": ("a",), "flops": {"a": 1.5}}, "flops of member 'a' must be an int"),
        ({"modules": {"a": small(), "b": small(3)}, "order": "ab"}, "must answer the same classes; got a: 4, b: 3"),
        ({"modules": {"a": small(1)}, "order": "a"}, "at least two classes"),
        ({"input_shape": ()}, "input_shape is that of one image"),
        ({"modules": {"a": small(12), "b": NotInOnnx()}, "order": "ab"}, "cannot translate NotInOnnx"),
    ):
        assert_refused(message, export, **options)
    assert list(tmp_path.iterdir()) == []
    assert_refused("exists already: overwrite replaces an exported cascade", export, folder=cascade)
    mine = shutil.copytree(cascade, tmp_path / "mine")
    (mine / "thesis.txt").write_text("years of work")
    for folder in (mine, mine / "thesis.txt", tmp_path):
        assert_refused("exists and is no exported cascade", export, folder=folder, overwrite=True)
    (mine / "thesis.txt").unlink()
    export(folder=mine, order=("a",), overwrite=True)
    assert sorted(path.name for path in mine.iterdir()) == ["00-a.onnx", "cascade.json", "onnx_cascade.py"]


# The command line.

TINY = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 64},
    "members": [
        {"name": "a", "model": "wide_resnet", "depth": 10, "width": 1},
        {"name": "b/2", "model": "wide_resnet", "depth": 10, "width": 1},
    ],
    "sharing": {"budget": 0.9},
    "baseline": "none",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose shared arm counts as trained."""
    folder = tmp_path / "run"
    (folder / "shared").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "shared" / "training.json").write_text("{}")
    members = {name: swe.build_member("wide_resnet", num_classes=4, depth=10, width=1) for name in ("a", "b/2")}
    swe.SuperWeightEnsemble(members, budget=0.9).save(folder / "shared" / "ensemble")
    return folder


def test_command_line_members(monkeypatch, capsys, run: Path, tmp_path: Path) -> None:
    shape = load_recipe(run / "recipe.yaml").load_data().image_shape
    images = torch.randn(2, *shape)
    ensemble = swe.SuperWeightEnsemble.load(run / "shared" / "ensemble").eval()
    with torch.no_grad():
        expected = ensemble.materialize("b/2")(images)
        assert superweights(monkeypatch, "export", run, "--member", "b/2") == 0
        assert str(run / "export" / "b_2.pt2") in capsys.readouterr().out
        program = torch.export.load(run / "export" / "b_2.pt2").module()
        assert_close(program(images), expected, atol=1e-6, rtol=1e-6)
        assert superweights(monkeypatch, "export", run, "--member", "b/2") == 2
        assert "exists already" in capsys.readouterr().err
        assert superweights(monkeypatch, "export", run, "--member", "b/2", "--overwrite") == 0
        out = tmp_path / "elsewhere" / "net.safetensors"
        (run / "results.json").write_text(json.dumps({"dataset": {"image_shape": list(shape)}}))
        # The results say the shape.
        monkeypatch.setattr("superweight_ensembles.experiment.recipe.Recipe.load_data", None)
        assert superweights(monkeypatch, "export", run, "--member", "b/2", "--format", "state-dict", "--out", out) == 0
        assert_close(load_member(out)(images), expected, atol=0, rtol=0)
        assert superweights(monkeypatch, "export", run, "--member", "b/2", "--format", "onnx") == 0
        assert_close(run_onnx(run / "export" / "b_2.onnx", images), expected, atol=1e-4, rtol=0)


def test_command_line_cascade(monkeypatch, capsys, run: Path) -> None:
    assert superweights(monkeypatch, "export", run, "--cascade") == 2
    assert "has no calibrated cascade yet: superweights evaluate" in " ".join(capsys.readouterr().err.split())
    folder = run / "shared" / "ensemble"
    shape = (3, 8, 8)
    predictor = AnytimePredictor(swe.SuperWeightEnsemble.load(folder), order=("b/2", "a"), input_shape=shape)
    predictor.save(folder)
    assert superweights(monkeypatch, "export", run, "--cascade") == 2  # saved, and not calibrated
    assert "has no calibrated cascade yet" in capsys.readouterr().err
    predictor.set_policy(ExitPolicy(order=("b/2", "a"), temperatures=(1.0, 1.0), thresholds=(0.3,)))
    predictor.save(folder)
    assert superweights(monkeypatch, "export", run, "--cascade") == 0
    assert str(run / "export" / "cascade") in capsys.readouterr().out
    loaded, images = OnnxCascade(run / "export" / "cascade"), torch.randn(16, *shape)
    assert loaded.flops == tuple(predictor.flops.values())
    answer, expected = loaded(images.numpy()), predictor(images)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
    assert answer.members_used.tolist() == expected.members_used.tolist()
    assert superweights(monkeypatch, "export", run, "--cascade") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --member NAME or --cascade"),
        (("--member", "a", "--cascade"), "give either --member NAME or --cascade"),
        (("--cascade", "--format", "onnx"), "--cascade writes ONNX files: leave --format out"),
        (("--member", "c"), "unknown member 'c'"),
        (("--member", "a", "--format", "onxx"), "unknown export format 'onxx': did you mean 'onnx'"),
        (("--member", "a", "--arm", "share"), "unknown arm 'share': did you mean 'shared'"),
        (("--member", "a", "--arm", "independent"), "unknown arm 'independent'"),
        (("--member", "a", "--out", "net.onnx"), "ends in .pt2; got net.onnx"),
    ],
)
def test_command_line_mistakes(monkeypatch, capsys, run: Path, arguments: tuple[str, ...], message: str) -> None:
    assert superweights(monkeypatch, "export", run, *arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "Traceback" not in error
    assert not (run / "export").exists()


def test_command_line_of_a_run_that_is_not_trained(monkeypatch, capsys, run: Path, tmp_path: Path) -> None:
    (run / "shared" / "training.json").unlink()
    assert superweights(monkeypatch, "export", run, "--member", "a") == 2
    assert "is not trained to its end" in capsys.readouterr().err
    assert superweights(monkeypatch, "export", tmp_path, "--member", "a") == 2
    assert "is no run folder" in capsys.readouterr().err
