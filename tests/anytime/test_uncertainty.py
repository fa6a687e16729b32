"""Entropies, risk over coverage, other data and corrupted images. Shapes: M members, N samples, K classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import assert_refused
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

import superweight_ensembles as swe
from superweight_ensembles.anytime import (
    Predictions,
    measure_corrupted,
    measure_tempered,
    predict,
    risk_coverage,
    scores_of,
    uncertainty,
)
from superweight_ensembles.data import CORRUPTIONS, SEVERITIES, Corruption

DATA = swe.load_data("synthetic", num_train=96, num_test=64)


@pytest.fixture(scope="module")
def ensemble() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"a": swe.wide_resnet(10, 1, DATA.num_classes), "b": swe.wide_resnet(10, 2, DATA.num_classes)}
    built = swe.SuperWeightEnsemble(members, budget=0.9)
    swe.train(built, DATA, swe.TrainConfig(epochs=3, batch_size=24, learning_rate=0.05, device="cpu"))
    return built


def draws(members: int, samples: int, classes: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(members, samples, classes, generator=torch.Generator().manual_seed(seed))).softmax(2)


def test_entropies_are_what_arithmetic_says() -> None:
    rows = draws(3, 50, 4).double()
    mean = rows.mean(0)
    whole, own = -(mean * mean.log()).sum(1), -(rows * rows.log()).sum(2).mean(0)
    scores = scores_of(rows)
    torch.testing.assert_close(scores["entropy"], whole)
    torch.testing.assert_close(scores["mutual_information"], whole - own)
    torch.testing.assert_close(scores["max_probability"], 1 - mean.max(1).values)
    answers = rows.argmax(2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum((answers[one] != answers[other]).double() for one, other in pairs) / 3
    torch.testing.assert_close(scores["disagreement"], expected)
    found = uncertainty(rows, torch.zeros(50, dtype=torch.int64))
    assert found.entropy == pytest.approx(float(whole.mean()))
    assert found.mutual_information == pytest.approx(float((whole - own).mean()))
    assert found.expected_entropy == pytest.approx(float(own.mean()))
    assert found.disagreement == pytest.approx(float(expected.mean()))


def test_one_member_and_certain_answers_have_no_uncertainty_between_members() -> None:
    certain = torch.eye(3)[None]
    scores = scores_of(certain)
    assert all(float(one.abs().max()) == 0 for one in scores.values())
    found = uncertainty(certain, torch.tensor([0, 1, 2]))
    assert (found.entropy, found.mutual_information, found.disagreement, found.risk_coverage_area) == (0, 0, 0, 0)


def test_risk_is_the_error_of_those_that_are_kept() -> None:
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    rows = torch.stack([confidence, 1 - confidence], 1)[None]
    labels = torch.tensor([0, 1, 1, 0])  # right, wrong, wrong, right; surest first: right, wrong, right, wrong
    risk = risk_coverage(rows, labels)
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    found = uncertainty(rows, labels)
    assert found.risk_coverage_area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert [one.coverage for one in found.risk_coverage] == pytest.approx([share / 20 for share in range(1, 21)])
    assert [one.risk for one in found.risk_coverage][::5] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


def test_other_data_are_told_as_sklearn_says(ensemble: swe.SuperWeightEnsemble) -> None:
    own = DATA.loader("test", 32)
    others = swe.load_data("synthetic", num_train=16, num_test=80, num_classes=9, seed=5).loader("test", 32)
    found = swe.anytime.detect_others(ensemble, own, others)
    assert [one.auroc for one in found] == sorted((one.auroc for one in found), reverse=True)
    inside = scores_of(predict(ensemble, own).probabilities)
    images = [(pictures, torch.zeros(len(pictures), dtype=torch.int64)) for pictures, _ in others]
    outside = scores_of(predict(ensemble, images).probabilities)
    truth = np.r_[np.zeros(64), np.ones(80)]
    for one in found:
        score = torch.cat([inside[one.score], outside[one.score]]).numpy()
        assert one.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
        false, true, _ = roc_curve(truth, score)
        assert one.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-6)
    assert swe.anytime.detect_others(ensemble, own, [pictures for pictures, _ in images]) == found


def test_an_evaluation_holds_its_uncertainty(ensemble: swe.SuperWeightEnsemble) -> None:
    found = swe.evaluate(ensemble, DATA.loader("test", 32))
    table = predict(ensemble, DATA.loader("test", 32))
    assert found.uncertainty == uncertainty(table.probabilities, table.labels)
    assert found.uncertainty.risk_coverage[-1].risk == pytest.approx(1 - found.ensemble.metrics.accuracy)


def test_one_temperature_for_the_whole_is_fitted_on_held_out_samples() -> None:
    tables = []
    for seed in (1, 2):
        rows = draws(2, 200, 3, seed)
        labels = (rows.mean(0).argmax(1) + (torch.arange(200) % 3 == 0)) % 3  # a third are wrong
        tables.append(Predictions(members=("a", "b"), probabilities=rows, labels=labels, image=torch.zeros(1, 2)))
    held, tested = tables
    found = measure_tempered(held, tested)

    def nll(table: Predictions, temperature: float) -> float:
        logarithms = table.probabilities.mean(0).log() / temperature
        return float(torch.nn.functional.cross_entropy(logarithms, table.labels))

    least = nll(held, found.temperature)
    assert all(least <= nll(held, found.temperature * factor) + 1e-6 for factor in (0.9, 1.1))
    assert found.metrics.nll == pytest.approx(nll(tested, found.temperature), rel=1e-4)


def test_tasks_without_classes_are_refused() -> None:
    numbers = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 2)}, budget=1.0, task="regression")
    assert_refused(r"detect_others\(\) needs one class an image", swe.anytime.detect_others, numbers, [], [])


def grey(level: float = 0.5, channels: int = 3, side: int = 32) -> Tensor:
    return torch.full((2, channels, side, side), level)


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    return Corruption(name=name, severity=severity)(images, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_worse_at_each_severity(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 8, 8, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    before = images.clone()
    found = [corrupted(images, name, severity) for severity in SEVERITIES]
    far = [float((one - images).square().mean()) for one in found]
    assert torch.equal(images, before) and all(one.shape == images.shape for one in found)
    assert all(0 <= float(one.min()) <= float(one.max()) <= 1 for one in found)
    assert 0 < far[0] < far[-1] and (far == sorted(far) or name == "pixelate")


def test_settings_are_the_published_ones() -> None:
    noise = [float((corrupted(grey(), "gaussian_noise", one) - 0.5).std()) for one in SEVERITIES]
    assert noise == pytest.approx([0.04, 0.06, 0.08, 0.09, 0.10], rel=0.03)
    bright = [float(corrupted(grey(0.2), "brightness", one).mean()) for one in SEVERITIES]
    assert bright == pytest.approx([0.25, 0.3, 0.35, 0.4, 0.5])
    half = torch.cat([grey(0.2)[:, :, :16], grey(0.8)[:, :, :16]], 2)
    spans = [one.amax() - one.amin() for one in (corrupted(half, "contrast", severity) for severity in SEVERITIES)]
    assert [float(span) for span in spans] == pytest.approx([0.6 * one for one in (0.75, 0.5, 0.4, 0.3, 0.15)])
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    blurred = corrupted(point, "gaussian_blur", 5)[0, 0]
    assert float(blurred[16, 17] / blurred[16, 16]) == pytest.approx(math.exp(-0.5 / (33 / 32) ** 2), rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_a_function_of_the_seed_and_images_of_one_channel_are_taken(channels: int) -> None:
    for name in CORRUPTIONS:
        images = grey(0.4, channels, 8)
        assert torch.equal(corrupted(images, name, 3, seed=1), corrupted(images, name, 3, seed=1))
        assert torch.equal(corrupted(images, name, 3, 1), corrupted(images, name, 3, 2)) == (name != "gaussian_noise")


def test_what_is_no_corruption_is_refused() -> None:
    assert_refused(r"unknown corruption 'noise'.*gaussian_noise", Corruption, name="noise", severity=1)
    assert_refused("unknown corruption", Corruption, name=["jpeg"], severity=1)
    assert_refused(r"corruption must be a swe\.data\.Corruption; got 'jpeg'", DATA.loader, "test", 8, corruption="jpeg")
    assert_refused("pixels from 0 to 1, or of uint8; these images go from -1 to", corrupted, grey(-1.0), "contrast", 1)
    for severity in (0, 6, True, 1.5, 2.0):
        assert_refused("severity of a corruption is 1 to 5", Corruption, name="jpeg", severity=severity)
    assert_refused("JPEG holds images of 1 or 3 channels, not of 2", corrupted, grey(channels=2), "jpeg", 1)


def test_a_loader_gives_corrupted_images_and_leaves_the_split(ensemble: swe.SuperWeightEnsemble) -> None:
    corruption = Corruption(name="gaussian_noise", severity=5)
    plain, worse, again = (list(DATA.loader("test", 32, corruption=one)) for one in (None, corruption, corruption))
    for (images, labels), (noisy, same), (other, _) in zip(plain, worse, again):
        assert not torch.equal(images, noisy) and torch.equal(noisy, other) and torch.equal(labels, same)
    assert torch.equal(plain[0][0], next(iter(DATA.loader("test", 32)))[0])
    (found,) = measure_corrupted(ensemble, [corruption], lambda one: DATA.loader("test", 32, corruption=one))
    assert found.metrics == swe.evaluate(ensemble, worse).ensemble.metrics
