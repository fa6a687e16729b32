"""The ensemble: unmodified members, one bank, and plain networks again at the end."""

import copy
import gc
import weakref

import pytest
import reference
import timm
import torch
from refusals import assert_refused
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from superweight_ensembles import SuperWeightEnsemble, independent_plan, plan_sharing, wide_resnet


def members():
    return {"a": wide_resnet(16, 1, 5), "b": wide_resnet(10, 2, 5), "c": wide_resnet(10, 2, 5)}


class TwiceUsed(nn.Module):
    """One layer under two names, as weight-shared blocks have it, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.block = nn.Linear(8, 8)
        self.same_block = self.block
        self.again.weight = self.stem.weight

    def forward(self, x):
        for layer in (self.stem, self.again, self.block, self.same_block):
            x = layer(x).tanh()
        return self.fc(x)


@pytest.fixture
def ensemble():
    return SuperWeightEnsemble(members(), budget=0.83)


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8)


def loss_of(logits, labels):
    return sum(F.cross_entropy(own, labels) for own in logits)


def train_a_step(ensemble, images):
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1)
    loss_of(ensemble(images), torch.arange(len(images))).backward()
    optimizer.step()
    optimizer.zero_grad()


def generated_names(ensemble, member):
    return {
        name
        for cluster in ensemble.plan.clusters
        for target in cluster.targets
        if target.member == member
        for name in target.names
    }


def test_members_given_are_not_changed(images):
    given = members()
    values = {name: copy.deepcopy(net.state_dict()) for name, net in given.items()}
    identities = {name: [id(p) for p in net.parameters()] for name, net in given.items()}
    ensemble = SuperWeightEnsemble(given, budget=0.83)
    train_a_step(ensemble, images)
    for name, net in given.items():
        assert [id(p) for p in net.parameters()] == identities[name]
        assert all(torch.equal(tensor, values[name][key]) for key, tensor in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
        assert net.training


def test_frozen_bank_is_not_counted(ensemble):
    ensemble.bank.requires_grad_(False)
    assert ensemble.num_parameters == ensemble.plan.num_private


def test_pairs_do_as_well_as_a_mapping():
    ensemble = SuperWeightEnsemble([("z", wide_resnet(10, 1, 5)), ("a", wide_resnet(10, 1, 5))], budget=1.0)
    assert ensemble.member_names == ("z", "a")


@pytest.mark.parametrize("several", [list, tuple])
def test_networks_alone_get_names(several, tmp_path, images):
    nets = several((wide_resnet(10, 1, 5), wide_resnet(10, 2, 5)))
    plan = plan_sharing(nets, budget=0.9)
    ensemble = SuperWeightEnsemble(nets, plan=plan).eval()
    assert plan.member_names == ensemble.member_names == ("member0", "member1")
    ensemble.save(tmp_path / "saved")
    assert torch.equal(SuperWeightEnsemble.load(tmp_path / "saved", members=nets).eval()(images), ensemble(images))


def test_options_reach_the_plan():
    ensemble = SuperWeightEnsemble(members(), budget=0.83, bins=2, cap=3, exclude=["*.stem"], clusters="depth_bins")
    assert ensemble.plan == plan_sharing(members(), budget=0.83, bins=2, cap=3, exclude=["*.stem"])
    assert "members.a.stem.weight" in ensemble.state_dict()


def test_member_fed_its_own_weights_is_the_plain_member(images):
    given = members()
    ensemble = SuperWeightEnsemble(given, budget=0.83).eval()
    for name, net in given.items():
        own = {key: dict(net.named_parameters())[key] for key in generated_names(ensemble, name)}
        assert torch.equal(ensemble.run_member(name, images, own), net.eval()(images))


class Around(nn.Module):
    """A layer, and a head on the mean of what it answers; attention reads its input as key and value too."""

    def __init__(self, layer, width, others=None):
        super().__init__()
        self.layer, self.others, self.head = layer, others, nn.Linear(width, 3)

    def forward(self, x):
        if isinstance(self.layer, nn.MultiheadAttention):
            other = x[..., : self.others]
            return self.head(self.layer(x, other, other)[0].mean(1))
        out = self.layer(x)
        return self.head(out.mean(1) if out.ndim == 3 and x.shape[-1] == 8 else out.flatten(2).mean(2))


KINDS = {
    "conv1d": (lambda: Around(nn.Conv1d(4, 6, 3), 6), (2, 4, 9)),
    "conv2d": (lambda: Around(nn.Conv2d(4, 6, (3, 1)), 6), (2, 4, 9, 9)),
    "conv3d": (lambda: Around(nn.Conv3d(4, 6, 3), 6), (2, 4, 5, 5, 5)),
    "transposed1d": (lambda: Around(nn.ConvTranspose1d(4, 6, 3), 6), (2, 4, 9)),
    "transposed2d": (lambda: Around(nn.ConvTranspose2d(4, 6, 3, groups=2), 6), (2, 4, 9, 9)),
    "transposed3d": (lambda: Around(nn.ConvTranspose3d(4, 6, 3), 6), (2, 4, 5, 5, 5)),
    "linear": (lambda: Around(nn.Linear(8, 6), 6), (2, 5, 8)),
    "attention": (lambda: Around(nn.MultiheadAttention(8, 2, batch_first=True), 8), (2, 5, 8)),
    "attention apart": (
        lambda: Around(nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True), 8, 4),
        (2, 5, 8),
    ),
    "timm attention": (lambda: Around(timm.layers.Attention(8, 2), 8), (2, 5, 8)),
    "timm attention, fused": (
        lambda: Around(timm.models.eva.EvaAttention(8, 2, norm_layer=nn.LayerNorm), 8),
        (2, 5, 8),
    ),
    "timm attention, apart": (
        lambda: Around(timm.models.eva.EvaAttention(8, 2, qkv_fused=False, norm_layer=nn.LayerNorm), 8),
        (2, 5, 8),
    ),
}


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("mode", [True, False])
def test_every_kind_of_layer_reads_its_generated_weights(case, mode):
    build, shape = KINDS[case]
    ensemble = SuperWeightEnsemble([build(), build()], budget=1.5).double().train(mode)
    assert [k for k, p in ensemble.members["member0"].named_parameters() if p.ndim > 1] == ["head.weight"]
    inputs = torch.randn(shape, dtype=torch.float64)
    weights = {key: weight.detach().requires_grad_() for key, weight in ensemble.generate()["member0"].items()}
    logits = ensemble.run_member("member0", inputs, weights)
    plain = ensemble.materialize("member0")
    assert_close(plain(inputs), logits)
    logits.square().sum().backward()
    plain(inputs).square().sum().backward()
    for key, weight in weights.items():
        assert_close(weight.grad, plain.get_parameter(key).grad)


def test_state_dict_has_each_bank_tensor_once_and_no_generated_tensor(ensemble, images):
    given = members()
    slots = [f"c{c}s{s}" for c, cluster in enumerate(ensemble.plan.clusters) for s in range(len(cluster.slots))]
    bank = {f"bank.{kind}.{slot}" for kind in ("templates", "coefficients") for slot in slots}
    own = {
        f"members.{name}.{key}"
        for name, net in given.items()
        for key in net.state_dict()
        if key not in generated_names(ensemble, name)
    }
    assert set(ensemble.state_dict()) == bank | own
    ensemble(images)
    assert set(ensemble.state_dict()) == bank | own
    tensors = ensemble.state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("net", [TwiceUsed, lambda: wide_resnet(10, 1, 3)], ids=["layer under two names", "wrn"])
def test_a_call_leaves_no_generated_tensor_behind(net, images):
    ensemble = SuperWeightEnsemble({"a": net()}, budget=3.0)
    before = dict(ensemble.named_parameters(remove_duplicate=False))
    ensemble(torch.randn(2, 8) if net is TwiceUsed else images).sum().backward()
    after = dict(ensemble.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    twin = copy.deepcopy(ensemble)
    assert list(twin.materialize("a").state_dict()) == list(net().state_dict())


def test_float64_by_conversion_and_of_the_members(ensemble, images):
    assert ensemble.to(torch.float64).eval()(images.double()).dtype == torch.float64
    assert {weight.dtype for found in ensemble.generate().values() for weight in found.values()} == {torch.float64}
    given = SuperWeightEnsemble({"a": wide_resnet(10, 1, 5).double()}, budget=1.2)
    assert given(images.double()).dtype == torch.float64


def test_gradient_reaches_every_parameter(ensemble, images):
    loss_of(ensemble(images), torch.arange(4)).backward()
    parameters = dict(ensemble.named_parameters())
    assert {name for name, parameter in parameters.items() if parameter.grad is None} == set()
    for name, parameter in parameters.items():
        if name.startswith("bank."):
            # Every template and every coefficient vector, not only the tensor that holds them.
            assert parameter.grad.abs().amax(1).min() > 0, name
        assert parameter.grad.abs().max() > 0, name


def test_joint_gradient_is_the_sum_of_the_members_gradients(images):
    ensemble = SuperWeightEnsemble(members(), budget=0.83).double()
    images, labels = images.double(), torch.arange(4)
    parameters = list(ensemble.parameters())
    joint = torch.autograd.grad(loss_of(ensemble(images), labels), parameters)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for name in ensemble.member_names:
        logits = ensemble.run_member(name, images, ensemble.bank.generate([name])[name])
        own = torch.autograd.grad(F.cross_entropy(logits, labels), parameters, allow_unused=True)
        total = [sum_ if grad is None else sum_ + grad for sum_, grad in zip(total, own, strict=True)]
    assert_close(joint, tuple(total), atol=1e-12, rtol=1e-10)


def test_norm_buffers_stay_apart(ensemble, images):
    # Members b and c are of one architecture; running b alone must not move the statistics of c.
    before = copy.deepcopy(ensemble.members["c"].state_dict())
    ensemble.run_member("b", images, ensemble.generate()["b"])
    moved, still = ensemble.members["b"].norm, ensemble.members["c"].norm
    assert (moved.num_batches_tracked, still.num_batches_tracked) == (1, 0)
    assert moved.running_mean.abs().max() > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in ensemble.members["c"].state_dict().items())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_logits_modes_and_buffers_are_those_of_the_materialised_members(ensemble, images, mode):
    ensemble.train(mode == "train")
    apart = {name: ensemble.materialize(name) for name in ensemble.member_names}
    before = copy.deepcopy(ensemble.state_dict())
    logits = ensemble(images)
    assert logits.shape == (3, 4, 5)
    assert_close(logits, torch.stack([net(images) for net in apart.values()]), atol=1e-6, rtol=1e-5)
    for name, net in apart.items():
        own = dict(ensemble.members[name].named_buffers())
        assert_close(dict(net.named_buffers()), own, atol=1e-6, rtol=1e-5)
        plain = ensemble.materialize(name)
        assert {layer.training for layer in plain.modules()} == {mode == "train"}
        assert all(torch.equal(buffer, own[key]) for key, buffer in plain.named_buffers())
    if mode == "eval":
        assert all(torch.equal(tensor, before[key]) for key, tensor in ensemble.state_dict().items())


def test_independent_plan_is_the_plain_members(images):
    given = members()
    ensemble = SuperWeightEnsemble(given, plan=independent_plan(given)).eval()
    assert list(ensemble.bank.parameters()) == []
    assert ensemble.num_parameters == ensemble.independent_parameters
    assert set(ensemble.generate()) == set(given)
    assert torch.equal(ensemble(images), torch.stack([net.eval()(images) for net in given.values()]))


def test_materialised_member_is_a_plain_network(ensemble, images):
    given = members()["a"]
    plain = ensemble.materialize("a")
    assert type(plain) is type(given)
    assert list(plain.state_dict()) == list(given.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in given.named_parameters()]
    assert reference.count_scalars(plain) == reference.count_scalars(given)
    assert all(type(parameter) is nn.Parameter and parameter.is_leaf for parameter in plain.parameters())
    given.load_state_dict(plain.state_dict())
    assert torch.equal(given.eval()(images), plain.eval()(images))
    plain(images).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    assert all(parameter.grad is None for parameter in ensemble.parameters())


def test_materialised_member_does_not_keep_the_ensemble(ensemble, images):
    plain = ensemble.materialize("a")
    fresh = SuperWeightEnsemble(members(), budget=0.83)
    kept, bank = fresh.materialize("b"), weakref.ref(fresh.bank)
    del fresh
    gc.collect()
    assert bank() is None
    assert kept(images).shape == (4, 5)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in ensemble.parameters()}


def test_materialising_ignores_autocast(ensemble):
    with torch.autocast("cpu", torch.bfloat16):
        plain = ensemble.materialize("a")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}


def test_tied_weights_stay_tied_and_their_gradient_is_the_sum_over_their_uses():
    given = TwiceUsed()
    ensemble = SuperWeightEnsemble({"a": given}, budget=3.0).double()
    plain = ensemble.materialize("a")
    assert list(plain.state_dict()) == list(given.state_dict())
    assert plain.again.weight is plain.stem.weight
    assert plain.again.bias is not plain.stem.bias
    assert plain.block is plain.same_block
    x = torch.randn(2, 8, dtype=torch.float64)
    assert_close(plain(x), ensemble(x)[0], atol=1e-12, rtol=1e-10)
    weights = ensemble.generate()["a"]
    ours = torch.autograd.grad(ensemble.run_member("a", x, weights).square().sum(), weights["stem.weight"])
    own = torch.autograd.grad(plain(x).square().sum(), plain.stem.weight)
    assert_close(ours, own, atol=1e-12, rtol=1e-10)


class Answers(nn.Module):
    """A member that answers whatever it is told to, from the features of a linear layer."""

    def __init__(self, answer, classes=5):
        super().__init__()
        self.body, self.fc, self.answer = nn.Linear(8, 8), nn.Linear(8, classes), answer

    def forward(self, x):
        return self.answer(self.fc(self.body(x)))


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (lambda logits: (1, 2), "tuple"),
        (lambda logits: {"logits": None}, "dict"),
        (lambda logits: None, "NoneType"),
        (lambda logits: logits.sum(), r"\(\)"),
        (lambda logits: logits[0], r"\(5,\)"),
        (lambda logits: logits[:, None], r"\(2, 1, 5\)"),
    ],
)
def test_member_that_answers_no_logits(answer, given):
    ensemble = SuperWeightEnsemble({"a": Answers(lambda logits: logits), "odd": Answers(answer)}, budget=2.0)
    assert_refused(rf"member 'odd' must answer one tensor of logits.*got {given}", ensemble, torch.randn(2, 8))


def test_members_that_answer_different_shapes():
    short = Answers(lambda logits: logits[:, :3])
    ensemble = SuperWeightEnsemble({"a": Answers(lambda logits: logits), "short": short}, budget=2.0)
    assert_refused(r"same batch and classes; got a: \(2, 5\), short: \(2, 3\)", ensemble, torch.randn(2, 8))


def test_unknown_member(ensemble):
    assert_refused(r"unknown member 'wrn'.*Known: a, b, c", ensemble.materialize, "wrn")


def test_deepcopy_is_equal_and_independent(ensemble, images):
    ensemble(images).sum().backward()
    twin = copy.deepcopy(ensemble)
    ensemble.eval(), twin.eval()
    before = ensemble(images)
    assert torch.equal(twin(images), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(ensemble(images), before)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in ensemble.parameters()}
