"""States of modules as files: what is written is what is read, or it is refused by the name of the tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.export import export_member
from superweight_ensembles.storage import check_savable, read_module, write_module, write_tensors


class Buffers(nn.Module):
    """A layer, and whatever buffers a function gives."""

    def __init__(self, **buffers: Tensor | None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


class Twice(nn.Module):
    """A convolution under two names, of weights that channels-last or a transposition make non-contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.embedding = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 4)
        self.head.weight = nn.Parameter(torch.randn(3, 4).t())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embedding(self.second(self.first(images)).mean((2, 3))))


class Extra(nn.Module):
    """State that is no parameter and no buffer."""

    def __init__(self, content: Any) -> None:
        super().__init__()
        self.linear, self.content = nn.Linear(3, 2), content

    def get_extra_state(self) -> Any:
        return self.content

    def set_extra_state(self, state: Any) -> None:
        self.content = state


class OneWay(Extra):
    set_extra_state = nn.Module.set_extra_state


def shared_views(overlap: int) -> Buffers:
    memory = torch.arange(10.0)
    return Buffers(a=memory[: 5 + overlap], b=memory[5:9], again=memory[5:9])


def covered_view() -> Buffers:
    memory = torch.arange(6.0).view(2, 3)
    return Buffers(a=memory[:, 1:], b=memory, turned=memory.t())


def flattened_lstm() -> nn.Module:
    """Parameters that stand one after the other in one block, as cuDNN wants them."""
    layer = nn.LSTM(2, 3)
    block = torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])
    start = 0
    for parameter in layer.parameters():
        parameter.data = block[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return layer


SAVED: dict[str, Callable[[], nn.Module]] = {
    "twice": Twice,
    "twice, channels-last": lambda: Twice().to(memory_format=torch.channels_last),
    "views apart": lambda: shared_views(0),
    "views that overlap": lambda: shared_views(2),
    "views and the whole": covered_view,
    "one block": flattened_lstm,
    "empty": lambda: Buffers(a=torch.zeros(0, 3), b=torch.zeros(5)[2:2], c=None),
    "scalars": lambda: Buffers(a=torch.tensor(3.0), b=torch.tensor(True), c=torch.arange(3)[1]),
    "types": lambda: Buffers(
        **{
            str(dtype)[6:].upper(): torch.ones(2).to(dtype)
            for dtype in (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.uint16)
        }
    ),
    "complex, conjugate": lambda: Buffers(a=torch.tensor([1 + 2j, 3 - 1j]).conj(), b=torch.tensor([1j, 2]).conj().imag),
    "strided": lambda: Buffers(a=torch.arange(9)[::2], b=torch.arange(8).unfold(0, 3, 1)),
    "extra tensors": lambda: Extra(torch.arange(3)),
    "weight-normed": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "inference": lambda: _made_in_inference(),
}


def _made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(3, 2)


def emptied(module: nn.Module) -> nn.Module:
    """A copy of other numbers, its sharing and layout kept."""
    other = copy.deepcopy(module)
    with torch.inference_mode():
        for tensor in other.state_dict().values():
            tensor.zero_()
    return other


@pytest.mark.parametrize("case", SAVED)
def test_what_is_written_is_read(tmp_path: Path, case: str) -> None:
    module = SAVED[case]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check_savable(module, "it")
    write_module(tmp_path / "a.safetensors", module)
    assert len(load_file(tmp_path / "a.safetensors")) <= len(before)
    other = emptied(module)
    with torch.inference_mode(case == "inference"):
        read_module(tmp_path / "a.safetensors", other)
    for state in (module.state_dict(), other.state_dict()):
        assert list(state) == list(before)
        for name, tensor in before.items():
            assert state[name].tolist() == tensor.tolist(), name


def test_conjugates_are_written_as_they_are_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.tensor([1 + 2j]).conj(), "b": torch.ones(1).expand(3)})
    found = load_file(tmp_path / "a.safetensors")
    assert found["a"].tolist() == [1 - 2j] and found["b"].tolist() == [1, 1, 1]


def test_tied_tensors_are_written_once_and_as_others_read_them(tmp_path: Path) -> None:
    network = Twice()
    write_module(tmp_path / "ours.safetensors", network)
    save_model(network, str(tmp_path / "theirs.safetensors"))
    assert list(load_file(tmp_path / "ours.safetensors")) == list(load_file(tmp_path / "theirs.safetensors"))
    for name in ("ours", "theirs"):
        other, loaded = emptied(network), emptied(network)
        load_model(other, str(tmp_path / f"{name}.safetensors"))
        read_module(tmp_path / f"{name}.safetensors", loaded)
        for found in (other, loaded):
            assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), network.state_dict().values()))


def lazy_quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear}, dtype=torch.qint8)


class Subclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
        self.register_buffer("ragged", ragged)


def clashing() -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_buffer("__metadata__", torch.zeros(2))
    return module


class Hooked(nn.Module):
    """Renames a key while it is saved, and not back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self._register_state_dict_hook(lambda _, state, *__: state.update(old=state.pop("linear.weight")))


class Failing(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise KeyError("nothing is saved")


class Unloadable(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        raise RuntimeError("not this one")


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sparse": (lambda: Buffers(a=torch.eye(2).to_sparse()), "'a' is sparse_coo: make it dense by to_dense"),
    "sparse rows": (lambda: Buffers(a=torch.eye(2).to_sparse_csr()), "'a' is sparse_csr"),
    "complex128": (lambda: Buffers(a=torch.zeros(2, dtype=torch.complex128)), "'a' is torch.complex128, which no"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), "'weight' is on the meta device and has no numbers"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "'0.weight' has no shape yet: run one batch through"),
    "expanded": (lambda: Buffers(a=torch.ones(1).expand(3)), r"'a' is expanded: give it memory of its own by \.clone"),
    "quantised": (lazy_quantised, r"_packed_params.* is of the type .*, which no safetensors file holds"),
    "nested": (Subclass, "'ragged' is jagged"),
    "extra state": (lambda: Extra({"a": 1}), "'_extra_state' is of the type dict, which no .*: get_extra_state gives"),
    "no extra state": (lambda: Extra(None), "'_extra_state' is of the type NoneType"),
    "a name": (clashing, "'__metadata__' has a name that safetensors keep"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_no_file_holds(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    module = make()
    with pytest.raises(swe.SuperWeightError, match=rf"member 'x' cannot be saved: tensor .*{message}"):
        check_savable(module, "member 'x'")
    with pytest.raises(swe.SuperWeightError, match=message):
        write_module(tmp_path / "a.safetensors", module)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneWay(torch.zeros(2)), "nothing takes '_extra_state': a set_extra_state"),
        (Hooked, "nothing takes 'old'"),
        (Failing, "raises KeyError.'nothing is saved'"),
        (Unloadable, "does not take its own state again: not this one"),
    ],
)
def test_states_that_are_not_taken_again(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(swe.SuperWeightError, match=f"member 'x' cannot be saved: .*{message}"):
        check_savable(make(), "member 'x'")


def test_a_check_between_forward_and_backward_changes_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loss = module(torch.randn(4, 3)).sum()
    versions = [tensor._version for tensor in module.state_dict().values()]
    check_savable(module, "it")
    assert [tensor._version for tensor in module.state_dict().values()] == versions
    assert not module._load_state_dict_post_hooks
    loss.backward()


def test_a_buffer_that_is_filled_later(tmp_path: Path) -> None:
    filled, fresh = Buffers(cache=None), Buffers(cache=None)
    filled.cache = torch.arange(4.0)
    write_module(tmp_path / "a.safetensors", filled)
    read_module(tmp_path / "a.safetensors", fresh)
    assert fresh.cache.tolist() == [0, 1, 2, 3] and torch.equal(fresh.linear.weight, filled.linear.weight)
    with pytest.raises(swe.SuperWeightError, match=r"nothing takes its tensor 'cache' \(register buffers in __init__"):
        read_module(tmp_path / "a.safetensors", Buffers())


def test_an_ensemble_of_a_layer_used_twice(tmp_path: Path) -> None:
    def members() -> dict[str, nn.Module]:
        torch.manual_seed(0)
        return {name: Twice().to(memory_format=torch.channels_last) for name in "ab"}

    ensemble = swe.SuperWeightEnsemble(members(), budget=1.0).eval()
    check_savable(ensemble, "the ensemble")
    ensemble.save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved", members=members()).eval()
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(loaded(images), ensemble(images))
    plain = ensemble.materialize("a").to(memory_format=torch.channels_last)
    path = export_member(plain, tmp_path / "a.safetensors", format="state-dict", input_shape=(3, 4, 4))
    other = members()["b"].to(memory_format=torch.contiguous_format)  # all that load_model takes
    load_model(other, str(path))
    with torch.no_grad():
        assert_close(other.eval()(images), plain(images))
