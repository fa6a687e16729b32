"""Surgery on any module: its copies, its parameters (also in an optimiser), its modes, and how it is called."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from superweight_ensembles.errors import SuperWeightError

_Copied = TypeVar("_Copied")
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc", "ALLOC_FAILED")
_REMEDIES = {
    "index out of range": "a token must be below the size of its embedding, an index below that of its dimension",
    "more than 1 value per channel": "a batch norm needs two rows: raise batch_size, or let the loader drop_last",
    "more than 1 spatial element": "an instance norm needs two pixels or more: give larger images",
    "view size is not compatible": "let it flatten by torch.flatten, or set channels_last to false",
}
_OF_TYPES = ("dtype", "scalar type", "same type")  # errors about types
_BACKENDS: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)


class _WithoutGraphs(TorchFunctionMode):
    """Lets ``deepcopy`` copy computed tensors, which torch refuses to copy, as their values alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copied(module: _Copied, named: str = "the network", memo: dict[int, Any] | None = None) -> _Copied:
    """A deep copy of a module, or of what holds one; tensors kept from a call are copied without their graphs."""
    try:
        with _WithoutGraphs():
            return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError, RecursionError) as error:
        if is_out_of_memory(error):
            raise
        raise SuperWeightError(
            f"{named} cannot be copied: {first_line(error)}; keep what Python cannot copy (locks, open files, "
            "generators that run) out of the module"
        ) from error


def check_functions(module: nn.Module, memo: Mapping[int, Any], named: str) -> None:
    """Refuse a copy of a module that holds functions which refer to the module that was copied."""
    # Python copies no function: one that closes over the network would go on with the original's parameters.
    for path, part in module.named_modules():
        for name, value in part.__dict__.items():
            held = [*value.values()] if isinstance(value, dict) else value
            for function in held if isinstance(held, (list, tuple)) else [held]:
                for found in _referents(function, 3):  # memo has each object's copy by the id of the original
                    if isinstance(found, (nn.Module, Tensor)) and memo.get(id(found), found) is not found:
                        raise SuperWeightError(
                            f"{named} holds a function, in {f'{path}.{name}'.lstrip('.')}, that refers to the network "
                            "given itself and not to the copy that is trained here: make it a method of a module, or "
                            "take it off (of a compiled forward: TrainConfig has compile=True)"
                        )


def _referents(function: object, depth: int) -> Iterator[object]:
    """Objects that a function refers to: what it closes over, globals, defaults, a method's object, what it wraps."""
    if isinstance(function, types.MethodType):
        held: list[object] = [function.__self__]
    elif isinstance(function, types.FunctionType):
        held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]
        held += [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a cell that is still empty
                held.append(cell.cell_contents)
    elif isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
    else:
        return
    for one in held:
        yield one
        if depth > 1:
            yield from _referents(one, depth - 1)


@contextmanager
def calling(member: str, inputs: object) -> Iterator[None]:
    """Make exceptions of a member's call name the member and its inputs; out-of-memory errors stay as they are."""
    try:
        with unchanged(f"member {member!r}", inputs):
            yield
    except SuperWeightError:
        raise
    except Exception as error:  # a member is anyone's code
        if is_out_of_memory(error):
            raise
        given = described(inputs)
        remedy = next((f": {what}" for sign, what in _REMEDIES.items() if sign in str(error)), "")
        if isinstance(inputs, Tensor) and not inputs.is_floating_point():
            remedy = remedy or ": pixels must be floating-point numbers, such as images.float() / 255"
        elif isinstance(inputs, Tensor) and torch.is_autocast_enabled(inputs.device.type):
            kind = str(torch.get_autocast_dtype(inputs.device.type)).removeprefix("torch.")
            if any(sign in str(error) for sign in _OF_TYPES):
                remedy = remedy or f": layers run in {kind} here, and precision='float32' runs them as they are"
        raise SuperWeightError(f"member {member!r} cannot take {given}: {first_line(error)}{remedy}") from error


def described(inputs: object) -> str:
    """The inputs of a member in a few words."""
    if isinstance(inputs, Tensor):
        return f"images {tuple(inputs.shape)} of {inputs.dtype}"
    parts = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs) if isinstance(inputs, tuple) else ()
    listed = ", ".join(
        f"{key} {tuple(one.shape)} of {one.dtype}" if isinstance(one, Tensor) else f"{key}" for key, one in parts
    )
    return f"inputs {listed:.200}" if listed else f"{inputs!r:.80}"


@contextmanager
def unchanged(named: str, inputs: object) -> Iterator[None]:
    """Refuse, at the end, a call that has written to its inputs, as far as torch counts writes."""
    if torch.compiler.is_compiling():
        yield
        return
    tensors = [one for one in tree_leaves(inputs) if isinstance(one, Tensor) and not one.is_inference()]
    versions = [tensor._version for tensor in tensors]
    try:
        yield
    finally:  # even instead of an exception of the call
        if [tensor._version for tensor in tensors] != versions:
            raise SuperWeightError(
                f"{named} changes its images in place, which others see too: let it work on images.clone(), and leave "
                "inplace=True out of its first layers"
            )


def call_with(function: Callable[..., Any], inputs: Any) -> Any:
    """Call a network: a dictionary of inputs holds its keywords, a tuple its arguments, all else is one argument.

    Example:
        >>> call_with(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3))).shape
        torch.Size([5, 4])
    """
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(*inputs) if isinstance(inputs, tuple) else function(inputs)


def answer_in(output: Any) -> Any:
    """The one tensor that a network answers with: the output, its ``logits``, or the first tensor that it holds.

    Example:
        >>> answer_in((torch.zeros(2, 3), None)).shape, answer_in({"loss": torch.zeros(()), "logits": torch.ones(1)})
        (torch.Size([2, 3]), tensor([1.]))
    """
    if isinstance(output, Tensor):
        return output
    mapping = isinstance(output, Mapping)
    named = output.get("logits") if mapping else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    held = output.values() if mapping else output if isinstance(output, (tuple, list)) else ()
    # What holds no tensor comes back as it is.
    return next((part for part in held if isinstance(part, Tensor)), output)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with its type where that says more."""
    line = next((line for line in map(str.strip, str(error).splitlines()) if line), "")[:240]
    plain = isinstance(error, (RuntimeError, ValueError)) and line
    return line if plain else f"{type(error).__name__}: {line}".rstrip(": ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory was left, on CUDA or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def set_parameter(owner: nn.Module, local: str, tensor: Tensor | None) -> None:
    """Put a tensor, or nothing, in the place of a parameter, so that the module's next call reads it."""
    owner._parameters[local] = tensor  # type: ignore[assignment]  # generated tensors are no parameters
    # Recurrent layers hold their tensors a second time, in the list that they hand to torch. Torch's own way to renew
    # that list would, on a GPU, first copy all weights into one block; and it keeps tensors that were taken away.
    if isinstance(owner, nn.RNNBase) and local in owner._flat_weights_names:
        index = owner._flat_weights_names.index(local)
        owner._flat_weights[index] = tensor
        owner._flat_weight_refs[index] = None if tensor is None else weakref.ref(tensor)  # type: ignore[arg-type]


def exchange_parameter(
    optimizer: torch.optim.Optimizer, before: nn.Parameter, after: nn.Parameter, carried: Callable[[Tensor], Tensor]
) -> None:
    """Replace ``before`` by ``after`` in an optimiser; ``carried`` makes each new moment of the old one."""
    for group in optimizer.param_groups:
        group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
    if before in optimizer.state:
        state = optimizer.state.pop(before)
        # State of other shapes, such as sums over rows, cannot be carried over: then all state is dropped.
        if any(isinstance(one, Tensor) and one.numel() > 1 and one.shape != before.shape for one in state.values()):
            return
        optimizer.state[after] = {
            name: carried(value) if isinstance(value, Tensor) and value.shape == before.shape else value
            for name, value in state.items()
        }


def buffers_as_now(module: nn.Module) -> Callable[[], None]:
    """A function that restores the buffers that a module has now; unchanged ones are not written to."""
    held = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]

    def put_back() -> None:
        with torch.no_grad():
            for part, name, buffer, values in held:
                if buffer.layout != torch.strided or not torch.equal(buffer, values):  # never expanded ones
                    buffer.copy_(values)
                part._buffers[name] = buffer

    return put_back


@contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Put every part back into its mode at the end, whatever modes are set meanwhile."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context."""
    with kept_modes(module):
        module.eval()
        yield


@contextmanager
def unfused_recurrence(module: nn.Module) -> Iterator[None]:
    """Have the recurrent layers of a module, where it has any, run step by step inside the context."""
    if not any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
        yield
        return
    # The FLOP counter does not know the fused calls, and cuDNN's fused call has no backward in evaluation mode.
    before = [(backend, backend.enabled) for backend in _BACKENDS]
    try:
        for backend in _BACKENDS:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in before:
            backend.enabled = enabled
