"""What plain networks answer on a data set. Shapes: M members, N samples, B batch, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.data.batches import checked_batch
from superweight_ensembles.ensemble.ensemble import check_logits
from superweight_ensembles.errors import SuperWeightError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What networks answer on one split, made once and read by everything that is measured on it.

    Attributes:
        members: Names of the networks.
        probabilities: Their softmax (M, N, K), on the CPU in float32.
        labels: (N,), on the CPU.
        image: The first image (1, ...), as the loader gave it.
    """

    members: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor
    image: Tensor

    def of(self, names: Sequence[str]) -> Tensor:
        """The softmax (names, N, K) of some networks, in the order given.

        Raises:
            SuperWeightError: A name that the table does not have.

        Example:
            >>> rows = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]])
            >>> labels, image = torch.tensor([0]), torch.zeros(1, 3)
            >>> table = Predictions(members=("a", "b"), probabilities=rows, labels=labels, image=image)
            >>> table.of(["b"])
            tensor([[[0.2000, 0.8000]]])
        """
        for name in names:
            if name not in self.members:
                raise unknown_name("member", name, self.members)
        return self.probabilities[[self.members.index(name) for name in names]]


@torch.inference_mode()
def predict_all(
    modules: Mapping[str, nn.Module], loader: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Predictions:
    """Run every network, in eval mode, once on every sample.

    Raises:
        SuperWeightError: The loader has no samples, its batches are no (images, class indices), its labels are no
            classes of the networks, or the networks answer different shapes.
    """
    parts, labels, first = [], [], None
    for batch in loader:
        images, truth = checked_batch(batch)
        logits = {name: module(images.to(device)) for name, module in modules.items()}
        check_logits(logits)
        parts.append(torch.stack(list(logits.values())).float().softmax(2).cpu())
        labels.append(truth.cpu())
        first = images[:1] if first is None else first
    if first is None:
        raise SuperWeightError("the loader has no samples")
    truth = torch.cat(labels)
    probabilities = torch.cat(parts, dim=1)
    if int(truth.min()) < 0 or int(truth.max()) >= probabilities.shape[2]:
        raise SuperWeightError(
            f"labels must be 0 to {probabilities.shape[2] - 1}, the members' classes; "
            f"the loader has {int(truth.min())} to {int(truth.max())}"
        )
    return Predictions(members=tuple(modules), probabilities=probabilities, labels=truth, image=first)
