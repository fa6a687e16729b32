"""Which tensors of a network the bank generates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Union, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage import ONLY_FIELDS

# Bounds on what a file may say, checked before anything is computed; plans made in memory are not checked.
MOST_PARAMETERS = 2**36  # trainable scalars, of a plan or a budget
MOST_SLOTS_OF_KERNELS = 2**7  # of a cluster of several kernels, which compares each slot with all before it
MOST_TARGETS = 2**20
MOST_TEMPLATES = 2**12  # of a slot
_MOST_PARTS = 16  # of one tensor

Name = Annotated[str, Field(max_length=4096)]
StoredShape = Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(min_length=2, max_length=8)]
Kernels = Literal["apart", "centre"]
KERNELS: tuple[str, ...] = get_args(Kernels)
Members = Union[Mapping[str, nn.Module], Sequence[tuple[str, nn.Module]], Sequence[nn.Module]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_DENSE = ("linear", "conv1d", "conv2d", "conv3d")  # kinds whose weight is a matrix, or one for each kernel position
_FUSED = {"qkv": 3, "Wqkv": 3, "to_qkv": 3, "qkv_proj": 3, "in_proj_weight": 3, "kv": 2, "to_kv": 2}  # projections
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_COMPUTED_FROM = ("_orig", "_g", "_v")  # suffixes of what prune, spectral_norm and weight_norm compute a weight from
_NO_MEMBERS: dict[type[nn.Module], str] = {
    torch.jit.ScriptModule: "its weights cannot be exchanged; give the network that it was made of",
    nn.DataParallel: "give its .module; swe.train runs on several devices by itself",
    nn.parallel.DistributedDataParallel: "give its .module; swe.train runs in several processes by itself",
}
_HEAD_NAMES = ("fc", "classifier", "head", "heads", "linear", "output", "out", "logits")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedTensor:
    """One generated tensor, or one of the parts that a fused one is generated in.

    Attributes:
        member: Name of the member that reads it.
        names: Name of the parameter in the member, then the names tied to it.
        part: Index and count of equal parts of its rows, such as the query, key and value of an attention projection;
            None where it is whole.
    """

    __pydantic_config__ = ONLY_FIELDS

    member: Name
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    part: tuple[Annotated[int, Field(ge=0, lt=_MOST_PARTS)], Annotated[int, Field(ge=2, le=_MOST_PARTS)]] | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def label(self) -> str:
        part = "" if self.part is None else f"[{self.part[0] + 1}/{self.part[1]}]"
        return f"{self.member}.{self.name}{part}"

    def of(self, whole: Tensor) -> Tensor:
        """View of this part of a tensor that has the shape of the member's parameter (a weight, a gradient)."""
        if self.part is None:
            return whole
        index, count = self.part
        return whole.unflatten(0, (count, -1))[index]

    def as_layer(self, made: Tensor) -> Tensor:
        """View of a tensor that a bank has made, in the shape of its layer."""
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(GeneratedTensor):
    """One weight tensor of a member that the bank generates.

    Attributes:
        kind: Kind of the layer that reads it: ``linear``, ``conv2d``, ``grouped conv2d``, ``depthwise conv2d``,
            ``gru``, ``lstm``, ... SuperWeights share templates among targets of one family alone.
        shape: (out, in, *kernel), as the layer stores it (grouped: in is in / groups); of a part, its rows alone.
    """

    kind: Name
    shape: StoredShape

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    def family(self, kernels: Kernels = "apart") -> tuple[str, tuple[int, ...]]:
        """Kind and kernel that targets of a cluster share; one family for all plain matrices.

        Plain matrices are linear layers, projections and convolutions of kernel 1. With kernels ``centre``, the family
        is the kind alone, and linear layers and ungrouped convolutions are one family.
        """
        if kernels == "centre":
            return ("dense" if self.kind in _DENSE else self.kind), ()
        is_matrix = self.kind in _DENSE and math.prod(self.kernel) == 1
        return ("matrix", ()) if is_matrix else (self.kind, self.kernel)


def named_members(members: Members) -> dict[str, nn.Module]:
    """Check the members and return them by name, in the order given; without names they are ``member0``, ..."""
    if isinstance(members, nn.Module):
        as_members = {nn.ModuleDict: "dict(members.items())", nn.ModuleList: "list(members)"}
        remedy = as_members.get(type(members), "{'name': module} or [module]")
        raise SuperWeightError(
            f"members must be several networks, by name or in a list; got one {type(members).__name__}: write {remedy}"
        )
    if not isinstance(members, Iterable) or isinstance(members, (str, set, frozenset)):
        raise SuperWeightError(
            f"members must be a mapping of names to modules, or a list of modules; got {_described(members)}"
        )
    pairs: list[Any] = list(members.items()) if isinstance(members, Mapping) else list(members)
    if not pairs:
        once = "" if isinstance(members, Sized) else ", or what gives them has given them before: write list(...)"
        raise SuperWeightError(f"an ensemble needs at least one member; none was given{once}")
    if all(isinstance(member, nn.Module) for member in pairs):
        pairs = [(f"member{index}", module) for index, module in enumerate(pairs)]
    found: dict[str, nn.Module] = {}
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise SuperWeightError(
                f"members must all be modules, or all (name, module) pairs; got {_described(pair)} among them"
            )
        name, module = pair
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise SuperWeightError(
                f"{name!r} cannot name a member: use a non-empty string without dots that is no method of a module"
            )
        if not isinstance(module, nn.Module):
            raise SuperWeightError(f"member {name!r} must be a torch.nn.Module; got {_described(module)}")
        for part, (kind, remedy) in itertools.product(module.modules(), _NO_MEMBERS.items()):
            if isinstance(part, kind):
                raise SuperWeightError(f"member {name!r} is or holds a {type(part).__name__}: {remedy}")
        if name in found:
            raise SuperWeightError(f"two members are named {name!r}: give each a name of its own")
        found[name] = module
    return found


def _described(given: object) -> str:
    """What was given in place of a module, and how to make a module of it."""
    if isinstance(given, type):
        return f"the class {given.__name__}: call it, {given.__name__}(...)"
    if isinstance(given, str):
        return f"{given!r:.80}: swe.build_member makes a network of a registry name"
    kind = type(given).__name__
    return f"a {kind}: call it" if callable(given) and not isinstance(given, nn.Module) else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldParameter:
    """A parameter under one of its names, and the layer that holds it."""

    member: str
    layer_name: str
    layer: nn.Module
    local: str  # its name in the layer
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        return f"{self.layer_name}.{self.local}" if self.layer_name else self.local

    def matches_any(self, patterns: Iterable[str]) -> bool:
        """Whether a glob names the parameter or its layer, with or without the member."""
        plain = [self.layer_name, self.name]
        spellings = plain + [f"{self.member}.{one}" for one in plain] * bool(self.member)
        return any(matches(spellings, pattern) for pattern in patterns)


def _held_parameters(module: nn.Module, member: str) -> Iterator[_HeldParameter]:
    """Every parameter of a module, under each of its names."""
    for layer_name, layer in module.named_modules(remove_duplicate=False):
        for local, parameter in layer._parameters.items():
            if parameter is not None:
                yield _HeldParameter(
                    member=member, layer_name=layer_name, layer=layer, local=local, parameter=parameter
                )


def find_targets(
    module: nn.Module, member: str = "", *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Target, ...]:
    """Find the weight tensors of a network that a bank can generate, in construction order.

    Taken: convolutions of one to three dimensions (transposed, grouped and depthwise ones too), linear
    layers, attention projections, the matrices of recurrent layers and cells, and the ``weight`` of a module class
    outside ``torch.nn`` that has two to five dimensions. Left: the classifier head, norms, embeddings, biases, frozen
    parameters. A module outside ``torch.nn`` counts as a norm or embedding if it subclasses one, is called one
    (``*Norm*``, ``*Embed*``), or has a weight with only one dimension larger than one.
    A tensor that several layers hold is one target with several names; a tensor that fuses several projections
    (``qkv``, ``kv``, ``in_proj_weight``) gives a target for each of them.

    Args:
        module: Any network.
        member: Name of the network in the ensemble; globs see ``member.layer`` as well as ``layer``.
        include: Globs of layer or parameter names to take as well (the head, an embedding, a free parameter
            of two or more dimensions).
        exclude: Globs of layer or parameter names to leave to the member; stronger than ``include``.

    Raises:
        SuperWeightError: A lazy layer without shape; an embedding that a bank cannot generate (``max_norm``,
            ``sparse``, ``padding_idx``).

    Example:
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> [target.name for target in find_targets(mlp)]
        ['0.weight', '2.weight']
        >>> [target.name for target in find_targets(mlp, include=["4"], exclude=["0"])]
        ['2.weight', '4.weight']
    """
    head = head_layers(module)
    names: dict[int, list[str]] = {}
    taken: dict[int, tuple[tuple[int, ...], str, int]] = {}
    left: set[int] = set()
    for held in _held_parameters(module, member):
        key, parameter = id(held.parameter), held.parameter
        if isinstance(parameter, UninitializedParameter):
            raise SuperWeightError(
                f"{member or 'the module'}: {held.name} has no shape yet; run a batch through the lazy layer first"
            )
        names.setdefault(key, []).append(held.name)
        if parameter.ndim < 2 or not parameter.requires_grad or not parameter.is_floating_point():
            continue
        kind = _kind(held.layer, held.local, tuple(parameter.shape))
        if held.matches_any(exclude):
            left.add(key)
        elif (kind and id(held.layer) not in head) or held.matches_any(include):
            kind = kind or ("embedding" if isinstance(held.layer, _TABLES) else f"tensor{parameter.ndim}d")
            taken.setdefault(key, (tuple(parameter.shape), kind, _num_parts(held, kind)))
    _check_tables(module, member, taken.keys() - left)
    return tuple(
        Target(
            member=member,
            names=tuple(dict.fromkeys(names[key])),
            part=None if count == 1 else (index, count),
            shape=(shape[0] // count, *shape[1:]),
            kind=kind,
        )
        for key, (shape, kind, count) in taken.items()
        if key not in left
        for index in range(count)
    )


def why_not_taken(
    members: Mapping[str, nn.Module], *, include: Sequence[str], exclude: Sequence[str]
) -> dict[str, list[str]]:
    """Tensors of two or more dimensions that are no targets, by the reason."""
    found: dict[str, list[str]] = {}
    for member, module in members.items():
        targets = find_targets(module, member, include=include, exclude=exclude)
        taken, head = {name for target in targets for name in target.names}, head_layers(module)
        for held in _held_parameters(module, member):
            if held.parameter.ndim >= 2 and held.name not in taken:
                reason = _why_left(held, id(held.layer) in head, exclude)
                found.setdefault(reason, []).append(f"{member}.{held.name}")
    return found


def _why_left(held: _HeldParameter, is_of_head: bool, exclude: Sequence[str]) -> str:
    if held.matches_any(exclude):
        return "excluded: exclude less"
    if isinstance(held.layer, nn.utils.parametrize.ParametrizationList) or held.local.endswith(_COMPUTED_FROM):
        return (
            "what a weight is computed from (weight norm, parametrizations, pruning), and stays its member's own: "
            "take that off the layer to share it"
        )
    if not held.parameter.is_floating_point():
        return f"{str(held.parameter.dtype).removeprefix('torch.')}, which no bank generates"
    if not held.parameter.requires_grad:
        return "frozen: requires_grad_() before the ensemble is made"
    if is_of_head:
        return "the classifier's: include it by name"
    return "a norm's, an embedding's or a free parameter's: include it by name"


def check_patterns(members: Mapping[str, nn.Module], patterns: Iterable[str]) -> None:
    """Refuse globs that name no parameter of two or more dimensions, nor a layer that has one, of any member."""
    every = [held for name, module in members.items() for held in _held_parameters(module, name)]
    for pattern in patterns:
        named = [held for held in every if held.matches_any([pattern])]
        if any(held.parameter.ndim >= 2 for held in named):
            continue
        if named:
            raise SuperWeightError(
                f"the pattern {pattern!r} names nothing of two or more dimensions: norms, biases and scales stay their "
                "member's own in any case"
            )
        raise SuperWeightError(f"the pattern {pattern!r} names no layer of any member (write 'member.layer')")


def matches(spellings: Iterable[str], pattern: str) -> bool:
    """Whether a glob matches any of a tensor's names."""
    return any(fnmatchcase(spelling, pattern) for spelling in spellings)


def head_layers(module: nn.Module) -> dict[int, nn.Module]:
    """Layers of a network's classifier, by ``id``: those that timm names as such, else the last linear layer."""
    get_classifier = getattr(module, "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier()
        heads = found if isinstance(found, (tuple, list)) else (found,)
        layers = [layer for head in heads if isinstance(head, nn.Module) for layer in head.modules()]
        if layers:
            return {id(layer): layer for layer in layers}
    children = dict(module.named_children())
    # First inside children of usual names, then in the whole network.
    for scope in [children[name] for name in _HEAD_NAMES if name in children] + [module]:
        linears = [layer for layer in scope.modules() if isinstance(layer, nn.Linear)]
        if linears:
            return {id(linears[-1]): linears[-1]}
    return {}


def num_classes(module: nn.Module) -> int | None:
    """Number of classes, by ``num_classes`` or a head of a usual name; None where these tell nothing or disagree."""
    declared = getattr(module, "num_classes", None)
    children = dict(module.named_children())
    in_order = isinstance(module, nn.Sequential) and len(module) > 0 and isinstance(module[-1], nn.Linear)
    named = in_order or any(name in children for name in _HEAD_NAMES)
    rows = [layer.out_features for layer in head_layers(module).values() if isinstance(layer, nn.Linear)]
    found = {declared} if isinstance(declared, int) else set()
    found |= {rows[-1]} if rows and named else set()
    return found.pop() if len(found) == 1 else None  # where the two disagree, a head was replaced: trust neither


def _num_parts(held: _HeldParameter, kind: str) -> int:
    """Number of projections that a layer of a usual name fuses; 1 where it fuses none."""
    name = held.layer_name.rpartition(".")[2] if held.local == "weight" else held.local
    rows, _, *kernel = held.parameter.shape
    count = _FUSED.get(name, 1) if kind in _DENSE and math.prod(kernel) == 1 else 1
    return count if rows % count == 0 else 1


def _kind(layer: nn.Module, local: str, shape: tuple[int, ...]) -> str | None:
    ndim = len(shape)
    if isinstance(layer, _CONVOLUTIONS) and local == "weight":
        transposed = "transposed " if layer.transposed else ""
        base = f"{transposed}conv{ndim - 2}d"
        if layer.groups == 1:
            return base
        return f"depthwise {base}" if layer.groups == layer.in_channels else f"grouped {base}"
    if isinstance(layer, nn.Linear) and local == "weight":
        return "linear"
    if isinstance(layer, nn.MultiheadAttention) and local in _ATTENTION_WEIGHTS:
        return "linear"
    if isinstance(layer, _RECURRENT) and local.startswith("weight_"):
        if isinstance(layer, (nn.GRU, nn.GRUCell)):
            return "gru"
        return "lstm" if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else "rnn"
    if isinstance(layer, _TABLES) or type(layer).__module__.startswith("torch.nn."):
        return None
    name = type(layer).__name__.lower()
    if isinstance(layer, _NORMS) or "norm" in name or "embed" in name:
        return None
    if local == "weight" and 2 <= ndim <= 5 and math.prod(shape) > max(shape):
        return "linear" if ndim == 2 else f"conv{ndim - 2}d"
    return None


def _check_tables(module: nn.Module, member: str, taken: Collection[int]) -> None:
    """Refuse embeddings, also those tied to another layer, that do more with their weight than read it."""
    for held in _held_parameters(module, member):
        layer = held.layer
        if id(held.parameter) not in taken or not isinstance(layer, _TABLES):
            continue
        for option, given, why in (
            ("max_norm", layer.max_norm is not None, "which changes its weights in place"),
            ("sparse=True", layer.sparse, "whose gradients the bank cannot take"),
            ("padding_idx", layer.padding_idx is not None, "a row that stays as it is, which a generated one cannot"),
        ):
            if given:
                raise SuperWeightError(
                    f"{member or 'the module'}: {held.name} is an embedding with {option}, {why}: "
                    "leave it out (drop it from include, or name it in exclude)"
                )
