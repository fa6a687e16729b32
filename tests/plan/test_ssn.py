import itertools
import math
import re

import pytest
import ssn_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_refused
from torch import nn
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles import SharingPlan, SuperWeightEnsemble, SuperWeightError, plan_sharing
from superweight_ensembles.ensemble import masks_key, tiles_key, vectors_by_key
from superweight_ensembles.plan import (
    SsnOptions,
    bank_within,
    group_cost,
    least_cost,
    proportional_shares,
    window_specs,
)

COMBINE = ("avg", "wavg", "emb", "softmax")
UPSAMPLE = ("inter", "repeat", "mask", "wavg")


class Small(nn.Module):
    """Layers of several kinds, kernels and sizes."""

    def __init__(self, width=4):
        super().__init__()
        self.one = nn.Conv2d(2, width, 3, padding=1)
        self.two = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.three = nn.Conv2d(2 * width, 2 * width, 1)
        self.line = nn.Linear(2 * width, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        x = self.three(self.two(self.one(images).relu()).relu())
        return self.fc(self.line(x.mean((2, 3))).relu())


def members(count=1, width=4):
    torch.manual_seed(0)
    return {f"m{index}": Small(width - index) for index in range(count)}


def ensemble(budget, count=1, width=4, **options):
    rng = torch.Generator().manual_seed(0)
    made = SuperWeightEnsemble(members(count, width), budget=budget, generator="ssn", rng=rng, **options).double()
    with torch.no_grad():
        for parameter in made.bank.parameters():  # start values have equal masks and maps without an offset
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return made


def by_reference(made):
    """Weights by label, one number at a time, from the tensors of the bank."""
    bank, found = made.bank, {}
    for index, group in made.plan.ssn_groups.items():
        readings = group.window_specs
        alphas = [None] * len(readings)
        for key, places in vectors_by_key(index, readings).items():
            held = dict(bank.coefficients.items()).get(key)
            for row, place in enumerate(places):
                gains = bank.gains._buffers.get(key)
                if held is None:
                    alphas[place] = gains[row]
                elif group.options.combine == "wavg":
                    alphas[place] = held[row]
                elif group.options.combine == "emb":
                    mixer = bank.mixers[key]
                    alphas[place] = mixer[:, :-1] @ held[row] + mixer[:, -1]
                else:
                    powers = held[row].exp()
                    alphas[place] = gains[row] * powers / powers.sum()
        tiles, masks = {}, {}
        used = 0
        for place, reading in enumerate(readings):
            if reading.mixed:
                tiles[place] = bank.coefficients[tiles_key(index)][used : used + reading.num_tiles]
                used += reading.num_tiles
        used = 0
        for place, reading in enumerate(readings):
            if reading.masked:
                count = math.ceil(reading.masked / group.mask_window)
                masks[place] = bank.coefficients[masks_key(index)][used : used + count]
                used += count
        made_here = reference.weights(
            group.shapes, bank.templates[f"c{index}"], group.options, alphas, tiles, masks, group.mask_window
        )
        found.update({target.label: weight for target, weight in zip(group.targets, made_here, strict=True)})
    return found


@pytest.mark.parametrize("budget", [0.45, 0.7, 1.5, 4.0])
@pytest.mark.parametrize(("combine", "upsample"), list(itertools.product(COMBINE, UPSAMPLE)))
def test_weights_and_gradients_are_those_of_the_literal_method(combine, upsample, budget):
    size = {"embedding_size": 3} if combine == "emb" else {}
    made = ensemble(budget, clusters="one", ssn=SsnOptions(combine=combine, upsample=upsample, **size))
    larger = [reading.num_tiles > 1 or reading.matrix != (0, 0) for reading in made.plan.clusters[0].window_specs]
    assert any(larger) or budget > 0.5
    assert not any(larger) or budget < 1
    weights = made.generate()["m0"]
    expected = by_reference(made)
    torch.manual_seed(1)
    probes = {name: torch.randn_like(weight) for name, weight in weights.items()}
    parameters = [parameter for parameter in made.bank.parameters() if parameter.requires_grad]
    for name, weight in weights.items():
        assert_close(weight, expected[f"m0.{name}"], rtol=1e-11, atol=1e-12)
    sums = [
        sum((found[name] * probe).sum() for name, probe in probes.items())
        for found in (weights, {name: expected[f"m0.{name}"] for name in weights})
    ]
    fast, slow = (torch.autograd.grad(value, parameters) for value in sums)
    for one, other in zip(fast, slow, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("combine", ["softmax", "emb", "wavg"])
@pytest.mark.parametrize("upsample", ["inter", "repeat", "mask"])
def test_shared_templates_are_those_of_the_literal_method(combine, upsample):
    size = {"embedding_size": 3} if combine == "emb" else {}
    made = ensemble(0.5, clusters="one", ssn=SsnOptions(combine=combine, upsample=upsample, templates=3, **size))
    (group,) = made.plan.clusters
    assert group.bank_size % 3 == 0
    assert {reading.start for reading in group.window_specs} == {0}
    expected = by_reference(made)
    for name, weight in made.generate()["m0"].items():
        assert_close(weight, expected[f"m0.{name}"], rtol=1e-11, atol=1e-12)


def test_the_literal_bilinear_is_torchs():
    small = torch.randn(3, 5, dtype=torch.float64)
    made = nn.functional.interpolate(small[None, None], (7, 11), mode="bilinear", align_corners=False)
    assert_close(reference.bilinear(small, 7, 11), made.flatten())


@pytest.mark.parametrize("budget", [0.3, 0.6, 3.0])
def test_members_generated_apart_and_in_other_formats_are_the_same(budget):
    made = ensemble(budget, count=2, clusters="one", ssn=SsnOptions(upsample="mask"))
    whole = made.generate()
    for name in whole:
        for parameter, weight in made.bank.generate([name])[name].items():
            assert torch.equal(weight, whole[name][parameter])
    channels_last = made.to(memory_format=torch.channels_last).generate()
    for name, weights in whole.items():
        for parameter, weight in weights.items():
            assert torch.equal(weight, channels_last[name][parameter])
            if weight.ndim == 4:
                assert channels_last[name][parameter].is_contiguous(memory_format=torch.channels_last)


def test_gradients_pass_the_numerical_check():
    made = ensemble(0.3, ssn=SsnOptions(upsample="wavg"), clusters="one")
    names = [name for name, _ in made.bank.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in made.bank.parameters()]

    def sums(*tensors):
        weights = torch.func.functional_call(made.bank, dict(zip(names, tensors, strict=True)), ())
        return torch.cat([weight.flatten() for weight in weights["m0"].values()])

    assert torch.autograd.gradcheck(sums, values)


some_options = st.builds(
    SsnOptions, combine=st.sampled_from(COMBINE), upsample=st.sampled_from(UPSAMPLE), windows=st.just(8)
)
some_clusters = st.sampled_from(
    [{"clusters": "one"}, {"clusters": "type"}, {"clusters": "shape"}, {"clusters": "random", "num_groups": 3}, {}]
)


@settings(max_examples=60)
@given(some_options, some_clusters, st.floats(0.3, 4.0), st.sampled_from(["ssn", "auto"]), st.integers(1, 2))
def test_any_budget_is_kept_spent_and_read(options, clusters, budget, generator, count):
    with pytest.raises(SuperWeightError, match="below the minimum of this sharing") as caught:
        plan_sharing(members(count), budget=1, generator=generator, ssn=options, **clusters)
    least = int(str(caught.value).split("sharing, ")[1].split(" ")[0].replace(",", ""))
    apart = sum(p.numel() for net in members(count).values() for p in net.parameters())
    budget = max(least, int(budget * apart))
    plan = plan_sharing(members(count), budget=budget, generator=generator, ssn=options, **clusters)
    assert plan.num_parameters <= plan.budget
    assert SharingPlan.from_json(plan.to_json()) == plan
    covered = [(target.member, target.name) for cluster in plan.clusters for target in cluster.targets]
    assert len(covered) == len(set(covered))
    made = SuperWeightEnsemble(members(count), plan=plan)
    assert made.num_parameters == plan.num_parameters == sum(p.numel() for p in made.parameters())
    assert sum(p.numel() for p in made.bank.templates.values()) == plan.num_templates
    for index, group in plan.ssn_groups.items():
        values = made.bank.templates[f"c{index}"]
        assert values.isfinite().all() and (values != 0).all(), "no number of a bank is left out"
        read = torch.zeros(group.bank_size, dtype=torch.bool)
        for reading in group.window_specs:
            for window in range(reading.num_windows):
                start = reading.start + window * reading.stride
                read[torch.arange(start, start + reading.size) % group.bank_size] = True
        assert read.sum() >= group.bank_size - 1  # halves of an odd bank leave one
    for name, weights in made.generate().items():
        for parameter, weight in weights.items():
            own = members(count)[name].get_parameter(parameter)
            assert weight.shape == own.shape
            assert float(weight.detach().square().mean().sqrt()) == pytest.approx(
                float(own.detach().square().mean().sqrt()), rel=0.02
            )


@settings(max_examples=60)
@given(some_options, st.integers(1, 4), st.integers(0, 3000))
def test_the_bank_is_the_largest_that_fits(options, count, excess):
    shapes = tuple((3 * index + 2, 4, 3, 3)[: 4 - index % 2 * 2] for index in range(count))
    budget = least_cost(shapes, options) + excess
    size, window = bank_within(shapes, budget, options)
    assert group_cost(shapes, size, options, window) <= budget
    used = sum(8 * math.prod(shape) for shape in shapes)
    if options.upsample in ("inter", "repeat") and size < used:
        tight = group_cost(shapes, size + 1, options, window) > budget
        unread = size == sum(r.num_windows * r.size for r in window_specs(shapes, size, options))
        assert tight or unread or budget - group_cost(shapes, size, options, window) <= 8 * len(shapes) + 200


def test_windows_go_round_the_bank_evenly():
    shapes = tuple([(8, 4)] * 7)  # 32 numbers each
    found = window_specs(shapes, 100, SsnOptions())
    assert [reading.num_windows for reading in found] == [3] * 7  # floor(100 / 32)
    assert [reading.start for reading in found] == [(96 * index) % 100 for index in range(7)]
    times = torch.zeros(100, dtype=torch.long)
    for reading in found:
        times[torch.arange(reading.start, reading.end) % 100] += 1
    assert times.max() - times.min() <= 1


def test_shares_are_proportional_within_their_bounds():
    assert proportional_shares([1, 2, 3], [0, 0, 0], [math.inf] * 3, 60) == (10, 20, 30)
    assert proportional_shares([1, 2, 3], [15, 0, 0], [math.inf] * 3, 65) == (15, 20, 30)
    assert proportional_shares([1, 2, 3], [0, 0, 0], [math.inf, math.inf, 15], 60) == (15, 30, 15)
    assert sum(proportional_shares([1, 1], [0, 0], [5, 5], 100)) == 10


def test_auto_takes_superweights_where_they_fit_and_mixes_below():
    nets = {"w": swe.wide_resnet(16, 1, 10)}
    least = plan_sharing(nets, budget=1.0, generator="superweight").minimum_parameters
    assert plan_sharing(nets, budget=least) == plan_sharing(nets, budget=least, generator="superweight")
    below = plan_sharing(nets, budget=least - 1)
    kinds = {cluster.generator for cluster in below.clusters}
    assert kinds == {"superweight", "ssn"}
    assert "ssn" in str(below) and "superweight" in str(below)
    for cluster in below.superweight_clusters.values():
        assert all(slot.num_templates == 1 for slot in cluster.slots)
    (bank,) = plan_sharing(nets, budget=0.05).clusters
    assert bank.generator == "ssn"
    assert len(bank.targets) == sum(len(cluster.targets) for cluster in below.clusters)
    assert bank.options.upsample == "wavg"
    assert plan_sharing(nets, budget=0.02).clusters[0].options.upsample == "repeat"  # no room for coefficients of tiles
    assert plan_sharing(nets, budget=0.02, ssn=SsnOptions(upsample="inter")).clusters[0].options.upsample == "inter"


def test_a_single_layer_keeps_an_ordinary_weight_that_is_its_members_own():
    plan = plan_sharing(members(), budget=1.0, generator="ssn", clusters={"a": ["m0.one.weight"], "b": ["m0.t*"]})
    (group,) = plan.clusters
    assert group.name == "b"
    own = sum(p.numel() for name, p in members()["m0"].named_parameters() if name not in ("two.weight", "three.weight"))
    assert plan.num_private == own
    low = plan_sharing(members(), budget=0.5, generator="ssn", clusters={"a": ["m0.one.weight"], "b": ["m0.t*"]})
    assert low.num_parameters <= low.budget
    assert [group.name for group in low.clusters] == ["a", "b"]  # its share is smaller than the weight


@pytest.mark.parametrize("budget", [0.01, 0.02, 0.1, 0.3, 0.83, 1.0, 2.0])
def test_one_network_at_any_budget_trains_saves_and_is_materialised(tmp_path, budget):
    torch.manual_seed(0)
    net = swe.wide_resnet(10, 2, 10)
    made = SuperWeightEnsemble([net], budget=budget)
    assert made.num_parameters <= made.plan.budget == int(budget * sum(p.numel() for p in net.parameters()))
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(made(images)[0], labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in made.parameters())
    made.eval()
    made.save(tmp_path / "saved")
    loaded = SuperWeightEnsemble.load(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), made(images))
        assert_close(made.materialize("member0").eval()(images), made(images)[0], rtol=1e-5, atol=1e-5)


def net_of(*sizes):
    return {"a": nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(sizes)), nn.Linear(sizes[-1], 3))}


@pytest.mark.parametrize(
    ("options", "budget", "said"),
    [
        ({"coefficients": "embedding", "cap": 3}, 0.3, "coefficients, cap: not used, .* makes flat banks alone"),
        ({"coefficients": "tied"}, 0.3, "coefficients: not used"),
        ({"ssn": SsnOptions(combine="avg")}, 2.0, "ssn: not used, .* makes SuperWeights alone"),
        ({"ssn": SsnOptions(combine="avg")}, 0.3, ""),
        ({"coefficients": "tied"}, 2.0, ""),
    ],
)
def test_what_the_budget_makes_no_use_of_is_said(caplog, options, budget, said):
    plan_sharing(net_of(24, 24, 24, 24), budget=budget, clusters="shape", **options)
    assert re.search(said, caplog.text) if said else "not used" not in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cap": 2}, "2 templates a slot can use: .*; raise cap to"),
        ({"clusters": "one", "ssn": SsnOptions(windows=2)}, "2 windows a layer can use: .*; raise ssn: windows to"),
        (
            {"clusters": "one", "ssn": SsnOptions(upsample="inter", templates=2)},
            "2 templates of the size of the largest layer can use: .*; raise ssn: templates to",
        ),
        ({"clusters": "shape"}, "layers that share with no other can use: .*; take larger groups"),
    ],
)
def test_what_keeps_a_budget_from_being_spent_is_said(caplog, options, said):
    sizes = (8, 16, 24, 32) if options.get("clusters") == "shape" else (16, 16, 16, 16)
    generator = "superweight" if "cap" in options else "ssn"
    plan = plan_sharing(net_of(*sizes), budget=9.0, generator=generator, **options)
    assert plan.spent < 0.95 * plan.budget
    assert re.search(said, caplog.text)


def test_an_interpolated_layer_by_itself_says_why_it_does_not_spend_its_budget(caplog):
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    ssn = SsnOptions(upsample="inter", combine="avg")
    plan = plan_sharing({"a": net}, budget=4 + 13, generator="ssn", ssn=ssn)
    assert plan.spent == 4 + 3 * 3  # no other matrix of one share of rows and columns has 13 numbers at most
    assert "up-sampling from fewer numbers can use: 13 parameters; take ssn: upsample" in caplog.text


def test_an_ensemble_below_the_minimum_of_superweights_works_the_same_way():
    nets = {"a": swe.wide_resnet(16, 1, 10), "b": swe.wide_resnet(10, 2, 10)}
    with pytest.raises(SuperWeightError, match=r"below the minimum .* generator 'ssn' or 'auto', which go below"):
        plan_sharing(nets, budget=0.05, generator="superweight")
    made = SuperWeightEnsemble(nets, budget=0.05)
    (bank,) = made.plan.clusters
    assert {target.member for target in bank.targets} == {"a", "b"}
    assert made(torch.randn(2, 3, 8, 8)).shape == (2, 2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "sns"}, "unknown generator 'sns': did you mean 'ssn'"),
        (
            {"generator": torch.Generator()},
            r"generator is one of auto, superweight, ssn \(a torch.Generator goes as rng=",
        ),
        ({"generator": "superweight", "ssn": SsnOptions()}, "ssn does nothing with generator 'superweight'"),
        ({"generator": "ssn", "coefficients": "tied"}, "coefficients does nothing with generator 'ssn'"),
        ({"generator": "ssn", "cap": 4}, "cap does nothing with generator 'ssn'"),
        ({"generator": "ssn", "coefficients": "embedding"}, r"'ssn' \(ssn: combine is like it\): leave it out"),
        ({"clusters": "none", "generator": "ssn"}, "generator does nothing with clusters 'none'"),
        ({"clusters": "none", "ssn": SsnOptions()}, "ssn does nothing with clusters 'none'"),
        ({"clusters": "none", "cap": 2}, "cap does nothing with clusters 'none'"),
        ({"ssn": {"combine": "wavg"}}, "ssn must be SsnOptions"),
        ({"clusters": "random"}, "num_groups of clusters 'random' must be a whole number, at least 1; got None"),
        ({"clusters": "random", "num_groups": 0}, "num_groups .* must be a whole number, at least 1; got 0"),
        ({"clusters": "random", "num_groups": 5}, "num_groups is 5, but there are 4 layers to group"),
        ({"clusters": "one", "num_groups": 2}, "num_groups does nothing with clusters 'one'"),
        ({"clusters": "one", "group_seed": 2}, "group_seed does nothing with clusters 'one'"),
        ({"clusters": "one", "generator": "superweight"}, "cluster 'all' mixes conv2d 1x1 and conv2d 3x3 and linear"),
        ({"budget": 10}, r"the members' own parameters \(heads, norms, biases, layers left out\) alone are \d+"),
    ],
)
def test_bad_options(options, message):
    assert_refused(message, plan_sharing, members(), **{"budget": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 0}, "windows must be at least 1"),
        ({"embedding_size": 0, "combine": "emb"}, "embedding_size must be at least 1"),
        ({"embedding_size": True, "combine": "emb"}, "embedding_size must be a whole number"),
        ({"templates": -1}, "templates must be at least 0"),
        ({"mask_window": -9, "upsample": "mask"}, "mask_window must be at least 0"),
        ({"combine": "mean"}, "unknown combine 'mean'"),
        ({"upsample": "bilinear"}, "unknown upsample 'bilinear'"),
        ({"embedding_size": 8}, "embedding_size does nothing with combine 'wavg'"),
        ({"mask_window": 9}, "mask_window does nothing with upsample 'wavg'"),
        ({"templates": 2}, "upsample 'wavg' cuts the bank into halves"),
        ({"templates": 2, "windows": 4, "upsample": "inter"}, "windows does nothing with templates"),
    ],
)
def test_bad_reading(options, message):
    assert_refused(message, SsnOptions, **options)


def test_random_groups_are_those_of_their_seed():
    def labels(seed):
        plan = plan_sharing(members(2), budget=0.5, generator="ssn", clusters="random", num_groups=3, group_seed=seed)
        return [[target.label for target in group.targets] for group in plan.clusters]

    assert labels(0) == labels(0) != labels(1)
    assert sorted(len(group) for group in labels(0)) == [2, 3, 3]


def test_a_cluster_named_as_the_joined_bank_keeps_its_budget():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(30, 30, bias=False), nn.Linear(30, 40, bias=False)
            self.k = nn.Linear(40, 9, bias=False)
            self.m = nn.Sequential(*(nn.Linear(9, 9, bias=False) for _ in range(40)))
            self.fc = nn.Linear(9, 3, bias=False)

    rule = {"flat bank": ["*.m.*"], "b": ["*.b.weight"], "a": ["*.a.weight"], "k": ["*.k.weight"]}
    for budget in (0.03, 0.035, 0.04, 0.05, 0.1):
        made = SuperWeightEnsemble([Net()], budget=budget, clusters=rule)
        assert made.num_parameters == made.plan.num_parameters <= made.plan.budget
        assert len({cluster.name for cluster in made.plan.clusters}) == len(made.plan.clusters)


def test_layers_of_one_number_are_planned():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    made = SuperWeightEnsemble([net], budget=8, generator="ssn", clusters="one")
    assert made.num_parameters <= 8
    assert made.plan.num_private == 2  # the last linear layer is a head


def test_every_number_of_shared_templates_is_read():
    nets = {"w": swe.wide_resnet(10, 1, 10)}
    for budget in (0.05, 0.1, 0.3):
        options = SsnOptions(combine="softmax", upsample="inter", templates=4)
        (group,) = plan_sharing(nets, budget=budget, generator="ssn", clusters="one", ssn=options).clusters
        assert group.bank_size == 4 * max(reading.size for reading in group.window_specs)
        assert {reading.stride for reading in group.window_specs} == {group.bank_size // 4}


def test_a_softmax_of_one_window_has_no_coefficient():
    made = ensemble(0.7, clusters="one", ssn=SsnOptions(combine="softmax"))
    (group,) = made.plan.clusters
    windows = [reading.num_windows for reading in group.window_specs if not reading.mixed]
    assert 1 in windows
    assert made.plan.num_coefficients == sum(count for count in windows if count > 1)
    made(torch.randn(2, 2, 4, 4, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.bank.parameters())


def test_auto_takes_superweights_where_flat_banks_cost_more():
    net = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(10)], nn.Linear(4, 2, bias=False))
    plan = plan_sharing([net], budget=100, ssn=SsnOptions(combine="emb", upsample="repeat"))
    assert plan == plan_sharing([net], budget=100, generator="superweight")


def test_a_mask_window_beyond_its_layer_is_that_of_the_layer():
    wide = ensemble(0.4, clusters="one", ssn=SsnOptions(upsample="mask", mask_window=2**16))
    for reading, weight in zip(wide.plan.clusters[0].window_specs, wide.generate()["m0"].values(), strict=True):
        assert reading.masked < 2**16 and weight.isfinite().all()
