"""What a recipe would share and cost, as lines to read before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.estimate_table import estimate_lines
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.experiment.recipe_teacher import check_saved_teacher
from superweight_ensembles.experiment.reference_speed import training_flops_per_second
from superweight_ensembles.experiment.warm_runs import check_init_from
from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.training.fabric import build_fabric, uses_bfloat16


def preview_lines(
    recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan, flops_per_second: float | None = None
) -> list[str]:
    """The sharing table, the stages that change it, memory and time of the training, and what is not there yet.

    Args:
        recipe: Of a run.
        members: That it builds.
        plan: That it begins with.
        flops_per_second: For the time; measured for a second where None.
    """
    lines = [str(plan)]
    sharing = recipe.sharing
    if recipe.learn_widths is not None:
        lines.append(
            f"members learn their widths in {recipe.learn_widths.epochs} epochs of training; then it is planned again"
        )
    if sharing.search != "none":
        lines.append(
            (
                f"k-means makes {sharing.num_groups} groups of these layers"
                if sharing.search == "k_means"
                else f"a search ({sharing.search}) splits these clusters"
            )
            + f" after {sharing.search_epochs} epochs of training"
        )
    return [*lines, "", *_estimate(recipe, members, plan, flops_per_second), *_missing(recipe, members)]


def _missing(recipe: Recipe, members: dict[str, nn.Module]) -> list[str]:
    """What a training would be refused for now: folders that the recipe names, which may yet be made."""
    lines = []
    for check in (lambda: check_saved_teacher(recipe.teacher), lambda: check_init_from(recipe, members)):
        try:
            check()
        except SuperWeightError as error:
            lines.append(f"not to be trained yet: {error}")
    return lines


def _estimate(
    recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan, flops_per_second: float | None
) -> list[str]:
    """What the training would take, in lines."""
    try:
        estimate = recipe.estimate(members, plan)
    except SuperWeightError as error:  # the plan stands all the same
        return [f"no estimate of memory and time: {error}"]
    if estimate is None:
        return ["no estimate of memory and time: the size of the images is in the files; give data.image_size"]
    taught = recipe.teacher not in (None, "ensemble")
    if flops_per_second is not None:
        return estimate_lines(estimate, flops_per_second, "as given", taught=taught)
    device = build_fabric(recipe.training).device
    measured = training_flops_per_second(device, bfloat16=uses_bfloat16(recipe.training))
    rate_from = f"measured on a residual block ({device}, {_threads(device.type)})"
    return estimate_lines(estimate, measured, rate_from, taught=taught)


def _threads(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return "one thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
