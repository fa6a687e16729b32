"""Data sets of images and the loaders that batch, augment and normalise them reproducibly."""

from superweight_ensembles.data.augmentation import Augmentation
from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.loader import ImageLoader
from superweight_ensembles.data.registry import DATA_SETS, load_data
from superweight_ensembles.data.splits import FileSplit, ImageSplit, MemorySplit

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "FileSplit",
    "ImageData",
    "ImageLoader",
    "ImageSplit",
    "MemorySplit",
    "load_data",
]
