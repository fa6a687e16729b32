"""Names as short as they stay clear: of members, of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import TextWrapper

_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def short_members(names: Iterable[str], limit: int = 12) -> dict[str, str]:
    """Each name with its middle cut out; all in full where two would become one.

    Example:
        >>> short_members(["wrn16-2", "convnextv2_tiny_in22k_384"])
        {'wrn16-2': 'wrn16-2', 'convnextv2_tiny_in22k_384': 'convne…k_384'}
    """
    given = list(dict.fromkeys(names))
    cut = {name: _cut(name, limit, tail=(limit - 1) // 2) for name in given}
    return cut if len(set(cut.values())) == len(given) else {name: name for name in given}


def short_layers(names: Iterable[str], limit: int = 16) -> dict[str, str]:
    """Parameter names without ``weight``, without a first part that all nested layers have, and without a long middle.

    Example:
        >>> short_layers(["stem.weight", "stages.0.0.conv1.weight", "stages.0.1.conv2.weight"])
        {'stem.weight': 'stem', 'stages.0.0.conv1.weight': '0.0.conv1', 'stages.0.1.conv2.weight': '0.1.conv2'}
    """
    given = list(dict.fromkeys(names))
    parts = {name: name.removesuffix(".weight").split(".") for name in given}
    nested = [own for own in parts.values() if len(own) > 2]
    if nested and len({own[0] for own in nested}) == 1:
        parts = {name: own[1:] if len(own) > 2 else own for name, own in parts.items()}
    cut = {name: _cut(".".join(own), limit, tail=limit - 5) for name, own in parts.items()}
    if len(set(cut.values())) < len(given):
        cut = {name: ".".join(own) for name, own in parts.items()}
    return cut if len(set(cut.values())) == len(given) else {name: name for name in given}


def split_label(label: str, members: Sequence[str]) -> tuple[str, str]:
    """Member and parameter name of a target's label; of an unknown member the name ends at the first point.

    Example:
        >>> split_label("resnet50.a1.conv1.weight", ["resnet50.a1"]), split_label("r18.conv1.weight", [])
        (('resnet50.a1', 'conv1.weight'), ('r18', 'conv1.weight'))
    """
    known = [member for member in members if label.startswith(f"{member}.")]
    member = max(known, key=len) if known else label.split(".")[0]
    return member, label[len(member) + 1 :]


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "layer"), counted(3, "set")
        ('1 layer', '3 sets')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def balanced(text: str, limit: int) -> str:
    """The text on as few lines as ``limit`` characters allow, all about as long; no word is broken.

    Example:
        >>> balanced("packed ensembles of four networks", 24).split("\\n")
        ['packed ensembles', 'of four networks']
    """
    lines = [
        TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap(text) for width in range(1, limit + 1)
    ]
    return "\n".join(next(own for own in lines if len(own) == len(lines[-1])))


def _cut(name: str, limit: int, *, tail: int) -> str:
    if len(name) <= limit:
        return name
    return name[: limit - tail - 1] + _ELLIPSIS + name[-tail:]
