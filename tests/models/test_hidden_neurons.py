"""Hidden neurons of a learned width reach the one layer that reads them, each by itself, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from refusals import assert_refused
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.models.adaptive import adaptive_widths, make_adaptive, resize_widths

WIDTH = 16
Between = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    """``between`` makes, of the hidden neurons (B, 16), what the last layer but one answers."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, 3)
        self.norm, self.layer_norm, self.prelu = nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH), nn.PReLU(WIDTH)
        self.other, self.convolution = nn.Linear(WIDTH, 12), nn.Conv1d(1, 1, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("order", torch.arange(WIDTH).roll(1))
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.between(self, self.up(inputs).relu()).relu())


def without_the_first(hidden: Tensor) -> Tensor:
    hidden = hidden.clone()
    hidden[:, :2] = 0
    return hidden


ELSEWHERE = "outputs of 'up' are used elsewhere than in 'down', too"
MIXED = "between 'up' and 'down' the hidden neurons are mixed"
OTHERWISE = "depends on the hidden widths in another way than by its layers"
REFUSED: dict[str, tuple[Between, str]] = {
    "slice": (lambda net, h: net.down(h) + h[:, :12], ELSEWHERE),
    "slice of the middle": (lambda net, h: net.down(h) + h[:, 5:6], ELSEWHERE),
    "index": (lambda net, h: net.down(h) + h[:, 0, None], ELSEWHERE),
    "last": (lambda net, h: net.down(h) + h[:, -1, None], ELSEWHERE),
    "mean": (lambda net, h: net.down(h) + h.mean(1, keepdim=True), ELSEWHERE),
    "largest": (lambda net, h: net.down(h) + h.topk(3, 1).values.sum(1, keepdim=True), ELSEWHERE),
    "einsum": (lambda net, h: net.down(h) + torch.einsum("bi,bi->b", h, h)[:, None], ELSEWHERE),
    "attention": (lambda net, h: net.down(h) * (h @ h.t()).softmax(1).sum(), ELSEWHERE),
    "second layer": (lambda net, h: net.down(h) + net.other(h), "used elsewhere than in 'down', too: in 'other'"),
    "second layer first": (lambda net, h: net.other(h) + net.down(h), ELSEWHERE),
    "weight of the reader": (lambda net, h: net.down(h) + F.linear(h, net.down.weight), ELSEWHERE),
    "weight of the maker": (lambda net, h: net.down(h) + net.up.weight.abs().sum(), OTHERWISE),
    "chunks": (lambda net, h: net.down(torch.cat(h.chunk(2, 1)[::-1], 1)), MIXED),
    "permutation": (lambda net, h: net.down(h[:, net.order]), MIXED),
    "flip": (lambda net, h: net.down(h.flip(1)), MIXED),
    "gate by a neighbour": (lambda net, h: net.down(h * h.roll(1, 1)), MIXED),
    "running sum": (lambda net, h: net.down(h.cumsum(1)), MIXED),
    "sort": (lambda net, h: net.down(h.sort(1).values), MIXED),
    "softmax": (lambda net, h: net.down(h.softmax(1)), MIXED),
    "normalize": (lambda net, h: net.down(F.normalize(h, dim=1)), MIXED),
    "functional norm": (lambda net, h: net.down(F.layer_norm(h, h.shape[1:])), MIXED),
    "layer norm": (lambda net, h: net.down(net.layer_norm(h)), f"{MIXED} by 'layer_norm'"),
    "convolution over neurons": (lambda net, h: net.down(net.convolution(h[:, None])[:, 0]), "mixed by 'convolution'"),
    "transposed view": (lambda net, h: net.down(h.view(-1, 4, 4).transpose(1, 2).flatten(1)), MIXED),
    "some overwritten": (lambda net, h: net.down(without_the_first(h)), "the outputs of 'up' do not all reach 'down'"),
    "gain": (lambda net, h: net.down(h * net.gain), OTHERWISE),
    "constant": (lambda net, h: net.down(h + torch.linspace(0, 1, WIDTH)), OTHERWISE),
    "view": (lambda net, h: net.down(h.view(-1, 4, 4).flatten(1)), rf"^Network {OTHERWISE}: shape '\[-1, 4, 4\]' is"),
    "shape in a number": (lambda net, h: net.down(h) / h.shape[1], OTHERWISE),
    "shape in a branch": (lambda net, h: net.down(h) if h.shape[1] == WIDTH else net.down(h) + 1, OTHERWISE),
    "twice": (lambda net, h: net.down(h) + net.down(2 * h), "'down' 2 times in a call of the module"),
}
TAKEN: dict[str, Between] = {
    "nothing": lambda net, h: net.down(h),
    "batch norm": lambda net, h: net.down(net.norm(h)),
    "prelu": lambda net, h: net.down(net.prelu(h)),
    "dropout": lambda net, h: net.down(F.dropout(h, 0.5, net.training)),
    "mask": lambda net, h: net.down(h * (h > 0.1)),
    "pieces in their order": lambda net, h: net.down(torch.cat(h.split(5, 1), 1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_neurons_that_cannot_be_left_out_are_refused_with_the_place(case: str) -> None:
    between, message = REFUSED[case]
    torch.manual_seed(0)
    network, inputs = Network(between), torch.randn(4, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert_refused(message, make_adaptive, network, [("up", "down")], example=inputs)
    assert not adaptive_widths(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("case", TAKEN)
def test_neurons_that_reach_their_reader_each_by_itself_are_learned(case: str) -> None:
    torch.manual_seed(0)
    network, inputs = Network(TAKEN[case]), torch.randn(4, 8)
    make_adaptive(network, [("up", "down")], example=inputs)
    (width,) = adaptive_widths(network).values()
    for factor in (0.5, 3.0):
        with torch.no_grad():
            for parameter in width.parameters():
                parameter *= factor
        resize_widths(network)
        assert network.down.in_features == network.up.out_features == width.width != WIDTH
        assert network(inputs).shape == (4, 3)
