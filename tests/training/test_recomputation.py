"""Activation checkpointing: the same losses, gradients and buffers, fewer activations, each block twice."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import timm
import torch
from saved_files import edit_json
from torch import nn
from torch.nn import functional as F
from training_cases import assert_same, gradients_of, refused

import superweight_ensembles as swe
from superweight_ensembles.training import (
    Execution,
    JointLoss,
    joint_backward,
    recomputed_blocks,
    recomputing,
    repeated_blocks,
)

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
FAST = swe.TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, precision="float32", device="cpu")


class Counting(nn.Module):
    """A residual block with dropout, an option by name, and an output that depends on how often it ran."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc, self.dropout = nn.BatchNorm1d(width), nn.Linear(width, width), nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, *, scale: float) -> torch.Tensor:
        self.calls += 1
        return x + scale * self.calls * self.dropout(self.fc(self.norm(x)).relu())


class Own(nn.Module):
    """Blocks in a ModuleList; the first is used twice in one forward."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3 * 32 * 32, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Counting(width) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images.flatten(1))
        for block in (*self.blocks, self.blocks[0]):
            x = block(x, scale=0.5)
        return self.head(x)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=24, num_heads=2, num_classes=3,
        drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.3,
    )  # fmt: skip


MEMBERS: dict[str, Any] = {
    "wide_resnet": (lambda: swe.wide_resnet(16, 1, 3), "PreActivationBlock", 6),
    "resnet": (
        lambda: timm.create_model("resnet18", num_classes=3, drop_path_rate=0.2, zero_init_last=False),
        "BasicBlock",
        8,
    ),
    "vit": (vit, "Block", 3),
    "own": (Own, "Counting", 3),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2),
        "TransformerEncoderLayer",
        2,
    ),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=3), "ConvNeXtBlock", 12),
    "efficientnet": (lambda: timm.create_model("tf_efficientnetv2_b0", num_classes=3), "InvertedResidual", 16),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_blocks_are_those_that_repeat_inside_containers(name: str) -> None:
    build, kind, count = MEMBERS[name]
    assert [type(block).__name__ for block in repeated_blocks(build())].count(kind) == count


def test_groups_of_plain_layers_are_blocks_where_there_are_no_others() -> None:
    groups = [nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for _ in range(2)]
    assert repeated_blocks(nn.Sequential(*groups, nn.Flatten(), nn.LazyLinear(3))) == tuple(groups)
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))) == ()


def ensemble_of(member: nn.Module) -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble({"a": member}, budget=1.2, rng=torch.Generator().manual_seed(0)).train()


@pytest.mark.parametrize("weight", [0.0, 0.7], ids=["one_by_one", "ensemble_loss"])
@pytest.mark.parametrize("name", ["wide_resnet", "resnet", "vit", "own"])
def test_losses_gradients_and_buffers_are_bit_equal(name: str, weight: float) -> None:
    torch.manual_seed(0)
    member = MEMBERS[name][0]()
    found = []
    for recompute in (False, True):
        ensemble = ensemble_of(member)
        blocks = recomputed_blocks(dict(ensemble.members.items())) if recompute else {}
        loss = JointLoss(loss_function=F.cross_entropy, ensemble_weight=weight)
        torch.manual_seed(5)
        losses = [
            joint_backward(ensemble, IMAGES, LABELS, loss, execution=Execution(recomputed=blocks))["a"]
            for _ in range(2)
        ]
        gradients = {key: parameter.grad for key, parameter in ensemble.named_parameters()}
        found.append((losses, gradients, dict(ensemble.named_buffers()), torch.rand(2)))
    (losses, gradients, buffers, drawn), (losses2, gradients2, buffers2, drawn2) = found
    assert all(map(torch.equal, losses, losses2))
    assert torch.equal(*losses) == (name == "wide_resnet")  # the others drop units or paths at random
    assert gradients and all(torch.equal(gradients[key], gradients2[key]) for key in gradients)
    assert buffers.keys() == buffers2.keys() and all(torch.equal(buffers[key], buffers2[key]) for key in buffers)
    assert torch.equal(drawn, drawn2)
    if name == "own":
        assert [float(buffers2[f"members.a.blocks.{index}.calls"]) for index in range(3)] == [4, 2, 2]


def test_bfloat16_channels_last_is_bit_equal() -> None:
    member, found = swe.wide_resnet(16, 1, 3), []
    for recompute in (False, True):
        ensemble = ensemble_of(member).to(memory_format=torch.channels_last)
        blocks = recomputed_blocks(dict(ensemble.members.items())) if recompute else {}
        with torch.autocast("cpu", torch.bfloat16):
            images = IMAGES.contiguous(memory_format=torch.channels_last)
            joint_backward(ensemble, images, LABELS, F.cross_entropy, execution=Execution(recomputed=blocks))
        found.append(gradients_of(ensemble))
    assert found[0].keys() == found[1].keys() and all(map(torch.equal, found[0].values(), found[1].values()))


def test_fewer_activations_are_kept_and_each_block_runs_twice() -> None:
    ensemble = ensemble_of(swe.wide_resnet(16, 1, 3))
    member = ensemble.members["a"]
    blocks = repeated_blocks(member)
    kept, calls = [], []
    for recompute in (False, True):
        seen: dict[int, int] = {}
        hook = blocks[1].conv1.register_forward_hook(lambda *_: calls.append(recompute))  # noqa: B023

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {key: value.detach().requires_grad_() for key, value in ensemble.generate()["a"].items()}
        with ensemble.with_weights("a", weights), recomputing(blocks if recompute else ()):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = F.cross_entropy(member(IMAGES), LABELS)
            kept.append(sum(seen.values()))
            loss.backward()
        hook.remove()
    assert kept[1] < 0.5 * kept[0]
    assert calls == [False, True, True]
    assert all("forward" not in block.__dict__ for block in blocks)


def test_a_forward_of_the_users_own_is_put_back() -> None:
    member = Own()
    mine = member.blocks[0].forward
    member.blocks[0].forward = mine
    with recomputing(repeated_blocks(member)):
        assert member.blocks[0].forward is not mine
    assert member.blocks[0].__dict__["forward"] is mine and "forward" not in member.blocks[1].__dict__


def two_members() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    members = {"deep": swe.wide_resnet(16, 1, 4), "plain": plain}
    return swe.SuperWeightEnsemble(members, budget=1.2, rng=torch.Generator().manual_seed(0))


def test_training_ends_with_the_same_ensemble(caplog: pytest.LogCaptureFixture) -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    ends = [two_members(), two_members()]
    with caplog.at_level(logging.WARNING):
        for ensemble, recompute in zip(ends, (False, True)):
            swe.train(ensemble, data, dataclasses.replace(FAST, recompute=recompute))
    assert_same(*ends)
    assert [record.message for record in caplog.records if "recompute" in record.message] == [
        "recompute leaves plain as they are: they repeat no block"
    ]


def test_where_it_cannot_act_it_is_refused() -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    with refused("recompute has nothing to act on: plain repeat no block"):
        swe.train(two_members(), data, dataclasses.replace(FAST, recompute=True), members=["plain"])


def without_recompute(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content["config"].items() if key != "recompute"}


def test_a_checkpoint_from_before_the_switch_is_resumed(tmp_path) -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    swe.train(two_members(), data, FAST, out=tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        edit_json(checkpoint / "state.json", lambda content: {**content, "config": without_recompute(content)})
    for config in (FAST, dataclasses.replace(FAST, recompute=True)):  # it changes how, not what
        assert len(swe.train(two_members(), data, config, out=tmp_path, resume=True).history) == 2
