"""The error for users' mistakes, sentences on values that a type refuses, and the exception that a signal raises."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import ValidationError


_MOST_CHARACTERS = 1600
_Named = TypeVar("_Named", bound=Callable[..., Any])
# Other libraries' words for our options, spelled too unlike ours to be found; the first known one of several is meant.
_SYNONYMS = {
    "16": "float16 bfloat16", "16_mixed": "float16 bfloat16", "32": "float32", "32_true": "float32",
    "accumulate_grad_batches": "micro_batches", "activation_checkpointing": "recompute", "alpha": "weight",
    "amp": "precision auto", "bf16": "bfloat16", "bf16_mixed": "bfloat16", "bf16_true": "bfloat16", "bs": "batch_size",
    "data_dir": "folder", "dir": "folder", "directory": "folder", "dtype": "precision",
    "fp16": "float16 bfloat16", "fp32": "float32",
    "full": "float32", "gpu": "cuda", "gradient_accumulation_steps": "micro_batches",
    "gradient_checkpointing": "recompute", "half": "float16 bfloat16", "input_size": "image_size",
    "lr": "learning_rate", "max_epochs": "epochs", "mixed_precision": "precision", "mps": "cpu", "multistep": "step",
    "n_epochs": "epochs", "num_layers": "depth", "num_parameters": "budget", "padding": "crop_padding",
    "params": "budget", "path": "folder", "random_crop": "crop_padding", "resolution": "image_size", "root": "folder",
    "size": "image_size", "sync_bn": "sync_batch_norm", "tau": "temperature", "tf32": "float32",
    "val_split": "validation_fraction", "wd": "weight_decay", "widen_factor": "width", "workers": "num_workers",
}  # fmt: skip


class SuperWeightError(ValueError):
    """An error that a user can mend: what was given, what was expected, where, and the remedy, in one or two lines.

    A message of more than a few lines, such as one that quotes a file, is shown without its middle.

    Attributes:
        names_place: Whether the message says itself which file it is about.
    """

    names_place = False

    def __str__(self) -> str:
        text = super().__str__()
        half = _MOST_CHARACTERS // 2
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


@contextmanager
def naming(*places: Path) -> Iterator[None]:
    """Begin each SuperWeightError that is raised inside with the paths being read, unless it names one of them."""
    try:
        yield
    except SuperWeightError as error:
        if error.names_place or any(str(place) in str(error) for place in places):
            raise
        raise SuperWeightError(f"{', '.join(map(str, places))}: {error}") from error


def unknown_name(what: str, given: str, known: Iterable[str]) -> SuperWeightError:
    """An error for a name that no registry holds, with the nearest one that it does hold.

    Example:
        >>> print(unknown_name("data set", "cifra10", ["cifar10", "digits"]))
        unknown data set 'cifra10': did you mean 'cifar10'? Known: cifar10, digits
    """
    names = sorted(known)
    meant = _SYNONYMS.get(str(given).lower().replace("-", "_"), "").split()
    letters = {_letters(name): name for name in names}
    close = [letters[one] for one in difflib.get_close_matches(_letters(str(given)), letters, n=5, cutoff=0.5)]
    near = [name for name in meant if name in names] or close
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(names) > 20:
        others = [name for name in close if name != near[0]]
        listed = f"Also near: {', '.join(others)}" if others else f"{len(names)} are known"
    else:
        listed = f"Known: {', '.join(names) or 'none'}"
    return SuperWeightError(f"unknown {what} {given!r}: {hint}{listed}")


def _letters(name: str) -> str:
    """A name in lower case without the marks that separate its words: ``CIFAR-10`` is ``cifar10``."""
    return "".join(mark for mark in name.lower() if mark.isalnum() or mark in "/.")


class Problem(NamedTuple):
    """A value that a type refuses: its path, a sentence on it, pydantic's name for the problem, and the value."""

    path: tuple[int | str, ...]
    said: str
    kind: str
    given: Any

    @property
    def where(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def key(self) -> str:
        """The last key of the path, which may end in the place in a list."""
        return next((part for part in reversed(self.path) if isinstance(part, str)), "value")

    @property
    def got(self) -> str:
        """The given value, to end the sentence; empty where the sentence has it already or no value was given."""
        complete = self.kind in ("value_error", "missing", *UNKNOWN_KEY) or self.said.startswith("unknown ")
        return "" if complete else f" (got {self.given!r:.200})"

    def __str__(self) -> str:
        """A sentence with the path and the value, such as ``epochs must be at least 1 (got 0)``."""
        where = self.where
        if self.said.startswith(f"unknown {self.key} "):  # the sentence names the key itself
            where = where.rpartition(self.key)[0].removesuffix(".")
        between = " " if self.said.startswith("must be") else ": "
        return f"{where}{between * bool(where)}{self.said}{self.got}"


_TAG = re.compile(
    r"(int|float|str|bool|constrained-\w+|(literal|dict|list|tuple|mapping|function-\w+)\[.*\])$"
)  # what pydantic puts into a path for an alternative of a union
_PLAIN = {
    "Input should be": "must be", "Value error, ": "", "greater than or equal to": "at least",
    "less than or equal to": "at most", "a valid integer": "a whole number", "a valid number": "a number",
    "a valid boolean": "true or false", "a valid string": "a text", "a valid tuple": "a list",
    "a valid list": "a list", "a valid array": "a list", "a valid dictionary": "settings by name",
}  # fmt: skip
_PLAINER = re.compile("^Value error, |" + "|".join(_PLAIN))
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def first_problem(error: ValidationError, tags: Collection[str] = (), before: Collection[str] = ()) -> Problem:
    """The first problem in an error of pydantic, for a message; an unknown name comes with the nearest known one."""
    found = error.errors()
    first = next((one for one in found if one["type"] in before), found[0])
    # pydantic tries all alternatives of a union; their tags, and the ``tags`` that choose one, are no keys of the file.
    of_union = [isinstance(part, str) and bool(_TAG.match(part)) for part in first["loc"]]
    alternatives = [first]
    if any(of_union):
        place = of_union.index(True)
        alternatives = [one for one in found if one["loc"][:place] == first["loc"][:place]]
        first = max(alternatives, key=lambda one: len(one["loc"]))  # the first of the deepest
        alternatives = [one for one in alternatives if len(one["loc"]) == len(first["loc"]) == place + 1] or [first]
    path = tuple(part for part in first["loc"] if not (part in tags or (isinstance(part, str) and _TAG.match(part))))
    texts = [_PLAINER.sub(lambda found: _PLAIN[found[0]], str(one["msg"])) for one in alternatives]
    said = " or ".join([texts[0], *(text.removeprefix("must be ") for text in texts[1:])])
    said = said.replace("a whole number or a number", "a number")
    names = next((one["ctx"]["expected"] for one in alternatives if one["type"] == "literal_error"), None)
    problem = Problem(path, said, first["type"], first["input"])
    if names is not None and isinstance(problem.given, str):
        nearest = str(unknown_name(problem.key, problem.given, re.findall(r"'([^']*)'", names)))
        problem = problem._replace(said=nearest if len(alternatives) == 1 or "did you mean" in nearest else said)
    return problem


def check_number(
    what: str,
    value: Any,
    *,
    whole: bool = False,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse an option that is not a finite number within its bounds or, with ``whole``, not a whole one.

    Example:
        >>> check_number("temperature", 2, above=0)
        >>> try:
        ...     check_number("epochs", 0.5, whole=True, least=1)
        ... except SuperWeightError as error:
        ...     print(error)
        epochs must be a whole number, at least 1; got 0.5
    """
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if (
        is_number
        and math.isfinite(value)
        and (
            (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        )
    ):
        return
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    limits = " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)
    if least is not None and most is not None:
        limits = f"from {least:,} to {most:,}"
    kind = "a whole number" if whole else "a finite number"
    raise SuperWeightError(f"{what} must be {kind}{', ' * bool(limits)}{limits}; got {value!r:.80}")


def names_options(what: _Named) -> _Named:
    """Make a class or function raise a SuperWeightError, with the nearest option, for a call that does not fit it.

    A pydantic dataclass also raises one for a value that a field refuses.

    Example:
        >>> @names_options
        ... def warm_up(*, num_steps: int = 5) -> int:
        ...     return num_steps
        >>> try:
        ...     warm_up(num_step=3)
        ... except SuperWeightError as error:
        ...     print(error)
        unknown option of warm_up 'num_step': did you mean 'num_steps'? Known: num_steps
    """
    call: Callable[..., Any] = what.__init__ if isinstance(what, type) else what  # type: ignore[misc]
    signature, num_own = inspect.signature(what), int(isinstance(what, type))  # a class's signature lacks self
    taken = [one for one in signature.parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    known = [one.name for one in taken]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())  # and checks them itself
    by_name = next((one.name for one in taken if one.kind is one.KEYWORD_ONLY), "")
    # Any other ValueError raised inside the call has nothing to do with its options.
    refusals = (TypeError, ValueError) if hasattr(what, "__pydantic_validator__") else (TypeError,)

    @wraps(call)  # keeps the signature; of a class, only the constructor is replaced
    def named(*given: Any, **options: Any) -> Any:
        try:
            return call(*given, **options)
        except refusals as refusal:
            try:
                signature.bind(*given[num_own:], **options)
            except TypeError as error:
                by_position = "positional" in str(error)
                unknown = [option for option in options if option not in known]
                if unknown and not (takes_any and by_position):
                    raise unknown_name(f"option of {what.__name__}", unknown[0], known) from None
                remedy = f": write options by name, such as {by_name}=..." if by_position and by_name else ""
                raise SuperWeightError(f"{what.__name__}: {error}{remedy}") from None
            if isinstance(refusal, TypeError):
                raise
            raise SuperWeightError(str(first_problem(cast("ValidationError", refusal)))) from None

    if not isinstance(what, type):
        return named  # type: ignore[return-value]
    what.__init__ = named  # type: ignore[misc]
    return what


class TrainingStopped(KeyboardInterrupt):
    """A signal ended a training, which saves its state first where it can.

    Attributes:
        signal: Number of the signal.
        saved: Whether there is a checkpoint of this very step.
    """

    def __init__(self, message: str, number: int, saved: bool = False) -> None:
        super().__init__(message)
        self.signal = number
        self.saved = saved


def stop_now(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler that ends what runs at once; the next signal of this number ends the process."""
    signal.signal(number, signal.SIG_DFL)
    # The exception may be lost: Python drops one that is raised while it frees an object.
    raise TrainingStopped(f"stopped by {signal.Signals(number).name}", number)
