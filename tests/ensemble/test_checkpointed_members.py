"""Members that checkpoint activations: backward comes after the call, and finds the call's weights in their places."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from superweight_ensembles import SuperWeightEnsemble

REENTRANT = pytest.mark.parametrize("reentrant", [False, True])


class Checkpointing(nn.Module):
    """A convolution that is run plainly, then blocks that are checkpointed; ``wide`` ones are of two sizes."""

    def __init__(self, on=True, reentrant=False, wide=8, fails=False):
        super().__init__()
        self.stem = nn.Conv2d(3, wide, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(wide, wide, 3, padding=1) for _ in range(3))
        self.blocks.append(self.blocks[0])  # a layer that is checkpointed twice
        self.fc = nn.Linear(wide, 5)
        self.on, self.reentrant, self.fails, self.calls = on, reentrant, fails, 0

    def block(self, layer, x):
        self.calls += 1
        if self.fails and self.calls > len(self.blocks):
            raise KeyError("the second time")
        return layer(x).tanh()

    def forward(self, x):
        x = self.stem(x).tanh()
        for layer in self.blocks:
            x = checkpoint(self.block, layer, x, use_reentrant=self.reentrant) if self.on else self.block(layer, x)
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, on=True, reentrant=False):
        super().__init__()
        self.embed, self.rnn, self.fc = nn.Linear(3, 8), nn.LSTM(8, 8, 2, batch_first=True), nn.Linear(8, 5)
        self.on, self.reentrant = on, reentrant

    def forward(self, x):
        x = self.embed(x.flatten(2).mT)
        run = lambda x: self.rnn(x)[0]  # noqa: E731
        return self.fc((checkpoint(run, x, use_reentrant=self.reentrant) if self.on else run(x))[:, -1])


class Sequential(nn.Sequential):
    def forward(self, x):
        return self[-1](checkpoint_sequential(self[:-1], 2, x.mean(1), use_reentrant=False).mean(1))


def ensemble_of(on, reentrant=False):
    torch.manual_seed(0)
    members = {
        "a": Checkpointing(on, reentrant),
        "b": Checkpointing(on, reentrant, wide=12),
        "c": Checkpointing(False),
    }
    return SuperWeightEnsemble(members, budget=0.7)


@pytest.fixture
def images():
    return torch.randn(4, 3, 6, 6)


def gradients_of(ensemble, images, times=1):
    labels = torch.arange(len(images))
    logits = ensemble(images)
    loss = sum(F.cross_entropy(own, labels) for own in logits)
    for time in range(times):
        loss.backward(retain_graph=time + 1 < times)
    return {name: parameter.grad for name, parameter in ensemble.named_parameters()}


def leaves_of(weights):
    leaves = {id(weight): weight.detach().requires_grad_() for weight in weights.values()}
    return {key: leaves[id(weight)] for key, weight in weights.items()}


def assert_away(ensemble):
    generated = [
        owner._parameters[local]
        for cluster in ensemble.plan.clusters
        for target in cluster.targets
        for owner, local in [(ensemble.members[target.member].get_submodule(target.name[:-7]), "weight")]
        if target.name.endswith(".weight")
    ]
    assert generated and all(tensor is None for tensor in generated)


@REENTRANT
@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_those_without_checkpoints(images, reentrant, times):
    checkpointed = ensemble_of(True, reentrant)
    plain = ensemble_of(False)
    found, wanted = gradients_of(checkpointed, images, times), gradients_of(plain, images, times)
    assert all(gradient is not None for gradient in wanted.values())
    if reentrant:  # adds a tied layer's parts in another order
        assert_close(found, wanted, atol=1e-7, rtol=1e-5)
    else:
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert_away(checkpointed)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()


@REENTRANT
def test_two_calls_before_one_backward(images, reentrant):
    found, wanted = (
        gradients_of(ensemble, images)
        for ensemble in map(_TwoCalls, (ensemble_of(True, reentrant), ensemble_of(False)))
    )
    assert_close(found, wanted, atol=1e-7, rtol=1e-5)


class _TwoCalls(nn.Module):
    """Each member twice, with other weights each time."""

    def __init__(self, ensemble):
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images):
        first, second = self.ensemble.generate(), self.ensemble.generate()
        second = {name: {key: 2 * weight for key, weight in own.items()} for name, own in second.items()}
        return torch.stack(
            [
                self.ensemble.run_member(name, images, weights[name])
                for weights in (first, second)
                for name in self.ensemble.member_names
            ]
        )


def test_gradients_of_generated_weights_and_of_gradients(images):
    found = []
    for on in (True, False):
        ensemble = ensemble_of(on)
        weights = ensemble.generate()["a"]
        inputs = list({id(weight): weight for weight in weights.values()}.values())
        logits = ensemble.run_member("a", images, weights)
        first = torch.autograd.grad(logits.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)
        found.append((*first, *second))
        assert_away(ensemble)
    assert_close(*found, atol=1e-6, rtol=1e-5)


@REENTRANT
def test_a_backward_pass_that_fails_leaves_no_weights(images, reentrant):
    torch.manual_seed(0)
    members = {"a": Checkpointing(True, reentrant, fails=True), "b": Checkpointing(True, reentrant)}
    ensemble = SuperWeightEnsemble(members, budget=0.9)
    keys = ensemble.state_dict().keys()
    with pytest.raises(KeyError, match="the second time"):
        ensemble(images).sum().backward()
    assert_away(ensemble)
    assert ensemble.state_dict().keys() == keys
    ensemble.members["a"].fails = False
    ensemble.zero_grad()
    gradients_of(ensemble, images)
    assert_away(ensemble)


@REENTRANT
def test_recurrent_members(reentrant):
    images, found = torch.randn(4, 3, 6, 6), []
    for on in (True, False):
        torch.manual_seed(0)
        ensemble = SuperWeightEnsemble({"a": Recurrent(on, reentrant), "b": Recurrent(on, reentrant)}, budget=0.8)
        found.append(gradients_of(ensemble, images))
        assert all(weight is None for weight in ensemble.members["a"].rnn._flat_weights[::4])
    assert_close(*found, atol=1e-7, rtol=1e-5)


def test_backward_after_other_calls_sees_the_weights_of_its_own(images):
    ensemble = ensemble_of(True)
    weights = ensemble.generate()["a"]
    own = leaves_of(weights)
    logits = ensemble.run_member("a", images, own)
    ensemble.run_member("a", images, {key: 3 * weight for key, weight in weights.items()})
    with ensemble.with_weights("a", {key: 5 * weight for key, weight in weights.items()}) as member:
        before = member.stem.weight
        logits.sum().backward()
        assert member.stem.weight is before  # what the context placed is there again
    wanted = leaves_of(weights)
    ensemble.members["a"].on = False
    ensemble.run_member("a", images, wanted).sum().backward()
    assert all(torch.equal(own[key].grad, wanted[key].grad) for key in own)


def test_answers_may_be_changed_in_place_and_kept(images):
    ensemble = ensemble_of(True)
    logits = ensemble.run_member("a", images, ensemble.generate()["a"])
    logits /= 2
    logits.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        logits.sum().backward()
    assert_away(ensemble)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_timm(name):
    found = []
    for on in (True, False):
        torch.manual_seed(0)
        networks = {key: timm.create_model(name, num_classes=4) for key in "ab"}
        for network in networks.values():
            network.set_grad_checkpointing(on)
        ensemble = SuperWeightEnsemble(networks, budget=0.8)
        torch.manual_seed(1)
        size = networks["a"].default_cfg["input_size"]
        found.append(gradients_of(ensemble, torch.randn(4, *size)))
    assert_close(*found, atol=1e-6, rtol=1e-4)


def test_sequential_checkpoints():
    torch.manual_seed(0)
    layers = [nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 5)]
    ensemble = SuperWeightEnsemble({"a": Sequential(*layers), "b": Sequential(*copy.deepcopy(layers))}, budget=0.9)
    assert all(gradient is not None for gradient in gradients_of(ensemble, torch.randn(4, 3, 6, 6)).values())


def test_function_transforms_trace_the_call_as_before(images):
    ensemble = ensemble_of(False)
    parameters = dict(ensemble.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(ensemble, parameters, (images,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    wanted = torch.autograd.grad(ensemble(images).square().sum(), list(parameters.values()))
    assert_close(tuple(found.values()), wanted, atol=1e-6, rtol=1e-5)
