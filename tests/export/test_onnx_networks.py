"""Members that onnxruntime computes, behind the predictor's own interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.export import onnx_networks

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SHAPE = (3, 8, 8)
IMAGES = torch.randn(120, *SHAPE, generator=torch.Generator().manual_seed(0))
SAMPLES = [(IMAGES, torch.arange(120) % 5)]


@pytest.fixture(scope="module")
def predictors() -> Any:
    torch.manual_seed(0)
    members = {"small": swe.wide_resnet(10, 1, 5), "large": swe.wide_resnet(16, 1, 5)}
    plain = swe.AnytimePredictor(members, input_shape=SHAPE)
    return plain, plain.with_networks(onnx_networks(plain.modules, input_shape=SHAPE))


def test_stream_cascade_budget_and_deadline_answer_as_pytorch_does(predictors: Any) -> None:
    plain, fast = predictors
    policy = plain.calibrate(SAMPLES, flops=0.6) and plain.policy
    fast.set_policy(policy)
    for options in ({}, {"early_exit": False}, {"batch_flops": 0.7 * 120 * sum(plain.flops.values())}):
        given, expected = fast(IMAGES, **options), plain(IMAGES, **options)
        torch.testing.assert_close(given.probabilities, expected.probabilities, rtol=0, atol=1e-5)
        assert torch.equal(given.members_used, expected.members_used)
    for step, wanted in zip(fast.stream(IMAGES), plain.stream(IMAGES), strict=True):
        assert (step.member, step.flops) == (wanted.member, wanted.flops)
        torch.testing.assert_close(step.probabilities, wanted.probabilities, rtol=0, atol=1e-5)
    tracked = IMAGES.clone().requires_grad_()
    torch.testing.assert_close(fast(tracked).probabilities, plain(tracked).probabilities, rtol=0, atol=1e-5)
    late = fast(IMAGES, deadline_ms=1e-3, early_exit=False)
    assert late.skipped == ("large",) and late.members_used.eq(1).all()
    found = fast.calibrate(SAMPLES, flops=0.6)
    assert found.num_samples == 120 and fast.policy.order == plain.order


def test_threads_are_those_of_pytorch_or_of_the_options_given() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (network,) = onnx_networks({"a": swe.wide_resnet(10, 1, 5)}, input_shape=SHAPE).values()
    finally:
        torch.set_num_threads(threads)
    assert network.session.get_session_options().intra_op_num_threads == 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    (network,) = onnx_networks(
        {"a": swe.wide_resnet(10, 1, 5)}, input_shape=SHAPE, session_options=options, providers=["CPUExecutionProvider"]
    ).values()
    assert network.session.get_session_options().intra_op_num_threads == 3


def test_a_network_that_onnx_cannot_say_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5] if float(images.sum()) > 0 else -images.flatten(1)[:, :5]

    assert_refused("cannot trace Branching", onnx_networks, {"a": Branching()}, input_shape=SHAPE)
    assert_refused("input_shape", onnx_networks, {"a": swe.wide_resnet(10, 1, 5)}, input_shape=(0,))
