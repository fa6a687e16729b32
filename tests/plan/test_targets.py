"""Which weights are found, of what kind, and which are left."""

import pytest
import timm
import torch
from refusals import assert_refused
from torch import nn

from superweight_ensembles import wide_resnet
from superweight_ensembles.plan import find_targets

HEAD = nn.Linear(4, 3)


class OwnLinear(nn.Module):
    """A layer class that reads its own ``weight``, as timm's and users' layers do."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.scale = nn.Parameter(torch.randn(2, 2))


def kinds(module, **globs):
    return {target.name: target.kind for target in find_targets(module, "net", **globs)}


def names(module, **globs):
    return list(kinds(module, **globs))


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), {"0.weight": "conv1d"}),
    "conv2d": (nn.Conv2d(4, 6, 3), {"0.weight": "conv2d"}),
    "conv3d": (nn.Conv3d(4, 6, 3), {"0.weight": "conv3d"}),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), {"0.weight": "grouped conv2d"}),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), {"0.weight": "depthwise conv2d"}),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), {"0.weight": "transposed conv1d"}),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3), {"0.weight": "transposed conv2d"}),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 3), {"0.weight": "transposed conv3d"}),
    "linear": (nn.Linear(4, 6), {"0.weight": "linear"}),
    "attention": (nn.MultiheadAttention(8, 2), {"0.in_proj_weight": "linear", "0.out_proj.weight": "linear"}),
    "attention apart": (
        nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        dict.fromkeys((*(f"0.{name}_proj_weight" for name in "qkv"), "0.out_proj.weight"), "linear"),
    ),
    "rnn": (nn.RNN(4, 4), {"0.weight_ih_l0": "rnn", "0.weight_hh_l0": "rnn"}),
    "gru": (
        nn.GRU(4, 4, num_layers=2),
        dict.fromkeys(("0.weight_ih_l0", "0.weight_hh_l0", "0.weight_ih_l1", "0.weight_hh_l1"), "gru"),
    ),
    "lstm": (
        nn.LSTM(4, 4, bidirectional=True, proj_size=2),
        {f"0.weight_{matrix}_l0{direction}": "lstm" for direction in ("", "_reverse") for matrix in ("ih", "hh", "hr")},
    ),
    "rnn cell": (nn.RNNCell(4, 4), {"0.weight_ih": "rnn", "0.weight_hh": "rnn"}),
    "gru cell": (nn.GRUCell(4, 4), {"0.weight_ih": "gru", "0.weight_hh": "gru"}),
    "lstm cell": (nn.LSTMCell(4, 4), {"0.weight_ih": "lstm", "0.weight_hh": "lstm"}),
    "own 2d": (OwnLinear(4, 6), {"0.weight": "linear"}),
    "own 4d": (OwnLinear(4, 6, 3, 3), {"0.weight": "conv2d"}),
    # Left: norms (one of two dimensions too), look-up tables, weights of one dimension or six.
    "batch norm": (nn.BatchNorm2d(4), {}),
    "layer norm": (nn.LayerNorm((4, 4)), {}),
    "embedding": (nn.Embedding(5, 4), {}),
    "embedding bag": (nn.EmbeddingBag(5, 4), {}),
    "own 1d": (OwnLinear(4), {}),
    "own 6d": (OwnLinear(1, 2, 1, 2, 1, 2), {}),
    "frozen": (nn.Linear(4, 6).requires_grad_(False), {}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_kinds_found_and_left(case):
    layer, expected = LAYERS[case]
    assert kinds(nn.Sequential(layer, HEAD)) == expected


def test_shapes_are_as_stored():
    layers = nn.Sequential(nn.Conv2d(4, 6, (3, 5), groups=2), nn.ConvTranspose2d(4, 6, 2), HEAD)
    grouped, transposed = find_targets(layers, "net")
    assert (grouped.shape, grouped.kernel) == ((6, 4 // 2, 3, 5), (3, 5))
    assert transposed.shape == (4, 6, 2, 2)
    assert (grouped.member, grouped.label) == ("net", "net.0.weight")
    projections = find_targets(nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4, vdim=6), HEAD), "net")
    assert [target.shape for target in projections] == [(8, 8), (8, 4), (8, 6), (8, 8)]
    recurrent = find_targets(nn.Sequential(nn.LSTM(5, 8, proj_size=3), HEAD), "net")
    assert [target.shape for target in recurrent] == [(4 * 8, 5), (4 * 8, 3), (3, 8)]
    assert recurrent[0].kernel == ()


def test_construction_order():
    net = wide_resnet(10, 1, 5)
    order = [name for name, parameter in net.named_parameters() if parameter.ndim > 1 and name != "fc.weight"]
    assert names(net) == order


class NamedHead(nn.Module):
    """The head is the child with a head's name, though another linear layer comes after it."""

    def __init__(self):
        super().__init__()
        self.body, self.fc, self.gate = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.head_dist = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def get_classifier(self):
        return self.head, self.head_dist


class DeepHead(nn.Module):
    """Of a classifier of several layers, the last alone has the classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.classifier = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), ["0.weight"]),
        (NamedHead(), ["body.weight", "gate.weight"]),
        (TwoHeads(), ["body.weight"]),
        (DeepHead(), ["body.weight", "classifier.0.weight"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)), ["0.weight", "1.weight"]),
    ],
)
def test_head_is_left(net, expected):
    assert names(net) == expected


def test_head_of_timm_is_left():
    found = names(timm.create_model("mobilenetv3_small_050", num_classes=5))
    assert {"conv_stem.weight", "conv_head.weight"} <= set(found) and "classifier.weight" not in found


def mlp():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        *(
            ({"exclude": [glob]}, ["2.weight"])
            for glob in ("0", "0.weight", "net.0", "net.0.weight", "*.0", "*.0.*", "net.0*", "[0]", "n?t.0")
        ),
        *(({"exclude": [glob]}, ["0.weight", "2.weight"]) for glob in ("other.0", "0.bias", "NET.0", "1")),
        *(
            ({"include": [glob]}, ["0.weight", "2.weight", "3.weight"])
            for glob in ("3", "3.weight", "net.3", "net.3.weight", "net.3*")
        ),
        ({"include": ["3", "2"], "exclude": ["net.3", "2.weight"]}, ["0.weight"]),  # exclude is stronger
    ],
    ids=str,
)
def test_globs_name_layers_or_parameters_with_and_without_member(options, expected):
    assert names(mlp(), **options) == expected


def test_include_takes_tables_but_no_vector_and_nothing_frozen():
    net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), HEAD)
    assert names(net, include=["0", "1"]) == ["0.weight"]
    net = mlp()
    net[2].requires_grad_(False)
    assert names(net, include=["2"]) == ["0.weight"]


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), HEAD)
    net[1].weight = net[0].weight
    return net


def test_tied_weights_and_layers_are_one_target():
    (target,) = find_targets(tied(), "net")
    assert (target.name, target.names) == ("0.weight", ("0.weight", "1.weight"))
    layer = nn.Linear(4, 4)
    (target,) = find_targets(nn.Sequential(layer, nn.ReLU(), layer, HEAD), "net")
    assert target.names == ("0.weight", "2.weight")
    for glob in ("0", "1", "net.1.weight"):
        assert names(tied(), exclude=[glob]) == []


def test_weight_tied_to_a_table_keeps_both_names():
    # A language model's way: the table is no layer to generate, the linear layer that shares its tensor is.
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), HEAD)
    net[1].weight = net[0].weight
    (target,) = find_targets(net, "net")
    assert (target.names, target.kind) == (("0.weight", "1.weight"), "linear")


def test_lazy_layers_need_a_shape():
    for lazy in (nn.LazyLinear(4), nn.LazyConv2d(4, 3)):
        assert_refused(r"net: 0\.weight has no shape yet; run a batch", find_targets, nn.Sequential(lazy, HEAD), "net")
    net = nn.Sequential(nn.LazyLinear(4), HEAD)
    net(torch.zeros(1, 7))
    (target,) = find_targets(net, "net")
    assert target.shape == (4, 7)


def test_own_norms_and_embeddings_are_left():
    class ChannelNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 8, 1, 1))

    class TokenEmbedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 8))

    class OwnLayerNorm(nn.LayerNorm):
        pass

    net = nn.Sequential(TokenEmbedding(), ChannelNorm(), OwnLayerNorm((5, 8)), nn.Linear(8, 4), nn.Linear(4, 2))
    assert [target.name for target in find_targets(net)] == ["3.weight"]
    assert [target.name for target in find_targets(net, include=["0"])] == ["0.weight", "3.weight"]


@pytest.mark.parametrize("table", [nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)])
def test_included_tables_are_of_their_own_kind(table):
    net = nn.Sequential(table, nn.Linear(4, 4), HEAD)
    assert kinds(net, include=["0"]) == {"0.weight": "embedding", "1.weight": "linear"}


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_norm": 1.0}, r"with max_norm, which changes its weights in place: leave it out"),
        ({"sparse": True}, r"with sparse=True, whose gradients the bank cannot take: leave it out"),
        (
            {"padding_idx": 0},
            r"with padding_idx, a row that stays as it is, which a generated one cannot: leave it out",
        ),
    ],
)
def test_tables_that_cannot_be_generated(table, option, message):
    net = nn.Sequential(table(5, 4, **option), nn.Linear(4, 5, bias=False), HEAD)
    assert names(net) == ["1.weight"]
    assert_refused(rf"net: 0\.weight is an embedding {message}", find_targets, net, "net", include=["0"])
    net[1].weight = net[0].weight  # a layer that would be taken holds it too
    assert_refused(rf"net: 0\.weight is an embedding {message}", find_targets, net, "net")
    assert names(net, exclude=["1"]) == []
