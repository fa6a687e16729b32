"""The width that a perceptron learns on three tasks, harder and harder, beside fixed widths, from three starts.

    python benchmarks/learned_widths.py --seeds 5 --jobs 2 --out benchmarks/results/learned-widths
    python benchmarks/draw.py benchmarks/results/learned-widths --out figures/learned-widths

A cell is a task and a seed: networks of learned width, from three rates, and of fixed ones, each with its own weights.
Those of a kind are trained side by side, on the same batches, each kind at a learning rate that suits it: the weights
that read a learned width are as many times larger as there are neurons. Nothing is chosen on the test points; the best
fixed width is the one of the most correct validation points, of several the one of the least validation loss. Each
finished cell is written to OUT/learned_widths.json at once, and the same command goes on after those that are there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import predict, probability_metrics
from superweight_ensembles.data import ImageData
from superweight_ensembles.models.adaptive import QUANTILE, WidthLoss, adaptive_mlp, multilayer_perceptron, width_of
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import LearnedWidths

LEARNED_WIDTHS_FORMAT = 1
RATE = 0.01  # the published start
OTHER_RATES = (0.001, 0.1)
FIXED = (8, 16, 24, 128, 256)
WEIGHT_DEVIATION = 50.0
BATCH_SIZE = 512
LEARNING_RATES = {"learned": 0.2, "fixed": 0.05}
WIDTH_RATE = 0.25
EPOCHS = {"double_moon": 3000, "spiral": 2000, "spiral_hard": 2500}
PUBLISHED = {"spiral": 66, "spiral_hard": 227}  # in the released configurations
_KEPT = 60  # epochs of a history


@dataclass(frozen=True, slots=True)
class Cell:
    """A training of networks of learned and of fixed widths.

    Attributes:
        task: A data set.
        seed: Of data, start values and batches.
        rates: That learned widths start with.
    """

    task: str
    seed: int
    rates: tuple[float, ...]


def main() -> None:
    parser = harness.new_parser(__doc__, seeds=5, jobs=1)
    parser.add_argument("--start-seeds", type=int, default=2, help="seeds that other starts are tried with")
    options = harness.read_options(parser)
    settings = {
        "optimizer": "adam",
        "schedule": "one_cycle",
        "batch_size": BATCH_SIZE,
        "learning_rates": LEARNING_RATES,
        "width_rate": WIDTH_RATE,
        "weight_deviation": WEIGHT_DEVIATION,
        "epochs": EPOCHS,
    }
    file = options.out / "learned_widths.json"
    content = harness.begin_or_resume(
        file, "learned_widths", "settings", other="other",
        format=LEARNED_WIDTHS_FORMAT, settings=settings, published_widths=PUBLISHED,
    )  # fmt: skip
    done = {(cell["task"], cell["seed"]) for cell in content["cells"]}
    cells = [
        Cell(task, seed, (RATE, *OTHER_RATES) if seed < options.start_seeds else (RATE,))
        for seed in range(options.seeds)
        for task in reversed(EPOCHS)
        if (task, seed) not in done
    ]
    for found in harness.run_cells(run_cell, cells, options.jobs):
        content["cells"].append(found)
        content["cells"].sort(key=lambda cell: (list(EPOCHS).index(cell["task"]), cell["seed"]))
        write_json(file, content)
        best = best_fixed(found)
        print(f"{found['task']}, seed {found['seed']}: {found['seconds']:.0f} s, best fixed width {best['width']}")
        harness.show(found["learned"])
    for line in summary(content["cells"]):
        print(line)


@harness.quiet("lightning_fabric", "superweight_ensembles", level=logging.ERROR)
def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and test all networks of a cell."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    data = swe.load_data(cell.task, seed=cell.seed)
    learned: dict[str, nn.Module] = {}
    for rate in cell.rates:
        torch.manual_seed(cell.seed)
        learned[f"learned-{rate:g}".replace(".", "_")] = adaptive_mlp(2, 2, rate=rate)
    fixed: dict[str, nn.Module] = {}
    for width in FIXED:
        torch.manual_seed(cell.seed)
        fixed[f"fixed-{width}"] = multilayer_perceptron([width], 2, in_channels=2)
    histories, tested = trained(learned, data, cell, "learned")
    _, beside = trained(fixed, data, cell, "fixed")
    return {
        "task": cell.task,
        "seed": cell.seed,
        "commit": provenance()["commit"],
        "learned": [
            {
                "rate": rate,
                "start": width_of(rate, "exponential", QUANTILE),
                "width": histories[name][-1][1],
                **tested[name],
                "history": thinned(histories[name]),
            }
            for rate, name in zip(cell.rates, learned)
        ],
        "fixed": [{"width": width, **beside[name]} for width, name in zip(FIXED, fixed)],
        "seconds": time.perf_counter() - begin,
    }


def trained(
    members: dict[str, nn.Module], data: ImageData, cell: Cell, kind: str
) -> tuple[dict[str, list[list[int]]], dict[str, dict[str, Any]]]:
    """Epochs and widths of learned ones, and what each member does on validation and test points."""
    ensemble = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    learned = kind == "learned"
    config = swe.TrainConfig(
        epochs=EPOCHS[cell.task],
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATES[kind],
        width_rate=WIDTH_RATE if learned else 1.0,
        optimizer="adamw",
        weight_decay=0.0,  # Adam, then
        schedule="one_cycle",
        precision="float32",
        channels_last=False,
        num_threads=1,
        validate_every=EPOCHS[cell.task],
        seed=cell.seed,
    )
    prior = LearnedWidths(WidthLoss(weight_deviation=WEIGHT_DEVIATION) if learned else None)
    result = swe.train(ensemble, data, config, hooks=[prior])
    validation, test = (quality(ensemble, data, split) for split in ("validation", "test"))
    histories = {
        name: [[one["epoch"], one["widths"][name]["hidden0"]] for one in result.history] if learned else []
        for name in members
    }
    return histories, {name: {"validation": validation[name], "test": test[name]} for name in members}


def quality(ensemble: swe.SuperWeightEnsemble, data: ImageData, split: str) -> dict[str, dict[str, float]]:
    """Accuracy and negative log likelihood of each member."""
    answers = predict(ensemble.eval(), data.loader(split, 1000))
    found = {}
    for name, rows in zip(ensemble.member_names, answers.probabilities):
        metrics = probability_metrics(rows, answers.labels)
        found[name] = {"accuracy": metrics.accuracy, "nll": metrics.nll}
    return found


def thinned(history: list[list[int]]) -> list[list[int]]:
    """The first and last epoch and some between, as many in each stretch of the epochs' logarithms."""
    last = len(history) - 1
    kept = {0, last, *(round(last ** (index / _KEPT)) for index in range(_KEPT))}
    return [history[index] for index in sorted(kept)]


def best_fixed(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fixed width that validation chooses."""
    return max(cell["fixed"], key=lambda one: (one["validation"]["accuracy"], -one["validation"]["nll"]))


def summary(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for task in EPOCHS:
        for rate in (RATE, *OTHER_RATES):
            found = [
                (cell, one) for cell in cells if cell["task"] == task for one in cell["learned"] if one["rate"] == rate
            ]
            if not found:
                continue
            widths = [one["width"] for _, one in found]
            ratios = [one["width"] / cell["learned"][0]["width"] for cell, one in found]
            gains = [100 * (one["test"]["accuracy"] - best_fixed(cell)["test"]["accuracy"]) for cell, one in found]
            accuracies = [100 * one["test"]["accuracy"] for _, one in found]
            lines.append(
                f"{task} from {rate:g}: width {harness.spread_text(widths, '.0f')} of {widths}, over the first start's "
                f"{min(ratios):.2f} to {max(ratios):.2f}; {harness.spread_text(accuracies)} %, minus the best fixed "
                f"width's {harness.spread_text(gains, '+.2f')}"
            )
    for seed in sorted({cell["seed"] for cell in cells}):
        widths = [cell["learned"][0]["width"] for cell in cells if cell["seed"] == seed]
        lines.append(
            f"seed {seed}: {' '.join(map(str, widths))}{'' if widths == sorted(set(widths)) else ', not ordered'}"
        )
    return lines


if __name__ == "__main__":
    main()
