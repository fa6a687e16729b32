"""Points of the plane: the generators by hand, splits, and perceptrons that learn them."""

import math

import numpy as np
import pytest
import torch

from superweight_ensembles import SuperWeightError, build_member, load_data
from superweight_ensembles.data import Augmentation, ImageLoader, MemorySplit

SETS = ("double_moon", "spiral", "spiral_hard")


def points_of(data):
    splits = (data.train, data.validation, data.test)
    points = torch.cat([split.images for split in splits]).flatten(1).double()
    return points, torch.cat([split.labels for split in splits])


@pytest.mark.parametrize("name", SETS)
def test_splits(name):
    data = load_data(name)
    number = 10_000 if name == "spiral_hard" else 5000
    assert [len(data.test), len(data.validation), len(data.train)] == [0.2 * number, 0.08 * number, 0.72 * number]
    for split in (data.train, data.validation, data.test):
        assert split.labels.bincount().tolist() == [len(split) // 2] * 2
        assert split.images.dtype == torch.float32 and split.image_shape == (2, 1, 1)
    again, other = load_data(name), load_data(name, seed=1)
    assert torch.equal(again.train.images, data.train.images)
    assert not torch.equal(other.train.images, data.train.images)
    images, labels = next(iter(data.loader("train", 8)))
    assert torch.equal(images, data.train.images[:8])  # as they are: mean 0, deviation 1
    assert torch.equal(labels, data.train.labels[:8])


def test_moons_are_half_circles():
    points, labels = points_of(load_data("double_moon"))
    for label, centre, sign in ((0, (-5, 0), 1), (1, (5, 5), -1)):
        around = points[labels == label] - torch.tensor(centre)
        assert float(around.norm(dim=1).mean()) == pytest.approx(10, abs=0.05)
        assert float((around.norm(dim=1) - 10).std()) == pytest.approx(0.3, abs=0.02)
        assert float((sign * around[:, 1]).min()) > -1.5  # the upper half of one, the lower half of the other


@pytest.mark.parametrize(("name", "turns"), [("spiral", 1), ("spiral_hard", 2)])
def test_arms_wind(name, turns):
    points, labels = points_of(load_data(name))
    points = turns * points
    for label in (0, 1):
        x, y = (points[labels == label] * (1 - 2 * label)).T
        length = torch.hypot(x, y)
        # x = -t cos t, y = t sin t: the angle is pi - t
        off = (torch.atan2(y, x) - (math.pi - length)) / (2 * math.pi)
        off = (off - off.round()) * 2 * math.pi
        far = length > 3  # noise along the arm turns it little, noise across it changes t
        assert float(off[far].std()) == pytest.approx(0.3, rel=0.1)
        assert float(length.max()) == pytest.approx(4 * math.pi * turns, abs=1)
        share = float((length < 2 * math.pi * turns).double().mean())
        assert share == pytest.approx(0.25, abs=0.03)  # t goes by the square root


def test_other_sizes_and_augmentations():
    data = load_data("spiral", num_points=101, validation_fraction=0.0)
    assert (len(data.train), len(data.validation), len(data.test)) == (81, 0, 20)
    assert len(load_data("spiral", num_train=500).train) == 500
    with pytest.raises(SuperWeightError, match="flip does nothing with images of one column"):
        data.loader("train", 8, augmentation=Augmentation(flip=True))


def test_float_images_are_normalised_as_they_are():
    split = MemorySplit(torch.full((4, 2, 1, 1), 3.0), torch.zeros(4, dtype=torch.int64))
    images, _ = next(iter(ImageLoader(split, 4, mean=(1.0, 2.0), std=(2.0, 0.5))))
    assert images[0].flatten().tolist() == [1.0, 2.0]
    assert float(split.images.mean()) == 3.0  # not changed in place


def test_perceptrons_by_name():
    network = build_member("mlp", num_classes=3, in_channels=2, widths=[5, 4], pixels=6)
    assert network(torch.zeros(7, 2, 2, 3)).shape == (7, 3)
    assert [layer.out_features for layer in network if hasattr(layer, "out_features")] == [5, 4, 3]
    for options, message in (
        ({"widths": []}, "widths must be the neurons of each hidden layer"),
        ({"widths": 5}, "widths must be the neurons"),
        ({"widths": [0]}, "widths must be a whole number, at least 1; got 0"),
        ({"widths": [5], "pixels": 1.5}, "pixels must be a whole number, at least 1"),
    ):
        with pytest.raises(SuperWeightError, match=message):
            build_member("mlp", num_classes=3, in_channels=2, **options)


def test_numbers_are_frozen():
    """The stream is part of the data sets: published numbers must be had again."""
    points = load_data("spiral", num_points=20, validation_fraction=0.0).train.images.flatten(1).numpy()
    np.testing.assert_allclose(np.abs(points).sum(), 194.15837, rtol=1e-5)
