"""Image files become uint8 tensors of one size: which part of a picture is taken, and how it is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional
from torch.utils.data import get_worker_info

from superweight_ensembles.data.random_streams import image_generator
from superweight_ensembles.errors import SuperWeightError

Region = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_FILES_A_TASK = 64
# Pillow clips these to 8 bits instead of scaling them, which turns most such images white.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# JPEG includes MPO. Unasked, Pillow tries all formats by content, and runs Ghostscript on what looks like PostScript.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves at least so many pixels a side for each pixel of the image:
# faster, and a level or so apart from resizing it whole.
_KEPT_FOR_RESIZING = 2


def centre_square(width: int, height: int, size: int) -> Region:
    """Centre square of a picture whose shorter side is resized to ``size``, in pixels of the picture as it is.

    Example:
        >>> centre_square(400, 200, 100)
        (100.0, 0.0, 300.0, 200.0)
    """
    # Whole pixels of the resized picture, rounded as torchvision's resize and center_crop do.
    long = int(size * max(width, height) / min(width, height))
    resized = (long, size) if width >= height else (size, long)
    left, top = (round((length - size) / 2.0) for length in resized)
    across, down = width / resized[0], height / resized[1]
    return left * across, top * down, (left + size) * across, (top + size) * down


def centre_of(width: int, height: int, size: tuple[int, int]) -> Region:
    """The largest centred part of a picture in the proportions of (H, W); for a square, :func:`centre_square`.

    Example:
        >>> centre_of(400, 200, (100, 50))
        (150.0, 0.0, 250.0, 200.0)
    """
    if size[0] == size[1]:
        return centre_square(width, height, size[0])
    scale = min(height / size[0], width / size[1])
    across, down = scale * size[1], scale * size[0]
    return (width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2


def random_region(width: int, height: int, generator: np.random.Generator) -> Region:
    """Random part of a picture: 8 to 100 % of its area, sides in a ratio of 3/4 to 4/3.

    Source: Szegedy et al., arXiv:1409.4842, section 6; in the form of torchvision's RandomResizedCrop.
    """
    areas = width * height * generator.uniform(*_AREA, size=_ATTEMPTS)
    ratios = np.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), size=_ATTEMPTS))
    across = np.rint(np.sqrt(areas * ratios)).astype(int)
    down = np.rint(np.sqrt(areas / ratios)).astype(int)
    where = generator.random(2)
    fits = (across >= 1) & (across <= width) & (down >= 1) & (down <= height)
    if fits.any():
        first = int(fits.argmax())
        wide, high = int(across[first]), int(down[first])
        left, top = math.floor(where[0] * (width - wide + 1)), math.floor(where[1] * (height - high + 1))
    else:  # a long, narrow picture: its largest centred part of such a ratio
        wide = min(width, max(1, round(height * _RATIO[1])))
        high = min(height, max(1, round(width / _RATIO[0])))
        left, top = (width - wide) // 2, (height - high) // 2
    return float(left), float(top), float(left + wide), float(top + high)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReader:
    """Decoder of files to images of one size."""

    image_size: int | None  # the shorter side's, before the centre square is cut out; None keeps images as they are
    pool: int  # factor of the average pooling that follows, 1 for none
    decoded_size: tuple[int, int]  # (H, W) before pooling, of every file

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) after pooling."""
        height, width = self.decoded_size
        return 3, height // self.pool, width // self.pool

    def read(
        self, paths: Sequence[str], images: Sequence[int] | None = None, crop_key: np.ndarray | None = None
    ) -> torch.Tensor:
        """Decode files, in this thread: uint8 (len(paths), 3, H, W); ``images`` are their indices in the split."""
        pixels = _empty_pixels((len(paths), 3, *self.decoded_size))
        planes = pixels.numpy()
        for row, path in enumerate(paths):
            if crop_key is not None:  # from image_key: a random part in the place of the centre
                assert images is not None, "a random part belongs to an image"
                image = decode_random(path, self.decoded_size, image_generator(crop_key, images[row]))
            else:
                image = decode(path, self.image_size)
            if image.shape[:2] != self.decoded_size:
                raise self._other_size(path, *image.shape[:2])
            planes[row] = rearrange(image, "h w c -> c h w")
        return average_pool(pixels, self.pool)

    def check(self, paths: Sequence[str]) -> int:
        """Read the headers of files, decode nothing, and return how many have several frames."""
        starts = range(0, len(paths), _FILES_A_TASK)
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(lambda start: sum(map(self._check, paths[start : start + _FILES_A_TASK])), starts))

    def _check(self, path: str) -> bool:
        with _opened(path) as file:
            if self.image_size is None and set(file.size) != set(self.decoded_size):
                raise self._other_size(path, file.size[1], file.size[0])
            return file.format != "MPO" and getattr(file, "n_frames", 1) > 1  # phones put previews into an MPO

    def _other_size(self, path: str, height: int, width: int) -> SuperWeightError:
        first = " x ".join(map(str, self.decoded_size))
        return SuperWeightError(
            f"images of different sizes: {path} has {height} x {width} pixels, the first has {first}: give image_size"
        )

    def read_all(self, paths: Sequence[str]) -> torch.Tensor:
        """Decode files in a pool of threads: uint8 (len(paths), 3, H, W)."""
        images = torch.empty(len(paths), *self.image_shape, dtype=torch.uint8)
        starts = range(0, len(paths), _FILES_A_TASK)
        with ThreadPoolExecutor() as pool:
            decoded: Iterator[torch.Tensor] = pool.map(
                self.read, [paths[start : start + _FILES_A_TASK] for start in starts]
            )
            for start, block in zip(starts, decoded):
                images[start : start + len(block)] = block
        return images


def _empty_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for a batch, uint8; in a loader's worker it is shared memory."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # Shared memory goes to the other process as it is. With private memory for each batch, a worker was seen to grow by
    # a batch's size with each of its first 128 batches (torch 2.15, glibc), which is gigabytes at 224 pixels.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]


def reader_for(first_path: str, image_size: int | None, pool: int) -> ImageReader:
    """Reader for files that are like the first one."""
    height, width, _ = decode(first_path, image_size).shape
    if height % pool or width % pool:
        raise SuperWeightError(f"pool={pool} does not divide the {height} x {width} pixels of {first_path}")
    return ImageReader(image_size=image_size, pool=pool, decoded_size=(height, width))


def decode(path: str, image_size: int | None) -> np.ndarray:
    """One file as colours: uint8 (H, W, 3), with H = W = image_size unless that is None."""
    if image_size is None:
        return _decode(path, None, None)
    return decode_whole(path, (image_size, image_size))


def decode_whole(path: str, size: tuple[int, int]) -> np.ndarray:
    """The centre of one file (:func:`centre_of`), resized to (H, W): uint8 (H, W, 3)."""
    return _decode(path, size, lambda width, height: centre_of(width, height, size))


def turned_colours(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Centre of an open picture (:func:`centre_of`), upright and resized to (H, W): uint8 (H, W, 3)."""
    if picture.mode in _DEEP_MODES:
        raise SuperWeightError(f"a picture has more than 8 bits a channel (mode {picture.mode}): convert it to 8 bits")
    picture = _as_colours(picture)
    region = centre_of(picture.width, picture.height, size)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=region))


def decode_random(path: str, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A random part of one file (:func:`random_region`), resized to (H, W): uint8 (H, W, 3)."""
    return _decode(path, size, lambda width, height: random_region(width, height, generator))


def _decode(path: str, size: tuple[int, int] | None, region_of: Callable[[int, int], Region] | None) -> np.ndarray:
    """A region of a file, chosen by width and height, resized to (H, W) (bilinear, antialiased); all where None."""
    with _opened(path) as file:
        # Pillow turns a TIFF itself: its width and height are those of the upright picture already.
        sideways = file.format != "TIFF" and file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        region, scale = None, 1.0
        if size is not None and region_of is not None:
            region = region_of(*(reversed(file.size) if sideways else file.size))
            scale = _draft(file, region, size)
        image = _as_colours(file)
    if region is not None and size is not None:
        # Only the pixels that are kept are resampled; those around the region still count at its border.
        left, top, right, bottom = (edge * scale for edge in region)
        box = (left, top, min(right, image.width), min(bottom, image.height))
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An open file whose header is read; errors inside name the file."""
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.mode in _DEEP_MODES:
                raise SuperWeightError(
                    f"{path} has more than 8 bits a channel (mode {file.mode}): convert it to 8 bits"
                )
            clear = file.info.get("transparency")
            if isinstance(clear, tuple) and max(clear) > 255:  # Pillow would look for it among pixels of 8 bits
                raise SuperWeightError(f"{path} has more than 8 bits a channel, and a transparent colour: convert it")
            yield file
    except SuperWeightError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a broken file
        reason = " ".join(str(error).split())
        raise SuperWeightError(
            f"cannot read the image {path}: {reason:.300}: save it again as JPEG or PNG, or take it out"
        ) from error


def _as_colours(file: Image.Image) -> Image.Image:
    """Picture upright, as its EXIF orientation says, and in RGB; a transparent one is laid on white."""
    file.load()  # turns a TIFF upright and drops its orientation
    file = ImageOps.exif_transpose(file)
    if file.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in file.info:
        return file.convert("RGB")
    picture = file.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _draft(file: Image.Image, region: Region, size: tuple[int, int]) -> float:
    """Have a large JPEG decoded at a fraction of its size, and say which: 1, 1/2, 1/4 or 1/8."""
    left, top, right, bottom = region
    smaller = min((right - left) / size[1], (bottom - top) / size[0]) / _KEPT_FOR_RESIZING
    if smaller < 2:
        return 1.0
    width, height = file.size
    drafted = file.draft(None, (int(width / smaller), int(height / smaller)))
    return 1.0 if drafted is None else drafted[1][2] / width


def average_pool(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Mean of each factor x factor square, rounded: uint8 (B, C, H, W) to (B, C, H / factor, W / factor)."""
    if factor == 1:
        return images
    return functional.avg_pool2d(images.float(), factor).round().to(torch.uint8)
