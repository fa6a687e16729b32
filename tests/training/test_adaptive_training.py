"""Joint training of members whose widths are learned: growing, shrinking, stopping, saving."""

import copy
import dataclasses
import json

import pytest
import torch
from saved_files import edit_json
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from training_cases import assert_same, refused, stop_training

import superweight_ensembles as swe
from superweight_ensembles import TrainConfig
from superweight_ensembles.models.adaptive import (
    WidthLoss,
    adaptive_widths,
    freeze_widths,
    make_adaptive,
    resize_widths,
    truncate,
)
from superweight_ensembles.training import LearnedWidths, build_optimizer

RESIDUAL = [("stages.*.conv1", "stages.*.conv2")]
NARROWING = WidthLoss(prior_rate=1.0, prior_deviation=0.01)
CONFIG = TrainConfig(epochs=3, batch_size=32, learning_rate=0.05, precision="float32", num_threads=1)


def members(**options):
    torch.manual_seed(0)
    nets = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(10, 0.5, 4)}
    for net in nets.values():
        make_adaptive(net, RESIDUAL, **options)
    return nets


def ensemble_of(nets):
    return swe.SuperWeightEnsemble(nets, plan=swe.independent_plan(nets))


def sizes(module):
    return {name: width.width for name, width in adaptive_widths(module).items()}


@pytest.fixture(scope="module")
def data():
    return swe.load_data("synthetic")


@pytest.fixture(scope="module")
def narrowed(data):
    """An ensemble that shares nothing and whose widths were learned, and how."""
    ensemble = ensemble_of(members())
    return ensemble, swe.train(ensemble, data, CONFIG, hooks=[LearnedWidths(NARROWING)])


def test_widths_follow_their_rates_in_joint_training(narrowed):
    ensemble, result = narrowed
    before = {name: sizes(net) for name, net in members().items()}
    now = {name: sizes(ensemble.members[name]) for name in "ab"}
    assert result.history[-1]["widths"] == now
    for name, widths in now.items():
        assert all(size < before[name][path] for path, size in widths.items())
        for path, width in adaptive_widths(ensemble.members[name]).items():
            assert abs(width.wanted(float(width.rate.detach())) - widths[path]) <= 2  # of the step before
    assert ensemble.plan == swe.independent_plan(dict(ensemble.members.items()))
    assert ensemble.num_parameters == ensemble.plan.num_parameters
    images = torch.randn(2, 3, 8, 8)
    assert_close(ensemble(images)[0], ensemble.materialize("a")(images))


def test_a_step_is_that_of_plain_torch(data):
    """Loss, priors, step and widths, against a loop of their own in float64, also where widths change."""
    nets = {"a": members()["a"].double()}
    ensemble = ensemble_of(nets).double()
    own = copy.deepcopy(nets["a"])
    batches = [(images.double(), labels) for images, labels in data.loader("train", 32, drop_last=True)]
    loss = WidthLoss(prior_rate=1.0, prior_deviation=0.05, weight_deviation=3.0)
    config = dataclasses.replace(CONFIG, epochs=1, weight_decay=0.0, schedule="constant", nesterov=False)
    swe.train(ensemble, batches, config, hooks=[LearnedWidths(loss)])
    stepping = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
    own.train()
    for images, labels in batches:
        stepping.zero_grad()
        rates = {path: float(width.rate.detach()) for path, width in adaptive_widths(own).items()}
        total = F.cross_entropy(own(images), labels) + loss(own, num_samples=32 * len(batches))
        total.backward()
        stepping.step()
        with torch.no_grad():  # the library follows the rates that it read with the losses, before the step
            after = {path: width.rho.clone() for path, width in adaptive_widths(own).items()}
            for path, width in adaptive_widths(own).items():
                width.rho.copy_(torch.log(torch.expm1(torch.tensor(rates[path], dtype=torch.float64))))
            resize_widths(own, stepping)
            for path, width in adaptive_widths(own).items():
                width.rho.copy_(after[path])
    assert any(size < before for size, before in zip(sizes(own).values(), (16, 32, 64), strict=True))
    trained = dict(ensemble.members["a"].named_parameters())
    for name, parameter in own.named_parameters():
        assert_close(trained[name], parameter, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("prior_rate", [1.0, 0.01], ids=["narrower", "wider"])
def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path, data, prior_rate):
    loss = WidthLoss(prior_rate=prior_rate, prior_deviation=0.01)
    config = dataclasses.replace(CONFIG, checkpoint_steps=2)
    whole = ensemble_of(members())
    start = sizes(whole.members["a"])
    swe.train(whole, data, config, hooks=[LearnedWidths(loss)], out=tmp_path / "whole")
    assert sizes(whole.members["a"]) != start

    hooks, resumed = [LearnedWidths(loss)], ensemble_of(members())
    stop_training(ensemble_of(members()), data, config, 2, 5, hooks=hooks, out=tmp_path / "parts")
    swe.train(resumed, data, config, hooks=hooks, out=tmp_path / "parts", resume=True)
    assert sizes(resumed.members["a"]) == sizes(whole.members["a"])
    assert list(resumed.state_dict()) == list(whole.state_dict())
    assert_same(resumed, whole)
    (newest,) = sorted((tmp_path / "parts" / "checkpoints").glob("*"))[-1:]
    state = json.loads((newest / "state.json").read_text())
    assert state["hooks"]["LearnedWidths"]["a"] == sizes(whole.members["a"])
    loaded = swe.SuperWeightEnsemble.load(newest)
    assert sizes(loaded.members["a"]) == state["hooks"]["LearnedWidths"]["a"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"a": {"stem": 5}}, "hooks: no learned width a.stem"),
        ({"z": {"stages.0.0.conv1": 5}}, "hooks: no learned width z"),
        ({"a": {"stages.0.0.conv1": 10**6}}, "a width of 1000000 is outside its bounds"),
        ({"a": 5}, "hooks: AttributeError"),
    ],
)
def test_damaged_widths_of_a_checkpoint(tmp_path, data, edit, message):
    config = dataclasses.replace(CONFIG, epochs=1)
    swe.train(ensemble_of(members()), data, config, hooks=[LearnedWidths(NARROWING)], out=tmp_path)
    (state,) = (tmp_path / "checkpoints").glob("*/state.json")
    edit_json(state, lambda content: content.update(hooks={"LearnedWidths": edit}))
    with refused(message):
        swe.train(ensemble_of(members()), data, config, hooks=[LearnedWidths(NARROWING)], out=tmp_path, resume=True)


def test_a_width_at_its_bound_is_told(caplog, data):
    ensemble = ensemble_of(members(bounds=(6, 64)))
    swe.train(ensemble, data, CONFIG, hooks=[LearnedWidths(WidthLoss(prior_rate=5.0, prior_deviation=0.05))])
    assert sizes(ensemble.members["b"])["stages.0.0.conv1"] == 6
    assert "the width of b.stages.0.0.conv1 is at its bound of 6 neurons (6 to 64), at a rate of" in caplog.text
    assert caplog.text.count("b.stages.0.0.conv1") <= 3


def test_saved_and_loaded_by_name_alone(tmp_path, narrowed):
    ensemble, _ = narrowed
    ensemble.save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()
    images = torch.randn(2, 3, 8, 8)
    assert_close(loaded(images), ensemble(images))
    assert sizes(loaded.members["b"]) == sizes(ensemble.members["b"])
    plain = {name: truncate(ensemble.materialize(name), fraction=0.5) for name in "ab"}
    shared = swe.SuperWeightEnsemble(plain, budget=0.83)
    shared.save(tmp_path / "truncated")
    again = swe.SuperWeightEnsemble.load(tmp_path / "truncated").eval()
    assert_close(again(images), shared.eval()(images))


def test_learned_widths_share_a_bank(data, narrowed):
    """Learn widths apart, freeze them, plan at a budget, train, truncate."""
    apart, _ = narrowed
    nets = {name: apart.materialize(name) for name in apart.member_names}
    with refused(r"the width of a\.stages\.0\.0\.conv1 would change while weights are shared"):
        swe.train(swe.SuperWeightEnsemble(nets, budget=0.83), data, CONFIG)
    for net in nets.values():
        freeze_widths(net)
    shared = swe.SuperWeightEnsemble(nets, budget=0.83)
    assert any("stages" in target.name for cluster in shared.plan.clusters for target in cluster.targets)
    before = sizes(shared.members["a"])
    result = swe.train(shared, data, CONFIG)
    assert sizes(shared.members["a"]) == before == result.history[-1]["widths"]["a"]
    assert result.history[-1]["train_loss"]["a"] < result.history[0]["train_loss"]["a"]
    small = truncate(shared.materialize("a"), fraction=0.5)
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    freeze_widths(shared.members["a"], frozen=False)
    with torch.no_grad():
        next(iter(adaptive_widths(shared.members["a"]).values())).rho += 3
    with refused("a bank generates the weights of this width"):
        resize_widths(shared.members["a"])


def test_rates_of_widths_take_a_learning_rate_of_their_own():
    changes = {}
    for multiple in (1.0, 0.1):
        ensemble = ensemble_of(members())
        before = {name: one.detach().clone() for name, one in ensemble.named_parameters()}
        config = dataclasses.replace(CONFIG, width_rate=multiple)
        optimizer = build_optimizer(ensemble, config)
        for parameter in ensemble.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        changes[multiple] = {name: one.detach() - before[name] for name, one in ensemble.named_parameters()}
    rates = [name for name in changes[1.0] if name.endswith("rho")]
    assert rates
    for name, change in changes[1.0].items():
        expected = 0.1 * change if name in rates else change
        torch.testing.assert_close(changes[0.1][name], expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be(data):
    plain = {"a": swe.wide_resnet(10, 1, 4)}
    for nets, changes, hooks, message in (
        (plain, {}, [LearnedWidths(NARROWING)], "a width loss does nothing: no member has a learned width"),
        (plain, {"width_rate": 0.5}, [], "width_rate does nothing: no member has a learned width"),
        (members(), {"compile": True}, [], "compile needs widths that stay as they are"),
    ):
        with refused(message):
            swe.train(ensemble_of(nets), data, dataclasses.replace(CONFIG, **changes), hooks=hooks)
    with refused("Linear has no learned width"):
        freeze_widths(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"producer": "nowhere"}, "no layer 'nowhere'"),
        ({"consumer": "norm"}, "'norm' is a BatchNorm2d"),
        ({"consumer": "stages.2.0.conv2"}, "share no hidden dimension"),
        ({"between": ["fc"]}, "'fc' is no layer whose width can change"),
        ({"width": 0}, "a width is 1 to"),
        ({"width": 2**19}, "has more than the .* parameters and buffers|needs about"),
        ({"learned": {"quantile": 2.0}}, "quantile must be a finite number, above 0 and below 1; got 2.0"),
        ({"learned": {"bounds": [0, 5]}}, "bounds must be"),
        ({"learned": {"distribution": "gauss"}}, "unknown distribution 'gauss'"),
        ({"learned": {"colour": 1}}, "hidden.0.learned.colour"),
    ],
)
def test_damaged_widths_of_a_saved_ensemble(tmp_path, change, message):
    ensemble_of(members()).save(tmp_path / "saved")
    learned = change.get("learned")

    def edit(content: dict) -> None:
        hidden = content["members"]["a"]["hidden"][0]
        hidden.update({"learned": {**hidden["learned"], **learned}} if learned else change)

    edit_json(tmp_path / "saved" / "config.json", edit)
    with refused(message):
        swe.SuperWeightEnsemble.load(tmp_path / "saved")
