"""Validation of the members and of their mean, after epochs and on trial before the first step."""

from __future__ import annotations

import math
from typing import Any

import torch

from superweight_ensembles.data import ImageData, ImageLoader, num_rows
from superweight_ensembles.ensemble import check_answers, first_parameter, num_classes_in
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import buffers_as_now, kept_modes
from superweight_ensembles.training.batches import Batches, check_targets, needs_checks, prepared_batch
from superweight_ensembles.training.device import explain_oom, leaves_channels_last
from superweight_ensembles.training.hooks import TrainState
from superweight_ensembles.training.member_ranks import answers_of_all


def validate(state: TrainState, batches: Batches, num_batches: int | None = None) -> dict[str, Any]:
    """Scores of every trained member and of their mean, in eval mode, over the rows of all processes."""
    try:
        return _validate(state, batches, num_batches)
    except SuperWeightError as error:
        own = " (it scores the task's targets, whatever the objective takes)" if state.objective is not None else ""
        raise SuperWeightError(f"validation: {error}{own}") from error


@torch.no_grad()  # no inference mode: what members keep of a call, such as tables, is used in training, too
def _validate(state: TrainState, batches: Batches, num_batches: int | None) -> dict[str, Any]:
    ensemble, members, device, task = state.ensemble, state.members, state.fabric.device, state.ensemble.task
    ensemble.eval()
    weights = ensemble.bank.generate(state.own_members)
    dtype, num_classes = first_parameter({"": ensemble}).dtype, None
    sums = torch.zeros(len(members) + 1, len(task.scores), dtype=torch.float64, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    num_read = 0
    for batch in batches:
        if num_read == num_batches:
            break
        expected = num_classes if needs_checks(batches) else None
        inputs, targets = prepared_batch(
            batch, device, state.channels_last, num_classes=expected, dtype=dtype, task=task
        )
        count = num_rows(inputs)
        if not count:  # a process's part of a small last batch
            continue
        num_read += 1
        with state.fabric.autocast():
            answers = {}
            for name in state.own_members:
                with explain_oom(name, count, remedy="validate on smaller batches"):
                    answers[name] = ensemble.run_member(name, inputs, weights[name])
        check_answers(answers, task)
        answers = answers_of_all(state, answers)
        first = next(iter(answers.values()))
        if num_classes is None:
            num_classes = num_classes_in(first)
            check_targets(num_classes, targets, [batches], task)
        truth = task.targets(targets, first)
        every = torch.stack([task.predicted(answer) for answer in answers.values()])
        sums += torch.stack([task.score(found, truth) for found in (*every, every.mean(0))])
        total += task.scored(truth)
    state.rows.all_reduce_([sums, total])
    if not int(total):
        raise SuperWeightError("no batch with rows that count was read: give an iterable that can be read every epoch")
    *each, ensemble_row = (sums / total).tolist()
    for name, row in zip(members, each):
        if math.isnan(row[-1]):
            raise SuperWeightError(f"member {name!r} answers NaN: the images, its weights or buffers are not finite")
    return {
        "members": {name: dict(zip(task.scores, row)) for name, row in zip(members, each)},
        "ensemble": dict(zip(task.scores, ensemble_row)),
    }


def try_validation(state: TrainState) -> None:
    """Validate on one batch before the first step, so that what is wrong with it costs no epoch; leaves no trace."""
    if state.validation is None:
        return
    batches = state.validation
    if isinstance(state.data, ImageData) and isinstance(batches, ImageLoader):
        batches = state.data.loader("validation", 2, device=state.fabric.device)  # others have the same shape
    generator = getattr(batches, "generator", None)  # a DataLoader's own, from which iterating draws
    before = generator.get_state() if isinstance(generator, torch.Generator) else None
    put_back = buffers_as_now(state.ensemble)
    with kept_modes(state.ensemble):
        try:
            validate(state, batches, 1)
        except SuperWeightError as error:
            if not leaves_channels_last(state, error):
                raise
            validate(state, batches, 1)
    put_back()
    if isinstance(generator, torch.Generator) and before is not None:
        generator.set_state(before)
