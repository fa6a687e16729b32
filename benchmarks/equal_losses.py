"""Whether two processes train as one does: the loss of every step, and what rounding alone does to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.training import build_fabric
from superweight_ensembles.training.distributed import current_processes

STEPS = 20
BOUND = 1e-5
RATES = (0.1, 0.01, 0.001)
CASES = (("float64", 0.1), *(("float32", rate) for rate in RATES))
Losses = list[list[float]]


class OneBatchAnEpoch:
    """The first batches of a recipe's training, one each epoch, so that each step's loss is in the history.

    Args:
        recipe: Names data and batch size; nothing is augmented.
        seed: Of the order of the images.
        dtype: Of the images.
        shard: (rank, size): of each batch, the rows of one process.
        order: Seed of another order of the rows within each batch; None leaves them as they come.
    """

    def __init__(
        self, recipe: Recipe, seed: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1), order: int | None = None
    ) -> None:
        size = recipe.training.batch_size
        loader = recipe.load_data().loader("train", size, shuffle=True, drop_last=True, seed=seed)
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        epoch = 0
        while len(self.batches) < STEPS:
            loader.set_epoch(epoch)
            self.batches += [(images.to(dtype), labels) for images, labels in loader]
            epoch += 1
        self.rank, self.size = shard
        self.source = None if order is None else torch.Generator().manual_seed(order)
        self.epoch = 0

    def __len__(self) -> int:
        return 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, labels = self.batches[self.epoch]
        rows = slice(len(labels) * self.rank // self.size, len(labels) * (self.rank + 1) // self.size)
        if self.source is not None:
            places = torch.randperm(len(labels), generator=self.source)
            images, labels = images[places], labels[places]
        yield images[rows], labels[rows]


def losses(
    recipe_file: str, precision: str, rate: float, seed: int, order: int | None = None, member_ranks: int = 1
) -> Losses:
    """Of each of the first steps, each member's loss, in however many processes there are."""
    recipe = load_recipe(recipe_file, [f"seed={seed}"])
    dtype = torch.float64 if precision == "float64" else torch.float32
    config = swe.TrainConfig(
        epochs=STEPS, batch_size=recipe.training.batch_size, learning_rate=rate, schedule="constant",
        precision="float32", device="cpu", seed=seed,
        mesh="rows" if member_ranks == 1 else {"members": member_ranks, "rows": 1},
    )  # fmt: skip
    build_fabric(config)
    members = recipe.build_members()
    for member in members.values():
        member.to(dtype)
    ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members), rng=recipe.bank_generator()).to(dtype)
    shard = current_processes().shard if member_ranks == 1 else (0, 1)
    data = OneBatchAnEpoch(recipe, seed, dtype, shard, order)
    history = swe.train(ensemble, data, config).history
    return [list(record["train_loss"].values()) for record in history]


def losses_of_two(rank: int, recipe_file: str, seeds: int) -> dict[str, Losses]:
    """What each of two processes sees, by member ranks, case and seed."""
    return {
        f"{ranks} {precision} {rate} {seed}": losses(recipe_file, precision, rate, seed, member_ranks=ranks)
        for ranks in (1, 2)
        for precision, rate in CASES
        for seed in range(seeds)
    }


def compared(recipe_file: str, seeds: int, of_two: dict[str, Losses]) -> list[dict[str, Any]]:
    """Of each case and seed: how far two processes, and one with its rows in another order, are from one."""
    found = []
    for precision, rate in CASES:
        for seed in range(seeds):
            one = losses(recipe_file, precision, rate, seed)
            arms = {
                "two_processes": of_two[f"1 {precision} {rate} {seed}"],
                "two_member_ranks": of_two[f"2 {precision} {rate} {seed}"],
                "other_order": losses(recipe_file, precision, rate, seed, order=100 + seed),
            }
            head = {"precision": precision, "learning_rate": rate, "seed": seed}
            found.append({**head, **{arm: described(arms[arm], one) for arm in arms}})
    return found


def described(other: Losses, one: Losses) -> dict[str, Any]:
    """Relative differences by step, the largest over the members, and how many steps stay within the bound."""
    differences = [max(abs(a - b) / abs(b) for a, b in zip(*rows)) for rows in zip(other, one)]
    within = next((step for step, value in enumerate(differences) if value > BOUND), len(differences))
    return {"relative_differences": differences, "steps_within": within, "largest": max(differences)}
