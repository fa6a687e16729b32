"""The steps of two processes that benchmarks/many_processes.py measures, and the pieces that such steps are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
from harness import timed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_steps import apart_step, generation_step, recipe_ensemble, recipe_members, trained_format, training_state

from superweight_ensembles.experiment import Recipe, estimate_training
from superweight_ensembles.training import (
    Execution,
    JointLoss,
    LearnedWidths,
    Progress,
    TrainConfig,
    TrainStep,
    build_optimizer,
    moment_owners,
)
from superweight_ensembles.training.distributed import Processes, SynchronisedNorm, placed, synchronised

Batch = tuple[Tensor, Tensor]
Step = Callable[[], object]
MICRO_SIZES = (2**10, 2**14, 2**17, 2**20, 2**22, 2**24, 25 * 2**20)


def half(batch: Batch, rank: int) -> Batch:
    """The rows of one of two processes."""
    images, labels = batch
    rows = slice(len(labels) * rank // 2, len(labels) * (rank + 1) // 2)
    return images[rows].contiguous(memory_format=torch.channels_last), labels[rows]


def library_step(
    recipe: Recipe,
    config: TrainConfig,
    batch: Batch,
    processes: Processes,
    losses: dict[str, list[float]],
    placement: Sequence[Sequence[str]] | None = None,
) -> Step:
    """As ``swe.train`` takes it; on member ranks where a placement is given."""
    ensemble = recipe_ensemble(recipe, config)
    optimizer = build_optimizer(ensemble, config)
    ensemble.train()
    state = training_state(
        ensemble, config, optimizer, hooks=(LearnedWidths(),), processes=processes, placement=placement,
        channels_last=trained_format(config) == torch.channels_last,
    )  # fmt: skip
    state.moment_owners = moment_owners(state)
    step = TrainStep(state, JointLoss(loss_function=nn.functional.cross_entropy), Execution())

    def take() -> None:
        state.progress = Progress()
        step([batch])
        for name, loss in state.progress.loss_sums.items():
            losses.setdefault(name, []).append(loss)

    return take


def ddp_step(recipe: Recipe, config: TrainConfig, batch: Batch, processes: Processes, synchronise: bool) -> Step:
    """Members with weights of their own, each under torch's DistributedDataParallel, one after the other."""
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    members = [DistributedDataParallel(member, broadcast_buffers=False) for member in recipe_members(recipe, config)]
    step, _ = apart_step(members, config)

    def take() -> None:
        with synchronised(processes) if synchronise else nullcontext():
            step(*batch)

    return take


def own_members_step(recipe: Recipe, config: TrainConfig, batch: Batch, mine: Collection[str]) -> Step:
    """Some members with weights of their own: nothing to exchange."""
    modules = dict(zip((member.name for member in recipe.members), recipe_members(recipe, config)))
    return partial(apart_step([modules[name] for name in mine], config)[0], *batch)


def two_threads(step: Step) -> Step:
    """The one process that has both cores."""

    def take() -> None:
        torch.set_num_threads(2)
        try:
            step()
        finally:
            torch.set_num_threads(1)

    return take


def pieces(recipe: Recipe, config: TrainConfig, batch: Batch, rank: int) -> dict[str, Step]:
    """What a simulated step is put together from: each member alone on all rows and on half of them, the latter also
    with the arithmetic of the synchronised norm, which exchanges nothing here; and generating all weights."""
    found: dict[str, Step] = {"generation": generation_step(recipe_ensemble(recipe, config))}
    for member in recipe.members:
        halved = own_members_step(recipe, config, half(batch, rank), [member.name])
        found[f"{member.name} whole"] = own_members_step(recipe, config, batch, [member.name])
        found[f"{member.name} half"] = halved
        found[f"{member.name} half norm"] = partial(_in_norm, halved)
    return found


def placement(recipe: Recipe, config: TrainConfig, image_size: int) -> tuple[tuple[str, ...], ...]:
    """Members by FLOPs on two member ranks."""
    ensemble = recipe_ensemble(recipe, config)
    estimate = estimate_training(ensemble, ensemble.plan, (3, image_size, image_size), config)
    return placed({member.name: member.forward_flops for member in estimate.members}, 2)


def network_seconds(processes: Processes, repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds by bytes of the two collectives that a training uses, by name."""

    def seconds(exchange: Step) -> float:
        times = []
        for _ in range(repeats):
            processes.barrier()
            times.append(timed(exchange))
        return median(times)

    gathered = [torch.ones(2 * channels + 1) for channels in (16, 64, 256, 512)]
    return {
        "all_reduce": {size: seconds(partial(processes.all_reduce_, [torch.ones(size // 4)])) for size in MICRO_SIZES},
        "all_gather": {told.nbytes: seconds(partial(processes.all_gather, told)) for told in gathered},
    }


def _in_norm(step: Step) -> None:
    with SynchronisedNorm(Processes()):
        step()
