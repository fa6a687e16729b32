"""An estimate of a training as lines to read in a terminal."""

from __future__ import annotations

from superweight_ensembles.experiment.estimate import TrainingEstimate


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
