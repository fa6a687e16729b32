"""The tables at the end of an evaluation: members and ensemble, shared beside independent; and stopping early."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import nn

from superweight_ensembles.anytime import EnsembleResult
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.compare import Comparison, Spread
from superweight_ensembles.experiment.estimate import TrainingEstimate, training_flops_per_second
from superweight_ensembles.experiment.recipe import Recipe, check_saved_teacher
from superweight_ensembles.experiment.results import RunResults
from superweight_ensembles.experiment.stages import check_init_from
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import cell
from superweight_ensembles.training import build_fabric, uses_bfloat16


def result_table(results: RunResults) -> Table:
    """Members, then the ensemble; of each the arms below each other. At most 80 columns for usual names."""
    dataset = results.dataset
    table = _table(
        ("", "", "MFLOPs", "parameters", "accuracy %", "NLL", "ECE %"),
        title=f"{results.name}: {dataset.num_test:,} test images of {dataset.name}",
        caption="FLOPs an image, two a multiply-add; parameters of a member: as a plain network",
    )

    def add(name: str, found: Sequence[EnsembleResult], parameters: Sequence[str], style: str | None = None) -> None:
        for arm, row, count in zip(results.arms, found, parameters):
            first, last = arm is results.arms[0], arm is results.arms[-1]
            table.add_row(
                cell(name) if first else "",
                cell(arm.name),
                f"{row.flops / 1e6:,.2f}",
                count,
                f"{100 * row.metrics.accuracy:.2f}",
                f"{row.metrics.nll:.4f}",
                f"{100 * row.metrics.ece:.2f}",
                style=style,
                end_section=last,
            )

    for rows in zip(*(arm.members for arm in results.arms)):
        counts = [
            "in the bank" if arm.name == "shared" else f"{row.num_parameters:,}" for arm, row in zip(results.arms, rows)
        ]
        add(rows[0].name, rows, counts)
    wholes = [arm.ensemble for arm in results.arms]
    add("ensemble", wholes, [f"{arm.num_parameters:,}" for arm in results.arms], style="bold")
    return table


def anytime_table(results: RunResults) -> Table | None:
    """The calibrated cascade beside all members, and the areas of the curves; None without an anytime section."""
    found = [(arm.name, arm.anytime) for arm in results.arms if arm.anytime is not None]
    if not found:
        return None
    table = _table(
        ("", "", "MFLOPs", "ms", "members", "accuracy %", "area %"),
        title="stopping early: thresholds from validation images, figures from test images",
        caption="ms: an image, in batches; area: mean accuracy over the logarithm of the FLOPs",
    )
    for name, anytime in found:
        stream, cascade = anytime.curve("stream"), anytime.curve("cascade")
        for arm, what, point, curve in (
            (cell(name), "all", stream.points[-1], stream),
            ("", "cascade", anytime.calibrated, cascade),
        ):
            table.add_row(
                arm,
                what,
                f"{point.flops / 1e6:,.2f}",
                f"{point.latency_ms:.3f}",
                f"{point.members_used:.2f}",
                f"{100 * point.accuracy:.2f}",
                f"{100 * curve.area:.2f}",
                end_section=what == "cascade",
            )
    return table


# FOLDED experiment.estimate_table: An estimate of a training as lines to read in a terminal.


def estimate_lines(
    estimate: TrainingEstimate, flops_per_second: float, rate_from: str, *, taught: bool = False
) -> list[str]:
    """Memory of a step, FLOPs and time.

    Args:
        estimate: What is told.
        flops_per_second: At which the time would be so.
        rate_from: Where that comes from, for the reader.
        taught: Whether a teacher runs besides, which is not counted.
    """
    kind = "bfloat16" if estimate.bfloat16 else "float32"
    whose = "all members at once" if estimate.keeps_all else f"largest member ({estimate.largest.name})"
    parts = f" in {estimate.micro_batches} parts" if estimate.micro_batches > 1 else ""
    memory = [
        ("parameters", estimate.parameter_bytes, "templates, coefficients, members' own, buffers"),
        ("gradients", estimate.gradient_bytes, "of all parameters"),
        ("optimiser state", estimate.optimizer_bytes, ""),
        ("generated weights", estimate.generated_bytes, "which their gradients replace as the members run"),
        ("activations", estimate.activation_bytes, f"{whose}, batch {estimate.batch_size}{parts}, {kind}"),
        (
            "peak of a step",
            estimate.peak_bytes,
            "weights and activations or all gradients, whichever is more, and the rest; on the CPU the allocator may "
            "hold twice that",
        ),
    ]
    shape = " x ".join(map(str, estimate.input_shape))
    lines = [
        f"Estimate of a training of the shared ensemble, images of {shape} (by count of tensors and operations; "
        f"without libraries, allocator and workspaces{', and without the teacher' if taught else ''})",
        *(f"{name:<18}{_bytes(size):>12}  {note}".rstrip() for name, size, note in memory),
        f"{'an image forward':<18}{_flops(estimate.forward_flops):>12}  {_shares(estimate)}",
        f"{'a step':<18}{_flops(estimate.step_flops):>12}  "
        f"3 x forward x {estimate.batch_size} images, and generating the weights",
    ]
    if estimate.num_steps is not None and estimate.total_flops is not None:
        steps, span = estimate.num_steps, f"{estimate.epochs} epochs of about {estimate.num_images:,} images"
    else:
        steps, span = 1000, "1,000 steps; how many images there are only the files tell"
    total = steps * estimate.step_flops
    lines.append(f"{'training':<18}{_flops(total):>12}  {span}")
    seconds = estimate.seconds(flops_per_second, steps)
    lines.append(f"{'time':<18}{_duration(seconds):>12}  at {flops_per_second:.3g} FLOP/s, {rate_from}")
    return lines


def _bytes(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _flops(count: float) -> str:
    for unit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= unit:
            return f"{count / unit:,.2f} {letter}FLOP"
    return f"{count / 1e6:,.2f} MFLOP"


def _duration(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s"


def _shares(estimate: TrainingEstimate) -> str:
    return ", ".join(
        f"{member.name} {100 * member.forward_flops / max(estimate.forward_flops, 1):.0f} %"
        for member in estimate.members
    )


# FOLDED experiment.plan_preview: What a recipe would share and cost, as lines to read before anything is trained.


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
    for check in (lambda: check_saved_teacher(recipe), lambda: check_init_from(recipe, members)):
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
    taught = recipe.distillation is not None and not recipe.taught_by("ensemble")
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


# FOLDED experiment.table: A comparison as tables to read in a terminal: what the arms answer, and what they cost.


def comparison_tables(comparison: Comparison) -> tuple[Table, Table]:
    """One row an arm, at most 80 columns for usual names: quality, then cost. Mean and deviation over seeds."""
    arms, dataset, seeds = comparison.arms, comparison.dataset, len(comparison.seeds)
    fewer = any(arm.summary["accuracy"].n < seeds for arm in arms)
    quality = _table(
        ("", "accuracy %", "ours minus it", "NLL", "ECE %", "Brier"),
        title=f"{comparison.name}: {dataset.num_test:,} test images of {dataset.name}, {seeds} seed{'s' * (seeds > 1)}",
        caption="mean +- standard deviation over seeds; 'ours minus it': points of accuracy, paired by seed"
        + "; without +-: one seed" * fewer,
        close=True,
    )
    cost = _table(
        ("", "parameters", "MFLOPs", "members %", "diversity", "training min"),
        caption="FLOPs an image, two a multiply-add; members: their mean accuracy; diversity: pairwise disagreement "
        "over error",
        close=True,
    )
    for arm in arms:
        first, summary = arm is arms[0], arm.summary
        mean = {name: value.mean for name, value in summary.items()}
        style = "bold" if first else None
        quality.add_row(
            cell(arm.label),
            _spread(summary["accuracy"]),
            "" if first else _spread(arm.difference["accuracy"], sign="+"),
            f"{mean['nll']:.4f}",
            f"{100 * mean['ece']:.2f}",
            f"{mean['brier']:.4f}",
            style=style,
        )
        cost.add_row(
            cell(arm.label),
            f"{arm.num_parameters:,}",
            f"{arm.flops / 1e6:,.1f}",
            f"{100 * mean['mean_member_accuracy']:.2f}",
            f"{mean['diversity']:.2f}" if "diversity" in mean else "",
            f"{mean['training_seconds'] / 60:.1f}",
            style=style,
        )
    return quality, cost


def _table(columns: Sequence[str], *, caption: str, title: str | None = None, close: bool = False) -> Table:
    """Without rows; what has no heading stands on the left."""
    table = Table(title=None if title is None else cell(title), caption=caption, box=SIMPLE)
    table.padding = (0, 1, 0, 0) if close else (0, 1)
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _spread(value: Spread, sign: str = "") -> str:
    """A mean in per cent, with its deviation where there are several seeds."""
    mean = f"{100 * value.mean:{sign}.2f}"
    return mean if value.n == 1 else f"{mean} +- {100 * value.std:.2f}"
