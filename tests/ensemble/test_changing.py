"""A member more, a member less, other classes: what the new ensemble keeps of the old one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from refusals import assert_refused
from torch import nn
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.ensemble import reset_classifier, with_member, without_member

IMAGES = torch.randn(4, 3, 16, 16)


def resnet() -> nn.Module:
    return swe.build_member("timm/resnet18", num_classes=5, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))


def trained(budget: float = 0.8, **options: object) -> swe.SuperWeightEnsemble:
    """An ensemble whose bank, heads and norms are no start values."""
    torch.manual_seed(0)
    members = {"wide": swe.wide_resnet(10, 2, 5), "deep": swe.wide_resnet(16, 1, 5), "timm": resnet()}
    ensemble = swe.SuperWeightEnsemble(members, budget=budget, **options)
    ensemble.train()
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        ensemble(IMAGES)
    return ensemble.eval()


def answers(ensemble: swe.SuperWeightEnsemble) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(zip(ensemble.member_names, ensemble(IMAGES)))


def test_members_are_added_and_kept_where_the_budget_is_large() -> None:
    before, new = trained(), swe.wide_resnet(16, 2, 5).eval()
    state = {name: value.clone() for name, value in before.state_dict().items()}
    after, start = with_member(before, "new", new, budget=9.0, cap=64)
    assert after.member_names == ("wide", "deep", "timm", "new") and not after.training
    assert start.mean_error < 1e-5
    found = answers(after)
    for name, logits in answers(before).items():
        assert_close(found[name], logits, rtol=1e-3, atol=1e-3)
    assert_close(found["new"], new(IMAGES), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())


def test_the_fraction_of_the_budget_stays_and_errors_are_told() -> None:
    before = trained(0.8)
    after, start = with_member(before, "new", swe.wide_resnet(16, 2, 5))
    assert 0.75 < after.num_parameters / after.independent_parameters <= 0.8
    assert {member for member, _ in start.errors} == set(after.member_names)
    assert 0 < start.mean_error < 1
    fewer, start = without_member(after, "deep", clusters="shape", budget=0.9)
    assert fewer.member_names == ("wide", "timm", "new")
    assert 0.85 < fewer.num_parameters / fewer.independent_parameters <= 0.9
    assert {member for member, _ in start.errors} == set(fewer.member_names)


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("generator", ["superweight", "ssn"])
def test_heads_of_other_classes_leave_all_else_as_it_is(num_classes: int, generator: str, tmp_path: Path) -> None:
    before = trained(generator=generator)
    after = reset_classifier(before, num_classes)
    assert after(IMAGES).shape == (3, 4, num_classes)
    assert after.plan.clusters == before.plan.clusters
    assert after.num_parameters == after.plan.num_parameters
    unspent = before.plan.budget - before.plan.spent
    assert after.plan.budget - after.plan.spent == unspent
    for name, value in before.bank.state_dict().items():
        assert torch.equal(after.bank.state_dict()[name], value)
    for name in before.member_names:
        one, other = before.materialize(name).state_dict(), after.materialize(name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one if not key.startswith("fc"))
        assert other["fc.weight"].shape[0] == num_classes
    after.save(tmp_path / "saved")
    for name, logits in answers(swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()).items():
        assert_close(logits, answers(after)[name], rtol=0, atol=0)
    assert before(IMAGES).shape == (3, 4, 5)


def test_heads_of_plain_modules_are_replaced() -> None:
    member = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()
    before = swe.SuperWeightEnsemble({"a": member}, budget=1.0)
    after = reset_classifier(before, 9)
    assert after(IMAGES.double()).shape == (1, 4, 9)
    head = after.materialize("a")[3]
    assert head.bias is None and head.weight.dtype == torch.float64


def test_what_cannot_be_changed_is_refused() -> None:
    ensemble = trained()
    with pytest.raises(swe.SuperWeightError, match="the ensemble has a member named 'wide': give another name"):
        with_member(ensemble, "wide", swe.wide_resnet(10, 1, 5))
    assert_refused("members must answer the same classes", with_member, ensemble, "new", swe.wide_resnet(10, 1, 6))
    assert_refused("unknown member 'wid': did you mean 'wide'", without_member, ensemble, "wid")
    assert_refused("unknown plan option 'bin'", without_member, ensemble, "wide", bin=3)
    alone = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 5)}, budget=1.0)
    assert_refused("'a' is the only member: an ensemble needs one", without_member, alone, "a")
    for classes in (0, -1, 2.0, True, "ten"):
        assert_refused("num_classes must be a whole number, at least 1; got", reset_classifier, alone, classes)
    shared = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 5)}, budget=2.0, include=["fc"])
    assert_refused(r"its head fc\.weight is generated: build a new ensemble without it", reset_classifier, shared, 3)


def test_a_vision_transformer_gets_new_classes() -> None:
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    member = timm.create_model("vit_tiny_patch16_224", num_classes=5, **options)
    after = reset_classifier(swe.SuperWeightEnsemble({"vit": member}, budget=1.0), 3)
    assert after(IMAGES).shape == (1, 4, 3)
