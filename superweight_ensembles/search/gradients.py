"""What a search compares: gradients of generated weights, how alike they are, and the sets that similarities make."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.data import Inputs, Targets, checked_loader, checked_pair, mapped, num_rows
from superweight_ensembles.ensemble import SuperWeightEnsemble, check_answers, first_parameter, num_classes_in
from superweight_ensembles.errors import SuperWeightError, check_number
from superweight_ensembles.models import answer_in, call_with, calling, evaluating, unfused_recurrence
from superweight_ensembles.training import Batches, Objective
from superweight_ensembles.training.distributed import current_processes

TargetTensors = dict[tuple[str, str], Tensor]


def weight_gradients(
    ensemble: SuperWeightEnsemble,
    loader: Batches,  # batches of images (B, ...) and labels (B,); in a process group, every rank gives its own
    members: Collection[str] | None = None,
    *,
    max_batches: int | None = None,
    objective: Objective | None = None,
) -> TargetTensors:
    """Gradient (O, I, *kernel) of each member's mean loss in each generated weight, by member and parameter name.

    Source: Teterwak et al., WACV 2024
    """
    names = tuple(ensemble.member_names if members is None else members)
    check_search(max_batches=max_batches)
    like = first_parameter({"": ensemble})
    device, num_samples = like.device, 0
    # In evaluation mode and float32; nothing of the ensemble is changed, not even ``.grad``.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), evaluating(ensemble):
        with torch.no_grad():
            generated = ensemble.bank.generate(names)
        gradients = {
            (name, key): torch.zeros_like(tensor) for name in names for key, tensor in _untied(generated[name]).items()
        }
        for batch in islice(checked_loader(loader), max_batches):
            inputs, targets = (
                mapped(lambda one: one.to(device), part) for part in checked_pair(batch, dtype=like.dtype)
            )
            if not num_rows(inputs):  # a rank's part of a small last batch may be empty
                continue
            num_samples += num_rows(inputs)
            for name in names:
                found = _summed_gradients(ensemble, name, generated[name], inputs, targets, objective)
                for key, gradient in found.items():
                    gradients[name, key] += gradient
    processes, sums = current_processes(), list(gradients.values())
    processes.all_reduce_(sums)
    processes.broadcast_(sums)  # a plan depends on every bit, and some backends sum differently on each rank
    every_samples = sum(processes.gather_objects(num_samples))
    if not every_samples:
        raise SuperWeightError("the loader that gradients are taken on has no samples")
    gradients = {target: gradient / every_samples for target, gradient in gradients.items()}
    _check_gradients(gradients)
    return gradients


def _summed_gradients(
    ensemble: SuperWeightEnsemble,
    name: str,
    weights: dict[str, Tensor],
    inputs: Inputs,
    targets: Targets,
    objective: Objective | None,
) -> dict[str, Tensor]:
    """Gradients of one member's summed loss on one batch, by the first name of each weight that has one."""
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in _untied(weights).items()}
    places = {key: leaves[_first_name(weights, key)] for key in weights}
    member = ensemble.members[name]
    with torch.enable_grad(), _frozen(member), ensemble.with_weights(name, places), unfused_recurrence(member):
        loss = _mean_loss(ensemble, name, inputs, targets, objective) * num_rows(inputs)
        if loss.requires_grad:
            with calling(name, inputs):
                loss.backward()  # not autograd.grad, which checkpoints of torch's older kind refuse
    return {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def _mean_loss(
    ensemble: SuperWeightEnsemble, name: str, inputs: Inputs, targets: Targets, objective: Objective | None
) -> Tensor:
    with calling(name, inputs):
        if objective is not None:
            return objective(ensemble.members[name], inputs, targets)
        answer = answer_in(call_with(ensemble.members[name], inputs))
    check_answers({name: answer}, ensemble.task)
    truth = ensemble.task.targets(targets, answer)
    ensemble.task.check_range(truth, num_classes_in(answer))
    return ensemble.task.loss(answer.float(), truth)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Take no gradients of a module's own parameters inside."""
    thawed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in thawed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def _check_gradients(gradients: TargetTensors) -> None:
    """Refuse gradients that are not finite, and members without any."""
    for (member, name), gradient in gradients.items():
        if not bool(gradient.isfinite().all()):
            raise SuperWeightError(
                f"the gradient of {member}.{name} has numbers that are not finite: lower learning_rate, "
                "or look at the images"
            )
    for member in dict.fromkeys(member for member, _ in gradients):
        if not any(bool(gradient.any()) for (owner, _), gradient in gradients.items() if owner == member):
            raise SuperWeightError(
                f"all gradients of member {member!r} are zero: its loss does not depend on its generated weights"
            )


def _untied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name."""
    return {key: tensor for key, tensor in weights.items() if _first_name(weights, key) == key}


def _first_name(weights: dict[str, Tensor], key: str) -> str:
    return next(name for name, tensor in weights.items() if tensor is weights[key])


def cropped_cosines(tensors: Sequence[Tensor]) -> Tensor:
    """Cosine (T, T) of every pair of T tensors (O, I, *kernel), each pair cropped to its common (out, in) corner.

    Source: Teterwak et al., WACV 2024

    Example:
        >>> narrow, wide = torch.ones(2, 2), torch.zeros(3, 2).index_fill(0, torch.tensor(0), 1.0)
        >>> [[round(value, 3) for value in row] for row in cropped_cosines([narrow, wide]).tolist()]
        [[1.0, 0.707], [0.707, 1.0]]
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault(tuple(tensor.shape), []).append(index)
    stacks = {shape: torch.stack([tensors[index].float() for index in where]) for shape, where in places.items()}
    cosines = torch.eye(len(tensors))  # float32, on the CPU; a tensor that is zero is unlike every other
    shapes = list(places)
    for first, shape in enumerate(shapes):
        for other in shapes[first:]:
            rows, columns = min(shape[0], other[0]), min(shape[1], other[1])
            left = _unit_rows(stacks[shape][:, :rows, :columns])
            right = left if other == shape else _unit_rows(stacks[other][:, :rows, :columns])
            block = (left @ right.T).cpu()
            mine, theirs = torch.tensor(places[shape]), torch.tensor(places[other])
            cosines[mine[:, None], theirs] = block
            cosines[theirs[:, None], mine] = block.T
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def _unit_rows(stack: Tensor) -> Tensor:
    """Flattened tensors of norm one; zero where the tensor is zero."""
    flat = stack.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)  # no underflow in squares
    return F.normalize(flat, dim=1)


def merged_sets(similarity: Tensor, threshold: float) -> list[int]:
    """Set of each item, numbered by first appearance: items of a similarity (T, T) above the threshold share one.

    Source: Teterwak et al., WACV 2024
    Differs from paper: the published code moves one item at a time, and the last move wins.

    Example:
        >>> chain = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.4], [0.0, 0.4, 1.0]])
        >>> merged_sets(chain, 0.3), merged_sets(chain, 0.45)
        ([0, 0, 0], [0, 0, 1])
    """
    # Merging whole sets from the most similar pair down, as in the paper, ends in the connected components.
    _, sets = connected_components((similarity > threshold).numpy(force=True), directed=False)
    return [int(number) for number in sets]


def check_search(*, threshold: float = 0.0, max_batches: int | None = None) -> None:
    """Refuse a threshold that is no cosine, and a number of batches that is neither positive nor None."""
    check_number("threshold (a cosine)", threshold, least=-1, most=1)
    if max_batches is not None:
        check_number("max_batches (None for all)", max_batches, whole=True, least=1)


def check_trained(ensemble: SuperWeightEnsemble, what: str = "gradients say little") -> None:
    """Refuse an ensemble whose bank still holds its start values."""
    if ensemble.bank.is_untouched:
        raise SuperWeightError(f"the ensemble is untrained, and its {what}: train it for some epochs first")
