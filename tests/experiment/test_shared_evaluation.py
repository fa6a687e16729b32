"""Evaluation by two processes, of a run and of loaders of one's own: what one finds, timed by the first alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import nn
from torchmetrics import MeanAbsoluteError, R2Score

import superweight_ensembles as swe
from superweight_ensembles.anytime import curves, evaluation
from superweight_ensembles.experiment import evaluate_run, parse_recipe, read_results, run_folder, train_run
from superweight_ensembles.storage import as_content
from superweight_ensembles.training import build_fabric
from superweight_ensembles.training.distributed import current_processes

RECIPE: dict[str, Any] = {
    "name": "shared-out",
    "data": {"name": "synthetic", "num_train": 600, "validation_fraction": 0.25, "num_test": 61},
    "members": [
        {
            "name": "a", "model": "wide_resnet", "depth": 10, "width": 0.5,
            "adaptive": {"pairs": [["stages.*.conv1", "stages.*.conv2"]]},
        },
        {"name": "b", "model": "wide_resnet", "depth": 10, "width": 1},
    ],
    "learn_widths": {"epochs": 1},
    "width_loss": {"prior_rate": 1.0, "prior_deviation": 0.05},
    "sharing": {"budget": 0.8, "init": "svd"},
    "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "precision": "float32", "device": "cpu"},
    "evaluation": {"batch_size": 10},
    "anytime": {"truncations": [0.5], "timed_images": 16, "batch_size": 8, "num_points": 3},
    "uncertainty": {
        "corruptions": ["gaussian_noise", "jpeg"],
        "severities": [1, 5, 3],
        "others": {"name": "synthetic", "num_train": 16, "num_test": 40, "num_classes": 7},
    },
}  # fmt: skip
CLOCK = {"latency_ms", "latency_area", "provenance"}


def numbers() -> tuple[swe.SuperWeightEnsemble, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Members that answer a number, and three batches for them."""
    torch.manual_seed(4)
    members = {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)) for name in "ab"}
    ensemble = swe.SuperWeightEnsemble(members, budget=1.0, task="regression")
    return ensemble, [(torch.randn(count, 4), torch.randn(count, 1)) for count in (4, 5, 3)]


def scores(batches: list[Any], gather: bool) -> dict[str, Any]:
    metrics = {"mae": MeanAbsoluteError(), "twice": MeanAbsoluteError() + MeanAbsoluteError(), "r2": R2Score()}
    found = as_content(swe.evaluate(numbers()[0], batches, metrics=metrics, gather=gather))
    return without_clock(found)


def networks(num_classes: int) -> swe.SuperWeightEnsemble:
    members = {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, num_classes)) for name in "ab"}
    return swe.SuperWeightEnsemble(members, budget=1.0)


def classes() -> tuple[swe.SuperWeightEnsemble, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(4)
    return networks(3), [(torch.randn(count, 4), torch.arange(count) % 3) for count in (4, 5, 3)]


def refusal(ensemble: swe.SuperWeightEnsemble, batches: list[Any], **options: Any) -> str:
    try:
        swe.evaluate(ensemble, batches, gather=True, **options)
    except swe.SuperWeightError as error:
        return str(error)
    return "taken"


def never(*args: Any, **options: Any) -> None:
    raise AssertionError("of the first process alone")


def job(rank: int, folder: Path) -> dict[str, Any]:
    """What each of the two does; the second may neither take times nor write."""
    build_fabric(parse_recipe(RECIPE).training)
    if rank:
        evaluation.costs_of = curves._clock = run_folder.write_json = run_folder.write_text = never
    found: dict[str, Any] = {"run": as_content(evaluate_run(folder / "two"))}
    (ensemble, batches), own = classes(), slice(0, 2) if rank == 0 else slice(2, 3)
    found["gathered"] = without_clock(as_content(swe.evaluate(ensemble, batches[own], gather=True)))
    _, pairs = numbers()
    found["scores"] = scores(pairs[own], gather=True)
    found["none"] = [refusal(ensemble, [] if rank else batches)]
    found["none"] += [refusal(numbers()[0], [] if rank else pairs, metrics={"mae": MeanAbsoluteError()})]
    found["unsummed"] = refusal(numbers()[0], pairs, metrics={"mae": MeanAbsoluteError(sync_on_compute=False)})
    evaluation.costs_of = COSTS_OF
    found["own"] = scores(pairs[own], gather=False)
    found["apart"] = swe.evaluate(ensemble, batches[own]).num_samples
    found["odd"] = refusal(networks(3 + rank), batches[own])
    found["size"] = current_processes().size
    return found


COSTS_OF = evaluation.costs_of


def without_clock(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_clock(value) for key, value in content.items() if key not in CLOCK}
    return [without_clock(value) for value in content] if isinstance(content, list) else content


def leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if parts is None:
        yield path, content
    else:
        for key, part in parts:
            yield from leaves(part, f"{path}.{key}")


def assert_alike(found: Any, one: Any) -> None:
    """To rounding: parts of the last batches have other sizes."""
    found, one = dict(leaves(without_clock(found))), dict(leaves(without_clock(one)))
    assert found.keys() == one.keys()
    for path, value in one.items():
        assert found[path] == (pytest.approx(value, rel=1e-5, abs=1e-7) if isinstance(value, float) else value), path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("evaluated")
    train_run(parse_recipe(RECIPE), folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    return folder, two_processes.run(job, folder)


def test_a_run_evaluated_by_two_processes_has_the_results_of_one(done: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, answers = done
    whole = as_content(evaluate_run(folder / "one"))
    arm = whole["arms"][0]
    assert arm["warm_start"] and arm["anytime"]["truncated"] and arm["shift"]["others"]["num_samples"] == 40
    assert [one["severity"] for one in arm["shift"]["corrupted"]] == [1, 5, 3, 1, 5, 3]
    for answer in answers:
        assert_alike(answer["run"], whole)
    assert as_content(read_results(folder / "two")[0]) == answers[0]["run"] == answers[1]["run"]
    policies = [json.loads((folder / name / "shared/ensemble/anytime.json").read_text()) for name in ("one", "two")]
    assert_alike(policies[1], policies[0])


def test_loaders_of_ones_own_are_gathered_where_that_is_asked_for(done: tuple[Path, list[dict[str, Any]]]) -> None:
    (ensemble, batches), (_, pairs) = classes(), numbers()
    for rank, answer in enumerate(done[1]):
        assert_alike(answer["gathered"], as_content(swe.evaluate(ensemble, batches)))
        assert_alike(answer["scores"], scores(pairs, gather=False))
        own = slice(0, 2) if rank == 0 else slice(2, 3)
        assert answer["own"] == scores(pairs[own], gather=False), "without gather, of this process's rows"
        assert answer["apart"] == (9, 3)[rank] and answer["size"] == 2


def test_processes_without_rows_or_with_other_members_are_refused(done: tuple[Path, list[dict[str, Any]]]) -> None:
    for answer in done[1]:
        for told in answer["none"]:
            assert told == ("process 1 of 2 has no samples to evaluate: give each some, or start fewer processes")
        assert "the processes of the job disagree on the members and their classes" in answer["odd"]
        assert answer["unsummed"] == "metric 'mae' has sync_on_compute=False, and gather sums it over processes"
    assert_alike(scores(numbers()[1], gather=True), scores(numbers()[1], gather=False))  # in a single process
