"""Ways to damage a file: bytes that flip, go and come, and JSON or YAML with something else in one of its places."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import yaml
from hypothesis import strategies as st

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**53, 2**63, 10**12, 10**18, 10**400, -(10**400), 0.0, -0.5, 0.5,
    1e308, -1e308, math.inf, -math.inf, math.nan, "", " ", "a", "0", "..", "../../etc/passwd", "/etc/passwd", "C:\\x",
    "\x00", "\x1b[31m", "\u202e", "$x$", "<script>", "[/]", "x" * 3000, [], {}, [[]], [None], {"": 0}, {"a": {"a": {}}},
    list(range(50)), [[[[[[[[]]]]]]]], "wide_resnet", "timm/vit_tiny_patch16_224", "nan", "1e999", "true", "~",
)  # fmt: skip
CHUNKS = (
    b"", b"\x00", b"\xff", b"\n", b" ", b"{", b"}", b"[" * 200, b"]", b'"', b",", b":", b"- ", b"&a ", b"*a", b"<<: ",
    b"0", b"9" * 30, b"e999", b"-", b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"NaN", b"Infinity", b"null", b"!!",
)  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """One to four edits: a bit flipped, a part cut out, a part put in or doubled, the end cut off."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "flip", "cut", "put", "double", "end")))
        at = draw(st.integers(0, max(len(made) - 1, 0)))
        length = draw(st.integers(0, 40))
        if kind == "flip" and made:
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del made[at : at + length]
        elif kind == "put":
            made[at:at] = draw(st.sampled_from(CHUNKS) | st.binary(max_size=8))
        elif kind == "double":
            made[at:at] = made[at : at + length]
        elif kind == "end":
            del made[at:]
    return bytes(made)


@st.composite
def damaged_data(draw: st.DrawFn, content: Any) -> Any:
    """Plain data with one to three places replaced, removed, renamed, doubled or swapped."""
    made = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(made) or [([made], 0)]))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "swap", "nudge")))
        value = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        if kind == "replace":
            holder[key] = value
        elif kind == "remove":
            del holder[key]
        elif kind == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "extra", "format", "name", "__class__", "\x1b", "x" * 300)))] = value
        elif kind == "add":
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "swap":
            other, place = draw(st.sampled_from(_places(made)))
            if not _holds(holder[key], other) and not _holds(other[place], holder):
                holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(holder[key])
        elif kind == "nudge" and type(holder[key]) in (int, float):
            holder[key] = holder[key] * draw(st.sampled_from((-1, 2, 1000, 10**9))) + draw(st.sampled_from((0, 1, -1)))
    return made


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a JSON file: damaged as data four times of five, else as bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(content))
    return json.dumps(draw(damaged_data(json.loads(content))), indent=1).encode()


@st.composite
def damaged_yaml(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a YAML file: damaged as data half of the time, else as bytes."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    return yaml.safe_dump(draw(damaged_data(yaml.safe_load(content))), allow_unicode=True).encode("utf-8", "replace")


def _places(content: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value below."""
    found: list[tuple[Any, Any]] = []
    left = [content]
    while left:
        value = left.pop()
        pairs = (
            list(value.items())
            if isinstance(value, dict)
            else list(enumerate(value))
            if isinstance(value, list)
            else []
        )
        found += [(value, key) for key, _ in pairs]
        left += [one for _, one in pairs]
    return found


def _holds(value: Any, holder: Any) -> bool:
    return value is holder or any(found is holder for found, _ in _places(value))
