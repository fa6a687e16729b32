"""Networks of unlike layers in one bank: a ConvNeXt, a ViT and a ResNet, whose matrices share templates."""

import itertools
import json
import logging

import pytest
import timm
import torch
from refusals import assert_refused
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.ensemble import adopt_plan
from superweight_ensembles.search import GradientSearch, untie_coefficients
from superweight_ensembles.training import joint_backward

IMAGES, LABELS = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])


def members():
    torch.manual_seed(0)
    return {
        "convnext": timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 2, 1), dims=(8, 12, 16, 24)),
        "vit": timm.create_model(
            "vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=4, embed_dim=16, depth=3, num_heads=2
        ),
        "resnet": timm.create_model("resnet26", num_classes=3, layers=(1, 1, 1, 1), channels=(4, 6, 8, 8)),
    }


def plan(**options):
    return swe.plan_sharing(members(), **{"budget": 0.8, **options})


def logits_of(ensemble, images=IMAGES):
    return dict(zip(ensemble.member_names, ensemble(images)))


def touched(ensemble):
    """An ensemble that was trained, if only a little."""
    with torch.no_grad():
        for parameter in ensemble.bank.parameters():
            parameter.mul_(1.01)
    return ensemble


def meeting(sharing):
    """The members that meet in each cluster, by its name."""
    return {cluster.name: {target.member for target in cluster.targets} for cluster in sharing.clusters}


def layers(sharing):
    """What each generated tensor is for its layer."""
    return {
        (target.label, cluster.shape_of(target), cluster.kind_of(target))
        for cluster in sharing.clusters
        for target in cluster.targets
    }


def test_matrices_of_all_layers_meet():
    found = meeting(plan())
    assert found["matrix bin 1/2"] == found["matrix bin 2/2"] == {"convnext", "vit", "resnet"}
    assert all(len(own) == 1 for name, own in found.items() if name in ("conv2d 2x2 bin 1/1", "conv2d 3x3 bin 1/1"))
    by_shape = meeting(plan(clusters="shape", budget=0.95))
    assert by_shape["matrix 16x64"] == {"convnext", "vit", "resnet"} and by_shape["linear 16x16"] == {"vit"}
    apart = meeting(plan(clusters="type", generator="ssn"))
    assert apart["linear"] == {"vit"} and apart["conv2d"] == {"convnext", "vit", "resnet"}


def test_queries_keys_and_values_are_parts_that_stay_together():
    sharing = plan(bins=5)
    parts = {}
    for cluster in sharing.clusters:
        for target in cluster.targets:
            if target.part is not None:
                parts.setdefault(target.name, []).append((target.part, cluster.name, cluster.shape_of(target)))
    assert set(parts) == {f"blocks.{index}.attn.qkv.weight" for index in range(3)}
    for found in parts.values():
        assert sorted(part for part, _, _ in found) == [(0, 3), (1, 3), (2, 3)]
        assert len({cluster for _, cluster, _ in found}) == 1
        assert {shape for *_, shape in found} == {(16, 16)}
    assert swe.SharingPlan.from_json(sharing.to_json()) == sharing


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bins": 1, "coefficients": "embedding", "budget": 0.95},
        {"clusters": "random", "num_groups": 5, "generator": "ssn", "budget": 0.3},
        {"clusters": "shape", "generator": "auto", "budget": 0.4},
        {"clusters": "one", "generator": "ssn", "budget": 0.1},
        {"kernels": "centre", "budget": 0.7},
        {"kernels": "centre", "bins": 1, "coefficients": "tied"},
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "default",
)
def test_two_halves_of_a_step_give_the_gradients_of_one_graph(options):
    ensemble = swe.SuperWeightEnsemble(members(), plan=plan(**options)).double()
    images = IMAGES.double()
    loss = sum(F.cross_entropy(logits, LABELS) for logits in ensemble(images))
    expected = torch.autograd.grad(loss, list(ensemble.parameters()), allow_unused=True)
    joint_backward(ensemble, images, LABELS, F.cross_entropy)
    for (name, parameter), gradient in zip(ensemble.named_parameters(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            assert_close(
                parameter.grad, gradient, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("kernels", ["apart", "centre"])
def test_saved_materialised_and_channels_last(tmp_path, kernels):
    ensemble = swe.SuperWeightEnsemble(members(), budget=0.8, kernels=kernels).eval()
    ensemble.save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved", members()).eval()
    last = swe.SuperWeightEnsemble.load(tmp_path / "saved", members()).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for name, logits in logits_of(ensemble).items():
            assert_close(ensemble.materialize(name)(IMAGES), logits)
            assert_close(logits_of(loaded)[name], logits, rtol=0, atol=0)
            assert_close(logits_of(last)[name], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", ["apart", "centre"])
def test_members_are_kept_exactly_where_the_budget_is_large(kernels):
    trained = members()
    ensemble = swe.SuperWeightEnsemble(members(), budget=9.0, cap=64, kernels=kernels)
    assert max(swe.warm_start(ensemble, trained).errors.values()) < 1e-5
    ensemble.eval()
    with torch.no_grad():
        for name, member in trained.items():
            assert_close(logits_of(ensemble)[name], member.eval()(IMAGES), rtol=1e-3, atol=1e-4)


def test_kernels_of_several_sizes_meet_and_are_told():
    sharing = plan(kernels="centre")
    found = meeting(sharing)
    assert sorted({name.rpartition(" bin")[0] for name in found}) == ["dense", "depthwise conv2d 7x7"]
    assert found["dense bin 1/3"] == found["dense bin 3/3"] == {"convnext", "vit", "resnet"}
    assert sum(one.between for one in sharing.company().values()) > sum(
        one.between for one in plan().company().values()
    )
    assert sharing.minimum_parameters < plan().minimum_parameters
    assert swe.SharingPlan.from_json(sharing.to_json()) == sharing
    one_kind = plan(kernels="centre", clusters="type", generator="superweight")
    assert meeting(one_kind)["conv2d"] == {"convnext", "vit", "resnet"}
    assert "x 8x3x4x4" in str(one_kind) or "slots, " in str(one_kind)
    assert layers(sharing) == layers(plan())


def test_kernels_told_in_full_where_they_differ():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    sharing = swe.plan_sharing({"a": network, "b": network}, budget=1.0, bins=1, kernels="centre")
    assert [cluster.name for cluster in sharing.clusters] == ["dense bin 1/1"]
    assert [slot.shape for slot in sharing.clusters[0].slots] == [(4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 3, 3)]
    assert "x 4x3x1x1 + " in str(sharing) and " x 4x4x3x3" in str(sharing)
    assert sharing.clusters[0].minimum_templates == 4 * 4 * 9, "the large kernel holds the others"


def test_kernels_that_are_refused_and_that_change_nothing(caplog):
    for options, message in (
        ({"kernels": "center"}, "unknown kernels 'center': did you mean 'centre'"),
        ({"kernels": "centre", "generator": "ssn"}, "kernels does nothing with generator 'ssn'"),
        ({"kernels": "centre", "clusters": "none"}, "kernels does nothing with clusters 'none'"),
        ({"kernels": "centre", "clusters": "one", "generator": "superweight"}, "mixes .*depthwise.*kernel, or gen"),
        ({"clusters": {"all": ["resnet.*"]}, "generator": "superweight"}, "one cluster a kernel, kernels 'centre', or"),
    ):
        assert_refused(message, plan, **options)
    centred = touched(swe.SuperWeightEnsemble(members(), plan=plan(kernels="centre")))
    with pytest.raises(swe.SuperWeightError, match="a search compares layers of one kernel, and 'dense bin 1/3' has"):
        swe.search_sharing(centred, [(IMAGES, LABELS)], method=GradientSearch())
    with caplog.at_level(logging.WARNING):
        plan(kernels="centre", clusters="shape", exclude=["resnet.layer*"], budget=0.99)
    assert "kernels 'centre' changes nothing" in caplog.text


@pytest.mark.parametrize("coefficients", ["own", "tied"])
def test_a_search_splits_clusters_of_unlike_layers(coefficients):
    ensemble = touched(swe.SuperWeightEnsemble(members(), plan=plan(coefficients=coefficients, budget=0.9)))
    found = swe.search_sharing(ensemble, [(IMAGES, LABELS)], method=GradientSearch(threshold=0.05))
    assert layers(ensemble.plan) == layers(found.plan)
    assert swe.SharingPlan.from_json(found.plan.to_json()) == found.plan
    logits_of(swe.SuperWeightEnsemble(members(), plan=found.plan))


@pytest.mark.parametrize("options", [{"budget": 0.9}, {"budget": 0.8, "kernels": "centre"}], ids=["parts", "kernels"])
def test_tied_coefficients_are_untied(options):
    sharing = plan(coefficients="tied", reserve_untied=True, **options)
    ensemble = touched(swe.SuperWeightEnsemble(members(), plan=sharing))
    untied = untie_coefficients(ensemble, [(IMAGES, LABELS)], threshold=0.5)
    assert untied.num_coefficients > ensemble.plan.num_coefficients
    before = {name: logits.detach() for name, logits in logits_of(ensemble.eval()).items()}
    adopt_plan(ensemble, untied)
    for name, logits in logits_of(ensemble).items():
        assert_close(logits, before[name])


def test_who_shares_with_whom_adds_up_and_is_said():
    sharing = plan()
    company = sharing.company()
    own = {member.name: member.num_parameters for member in sharing.members}
    assert {name: one.between + one.within + one.alone for name, one in company.items()} == own
    assert all(one.between > 0.2 * own[name] for name, one in company.items())
    between, within, alone = (
        sum(getattr(one, what) for one in company.values()) for what in ("between", "within", "alone")
    )
    said = f"between members {between:,}, within one {within:,}, not at all {alone:,}"
    assert f"of {sum(own.values()):,} parameters apart: {said}" in str(sharing)


def test_company_by_hand():
    first = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    second = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3), nn.Linear(4, 2))
    sharing = swe.plan_sharing({"a": first, "b": second}, budget=3.0, bins=1)
    found = {name: (one.between, one.within, one.alone) for name, one in sharing.company().items()}
    # 4 x 4 of three matrices are made of what both read; 2 x 4 more and the kernel of three are one layer's alone.
    rest = {name: sum(map(torch.numel, net.parameters())) for name, net in (("a", first), ("b", second))}
    assert found == {"a": (32, 0, rest["a"] - 32), "b": (32, 0, rest["b"] - 32)}


def test_members_that_hardly_meet_are_named(caplog):
    strangers = {
        "matrices": nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Linear(32, 32), nn.Linear(32, 3)),
        "kernels": nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ),
    }
    with caplog.at_level(logging.WARNING):
        swe.plan_sharing(strangers, budget=1.0)
    assert [record.message.split(" of its")[0] for record in caplog.records if "shares" in record.message] == [
        f"member '{name}' shares 0.0 %" for name in strangers
    ]
    caplog.clear()
    swe.plan_sharing(strangers, budget=0.5, generator="ssn", clusters="one")
    swe.plan_sharing({"alone": strangers["matrices"]}, budget=1.0)
    swe.plan_sharing(members(), budget=0.8)
    assert not [record for record in caplog.records if "shares" in record.message]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_alone_is_never_a_plain_weight(part):
    """A group of one layer may keep a plain weight; a third of a projection may not."""
    network = nn.ModuleDict({"qkv": nn.Linear(8, 24), "rest": nn.Linear(8, 8), "fc": nn.Linear(8, 2)})
    for seed, groups in itertools.product(range(4), (3, 4)):
        sharing = swe.plan_sharing(
            {"a": network}, budget=0.9, generator="ssn", clusters="random", num_groups=groups, group_seed=seed
        )
        assert {f"a.qkv.weight[{part + 1}/3]"} <= {one.label for cluster in sharing.clusters for one in cluster.targets}
        assert swe.SharingPlan.from_json(sharing.to_json()) == sharing
        weights = swe.SuperWeightEnsemble({"a": network}, plan=sharing).generate()["a"]
        assert weights["qkv.weight"].shape == (24, 8)


def parts_of(content):
    return [target for cluster in content["clusters"] for target in cluster["targets"] if "part" in target]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda part, kernel: part.pop("part"), "stands there twice"),
        (lambda part, kernel: part.update(part=[1, 3]), "stands there twice"),
        (lambda part, kernel: part.update(part=[3, 3]), "needs each of its parts once, with the same names"),
        (lambda part, kernel: part.update(part=[0, 4]), "needs each of its parts once, with the same names"),
        (lambda part, kernel: part["names"].append("other"), "needs each of its parts once, with the same names"),
        (lambda part, kernel: part.update(part=[0, 1]), r"targets\.\d+\.part\.1"),
        (lambda part, kernel: part.update(part=[-1, 3]), r"targets\.\d+\.part\.0"),
        (lambda part, kernel: part.update(part="0/3"), r"targets\.\d+\.part"),
        (lambda part, kernel: part.update(ones=-1), "fewer dimensions than its slot"),
        (lambda part, kernel: part.update(ones=-4), r"targets\.\d+\.ones"),
        (lambda part, kernel: part.update(ones=10**9), r"targets\.\d+\.ones"),
        (lambda part, kernel: kernel.update(ones=1), "has more dimensions than its slot, which has"),
    ],
)
def test_damaged_parts_are_refused(damage, message):
    content = json.loads(plan(bins=1).to_json())
    content.pop("fingerprint")
    kernel = next(cluster for cluster in content["clusters"] if cluster["name"].startswith("conv2d 3x3"))
    damage(parts_of(content)[0], kernel["targets"][0])
    assert_refused(message, swe.SharingPlan.from_json, json.dumps(content))


def test_parts_of_another_shape_do_not_fit():
    content = json.loads(plan(bins=1).to_json())
    content.pop("fingerprint")
    parts_of(content)[0]["ones"] = 1
    other = swe.SharingPlan.from_json(json.dumps(content))
    message = r"vit\.blocks\.0\.attn\.qkv\.weight is \(48, 16\), planned 3 parts of"
    assert_refused(message, swe.SuperWeightEnsemble, members(), plan=other)
