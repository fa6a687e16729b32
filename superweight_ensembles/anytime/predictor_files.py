"""A predictor as a folder: a saved ensemble, and anytime.json (order, input shape, policy) beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from superweight_ensembles.anytime.policy import ExitPolicy
from superweight_ensembles.ensemble import SuperWeightEnsemble, write_ensemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.storage import check_manifest, list_file, read_json, write_json

ANYTIME_FORMAT = 1
ANYTIME_FILE = "anytime.json"
_KEYS = ("format", "order", "input_shape", "policy")
_MOST_NUMBERS = 2**26  # a damaged file must not fill the memory with one image


def write_predictor(
    ensemble: SuperWeightEnsemble, folder: Path, order: Sequence[str], input_shape: Sequence[int],
    policy: ExitPolicy | None,
) -> None:  # fmt: skip
    """Write the ensemble's folder with anytime.json in it, as a whole or not at all."""
    members = dict(ensemble.members.items())
    write_ensemble(
        ensemble, ensemble.plan, members, folder, beside=lambda draft: _write(draft, order, input_shape, policy)
    )


def write_policy(folder: Path, order: Sequence[str], input_shape: Sequence[int], policy: ExitPolicy | None) -> None:
    """Write anytime.json into the folder of a saved ensemble, and into its manifest."""
    _write(folder, order, input_shape, policy)
    list_file(folder, ANYTIME_FILE)


def _write(folder: Path, order: Sequence[str], input_shape: Sequence[int], policy: ExitPolicy | None) -> None:
    values = (ANYTIME_FORMAT, list(order), list(input_shape), None if policy is None else policy.to_dict())
    write_json(folder / ANYTIME_FILE, dict(zip(_KEYS, values)))


def read_predictor(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...], ExitPolicy | None]:
    """Order, input shape and policy of a saved predictor; a file that is missing or damaged is refused."""
    path = folder / ANYTIME_FILE
    if not path.is_file():
        raise SuperWeightError(f"{path} is missing: {folder} is no saved predictor (AnytimePredictor.save writes one)")
    check_manifest(folder, [ANYTIME_FILE])
    content = read_json(path)
    if isinstance(content.get("format"), bool) or content.get("format") != ANYTIME_FORMAT:
        raise SuperWeightError(f"{path} has format {content.get('format')!r:.80}; this version reads {ANYTIME_FORMAT}")
    for key in content:
        if key not in _KEYS:
            raise SuperWeightError(f"{path}: {unknown_name('key', key, _KEYS)}")
    for key in _KEYS:
        if key not in content:
            raise SuperWeightError(f"{path}: {key} is missing")
    order, shape, policy = content["order"], content["input_shape"], content["policy"]
    if not isinstance(order, list) or not order or any(not isinstance(name, str) for name in order):
        raise SuperWeightError(f"{path}: order must be a list of member names; got {order!r:.80}")
    sizes = isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(size) is int and size > 0 for size in shape)
    if not sizes or math.prod(shape) > _MOST_NUMBERS:
        raise SuperWeightError(
            f"{path}: input_shape must list 1 to 8 sizes of at most {_MOST_NUMBERS:,} numbers in all; got {shape!r:.80}"
        )
    return tuple(order), tuple(shape), None if policy is None else ExitPolicy.from_dict(policy, f"{path}: policy")
