"""The same on a CUDA device; run where there is one (`pytest -m gpu`), deselected elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import superweight_ensembles as swe
from superweight_ensembles.search import weight_gradients
from superweight_ensembles.training import joint_backward

pytestmark = pytest.mark.gpu


def ensemble() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"deep": swe.wide_resnet(16, 1, 4), "wide": swe.wide_resnet(10, 2, 4)}
    return swe.SuperWeightEnsemble(members, budget=0.9, rng=torch.Generator().manual_seed(0))


def test_weights_and_logits_equal_the_cpus() -> None:
    on_cpu, on_cuda = ensemble().double().eval(), ensemble().double().cuda().eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(on_cuda(images.cuda()).cpu(), on_cpu(images), rtol=1e-9, atol=1e-9)
    for name, generated in on_cpu.generate().items():
        for parameter, weight in generated.items():
            torch.testing.assert_close(on_cuda.generate()[name][parameter].cpu(), weight, rtol=1e-12, atol=1e-12)


def test_members_built_on_the_device_have_their_bank_there() -> None:
    with torch.device("cuda"):
        members = {"a": swe.wide_resnet(10, 1, 4)}
    built = swe.SuperWeightEnsemble(members, budget=1.2)
    assert {parameter.device.type for parameter in built.parameters()} == {"cuda"}


def test_auto_trains_in_bfloat16_and_evaluates(tmp_path) -> None:
    data = swe.load_data("synthetic")
    config = swe.TrainConfig(epochs=6, batch_size=32, learning_rate=0.05, flip=True, crop_padding=1)
    trained = ensemble()
    result = swe.train(trained, data, config, out=tmp_path)
    assert (result.device, result.precision, result.channels_last) == ("cuda:0", "bfloat16", True)
    found = swe.evaluate(trained, data.loader("test", 64, device="cuda"))
    assert found.ensemble.metrics.accuracy > 0.8
    resumed = ensemble()
    swe.train(resumed, data, dataclasses.replace(config, epochs=6), out=tmp_path, resume=True)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor.cpu(), resumed.state_dict()[name].cpu()), name


@pytest.mark.parametrize("layer", [torch.nn.GRU, torch.nn.LSTM])
def test_recurrent_layers_equal_the_cpus(layer) -> None:
    class Last(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.recurrent, self.head = layer(4, width, batch_first=True), torch.nn.Linear(width, 3)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return self.head(self.recurrent(steps)[0][:, -1])

    on_cpu = swe.SuperWeightEnsemble([Last(8), Last(12)], budget=0.95).double()
    steps, labels = torch.randn(5, 7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    # Built of members that cuDNN has laid out in one block already.
    with torch.device("cuda"):
        given = [Last(8).double(), Last(12).double()]
    on_cuda = swe.SuperWeightEnsemble(given, plan=on_cpu.plan)
    on_cuda.load_state_dict(on_cpu.state_dict())
    own = on_cuda.members["member0"].recurrent.bias_hh_l0
    assert own.untyped_storage().nbytes() == own.numel() * own.element_size()
    for each, device in ((on_cpu, "cpu"), (on_cuda, "cuda")):
        joint_backward(each, steps.to(device), labels.to(device), torch.nn.functional.cross_entropy)
    for one, other in zip(on_cpu.parameters(), on_cuda.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-8, atol=1e-10)
    found = weight_gradients(on_cuda, [(steps, labels)])
    for key, gradient in weight_gradients(on_cpu, [(steps, labels)]).items():
        torch.testing.assert_close(found[key].cpu(), gradient, rtol=1e-8, atol=1e-10)
    costs = [swe.anytime.member_costs(each, (7, 4), rounds=1) for each in (on_cpu, on_cuda)]
    assert [costs[0][name].flops for name in costs[0]] == [costs[1][name].flops for name in costs[0]]


@pytest.mark.parametrize("own_mean", [False, True])
def test_a_teacher_comes_to_the_device(own_mean: bool) -> None:
    teacher = swe.wide_resnet(10, 1, 4)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = swe.TrainConfig(epochs=1, batch_size=32, learning_rate=0.05)
    hook = swe.Distillation("ensemble" if own_mean else teacher, weight=0.5)
    result = swe.train(ensemble(), swe.load_data("synthetic"), config, hooks=[hook])
    assert result.device == "cuda:0"
    assert all(torch.equal(before[name], tensor.cpu()) for name, tensor in teacher.state_dict().items())
