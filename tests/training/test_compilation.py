"""Members compiled in training: the same results to rounding, compiled once, clear errors."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from training_cases import assert_same, refused

import superweight_ensembles as swe
from superweight_ensembles.training import Execution, JointLoss, compiled_calls, joint_backward

FAST = swe.TrainConfig(
    epochs=2, batch_size=32, learning_rate=0.05, precision="float32", device="cpu", schedule="constant", compile=True
)
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="torch.compile needs a C++ compiler"
)


def ensemble(classes: int = 3) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {
        name: nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.BatchNorm1d(width), nn.ReLU(),
                            nn.Linear(width, classes))
        for name, width in (("narrow", 8), ("wide", 12))
    }  # fmt: skip
    return swe.SuperWeightEnsemble(members, budget=1.2, rng=torch.Generator().manual_seed(0)).train()


@needs_compiler
def test_steps_equal_those_of_plain_members_and_compile_once() -> None:
    plain, fast = ensemble(), ensemble()
    calls = compiled_calls(dict(fast.members.items()))
    images, labels = torch.randn(3, 6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    compiled = []
    found: dict[bool, dict[str, torch.Tensor]] = {}
    for batch in images:
        for each, options in ((plain, {}), (fast, {"execution": Execution(compiled=calls)})):
            each.zero_grad()
            losses = joint_backward(each, batch, labels, F.cross_entropy, **options)
            found[each is fast] = losses
            with torch.no_grad():
                for parameter in each.parameters():
                    parameter -= 0.1 * parameter.grad
        compiled.append(counters["stats"]["unique_graphs"])
        for name in plain.member_names:
            torch.testing.assert_close(found[True][name], found[False][name], rtol=1e-5, atol=1e-6)
    assert compiled[0] > 0 and compiled == compiled[:1] * 3
    for key, value in plain.state_dict().items():  # batch norm's running statistics among them
        torch.testing.assert_close(fast.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_many_members_of_one_class_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    members = {
        f"m{depth}": nn.Sequential(nn.Flatten(), nn.Linear(192, 4), *(nn.Linear(4, 4) for _ in range(depth)))
        for depth in range(9)
    }
    many = swe.SuperWeightEnsemble(members, budget=1.0).train()
    calls, made = compiled_calls(dict(many.members.items())), []
    torch._dynamo.reset()
    for _ in range(2):
        before = counters["stats"]["unique_graphs"]
        joint_backward(
            many, torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2]), F.cross_entropy, execution=Execution(compiled=calls)
        )
        made.append(counters["stats"]["unique_graphs"] - before)
    assert made == [9, 0]  # torch's own limit is 8 graphs a forward, and these nine share one


def test_what_is_trained_is_saved_and_evaluated_as_the_plain_members(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def counting(member: nn.Module):
        def call(images: torch.Tensor) -> torch.Tensor:
            called.append(member.training)
            return member(images)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    trained = [ensemble(data.num_classes), ensemble(data.num_classes)]
    for each, compiled in zip(trained, (True, False)):
        swe.train(each, data, dataclasses.replace(FAST, compile=compiled))
    steps = FAST.epochs * (len(data.train) // FAST.batch_size)
    assert called == [True] * (steps * 2)  # both members, at each step of the first training, and never in validation
    assert_same(*trained)


def test_a_failed_compilation_names_the_member_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def failing(member: nn.Module):
        def call(images: torch.Tensor) -> torch.Tensor:
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr(torch, "compile", failing)
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    with refused(r"member 'narrow' cannot be compiled here: .*\n.*compile: false"):
        swe.train(ensemble(data.num_classes), data, FAST)


def test_mistakes_of_the_member_itself_are_not_blamed_on_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda member: member)
    calls = compiled_calls(dict(ensemble().members.items()))
    with pytest.raises(TypeError, match="linear"):
        calls["wide"](torch.zeros(2, 192))  # no weights are placed


def test_what_does_not_go_together_is_refused() -> None:
    data = swe.load_data("synthetic", num_train=96, num_test=32)
    with refused("cannot go with an objective"):
        swe.train(ensemble(), data, FAST, objective=lambda member, images, labels: member(images).sum())


def test_members_together_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    each, made = ensemble(), []
    calls = compiled_calls(dict(each.members.items()))
    loss = JointLoss(loss_function=F.cross_entropy, ensemble_weight=0.5)
    for images in torch.randn(3, 6, 3, 8, 8):
        before = counters["stats"]["unique_graphs"]
        joint_backward(each, images, torch.tensor([0, 1, 2] * 2), loss, execution=Execution(compiled=calls))
        made.append(counters["stats"]["unique_graphs"] - before)
    assert made == [2, 0, 0]


def test_a_member_that_fails_without_the_compiler_too_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    wrong = [(torch.randn(4, 3, 9, 9), torch.tensor([0, 1, 2, 0]))]
    with refused(r"member 'narrow' cannot take images \(4, 3, 9, 9\) .*: mat1 and mat2"):
        swe.train(ensemble(), wrong, FAST)


def test_a_whole_ensemble_compiles_within_the_recompile_limit() -> None:
    members = {f"wrn{depth}-{width}": swe.wide_resnet(depth, width, 3) for depth, width in ((16, 2), (10, 2), (16, 1))}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.83).eval()
    torch._dynamo.reset()
    images = torch.randn(2, 3, 8, 8)
    expected = torch.autograd.grad(ensemble(images).square().sum(), list(ensemble.bank.parameters()))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = torch.compile(ensemble, backend="aot_eager")
        for _ in range(2):
            answer = compiled(images)
            given = torch.autograd.grad(answer.square().sum(), list(ensemble.bank.parameters()))
    torch.testing.assert_close(answer, ensemble(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-5)
