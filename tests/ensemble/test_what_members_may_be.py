"""What a member may be and what not: a case for every line of docs/members.md."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import superweight_ensembles as swe

CONFIG = swe.TrainConfig(epochs=1, batch_size=8, learning_rate=0.01, precision="float32", device="cpu")
SHAPE = (3, 8, 8)
PAGE = (Path(__file__).parents[2] / "docs" / "members.md").read_text(encoding="utf-8")


class Network(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.second(self.norm(self.first(images)).relu())

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.features(images).mean((2, 3)))


def batches(count: int = 16, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *SHAPE, generator=generator).to(dtype)
    return list(zip(images.split(8), (torch.arange(count) % 3).split(8)))


def ensemble_of(member: nn.Module, **options: Any) -> swe.SuperWeightEnsemble:
    return swe.SuperWeightEnsemble({"it": member, "other": Network()}, budget=0.95, **options)


def live(ensemble: swe.SuperWeightEnsemble, folder: Path, again: Callable[[], nn.Module], pickles: bool = True) -> None:
    """Train, validate, evaluate, predict, materialize, save, load, export, copy: answers stay the same."""
    dtype = next(ensemble.bank.parameters()).dtype
    given, images = batches(dtype=dtype), batches(dtype=dtype)[0][0]
    swe.train(ensemble, given, CONFIG, validation=given, out=folder / "run")
    expected = ensemble(images)
    for name, logits in zip(ensemble.member_names, expected):
        torch.testing.assert_close(ensemble.materialize(name)(images), logits, rtol=1e-4, atol=1e-5)
    assert swe.evaluate(ensemble, given).num_samples == 16
    answer = swe.AnytimePredictor(ensemble)(images)
    assert answer.members_used.tolist() == [2] * 8
    torch.testing.assert_close(copy.deepcopy(ensemble)(images), expected)
    if pickles:
        torch.testing.assert_close(pickle.loads(pickle.dumps(ensemble))(images), expected)
    swe.export_member(ensemble.materialize("it"), folder / "it.safetensors", format="state-dict", input_shape=SHAPE)
    ensemble.save(folder / "saved")
    ensemble.train()
    ensemble(images).sum().backward()
    loaded = swe.SuperWeightEnsemble.load(folder / "saved", {"it": again(), "other": Network().to(dtype)}).eval()
    torch.testing.assert_close(loaded(images), expected)


@dataclasses.dataclass
class Record:
    value: Any = None


class Keeping(Network):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"list": []}
        self.record = Record()

    def forward(self, images: Tensor) -> Tensor:
        self.held = self.features(images)
        self.kept["list"] = [(self.held,)]
        self.record.value = self.held * 2
        return self.fc(self.held.mean((2, 3)))


def hooked() -> nn.Module:
    network = Network()
    network.second.register_forward_hook(lambda layer, given, made: setattr(layer, "held", made))
    return network


class Derived(Network):
    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(8))
        self.scale = self.raw.exp()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)) * self.scale.detach())


class Averaging(Network):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.features(images).mean((2, 3))
        if self.training:
            self.average = 0.9 * self.average + 0.1 * pooled.mean(0)
        return self.fc(pooled - self.average.detach())


class Caching(Network):
    table: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.table is None and not self.training:
            self.table = torch.linspace(1, 2, 8)
        pooled = self.features(images).mean((2, 3))
        return self.fc(pooled if self.table is None else pooled * self.table)


class Filling(Network):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None)

    def forward(self, images: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(1, 2, 8)
        return self.fc(self.features(images).mean((2, 3)) * self.table)


class Checkpointing(Network):
    def features(self, images: Tensor) -> Tensor:
        hidden = checkpoint(self.first, images, use_reentrant=False)
        return checkpoint(self.second, self.norm(hidden).relu(), use_reentrant=True)


class Viewing(Network):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).view(images.size(0), -1))


def parametrized() -> nn.Module:
    network = Network()
    parametrizations.weight_norm(network.second)
    parametrizations.spectral_norm(network.first)
    parametrizations.orthogonal(network.fc)
    return network


def hooked_norms() -> nn.Module:
    network = Network()
    nn.utils.weight_norm(network.second)
    prune.l1_unstructured(network.first, "weight", 0.5)
    nn.utils.spectral_norm(network.fc)
    return network


class TwoNames(Network):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.second

    def features(self, images: Tensor) -> Tensor:
        return self.again(super().features(images).relu())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.fc = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.out = self.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.up(self.down(images.flatten(1)).relu()).relu())


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(24, 8, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.block(self.rnn(images.transpose(1, 2).flatten(2))[0]).mean(1))


class Fourier(Network):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.fft.rfft2(self.features(images)).abs().mean((2, 3)))


class Complex(Network):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((self.features(images).mean((2, 3)) * self.turn).real)


class Unshared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1))


LIVES: dict[str, list[Callable[[], nn.Module]]] = {
    "keeps an activation on itself": [Keeping],
    "keeps an activation by a forward hook": [hooked],
    "computes a tensor of its parameters": [Derived],
    "writes buffers that have a graph": [Averaging],
    "makes a table at its first call": [Caching],
    "registers a buffer as None": [Filling],
    "checkpoints its activations": [Checkpointing],
    "flattens by `view`": [Viewing],
    "`torch.nn.utils.parametrizations`": [parametrized],
    "old `weight_norm`": [hooked_norms],
    "a layer under two names": [TwoNames, lambda: TwoNames().to(memory_format=torch.channels_last)],
    "a head tied to another layer": [Tied],
    "recurrent layers, attention": [Sequences],
    "CaiT, attention pooling": [Fourier],
    "complex parameters": [Complex],
    "nothing to share in one member": [Unshared],
}


@pytest.mark.parametrize("line", LIVES)
def test_members_that_live(line: str, tmp_path: Path) -> None:
    for place, make in enumerate(LIVES[line]):
        torch.manual_seed(0)
        member = make()
        if line.startswith("keeps"):
            member(torch.zeros(2, *SHAPE))  # given after a call
        try:
            pickle.dumps(member)
        except Exception:  # closures and parametrizations: the member's own affair
            live(ensemble_of(member), tmp_path / str(place), again=make, pickles=False)
        else:
            live(ensemble_of(member), tmp_path / str(place), again=make)


def test_members_of_another_type(tmp_path: Path) -> None:
    member, other = Network().double(), Network().double()
    ensemble = swe.SuperWeightEnsemble({"it": member, "other": other}, budget=0.95)
    assert all(parameter.dtype == torch.float64 for parameter in ensemble.parameters())
    live(ensemble, tmp_path, again=lambda: Network().double())


def test_compiled_members_run() -> None:
    ensemble = ensemble_of(torch.compile(Network(), backend="eager"))  # type: ignore[arg-type]
    assert ensemble(batches()[0][0]).shape == (2, 8, 3)


def test_shared_parts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten())
    members = {name: nn.Sequential(backbone, nn.Linear(8 * 36, 3)) for name in ("a", "b")}
    with caplog.at_level(logging.WARNING):
        ensemble = swe.SuperWeightEnsemble(members, budget=0.95)
    assert "members 'a' and 'b' are given one object, '0'; here each gets a copy of its own" in caplog.text
    assert ensemble.members["a"][0] is not ensemble.members["b"][0]


def test_shared_buffers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    norm = nn.BatchNorm2d(8, affine=False)
    first, second = Network(), Network()
    first.norm = second.norm = norm
    swe.SuperWeightEnsemble({"a": first, "b": second}, budget=0.95)
    assert "members 'a' and 'b' are given one object, 'norm'; here each gets" in caplog.text


@pytest.mark.parametrize("reading", ["list", "view", "frozen bank"])
def test_weights_that_are_read_from_elsewhere_are_told(reading: str, caplog: pytest.LogCaptureFixture) -> None:
    class Aside(Network):
        def __init__(self) -> None:
            super().__init__()
            self.kept = [self.second.weight if reading == "list" else self.second.weight.view(8, 8, 3, 3)]

        def features(self, images: Tensor) -> Tensor:
            weight = self.second.weight if reading == "frozen bank" else self.kept[0]
            return nn.functional.conv2d(self.norm(self.first(images)).relu(), weight, self.second.bias, padding=1)

    ensemble = ensemble_of(Aside())
    ensemble.bank.requires_grad_(reading != "frozen bank")
    swe.train(ensemble, batches(), CONFIG)
    told = [record.message for record in caplog.records if "no gradient came to" in record.message]
    assert [line.partition(" in the")[0] for line in told] == (
        [] if reading == "frozen bank" else ["no gradient came to it.second.weight"]
    )


def test_threads_call_a_member_one_after_the_other() -> None:
    ensemble, images = ensemble_of(Network()).eval(), batches()[0][0]
    expected, found = ensemble(images).detach(), []

    def call() -> None:
        with torch.no_grad():
            found.extend(torch.equal(ensemble(images), expected) for _ in range(30))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 120
    assert "members.it.first.weight" not in ensemble.state_dict()


def test_ensembles_made_in_inference_mode_are_trained(tmp_path: Path) -> None:
    ensemble_of(Network()).save(tmp_path / "saved")
    with torch.inference_mode():
        made = ensemble_of(Network())
        loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved", {"it": Network(), "other": Network()})
    for ensemble in (made, loaded):
        assert swe.train(ensemble, batches(), CONFIG).history


def test_memory_that_runs_out_names_the_member() -> None:
    class Greedy(Network):
        def forward(self, images: Tensor) -> Tensor:
            torch.empty(1 << 50)
            return super().forward(images)

    ensemble = ensemble_of(Greedy())
    for call in (lambda: swe.evaluate(ensemble, batches()), lambda: swe.AnytimePredictor(ensemble, input_shape=SHAPE)):
        assert_refused(r"out of memory in member 'it', .*smaller batches", call)
    with pytest.raises(RuntimeError, match="allocate"):  # not that the shape is wrong
        swe.export_member(Greedy(), "it.safetensors", format="state-dict", input_shape=SHAPE)


def with_lock() -> nn.Module:
    network = Network()
    network.lock = threading.Lock()
    return network


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Network()


def patched() -> nn.Module:
    network = Network()
    before = network.forward
    network.forward = lambda images: before(images)  # type: ignore[method-assign]
    return network


def compiled_forward() -> nn.Module:
    network = Network()
    network.forward = torch.compile(network.forward, backend="eager")  # type: ignore[method-assign]
    return network


def closing_hook() -> nn.Module:
    network = Network()
    network.kept = {}
    network.second.register_forward_hook(lambda module, given, answer: network.kept.__setitem__("x", answer))
    return network


class Doing(Network):
    """Does something with its images, and something with its answers."""

    def __init__(self, before: Callable[[Tensor], Any] = id, after: Callable[[Tensor], Any] = Tensor.clone) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Any:
        self.before(images)
        return self.after(super().forward(images))


def scaling(images: Tensor) -> Tensor:
    return images.mul_(3)


def squares(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return member(images).square().sum()


def in_place(act: Callable[[nn.Module, Tensor], object]) -> Callable[[Path], object]:
    return lambda _: [act(Doing(how), batches()[0][0]) for how in (scaling, nn.ReLU(inplace=True))]


def beside(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        ensemble = ensemble_of(Network())
        change(ensemble)
        assert_refused("the ensemble holds 'more' beside its bank and members", ensemble.save, folder / "saved")
        return swe.train(ensemble, batches(), CONFIG)

    return act


def member_of_an_ensemble() -> nn.Module:
    return ensemble_of(Network()).members["it"]


def train_with(member: nn.Module, tmp_path: Path) -> object:
    return swe.train(ensemble_of(member), batches(), CONFIG, out=tmp_path / "run")


class Stateful(Network):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.register_buffer("odd", buffer)


class Extra(Network):
    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None: ...


def exchanged(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        ensemble = ensemble_of(Network())
        change(ensemble.members["it"])
        return ensemble.save(folder / "saved")

    return act


def changed(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda folder: change(ensemble_of(Network()).members)


def with_head(ensemble: swe.SuperWeightEnsemble) -> swe.SuperWeightEnsemble:
    ensemble.members["it"].fc = nn.Linear(8, 5)
    return ensemble


CHANGED = "has changed since the ensemble was made"
FIXED = "cannot be set or removed, since the plan was made for these members: build a new SuperWeightEnsemble"
REFUSED: dict[str, list[tuple[Callable[[Path], object], str]]] = {
    "locks, open files": [(lambda _: ensemble_of(with_lock()), "member 'it' cannot be copied: .*lock.*: keep|; keep")],
    "a function that refers to the network": [
        (lambda _: ensemble_of(patched()), r"member 'it' holds a function, in forward, that refers to the network"),
        (lambda _: ensemble_of(compiled_forward()), r"in forward, .*TrainConfig has compile=True"),
        (lambda _: ensemble_of(closing_hook()), r"in second\._forward_hooks, that refers to the network"),
    ],
    "changes its images in place": [
        (in_place(act), rf"{who} changes its images in place, .*images\.clone\(\)")
        for who, act in (
            ("member 'it'", lambda member, images: ensemble_of(member)(images)),
            ("member 'it'", lambda member, images: swe.train(ensemble_of(member), [(images, torch.arange(8) % 3)])),
            ("member 'it'", lambda member, images: swe.evaluate(ensemble_of(member), [(images, torch.arange(8) % 3)])),
            ("member 'it'", lambda member, images: swe.AnytimePredictor(ensemble_of(member))(images)),
            ("member 'it'", lambda member, images: swe.AnytimePredictor(ensemble_of(member), input_shape=SHAPE)),
            (
                "the teacher",
                lambda member, images: swe.train(
                    ensemble_of(Network()), batches(), hooks=[swe.Distillation(member, weight=0.5)]
                ),
            ),
            (
                "the objective of member 'it'",
                lambda member, images: swe.train(ensemble_of(member), batches(), CONFIG, objective=squares),
            ),
        )
    ],
    "a lazy layer": [(lambda _: ensemble_of(nn.Sequential(nn.LazyLinear(3))), r"it: 0\.weight has no shape yet")],
    "a parameter on the meta device": [(lambda _: ensemble_of(on_meta()), "it.first.weight is on the meta device")],
    "two dtypes": [(lambda _: ensemble_of(Network().half()), r"of one type: other\.first\.weight has torch\.float32")],
    "scripted by": [(lambda _: ensemble_of(torch.jit.script(Tied())), "its weights cannot be exchanged")],
    "wrapped by `DataParallel`": [
        (lambda _: ensemble_of(nn.DataParallel(Network())), r"DataParallel: give its \.module")
    ],
    "an ensemble, or a member": [
        (lambda _: ensemble_of(ensemble_of(Network())), "member 'it' holds an ensemble: give the ensemble's members"),
        (lambda _: ensemble_of(member_of_an_ensemble()), "member 'it' has no first.weight: .*materialize"),
    ],
    "a class, a name, None": [
        (lambda _: ensemble_of(Network), "got the class Network: call it"),  # type: ignore[arg-type]
        (lambda _: ensemble_of("resnet18"), "got 'resnet18': swe.build_member makes"),  # type: ignore[arg-type]
        (lambda _: ensemble_of(None), "got NoneType"),  # type: ignore[arg-type]
    ],
    "everything frozen": [
        (lambda _: swe.SuperWeightEnsemble([Network().requires_grad_(False)], budget=0.9), "are frozen"),
        (lambda _: swe.SuperWeightEnsemble([Unshared()], budget=0.9), "fc.weight is the classifier's"),
        (lambda _: swe.SuperWeightEnsemble([parametrized()], budget=0.9), "what a weight is computed from"),
    ],
    "members of different classes": [
        (lambda _: ensemble_of(Network(5)), "same classes; their heads have it: 5, other: 3")
    ],
    "one class": [
        (
            lambda folder: swe.train(swe.SuperWeightEnsemble([Network(1)], budget=0.9), batches(), CONFIG),
            "two classes or more",
        )
    ],
    "answers no tensor": [
        (lambda folder: train_with(Doing(after=lambda one: "text"), folder), "one tensor .*got str; select= picks it"),
    ],
    "answers that depend on nothing": [
        (lambda folder: train_with(Doing(after=torch.detach), folder), "the loss of member 'it' depends on nothing")
    ],
    "sparse, expanded": [
        (lambda folder: train_with(Stateful(torch.eye(4).to_sparse()), folder), "'members.it.odd' is sparse"),
        (lambda folder: train_with(Stateful(torch.ones(1).expand(4)), folder), "'members.it.odd' is expanded"),
        (lambda folder: train_with(Extra(), folder), "_extra_state' is of the type dict"),
    ],
    "a head, buffer or layer exchanged": [
        (
            lambda folder: swe.train(with_head(ensemble_of(Network())), batches(), CONFIG),
            rf"'it' {CHANGED}.*fc.weight is \(5, 8\)",
        ),
        (exchanged(lambda one: setattr(one, "fc", nn.Linear(8, 5))), rf"'it' {CHANGED}.*fc.weight is \(5, 8\)"),
        (exchanged(lambda one: one.register_buffer("more", torch.zeros(2))), rf"'it' {CHANGED}.*more is \(2,\)"),
        (exchanged(lambda one: setattr(one, "norm", nn.Identity())), rf"'it' {CHANGED}"),
        (exchanged(lambda one: setattr(one, "second", nn.Conv2d(8, 8, 3))), rf"'it' {CHANGED}.*second.weight is"),
    ],
    "a module or parameter put on the ensemble": [
        (beside(lambda ensemble: setattr(ensemble, "more", nn.Linear(2, 2))), "'more' beside its bank and members"),
        (
            beside(lambda ensemble: ensemble.register_buffer("more", torch.zeros(2))),
            "'more' beside its bank and members, which nothing would read again",
        ),
    ],
    "`ensemble.members[name] = ...`": [
        (changed(lambda members: members.__setitem__("it", Network())), f"member 'it' {FIXED}"),
        (changed(lambda members: members.__setitem__("new", Network())), f"member 'new' {FIXED}"),
        (changed(lambda members: members.__delitem__("it")), f"member 'it' {FIXED}"),
        (changed(lambda members: members.pop("it")), f"member 'it' {FIXED}"),
        (changed(lambda members: members.clear()), FIXED),
        (changed(lambda members: members.update({"new": Network()})), f"member 'new' {FIXED}"),
        (changed(lambda members: setattr(members, "it", Network())), f"member 'it' {FIXED}"),
        (changed(lambda members: delattr(members, "it")), f"member 'it' {FIXED}"),
        (changed(lambda members: members.add_module("new", Network())), f"member 'new' {FIXED}"),
    ],
}


@pytest.mark.parametrize("line", REFUSED)
def test_members_that_are_refused(line: str, tmp_path: Path) -> None:
    for place, (act, message) in enumerate(REFUSED[line]):
        assert_refused(message, act, tmp_path / str(place))


def test_every_line_of_the_page_is_tested() -> None:
    """Each line begins as a case does; seven have a test of their own, two in tests/training/test_any_batch.py."""
    lines = [
        line[2:] for line in re.findall(r"^\| .*$", PAGE, re.MULTILINE) if not line.startswith(("| member ", "| ---"))
    ]
    own = ("`torch.compile`d", "another dtype than", "a module, buffer or network that two members share")
    own = (*own, "takes several inputs", "answers several tensors")
    cases = (*LIVES, *REFUSED, *own, "a weight read from a copy", "called from several threads")
    assert [line for line in lines if not line.startswith(cases)] == []
    assert [case for case in cases if not any(line.startswith(case) for line in lines)] == []
