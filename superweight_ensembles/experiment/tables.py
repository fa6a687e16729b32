"""What the command line prints: tables of results and comparisons, and a recipe's plan and costs before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import nn

from superweight_ensembles.anytime import Shift
from superweight_ensembles.data import reads_files
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.compare import ComparedArm, Comparison, Spread
from superweight_ensembles.experiment.estimate import TrainingEstimate, estimate_on_mesh
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.experiment.run_results import RunResults
from superweight_ensembles.experiment.timing import UNKNOWN_STEPS, time_run
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import cell, escape_controls
from superweight_ensembles.training import EACH_OTHER, TrainConfig, build_fabric


def result_table(results: RunResults) -> Table:
    """Table of members, then of the ensemble, the arms of each below each other; 80 columns for usual names."""
    dataset = results.dataset
    headings, *rows = results.table_rows()
    table = _table(
        headings,
        title=f"{results.name}: {dataset.num_test:,} test images of {dataset.name}",
        caption="FLOPs an image, two a multiply-add; parameters of a member: as a plain network",
    )
    num_arms = len(results.arms)
    for place, (name, arm, *numbers) in enumerate(rows):
        table.add_row(
            cell("" if place % num_arms else name),
            cell(arm),
            *numbers,
            style="bold" if place >= len(rows) - num_arms else None,
            end_section=(place + 1) % num_arms == 0,
        )
    return table


def anytime_table(results: RunResults) -> Table | None:
    """Table of the calibrated cascade beside all members, and areas of curves; None without an anytime section."""
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


def uncertainty_table(results: RunResults) -> Table | None:
    """Table of the uncertainty of the ensembles; None for results of older versions without any."""
    rows = uncertainty_rows(results)
    if not rows:
        return None
    table = _table(
        ("", *(arm.name for arm in results.arms)),
        title="uncertainty of the ensembles, on test images",
        caption="entropies in nats; risk: mean error when the least sure images are left out first",
    )
    for label, values in rows.items():
        table.add_row(cell(label), *values)
    return table


def uncertainty_rows(results: RunResults) -> dict[str, list[str]]:
    """Measures of uncertainty by label: a text for each arm, empty where an arm has none."""
    every: list[dict[str, str]] = []
    for arm in results.arms:
        texts: dict[str, str] = {}
        every.append(texts)
        if arm.uncertainty is not None:
            known = arm.uncertainty
            texts["entropy"] = f"{known.entropy:.4f}"
            texts["part of it: mutual information"] = f"{known.mutual_information:.4f}"
            texts["disagreement of members %"] = f"{100 * known.disagreement:.2f}"
            texts["risk over all coverages %"] = f"{100 * known.risk_coverage_area:.2f}"
        shift = arm.shift or Shift()
        if shift.tempered is not None:
            texts["NLL at a fitted temperature"] = f"{shift.tempered.metrics.nll:.4f}"
            texts["ECE % at a fitted temperature"] = f"{100 * shift.tempered.metrics.ece:.2f}"
        for severity in sorted({one.severity for one in shift.corrupted}):
            found = [one.metrics for one in shift.corrupted if one.severity == severity]
            for what, values in (("accuracy", [one.accuracy for one in found]), ("ECE", [one.ece for one in found])):
                texts[f"{what} %, corrupted, severity {severity}"] = f"{100 * sum(values) / len(values):.2f}"
        if shift.others is not None:
            for one in shift.others.detections:
                by = f"{escape_controls(shift.others.name)} by {one.score.replace('_', ' ')}"
                texts[f"AUROC %, {by}"] = f"{100 * one.auroc:.2f}"
                texts[f"FPR at 95 %, {by}"] = f"{100 * one.fpr95:.2f}"
    labels = dict.fromkeys(label for texts in every for label in texts)
    return {label: [texts.get(label, "") for texts in every] for label in labels}


def comparison_tables(comparison: Comparison) -> tuple[Table, ...]:
    """Tables of one row an arm, 80 columns for usual names: quality, early answers of arms with exits, cost."""
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
    early = [arm for arm in arms if arm.has_exits]
    return (quality, _early_table(early, arms[0]), cost) if early else (quality, cost)


def _early_table(arms: Sequence[ComparedArm], first: ComparedArm) -> Table:
    """Table of cascades: areas, accuracy of their first answers, and quality at a fitted temperature."""
    table = _table(
        ("", "area %", "ours minus it", "first %", "NLL (T)", "ECE (T)"),
        caption="area: mean accuracy of the cascade over the logarithm of the FLOPs; first: accuracy of its cheapest "
        "answers; (T): all members, at a temperature fitted on validation images, ECE in %",
        close=True,
    )
    for arm in arms:
        mean = {name: value.mean for name, value in arm.summary.items()}
        cheapest = [min(run.cascade or (), key=lambda point: point.flops).accuracy for run in arm.runs]
        table.add_row(
            cell(arm.label),
            _spread(arm.summary["area"]),
            "" if arm is first or "area" not in arm.difference else _spread(arm.difference["area"], sign="+"),
            f"{100 * sum(cheapest) / len(cheapest):.2f}",
            f"{mean['tempered_nll']:.4f}" if "tempered_nll" in mean else "",
            f"{100 * mean['tempered_ece']:.2f}" if "tempered_ece" in mean else "",
            style="bold" if arm is first else None,
        )
    return table


def _table(columns: Sequence[str], *, caption: str, title: str | None = None, close: bool = False) -> Table:
    """A table without rows; columns without a heading are aligned left."""
    padding = (0, 1, 0, 0) if close else (0, 1, 0, 1)
    table = Table(title=None if title is None else cell(title), caption=caption, box=SIMPLE, padding=padding)
    for column in columns:  # where there is little room, names are folded, and numbers stay whole
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
    return table


def _spread(value: Spread, sign: str = "") -> str:
    """A mean in per cent, with its deviation where there are several seeds."""
    mean = f"{100 * value.mean:{sign}.2f}"
    return mean if value.n == 1 else f"{mean} +- {100 * value.std:.2f}"


def preview_lines(
    recipe: Recipe,
    members: dict[str, nn.Module],
    plan: SharingPlan,
    flops_per_second: float | None = None,  # rate for the shared ensemble's time; None: all trainings are timed here
    processes: int = 1,  # with several, lines of the mesh too
) -> list[str]:
    """Lines of the sharing table, the stages that change it, and memory and time of the training."""
    lines, sharing = [str(plan)], recipe.sharing
    if recipe.learn_widths is not None:
        epochs = recipe.learn_widths.epochs
        lines.append(f"members learn their widths in {epochs} epochs of training; then it is planned again")
    if sharing.search != "none":
        what = f"a search ({sharing.search}) splits these clusters"
        if sharing.search == "k_means":
            what = f"k-means makes {sharing.num_groups} groups of these layers"
        lines.append(f"{what} after {sharing.search_epochs} epochs of training")
    return [*lines, "", *_estimate(recipe, members, plan, flops_per_second, processes)]


def _estimate(
    recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan, flops_per_second: float | None, processes: int
) -> list[str]:
    """Lines of what the training would take."""
    try:
        estimate = recipe.estimate(members, plan)
    except SuperWeightError as error:  # the plan stands all the same
        return [f"no estimate of memory and time: {error}"]
    if estimate is None:
        return ["no estimate of memory and time: the size of the images is in the files; give data.image_size"]
    taught = recipe.teaching is not None and not recipe.taught_by(*EACH_OTHER)
    lines = estimate_lines(estimate, flops_per_second, "as given", taught=taught)
    if flops_per_second is None:
        lines += _time_lines(recipe, members, plan, estimate)
    return lines if processes == 1 else [*lines, "", *_mesh_lines(recipe.training, plan, estimate, processes)]


def _mesh_lines(config: TrainConfig, plan: SharingPlan, estimate: TrainingEstimate, processes: int) -> list[str]:
    """Lines of how several processes would divide the training, or of what to write for that."""
    mesh = config.mesh if isinstance(config.mesh, Mapping) else "auto"
    found, of_rows = (
        estimate_on_mesh(estimate, plan, processes, one, config.sync_batch_norm, config.shard_moments)
        for one in (mesh, "rows")
    )
    ranks = "; ".join(", ".join(own) for own in found.placement)
    asked = dict(mesh) if isinstance(mesh, Mapping) else mesh
    title = f"On {processes} processes, training.mesh {asked}"
    if config.mesh == "rows":
        title += " (the recipe has 'rows', whose numbers are in brackets)"
    alone, peak, sent = _bytes(estimate.peak_bytes), _bytes(of_rows.peak_bytes), _bytes(of_rows.exchanged_bytes)
    seconds = f"of one process's, without waiting for the exchange ({of_rows.relative_seconds:.2f})"
    rows = [
        ("member ranks", str(len(found.placement)), f"each on {found.rows} of rows: {ranks}"),
        ("exchanged", _bytes(found.exchanged_bytes), f"gradients, a step and process ({sent})"),
        ("fullest process", _bytes(found.peak_bytes), f"in a step; one process alone {alone} ({peak})"),
        ("time of a step", f"{found.relative_seconds:.2f}", seconds),
    ]
    return [title, *(f"{name:<18}{amount:>12}  {note}" for name, amount, note in rows)]


def _time_lines(
    recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan, estimate: TrainingEstimate
) -> list[str]:
    """Lines of the measured time that ``train`` and ``evaluate`` take here, with every arm."""
    try:
        device = build_fabric(recipe.training).device
    except SuperWeightError as error:
        return [f"no estimate of time: {error}"]
    stages = time_run(recipe, members, plan, estimate)
    evaluation = stages.pop("evaluation", None)
    threads = recipe.training.num_threads or torch.get_num_threads()
    by = "one thread" if threads == 1 else f"{threads} threads"
    where = by if device.type == "cpu" else torch.cuda.get_device_name()
    note = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in stages.items())
    rows = [("time of train", sum(stages.values()), f"{note}; some steps and epochs of each timed ({device}, {where})")]
    if evaluation is not None:
        rows.append(("time of evaluate", evaluation, "of members, subsets and exits, by images and timed calls"))
    lines = [f"{name:<18}{_duration(seconds):>12}  {said}" for name, seconds, said in rows]
    if estimate.num_steps is None:
        lines.append(
            f"of {UNKNOWN_STEPS:,} steps an arm, without decoding: only the files show how many images there are"
        )
    elif reads_files(recipe.data.name) and recipe.data.name == "image_folder":
        lines.append("without decoding files")
    if recipe.learn_widths is not None or recipe.sharing.search != "none":
        lines.append("for the first members and plan: what a search or learned widths make of them is not known yet")
    return lines


def estimate_lines(
    estimate: TrainingEstimate, flops_per_second: float | None, rate_from: str, *, taught: bool = False
) -> list[str]:
    """Lines of memory and FLOPs of a step, and of the time at a rate, without the costs of a teacher."""
    kind = "bfloat16" if estimate.bfloat16 else "float32"
    whose = "all members at once" if estimate.keeps_all else f"largest member ({estimate.largest.name})"
    parts = f" in {estimate.micro_batches} parts" if estimate.micro_batches > 1 else ""
    steps, span = 1000, "1,000 steps; only the files show how many images there are"
    if estimate.num_steps is not None and estimate.total_flops is not None:
        steps, span = estimate.num_steps, f"{estimate.epochs} epochs of about {estimate.num_images:,} images"
    shares = ", ".join(
        f"{member.name} {100 * member.forward_flops / max(estimate.forward_flops, 1):.0f} %"
        for member in estimate.members
    )
    rows = [
        ("parameters", _bytes(estimate.parameter_bytes), "templates, coefficients, members' own, buffers"),
        ("gradients", _bytes(estimate.gradient_bytes), "of all parameters"),
        ("optimiser state", _bytes(estimate.optimizer_bytes), ""),
        ("generated weights", _bytes(estimate.generated_bytes), "which their gradients replace as the members run"),
        ("activations", _bytes(estimate.activation_bytes), f"{whose}, batch {estimate.batch_size}{parts}, {kind}"),
        (
            "peak of a step",
            _bytes(estimate.peak_bytes),
            "weights and activations or all gradients, whichever is more, and the rest; on the CPU the allocator may "
            "hold twice that",
        ),
        ("an image forward", _flops(estimate.forward_flops), shares),
        (
            "a step",
            _flops(estimate.step_flops),
            f"3 x forward x {estimate.batch_size} images, and generating the weights",
        ),
        ("training", _flops(steps * estimate.step_flops), span),
    ]
    if flops_per_second is not None:
        seconds = _duration(estimate.seconds(flops_per_second, steps))
        rows.append(("time", seconds, f"at {flops_per_second:.3g} FLOP/s, {rate_from}"))
    title = (
        f"Estimate of a training of the shared ensemble, images of {' x '.join(map(str, estimate.input_shape))} (by "
        "count of tensors and operations; without libraries, allocator and workspaces"
        f"{', and without the teacher' if taught else ''})"
    )
    return [title, *(f"{name:<18}{amount:>12}  {note}".rstrip() for name, amount, note in rows)]


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
