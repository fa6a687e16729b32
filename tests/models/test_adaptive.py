"""Learned widths: the distribution, hidden neurons of any module, resizing, priors and truncation."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_refused
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles import SuperWeightError
from superweight_ensembles.anytime import order_exits
from superweight_ensembles.models.adaptive import (
    AdaptiveWidth,
    WidthLoss,
    adaptive_mlp,
    adaptive_widths,
    learned_places,
    make_adaptive,
    rate_of,
    resize_widths,
    set_width,
    truncate,
    truncated_exits,
    width_of,
)

RESIDUAL = [("stages.*.conv1", "stages.*.conv2")]
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def sizes(module):
    return {name: width.width for name, width in adaptive_widths(module).items()}


def move_rates(module, change):
    with torch.no_grad():
        for width in adaptive_widths(module).values():
            width.rho += change


# ---- the distribution ----


def below(x, rate, distribution):
    """F(x), the distribution's share below x."""
    return 1 - math.exp(-rate * x) if distribution == "exponential" else 1 - (1 + x) ** -rate


def literal_importance(rate, size, distribution):
    """p_i = P(i) / sum over j < D of P(j), P(i) = F(i + 1) - F(i)."""
    shares = [below(i + 1, rate, distribution) - below(i, rate, distribution) for i in range(size)]
    return [share / sum(shares) for share in shares]


@pytest.mark.parametrize("distribution", ["exponential", "power_law"])
@pytest.mark.parametrize("size", [2, 7, 60])
def test_importance_is_that_of_the_formula(distribution, size):
    width = AdaptiveWidth(width=size, distribution=distribution).double()
    rate = float(width.rate.detach())
    expected = torch.tensor(literal_importance(rate, size, distribution), dtype=torch.float64)
    assert_close(width.importance().detach(), expected, atol=1e-12, rtol=1e-9)
    width.scale = "rms"
    assert_close(width.importance().detach(), expected / expected.square().mean().sqrt(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("distribution", ["exponential", "power_law"])
@pytest.mark.parametrize("scale", ["sum", "rms"])
def test_the_rate_gets_its_gradient_through_the_importance(distribution, scale):
    width = AdaptiveWidth(width=9, distribution=distribution, scale=scale).double()
    hidden = torch.randn(4, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rho: torch.func.functional_call(width, {"rho": rho}, (hidden,)), width.rho)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.001, 5.0),
    quantile=st.floats(0.05, 0.99),
    distribution=st.sampled_from(["exponential", "power_law"]),
)
def test_a_width_holds_its_quantile_and_is_found_again(rate, quantile, distribution):
    size = width_of(rate, distribution, quantile)
    if size < 2**20:
        assert below(size, rate, distribution) >= quantile - 1e-9
        assert below(size - 2, rate, distribution) <= quantile + 1e-9
        assert width_of(rate_of(size, distribution, quantile), distribution, quantile) == size
    assert width_of(rate * 1.5, distribution, quantile) <= size


def test_published_numbers():
    assert AdaptiveWidth().width == math.floor(-math.log(1 - 0.9) / 0.01) + 2 == 232


# ---- the forward pass ----


def test_a_perceptron_is_the_published_one():
    network = adaptive_mlp(3, 4, hidden_layers=2, rate=0.3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    hidden = x
    for index in range(2):
        layer = getattr(network, f"hidden{index}")
        rate = float(adaptive_widths(network)[f"hidden{index}"].rate.detach())
        p = torch.tensor(literal_importance(rate, layer.out_features, "exponential"), dtype=torch.float64)
        hidden = F.relu6(hidden @ layer.weight.T + layer.bias) * p
    assert_close(network(x), hidden @ network.head.weight.T + network.head.bias, **EXACT)


def test_start_values_of_a_perceptron():
    torch.manual_seed(0)
    network = adaptive_mlp(200, 150, hidden_layers=2, rate=0.01)
    assert float(network.hidden0.weight.std()) == pytest.approx(math.sqrt(2 / 200), rel=0.03)
    for width, layer in zip(adaptive_widths(network).values(), (network.hidden1, network.head), strict=True):
        expected = math.sqrt(2 / float(width.importance().detach().square().sum()))
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)
        assert not layer.bias.any()


@pytest.mark.parametrize("scale", ["rms", "sum"])
@pytest.mark.parametrize("width", [None, 24, 96])
def test_activations_keep_their_scale(scale, width):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 80))

    x = torch.randn(500, 50)
    made = make_adaptive(network(), [("0", "2")], width=width, scale=scale)
    assert sizes(made) == {"0": width or 64}
    plain = network()(x) - network()[2].bias
    found = made(x) - made[2].bias
    assert float(found.std()) == pytest.approx(float(plain.std()), rel=0.3)


# ---- any module ----


class Gated(nn.Module):
    """The hidden activations are read twice."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.up(x).relu()
        return self.down(hidden) * self.gate(hidden).sigmoid()


class Pooled(Gated):
    """They are summed beside their reader."""

    def forward(self, x):
        hidden = self.up(x).relu()
        return self.down(hidden) + hidden.sum(1, keepdim=True)


class Normed(Gated):
    """A norm mixes them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


class Twice(Gated):
    """One layer runs twice."""

    def forward(self, x):
        return self.down(self.up(x)) + self.down(self.up(-x))


class Tied(Gated):
    """Two layers are one."""

    def __init__(self):
        super().__init__()
        self.gate.weight = self.down.weight

    def forward(self, x):
        return self.down(self.up(x))


class Weighted(Gated):
    """A layer in between holds what nobody knows how to cut."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Bilinear(6, 6, 6)
        self.table = nn.Module()
        self.table.register_parameter("factors", nn.Parameter(torch.ones(2, 6)))
        self.table.forward = lambda hidden: hidden * self.table.factors[0]

    def forward(self, x):
        return self.down(self.table(self.up(x)))


@pytest.mark.parametrize(
    ("module", "pair", "message"),
    [
        (Gated, ("up", "down"), r"outputs of 'up' are used elsewhere than in 'down', too: in 'gate'"),
        (Gated, ("up", "gate"), r"used elsewhere than in 'gate', too: in 'down'"),
        (Pooled, ("up", "down"), r"used elsewhere than in 'down', too: in the module's answer"),
        (Twice, ("up", "down"), r"'up' runs 2 times and 'down' 2 times in a call"),
        (Tied, ("up", "down"), r"down\.weight is tied to gate\.weight"),
        (Weighted, ("up", "down"), r"'table' is a Module, whose width cannot change"),
        (Gated, ("up", "up"), r"'up' and 'up' share no hidden dimension: up.weight \(6, 4\) makes 6 .* reads 4"),
        (
            Gated,
            ("down", "up"),
            r"share no hidden dimension: down.weight \(3, 6\) makes 3 .*, up.weight \(6, 4\) reads 4",
        ),
        (Gated, ("up", "away"), "no layer 'away' in Gated"),
        (Normed, ("up", "norm"), "'norm' is a LayerNorm: a width is between linear layers, convolutions"),
        (Gated, ("up.*", "down.*"), r"no layer of Gated matches 'up\.\*'"),
        (Gated, ("*", "down"), "must hold as many"),
        (Gated, ("up",), "a pair is"),
    ],
)
def test_pairs_that_are_none(module, pair, message):
    network = module()
    before = list(network.state_dict())
    assert_refused(message, make_adaptive, network, [pair])
    assert list(network.state_dict()) == before


def test_other_bad_input():
    for given_, message in (
        ({"rate": 0.0}, "rate must be a finite number, above 0; got 0.0"),
        ({"rate": math.nan}, "rate must be a finite number, above 0"),
        ({"quantile": 1.0}, "quantile must be a finite number, above 0 and below 1; got 1.0"),
        ({"quantile": 0}, "quantile must be a finite number, above 0 and below 1"),
        ({"rate": 0.1, "width": 5}, "give rate= or width= to start with, not both"),
        ({"width": 5.5}, "width must be a whole number"),
        ({"width": 5000}, "width is 5,000: outside the bounds 2 to 4,096"),
        ({"rate": 1e-5}, r"rate 1e-05 asks for 230,260 neurons at quantile 0.9: outside the bounds"),
        ({"width": 1}, "width is 1: outside the bounds"),
        ({"bounds": (5, 2)}, "bounds must be the least and the most neurons"),
        ({"bounds": 5}, "bounds must be"),
        ({"distribution": "gauss"}, "unknown distribution 'gauss'"),
        ({"scale": "max"}, "unknown scale 'max'"),
    ):
        assert_refused(re.escape(message) if "(" not in message else message, AdaptiveWidth, **given_)
    assert_refused("hidden_layers must be a whole number, at least 1; got 0", adaptive_mlp, 2, 2, hidden_layers=0)
    with pytest.raises(SuperWeightError, match="does not run on an example of shape"):
        make_adaptive(Gated(), [("up", "down")], example=torch.zeros(2, 5))
    twice = make_adaptive(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), [("0", "1")])
    assert_refused("the width between '0' and '1' is learned already", make_adaptive, twice, [("0", "1")])
    assert_refused(r"must be .* paths, at least one", make_adaptive, Gated(), [])


NETWORKS = {
    "wide_resnet": (lambda: swe.wide_resnet(10, 1, 10), RESIDUAL, 3),
    "vit": (
        lambda: swe.build_member(
            "timm/vit_tiny_patch16_224", num_classes=10, img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3
        ),
        [("blocks.*.mlp.fc1", "blocks.*.mlp.fc2")],
        2,
    ),
    "resnet18": (lambda: swe.build_member("timm/resnet18", num_classes=10), [("layer*.conv1", "layer*.conv2")], 8),
    "depthwise": (
        lambda: swe.build_member("timm/mobilenetv2_035", num_classes=10),
        [("blocks.1.0.conv_pw", "blocks.1.0.conv_pwl")],
        1,
    ),
    "1-d and transposed": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1), nn.PReLU(6), nn.ConvTranspose1d(6, 5, 2), nn.BatchNorm1d(5),
            nn.Conv1d(5, 4, 1), nn.Flatten(), nn.LazyLinear(3),
        ),
        [("0", "2"), ("2", "4")],
        2,
    ),
}  # fmt: skip
INPUTS = {"vit": (2, 3, 16, 16), "1-d and transposed": (2, 2, 8)}


def built(name, **options):
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    images = torch.randn(INPUTS.get(name, (2, 3, 32, 32)))
    network(images)
    return make_adaptive(network, NETWORKS[name][1], example=images, **options).double().eval(), images.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_of_any_module(name):
    network, images = built(name)
    assert len(adaptive_widths(network)) == NETWORKS[name][2]
    whole = network(images)
    for place, width in learned_places(network).values():
        set_width(place, width.width + 3)
    assert sizes(network) == {path: size + 3 for path, size in sizes(built(name)[0]).items()}
    assert network(images).shape == whole.shape
    network.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    for place, width in learned_places(network).values():
        set_width(place, width.width - 3)
    # With the old width come the old numbers and, with the old rates, the old answers.
    if name != "wide_resnet" and not any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()
    ):
        assert_close(network.eval()(images), whole, **EXACT)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_truncation_keeps_the_first_neurons_and_what_they_count(name, fraction):
    network, images = built(name)
    plain = truncate(network, fraction=fraction)
    assert not adaptive_widths(plain)
    assert not any(isinstance(layer, AdaptiveWidth) for layer in plain.modules())

    def silence(layer, given_):
        """What truncation is: neurons from k on weigh nothing."""
        kept = math.ceil(fraction * given_[0].shape[layer.axis])
        hidden = given_[0].clone()
        hidden.narrow(layer.axis, kept, hidden.shape[layer.axis] - kept).zero_()
        return (hidden,)

    for width in adaptive_widths(network).values():
        width.register_forward_pre_hook(silence)
    assert_close(plain(images), network(images), atol=1e-9, rtol=1e-9)


def test_truncation_to_numbers_given_and_what_cannot_be():
    network = adaptive_mlp(2, 3, hidden_layers=2, rate=0.2)
    size = network.hidden0.out_features
    assert truncate(network, widths=4).hidden1.weight.shape == (4, 4)
    assert truncate(network, widths={"hidden1": 5}).hidden1.weight.shape == (5, size)
    assert sizes(network) == {"hidden0": size, "hidden1": size}
    for options, message in (
        ({"widths": 0}, f"of 'hidden0', 1 to {size} neurons can be kept, as many as it has; got 0"),
        ({"widths": size + 1}, f"1 to {size} neurons can be kept"),
        ({"widths": {"hidden9": 2}}, "unknown learned width 'hidden9': did you mean 'hidden"),
        ({"fraction": 0}, "fraction must be above 0 and at most 1; got 0"),
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1"),
        ({}, "give either fraction= or widths="),
        ({"fraction": 0.5, "widths": 3}, "give either fraction= or widths="),
    ):
        assert_refused(message, truncate, network, **options)
    assert_refused("Linear has no learned width", truncate, nn.Linear(2, 2), fraction=0.5)


def test_norm_statistics_are_estimated_again_on_request():
    network, _ = built("wide_resnet")
    data = [(torch.randn(16, 3, 16, 16).double(), torch.zeros(16)) for _ in range(3)]
    plain = truncate(network, fraction=0.5)
    again = truncate(network, fraction=0.5, norm_data=data)
    expected = copy.deepcopy(plain)
    torch.optim.swa_utils.update_bn(data, expected)
    assert_close(again.norm.running_mean, expected.norm.running_mean, **EXACT)
    assert not torch.equal(again.norm.running_mean, plain.norm.running_mean)
    assert not again.training


# ---- widths that change ----


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_of_what_stays_are_kept(optimizer):
    torch.manual_seed(0)
    network = make_adaptive(swe.wide_resnet(10, 1, 4), RESIDUAL)
    if optimizer == "sgd":
        stepping = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, fused=True)
    else:
        stepping = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(4, (6,))

    def step():
        stepping.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        stepping.step()
        return loss

    for change, grown in ((-0.4, True), (0.8, False)):
        held = step()  # a graph that is still alive
        move_rates(network, change)
        before = {
            name: (
                parameter.detach().clone(),
                {key: value.clone() for key, value in stepping.state[parameter].items() if torch.is_tensor(value)},
            )
            for name, parameter in network.named_parameters()
        }
        old = sizes(network)
        changed = resize_widths(network, stepping)
        assert {name: then for name, (then, _) in changed.items()} == old
        assert all((now > then) == grown for then, now in changed.values())
        parameters = dict(network.named_parameters())
        assert [id(p) for group in stepping.param_groups for p in group["params"]] == [
            id(p) for p in parameters.values()
        ]
        assert set(stepping.state) == set(parameters.values())
        for name, parameter in parameters.items():
            values, moments = before[name]
            common = tuple(slice(0, min(new, then)) for new, then in zip(parameter.shape, values.shape))
            assert torch.equal(parameter[common], values[common])
            for key, moment in moments.items():
                now = stepping.state[parameter][key]
                if moment.shape == values.shape:
                    assert now.shape == parameter.shape
                    assert torch.equal(now[common], moment[common])
                    rest = now.clone()
                    rest[common] = 0
                    assert not rest.any()
                else:
                    assert torch.equal(now, moment)
        assert torch.isfinite(step())
        assert torch.isfinite(held)


def test_new_neurons_change_nothing_but_the_scale_of_the_importance():
    network, images = built("resnet18")
    (name, (place, width)), *_ = learned_places(network).items()
    answer = network(images)
    set_width(place, width.width + 5)
    assert not place.consumer.weight[:, -5:].any()
    assert float(place.producer.weight[-5:].std()) == pytest.approx(float(place.producer.weight[:-5].std()), rel=0.2)
    grown = width.importance()[:-5] / width.importance()[0]
    set_width(place, width.width - 5)
    assert_close(grown, width.importance() / width.importance()[0], **EXACT)
    assert_close(network(images), answer, **EXACT)
    assert name == "layer1.0.conv1"


def test_widths_stay_within_their_bounds_and_the_same_where_nothing_asks(caplog):
    network = adaptive_mlp(2, 3, rate=0.1, bounds=(20, 30))
    weight = network.hidden0.weight
    assert resize_widths(network) == {}
    assert network.hidden0.weight is weight
    move_rates(network, 2.0)
    assert resize_widths(network) == {"hidden0": (25, 20)}
    assert "the width of hidden0 is at its bound of 20 neurons (20 to 30), at a rate of" in caplog.text
    move_rates(network, -9.0)
    assert resize_widths(network) == {"hidden0": (20, 30)}
    move_rates(network, -200.0)  # from where no gradient leads back
    assert_refused(r"the rate of the width before 'head' is 0\.0: lower learning_rate or", resize_widths, network)
    move_rates(network, math.nan)
    assert_refused("the rate of the width before 'head' is nan: lower learning_rate", resize_widths, network)
    assert resize_widths(nn.Linear(2, 2)) == {}


def test_copies_and_networks_inside_others():
    network = make_adaptive(swe.wide_resnet(10, 1, 4), RESIDUAL)
    outer = nn.ModuleDict({"a": copy.deepcopy(network), "b": network})
    move_rates(outer["a"], 0.3)
    changed = resize_widths(outer)
    assert set(changed) == {f"a.stages.{stage}.0.conv1" for stage in range(3)}
    assert outer["a"](torch.randn(2, 3, 8, 8)).shape == (2, 4)
    assert sizes(outer["b"]) == {"stages.0.0.conv1": 16, "stages.1.0.conv1": 32, "stages.2.0.conv1": 64}


def test_a_rate_that_is_trained_narrows_a_network_that_needs_few_neurons():
    torch.manual_seed(0)
    network = adaptive_mlp(2, 2, rate=0.05)
    stepping = torch.optim.Adam(network.parameters(), lr=0.02)
    x = torch.randn(200, 2)
    y = (x[:, 0] > 0).long()
    loss = WidthLoss(prior_rate=0.5, prior_deviation=0.02)
    widths = []
    for _ in range(150):
        stepping.zero_grad()
        value = F.cross_entropy(network(x), y) + loss(network, num_samples=200)
        value.backward()
        stepping.step()
        resize_widths(network, stepping)
        widths.append(network.hidden0.out_features)
    assert widths[-1] < 0.5 * widths[0]
    assert float((network(x).argmax(1) == y).float().mean()) > 0.95


# ---- exits ----


def test_members_and_their_truncations_are_exits():
    members = {"wide": built("wide_resnet")[0].float(), "plain": swe.wide_resnet(10, 1, 10).eval()}
    exits = truncated_exits(members, (0.5, 0.25))
    assert list(exits) == ["wide@25%", "wide@50%", "wide", "plain"]
    assert exits["wide"] is members["wide"]
    assert exits["wide@25%"].stages[2][0].conv1.out_channels == 16
    predictor = swe.AnytimePredictor(exits, input_shape=(3, 16, 16))
    assert predictor.order[0] == "wide@25%"
    images = torch.randn(3, 3, 16, 16)
    *_, last = predictor.stream(images)
    assert_close(last.probabilities, torch.stack([net(images).softmax(1) for net in members.values()]).mean(0))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((), "at least one"),
        ((0.5, 0.501), "one a whole per cent"),
        ((1.0,), "a fraction above 0 and below 1; got 1.0"),
        ((0,), "above 0"),
    ],
)
def test_exits_that_are_none(fractions, message):
    assert_refused(message, truncated_exits, {"a": adaptive_mlp(2, 3)}, fractions)
    assert_refused("no member has learned widths to truncate", truncated_exits, {"a": nn.Linear(2, 3)})


def answers(labels, right, confidence=0.9):
    """Softmax (N, 2) that has the first so many samples right."""
    sure = torch.full((len(labels), 2), 1 - confidence)
    sure[torch.arange(len(labels)), torch.where(torch.arange(len(labels)) < right, labels, 1 - labels)] = confidence
    return sure


@pytest.mark.parametrize("price", [10, 39])  # of the first truncation: next to nothing, or nearly what its member costs
def test_exits_in_the_order_of_the_largest_area(price):
    labels = torch.arange(20) % 2
    rows = {
        "a@50%": answers(labels, 12),
        "b@50%": answers(labels, 4, confidence=0.99),
        "a": answers(labels, 17, confidence=0.7),
        "b": answers(labels, 19, confidence=0.999),
    }
    versions = {"a@50%": "a", "b@50%": "b"}
    flops = {"a@50%": price, "b@50%": 30, "a": 40, "b": 200}
    order = order_exits(list(rows), versions, torch.stack(list(rows.values())), labels, flops)
    assert order[-2:] == ("a", "b") and "b@50%" not in order
    assert ("a@50%" in order) == (price == 10)


# ---- the priors ----


def test_terms_of_the_loss():
    network = adaptive_mlp(2, 3, hidden_layers=2, rate=0.2).double()
    rates = [float(width.rate.detach()) for width in adaptive_widths(network).values()]
    assert float(WidthLoss()(network, num_samples=10)) == 0
    prior = WidthLoss(prior_rate=0.5, prior_deviation=0.3)
    expected = sum((rate - 0.5) ** 2 for rate in rates) / (2 * 0.3**2 * 10)
    assert float(prior(network, num_samples=10).detach()) == pytest.approx(expected)
    whole = WidthLoss(weight_deviation=2.0, prior_rate=0.5, prior_deviation=0.3)
    squares = sum(float(p.detach().square().sum()) for name, p in network.named_parameters() if "rho" not in name)
    assert float(whole(network, num_samples=10).detach()) == pytest.approx(expected + squares / (2 * 4 * 10))


def test_a_prior_that_tightens():
    loss = WidthLoss(prior_rate=0.1, prior_deviation=1.0, final_deviation=0.01, tighten_from=0.2, tighten_until=0.6)
    found = [loss.deviation(progress) for progress in (0, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_deviation": 0}, r"weight_deviation must be greater than 0 \(got 0\)"),
        ({"prior_rate": -1}, "prior_rate must be greater than 0"),
        ({"prior_deviation": 2.0}, "does nothing without prior_rate"),
        ({"prior_rate": 1, "tighten_from": 0.5}, "do nothing without final_deviation"),
        ({"prior_rate": 1, "final_deviation": 0.1, "tighten_from": 1.0}, "tighten_from must be less than 1"),
        (
            {"prior_rate": 1, "final_deviation": 0.1, "tighten_from": 0.5, "tighten_until": 0.5},
            "are fractions of the training, one before the other",
        ),
    ],
)
def test_priors_that_are_none(options, message):
    assert_refused(message, WidthLoss, **options)
