"""Efficient ensembles from torch-uncertainty, each as large as a given number of parameters.

Legend: M estimators, B images, N rows of a training step, K classes, C channels, H W an image.

The networks are torch-uncertainty's CIFAR ResNets, without convolution biases (a norm follows each convolution) and
with the library's own start values. Training and evaluation take the forms of the methods' papers:

=============  ==  ===========================================================  =============================
arm            M   a training step                                              evaluation
=============  ==  ===========================================================  =============================
batchensemble  4   the batch split: B / M images an estimator                   M passes over shared weights
packed         4   every image to every estimator, as parallel groups, alpha 2  one pass
mimo           3   M shuffled batches side by side, half of them equal          one pass, the image M times
masksembles    4   the batch split: B / M images a mask, scale 2                M passes over shared weights
=============  ==  ===========================================================  =============================

Source: torch-uncertainty 0.13 (NeurIPS Datasets and Benchmarks 2025). BatchEnsemble: Wen, Tran and Ba, ICLR 2020,
arXiv 2002.06715, section 3.1. Packed-Ensembles: Laurent et al., ICLR 2023, arXiv 2210.09184. MIMO: Havasi et al., ICLR
2021, arXiv 2010.06610. Masksembles: Durasov et al., CVPR 2021, arXiv 2012.08334.

Differs from papers: one learning rate for all parameters (BatchEnsemble's published code halves that of the fast
weights), and no repeated batches (MIMO's published code gives each image four times a step, and no equal inputs).
"""

from __future__ import annotations

import importlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.plan import count_parameters

_LOG = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]

_STEM_CHANNELS = {20: 16, 18: 64, 44: 16, 56: 16}  # at width x 1, by depth; the first that is near enough is taken
_NEAR_ENOUGH, _FAR_OFF = 0.05, 0.05  # of the parameters asked for
_MOST_WIDTHS = 4096
_EQUAL_INPUTS = 0.5  # the share of a MIMO batch in which all estimators see one image


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """How torch-uncertainty builds an arm's network, and how a batch becomes the rows of a training step.

    Attributes:
        function: In ``torch_uncertainty.models.classification``.
        num_estimators: M.
        options: Options of that function.
        training: ``split`` the batch over the estimators, ``repeat`` the labels, or ``shuffle`` M copies of the batch.
        smallest_width: Channels of the first stage.
        width_step: Between widths that the method can take.
    """

    function: str
    num_estimators: int
    options: Mapping[str, Any]
    training: Literal["split", "repeat", "shuffle"]
    smallest_width: int = 4
    width_step: int = 1


_METHODS = {
    "batchensemble": _Method(
        function="batched_resnet", num_estimators=4, options={"repeat_strategy": "paper"}, training="split"
    ),
    "packed": _Method(  # alpha x width channels, in four equal groups
        function="packed_resnet",
        num_estimators=4,
        options={"alpha": 2, "gamma": 1},
        training="repeat",
        width_step=2,
    ),
    "mimo": _Method(function="mimo_resnet", num_estimators=3, options={}, training="shuffle"),
    "masksembles": _Method(  # masks take ten channels and more
        function="masked_resnet",
        num_estimators=4,
        options={"scale": 2.0, "repeat_strategy": "paper"},
        training="split",
        smallest_width=10,
    ),
}

UNCERTAINTY_ARMS = tuple(_METHODS)


class EstimatorNetwork(nn.Module):
    """One network that answers for several estimators.

    Attributes:
        num_estimators: M.
        architecture: In words: "resnet20, width x 1.75, 4 estimators".
    """

    def __init__(
        self,
        network: nn.Module,
        batch_format: Callable[[Batch], Batch],
        *,
        num_estimators: int,
        architecture: str,
    ) -> None:
        """Wrap a network whose rows are member-major: all of the first estimator, then all of the second.

        Args:
            network: In eval mode from (B, C, H, W) to (M * B, K); in training mode from the images that
                ``batch_format`` gives to a row for each of its labels.
            batch_format: From images (B, C, H, W) and labels (B,) to the images and labels of a training step.
            num_estimators: M.
            architecture: What to call it.
        """
        super().__init__()
        self.network = network
        self.num_estimators = num_estimators
        self.architecture = architecture
        self._batch_format = batch_format

    def forward(self, images: Tensor) -> Tensor:
        """Every estimator's answer for every image.

        Args:
            images: (B, C, H, W); any B, as no image's answer depends on the others.

        Returns:
            Logits (M, B, K).

        Raises:
            SuperWeightError: In training mode, where an estimator need not see every image.
        """
        if self.training:
            raise SuperWeightError("in training mode estimators see different images: call .eval(), or training_logits")
        return self.network(images).unflatten(0, (self.num_estimators, len(images)))

    def training_logits(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the method's loss is taken of; its mean over rows is the mean over the estimators.

        Split arms leave out the images of a batch that M does not divide; MIMO draws from torch's global generator.

        Args:
            images: (B, C, H, W).
            labels: (B,).

        Returns:
            Logits (N, K) and labels (N,), member-major: N is B where the batch is split, M * B elsewhere.

        Raises:
            SuperWeightError: In eval mode, or fewer images than a split needs.
        """
        if not self.training:
            raise SuperWeightError("training_logits is for training mode: call .train(), or the network itself")
        images, labels = self._batch_format((images, labels))
        return self.network(images), labels


def build_estimator_network(arm: str, *, num_parameters: int, num_classes: int, in_channels: int) -> EstimatorNetwork:
    """The arm's network whose trainable parameters are nearest to ``num_parameters``.

    ResNet-20 at the width that comes nearest; where no width comes within 5 %, the nearest of ResNet-20, 18, 44 and
    56. Widths vary by one channel, in packed networks by two, which leaves those up to a tenth off below 1 M. More
    than 5 % off is logged as a warning. Start values and masks follow ``torch.manual_seed``.

    Args:
        arm: One of :data:`UNCERTAINTY_ARMS`.
        num_parameters: Trainable scalars.
        num_classes: K.
        in_channels: C.

    Raises:
        SuperWeightError: An unknown arm, ``num_parameters`` below one, or torch-uncertainty is not installed.

    Example:
        >>> network = build_estimator_network(  # doctest: +SKIP
        ...     "batchensemble", num_parameters=1_040_000, num_classes=10, in_channels=3
        ... )
        >>> network.architecture, network.eval()(torch.zeros(5, 3, 32, 32)).shape  # doctest: +SKIP
        ('resnet20, width x 1.9375, 4 estimators', torch.Size([4, 5, 10]))
    """
    if arm not in _METHODS:
        raise unknown_name("arm", arm, UNCERTAINTY_ARMS)
    if num_parameters < 1:
        raise SuperWeightError(f"num_parameters must be at least 1; got {num_parameters}")
    method = _METHODS[arm]
    models, transforms = _torch_uncertainty(arm)

    def build(depth: int, width: int) -> nn.Module:
        network = getattr(models, method.function)(
            in_channels=in_channels,
            num_classes=num_classes,
            arch=depth,
            num_estimators=method.num_estimators,
            width_multiplier=width / _STEM_CHANNELS[depth],
            conv_bias=False,
            style="cifar",
            **method.options,
        )
        return network.to(torch.get_default_dtype())  # Masksembles' masks are float64, slow and not for every device

    with _masks_from_torch():
        depth, width, expected = _nearest_architecture(build, method, num_parameters)
        network = build(depth, width)
    found = count_parameters(network)
    assert found == expected, f"resnet{depth} at width {width}: {expected} parameters expected, {found} found"
    estimators = f"{method.num_estimators} estimators"
    architecture = f"resnet{depth}, width x {width / _STEM_CHANNELS[depth]:g}, {estimators}"
    if abs(found - num_parameters) > _FAR_OFF * num_parameters:
        _LOG.warning("%s: nearest to %d parameters is %s with %d", arm, num_parameters, architecture, found)
    return EstimatorNetwork(
        network,
        _batch_format(method, transforms),
        num_estimators=method.num_estimators,
        architecture=architecture,
    )


def check_installed(arm: str) -> None:
    """Refuse an arm whose library is missing.

    Raises:
        SuperWeightError: Says the pip command.
    """
    _torch_uncertainty(arm)


def _torch_uncertainty(arm: str) -> tuple[ModuleType, ModuleType]:
    """Its models and its batch transforms; imported here because that takes seconds and the package is optional."""
    try:
        importlib.import_module("torch_uncertainty")
        models = importlib.import_module("torch_uncertainty.models.classification")
        transforms = importlib.import_module("torch_uncertainty.transforms")
        for name in ("lightning.fabric", "lightning.pytorch"):  # imported, they take over the messages of Fabric
            logging.getLogger(name).setLevel(logging.WARNING)
    except ImportError as error:
        raise SuperWeightError(
            f"{arm!r} needs torch-uncertainty, which cannot be imported ({error}): "
            'pip install "superweight-ensembles[bench]"'
        ) from error
    return models, transforms


def _nearest_architecture(
    build: Callable[[int, int], nn.Module], method: _Method, num_parameters: int
) -> tuple[int, int, int]:
    """Depth, width and trainable parameters of the first depth that is near enough, else of the nearest."""

    def count(depth: int, width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(depth, width))

    candidates = []
    for depth in _STEM_CHANNELS:
        widths = range(
            method.smallest_width, method.smallest_width + method.width_step * _MOST_WIDTHS, method.width_step
        )
        width, found = _nearest_width([count(depth, width) for width in widths[:3]], widths, num_parameters)
        candidates.append((abs(found - num_parameters), depth, width, found))
        if candidates[-1][0] <= _NEAR_ENOUGH * num_parameters:
            return depth, width, found
    return min(candidates, key=lambda candidate: candidate[0])[1:]


def _nearest_width(first_counts: list[int], widths: range, target: int) -> tuple[int, int]:
    """The width whose count is nearest to ``target``, and that count.

    Counts are quadratic in the width (convolutions are, all else is linear): the first three tell the others.

    Example:
        >>> _nearest_width([1, 4, 9], range(1, 100), 50)
        (7, 49)
    """
    first, second, third = first_counts
    slope, bend = second - first, third - 2 * second + first

    def count(index: int) -> int:
        return first + index * slope + index * (index - 1) // 2 * bend

    above = bisect_left(range(len(widths) - 1), target, key=count)
    index = min((max(above - 1, 0), above), key=lambda index: abs(count(index) - target))
    return widths[index], count(index)


@contextmanager
def _masks_from_torch() -> Iterator[None]:
    """Masksembles draws its masks from fresh, unseeded NumPy generators; here from one that torch's seeds."""
    generator = np.random.default_rng(int(torch.randint(2**31, (), device="cpu")))
    fresh = np.random.default_rng
    np.random.default_rng = lambda *_: generator
    try:
        yield
    finally:
        np.random.default_rng = fresh


class _SplitBatch:
    """Each estimator trains on its own part of the batch; what M does not divide is left out of the step."""

    def __init__(self, num_estimators: int) -> None:
        self.num_estimators = num_estimators

    def __call__(self, batch: Batch) -> Batch:
        images, labels = batch
        rows = len(images) - len(images) % self.num_estimators
        if rows == 0:
            raise SuperWeightError(
                f"a batch of {len(images)} cannot be split over {self.num_estimators} estimators: "
                f"take a batch_size of {self.num_estimators} or more"
            )
        return images[:rows], labels[:rows]


def _batch_format(method: _Method, transforms: ModuleType) -> Callable[[Batch], Batch]:
    if method.training == "split":
        return _SplitBatch(method.num_estimators)
    if method.training == "repeat":
        return transforms.RepeatTarget(method.num_estimators)
    return transforms.MIMOBatchFormat(method.num_estimators, rho=_EQUAL_INPUTS)
