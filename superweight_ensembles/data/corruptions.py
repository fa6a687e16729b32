"""Images made worse on purpose: common corruptions at five severities, made as images are read.

Shapes: B images, C channels, H W pixels. Settings are those of CIFAR-10-C, for images of 32 pixels; lengths in pixels
grow with the image. The results come near the published images but are not the same: noise has other draws, JPEG
another encoder.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019, section 4, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name

_SIDE = 32
_Make = Callable[[Tensor, float, torch.Generator], Tensor]


def _noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=generator).to(images.device)


def _blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    sigma = sigma * min(images.shape[2:]) / _SIDE
    size = min(2 * round(4 * sigma + 0.5) + 1, 2 * min(images.shape[2:]) - 1)
    return v2.gaussian_blur(images, [size, size], [sigma, sigma])


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _brightness(images: Tensor, added: float, generator: torch.Generator) -> Tensor:
    return images + added


def _pixelate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    small = [max(1, round(share * height)), max(1, round(share * width))]
    coarse = v2.resize(images, small, InterpolationMode.BILINEAR, antialias=True)
    return v2.resize(coarse, [height, width], InterpolationMode.NEAREST)


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise SuperWeightError(f"JPEG holds images of 1 or 3 channels, not of {images.shape[1]}: leave out 'jpeg'")
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return torch.stack([v2.jpeg(image, int(quality)) for image in pixels]).to(images) / 255


_KINDS: Mapping[str, tuple[_Make, tuple[float, ...]]] = MappingProxyType({
    "gaussian_noise": (_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian_blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
})  # fmt: skip
CORRUPTIONS = tuple(_KINDS)
SEVERITIES = (1, 2, 3, 4, 5)


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """One corruption of every image.

    Attributes:
        name: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        SuperWeightError: An unknown name, or a severity other than 1 to 5.

    Example:
        >>> grey = torch.full((1, 3, 8, 8), 0.5)
        >>> round(float(Corruption(name="brightness", severity=5)(grey, torch.Generator()).mean()), 4)
        0.8
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _KINDS:
            raise unknown_name("corruption", str(self.name), CORRUPTIONS)
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise SuperWeightError(f"the severity of a corruption is 1 to 5; got {self.severity!r}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Corrupt images (B, C, H, W) of floating-point pixels from 0 to 1; the results are from 0 to 1, too.

        Raises:
            SuperWeightError: Pixels below 0 or above 1.
        """
        low, high = (float(bound) for bound in images.aminmax()) if images.numel() else (0.0, 1.0)
        if low < 0 or high > 1:
            raise SuperWeightError(
                f"corruptions need pixels from 0 to 1, or of uint8; these images go from {low:g} to {high:g}"
            )
        make, settings = _KINDS[self.name]
        return make(images, settings[self.severity - 1], generator).clamp(0, 1)
