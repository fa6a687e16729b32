"""What the numbers of a run mean, in a few sentences and tiles made from them alone."""

from __future__ import annotations

from dataclasses import dataclass

from superweight_ensembles.experiment import ArmResults, RunResults

FEWEST_TOLD_APART = 6  # 2 * 0.5 ** 5 > 0.05: five images, all in favour of one arm, prove nothing yet (sign test)
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number that a reader should see first."""

    name: str
    value: str
    beside: str


def changed(count: int, before: int) -> str:
    """Words for how much smaller or larger a count is.

    Example:
        >>> changed(83, 100), changed(130, 100), changed(100, 100), changed(9996, 10000)
        ('17 % fewer', '30 % more', 'as many', '0.04 % fewer')
    """
    share = 100 * abs(count - before) / before if before else 0.0
    if not share:
        return "as many"
    side = "fewer" if count < before else "more"
    return f"{share:.0f} % {side}" if share >= 1 else f"{share:.2g} % {side}"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign, U+2212 for minus; without a sign where it rounds to 0.

    Example:
        >>> signed(0.254, 1), signed(-3, 0), signed(-0.01, 1)
        ('+0.3', '−3', '0.0')
    """
    text = f"{value:+,.{decimals}f}"
    return text.lstrip("+-") if not any(digit in text for digit in "123456789") else text.replace("-", _MINUS)


def tiles(results: RunResults) -> list[Tile]:
    """Parameters, quality and cost of the first arm, beside the independent one where there is one."""
    arm, other = results.arms[0], results.arm("independent")
    found = arm.ensemble.metrics
    right, nats, cost = f"{results.dataset.num_test:,} test images", "nats an image; less is better", "all members"
    if other is not None and other is not arm:
        base = other.ensemble.metrics
        right = f"{signed(100 * (found.accuracy - base.accuracy), 2)} points against independent"
        nats = f"{signed(found.nll - base.nll, 4)} against independent; less is better"
        alike = arm.ensemble.flops == other.ensemble.flops
        cost = f"all members; independent: {'the same' if alike else _mflops(other)}"
    return [
        Tile(name="Parameters", value=f"{arm.num_parameters:,}", beside=f"{_parameters(arm)} apart"),
        Tile(name="Accuracy", value=f"{100 * found.accuracy:.2f} %", beside=right),
        Tile(name="NLL", value=f"{found.nll:.4f}", beside=nats),
        Tile(name="MFLOPs an image", value=_mflops(arm), beside=cost),
    ]


def sentences(results: RunResults) -> list[str]:
    """Sentences on what was saved, what it costs in quality, and how much the difference says."""
    arm, other = results.arms[0], results.arm("independent")
    said = [_saving(arm)]
    if other is not None and other is not arm:
        said += [_difference(results, arm, other), _certainty(results, arm, other)]
    elif other is None:
        said.append("No independent ensemble was trained beside it: the recipe's baseline is none.")
    return [*said, *_start(arm), _members(arm)]


def _saving(arm: ArmResults) -> str:
    if arm.name == "independent":
        return f"{len(arm.members)} members with {arm.num_parameters:,} trainable parameters of their own."
    return (
        f"One bank gives {len(arm.members)} members their weights. In all, {arm.num_parameters:,} trainable "
        f"parameters: {_parameters(arm)} that they own apart."
    )


def _start(arm: ArmResults) -> list[str]:
    """Sentence on the bank before its training, where it did not start at random."""
    start = arm.warm_start
    if start is None:
        return []
    known = {"independent": "the members trained apart", "members": "the weights that its members came with"}
    source = known.get(start.init_from, start.init_from)
    return [
        f"The bank started from {source}, by SVD: the weights that it generated were off by {start.mean_error:.3f} "
        f"of their norm on average, and the ensemble was right on {100 * start.ensemble.accuracy:.2f} % of the "
        "test images before any training of its own."
    ]


def _difference(results: RunResults, arm: ArmResults, other: ArmResults) -> str:
    found, base = arm.ensemble.metrics, other.ensemble.metrics
    points = 100 * (found.accuracy - base.accuracy)
    return (
        f"Beside the independent ensemble, on the same {results.dataset.num_test:,} test images: accuracy "
        f"{signed(points, 2)} points ({100 * found.accuracy:.2f} against {100 * base.accuracy:.2f} %), "
        f"NLL {signed(found.nll - base.nll, 4)}, ECE {signed(100 * (found.ece - base.ece), 2)} points, "
        f"Brier score {signed(found.brier - base.brier, 4)}; of the last three, less is better."
    )


def _certainty(results: RunResults, arm: ArmResults, other: ArmResults) -> str:
    images = round(abs(arm.ensemble.metrics.accuracy - other.ensemble.metrics.accuracy) * results.dataset.num_test)
    again = "This is one seed; the command superweights compare runs several and gives the spread."
    if images == 0:
        return f"Both are right equally often. {again}"
    counted = f"{images:,} image{'s' * (images > 1)} of {results.dataset.num_test:,}"
    if images < FEWEST_TOLD_APART:
        return f"That is {counted}: too few to tell the two apart. {again}"
    return f"That is {counted}. {again}"


def _members(arm: ArmResults) -> str:
    best = max(arm.members, key=lambda member: member.metrics.accuracy)
    accuracy = arm.ensemble.metrics.accuracy
    points = 100 * (accuracy - best.metrics.accuracy)
    place = "level with" if abs(points) < 0.005 else f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"
    return (
        f"The ensemble is {place} its best member, {best.name} "
        f"({100 * best.metrics.accuracy:.2f} % at {best.flops / 1e6:,.2f} MFLOPs; "
        f"all members take {_mflops(arm)})."
    )


def _parameters(arm: ArmResults) -> str:
    count, apart = arm.num_parameters, arm.independent_parameters
    return f"{changed(count, apart)}{' as' if count == apart else ' than'} the {apart:,}"


def _mflops(arm: ArmResults) -> str:
    return f"{arm.ensemble.flops / 1e6:,.2f}"
