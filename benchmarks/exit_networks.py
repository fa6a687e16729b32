"""One network that answers at several costs, a WideResNet with exits or a slimmable one: peers of a cascade of members.

Legend: E exits, B batch, N images, K classes.

=========  ============================================  ==============================  ======================
arm        an exit                                       what it costs in a cascade      norms
=========  ============================================  ==============================  ======================
exits      norm, relu, mean, linear after each block     the blocks since the last exit  one set
slimmable  the first 1/4, 1/2, 3/4, 4/4 of all channels  the whole narrower network      one set for each width
=========  ============================================  ==============================  ======================

Both are trained on the sum of the exits' losses; where the recipe teaches, the last exit teaches the others, with the
recipe's weight and temperature. A later exit's answer takes the place of the earlier ones'. Their cascades leave by
thresholds fitted as those of members are; the curve is that of the cascade or of the exits alone (some images at one,
the others at the next), whichever has the larger area on validation images.

Source: exits, Teerapittayanon et al., BranchyNet, ICPR 2016, taught as in Phuong and Lampert, Distillation-Based
Training for Multi-Exit Architectures, ICCV 2019. Slimmable: Yu et al., Slimmable Neural Networks, ICLR 2019; taught as
in Yu and Huang, Universally Slimmable Networks, ICCV 2019.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peer_training import answer_table, evaluated, run_network
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.anytime import (
    ExitFit,
    Metrics,
    costs_between,
    log_area,
    probability_metrics,
    simulate,
    tempered,
)
from superweight_ensembles.data import ImageData, ImageLoader
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import CostPoint, EarlyAnswers, EarlyCurve, ProgressCallback, Recipe
from superweight_ensembles.models import WideResNet, count_flops
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.storage import as_content

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class ExitNetwork(nn.Module, ABC):
    """A network with several answers; the last one is that of the network itself."""

    num_exits: int

    @abstractmethod
    def answers(self, images: Tensor, count: int) -> list[Tensor]:
        """Images (B, C, H, W) to the logits (B, K) of the first ``count`` exits."""

    def costs(self, image: Tensor) -> list[int]:
        """FLOPs that each exit adds for one image (1, C, H, W) in a cascade."""
        totals = [0, *(count_flops(_Upto(self, count), image) for count in range(1, self.num_exits + 1))]
        return [after - before for before, after in pairwise(totals)]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to the logits (B, K) of the last exit."""
        return self.answers(images, self.num_exits)[-1]


class BlockExits(ExitNetwork):
    """A WideResNet with a head after each block."""

    def __init__(self, network: WideResNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        sizes = [int(block.get_parameter("conv2.weight").shape[0]) for block in self._blocks]
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, sizes[:-1]))
        self.heads = nn.ModuleList(nn.Linear(size, network.num_classes) for size in sizes[:-1])
        self.num_exits = len(sizes)

    @property
    def _blocks(self) -> list[nn.Module]:
        return [block for stage in self.network.stages.children() for block in stage.children()]

    def answers(self, images: Tensor, count: int) -> list[Tensor]:
        norms, heads = [*self.norms, self.network.norm], [*self.heads, self.network.fc]
        features, found = self.network.stem(images), []
        for block, norm, head in list(zip(self._blocks, norms, heads))[:count]:
            features = block(features)
            found.append(head(F.relu(norm(features)).mean((2, 3))))
        return found


class Slimmable(ExitNetwork):
    """A WideResNet whose first channels are narrower networks, with norms of their own."""

    num_exits = len(WIDTHS)

    def __init__(self, network: WideResNet) -> None:
        super().__init__()
        self._width = _Width()
        self.network = copy.deepcopy(network)
        for path, layer in list(self.network.named_modules()):
            parent, _, name = path.rpartition(".")
            slim = _slim(layer, self._width)
            if slim is not None:
                setattr(self.network.get_submodule(parent), name, slim)

    def answers(self, images: Tensor, count: int) -> list[Tensor]:
        return [self._at(images, index) for index in range(count)]

    def forward(self, images: Tensor) -> Tensor:
        return self._at(images, self.num_exits - 1)

    def _at(self, images: Tensor, index: int) -> Tensor:
        self._width.index = index
        return self.network(images)


class _Upto(nn.Module):
    """The first exits of a network alone."""

    def __init__(self, network: ExitNetwork, count: int) -> None:
        super().__init__()
        self.network, self._count = network.eval(), count

    def forward(self, images: Tensor) -> Tensor:
        return self.network.answers(images, self._count)[-1]


class _Width:
    """Which of :data:`WIDTHS` a network has now."""

    index = len(WIDTHS) - 1

    def of(self, channels: int) -> int:
        return max(1, round(channels * WIDTHS[self.index]))


class _SlimConv(nn.Module):
    def __init__(self, layer: nn.Conv2d, width: _Width) -> None:
        super().__init__()
        self._options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
        self.weight, self._width = layer.weight, width

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[: self._width.of(len(self.weight)), : x.shape[1]]
        return F.conv2d(x, weight, **self._options)


class _SlimLinear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)


class _OwnNorms(nn.Module):
    def __init__(self, layer: nn.BatchNorm2d, width: _Width) -> None:
        super().__init__()
        sizes = [max(1, round(layer.num_features * share)) for share in WIDTHS]
        self.norms, self._width = nn.ModuleList(map(nn.BatchNorm2d, sizes)), width

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self._width.index](x)


def _slim(layer: nn.Module, width: _Width) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d):
        return _SlimConv(layer, width)
    if isinstance(layer, nn.Linear):
        return _SlimLinear(layer)
    return _OwnNorms(layer, width) if isinstance(layer, nn.BatchNorm2d) else None


EXIT_ARMS: dict[str, type[ExitNetwork]] = {"exits": BlockExits, "slimmable": Slimmable}


def build_exit_network(kind: str, members: Sequence[nn.Module]) -> ExitNetwork:
    """An exit network made of the largest of some members.

    Raises:
        SuperWeightError: That is no WideResNet.
    """
    largest = max(members, key=count_parameters)
    if not isinstance(largest, WideResNet):
        raise SuperWeightError(f"{kind!r} is made of a wide_resnet; the largest member is a {type(largest).__name__}")
    return EXIT_ARMS[kind](largest)


def run_exit_arm(kind: str, recipe: Recipe, folder: Path, progress: ProgressCallback | None = None) -> dict[str, Any]:
    """Train one arm for the recipe's seed, data and epochs, and evaluate it on the test data.

    Args:
        kind: One of :data:`EXIT_ARMS`.
        recipe: The largest of its members becomes the network; its distillation says how its last exit teaches.
        folder: For the log and the checkpoint of the last epoch.
        progress: As :func:`train` calls it.

    Returns:
        An entry of ``arms`` as :class:`SeedResults` reads it, with the curve as ``anytime`` where the recipe has such a
        section, and the history.
    """
    smoothing, teaching = recipe.training.label_smoothing, recipe.distillation

    def objective(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(member, ExitNetwork)
        *early, last = member.answers(images, member.num_exits)
        loss = F.cross_entropy(last, labels, label_smoothing=smoothing)
        for logits in early:
            own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            if teaching is not None:
                taught = soft_loss(logits, last.detach(), teaching.temperature)
                own = (1 - teaching.weight) * own + teaching.weight * taught
            loss = loss + own
        return loss

    def build(data: ImageData) -> ExitNetwork:
        return build_exit_network(kind, list(recipe.build_members().values()))

    network, data, found = run_network(kind, recipe, build, objective, folder, progress)
    assert isinstance(network, ExitNetwork)
    if recipe.anytime is not None:
        device = next(network.parameters()).device
        loaders = {split: evaluated(recipe, data, split, device) for split in ("validation", "test")}
        found["anytime"] = as_content(early_answers(network, loaders, recipe.anytime.num_points))
    how = f"{len(WIDTHS)} widths" if kind == "slimmable" else "a head after each block"
    return {**found, "architecture": f"the largest member, {how}"}


def soft_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (B, K) at a temperature, mean over the batch."""
    student = (logits.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(
        student, (teacher.float() / temperature).log_softmax(1), log_target=True, reduction="batchmean"
    )


def early_answers(network: ExitNetwork, loaders: dict[str, ImageLoader], num_points: int) -> EarlyAnswers:
    """The curve of a network on test images, all that is fitted fitted on validation images."""

    def answer(images: Tensor) -> Tensor:
        return torch.stack(network.answers(images, network.num_exits))

    held, truth = answer_table(answer, loaders["validation"])
    probabilities, labels = answer_table(answer, loaders["test"])
    costs = [float(cost) for cost in network.costs(next(iter(loaders["test"]))[0][:1])]
    names = tuple(f"exit {index}" for index in range(1, network.num_exits + 1))
    fit = ExitFit(held, truth, names, replaces=(None, *range(network.num_exits - 1)))
    policies = [fit.policy(costs, ("cost", amount)) for amount in costs_between(costs[0], sum(costs), num_points)]

    def cascade(table: Tensor, classes: Tensor) -> list[CostPoint]:
        outcomes = [simulate(table, policy) for policy in policies]
        return [_point(one.mean_cost(costs), probability_metrics(one.predictions, classes)) for one in outcomes]

    def alone(table: Tensor, classes: Tensor) -> list[CostPoint]:
        spent = costs if isinstance(network, Slimmable) else torch.tensor(costs).cumsum(0).tolist()
        return [_point(cost, probability_metrics(rows, classes)) for cost, rows in zip(spent, table)]

    def area(points: list[CostPoint]) -> float:
        pairs = [(point.flops, point.accuracy) for point in points]
        return log_area(pairs, costs[0], sum(costs), before=1 / held.shape[2], steps=False)

    best = max((cascade, alone), key=lambda curve: area(curve(held, truth)))
    whole = tempered(probabilities[-1], policies[-1].temperatures[-1])
    curves = {"cascade": best(probabilities, labels), "alone": alone(probabilities, labels)}
    return EarlyAnswers(
        curves=tuple(EarlyCurve(name=name, points=tuple(points)) for name, points in curves.items()),
        tempered=probability_metrics(whole, labels),
    )


def _point(flops: float, metrics: Metrics) -> CostPoint:
    return CostPoint(flops=flops, accuracy=metrics.accuracy, nll=metrics.nll)
