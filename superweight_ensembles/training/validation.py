"""Accuracy and likelihood on validation images, in the course of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import reduce
from lightning_fabric import Fabric
from torch import Tensor, nn

from superweight_ensembles.data.batches import checked_batch
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.distributed.group import current_processes
from superweight_ensembles.training.member_batches import Batches


@torch.inference_mode()
def validate(ensemble: SuperWeightEnsemble, members: Sequence[str], batches: Batches, fabric: Fabric) -> dict[str, Any]:
    """Accuracy and NLL of every member asked for and of their mean, in eval mode, over the images of all processes."""
    ensemble.eval()
    weights = ensemble.bank.generate(members)
    sums = torch.zeros(len(members) + 1, 2, dtype=torch.float64, device=fabric.device)
    num_images = torch.zeros((), dtype=torch.float64, device=fabric.device)
    for batch in batches:
        images, labels = checked_batch(batch)
        if not len(labels):  # a process's part of a small last batch
            continue
        images, labels = images.to(fabric.device), labels.to(fabric.device)
        with fabric.autocast():
            logits = [ensemble.run_member(name, images, weights[name]) for name in members]
        every = torch.stack(logits).float().log_softmax(2)
        mean = reduce(every.exp(), "m n k -> n k", "mean").clamp_min(1e-38).log()
        sums += torch.stack([_sums(found, labels) for found in (*every, mean)])
        num_images += len(labels)
    current_processes().sum_([sums, num_images])
    if not int(num_images):
        raise SuperWeightError("validation yields no batch: give an iterable that can be read every epoch")
    *each, ensemble_row = (sums / num_images).tolist()
    return {
        "members": {name: _quality(row) for name, row in zip(members, each)},
        "ensemble": _quality(ensemble_row),
    }


def _sums(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Right answers, and the negative log likelihood, over a batch (N, K)."""
    right = (log_probabilities.argmax(1) == labels).double().sum()
    return torch.stack([right, nn.functional.nll_loss(log_probabilities.double(), labels, reduction="sum")])


def _quality(row: list[float]) -> dict[str, float]:
    return {"accuracy": row[0], "nll": row[1]}
