"""Metrics by hand arithmetic; members, ensemble and subsets; costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from refusals import assert_refused
from small_networks import Bag
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import superweight_ensembles as swe
from superweight_ensembles.anytime import (
    diversity,
    evaluate_predictions,
    predict,
    probability_metrics,
    reliability,
)
from superweight_ensembles.models import count_flops


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


NAN_ROW = torch.tensor([0.0, math.nan, 0.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        ([], "the loader has no samples"),
        ([(torch.zeros(0, 3, 8, 8), torch.zeros(0).long())], "the loader has no samples"),
        (iter([]), "no samples; an iterator can be read once: give a list or a DataLoader"),
        (None, r"loader must yield \(images, labels\), as ImageData.loader\(...\) does; got NoneType"),
        (
            [torch.zeros(2, 3, 8, 8)],
            r"a batch must be a pair \(images, labels\) of tensors; the loader yields a Tensor",
        ),
        ([(np.zeros((2, 3, 8, 8)), np.zeros(2))], "must be a pair .* of tensors"),
        ([(torch.zeros(2, 3, 8, 8), torch.tensor([0, 7]))], "labels must be 0 to 4.*has 0 to 7"),
        ([(torch.zeros(2, 3, 8, 8), torch.tensor([0, -100]))], "labels must be 0 to 4.*has -100 to 0"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], r"class indices .* got torch\.float32"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1).long())], r"class indices .*: labels\.squeeze\(1\)"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5).long())], r"class indices .*: labels\.argmax\(1\)"),
        (
            [(torch.zeros(2, 3, 8, 8).half(), torch.zeros(2).long())],
            r"images are torch\.float16, the members torch\.float32",
        ),
        ([(torch.zeros(2, 3, 8, 8).double(), torch.zeros(2).long())], r"images are torch\.float64, the members"),
        (
            [(torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long())],
            r"member 'wrn16-1' cannot take images .* torch\.uint8",
        ),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())], r"member 'wrn16-1' cannot take images \(2, 1, 8, 8\)"),
        ([(torch.zeros(2, 3, 8, 8, device="meta"), torch.zeros(2).long())], "meta tensors holds no numbers"),
        (
            [(torch.zeros(3, 3, 8, 8), torch.zeros(3).long()), (NAN_ROW, torch.zeros(3).long())],
            "rows 1 of batch 1; mend",
        ),
    ],
)
def test_loaders_that_cannot_be_evaluated(loader, match) -> None:
    assert_refused(match, swe.evaluate, three_members(), loader)


@pytest.mark.parametrize("labels", [torch.int16, torch.uint8, torch.int32])
def test_labels_of_any_integer_type_and_batches_of_any_layout(labels) -> None:
    torch.manual_seed(0)
    ensemble, images, truth = three_members(), torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))
    expected = swe.evaluate(ensemble, [(images, truth)]).ensemble.metrics
    channels_last = images.to(memory_format=torch.channels_last).requires_grad_()
    for given in (channels_last, images.transpose(2, 3).clone().transpose(2, 3)):
        empty = (images[:0], truth[:0].to(labels))
        found = swe.evaluate(ensemble, [empty, (given, truth.to(labels))]).ensemble.metrics
        assert found.accuracy == expected.accuracy and found.nll == pytest.approx(expected.nll, rel=1e-5)


def linear_members(classes: int) -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble(
        {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes)) for name in "ab"}, budget=1.2
    )


def test_one_class_is_refused_and_fewer_than_five_are_all_in_the_top_five() -> None:
    loader = [(torch.randn(6, 4), torch.zeros(6).long())]
    for call in (
        lambda: swe.evaluate(linear_members(1), loader),
        lambda: swe.anytime.member_costs(linear_members(1), (4,)),
    ):
        assert_refused("two classes or more; 'a' answers one", call)
    assert swe.evaluate(linear_members(3), loader).ensemble.metrics.top5_accuracy == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number, at least 1; got 2.5"),
        ({"rounds": 0}, "rounds must be a whole number, at least 1; got 0"),
        ({"input_shape": (3, 8.0, 8)}, "input_shape must list the sizes of one image"),
        ({"input_shape": (1, 8, 8)}, r"member 'wrn16-1' cannot take images \(1, 1, 8, 8\)"),
    ],
)
def test_costs_that_cannot_be_measured(options, match) -> None:
    assert_refused(match, swe.anytime.member_costs, three_members(), **{"input_shape": (3, 8, 8), **options})


def test_evaluation_leaves_everything_as_it_was() -> None:
    ensemble = three_members().to(memory_format=torch.channels_last)
    ensemble.train()
    ensemble.members["wrn10-2"].eval()
    next(ensemble.members.parameters()).requires_grad_(False)

    def state() -> list:
        tensors = [(value.clone(), value.stride()) for value in ensemble.state_dict().values()]
        flags = [module.training for module in ensemble.modules()] + [p.requires_grad for p in ensemble.parameters()]
        backends = (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())
        return [tensors, flags, backends, torch.get_rng_state(), torch.is_grad_enabled()]

    before = state()
    swe.evaluate(ensemble, [(torch.ones(3, 3, 8, 8), torch.zeros(3).long())])
    torch.testing.assert_close(state(), before, rtol=0, atol=0)


class Calling(nn.Module):
    """A call in which layers take part."""

    def __init__(self, call: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)
        self.given = nn.Parameter(torch.ones(1, 5, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.call(self, images, *self.layers)


def gradient_of_a_call(self: Calling, images: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        inputs = images.clone().requires_grad_()
        return torch.autograd.grad(layer(inputs).sum(), inputs)[0]


def flash_attention(self: Calling, images: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(images, images, images)


ROWS, TOKENS, HEADS = torch.zeros(1, 8), torch.zeros(1, 5, 8), torch.zeros(1, 2, 5, 8)
ENCODER = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
WEIGHT = 2 * 8 * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("module", "images", "expected"),
    [
        (parametrizations.weight_norm(nn.Linear(8, 4)), ROWS, WEIGHT),
        (parametrizations.spectral_norm(nn.Linear(8, 4)), ROWS, WEIGHT + 2 * 8 * 4 + 2 * 4),  # u W v in each call
        (Calling(lambda self, images, layer: layer(self.given)[0], nn.Linear(8, 4)), ROWS, 5 * WEIGHT),
        (Calling(lambda self, images, layer: layer(self.given[:, :1])[0], nn.Linear(8, 4)), ROWS, WEIGHT),
        (
            Calling(lambda self, images, layer: layer(self.given.expand(2, -1, -1))[0], nn.Linear(8, 4)),
            ROWS,
            10 * WEIGHT,
        ),
        (Calling(gradient_of_a_call, nn.Linear(8, 4)), ROWS, 2 * WEIGHT),
        (Calling(lambda self, images, layer: layer(images, images[:, :6]), nn.Bilinear(8, 6, 4)), ROWS, 2 * 4 * 8 * 6),
        (Calling(lambda self, images: (self.given[0] @ images[0])[None]), ROWS, 2 * 5 * 8),
        (Calling(lambda self, images: torch.addmv(images[0, :5], self.given[0], images[0])[None]), ROWS, 2 * 5 * 8),
        (Calling(lambda self, images: (images[0] @ images[0])[None]), ROWS, 2 * 8),
        (Calling(lambda self, images: torch.addbmm(self.given[0, :, :5], images, images.mT)), TOKENS, 2 * 5 * 8 * 5),
        (Calling(flash_attention), HEADS, 2 * 2 * 2 * 5 * 5 * 8),
        (nn.LSTM(8, 4, batch_first=True), TOKENS, 2 * 5 * 4 * 4 * (8 + 4)),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), torch.zeros(1, 4, 6, 6), 2 * 36 * 4 * 4 * 9),
        # Three projections of tokens and that of the answer, two layers; scores and sums of values.
        (ENCODER, torch.zeros(1, 5, 16), 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 16),
    ],
)
def test_products_are_counted_in_any_mode(mode, module, images, expected) -> None:
    with mode():
        assert count_flops(module.eval(), images) == expected
    assert torch.backends.mha.get_fastpath_enabled()


class OfItsOwn(nn.Module):
    """Fails where another mode looks at its operators, as flex_attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise TypeError("no implementation found")
        return self.layer(images)


@pytest.mark.parametrize(
    ("layer", "left_out"),
    [
        (Calling(lambda self, images, layer: layer(torch.fft.rfft(images).abs()), nn.Linear(5, 4)), "aten::_fft_r2c"),
        (Calling(lambda self, images: torch.cdist(images, self.given[0])), "aten::_cdist_forward"),
        (OfItsOwn(), "TypeError: no implementation found"),
        (Calling(lambda self, images: images * 2), "its operators"),
    ],
)
def test_what_is_not_counted_is_told_once(layer, left_out, caplog) -> None:
    predictor = swe.AnytimePredictor({"a": layer}, input_shape=(8,))
    predictor(torch.zeros(2, 8))
    (record,) = caplog.records
    assert record.message.startswith("member 'a' counts ") and left_out in record.message
    if not predictor.flops["a"]:
        loader = [(torch.randn(120, 8), torch.zeros(120).long())]
        with pytest.raises(swe.SuperWeightError, match="member 'a' counts no FLOPs: it has no place on a curve"):
            swe.anytime.measure_curves(predictor, loader, loader)


def test_members_of_many_kinds_are_evaluated() -> None:
    class Pooling(nn.Module):
        """A learned query, a parameter given to a module, as in CaiT and attention pooling; keeps its features."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed = parametrizations.weight_norm(nn.Linear(8, width))
            self.query, self.norm = nn.Parameter(torch.randn(1, 1, width)), nn.LayerNorm(width)
            self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
            self.head = nn.Linear(width, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            self.features = self.embed(tokens)
            query = self.norm(self.query).expand(len(tokens), -1, -1)
            return self.head(self.attend(query, self.features, self.features)[0][:, 0])

    ensemble = swe.SuperWeightEnsemble({"a": Pooling(8), "b": Pooling(12)}, budget=1.2)
    tokens, labels = torch.randn(6, 5, 8), torch.randint(0, 3, (6,))
    ensemble(tokens).sum().backward()
    found = swe.evaluate(ensemble, [(tokens, labels)])
    softmax = ensemble.eval()(tokens).detach().softmax(2)
    assert found.ensemble.metrics.nll == pytest.approx(probability_metrics(softmax.mean(0), labels).nll, rel=1e-4)
    predictor = swe.AnytimePredictor(ensemble)
    torch.testing.assert_close(predictor(tokens, deadline_ms=60_000).probabilities, softmax.mean(0))


def test_token_and_float64_members_are_evaluated() -> None:
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
    assert_refused("unknown member 'wrn10-3': did you mean", table.of, ["wrn10-3"])
