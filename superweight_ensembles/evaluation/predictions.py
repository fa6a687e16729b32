"""What plain networks answer on a data set. Shapes: M members, N samples, B batch, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from superweight_ensembles.batches import checked_batch
from superweight_ensembles.ensemble import check_logits
from superweight_ensembles.errors import SuperWeightError


@torch.inference_mode()
def predict_all(
    modules: Mapping[str, nn.Module], loader: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of every network, in eval mode, on every sample.

    Returns:
        One image of the loader (1, ...), probabilities (M, N, K) and labels (N,), on the CPU in float32.

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
    return first, probabilities, truth
