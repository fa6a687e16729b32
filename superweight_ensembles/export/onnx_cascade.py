"""Predict with an exported cascade. Needs numpy and onnxruntime, and nothing of the library that exported it.

    from onnx_cascade import OnnxCascade

    cascade = OnnxCascade("cascade")
    answer = cascade(images)                  # float32 (B, C, H, W)
    answer.probabilities, answer.members_used, answer.confidence, answer.flops
    cascade(cascade.read("a.jpg", "b.png"))   # files of images; needs Pillow
    cascade.classes                           # their names, where they are known

Members run one after the other; after each, images whose prediction is sure enough leave, and only the others go on.
A prediction that is not a number is never sure enough. Shapes: B images, K classes.

Nothing outside the folder is read, whoever made it: files must be regular ones, of the sizes and checksums that
cascade.json gives; ONNX files are searched for tensors in other files before onnxruntime is given their bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = 2
_MOST_JSON = 2**20  # bytes
_MOST_MODEL = 2**31  # bytes: a protobuf message ends there
_MOST_MEMBERS = 1000
_MOST_CLASSES = 2**16
_LOGITS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_MOST_FIELDS = 2**21  # fields of one ONNX file that are read
# Where an ONNX file may hold tensors: field numbers of its protobuf messages, and the message that each holds.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
_OPERATION = 4  # field of a node: its type
_TEMPERATURES = (0.01, 100.0)  # from, to
_MOST_THRESHOLD = 2.0  # no confidence is above 1
# These tell onnxruntime that bytes are an ONNX file, and to look for external tensors where there can be none.
_CLOSED = {
    "session.load_model_format": "ONNX",
    "session.model_external_initializers_file_folder_path": f"{os.devnull}/none",
}
_LOG = logging.getLogger("onnx_cascade")
_PICTURES = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # Pillow's formats that run no other program
_TINY = np.float32(1e-30)
_ROUNDING = 1e-6
_CONFIDENCES = ("max_probability", "margin", "entropy", "agreement")


class Answer(NamedTuple):
    """Answers to B images; one that is not a number has confidence 0."""

    probabilities: np.ndarray  # mean (B, K) of the members that ran
    members_used: np.ndarray  # (B,)
    confidence: np.ndarray  # (B,)
    flops: np.ndarray  # (B,)


class Step(NamedTuple):
    """After one member: its name, the mean probabilities (B, K) so far, and FLOPs an image so far."""

    member: str
    probabilities: np.ndarray
    flops: int


class OnnxCascade:
    """The cascade of a folder.

    Args:
        folder: Folder that holds cascade.json and the ONNX files that it names.
        providers: Providers of onnxruntime, in order of preference; the CPU where None.
        session_options: ``onnxruntime.SessionOptions`` for every member, such as the number of threads. Entries that
            close other files to a model are added to it.

    Attributes:
        members: Names of the members, in the order in which they run.
        flops: FLOPs of an image, of each member.
        input_shape: Shape of one image.
        num_classes: Number of classes K.
        classes: Names of the classes; empty where they are not known.
        sessions: The onnxruntime session of each member.

    Raises:
        ValueError: Files that are missing, damaged, of another format, or outside the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        providers: Sequence[Any] | None = None,
        session_options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        folder = Path(folder)
        content = _read(folder / "cascade.json")
        policy = content["policy"]
        self.members: tuple[str, ...] = tuple(member["name"] for member in content["members"])
        self.flops: tuple[int, ...] = tuple(member["flops"] for member in content["members"])
        self.input_shape: tuple[int, ...] = tuple(content["input_shape"])
        self.num_classes: int = content["num_classes"]
        self._images: dict[str, Any] | None = content.get("images")
        self.classes: tuple[str, ...] = tuple((self._images or {}).get("classes", ()))
        self.confidence: str = policy["confidence"]
        self.temperatures: tuple[float, ...] = tuple(policy["temperatures"])
        self.thresholds = tuple(math.inf if value is None else float(value) for value in policy["thresholds"])
        self.monotone: bool = policy["monotone"]
        self.replaces = tuple(policy.get("replaces") or [None] * len(self.members))
        self.weights = tuple(map(tuple, policy.get("weights", [])))
        chosen = list(providers) if providers is not None else ["CPUExecutionProvider"]
        options = session_options or onnxruntime.SessionOptions()
        for key, value in _CLOSED.items():
            options.add_session_config_entry(key, value)
        self.sessions = [_session(folder, member, options, chosen) for member in content["members"]]
        for member, session in zip(content["members"], self.sessions):
            _check_signature(folder / member["file"], session, self.input_shape, self.num_classes)

    def __call__(self, images: np.ndarray) -> Answer:
        """Predict; no member sees an image that has left. Answers that are not numbers are logged.

        Args:
            images: float32 (B, *input_shape), preprocessed as in training.

        Raises:
            ValueError: Images of another shape or type.
        """
        self._check(images)
        size, last = len(images), len(self.members) - 1
        answer = Answer(
            probabilities=np.zeros((size, self.num_classes), np.float32),
            members_used=np.zeros(size, np.int64),
            confidence=np.zeros(size, np.float32),
            flops=np.zeros(size, np.int64),
        )
        left = np.arange(size)
        parts: dict[int, np.ndarray] = {}  # what is in the mean, by member
        kept = np.zeros((size, self.num_classes), np.float32)
        kept_confidence = np.full(size, np.nan, np.float32)
        for index in range(last + 1):
            if not left.size:
                break
            mean = self._add(parts, index, images)
            classes = np.stack([part.argmax(1) for part in parts.values()], axis=1)
            confidence = self._confidence(index, mean, classes)
            surer = ~(confidence >= kept_confidence) & ~np.isnan(kept_confidence)  # also surer than NaN
            earlier = surer if self.monotone else np.full(left.size, False)
            kept = np.where(earlier[:, None], kept, mean)
            kept_confidence = np.where(earlier, kept_confidence, confidence)
            stay = np.full(left.size, False) if index == last else ~(kept_confidence >= self.thresholds[index])
            leave = ~stay
            rows = left[leave]
            answer.probabilities[rows] = kept[leave]
            answer.members_used[rows] = index + 1
            answer.confidence[rows] = np.nan_to_num(kept_confidence[leave], nan=0.0)
            answer.flops[rows] = sum(self.flops[: index + 1])
            left, images, parts = left[stay], images[stay], {one: part[stay] for one, part in parts.items()}
            kept, kept_confidence = kept[stay], kept_confidence[stay]
        _warn_of_nan(answer.probabilities)
        return answer

    def stream(self, images: np.ndarray) -> Iterator[Step]:
        """Run member after member on all images, and yield the mean prediction after each; stop when you like.

        Args:
            images: float32 (B, *input_shape), preprocessed as in training.

        Raises:
            ValueError: Images of another shape or type.
        """
        self._check(images)
        mean = np.zeros((len(images), self.num_classes), np.float32)
        parts: dict[int, np.ndarray] = {}
        warned = False
        for index, name in enumerate(self.members):
            if len(images):
                mean = self._add(parts, index, images)
            warned = warned or _warn_of_nan(mean)
            yield Step(name, mean, sum(self.flops[: index + 1]))

    def read(self, *files: str | os.PathLike[str]) -> np.ndarray:
        """Read files of images: float32 (B, C, H, W), upright, their centre resized and normalised as in training.

        Pixels differ by about one level from those in training for a JPEG that is four times as large or more.

        Raises:
            ValueError: A file that is no image, or a cascade that was exported without ``images``.
        """
        if len(files) == 1 and isinstance(files[0], (list, tuple)):
            files = tuple(files[0])
        if self._images is None:
            raise ValueError("this cascade was exported without images=: give it arrays, preprocessed as in training")
        mean, std = (np.array(self._images[key], np.float32)[:, None, None] for key in ("mean", "std"))
        pool = self._images["pool"]
        channels, height, width = self.input_shape
        found = np.empty((len(files), *self.input_shape), np.float32)
        for row, file in enumerate(files):
            pixels = _pixels(file, (height * pool, width * pool), channels)
            if pool > 1:
                pixels = np.rint(pixels.reshape(channels, height, pool, width, pool).mean((2, 4)))
            found[row] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return found

    def _add(self, parts: dict[int, np.ndarray], index: int, images: np.ndarray) -> np.ndarray:
        """Run one more member, which may replace an earlier one; the mean (B, K) of the members so far."""
        own = self._probabilities(index, images)
        parts.pop(self.replaces[index], None)
        parts[index] = own
        total = np.zeros((len(images), self.num_classes), np.float32)
        for one, part in parts.items():
            total = total + (np.float32(self.weights[index][one]) * part if self.weights else part)
        return total if self.weights else total / np.float32(len(parts))

    def _probabilities(self, index: int, images: np.ndarray) -> np.ndarray:
        try:
            (logits,) = self.sessions[index].run(["logits"], {"images": images})
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise ValueError(
                f"member {self.members[index]!r} fails on {len(images)} images: {str(error)[:400]}"
            ) from None
        if logits.shape != (len(images), self.num_classes):
            raise ValueError(
                f"member {self.members[index]!r} must answer ({len(images)}, {self.num_classes}); got {logits.shape}"
            )
        return _softmax(logits.astype(np.float32, copy=False))

    def _confidence(self, index: int, mean: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Confidence (B,) of the mean prediction of the members up to ``index``, at its temperature."""
        temperature = self.temperatures[index]
        tempered = mean if temperature == 1 else _softmax(np.log(np.maximum(mean, _TINY)) / np.float32(temperature))
        best = tempered.max(1)
        if self.confidence == "max_probability":
            return best
        if self.confidence == "margin":
            ranked = np.partition(tempered, -2, axis=1)
            return ranked[:, -1] - ranked[:, -2]
        if self.confidence == "entropy":
            nats = -(tempered * np.log(np.maximum(tempered, _TINY))).sum(1)
            return np.maximum(1 - nats / np.float32(math.log(self.num_classes)), 0)
        votes = (classes == mean.argmax(1)[:, None]).sum(1).astype(np.float32)
        return (np.maximum(votes - 1, 0) + best) / np.float32(classes.shape[1])

    def _check(self, images: np.ndarray) -> None:
        expected = f"images must be a float32 array (B, {', '.join(map(str, self.input_shape))})"
        if not isinstance(images, np.ndarray):
            raise ValueError(f"{expected}; got {type(images).__name__}")
        if images.dtype != np.float32:
            raise ValueError(f"{expected}; got {images.dtype}: images.astype(numpy.float32)")
        if images.shape[1:] != self.input_shape or images.ndim < 2:
            raise ValueError(f"{expected}; got the shape {images.shape}")


def _pixels(file: str | os.PathLike[str], size: tuple[int, int], channels: int) -> np.ndarray:
    """The centre of a picture that has the proportions of (H, W), resized to it: uint8 (C, H, W)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=_PICTURES) as opened:
            picture = opened if opened.format == "TIFF" else ImageOps.exif_transpose(opened)
            if picture.mode in ("I", "F", "I;16", "I;16L", "I;16B", "I;16N"):
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel")
            if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB")
    except Exception as error:  # Pillow's plugins raise nearly anything on a broken file
        raise ValueError(f"cannot read the image {file}: {str(error)[:300]}") from None
    box = _centre(picture.width, picture.height, size)
    picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(*size, channels).transpose(2, 0, 1)


def _centre(width: int, height: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the largest centre with the proportions of (H, W), a square's in whole pixels."""
    if size[0] != size[1]:
        scale = min(height / size[0], width / size[1])
        across, down = scale * size[1], scale * size[0]
        return (width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2
    long = int(size[0] * max(width, height) / min(width, height))
    resized = (long, size[0]) if width >= height else (size[0], long)
    left, top = (round((length - size[0]) / 2.0) for length in resized)
    across, down = width / resized[0], height / resized[1]
    return left * across, top * down, (left + size[0]) * across, (top + size[0]) * down


def _warn_of_nan(probabilities: np.ndarray) -> bool:
    """Log how many answers (B, K) are not numbers, and return whether any is."""
    wrong = int((~np.isfinite(probabilities).all(1)).sum())
    if wrong:
        _LOG.warning(
            "%d of %d answers are not numbers: look for NaN or infinity in the images, or in a member's weights",
            wrong, len(probabilities),
        )  # fmt: skip
    return wrong > 0


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which is logged
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def _read(path: Path) -> dict[str, Any]:
    """The content of cascade.json, checked."""
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing: {path.parent} is no exported cascade")
    text = _content(path, _MOST_JSON)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not int or found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this loader reads {FORMAT}: take the loader exported with it")
    policy, members = content.get("policy"), content.get("members")
    few = isinstance(members, list) and 1 <= len(members) <= _MOST_MEMBERS
    _expect(path, "members", few and all(map(_is_member, members)))
    names = [one["name"] for one in members]
    _expect(path, "policy", isinstance(policy, dict) and policy.get("order") == names and len(set(names)) == len(names))
    _expect(path, "policy.confidence", policy.get("confidence") in _CONFIDENCES)
    _expect(path, "policy.monotone", isinstance(policy.get("monotone"), bool))
    temperatures, thresholds = policy.get("temperatures"), policy.get("thresholds")
    _expect(path, "policy.temperatures", _numbers(temperatures, len(members), *_TEMPERATURES))
    floats = [0 if one is None else one for one in thresholds] if isinstance(thresholds, list) else None
    _expect(path, "policy.thresholds", _numbers(floats, len(members) - 1, 0, _MOST_THRESHOLD))
    _expect(path, "policy.replaces", _is_replacing(policy.get("replaces", []), len(members)))
    _expect(path, "policy.weights", _are_weights(policy.get("weights", []), policy.get("replaces", []), len(members)))
    shape, classes = content.get("input_shape"), content.get("num_classes")
    _expect(path, "input_shape", isinstance(shape, list) and 1 <= len(shape) <= 8 and all(map(_is_count, shape)))
    _expect(path, "num_classes", _is_count(classes) and 1 < classes <= _MOST_CLASSES)
    _expect(path, "images", _are_images(content.get("images"), shape, classes))
    return content


def _are_images(images: Any, shape: list[int], num_classes: int) -> bool:
    """Whether this says how files of images of a shape are read; None, for not known, passes."""
    if images is None:
        return True
    if not isinstance(images, dict) or images.get("image_shape") != shape or len(shape) != 3:
        return False
    names, pool = images.get("classes"), images.get("pool")
    named = isinstance(names, list) and len(names) in (0, num_classes) and all(isinstance(one, str) for one in names)
    normalised = _numbers(images.get("mean"), shape[0], -1e6, 1e6) and _numbers(images.get("std"), shape[0], 1e-6, 1e6)
    sized = type(pool) is int and 1 <= pool <= 64 and shape[0] in (1, 3) and max(shape) * pool < 2**16
    return named and normalised and sized


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses one with a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _expect(path: Path, key: str, good: bool) -> None:
    if not good:
        raise ValueError(f"{path}: {key} is damaged or does not fit the other keys")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**50


def _is_member(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("file"), str)
        and _is_count(value.get("flops"))
        and _is_count(value.get("bytes"))
        and isinstance(value.get("sha256"), str)
    )


def _are_weights(rows: Any, replaces: list[int | None], count: int) -> bool:
    """For each exit one weight, 0 to 1, of every member so far, 1 together, and 0 for those that were replaced."""
    if not isinstance(rows, list) or len(rows) not in (0, count):
        return False
    for index, row in enumerate(rows):
        if not _numbers(row, index + 1, 0, 1) or abs(sum(row) - 1) > _ROUNDING:
            return False
        if any(one is not None and row[one] for one in replaces[: index + 1]):
            return False
    return True


def _is_replacing(values: Any, count: int) -> bool:
    if not isinstance(values, list) or len(values) not in (0, count):
        return False
    taken = [value for value in values if value is not None]
    earlier = (value is None or (_is_count(value) and value < index) for index, value in enumerate(values))
    return all(earlier) and len(set(taken)) == len(taken)


def _numbers(values: Any, count: int, least: float, most: float) -> bool:
    if not isinstance(values, list) or len(values) != count:
        return False
    known = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
    return known and all(least <= one <= most for one in values)  # false for NaN


def _session(
    folder: Path, member: dict[str, Any], options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    """The session of a member, made of exactly the exported bytes, which refer to no other file."""
    path = _inside(folder, member["file"])
    model = _content(path, _MOST_MODEL, member["bytes"])
    if hashlib.sha256(model).hexdigest() != member["sha256"]:
        raise ValueError(f"{path} does not have its checksum: the file is damaged or was changed")
    _check_within(path, model)
    _check_parsed(path, model)
    try:
        return onnxruntime.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise ValueError(f"{path} is no ONNX file that onnxruntime reads: {str(error)[:400]}") from None


def _check_signature(
    path: Path, session: onnxruntime.InferenceSession, input_shape: tuple[int, ...], num_classes: int
) -> None:
    """Refuse a model that does not take float32 images (B, *input_shape) and answer logits (B, K)."""
    inputs, outputs = session.get_inputs(), {one.name: one for one in session.get_outputs()}
    taken = [(one.name, one.type, list(one.shape)[1:]) for one in inputs]
    if taken != [("images", "tensor(float)", list(input_shape))] or isinstance(inputs[0].shape[0], int):
        raise ValueError(f"{path} must take images (batch, {input_shape}) of float32; it takes {str(taken)[:200]}")
    logits = outputs.get("logits")
    columns = logits.shape[1] if logits is not None and len(logits.shape) == 2 else 0  # a name where any number fits
    if logits is None or logits.type not in _LOGITS or (isinstance(columns, int) and columns != num_classes):
        answered = [(one.name, one.type, one.shape) for one in outputs.values()]
        raise ValueError(f"{path} must answer logits (batch, {num_classes}); it answers {str(answered)[:200]}")


def _content(path: Path, most: int, size: int | None = None) -> bytes:
    """Content of a regular file of ``size``, or of at most ``most`` bytes; both are checked before it is read."""
    try:
        if path.is_symlink() and not _in_hub_cache(path):
            raise ValueError(f"{path} is a link, which may lead anywhere: put the file itself there")
        # A pipe that nobody writes into is not waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path} is no regular file")
            if size is not None and found.st_size != size:
                raise ValueError(f"{path} has {found.st_size:,} bytes, and {size:,} were exported")
            if found.st_size > most:
                raise ValueError(f"{path} is longer than {most:,} bytes, which no such file is")
            return file.read(found.st_size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _in_hub_cache(path: Path) -> bool:
    # Links of the Hugging Face Hub's download cache: from REPOSITORY/snapshots/REVISION into REPOSITORY/blobs.
    revision = Path(os.path.realpath(path.parent))
    blobs = revision.parents[1] / "blobs" if revision.parent.name == "snapshots" else None
    return blobs is not None and Path(os.path.realpath(path)).parent == blobs


def _check_within(path: Path, model: bytes) -> None:
    """Refuse an ONNX file whose tensors or programs are in other files: a path in it could lead anywhere."""
    left, fields = [("model", 0, len(model))], 0
    while left:
        kind, at, end = left.pop()
        while at < end:
            fields += 1
            tag, at = _varint(model, at, end)
            field, wire = tag >> 3, tag & 7
            # Parsers differ on numbers longer than need be, on groups and on field number 0: all are refused.
            size, at = _varint(model, at, end) if wire == 2 else ({1: 8, 5: 4}.get(wire, 0), at)
            start = at
            number, at = _varint(model, at, end) if wire == 0 else (size, at + size)
            known = wire in (0, 1, 2, 5) and 1 <= field < 2**29
            if at > end or not known or fields > _MOST_FIELDS:
                raise ValueError(f"{path} is no ONNX file: its fields are damaged, or too many")
            if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and number)):
                raise _elsewhere(path)
            if kind == "node" and field == _OPERATION and model[start:at] == b"EPContext":
                raise ValueError(f"{path} runs a compiled program (EPContext), which no exported cascade does")
            if wire == 2 and field in _FIELDS[kind]:
                left.append((_FIELDS[kind][field], start, at))


def _check_parsed(path: Path, model: bytes) -> None:
    """Refuse the same as :func:`_check_within`, by the package onnx where it is installed."""
    try:
        import onnx
    except ImportError:
        return
    try:
        left: list[Any] = [onnx.load_model_from_string(model)]
    except Exception as error:  # protobuf's own
        raise ValueError(f"{path} is no ONNX file: {str(error)[:400]}") from None
    while left:
        message = left.pop()
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            raise _elsewhere(path)
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                left += [value] if hasattr(value, "ListFields") else value


def _elsewhere(path: Path) -> ValueError:
    return ValueError(f"{path} keeps tensors in other files, which no exported cascade does")


def _varint(model: bytes, at: int, end: int) -> tuple[int, int]:
    """A protobuf number and the place after it; that is past the end if the number has no end, or is overlong."""
    number, start = 0, at
    for shift in range(0, 70, 7):
        if at >= end:
            break
        number |= (model[at] & 127) << shift
        at += 1
        if model[at - 1] < 128:
            shortest = at == start + 1 or model[at - 1] > 0
            return number, at if shortest and number < 2**64 else end + 1
    return number, end + 1


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder by its plain name."""
    if not name or name in (".", "..") or len(name) > 255 or any(mark in name for mark in "/\\:\0"):
        raise ValueError(
            f"{folder / 'cascade.json'} names {name[:80]!r}, which is no plain name of a file in its folder"
        )
    if not os.path.lexists(folder / name):
        raise ValueError(f"{folder / name} is missing")
    return folder / name
