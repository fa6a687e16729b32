"""The running mean of what members answered to each training image: a teacher without another call.

Shapes: N training images, B batch, K classes.

Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, arXiv 1610.02242, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from superweight_ensembles.data import ImageLoader
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.distributed import Processes

MOMENTUM = 0.6  # the published one
_TINY = torch.finfo(torch.float32).tiny


@runtime_checkable
class KnowsImages(Protocol):
    """A loader that says which images its batches hold."""

    num_images: int

    def indices(self, batch: int) -> Tensor:
        """Indices of a batch's images over all processes, int64 (B,); ``batch`` counts from 0 in the last epoch set."""


class AnswerHistory:
    """Mean of what members answered to each image in the epochs before; newer answers weigh more."""

    def __init__(self, loaders: Sequence[Any], members: Sequence[str], processes: Processes, rows: Processes) -> None:
        if not all(isinstance(loader, KnowsImages) for loader in loaders):
            raise SuperWeightError(
                "teacher 'history' remembers answers by image: train on ImageData, or on a loader that has num_images "
                "and indices(batch)"
            )
        if processes.size > 1 and not all(isinstance(loader, ImageLoader) for loader in loaders):
            raise SuperWeightError("teacher 'history' needs ImageData in several processes: each must know all batches")
        self._loaders = dict(zip(members, loaders if len(loaders) > 1 else [*loaders] * len(members)))
        self._same = len(loaders) == 1
        self._num_images = loaders[0].num_images
        self._processes, self._rows = processes, rows
        self._sums: Tensor | None = None  # (N, K)
        self._weights: Tensor | None = None  # (N,): total weight of the answers in each sum
        self._batch: dict[str, Tensor] = {}  # indices (B,) of the whole batch
        self._places: dict[str, Tensor] = {}  # of this process's rows in the whole batch
        self._noted: dict[str, list[tuple[slice, Tensor]]] = {}

    def open(self, batch: int, num_rows: int) -> None:
        """Begin a batch, of which this process has ``num_rows`` rows; answers to a batch never closed are dropped."""
        self._noted = {}
        index, count = self._rows.shard
        for name, loader in self._loaders.items():
            whole = loader.indices(batch)
            start = index * len(whole) // count
            rows = (index + 1) * len(whole) // count - start
            if rows != num_rows:
                raise SuperWeightError(
                    f"the loader's indices({batch}) names {rows} images, but its batch has {num_rows}: name each image"
                )
            self._batch[name], self._places[name] = whole, torch.arange(start, start + rows)

    def target(self, name: str, rows: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """The target (rows, K) for some rows of a member's batch, and the share of the batch that was seen before."""
        if self._sums is None or self._weights is None:
            return torch.zeros_like(like), like.new_zeros(())
        self._sums, self._weights = self._sums.to(like.device), self._weights.to(like.device)
        whole = self._batch[name].to(like.device)
        own = whole[self._places[name][rows].to(like.device)]
        found = self._sums[own] / self._weights[own].clamp_min(_TINY).unsqueeze(1)
        return found, (self._weights[whole] > 0).float().mean()

    def note(self, name: str, rows: slice, answers: Tensor) -> None:
        """Keep a member's softmax (B, K) on some rows until the batch is closed."""
        self._noted.setdefault(name, []).append((rows, answers.detach().float()))

    def close(self) -> None:
        """Add the answers that all processes noted to the mean: once for all members, or once for each own batch."""
        if not self._noted:
            return
        like = next(iter(self._noted.values()))[0][1]
        others = self._processes.size > self._rows.size
        names = self._loaders if others else self._noted  # other processes noted other members' answers
        found = {name: self._answers(name, self._noted.get(name, ()), like) for name in names}
        self._processes.all_reduce_(list(found.values()))
        if self._same:
            name, momentum = next(iter(found)), MOMENTUM
            found = {name: torch.stack(list(found.values())).mean(0)}
        else:
            momentum = MOMENTUM ** (1 / len(found))  # each member brings an image once an epoch: MOMENTUM in all
        for name, answers in found.items():
            if self._sums is None or self._weights is None:
                self._sums = answers.new_zeros(self._num_images, answers.shape[1])
                self._weights = answers.new_zeros(self._num_images)
            whole = self._batch[name].to(answers.device)
            self._sums[whole] = momentum * self._sums[whole] + (1 - momentum) * answers
            self._weights[whole] = momentum * self._weights[whole] + (1 - momentum)
        self._noted = {}

    def _answers(self, name: str, noted: Sequence[tuple[slice, Tensor]], like: Tensor) -> Tensor:
        """A member's answers to the batch (B, K); 0 in the rows of other processes."""
        answers = like.new_zeros(len(self._batch[name]), like.shape[1])
        for rows, found in noted:
            answers[self._places[name][rows].to(like.device)] = found
        return answers

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._sums is None or self._weights is None else {"sums": self._sums, "weights": self._weights}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        self._sums, self._weights = content.get("sums"), content.get("weights")
