"""The tables of the page, as texts: results, anytime curves, uncertainty, sharing plan, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superweight_ensembles.anytime import EnsembleResult
from superweight_ensembles.experiment import Recipe, RunRecord, RunResults, uncertainty_rows
from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup, bank_words
from superweight_ensembles.report.findings import signed

NOTHING = "\N{EN DASH}"  # where there is no value
_NOTE = (
    "FLOPs an image, two a multiply-add. Latency of one image, median; an ensemble's is the sum over its members. "
    "Parameters of a member: as a plain network. The ensemble is the mean of its members' probabilities. "
    "ECE in 15 bins. Of NLL, ECE and Brier, less is better."
)
_NOTE_OF_ARMS = (
    " Difference: shared minus independent, on the same images. Both arms run the same plain networks, so that their "
    "latencies differ only by what else the machine did."
)
_PROVENANCE = {
    "time": "time",
    "commit": "commit",
    "python": "Python",
    "cpu": "CPU",
    "cpu_capability": "CPU instructions",
    "gpu": "GPU",
    "num_threads": "threads",
    "omp_wait_policy": "OMP_WAIT_POLICY",
}
_MEASURES: dict[str, tuple[Callable[[EnsembleResult], float], int]] = {  # by heading: value, decimals
    "MFLOPs": (lambda one: one.flops / 1e6, 2),
    "latency ms": (lambda one: one.latency_ms, 2),
    "accuracy %": (lambda one: 100 * one.metrics.accuracy, 2),
    "NLL": (lambda one: one.metrics.nll, 4),
    "ECE %": (lambda one: 100 * one.metrics.ece, 2),
    "Brier": (lambda one: one.metrics.brier, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of a table. A name spans them; without one, the first cell of each row is its heading."""

    rows: Sequence[Sequence[str]]
    name: str | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that screen readers call by its label; ``left`` columns are aligned left; ``kind`` is a CSS class."""

    label: str
    head: Sequence[str]
    groups: Sequence[Group]
    caption: str = ""
    note: str = ""
    kind: str = ""
    left: int = 1


def facts(results: RunResults, recipe: Recipe, plan: SharingPlan) -> dict[str, list[str]]:
    """Lines on what was run, at a glance, by name."""
    dataset, training = results.dataset, recipe.training
    images = " x ".join(map(str, dataset.image_shape))
    members = [
        ", ".join(
            [f"{member.name}: {member.model}", *(f"{key} {one}" for key, one in (member.model_extra or {}).items())]
        )
        for member in recipe.members
    ]
    return {
        "Data": [
            f"{dataset.name}: {len(dataset.classes)} classes, images {images}; {dataset.num_train:,} to train, "
            f"{dataset.num_validation:,} to validate, {dataset.num_test:,} to test"
        ],
        "Members": members,
        "Budget": [f"{plan.budget:,} parameters; the members own {plan.independent_parameters:,} apart"],
        "Training": [
            f"{training.epochs} epochs, batches of {training.batch_size}, {training.optimizer}, "
            f"{training.schedule} from {training.learning_rate:g}, {training.precision}"
        ],
        "Seed": [str(results.seed)],
        "Arms": [", ".join(arm.name for arm in results.arms)],
    }


def result_table(results: RunResults) -> Table:
    """Members, then the ensemble, each with its arms below each other; last the difference of the ensembles."""

    def measures(found: EnsembleResult) -> list[str]:
        return [f"{value(found):,.{decimals}f}" for value, decimals in _MEASURES.values()]

    groups = []
    for index, member in enumerate(results.arms[0].members):
        rows = []
        for arm in results.arms:
            own = arm.members[index]
            rows.append(
                [arm.name, "in the bank" if arm.name == "shared" else f"{own.num_parameters:,}", *measures(own)]
            )
        groups.append(Group(name=member.name, rows=rows))
    rows = [[arm.name, f"{arm.num_parameters:,}", *measures(arm.ensemble)] for arm in results.arms]
    groups.append(Group(name="ensemble", rows=rows, kind="strong"))
    shared, independent = results.arm("shared"), results.arm("independent")
    if shared and independent:
        saved = signed(shared.num_parameters - independent.num_parameters, 0)
        differences = [
            NOTHING if name == "latency ms" else signed(value(shared.ensemble) - value(independent.ensemble), decimals)
            for name, (value, decimals) in _MEASURES.items()
        ]
        groups.append(Group(rows=[["difference", "paired", saved, *differences]], kind="change"))
    return Table(
        label="Results, member by member",
        head=("member", "arm", "parameters", *_MEASURES),
        groups=groups,
        left=2,
        caption=f"{results.dataset.num_test:,} test images of {results.dataset.name}, "
        f"on {results.arms[0].training.device}",
        note=_NOTE + _NOTE_OF_ARMS * bool(shared and independent),
    )


def anytime_tables(results: RunResults) -> dict[str, Table]:
    """Tables of areas, with a row for each arm's curve, and of points, with a group of rows for each curve."""
    areas, groups = [], []
    for arm in results.arms:
        if arm.anytime is None:
            continue
        for curve in arm.anytime.curves:
            areas.append([curve.name, arm.name, f"{100 * curve.area:,.2f}", f"{100 * curve.latency_area:,.2f}"])
        kept = {curve.name: curve.points for curve in arm.anytime.curves} | {"policy kept": (arm.anytime.calibrated,)}
        for name, points in kept.items():
            rows: list[list[str]] = []
            for point in points:
                costs = [f"{point.members_used:,.2f}", f"{point.flops / 1e6:,.2f}", f"{point.latency_ms:,.2f}"]
                owner = "" if rows else arm.name
                rows.append([owner, *costs, f"{100 * point.accuracy:,.2f}", f"{point.nll:,.4f}"])
            groups.append(Group(name=name, rows=rows))
    return {
        "areas": Table(
            label="Areas under the anytime curves",
            head=("curve", "arm", "over FLOPs", "over time"),
            groups=[Group(rows=areas)],
            left=2,
            caption="Mean accuracy, in per cent, over the logarithm of the cost: the area under each curve",
            kind="lines",
        ),
        "points": Table(
            label="Points of the anytime curves",
            head=("curve", "arm", "members", "MFLOPs", "latency ms", "accuracy %", "NLL"),
            groups=groups,
            left=2,
            caption="Means of a test image",
        ),
    }


def uncertainty_table(results: RunResults) -> Table | None:
    """Table of uncertainty, a row a number; None where the results hold none."""
    rows = [[label, *values] for label, values in uncertainty_rows(results).items()]
    if not rows:
        return None
    return Table(
        label="Uncertainty",
        head=("of the ensembles", *(arm.name for arm in results.arms)),
        groups=[Group(rows=rows)],
        caption="On test images. Entropies in nats; risk is the mean error when the least sure images are left out "
        "first. AUROC and FPR at 95 % say how well images of another data set are told from these.",
        kind="lines",
    )


def provenance_table(run: RunRecord, results: RunResults) -> Table:
    """Versions, machine, commit and date: of the training, and of the evaluation."""
    sources = (run.provenance, results.provenance)
    known = {label: [getattr(one, key, None) for one in sources] for key, label in _PROVENANCE.items()}
    rows = [[label, *map(_plain, found)] for label, found in known.items() if any(one is not None for one in found)]
    packages = [(one and one.packages) or {} for one in sources]
    rows += [[name, *(_plain(own.get(name)) for own in packages)] for name in {**packages[0], **packages[1]}]
    took = ", ".join(f"{arm.name} {arm.training.seconds:,.0f} s on {arm.training.device}" for arm in results.arms)
    return Table(
        label="Versions and machines",
        head=("", "training", "evaluation"),
        groups=[Group(rows=rows)],
        left=0,
        note=f"Training took: {took}.",
        kind="lines wrap",
    )


def _plain(value: object) -> str:
    """Value as people write it: a time of day without its T, a dash for nothing."""
    text = NOTHING if value is None else str(value)
    return text.replace("T", " ").replace("+00:00", " UTC") if text.endswith("+00:00") else text


def plan_table(plan: SharingPlan) -> Table:
    """Table with a row a cluster and a column a member; below, what the members keep, and the account of the budget."""
    banks = ("bank", "how layers read it") if plan.ssn_groups else ()
    slots = ("slots", "templates") if plan.superweight_clusters or not banks else ()
    idle = [""] * (len(plan.member_names) + len(slots) + len(banks))

    def account(count: int) -> list[str]:
        return [f"{count:,}", f"{100 * count / max(plan.num_parameters, 1):.1f} %"]

    rows = []
    for cluster in plan.clusters:
        layers = Counter(target.member for target in cluster.targets)
        cells = [str(layers[name] or NOTHING) for name in plan.member_names]
        count = cluster.num_templates + cluster.num_coefficients
        rows.append([cluster.name, *cells, *_generator_cells(cluster, bool(slots), bool(banks)), *account(count)])
    rows.append(["members' own", *idle, *account(plan.num_private)])
    total = Group(rows=[["in all", *idle, *account(plan.num_parameters)]], kind="strong")
    return Table(
        label="Sharing plan, cluster by cluster",
        head=("cluster", *plan.member_names, *slots, *banks, "parameters", "share"),
        groups=[Group(rows=rows), total],
        caption=f"Sharing plan {plan.fingerprint}; under a member: its layers in the cluster",
        note=_note(plan),
        kind="lines",
    )


def _generator_cells(cluster: Cluster | SsnGroup, slots: bool, banks: bool) -> list[str]:
    """Slots and templates, bank and how it is read: the columns that the plan needs."""
    if isinstance(cluster, Cluster):
        templates = sum(slot.num_templates for slot in cluster.slots)
        return [str(len(cluster.slots)), f"{templates:,}", *[NOTHING, NOTHING] * banks]
    return [*[NOTHING, NOTHING] * slots, f"{cluster.bank_size:,}", bank_words(cluster)]


def _note(plan: SharingPlan) -> str:
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    kinds = ["templates"] * bool(plan.superweight_clusters or not plan.ssn_groups) + ["flat banks"] * bool(
        plan.ssn_groups
    )
    words = []
    if "templates" in kinds:
        words.append("a slot completes the weight of one width")
    if "flat banks" in kinds:
        words.append(
            "layers of a Shapeshifter Network read windows of a flat bank, as many numbers as they have; what a larger "
            "layer reads is enlarged"
        )
    words.append("members' own: heads, norms, biases, weights that nothing shares.")
    said = "; ".join(words)
    return (
        f"Budget {plan.budget:,}, which counts {counted}; {plan.budget - plan.spent:,} unspent. "
        f"{plan.num_templates:,} parameters in {' and '.join(kinds)} (at least {plan.minimum_templates:,}), "
        f"{plan.num_coefficients:,} in coefficients. {said[0].upper()}{said[1:]}"
    )
