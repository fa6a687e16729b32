"""What a search costs: the gradients' forward and backward passes, and everything beyond them.

    python benchmarks/search_time.py --out benchmarks/results/search_time.json

Two members with about 100 targets each take part (WRN 100-1 and WRN 94-1 at 8 x 8 by default, so that passes are cheap
and all else stands out), with one batch. ``pairwise`` is the same similarity pair by pair, as a loop would do it.
Rounds alternate; medians and quartiles are kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import combinations

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

import superweight_ensembles as swe
from superweight_ensembles.search import cropped_cosines, searched_members, weight_gradients


def main() -> None:
    parser = harness.new_parser(__doc__, depths=[100, 94], width=1, pixels=8, batch=128, rounds=7, threads=1)
    options = harness.read_options(parser)
    torch.manual_seed(0)
    members = {f"wrn{depth}-{options.width}": swe.wide_resnet(depth, options.width, 10) for depth in options.depths}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.83, coefficients="tied")
    shape = (options.batch, 3, options.pixels, options.pixels)
    batches = [(torch.randn(*shape), torch.randint(0, 10, (options.batch,)))]
    swe.train(ensemble, batches, swe.TrainConfig(epochs=1, learning_rate=0.01, precision="float32"))
    gradients = weight_gradients(ensemble, batches, searched_members(ensemble))
    by_cluster = [
        [
            gradients[target.member, target.name]
            for target in cluster.targets
            if (target.member, target.name) in gradients
        ]
        for cluster in ensemble.plan.clusters
    ]
    jobs: dict[str, Callable[[], object]] = {
        "passes": lambda: weight_gradients(ensemble, batches, searched_members(ensemble)),
        "search": lambda: swe.search_sharing(ensemble, batches),
        "similarity": lambda: [cropped_cosines(tensors) for tensors in by_cluster],
        "pairwise": lambda: [pairwise(tensors) for tensors in by_cluster],
    }
    seconds = harness.alternate(jobs, options.rounds, warm_up=0)
    beyond = [search - passes for search, passes in zip(seconds["search"], seconds["passes"])]
    found = {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "beyond_passes": summary(beyond),
    }
    targets = {name: len(swe.plan.find_targets(module, name)) for name, module in members.items()}
    harness.write_results(
        options.out, "search_time", members=targets, batch=list(shape), threads=options.threads, **found
    )
    harness.show([found])


def pairwise(tensors: list[Tensor]) -> list[Tensor]:
    """The cosine of each pair, one pair at a time."""
    found = []
    for left, right in combinations(tensors, 2):
        rows, columns = min(len(left), len(right)), min(left.shape[1], right.shape[1])
        crops = [tensor[:rows, :columns].flatten() for tensor in (left, right)]
        found.append(F.cosine_similarity(crops[0], crops[1], dim=0))
    return found


def summary(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4)
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper, "n": len(values)}


if __name__ == "__main__":
    main()
