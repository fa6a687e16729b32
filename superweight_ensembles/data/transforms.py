"""Transforms of torchvision by name, with random numbers that are functions of a seed. Shapes: B images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from superweight_ensembles.errors import SuperWeightError, unknown_name

OF_BATCHES = ("MixUp", "CutMix")  # mix images of a batch, make labels soft; each batch draws one of those given
OF_NORMALISED = ("RandomErasing",)
_NO_TRANSFORMS = ("Compose", "Transform", "RandomApply", "RandomChoice", "RandomOrder", "Lambda")
_Options = Mapping[str, object]


def check_transforms(transforms: Mapping[str, _Options]) -> None:
    """Refuse names and options that torchvision does not have."""
    for name, options in transforms.items():
        _built(name, options, num_classes=2)


class Transforms:
    """Transforms of ``torchvision.transforms.v2``, by name, in the order of use."""

    def __init__(self, transforms: Mapping[str, _Options], num_classes: int) -> None:
        built = {name: _built(name, options, num_classes) for name, options in transforms.items()}
        rest = {name: one for name, one in built.items() if name not in OF_BATCHES}
        self._of_pixels = {name: one for name, one in rest.items() if name not in OF_NORMALISED}
        self._of_normalised = {name: one for name, one in rest.items() if name in OF_NORMALISED}
        self._of_batches = [one for name, one in built.items() if name in OF_BATCHES]

    def of_pixels(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Transform each of B images (B, C, H, W) by its own seed."""
        return _each(self._of_pixels, images, seeds)

    def of_normalised(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Transform normalised images (B, C, H, W); labels stay (B,), or are (B, K) where images are mixed."""
        images = _each(self._of_normalised, images, [seed + 1 for seed in seeds])
        if not self._of_batches or len(images) < 2:
            return images, labels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds[0] + 2)
            chosen = self._of_batches[int(torch.randint(len(self._of_batches), ()))]
            mixed, soft = _applied("MixUp or CutMix", lambda: chosen(images, labels))
        return mixed, soft


def _each(transforms: Mapping[str, v2.Transform], images: Tensor, seeds: Sequence[int]) -> Tensor:
    if not transforms:
        return images
    found = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds):
            torch.default_generator.manual_seed(seed)
            now = image
            for name, transform in transforms.items():
                before, now = now, _applied(name, lambda: transform(now))  # noqa: B023  # called at once
                if not isinstance(now, Tensor) or now.shape != before.shape or now.dtype != before.dtype:
                    made = f"{tuple(now.shape)} of {now.dtype}" if isinstance(now, Tensor) else type(now).__name__
                    raise SuperWeightError(
                        f"transform {name} makes images {made} from {tuple(before.shape)} of {before.dtype}: it must "
                        "keep shape and type"
                    )
            found.append(now)
    return torch.stack(found)


def _applied(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise SuperWeightError(f"transform {name} does not take these images: {error!s:.200}") from error


def transform_names() -> list[str]:
    """Names of torchvision's transforms that a training may have."""
    known = {name for name, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, v2.Transform)}
    return sorted(known - set(_NO_TRANSFORMS))


def _built(name: str, options: object, num_classes: int) -> v2.Transform:
    kind = getattr(v2, name, None) if name not in _NO_TRANSFORMS else None
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        raise unknown_name("transform", name, transform_names())
    if not isinstance(options, Mapping):
        raise SuperWeightError(f"transform {name} takes options by name, {{}} for none; got {options!r:.80}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if name in OF_BATCHES:
        given = {"num_classes": num_classes, **given}
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise SuperWeightError(f"transform {name}: {error!s:.200}") from None
