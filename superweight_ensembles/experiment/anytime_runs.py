"""The anytime section of a run: stream and cascade of an arm's members, and of their truncations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from superweight_ensembles.anytime.calibration import MIN_SAMPLES
from superweight_ensembles.anytime.curves import measure_curves
from superweight_ensembles.anytime.evaluate import predict
from superweight_ensembles.anytime.exit_order import order_exits
from superweight_ensembles.anytime.metrics import probability_metrics
from superweight_ensembles.anytime.predictions import Predictions
from superweight_ensembles.anytime.predictor import AnytimePredictor
from superweight_ensembles.anytime.saving import write_policy
from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.loader import ImageLoader
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.models.adaptive.exits import truncated_exits
from superweight_ensembles.training.member_batches import training_loader

_NORM_BATCHES = 50
_FITTED = ("confidence", "temperature", "monotone")  # options of fitting thresholds


def measure_anytime(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, tested: Predictions, folder: Path
) -> dict[str, Any]:
    """The ``anytime`` entry of an arm's results; the calibrated policy goes beside the ensemble.

    Args:
        recipe: Of the run, with an anytime section.
        ensemble: Trained, in eval mode, on its device.
        data: Validation images fit thresholds, test images make figures.
        tested: The members' predictions on the test images.
        folder: Of the arm.
    """
    settings = recipe.anytime
    assert settings is not None, "the caller has looked"
    check_held_out(data)
    device = next(ensemble.parameters()).device
    held = predict(ensemble, evaluated(recipe, data, "validation", device))
    greedy = {"loader": held} if settings.order == "greedy" else {}
    predictor = AnytimePredictor(ensemble, settings.order, input_shape=data.image_shape, **greedy)
    test = evaluated(recipe, data, "test", device)
    found = measure_curves(predictor, held, test, tested=tested, **settings.curve_options())
    write_policy(folder / "ensemble", predictor.order, data.image_shape, predictor.policy)
    if settings.truncations:
        found["truncated"] = _measure_truncated(recipe, ensemble, data, device)
    return {"anytime": found}


def evaluated(recipe: Recipe, data: ImageData, split: str, device: torch.device) -> ImageLoader:
    """The images of a split as a recipe evaluates on them."""
    return data.loader(split, recipe.evaluation.batch_size, device=device)


def check_held_out(data: ImageData) -> None:
    """Refuse an anytime section without data to fit thresholds on.

    Raises:
        SuperWeightError: Fewer than 100 validation images.
    """
    if len(data.validation) < MIN_SAMPLES:
        raise SuperWeightError(
            f"anytime: thresholds are fitted on at least {MIN_SAMPLES} validation images; {data.name} has "
            f"{len(data.validation)}: raise data.validation_fraction, or leave the section out"
        )


def _measure_truncated(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, device: torch.device
) -> dict[str, Any]:
    """Stream and cascade of the members and their truncations, in the order that validation images choose."""
    settings = recipe.anytime
    assert settings is not None, "the caller has looked"
    training = training_loader(data, recipe.training, device)  # augmented: statistics of plain images are others
    batches = [images for (images, _), _ in zip(training, range(_NORM_BATCHES))]
    exits = truncated_exits(
        {name: ensemble.materialize(name).eval() for name in ensemble.member_names}, settings.truncations,
        norm_data=batches,
    )  # fmt: skip
    every = AnytimePredictor(exits, input_shape=data.image_shape)
    held = every.predict(evaluated(recipe, data, "validation", device))
    names = every.order
    options = {name: value for name, value in settings.curve_options().items() if name in _FITTED}
    chosen = order_exits(names, every.version_of, held.of(names), held.labels, every.flops, **options)
    predictor = AnytimePredictor(exits, chosen, input_shape=data.image_shape)
    test = evaluated(recipe, data, "test", device)
    tested = every.predict(test)
    everything = ("flops", float(sum(predictor.flops.values())))
    found = measure_curves(predictor, held, test, tested=tested, **{**settings.curve_options(), "target": everything})
    alone = [
        {
            "name": name,
            "flops": every.flops[name],
            "accuracy": probability_metrics(own, tested.labels).accuracy,
        }
        for name, own in zip(names, tested.of(names))
    ]
    return {**found, "exits": alone}
