"""Members in faster forms: which is chosen, that answers stay, and what is refused. Shapes: B images, K classes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor, nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import acceleration

SHAPE = (3, 8, 8)
IMAGES = torch.randn(160, *SHAPE, generator=torch.Generator().manual_seed(0))
SAMPLES = [(IMAGES[:100], torch.arange(100) % 5), (IMAGES[100:], torch.arange(60) % 5)]


def trained(depth: int, seed: int) -> nn.Module:
    """A network whose norms have statistics of their own, as after training."""
    torch.manual_seed(seed)
    network = swe.wide_resnet(depth, 1, 5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2.0)
    return network.eval()


def members() -> dict[str, nn.Module]:
    return {"small": trained(10, 0), "large": trained(16, 1)}


class Unsure(nn.Module):
    """Answers that lie closer together than bfloat16 tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)[:, :4] * 1e-3 + 1.0)


class Branching(nn.Module):
    """Its program depends on the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        answer = self.norm(self.convolution(images)).mean((2, 3))
        return -answer if float(images.sum()) > 1e9 else answer


def prefer(monkeypatch: pytest.MonkeyPatch, *forms: str) -> None:
    """A clock by which a network takes a tenth less for each of these forms that it has, a tenth more for others."""

    def seconds(network: nn.Module, images: Tensor) -> float:
        has = {
            "channels_last": getattr(network, "_channels_last", False),
            "bfloat16": getattr(network, "_dtype", None) is torch.bfloat16,
            "fused": isinstance(getattr(network, "network", None), torch.fx.GraphModule),
        }
        return 1.0 - sum(0.1 if form in forms else -0.1 for form, there in has.items() if there)

    monkeypatch.setattr(acceleration, "timed_call", seconds)


@pytest.mark.parametrize("forms", [("fused",), ("channels_last",), ("fused", "channels_last"), ()])
def test_the_fastest_form_by_the_clock_is_kept_and_answers_as_the_member_does(
    forms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, *forms)
    plain = swe.AnytimePredictor(members(), input_shape=SHAPE)
    before = copy.deepcopy(plain.modules)
    fast = plain.accelerate(SAMPLES, batch_size=32)
    for name, speed in fast.speeds.items():
        assert speed.forms == forms and not speed.left_out and speed.changed == 0
        assert speed.speedup == pytest.approx(1 / (1 - 0.1 * len(forms)))
        given, expected = fast.modules[name](IMAGES).softmax(1), plain.modules[name](IMAGES).softmax(1)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
        assert abs(speed.largest_difference - float((given - expected).abs().max())) < 1e-6
        for key, value in plain.modules[name].state_dict().items():
            torch.testing.assert_close(value, before[name].state_dict()[key], rtol=0, atol=0)
        norms = [layer for layer in fast.modules[name].modules() if isinstance(layer, nn.BatchNorm2d)]
        assert ("fused" in forms) == (len(norms) < sum(isinstance(x, nn.BatchNorm2d) for x in before[name].modules()))
    assert not plain.speeds


def test_products_in_bfloat16_keep_images_and_logits_float32_and_the_norms_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "bfloat16", "channels_last")
    plain = swe.AnytimePredictor(members(), input_shape=SHAPE)
    fast = plain.accelerate(SAMPLES, dtype=torch.bfloat16, max_changed=0.2)
    for name, speed in fast.speeds.items():
        assert speed.forms == ("channels_last", "bfloat16") and 0 < speed.largest_difference < 0.05
        logits = fast.modules[name](IMAGES)
        assert logits.dtype == torch.float32
        kinds = {type(layer).__name__: layer.weight.dtype for layer in fast.modules[name].modules() if
                 isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))}  # fmt: skip
        assert kinds == {"Conv2d": torch.bfloat16, "BatchNorm2d": torch.float32, "Linear": torch.bfloat16}
    answer = fast(IMAGES)
    assert answer.probabilities.dtype == torch.float32
    torch.testing.assert_close(answer.probabilities, plain(IMAGES).probabilities, rtol=0, atol=0.05)
    table = fast.predict(SAMPLES)  # images stay float32: nothing else is asked of them
    assert table.of(fast.order).shape == (2, 160, 5)


def test_policy_order_and_costs_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "channels_last")
    plain = swe.AnytimePredictor(members())
    plain.calibrate(SAMPLES, flops=0.7)
    fast = plain.accelerate(SAMPLES)
    assert fast.policy == plain.policy and fast.order == plain.order and fast.flops == plain.flops
    assert torch.equal(fast(IMAGES).members_used, plain(IMAGES).members_used)
    assert fast.measure(4).keys() == plain.measure(4).keys()
    assert fast(IMAGES, deadline_ms=1e5).skipped == ()
    assert [step.member for step in fast.stream(IMAGES)] == list(plain.order)
    fast.calibrate(SAMPLES, flops=1.0)
    assert plain.policy != fast.policy  # two predictors, each with its own


def test_answers_that_would_change_keep_the_form_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "bfloat16")
    torch.manual_seed(0)
    unsure = Unsure()
    with torch.no_grad():
        unsure.layer.bias.copy_(-unsure.layer.weight.sum(1))  # what is left is smaller than a step of bfloat16
    fast = swe.AnytimePredictor({"unsure": unsure}).accelerate(SAMPLES, dtype=torch.bfloat16)
    speed = fast.speeds["unsure"]
    assert speed.forms == () and speed.speedup == 1
    assert re.fullmatch(r"\d+\.\d\d% of the answers change", speed.left_out["bfloat16"])
    assert torch.equal(fast(IMAGES).probabilities, swe.AnytimePredictor({"unsure": unsure})(IMAGES).probabilities)


def test_a_network_that_cannot_be_traced_says_so_and_has_the_other_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "fused", "channels_last")
    fast = swe.AnytimePredictor({"branching": Branching()}).accelerate(SAMPLES)
    speed = fast.speeds["branching"]
    assert speed.forms == ("channels_last",) and list(speed.left_out) == ["fused"]
    assert "prox" in speed.left_out["fused"].lower()


def test_a_difference_within_the_noise_of_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "timed_call", lambda network, images: 1.0 - 0.01 * hasattr(network, "network"))
    fast = swe.AnytimePredictor(members()).accelerate(SAMPLES)
    assert {speed.forms for speed in fast.speeds.values()} == {()}


def test_a_member_that_stays_as_it_is_belongs_to_one_predictor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch)
    plain = swe.AnytimePredictor(members(), input_shape=SHAPE)
    fast = plain.accelerate(SAMPLES)
    fast.to("meta")
    assert plain(IMAGES).probabilities.shape == (160, 5)


def test_tokens_have_no_other_form() -> None:
    model = nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(24, 5))
    tokens = [(torch.arange(300).reshape(100, 3) % 11, torch.arange(100) % 5)]
    plain = swe.AnytimePredictor({"tokens": model})
    fast = plain.accelerate(tokens)
    assert fast.speeds["tokens"].forms == ()
    assert torch.equal(fast(tokens[0][0]).probabilities, plain(tokens[0][0]).probabilities)


def test_own_networks_answer_in_the_place_of_the_members() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0]]).expand(len(images), 5)

    plain = swe.AnytimePredictor(members(), input_shape=SHAPE)
    other = plain.with_networks({"large": Constant().train(), "small": Constant()})
    assert other.order == plain.order and other.flops == plain.flops
    assert other(IMAGES).probabilities.argmax(1).eq(1).all() and not other.modules["large"].training
    assert not plain(IMAGES).probabilities.argmax(1).eq(1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda own: own.with_networks({"small": nn.Identity()}), "no network is given for member 'large'"),
        (lambda own: own.with_networks({**own.modules, "larger": nn.Identity()}), "unknown member 'larger'"),
        (lambda own: own.with_networks([nn.Identity()]), "unknown member 'member0'"),
        (lambda own: own.accelerate(SAMPLES, dtype=torch.float32), "dtype must be None, torch.bfloat16 or"),
        (
            lambda own: own.accelerate(SAMPLES, max_changed=1.5),
            "max_changed .a fraction of the answers. must be a finite number",
        ),
        (lambda own: own.accelerate(SAMPLES, batch_size=0), "batch_size must be a whole number, at least 1"),
        (lambda own: own.accelerate(SAMPLES, num_images=0), "num_images must be a whole number, at least 1"),
        (lambda own: own.accelerate([]), "the loader has no samples"),
        (lambda own: own.accelerate([(torch.zeros(4, 3, 9, 9), torch.zeros(4).long())]), r"images must be \(batch, 3"),
        (lambda own: own.accelerate(7), "loader must yield"),
        (lambda own: own.accelerate(SAMPLES).save("nowhere"), "the predictor that this one was made of"),
        (lambda own: own.accelerate(SAMPLES).to(dtype=torch.float64), "types of their own"),
        (lambda own: swe.AnytimePredictor(members()).with_networks(members()), "give input_shape="),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str) -> None:
    own = swe.AnytimePredictor(members(), input_shape=SHAPE)
    assert_refused(message, call, own)


@pytest.mark.gpu
def test_on_a_gpu_forms_answer_as_the_members_do() -> None:
    plain = swe.AnytimePredictor(members(), input_shape=SHAPE).to("cuda")
    samples = [(images.cuda(), labels.cuda()) for images, labels in SAMPLES]
    for dtype in (None, torch.bfloat16, torch.float16):
        fast = plain.accelerate(samples, dtype=dtype, max_changed=0.2)
        given, expected = fast(IMAGES.cuda()).probabilities, plain(IMAGES.cuda()).probabilities
        torch.testing.assert_close(given, expected, rtol=0, atol=0.05)
