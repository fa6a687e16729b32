"""Networks with exits as baselines: what an exit is, what it costs, how it is taught, and the command."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import compare_peers
import pytest
import torch
from exit_networks import EXIT_ARMS, WIDTHS, BlockExits, Slimmable, build_exit_network, early_answers, soft_loss
from tiny_recipe import CONTENT
from torch.nn import functional as F

import superweight_ensembles as swe
from superweight_ensembles.experiment import parse_recipe
from superweight_ensembles.models import count_flops

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> swe.models.WideResNet:
    torch.manual_seed(0)
    return swe.wide_resnet(10, 2, num_classes=4).eval()


@pytest.mark.parametrize("kind", sorted(EXIT_ARMS))
def test_the_last_exit_is_the_network(kind: str) -> None:
    made = build_exit_network(kind, [swe.wide_resnet(10, 1, num_classes=4), network()]).eval()
    answers = made.answers(IMAGES, made.num_exits)
    assert len(answers) == made.num_exits == {"exits": 3, "slimmable": 4}[kind]
    torch.testing.assert_close(answers[-1], network()(IMAGES))
    torch.testing.assert_close(made(IMAGES), answers[-1])
    assert len(made.answers(IMAGES, 2)) == 2
    torch.testing.assert_close(made.answers(IMAGES, 2)[1], answers[1])
    costs = made.costs(IMAGES[:1])
    assert min(costs) > 0
    whole = count_flops(network(), IMAGES[:1])
    if kind == "slimmable":
        assert costs == sorted(costs) and costs[-1] == whole
    else:
        heads = sum(2 * head.weight.numel() for head in made.get_submodule("heads").children())
        assert sum(costs) == whole + heads


def test_an_exit_reads_the_blocks_before_it_alone() -> None:
    made = BlockExits(network()).eval()
    made.answers(IMAGES, 3)[0].sum().backward()
    first, second = (stage.get_parameter("0.conv1.weight") for stage in list(made.network.stages.children())[:2])
    assert first.grad is not None and first.grad.abs().sum() > 0 and second.grad is None


def test_a_width_reads_the_first_channels_alone() -> None:
    made = Slimmable(network()).eval()
    made.answers(IMAGES, 2)[1].sum().backward()
    weight = made.network.get_parameter("stages.1.0.conv1.weight")  # 32 to 64 channels, half of them
    assert weight.grad is not None
    assert weight.grad[32:].abs().sum() == 0 and weight.grad[:, 16:].abs().sum() == 0
    assert (weight.grad[:32, :16].abs().sum((2, 3)) > 0).float().mean() > 0.9
    norms = [name for name, value in made.named_parameters() if ".norms." in name and value.grad is not None]
    assert norms and all(".norms.1." in name for name in norms)
    assert WIDTHS[1] == 0.5


def test_soft_loss_by_hand() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, 3.0), expected)
    assert float(soft_loss(student, student, 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", sorted(EXIT_ARMS))
def test_curves_begin_with_the_first_exit_and_end_with_the_last(kind: str) -> None:
    data = swe.load_data("synthetic", num_classes=4, num_train=500, validation_fraction=0.4)
    made = build_exit_network(kind, [network()])
    loaders = {split: data.loader(split, 64) for split in ("validation", "test")}
    found = early_answers(made.eval(), loaders, num_points=4)
    curves = {curve.name: curve.points for curve in found.curves}
    with torch.no_grad():
        logits = torch.cat([made(images) for images, _ in loaders["test"]])
    labels = torch.cat([labels for _, labels in loaders["test"]])
    own = float((logits.argmax(1) == labels).double().mean())
    assert curves["alone"][-1].accuracy == pytest.approx(own) and found.tempered is not None
    assert found.tempered.accuracy == pytest.approx(own)
    costs = made.costs(torch.zeros(1, *data.image_shape))
    assert curves["cascade"][0].flops == pytest.approx(costs[0])
    assert curves["cascade"][-1].flops in (pytest.approx(sum(costs)), pytest.approx(costs[-1]))
    assert curves["alone"][-1].nll == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


def test_the_command_trains_and_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    data = {**CONTENT["data"], "num_train": 600, "validation_fraction": 0.25}
    content = {**CONTENT, "data": data, "anytime": {"num_points": 3, "timed_images": 64}}
    taught = {"teacher": "history", "weight": 0.5}
    (tmp_path / "tiny.yaml").write_text(parse_recipe({**content, "distillation": taught}).to_yaml())
    command = [compare_peers.__file__, str(tmp_path / "tiny.yaml"), "--seeds", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--against", "exits,slimmable"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(compare_peers.__file__), run_name="__main__")
    assert not stopped.value.code
    assert "slimmable network" in capsys.readouterr().out
    arms = json.loads((tmp_path / "out" / "comparison.json").read_text())["arms"]
    assert [arm["kind"] for arm in arms] == ["shared", "exits", "slimmable"]
    assert all("area" in arm["summary"] and "tempered_nll" in arm["summary"] for arm in arms)


def test_only_a_wide_resnet_has_such_exits() -> None:
    with pytest.raises(swe.SuperWeightError, match="'exits' is made of a wide_resnet; the largest member is a Linear"):
        build_exit_network("exits", [torch.nn.Linear(3, 2)])
