"""Start values of the bank, and fitting it to given weights."""

import functools
from itertools import pairwise

import pytest
import timm
import torch
from small_networks import rms
from torch import nn
from torch.testing import assert_close

from superweight_ensembles import SuperWeightEnsemble, plan_sharing, wide_resnet
from superweight_ensembles.ensemble import SuperWeightBank, initial_values, own_deviations


def mlp(*sizes):
    hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 3))


def narrow_mlp():
    return mlp(12, 20, 24)


class ChannelAttention(nn.Module):
    """Twelve convolutions of three weights each, as efficient channel attention has them: fewer than templates."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.gates = nn.ModuleList(nn.Conv1d(1, 1, 3, padding=1, bias=False) for _ in range(12))
        self.fc = nn.Linear(8, 3)


@functools.lru_cache
def members(case):
    torch.manual_seed(3)
    return {
        "wrn": lambda: {"a": wide_resnet(16, 2, 3)},
        "two wrn": lambda: {"a": wide_resnet(16, 2, 3), "b": wide_resnet(10, 1, 3)},
        "vit": lambda: {"a": timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)},
        "vit and wrn": lambda: {
            "a": timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=4),
            "b": timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=3, embed_dim=96),
            "c": wide_resnet(10, 2, 3),
        },
        "mlp": lambda: {"a": mlp(12, 32, 32, 16), "b": narrow_mlp()},
        "few numbers a target": lambda: {"a": ChannelAttention()},
    }[case]()


@pytest.mark.parametrize(
    ("case", "budget"),
    [
        ("wrn", "least"), ("wrn", 0.83), ("two wrn", 0.83), ("two wrn", 2.0), ("vit", 0.83), ("vit and wrn", "least"),
        ("vit and wrn", 1.3), ("mlp", "least"), ("mlp", 0.9), ("mlp", 2.0), ("few numbers a target", "least"),
        ("few numbers a target", 2.0),
    ],
)  # fmt: skip
def test_targets_start_with_the_deviation_of_their_own_layer(case, budget):
    # The least budget gives one template a slot: every target of a slot is then a multiple of the same numbers.
    plan = plan_sharing(members(case), budget=10**9)
    plan = plan_sharing(members(case), budget=plan.minimum_parameters if budget == "least" else budget)
    weights = SuperWeightBank(plan, own_deviations(plan, members(case))).generate()
    built = {(name, target): p for name, net in members(case).items() for target, p in net.named_parameters()}
    ratios = {f"{m}.{t}": rms(w) / rms(built[m, t]) for m, found in weights.items() for t, w in found.items()}
    assert ratios.keys() == {f"{one.member}.{one.name}" for cluster in plan.clusters for one in cluster.targets}
    assert {label: ratio for label, ratio in ratios.items() if not 0.95 < ratio < 1.05} == {}


def test_target_that_starts_at_zero_starts_at_zero():
    net = mlp(12, 32, 32, 16)
    nn.init.zeros_(net[2].weight)
    ensemble = SuperWeightEnsemble({"a": net, "b": narrow_mlp()}, budget=1.5)
    weights = ensemble.generate()["a"]
    assert torch.equal(weights["2.weight"], torch.zeros(32, 32))
    assert rms(weights["0.weight"]) == pytest.approx(rms(net[0].weight), rel=0.05)


def test_slot_whose_only_target_starts_at_zero_can_learn():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    nn.init.zeros_(net[0].weight)
    ensemble = SuperWeightEnsemble({"a": net}, budget=3.0)
    weight = ensemble.generate()["a"]["0.weight"]
    assert torch.equal(weight, torch.zeros(5, 4))
    weight.sum().backward()
    assert ensemble.bank.coefficients["c0s0"].grad.abs().min() > 0


@pytest.mark.parametrize("case", ["two wrn", "mlp"])
def test_coefficient_rows_are_orthogonal_in_runs_of_k(case):
    plan = plan_sharing(members(case), budget=0.9)
    coefficients = initial_values(plan, own_deviations(plan, members(case))).coefficients
    runs = [
        rows[start : start + rows.shape[1]]
        for rows in coefficients.values()
        for start in range(0, len(rows), rows.shape[1])
    ]
    assert max(len(run) for run in runs) > 1
    for run in runs:
        unit = (run / run.norm(dim=1, keepdim=True)).double()
        assert_close(unit @ unit.T, torch.eye(len(run), dtype=torch.float64), atol=1e-5, rtol=0)


def test_shapes_and_dtype_of_the_tensors():
    plan = plan_sharing(members("two wrn"), budget=0.9)
    bank = SuperWeightBank(plan, own_deviations(plan, members("two wrn")))
    for c, cluster in enumerate(plan.clusters):
        for s, (slot, block) in enumerate(zip(cluster.slots, cluster.blocks, strict=True)):
            templates, coefficients = bank.templates[f"c{c}s{s}"], bank.coefficients[f"c{c}s{s}"]
            assert templates.shape == (slot.num_templates, block.size)
            assert coefficients.shape == (slot.num_vectors, slot.num_templates)
            assert templates.dtype == coefficients.dtype == torch.float32


def test_global_seed_is_used_without_a_generator():
    banks = []
    for _ in range(2):
        torch.manual_seed(5)
        banks.append(SuperWeightEnsemble(members("mlp"), budget=1.0).bank.state_dict())
    assert all(torch.equal(banks[0][key], banks[1][key]) for key in banks[0])
