"""How a training differs where it goes on from trained members: a few settings in the place of the recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.training.config import TrainConfig

_GO_WITH = {"schedule": ("milestones", "gamma"), "optimizer": ("momentum", "nesterov")}
_CONFIG = TypeAdapter(TrainConfig)


def tuned_config(training: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A training with other settings; those that go with a schedule or an optimizer are left behind with it.

    Raises:
        SuperWeightError: A key or a value that no training takes.

    Example:
        >>> steps = TrainConfig(epochs=200, schedule="step", milestones=(60, 120))
        >>> tuned = tuned_config(steps, {"epochs": 5, "schedule": "cosine"})
        >>> tuned.epochs, tuned.milestones
        (5, ())
    """
    known = [field.name for field in fields(TrainConfig)]
    for key in changes:
        if key not in known:
            raise SuperWeightError(f"fine_tuning: {unknown_name('key', str(key), known)}")
    kept = asdict(training)
    for of, keys in _GO_WITH.items():
        if changes.get(of, kept[of]) != kept[of]:
            kept = {key: value for key, value in kept.items() if key not in keys}
    try:
        return _CONFIG.validate_python({**kept, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join(str(part) for part in ("fine_tuning", *first["loc"]))
        raise SuperWeightError(f"{spot}: {str(first['msg']).removeprefix('Value error, ')}") from None
