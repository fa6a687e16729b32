"""``superweights compare`` with six more baselines: other ensembles in one network, and other networks with exits.

    pip install "superweight-ensembles[bench]"
    python benchmarks/compare_peers.py recipes/digits.yaml --against independent,packed,exits,slimmable --seeds 3

Takes the options of ``superweights compare`` and writes its files; ``--against`` knows, besides, batchensemble, packed,
mimo and masksembles of torch-uncertainty, each as a ResNet with as many parameters as the shared ensemble or as near as
it can come, and exits and slimmable, which are made of the largest member. Every arm is trained and evaluated exactly
as the library's own are.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from exit_networks import EXIT_ARMS, build_exit_network, run_exit_arm
from peer_training import answer_table, evaluated, run_network
from torch import Tensor, nn
from torch.nn import functional as F
from uncertainty_networks import UNCERTAINTY_ARMS, EstimatorNetwork, build_estimator_network, check_installed

from superweight_ensembles import __main__ as command_line
from superweight_ensembles.anytime import diversity
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Arm, Baseline, ProgressCallback, Recipe
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.storage import write_json
from superweight_ensembles.training import CHECKPOINT_FOLDER

_LABELS = {"batchensemble": "BatchEnsemble", "packed": "Packed", "mimo": "MIMO", "masksembles": "Masksembles"}
_EXIT_LABELS = {"exits": "network with exits", "slimmable": "slimmable network"}
_NOT_DECAYED = ("bias", "r_group", "s_group")


def main() -> None:
    command_line.main(["compare", *sys.argv[1:]], baselines=BASELINES)


def baseline(kind: str) -> Baseline:
    """One of :data:`UNCERTAINTY_ARMS` as what :func:`compare_arms` takes."""

    def build(shared: Arm, members: Mapping[str, nn.Module]) -> Arm:
        check_installed(kind)
        return replace(shared, label=_LABELS[kind], train=train_seed)

    return build


def exit_baseline(kind: str) -> Baseline:
    """One of :data:`EXIT_ARMS` as what :func:`compare_arms` takes."""

    def build(shared: Arm, members: Mapping[str, nn.Module]) -> Arm:
        size = count_parameters(build_exit_network(kind, list(members.values())))
        return replace(shared, label=_EXIT_LABELS[kind], num_parameters=size, train=train_exits)

    return build


BASELINES = {
    **{kind: baseline(kind) for kind in UNCERTAINTY_ARMS},
    **{kind: exit_baseline(kind) for kind in EXIT_ARMS},
}


def train_seed(arm: Arm, recipe: Recipe, folder: Path, progress: ProgressCallback | None) -> None:
    """Train and evaluate an arm for one seed, as a comparison asks for."""
    _keep(folder, run_estimator_arm(arm.kind, recipe, arm.num_parameters, folder, progress))


def train_exits(arm: Arm, recipe: Recipe, folder: Path, progress: ProgressCallback | None) -> None:
    """The same for a network with exits."""
    _keep(folder, run_exit_arm(arm.kind, recipe, folder, progress))


def _keep(folder: Path, found: dict[str, Any]) -> None:
    write_json(folder / "results.json", {"arms": [found]})
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


class EstimatorMember(nn.Module):
    """A network of estimators as one member: its logits are the log of the estimators' mean softmax."""

    def __init__(self, estimators: EstimatorNetwork) -> None:
        super().__init__()
        self.estimators = estimators

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, K)."""
        every = self.estimators(images).float().log_softmax(2)
        return every.logsumexp(0) - torch.tensor(float(len(every))).log()

    def no_weight_decay(self) -> set[str]:
        """Biases and the fast weights of BatchEnsemble, of any number of dimensions."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in _NOT_DECAYED}


def run_estimator_arm(
    kind: str, recipe: Recipe, num_parameters: int, folder: Path, progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Train one arm for the recipe's seed, data and epochs, and evaluate it on the test data.

    The loss is the mean over the rows of a training step, hence over estimators, as torch-uncertainty takes it; members
    of a shared bank sum theirs. One learning rate does not mean the same to both: tune it arm by arm.

    Args:
        kind: One of :data:`UNCERTAINTY_ARMS`.
        recipe: Its data, training and seed; its members and sharing are not read.
        num_parameters: Trainable scalars to come near to.
        folder: For the log and the checkpoint of the last epoch.
        progress: As :func:`train` calls it.

    Returns:
        An entry of ``arms`` as :class:`SeedResults` reads it, and the history.
    """
    smoothing = recipe.training.label_smoothing

    def objective(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(member, EstimatorMember)
        logits, rows = member.estimators.training_logits(images, labels)
        return F.cross_entropy(logits, rows, label_smoothing=smoothing)

    def build(data: ImageData) -> EstimatorMember:
        return EstimatorMember(
            build_estimator_network(
                kind, num_parameters=num_parameters, num_classes=data.num_classes, in_channels=data.image_shape[0]
            )
        )

    member, data, found = run_network(kind, recipe, build, objective, folder, progress)
    assert isinstance(member, EstimatorMember)
    loader = evaluated(recipe, data, "test", next(member.parameters()).device)
    spread = diversity(*answer_table(member.estimators, loader))
    return {**found, "architecture": member.estimators.architecture, "diversity": spread}


if __name__ == "__main__":
    main()
