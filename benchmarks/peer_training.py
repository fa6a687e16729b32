"""How a network that is no member of a recipe is trained and evaluated as an arm of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime import evaluate
from superweight_ensembles.data import ImageData, ImageLoader, checked_batch
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.experiment import ProgressCallback, Recipe
from superweight_ensembles.plan import independent_plan
from superweight_ensembles.storage import as_content
from superweight_ensembles.training import train


def run_network(
    kind: str,
    recipe: Recipe,
    build: Callable[[ImageData], nn.Module],
    objective: Callable[[nn.Module, Tensor, Tensor], Tensor],
    folder: Path,
    progress: ProgressCallback | None,
) -> tuple[nn.Module, ImageData, dict[str, Any]]:
    """Train a network for the recipe's seed, data and epochs, and evaluate it on the test data.

    Args:
        kind: Name of the arm.
        recipe: Its data, training and seed; its members and sharing are not read.
        build: Makes the network, from the recipe's seed.
        objective: As :func:`train` takes it.
        folder: For the log and the checkpoint of the last epoch.
        progress: As :func:`train` calls it.

    Returns:
        The trained network in eval mode, the data, and an entry of ``arms`` as :class:`SeedResults` reads it, with the
        history.
    """
    data = recipe.load_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        members = {kind: build(data)}
    ensemble = SuperWeightEnsemble(members, plan=independent_plan(members))
    config = replace(recipe.training, label_smoothing=0.0, ensemble_loss=0.0, member_batches="same")
    result = train(ensemble, data, config, objective=objective, out=folder, resume=True, callback=progress)
    training = asdict(result)
    history = training.pop("history")
    found = as_content(evaluate(ensemble, evaluated(recipe, data, "test", next(ensemble.parameters()).device)))
    sizes = {"name": kind, "num_parameters": ensemble.num_parameters}
    return ensemble.materialize(kind).eval(), data, {**sizes, **found, "training": training, "history": history}


def evaluated(recipe: Recipe, data: ImageData, split: str, device: torch.device) -> ImageLoader:
    """The images of a split as a recipe evaluates on them."""
    return data.loader(split, recipe.evaluation.batch_size, device=device)


@torch.inference_mode()
def answer_table(answer: Callable[[Tensor], Tensor], loader: ImageLoader) -> tuple[Tensor, Tensor]:
    """Softmax (M, N, K) of what answers logits (M, B, K) to a loader's images, and labels (N,), on the CPU."""
    parts, truth = [], []
    for images, labels in map(checked_batch, loader):
        parts.append(answer(images).float().softmax(2).cpu())
        truth.append(labels.cpu())
    return torch.cat(parts, dim=1), torch.cat(truth)
