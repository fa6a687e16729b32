"""An efficient ensemble of another library, trained and evaluated exactly as this library's arms are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.anytime import diversity, evaluate
from superweight_ensembles.data import checked_batch
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.experiment.uncertainty import EstimatorNetwork, build_estimator_network
from superweight_ensembles.plan import independent_plan
from superweight_ensembles.storage import as_content
from superweight_ensembles.training import TrainProgress, train

_NOT_DECAYED = ("bias", "r_group", "s_group")


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
    arm: str,
    recipe: Recipe,
    num_parameters: int,
    folder: Path,
    progress: Callable[[TrainProgress], None] | None = None,
) -> dict[str, Any]:
    """Train one arm for the recipe's seed, data and epochs, and evaluate it on the test data.

    The loss is the mean over the rows of a training step, hence over estimators, as torch-uncertainty takes it; members
    of a shared bank sum theirs. One learning rate does not mean the same to both: tune it arm by arm.

    Args:
        arm: Of ``UNCERTAINTY_ARMS``.
        recipe: Its data, training and seed; its members and sharing are not read.
        num_parameters: Trainable scalars to come near to.
        folder: For the log and the checkpoint of the last epoch.
        progress: As :func:`train` calls it.

    Returns:
        An entry of ``arms`` as results.json holds it.
    """
    data = recipe.load_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        estimators = build_estimator_network(
            arm, num_parameters=num_parameters, num_classes=data.num_classes, in_channels=data.image_shape[0]
        )
    members = {arm: EstimatorMember(estimators)}
    ensemble = SuperWeightEnsemble(members, plan=independent_plan(members))
    smoothing = recipe.training.label_smoothing

    def objective(member: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(member, EstimatorMember)
        logits, rows = member.estimators.training_logits(images, labels)
        return F.cross_entropy(logits, rows, label_smoothing=smoothing)

    result = train(
        ensemble,
        data,
        replace(recipe.training, label_smoothing=0.0, ensemble_loss=0.0, member_batches="same"),
        objective=objective,
        out=folder,
        resume=True,
        callback=progress,
    )
    device = next(ensemble.parameters()).device
    loader = data.loader("test", recipe.evaluation.batch_size, device=device)
    found = as_content(evaluate(ensemble, loader))
    probabilities, labels = _estimator_probabilities(ensemble.materialize(arm), loader)
    training = asdict(result)
    return {
        "name": arm,
        "architecture": estimators.architecture,
        "num_parameters": ensemble.num_parameters,
        **found,
        "diversity": diversity(probabilities, labels),
        "training": {key: value for key, value in training.items() if key != "history"},
        "history": training["history"],
    }


@torch.inference_mode()
def _estimator_probabilities(member: nn.Module, loader: Any) -> tuple[Tensor, Tensor]:
    """Softmax of every estimator (M, N, K), and labels (N,)."""
    assert isinstance(member, EstimatorMember)
    device = next(member.parameters()).device
    parts, truth = [], []
    for images, labels in map(checked_batch, loader):
        parts.append(member.eval().estimators(images.to(device)).float().softmax(2).cpu())
        truth.append(labels.cpu())
    return torch.cat(parts, dim=1), torch.cat(truth)
