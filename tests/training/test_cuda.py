"""The same on a CUDA device; run where there is one (`pytest -m gpu`), deselected elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import two_processes
from training_cases import assert_same, deep_and_wide

import superweight_ensembles as swe
from superweight_ensembles.export import export_member, load_member
from superweight_ensembles.search import weight_gradients
from superweight_ensembles.training import Execution, compiled_calls, joint_backward, recomputed_blocks

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
QUICK = swe.TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, schedule="constant", precision="float32")


def test_weights_and_logits_equal_the_cpus() -> None:
    on_cpu, on_cuda = deep_and_wide().double().eval(), deep_and_wide().double().cuda().eval()
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
    trained = deep_and_wide()
    result = swe.train(trained, data, config, out=tmp_path)
    assert (result.device, result.precision, result.channels_last) == ("cuda:0", "bfloat16", True)
    found = swe.evaluate(trained, data.loader("test", 64, device="cuda"))
    assert found.ensemble.metrics.accuracy > 0.8
    resumed = deep_and_wide()
    swe.train(resumed, data, dataclasses.replace(config, epochs=6), out=tmp_path, resume=True)
    assert_same(trained.cpu(), resumed.cpu())


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
    result = swe.train(deep_and_wide(), swe.load_data("synthetic"), config, hooks=[hook])
    assert result.device == "cuda:0"
    assert all(torch.equal(before[name], tensor.cpu()) for name, tensor in teacher.state_dict().items())


def gradients(each: swe.SuperWeightEnsemble, device: str, **execution: Any) -> list[torch.Tensor]:
    images, labels = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    each.zero_grad()
    joint_backward(
        each, images.to(device, next(each.parameters()).dtype), labels.to(device), torch.nn.functional.cross_entropy,
        execution=Execution(**execution),
    )  # fmt: skip
    return [parameter.grad.cpu() for parameter in each.parameters()]


@pytest.mark.parametrize("sharing", [{}, {"generator": "ssn"}, {"coefficients": "tied"}], ids=str)
def test_gradients_equal_the_cpus(sharing: dict[str, Any]) -> None:
    on_cpu, on_cuda = (deep_and_wide(**sharing).double() for _ in range(2))
    found, expected = gradients(on_cuda.to(DEVICE), DEVICE), gradients(on_cpu, "cpu")
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_other_ways_to_run_a_step_give_the_same_gradients() -> None:
    expected = gradients(deep_and_wide().double().to(DEVICE), DEVICE)
    last, again, compiled = (deep_and_wide().double().to(DEVICE) for _ in range(3))
    last.to(memory_format=torch.channels_last)
    calls = compiled_calls(dict(compiled.members.items()))
    found = {
        "channels last": gradients(last, DEVICE),
        "recomputed": gradients(again, DEVICE, recomputed=recomputed_blocks(dict(again.members.items()))),
        "compiled": gradients(compiled, DEVICE, compiled=calls),
    }
    for how, given in found.items():
        torch.testing.assert_close(given, expected, rtol=1e-8, atol=1e-10, msg=how)


class Stops(swe.Hook):
    """Ends a training in its second epoch, unless told to go on."""

    def __init__(self, *, goes_on: bool = False) -> None:
        self.epochs, self.goes_on = 0, goes_on

    def after_epoch(self, state: Any) -> dict[str, Any]:
        self.epochs += 1
        return {}

    def after_step(self, state: Any, scalars: Any) -> None:
        if self.epochs and not self.goes_on:
            raise ZeroDivisionError


@pytest.mark.parametrize("options", [{"recompute": True}, {"micro_batches": 2}, {"num_workers": 2}], ids=str)
def test_a_training_that_stops_goes_on_as_if_it_had_not(options: dict[str, Any], tmp_path) -> None:
    data = swe.load_data("synthetic")
    whole, halves = deep_and_wide(), deep_and_wide()
    config = dataclasses.replace(QUICK, **options)
    assert swe.train(whole, data, config).device.startswith(DEVICE)
    with pytest.raises(ZeroDivisionError):
        swe.train(deep_and_wide(), data, config, out=tmp_path, hooks=[Stops()])
    swe.train(halves, data, config, out=tmp_path, hooks=[Stops(goes_on=True)], resume=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_that_does_not_fit_is_run_in_parts() -> None:
    class Greedy(torch.nn.Module):
        """Takes as much memory as there is for 32 images of a training step, and in proportion for fewer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(192, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            numbers = torch.cuda.get_device_properties(0).total_memory // 32 * len(images) // 4
            held = torch.empty(numbers if self.training else 1, device=images.device) if images.is_cuda else images
            return self.layer(images.flatten(1)) + 0 * held.flatten()[:1].detach().nan_to_num()

    built = swe.SuperWeightEnsemble({"a": Greedy(), "b": Greedy()}, budget=1.2)
    config = dataclasses.replace(QUICK, epochs=1, batch_size=64, micro_batches="auto")
    result = swe.train(built, swe.load_data("synthetic"), config)
    assert result.micro_batches > 1


def test_images_on_the_device_are_those_on_the_cpu() -> None:
    data = swe.load_data("synthetic")
    for (images, labels), (expected, truth) in zip(
        data.loader("test", 50, device=DEVICE), data.loader("test", 50), strict=True
    ):
        assert images.device.type == DEVICE and torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), truth)


def test_a_member_on_the_device_is_exported_and_an_ensemble_saved(tmp_path) -> None:
    trained = deep_and_wide().to(DEVICE).eval()
    network, images = trained.materialize("deep"), torch.randn(2, 3, 8, 8)
    path = export_member(network, tmp_path / "deep.safetensors", format="state-dict", input_shape=(3, 8, 8))
    torch.testing.assert_close(load_member(path)(images), network(images.to(DEVICE)).cpu(), rtol=1e-3, atol=1e-4)
    assert next(network.parameters()).device.type == DEVICE
    trained.save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(images), trained(images.to(DEVICE)).cpu(), rtol=1e-3, atol=1e-4)


def test_a_step_reads_the_device_once() -> None:
    built = deep_and_wide().to(DEVICE)
    images, labels = torch.randn(8, 3, 8, 8, device=DEVICE), torch.arange(8, device=DEVICE) % 4
    joint_backward(built, images, labels, torch.nn.functional.cross_entropy)  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        built.zero_grad()
        joint_backward(built, images, labels, torch.nn.functional.cross_entropy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def losses_on(mesh: str | dict[str, int], **changes: Any) -> torch.Tensor:
    config = dataclasses.replace(QUICK, mesh=mesh, device=DEVICE, **changes)
    history = swe.train(deep_and_wide(), swe.load_data("synthetic"), config).history
    return torch.tensor([list(record["train_loss"].values()) for record in history])


def on_each_of_two(rank: int, folder: Any) -> dict[str, torch.Tensor]:
    return {
        "members": losses_on({"members": 2, "rows": 1}, shard_moments=True),
        "rows": losses_on("rows"),
        "auto": losses_on("auto", ensemble_loss=0.5),
    }


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL runs one process a device, and there are not two")
def test_two_devices_learn_what_one_does(tmp_path) -> None:
    one = {"members": losses_on("rows"), "rows": losses_on("rows"), "auto": losses_on("rows", ensemble_loss=0.5)}
    for answer in two_processes.run(on_each_of_two, tmp_path):
        for name, found in answer.items():
            torch.testing.assert_close(found, one[name], rtol=1e-3, atol=1e-3)
