"""Recurrent layers, which hold their tensors twice, and tables, from a bank: as the plain layers in every use."""

import copy
import gc
import weakref

import onnxruntime
import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.experiment import estimate_training
from superweight_ensembles.export import export_cascade, export_member
from superweight_ensembles.models import count_flops
from superweight_ensembles.search import weight_gradients
from superweight_ensembles.training import Execution, JointLoss, joint_backward, recomputed_blocks

TOKENS = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
LAYERS = {
    "gru": (nn.GRU, {}),
    "two layers": (nn.GRU, {"num_layers": 2, "bias": False}),
    "lstm": (nn.LSTM, {"bidirectional": True}),
    "projected lstm": (nn.LSTM, {"proj_size": 4}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
}


class Classifier(nn.Module):
    """Tokens (B, T) to a table, a recurrent layer, the mean over steps, and a head of 3 classes."""

    def __init__(self, layer, width, **options):
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(20, 8), layer(8, width, batch_first=True, **options)
        steps = options.get("proj_size") or width
        self.head = nn.Linear(steps * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, tokens):
        return self.head(self.recurrent(self.embedding(tokens))[0].mean(1))


class Cells(nn.Module):
    """Cells in a loop over the steps."""

    def __init__(self, width):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(width, 3)
        self.gru, self.lstm, self.rnn = nn.GRUCell(8, width), nn.LSTMCell(width, width), nn.RNNCell(width, width)

    def forward(self, tokens):
        gru = lstm = rnn = None
        for step in self.embedding(tokens).unbind(1):
            gru = self.gru(step, gru)
            lstm = self.lstm(gru, lstm)
            rnn = self.rnn(lstm[0], rnn)
        return self.head(rnn)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.recurrent = nn.LayerNorm(width), nn.GRU(width, width, batch_first=True)

    def forward(self, x):
        return x + self.recurrent(self.norm(x))[0]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(3)))

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


def networks(name="gru"):
    torch.manual_seed(0)
    if name == "cells":
        return [Cells(8), Cells(12)]
    layer, options = LAYERS[name]
    return [Classifier(layer, width, **options) for width in (8, 12)]


def ensemble_of(name="gru", budget=0.95):
    return swe.SuperWeightEnsemble(networks(name), budget=budget, rng=torch.Generator().manual_seed(0))


@pytest.fixture(params=[*LAYERS, "cells"])
def ensemble(request):
    return ensemble_of(request.param)


def recurrent_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]


def held_twice(module):
    """Whether the list that a recurrent layer hands to torch holds its parameters, and no others."""
    return all(
        held is layer._parameters[name]
        for layer in recurrent_layers(module)
        for name, held in zip(layer._flat_weights_names, layer._flat_weights, strict=True)
    )


def test_every_matrix_is_generated(ensemble):
    for name, member in zip(ensemble.member_names, ensemble.members.values(), strict=True):
        own = [key for key, parameter in member.named_parameters() if parameter.ndim == 2]
        assert own == ["embedding.weight", "head.weight"]
        assert {key for key, p in ensemble.materialize(name).named_parameters() if p.ndim == 2} > set(own)


@pytest.mark.parametrize("mode", [True, False])
def test_gradients_are_those_of_the_plain_member(ensemble, mode):
    ensemble.double().train(mode)
    found = {}
    losses = joint_backward(ensemble, TOKENS, LABELS, F.cross_entropy, look=found.update)
    for name in ensemble.member_names:
        plain = ensemble.materialize(name)
        loss = F.cross_entropy(plain(TOKENS), LABELS)
        loss.backward()
        assert_close(losses[name], loss.detach())
        own = dict(ensemble.members[name].named_parameters())
        for key, parameter in plain.named_parameters():
            gradient = own[key].grad if key in own else found[name, key]
            assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


def test_gradients_in_evaluation_mode_are_those_of_the_plain_member(ensemble):
    ensemble.train()
    found = weight_gradients(ensemble, [(TOKENS, LABELS)])
    plain = ensemble.materialize("member1").eval()
    F.cross_entropy(plain(TOKENS), LABELS).backward()
    for (name, key), gradient in found.items():
        if name == "member1":
            assert_close(gradient, plain.get_parameter(key).grad, rtol=1e-4, atol=1e-6)


def test_nothing_generated_stays_behind(ensemble):
    weights = ensemble.generate()
    generated = [weakref.ref(weight) for own in weights.values() for weight in own.values()]
    with ensemble.with_weights("member0", weights["member0"]) as member:
        member(TOKENS)
        assert held_twice(member)
    del weights
    gc.collect()
    assert [one() for one in generated if one() is not None] == []
    assert held_twice(ensemble)
    assert all(None in layer._flat_weights for layer in recurrent_layers(ensemble))


def test_nothing_of_the_members_given_stays():
    given = networks()
    weights = [weakref.ref(net.recurrent.weight_hh_l0) for net in given]
    ensemble = swe.SuperWeightEnsemble(given, budget=0.95)
    del given
    gc.collect()
    assert [one() for one in weights] == [None, None]
    assert ensemble(TOKENS).shape == (2, 6, 3)


def test_what_stays_of_a_layer_in_one_block_has_memory_of_its_own():
    # cuDNN puts all tensors of a layer into one block; copies of a part of it copy all.
    net = networks()[0]
    block = torch.cat([parameter.detach().flatten() for parameter in net.recurrent.parameters()])
    start = 0
    for parameter in net.recurrent.parameters():
        parameter.data = block[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    own = swe.SuperWeightEnsemble([net, net], budget=0.9).members["member0"].recurrent
    assert own.bias_hh_l0.untyped_storage().nbytes() == 4 * 3 * 8
    assert torch.equal(own.bias_hh_l0, net.recurrent.bias_hh_l0) and held_twice(own)


def test_copies_and_conversions_follow(ensemble):
    ensemble.eval()
    expected = ensemble(TOKENS).detach()
    twin = copy.deepcopy(ensemble).double()
    assert held_twice(twin) and twin(TOKENS).dtype == torch.float64
    assert_close(twin.float()(TOKENS), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(twin(TOKENS), expected)
    assert_close(ensemble(TOKENS), expected)


def test_materialised_members_are_plain(ensemble):
    ensemble.eval()
    for name, logits in zip(ensemble.member_names, ensemble(TOKENS), strict=True):
        plain = ensemble.materialize(name)
        assert held_twice(plain)
        assert all(isinstance(held, nn.Parameter) for layer in recurrent_layers(plain) for held in layer._flat_weights)
        for layer in recurrent_layers(plain):
            layer.flatten_parameters()
        for same in (plain, copy.deepcopy(plain), copy.deepcopy(plain).double().float()):
            assert_close(same(TOKENS), logits)
        F.cross_entropy(plain(TOKENS), LABELS).backward()
        torch.optim.SGD(plain.parameters(), lr=1.0).step()
        assert not torch.allclose(plain(TOKENS), logits)


NO_BFLOAT16 = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
FUSED = pytest.param("lstm", marks=pytest.mark.skipif(NO_BFLOAT16, reason="this CPU has no bfloat16 LSTM"))


@pytest.mark.parametrize("name", ["gru", FUSED, "cells"])
def test_bfloat16(name):
    ensemble = ensemble_of(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = ensemble(TOKENS)
        loss = sum(F.cross_entropy(own.float(), LABELS) for own in logits)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert [key for key, p in ensemble.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert_close(logits.float(), ensemble(TOKENS), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_to_predicting(precision, tmp_path):
    """Whether the first token is below ten: trained, evaluated, saved, and answered at any budget."""
    tokens = torch.randint(0, 20, (256, 4), generator=torch.Generator().manual_seed(1))
    labels = (tokens[:, 0] >= 10).long() + (tokens[:, 1] >= 10).long()
    batches = [(tokens[rows], labels[rows]) for rows in torch.arange(256).split(32)]
    ensemble = ensemble_of("gru")
    config = swe.TrainConfig(epochs=6, batch_size=32, learning_rate=0.02, optimizer="adamw", precision=precision,
                             device="cpu")  # fmt: skip
    before = swe.evaluate(ensemble, batches).ensemble.metrics.nll
    swe.train(ensemble, batches, config)
    assert swe.evaluate(ensemble, batches).ensemble.metrics.nll < before / 2
    ensemble.eval().save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved", members=networks()).eval()
    assert torch.equal(loaded(tokens), ensemble(tokens))
    answer = swe.AnytimePredictor(loaded, input_shape=(4,))(tokens)
    assert_close(answer.probabilities, ensemble(tokens).softmax(2).mean(0).detach())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_recomputed_blocks(weight):
    # With the loss of the mean, a block runs again when its member's weights are no longer in place.
    plain, lean = (swe.SuperWeightEnsemble([Blocks(), Blocks()], budget=0.8).double() for _ in range(2))
    lean.load_state_dict(plain.state_dict())
    blocks = recomputed_blocks(dict(lean.members.items()))
    loss = JointLoss(loss_function=F.cross_entropy, ensemble_weight=weight)
    for each, options in ((plain, {}), (lean, {"execution": Execution(recomputed=blocks)})):
        joint_backward(each, TOKENS, LABELS, loss, **options)
        assert held_twice(each) and all(None in layer._flat_weights for layer in recurrent_layers(each))
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize(("layer", "gates"), [(nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)])
def test_flops_by_formula(layer, gates, options):
    directions, steps = (2, 9) if options else (1, 9)
    inputs = [8] + [directions * 5] * (options.get("num_layers", 1) - 1)
    expected = sum(2 * steps * directions * gates * 5 * (width + 5) for width in inputs)
    backends = torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled
    with torch.inference_mode():
        assert count_flops(layer(8, 5, batch_first=True, **options), torch.zeros(1, steps, 8)) == expected
    assert (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled) == backends


def test_costs_and_estimates_of_members_that_take_tokens(ensemble):
    costs = swe.anytime.member_costs(ensemble, (9,), dtype=torch.int64, rounds=1)
    found = estimate_training(ensemble, ensemble.plan, (9,), swe.TrainConfig(batch_size=4), num_images=4)
    for member in found.members:
        assert member.forward_flops == costs[member.name].flops > 0
        assert member.activation_bytes > 0
    assert held_twice(copy.deepcopy(ensemble))


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning", "ignore:_check_is_size:FutureWarning")
def test_members_are_exported(name, tmp_path):
    plain = ensemble_of(name).materialize("member0").eval()
    expected = plain(TOKENS).detach()
    path = export_member(plain, tmp_path / "a.pt2", format="torch-export", input_shape=(9,))
    assert_close(torch.export.load(path).module()(TOKENS), expected)
    path = export_member(plain, tmp_path / "a.onnx", format="onnx", input_shape=(9,))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert_close(torch.from_numpy(session.run(["logits"], {"images": TOKENS.numpy()})[0]), expected)
    path = export_member(plain, tmp_path / "a.safetensors", format="state-dict", input_shape=(9,))
    again = networks(name)[0].eval()
    load_model(again, str(path))
    assert torch.equal(again(TOKENS), expected)
    assert torch.equal(plain(TOKENS), expected)


def test_a_cascade_of_members_that_take_tokens_is_refused(tmp_path):
    predictor = swe.AnytimePredictor(ensemble_of(), input_shape=(9,))
    policy = swe.anytime.ExitPolicy(order=predictor.order, temperatures=(1.0, 1.0), thresholds=(0.5,))
    with pytest.raises(swe.SuperWeightError, match=r"takes float32 images; member 'member0' takes tokens"):
        export_cascade(predictor.modules, policy, tmp_path / "cascade", input_shape=(9,))


def test_tied_recurrent_layers_stay_tied():
    class Tied(Classifier):
        def __init__(self):
            super().__init__(nn.GRU, 8)
            self.again = nn.GRU(8, 8, batch_first=True)
            self.again.weight_hh_l0 = self.recurrent.weight_hh_l0

        def forward(self, tokens):
            return self.head(self.again(self.recurrent(self.embedding(tokens))[0])[0].mean(1))

    ensemble = swe.SuperWeightEnsemble([Tied(), Tied()], budget=0.9)
    logits = ensemble(TOKENS)
    plain = ensemble.materialize("member0")
    assert plain.again.weight_hh_l0 is plain.recurrent.weight_hh_l0 and held_twice(plain)
    assert_close(plain(TOKENS), logits[0])


def test_included_tables_are_generated():
    ensemble = swe.SuperWeightEnsemble(networks(), budget=0.9, include=["*.embedding"])
    assert {cluster.kind for cluster in ensemble.plan.clusters} == {"gru", "embedding"}
    logits = ensemble(TOKENS)
    assert_close(ensemble.materialize("member1")(TOKENS), logits[1])
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in ensemble.parameters())
