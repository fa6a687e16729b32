"""The handwritten digits that scikit-learn carries: no download, trained on in seconds."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.options import checked_fraction, checked_seed
from superweight_ensembles.data.splits import MemorySplit, split_off_validation
from superweight_ensembles.data.stratified import stratified_split

_TEST_FRACTION = 0.5  # as in scikit-learn's own example; a fifth is too few to tell two good ensembles apart
_TEST_SEED = 0  # never the user's: every run answers the same test images


def digits(*, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """1,797 grey images of 8 x 8 pixels in 10 classes; a stratified half is the test split.

    Args:
        validation_fraction: Of the images that are not for test, stratified.
        seed: Chooses the validation images.

    Raises:
        SuperWeightError: An option out of range.

    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), test part, as scikit-learn packs it.
    """
    fraction, seed = checked_fraction("validation_fraction", validation_fraction), checked_seed(seed)
    raw = load_digits()
    # 16 levels of ink and no ink, 0 to 16.
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    keep, held = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    scaled = images[keep].double() / 255
    train, validation = split_off_validation(images[keep], labels[keep], fraction, seed)
    return ImageData(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        image_shape=(1, 8, 8),
        mean=(round(float(scaled.mean()), 4),),
        std=(round(float(scaled.std()), 4),),
        train=train,
        validation=validation,
        test=MemorySplit(images[held], labels[held]),
    )
