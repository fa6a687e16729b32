"""Baselines from torch-uncertainty: sizes, row order, training forms. Tests that build need the package."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import compare_peers
import pytest
import torch
from compare_peers import BASELINES, EstimatorMember, run_estimator_arm
from tiny_recipe import CONTENT
from torch import nn
from uncertainty_networks import UNCERTAINTY_ARMS, EstimatorNetwork, build_estimator_network

import superweight_ensembles as swe
from superweight_ensembles.experiment import build_arms, parse_recipe
from superweight_ensembles.models import count_flops
from superweight_ensembles.plan import count_parameters

NUM_ESTIMATORS = {"batchensemble": 4, "packed": 4, "mimo": 3, "masksembles": 4}
NUM_CLASSES = 7
SCRIPT = Path(compare_peers.__file__)


def build(arm: str, num_parameters: int = 120_000) -> EstimatorNetwork:
    pytest.importorskip("torch_uncertainty")
    return build_estimator_network(arm, num_parameters=num_parameters, num_classes=NUM_CLASSES, in_channels=2)


@pytest.fixture(params=UNCERTAINTY_ARMS)
def arm(request: pytest.FixtureRequest) -> str:
    return request.param


def silence(arm: str, network: EstimatorNetwork, estimator: int) -> None:
    """Make one estimator answer zero for every class, by its own part of the classifier."""
    head: Any = network.network.linear
    rows = slice(NUM_CLASSES * estimator, NUM_CLASSES * (estimator + 1))
    with torch.no_grad():
        if arm == "batchensemble":
            head.s_group[estimator] = 0
            head.bias[estimator] = 0
        elif arm == "packed":
            head.weight[estimator] = 0
            head.bias[rows] = 0
        elif arm == "mimo":
            head.weight[rows] = 0
            head.bias[rows] = 0
        else:  # the bias is shared
            head.mask.masks[estimator] = 0
            head.linear.bias.zero_()


def silent(logits: torch.Tensor) -> list[bool]:
    """Whether each row of (..., K) is zero, leading axes flattened."""
    return (logits.flatten(0, -2) == 0).all(1).tolist()


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_uncertainty", None)
    with pytest.raises(swe.SuperWeightError, match=r'pip install "superweight-ensembles\[bench\]"'):
        build_estimator_network("packed", num_parameters=300_000, num_classes=10, in_channels=3)


@pytest.mark.parametrize(
    ("arm", "num_parameters", "message"),
    [("mimmo", 300_000, "unknown arm 'mimmo': did you mean 'mimo'"), ("mimo", 0, "must be at least 1; got 0")],
)
def test_bad_arguments_need_no_package(arm: str, num_parameters: int, message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=message):
        build_estimator_network(arm, num_parameters=num_parameters, num_classes=10, in_channels=3)


@pytest.mark.parametrize(
    ("target", "tolerance"), [(300_000, 0.05), (1_040_000, 0.05), (5_000_000, 0.05)], ids=["0.3M", "1.04M", "5M"]
)
def test_parameters_near_the_target(arm: str, target: int, tolerance: float) -> None:
    found = count_parameters(build(arm, target))
    if (arm, target) == ("packed", 300_000):  # one channel more in each of four small groups is a quarter more weights
        tolerance = 0.1
    assert found == pytest.approx(target, rel=tolerance)


def test_far_off_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network = build("masksembles", 1_000)
    assert "masksembles: nearest to 1000 parameters is resnet" in caplog.text
    assert str(count_parameters(network)) in caplog.text


def test_same_seed_same_network(arm: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(arm).state_dict())
    first, same, other = states
    assert first.keys() == same.keys() and all(torch.equal(first[name], same[name]) for name in first)
    masks = [name for name in first if name.endswith("masks")]
    assert bool(masks) == (arm == "masksembles")
    assert any(not torch.equal(first[name], other[name]) for name in masks or first)
    assert {value.dtype for value in first.values() if value.is_floating_point()} == {torch.float32}


def test_architecture_in_words(arm: str) -> None:
    network = build(arm, 1_040_000)
    name, width, estimators = network.architecture.split(", ")
    assert name.startswith("resnet") and width.startswith("width x ") and float(width.removeprefix("width x ")) > 0
    assert estimators == f"{NUM_ESTIMATORS[arm]} estimators"
    assert network.num_estimators == NUM_ESTIMATORS[arm]


def test_every_estimator_answers_every_image_alone(arm: str) -> None:
    network = build(arm).eval()
    images = torch.randn(5, 2, 8, 8)
    with torch.inference_mode():
        logits = network(images)
        assert logits.shape == (NUM_ESTIMATORS[arm], 5, NUM_CLASSES)
        for one in range(5):
            torch.testing.assert_close(network(images[one : one + 1])[:, 0], logits[:, one], rtol=1e-4, atol=1e-5)
    for first in range(network.num_estimators):
        for second in range(first):
            assert not torch.allclose(logits[first], logits[second], rtol=1e-3, atol=1e-5)


def test_rows_of_evaluation_are_member_major(arm: str) -> None:
    network = build(arm).eval()
    silence(arm, network, 1)
    with torch.inference_mode():
        logits = network(torch.randn(5, 2, 8, 8))
    assert silent(logits) == [row // 5 == 1 for row in range(5 * network.num_estimators)]


def test_rows_of_training_are_member_major(arm: str) -> None:
    network = build(arm).train()
    silence(arm, network, 1)
    logits, labels = network.training_logits(torch.randn(8, 2, 8, 8), torch.zeros(8, dtype=torch.long))
    rows = {"batchensemble": 8, "masksembles": 8, "packed": 4 * 8, "mimo": 3 * 8}[arm]
    each = rows // network.num_estimators
    assert logits.shape == (rows, NUM_CLASSES) and labels.shape == (rows,)
    assert silent(logits) == [row // each == 1 for row in range(rows)]


def test_training_labels_belong_to_their_images(arm: str) -> None:
    """Each image holds its own number: what the network is given must agree with the labels."""
    network = build(arm).train()
    seen: list[torch.Tensor] = []
    network.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    numbers = torch.arange(8)
    images = numbers.float().reshape(8, 1, 1, 1).expand(8, 2, 8, 8)
    _, labels = network.training_logits(images, numbers)
    given = seen[0][:, 0, 0, 0].long()
    if arm == "packed":  # repeats images by itself
        assert given.tolist() == list(range(8)) and labels.tolist() == list(range(8)) * 4
    else:
        assert torch.equal(given, labels)
    if arm == "mimo":  # all three see all images, in orders of which the last half is common
        orders = labels.reshape(3, 8)
        assert all(sorted(order) == list(range(8)) for order in orders.tolist())
        assert torch.equal(orders[0, 4:], orders[1, 4:]) and torch.equal(orders[0, 4:], orders[2, 4:])
    if arm in ("batchensemble", "masksembles"):
        assert labels.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("batch", "rows"), [(10, {"split": 8, "packed": 40, "mimo": 30}), (3, {"packed": 12, "mimo": 9})]
)
def test_batches_that_the_estimators_do_not_divide(arm: str, batch: int, rows: dict[str, int]) -> None:
    network = build(arm).train()
    images, labels = torch.randn(batch, 2, 8, 8), torch.arange(batch)
    expected = rows.get(arm, rows.get("split"))
    if expected is None:
        with pytest.raises(swe.SuperWeightError, match="a batch of 3 cannot be split over 4 estimators"):
            network.training_logits(images, labels)
    else:
        logits, repeated = network.training_logits(images, labels)
        assert len(logits) == len(repeated) == expected


def test_wrong_mode_is_an_error(arm: str) -> None:
    network = build(arm)
    images, labels = torch.randn(4, 2, 8, 8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(swe.SuperWeightError, match=r"call \.eval\(\)"):
        network.train()(images)
    with pytest.raises(swe.SuperWeightError, match=r"call \.train\(\)"):
        network.eval().training_logits(images, labels)


def test_a_step_reaches_every_parameter_and_learns(arm: str) -> None:
    network = build(arm).train()
    images, labels = torch.randn(12, 2, 8, 8), torch.arange(12) % NUM_CLASSES
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        logits, rows = network.training_logits(images, labels)
        loss = nn.functional.cross_entropy(logits, rows)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert len(gradients) == len(trained)
    assert all(bool(gradient.isfinite().all()) and gradient.count_nonzero() > 0 for gradient in gradients)
    assert losses[-1] < losses[0]


def test_flops_are_counted_and_proportional_to_the_batch(arm: str) -> None:
    network = build(arm).eval()
    images = torch.randn(3, 2, 8, 8)
    with torch.inference_mode():
        one, three = count_flops(network, images[:1]), count_flops(network, images)
    assert one > 0 and three == 3 * one


class Twins(nn.Module):
    """Two estimators over one flat layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3 * 8 * 8, 4) for _ in range(2))
        self.r_group = nn.Parameter(torch.ones(2, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return torch.cat([layer(flat) * row for layer, row in zip(self.layers, self.r_group)])


def twins() -> EstimatorNetwork:
    return EstimatorNetwork(
        Twins(), lambda batch: (batch[0], batch[1].repeat(2)), num_estimators=2, architecture="twins"
    )


def test_an_estimator_member_answers_the_log_of_the_mean_softmax() -> None:
    member = EstimatorMember(twins()).eval()
    images = torch.randn(5, 3, 8, 8)
    mean = member.estimators(images).softmax(2).mean(0)
    torch.testing.assert_close(member(images).softmax(1), mean)
    assert {name.rpartition(".")[2] for name in member.no_weight_decay()} == {"bias", "r_group"}


def test_an_estimator_arm_is_trained_and_evaluated_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def build(arm: str, **options: Any) -> EstimatorNetwork:
        asked.update(options, arm=arm)
        return twins()

    monkeypatch.setattr(compare_peers, "build_estimator_network", build)
    recipe = parse_recipe({**CONTENT, "training": {**CONTENT["training"], "epochs": 2, "label_smoothing": 0.1}})
    found = run_estimator_arm("packed", recipe, 1234, tmp_path)
    assert asked == {"arm": "packed", "num_parameters": 1234, "num_classes": 4, "in_channels": 3}
    assert found["num_parameters"] == 2 * (3 * 8 * 8 * 4 + 4) + 8
    assert found["ensemble"]["flops"] == 2 * 2 * 3 * 8 * 8 * 4
    assert len(found["history"]) == 2 and found["architecture"] == "twins"
    losses = [record["train_loss"]["packed"] for record in found["history"]]
    assert losses[1] < losses[0]
    assert found["ensemble"]["metrics"]["accuracy"] > 0.5
    assert found["diversity"] is None or found["diversity"] >= 0


def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> int:
    """Run the benchmark's command into tmp_path/out; its exit code."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(parse_recipe(CONTENT).to_yaml())
    command = [str(SCRIPT), str(recipe), "--seeds", "1", "--out", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(stopped.value.code or 0)


def test_arms_are_as_large_as_the_shared_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_peers, "check_installed", lambda kind: None)
    shared, packed = build_arms(parse_recipe(CONTENT), ["packed:1"], [], baselines=BASELINES)
    assert packed.num_parameters == shared.num_parameters and packed.recipe == shared.recipe
    assert (packed.name, packed.kind, packed.label, packed.num_seeds) == ("packed", "packed", "Packed", 1)


def test_a_missing_package_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_uncertainty", None)
    assert compare(monkeypatch, tmp_path, "--against", "packed") == 2
    assert 'pip install "superweight-ensembles[bench]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_arms_know_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, tmp_path, "--against", "pakced") == 2
    assert (
        "unknown arm 'pakced': did you mean 'packed'? Known: batchensemble, exits, independent"
        in capsys.readouterr().err
    )


def test_the_command_trains_and_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_uncertainty")
    assert compare(monkeypatch, tmp_path, "--against", "single,packed") == 0
    assert "Packed" in capsys.readouterr().out
    arms = json.loads((tmp_path / "out" / "comparison.json").read_text())["arms"]
    assert [arm["kind"] for arm in arms] == ["shared", "single", "packed"]
    assert arms[2]["architecture"].endswith("4 estimators") and "diversity" in arms[2]["summary"]
    assert not (tmp_path / "out" / "packed" / "seed-0" / "checkpoints").exists()
