"""Metrics by hand arithmetic; members, ensemble and subsets; costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import (
    count_flops,
    diversity,
    evaluate_predictions,
    predict,
    probability_metrics,
    reliability,
)


def test_metrics_of_four_samples_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, 1, 1, 2])
    metrics = probability_metrics(probabilities, labels)
    assert metrics.accuracy == pytest.approx(3 / 4)
    assert metrics.top5_accuracy == pytest.approx(1.0)
    assert metrics.nll == pytest.approx(-(math.log(0.9) + math.log(0.3) + math.log(0.7) + math.log(0.8)) / 4)
    brier = ((0.01 + 0.01) + (0.36 + 0.49 + 0.01) + (0.04 + 0.09 + 0.01) + (0.01 + 0.01 + 0.04)) / 4
    assert metrics.brier == pytest.approx(brier)
    # Every sample is alone in its bin of width 1/15 (0.9, 0.6, 0.7, 0.8): the mean gap of confidence and accuracy.
    assert metrics.ece == pytest.approx((0.1 + 0.6 + 0.3 + 0.2) / 4, abs=1e-6)


def test_diversity_is_disagreement_over_error() -> None:
    one_hot = torch.eye(2)
    answers = torch.stack([one_hot[[0, 0, 1, 1]], one_hot[[0, 0, 1, 0]], one_hot[[0, 1, 1, 0]]])
    labels = torch.tensor([0, 0, 0, 0])
    # The mean answers 0, 0, 1, 0: error 1/4. Pairs disagree on 1/4, 2/4 and 1/4 of the samples.
    assert diversity(answers, labels) == pytest.approx((1 / 4 + 2 / 4 + 1 / 4) / 3 / (1 / 4))
    assert diversity(answers[:1], labels) is None
    assert diversity(answers[:, :2], torch.tensor([0, 0])) is None  # no error to divide by


def test_reliability_bins_hold_all_samples() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.45, 0.55], [0.96, 0.04]])
    bins = reliability(probabilities, torch.tensor([0, 0, 1]))
    assert len(bins) == 15 and sum(b.count for b in bins) == 3
    assert bins[-1].count == 2 and bins[-1].accuracy == pytest.approx(0.5)
    assert bins[-1].confidence == pytest.approx((0.95 + 0.96) / 2)
    assert (bins[0].lower, bins[0].upper) == (0.0, pytest.approx(1 / 15))
    assert (bins[0].confidence, bins[0].accuracy, bins[0].count) == (None, None, 0)


def three_members() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {f"wrn{d}-{w}": swe.wide_resnet(d, w, 5) for d, w in ((16, 1), (10, 2), (10, 1))}
    return swe.SuperWeightEnsemble(members, budget=0.9)


def test_every_subset_with_its_mean_prediction_and_cost() -> None:
    ensemble = three_members()
    batches = [(torch.randn(n, 3, 8, 8), torch.randint(0, 5, (n,))) for n in (6, 3)]
    ensemble.train()
    found = swe.evaluate(ensemble, batches)
    assert ensemble.training
    assert len(found.subsets) == 2**3 - 1 and found.num_samples == 9
    ensemble.eval()
    with torch.no_grad():
        softmax = ensemble(torch.cat([images for images, _ in batches])).softmax(2)
    labels = torch.cat([truth for _, truth in batches])
    for subset in found.subsets:
        chosen = [ensemble.member_names.index(name) for name in subset.members]
        expected = probability_metrics(softmax[chosen].mean(0), labels)
        assert subset.metrics.nll == pytest.approx(expected.nll, rel=1e-4)
        assert subset.metrics.accuracy == expected.accuracy
        assert subset.flops == sum(found.by_name[name].flops for name in subset.members)
    assert found.ensemble.flops == sum(member.flops for member in found.members)
    assert found.ensemble.metrics == found.subsets[-1].metrics
    assert [member.name for member in found.members] == list(ensemble.member_names)
    assert [member.metrics for member in found.members] == [subset.metrics for subset in found.subsets[:3]]


def test_more_than_ten_members_give_running_ensembles() -> None:
    torch.manual_seed(0)
    members = {f"m{i}": nn.Sequential(nn.Linear(4, 8 + i), nn.ReLU(), nn.Linear(8 + i, 3)) for i in range(11)}
    ensemble = swe.SuperWeightEnsemble(members, budget=1.2)
    found = swe.evaluate(ensemble, [(torch.randn(7, 4), torch.randint(0, 3, (7,)))])
    assert len(found.subsets) == 11 + 10
    assert found.subsets[11].members == ("m0", "m1")  # the two cheapest
    assert found.subsets[-1].members == ensemble.member_names


def test_flops_and_parameters_by_formula() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 10))
    expected = 2 * (8 * 3 * 9 * 16) + 2 * (8 * 16 * 10)
    assert count_flops(layers, torch.zeros(1, 3, 4, 4)) == expected
    ensemble = three_members()
    costs = swe.anytime.member_costs(ensemble, (3, 8, 8))
    for name, depth, width in (("wrn16-1", 16, 1), ("wrn10-2", 10, 2), ("wrn10-1", 10, 1)):
        plain = swe.wide_resnet(depth, width, 5)
        assert costs[name].num_parameters == sum(p.numel() for p in plain.parameters())
        assert costs[name].flops == count_flops(plain, torch.zeros(1, 3, 8, 8))
        assert costs[name].latency_ms > 0


def test_evaluation_errors() -> None:
    ensemble = three_members()
    with pytest.raises(swe.SuperWeightError, match="no samples"):
        swe.evaluate(ensemble, [])
    with pytest.raises(swe.SuperWeightError, match=r"labels must be 0 to 4.*has 0 to 7"):
        swe.evaluate(ensemble, [(torch.randn(2, 3, 8, 8), torch.tensor([0, 7]))])


def test_fused_attention_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    tokens = torch.zeros(1, 5, 16)
    projections = 2 * 5 * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 32)
    attention = 2 * 2 * 4 * 5 * 5 * (16 // 4)
    with torch.inference_mode():
        assert count_flops(layer, tokens) == projections + attention
    assert torch.backends.mha.get_fastpath_enabled()


def test_token_and_float64_members_are_evaluated() -> None:
    class Bag(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embedding, self.hidden, self.fc = nn.Embedding(20, 8), nn.Linear(8, width), nn.Linear(width, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.fc(self.hidden(self.embedding(tokens).mean(1)).relu())

    tokens = [(torch.randint(0, 20, (6, 5)), torch.randint(0, 3, (6,)))]
    ensemble = swe.SuperWeightEnsemble({"a": Bag(8), "b": Bag(12)}, budget=1.2)
    assert swe.evaluate(ensemble, tokens).num_samples == 6
    images = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (4,)))]
    assert swe.evaluate(three_members().double(), images).num_samples == 4


def test_a_table_of_predictions_is_evaluated_as_the_loader_is() -> None:
    ensemble = three_members()
    batches = [(torch.randn(n, 3, 8, 8), torch.randint(0, 5, (n,))) for n in (6, 3)]
    table = predict(ensemble, batches)
    assert table.members == ensemble.member_names and table.probabilities.shape == (3, 9, 5)
    assert torch.equal(table.image, batches[0][0][:1])
    assert torch.equal(table.of(["wrn10-1", "wrn16-1"]), table.probabilities[[2, 0]])
    by_loader, by_table = swe.evaluate(ensemble, batches), evaluate_predictions(ensemble, table)
    assert [m.metrics for m in by_table.members] == [m.metrics for m in by_loader.members]
    assert by_table.ensemble.metrics == by_loader.ensemble.metrics
    assert [s.metrics for s in by_table.subsets] == [s.metrics for s in by_loader.subsets]
    assert (by_table.diversity, by_table.reliability) == (by_loader.diversity, by_loader.reliability)
    with pytest.raises(swe.SuperWeightError, match="unknown member 'wrn10-3': did you mean"):
        table.of(["wrn10-3"])
