"""One table of architectures, each alone and some in pairs, through all that an ensemble does.

Real models at full size with small images, and own ones that read sequences of tokens: what is tested is that any
module works, not what it learns.
"""

import copy
import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import reference
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from superweight_ensembles import SharingPlan, SuperWeightEnsemble, SuperWeightError, plan_sharing, wide_resnet

CLASSES = 5
IMAGES = (2, 3, 32, 32)
VOCABULARY, LENGTH = 30, 12
BUDGETS = (0.4, 0.83, 1.3)


class StandardisedConv(nn.Module):
    """An own layer class that reads ``self.weight`` in its forward, twice."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3) / math.sqrt(9 * in_channels))
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))

    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * self.gain
        return F.conv2d(x, weight, padding=1)


class OwnNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([StandardisedConv(i, o) for i, o in pairwise((3, *(16,) * 9))])
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


class EveryKind(nn.Module):
    """Grouped, depthwise, transposed, one- and three-dimensional convolutions, attention with own key and value
    widths, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.grouped, self.depthwise = nn.Conv2d(3, 12, 3, groups=3), nn.Conv2d(12, 12, 3, groups=12)
        self.transposed = nn.ConvTranspose2d(12, 16, 2)
        self.volume, self.line = nn.Conv3d(1, 4, 3), nn.Conv1d(16, 16, 3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.attention = nn.MultiheadAttention(16, 2, kdim=4, vdim=4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        volume = self.volume(x[:, None, :, :8, :8]).flatten(2).transpose(1, 2)
        line = self.line(self.transposed(self.depthwise(self.grouped(x))).mean(3)).transpose(1, 2)
        mixed, _ = self.attention(self.frozen(line), volume, volume)
        return self.fc(self.encoder(mixed).mean(1))


class TextTransformer(nn.Module):
    """Tokens and positions, encoder layers, the mean over the sequence."""

    def __init__(self, width, depth=2):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, tokens):
        return self.fc(self.encoder(self.tokens(tokens) + self.positions.weight).mean(1))


class TextRecurrence(nn.Module):
    """A recurrent layer over the sequence, of which the last step is read."""

    def __init__(self, layer, width, **options):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.recurrent = layer(16, width, num_layers=2, batch_first=True, **options)
        self.fc = nn.Linear(width * (2 if options else 1), CLASSES)

    def forward(self, tokens):
        return self.fc(self.recurrent(self.tokens(tokens))[0][:, -1])


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 64), *(nn.Linear(64, 64) for _ in range(6)), nn.Linear(64, CLASSES)
    )


def of_timm(name, **options):
    return functools.partial(timm.create_model, name, num_classes=CLASSES, **options)


MODELS = {
    "wrn16-2": lambda: wide_resnet(16, 2, CLASSES),
    "mlp": mlp,
    "resnet18": of_timm("resnet18"),
    "resnet26d": of_timm("resnet26d"),
    "mobilenetv3": of_timm("mobilenetv3_small_100"),
    "efficientnet": of_timm("efficientnet_b0"),
    "convnext": of_timm("convnext_atto"),
    "vit": of_timm("vit_tiny_patch16_224", img_size=32),
    "nf_resnet26": of_timm("nf_resnet26"),
    "resnetv2": of_timm("resnetv2_50x1_bit"),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "torchvision regnet": lambda: torchvision.models.regnet_y_400mf(num_classes=CLASSES),
    "own net": OwnNet,
    "every kind": EveryKind,
}
TEXT_MODELS = {
    "transformer32": lambda: TextTransformer(32),
    "transformer48": lambda: TextTransformer(48, depth=3),
    "gru24": lambda: TextRecurrence(nn.GRU, 24),
    "gru32": lambda: TextRecurrence(nn.GRU, 32),
    "lstm16": lambda: TextRecurrence(nn.LSTM, 16, bidirectional=True),
    "lstm24": lambda: TextRecurrence(nn.LSTM, 24, bidirectional=True),
}


@dataclass(frozen=True)
class Case:
    """Members, and the budgets below the minimum of their SuperWeights, each with its reason: flat banks go there."""

    members: tuple[str, ...]
    too_small: tuple[float, ...] = ()

    def __str__(self):
        return " and ".join(self.members)


CASES = [
    Case(("wrn16-2",)),
    # Its first matrix, 64 x 3072, is nine tenths of it and has no equal.
    Case(("mlp",), too_small=(0.4, 0.83)),
    Case(("resnet18",)),
    # The last 1x1 layers, up to 2048 x 1024, of which there are few, are a fifth of it; the widest 3x3 a sixth.
    Case(("resnet26d",), too_small=(0.4,)),
    # The 1024 x 576 expansion before the head alone is more than a third of it.
    Case(("mobilenetv3",), too_small=(0.4,)),
    Case(("efficientnet",)),
    Case(("convnext",)),
    Case(("vit",)),
    # As resnet26d.
    Case(("nf_resnet26",), too_small=(0.4,)),
    Case(("resnetv2",)),
    Case(("torchvision resnet18",)),
    Case(("torchvision regnet",)),
    # Seven layers of one shape and a narrower one in four bins: four of seven and a bit.
    Case(("own net",), too_small=(0.4,)),
    # Eight kinds of layer, most of them with no other of their kind.
    Case(("every kind",), too_small=(0.4,)),
    Case(("wrn16-2", "resnet18")),
    # resnet26d is four fifths of the pair, and convnext's layers are too small to be in need of its templates.
    Case(("resnet26d", "convnext"), too_small=(0.4,)),
    Case(("mobilenetv3", "efficientnet")),
    Case(("vit", "mlp")),
    Case(("torchvision regnet", "nf_resnet26")),
    Case(("own net", "every kind", "wrn16-2")),
    # Each bin has all shapes of a layer of the wider one, once.
    Case(("transformer32", "transformer48"), too_small=(0.4,)),
    # Four matrices in four bins: all of the wider one is left.
    Case(("gru24", "gru32"), too_small=(0.4,)),
    # Two directions halve that.
    Case(("lstm16", "lstm24"), too_small=(0.4,)),
    # Three kinds, of one member each.
    Case(("transformer32", "gru32", "lstm16"), too_small=(0.4,)),
]


@functools.lru_cache(maxsize=4)
def model(name):
    torch.manual_seed(0)
    return {**MODELS, **TEXT_MODELS}[name]()


def members_of(case):
    return {f"m{index}": model(name) for index, name in enumerate(case.members)}


SETTINGS = [pytest.param((case, budget), id=f"{case} at {budget}") for case in CASES for budget in BUDGETS]


@pytest.fixture(scope="module", params=SETTINGS)
def built(request):
    """(case, budget, ensemble), each made once."""
    case, budget = request.param
    return case, budget, SuperWeightEnsemble(members_of(case), budget=budget)


@pytest.fixture
def images(built):
    case, _, _ = built
    if case.members[0] in TEXT_MODELS:
        return torch.randint(0, VOCABULARY, (IMAGES[0], LENGTH))
    return torch.randn(IMAGES)


@pytest.mark.parametrize("setting", SETTINGS)
def test_budget_below_the_minimum_of_superweights_states_it(setting):
    case, budget = setting
    members = members_of(case)
    plan = plan_sharing(members, budget=10**9, generator="superweight")
    least = sum(reference.count_scalars(net) for net in members.values())
    for cluster in plan.clusters:
        shapes = reference.distinct_shapes(cluster.shape_of(target) for target in cluster.targets)
        least -= sum(math.prod(cluster.shape_of(target)) for target in cluster.targets)
        least += sum(reference.slot_size(shapes, slot) for slot in range(len(shapes)))
        least += sum(target.slot + 1 for target in cluster.targets)
    made = plan_sharing(members, budget=budget)
    assert bool(made.ssn_groups) == (budget in case.too_small)
    if budget in case.too_small:
        with pytest.raises(SuperWeightError, match=f"below the minimum of this sharing, {least:,} parameters"):
            plan_sharing(members, budget=budget, generator="superweight")


def test_budget_is_respected_and_the_plan_comes_back(built):
    case, budget, ensemble = built
    apart = sum(reference.count_scalars(net) for net in members_of(case).values())
    assert ensemble.independent_parameters == apart
    assert reference.count_scalars(ensemble) == ensemble.num_parameters <= budget * apart
    read = SharingPlan.from_json(ensemble.plan.to_json())
    assert read == ensemble.plan
    assert [cluster.name for cluster in read.clusters if cluster.name not in str(read)] == []


def test_forward_and_backward(built, images):
    case, _, ensemble = built
    ensemble.train().zero_grad()
    logits = ensemble(images)
    assert logits.shape == (len(case.members), IMAGES[0], CLASSES)
    sum(F.cross_entropy(own, torch.arange(2)) for own in logits).backward()
    trainable = {name: p for name, p in ensemble.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    ensemble.zero_grad()


def test_materialised_members_and_loaded_states_answer_as_the_ensemble(built, images):
    case, _, ensemble = built
    ensemble.eval()
    other = SuperWeightEnsemble(members_of(case), plan=ensemble.plan).eval()
    with torch.no_grad():
        logits = ensemble(images)
        for name, own, given in zip(ensemble.member_names, logits, members_of(case).values(), strict=True):
            plain = ensemble.materialize(name)
            assert list(plain.state_dict()) == list(given.state_dict())
            assert_close(plain(images), own, atol=1e-4, rtol=1e-4)
        assert not torch.equal(other(images), logits)
        other.load_state_dict(copy.deepcopy(ensemble.state_dict()))
        assert torch.equal(other(images), logits)
