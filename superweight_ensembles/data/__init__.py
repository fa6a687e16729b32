"""Image data sets by name, splits in memory or on disk, and loaders whose order and augmentation follow from a seed.

Every data set becomes an :class:`ImageData`; its loaders give the same batches again after the same seed and epoch.
"""

from superweight_ensembles.data.augmentation import Augmentation, Draws, crop_and_flip, cut_out_, draw
from superweight_ensembles.data.batch import (
    Inputs,
    Targets,
    check_labels,
    checked_batch,
    checked_labels,
    checked_loader,
    checked_pair,
    mapped,
    num_rows,
    plain,
    rows_of,
    tensors_of,
)
from superweight_ensembles.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from superweight_ensembles.data.datasets import (
    DATA_SETS,
    DataFacts,
    DataSet,
    check_options,
    data_set_needs,
    known_facts,
    load_data,
    reads_files,
    takes_option,
)
from superweight_ensembles.data.image_folder import image_files
from superweight_ensembles.data.images import ImageReader, centre_square, decode, decode_random, random_region
from superweight_ensembles.data.loader import ImageData, ImageLoader
from superweight_ensembles.data.preprocessing import Preprocessing
from superweight_ensembles.data.random_streams import image_generator, image_key
from superweight_ensembles.data.splits import FileSplit, MemorySplit, PathTable, checksum, stratified_split
from superweight_ensembles.data.transforms import Transforms, check_transforms, transform_names

__all__ = [
    "CORRUPTIONS",
    "DATA_SETS",
    "SEVERITIES",
    "Augmentation",
    "Corruption",
    "DataFacts",
    "DataSet",
    "Draws",
    "FileSplit",
    "ImageData",
    "ImageLoader",
    "ImageReader",
    "Inputs",
    "MemorySplit",
    "PathTable",
    "Preprocessing",
    "Targets",
    "Transforms",
    "centre_square",
    "check_labels",
    "check_options",
    "check_transforms",
    "checked_batch",
    "checked_labels",
    "checked_loader",
    "checked_pair",
    "checksum",
    "crop_and_flip",
    "cut_out_",
    "data_set_needs",
    "decode",
    "decode_random",
    "draw",
    "image_files",
    "image_generator",
    "image_key",
    "known_facts",
    "load_data",
    "mapped",
    "num_rows",
    "plain",
    "random_region",
    "reads_files",
    "rows_of",
    "stratified_split",
    "takes_option",
    "tensors_of",
    "transform_names",
]
