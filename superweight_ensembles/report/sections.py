"""The sections of the page: what was run, results, figures, curves, the sharing plan, configuration, provenance."""

from __future__ import annotations

import base64
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from superweight_ensembles.anytime import CurvePoint, EnsembleResult
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import ArmResults, Epoch, Recipe, RunRecord, RunResults, uncertainty_rows
from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup, bank_words
from superweight_ensembles.report.figures import widths_learned
from superweight_ensembles.report.template import NOTHING, Html, head_row, join, row, scrolled, sheet, signed, tag
from superweight_ensembles.storage import read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE = 1000  # pixels; figures are one column (800) or a page (1400)
_INTRODUCTION = (
    "What the ensemble answers when it may stop early. Stream: the mean of the members so far, after each. Cascade: "
    "images that are sure enough leave before the next member; thresholds come from validation images."
)
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
_CAPTIONS = {
    "accuracy_flops": (
        "Accuracy against compute",
        "Up and to the left is better. Small dots are sets of members, large markers members alone, the star all of "
        "them; the line joins the sets that no cheaper set beats.",
    ),
    "accuracy_parameters": (
        "Accuracy against parameters",
        "Stars are the ensembles, squares independent members alone. The arrow is what the bank saves.",
    ),
    "training_curves": (
        "Training",
        "Above, the training loss, mean over members; below, the error on validation images, on a logarithmic axis. "
        "Thick lines are the ensembles, thin ones their members, each with a line style of its own.",
    ),
    "reliability_diagram": (
        "Calibration",
        "On the diagonal confidence is right; below it the ensemble is too sure. Bars are one standard error; bins "
        "of few images are joined. Below, how often each confidence occurs, on a logarithmic axis.",
    ),
    "sharing_map": (
        "Who shares with whom",
        "A row a member, a block a layer, first to last, as wide as the square root of its weights. Blocks of one "
        "colour come from the same templates; bands join them across members. Lines in a block are its width slots.",
    ),
    "budget_split": (
        "Where the parameters are",
        "Above, the bank by cluster, in the colours of the map, each part again under it; the dashed line is the "
        "budget. Below, the members apart, one after the other.",
    ),
    "anytime_curves": (
        "Accuracy when members stop early",
        "Up and to the left is better. Solid lines are cascades, dashed steps streams, single markers members alone; "
        "by FLOPs on the left, by measured time on the right.",
    ),
    "uncertainty_curves": (
        "What the ensembles know",
        "Above, the error when the least sure images are left out: lower is better. Below, accuracy on corrupted test "
        "images: thick lines are means over corruptions, thin ones each of them.",
    ),
    "width_history": (
        "Widths while they were learned",
        "A panel a member, a line a layer: hidden neurons after each epoch.",
    ),
    "similarity_matrix": (
        "What the search saw",
        "Each square is how well the gradients of two layers agree: red together, blue against each other. Boxes are "
        "the sets found; hatched layers were not compared and follow the one with the dot.",
    ),
    "sharing_change": (
        "What the search changed",
        "A panel a plan, a column a member, a row a layer. Shades of a colour are the parts of one split cluster; "
        "layers with a letter in common use the same coefficients.",
    ),
}


def figure_names(results: RunResults, searched: bool) -> dict[str, tuple[str, ...]]:
    """The figures that a run has, by their section; no others are drawn for it."""
    names: dict[str, tuple[str, ...]] = {
        "results": ("accuracy_flops", "accuracy_parameters", "training_curves", "reliability_diagram"),
        "sharing": ("sharing_map", "budget_split"),
    }
    if any(arm.anytime for arm in results.arms):
        names["anytime"] = ("anytime_curves",)
    if any(arm.shift for arm in results.arms):
        names["uncertainty"] = ("uncertainty_curves",)
    if widths_learned(results):
        names["widths"] = ("width_history",)
    if searched:
        names["search"] = ("similarity_matrix", "sharing_change")
    return names


def facts(results: RunResults, recipe: Recipe, plan: SharingPlan) -> Html:
    """Name, data, members, budget, seed: what was run, at a glance."""
    dataset, training = results.dataset, recipe.training
    members = []
    for member in recipe.members:
        options = "".join(f", {key} {value}" for key, value in (member.model_extra or {}).items())
        members.append(tag("div", f"{member.name}: {member.model}{options}"))
    images = " x ".join(str(size) for size in dataset.image_shape)
    entries: dict[str, str | list[Html]] = {
        "Data": f"{dataset.name}: {len(dataset.classes)} classes, images {images}; {dataset.num_train:,} to "
        f"train, {dataset.num_validation:,} to validate, {dataset.num_test:,} to test",
        "Members": members,
        "Budget": f"{plan.budget:,} parameters; the members own {plan.independent_parameters:,} apart",
        "Training": f"{training.epochs} epochs, batches of {training.batch_size}, {training.optimizer}, "
        f"{training.schedule} from {training.learning_rate:g}, {training.precision}",
        "Seed": str(results.seed),
        "Arms": ", ".join(arm.name for arm in results.arms),
    }
    return tag("dl", [join([tag("dt", key), tag("dd", value)]) for key, value in entries.items()], class_="facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure: its heading, where a row holds it, how it is written, and whether a difference means anything."""

    heading: str
    value: Callable[[EnsembleResult], float]
    scale: float = 1.0
    decimals: int
    compared: bool = True

    def cell(self, result: EnsembleResult) -> str:
        return f"{self.scale * self.value(result):,.{self.decimals}f}"

    def difference(self, result: EnsembleResult, other: EnsembleResult) -> str:
        if not self.compared:
            return NOTHING
        return signed(self.scale * (self.value(result) - self.value(other)), self.decimals)


_COLUMNS = (
    Column(heading="MFLOPs", value=lambda result: result.flops, scale=1e-6, decimals=2),
    Column(heading="latency ms", value=lambda result: result.latency_ms, decimals=2, compared=False),
    Column(heading="accuracy %", value=lambda result: result.metrics.accuracy, scale=100, decimals=2),
    Column(heading="NLL", value=lambda result: result.metrics.nll, decimals=4),
    Column(heading="ECE %", value=lambda result: result.metrics.ece, scale=100, decimals=2),
    Column(heading="Brier", value=lambda result: result.metrics.brier, decimals=4),
)


def result_section(results: RunResults) -> Html:
    """Members, then the ensemble, of each the arms below each other; last what the ensembles differ by."""
    head = head_row("member", "arm", "parameters", *(column.heading for column in _COLUMNS), left=2)
    groups = []
    for index, name in enumerate(member.name for member in results.arms[0].members):
        of_arms = [
            (
                arm,
                arm.members[index],
                "in the bank" if arm.name == "shared" else f"{arm.members[index].num_parameters:,}",
            )
            for arm in results.arms
        ]
        groups.append(_group(name, of_arms))
    groups.append(
        _group("ensemble", [(arm, arm.ensemble, f"{arm.num_parameters:,}") for arm in results.arms], class_="strong")
    )
    note = _NOTE
    shared, independent = results.arm("shared"), results.arm("independent")
    if shared and independent:
        saved = signed(shared.num_parameters - independent.num_parameters, 0)
        cells = [column.difference(shared.ensemble, independent.ensemble) for column in _COLUMNS]
        paired = tag("td", "paired", class_="left")
        groups.append(tag("tbody", row("difference", [paired, saved, *cells]), class_="change"))
        note += _NOTE_OF_ARMS
    caption = (
        f"{results.dataset.num_test:,} test images of {results.dataset.name}, on {results.arms[0].training.device}"
    )
    table = sheet("Results, member by member", groups, head=head, caption=caption)
    return join([table, tag("p", note, class_="note")])


def _group(name: str, of_arms: Sequence[tuple[ArmResults, EnsembleResult, str]], class_: str | None = None) -> Html:
    """The rows of a member or of the ensemble: one an arm, with what it found and its parameters."""
    first: Html | None = tag("th", name, scope="rowgroup", rowspan=len(of_arms))
    lines = []
    for arm, found, parameters in of_arms:
        cells = [tag("td", arm.name, class_="left"), parameters, *(column.cell(found) for column in _COLUMNS)]
        lines.append(row(first, cells))
        first = None
    return tag("tbody", lines, class_=class_)


def anytime_section(results: RunResults, drawn: str = "") -> Html:
    """The figure, a table of areas, a curve of an arm a row, and one of points, a curve a group of rows."""
    areas, groups = [], []
    for arm in results.arms:
        if arm.anytime is None:
            continue
        name = tag("td", arm.name, class_="left")
        for curve in arm.anytime.curves:
            areas.append(row(curve.name, [name, f"{100 * curve.area:,.2f}", f"{100 * curve.latency_area:,.2f}"]))
            groups.append(_point_rows(curve.name, name, curve.points))
        groups.append(_point_rows("policy kept", name, [arm.anytime.calibrated]))
    caption = "Mean accuracy, in per cent, over the logarithm of the cost: the area under each curve"
    head = head_row("curve", "arm", "over FLOPs", "over time", left=2)
    columns = ("members", "MFLOPs", "latency ms", "accuracy %", "NLL")
    point_head = head_row("curve", "arm", *columns, left=2)
    body = tag("tbody", areas)
    return join(
        [
            tag("p", _INTRODUCTION),
            drawn,
            tag("h3", "Areas under the curves"),
            sheet("Areas under the anytime curves", body, head=head, caption=caption, class_="lines"),
            tag("h3", "Points of the curves"),
            sheet("Points of the anytime curves", groups, head=point_head, caption="Means of a test image"),
        ]
    )


def uncertainty_section(results: RunResults, drawn: str = "") -> Html | None:
    """A table, a row a number, and the figure where there is one; None for results of before."""
    rows = uncertainty_rows(results)
    if not rows:
        return None
    head = head_row("of the ensembles", *(arm.name for arm in results.arms), left=1)
    body = tag("tbody", [row(label, values) for label, values in rows.items()])
    caption = (
        "On test images. Entropies in nats; risk is the mean error when the least sure images are left out first. "
        "AUROC and FPR at 95 % say how well images of another data set are told from these."
    )
    return join([sheet("Uncertainty", body, head=head, caption=caption, class_="lines"), drawn])


def _point_rows(name: str, arm: Html, points: Sequence[CurvePoint]) -> Html:
    first: Html | None = tag("th", name, scope="rowgroup", rowspan=len(points))
    lines = []
    for point in points:
        costs = [f"{point.members_used:,.2f}", f"{point.flops / 1e6:,.2f}", f"{point.latency_ms:,.2f}"]
        owner = arm if first else tag("td", class_="left")
        lines.append(row(first, [owner, *costs, f"{100 * point.accuracy:,.2f}", f"{point.nll:,.4f}"]))
        first = None
    return tag("tbody", lines)


def configuration_section(recipe: Recipe) -> Html:
    """The recipe with every default, folded."""
    text = scrolled(tag("pre", tag("code", recipe.to_yaml())), label="Configuration as YAML", class_="sheet")
    return tag("details", tag("summary", "The whole recipe as YAML, every default in it"), text)


def origin_section(run: RunRecord, results: RunResults) -> Html:
    """Versions, machine, commit and date: of the training, and of the evaluation."""
    sources = (run.provenance, results.provenance)
    values = {label: [getattr(one, key, None) for one in sources] for key, label in _PROVENANCE.items()}
    packages = [(one and one.packages) or {} for one in sources]
    rows = [row(label, map(_plain, found)) for label, found in values.items() if any(one is not None for one in found)]
    for name in dict.fromkeys(name for own in packages for name in own):
        rows.append(row(name, [_plain(own.get(name)) for own in packages]))
    head = tag("tr", tag("td"), [tag("th", name, scope="col") for name in ("training", "evaluation")])
    took = ", ".join(f"{arm.name} {arm.training.seconds:,.0f} s on {arm.training.device}" for arm in results.arms)
    table = sheet("Versions and machines", tag("tbody", rows), head=head, class_="lines wrap")
    return join([table, tag("p", f"Training took: {took}.", class_="note")])


def _plain(value: object) -> str:
    """As people write it: a time of day without its T, a dash for nothing."""
    text = NOTHING if value is None else str(value)
    return text.replace("T", " ").replace("+00:00", " UTC") if text.endswith("+00:00") else text


def plan_section(plan: SharingPlan) -> Html:
    """A row a cluster, a column a member; below them what the members keep, and the account of the budget."""
    made = ("bank", "how layers read it") if plan.ssn_groups else ()
    slotted = ("slots", "templates") if plan.superweight_clusters or not made else ()
    columns = ("cluster", *plan.member_names, *slotted, *made, "parameters", "share")
    idle = [""] * (len(columns) - 3)
    body = []
    for cluster in plan.clusters:
        layers = Counter(target.member for target in cluster.targets)
        cells = [str(layers[name]) if layers[name] else NOTHING for name in plan.member_names]
        count = cluster.num_templates + cluster.num_coefficients
        body.append(row(cluster.name, [*cells, *_made(cluster, plan), *_account(count, plan)]))
    body.append(row("members' own", [*idle, *_account(plan.num_private, plan)]))
    total = row("in all", [*idle, *_account(plan.num_parameters, plan)])
    parts = [tag("tbody", body), tag("tbody", total, class_="strong")]
    caption = f"Sharing plan {plan.fingerprint}; under a member: its layers in the cluster"
    head = head_row(*columns, left=1)
    table = sheet("Sharing plan, cluster by cluster", parts, head=head, caption=caption, class_="lines")
    return join([table, _note(plan)])


def _made(cluster: Cluster | SsnGroup, plan: SharingPlan) -> list[str]:
    """Slots and templates, bank and how it is read: the columns that the plan needs."""
    if isinstance(cluster, Cluster):
        slotted = [str(len(cluster.slots)), f"{sum(slot.num_templates for slot in cluster.slots):,}"]
        return [*slotted, NOTHING, NOTHING] if plan.ssn_groups else slotted
    read = [f"{cluster.bank_size:,}", bank_words(cluster)]
    return [NOTHING, NOTHING, *read] if plan.superweight_clusters else read


def _account(count: int, plan: SharingPlan) -> list[str]:
    return [f"{count:,}", f"{100 * count / max(plan.num_parameters, 1):.1f} %"]


def _note(plan: SharingPlan) -> Html:
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    flat = sum(group.bank_size for group in plan.ssn_groups.values())
    words = ["A slot completes the weight of one width"] if plan.superweight_clusters or not flat else []
    if flat:
        words.append(
            "layers of a Shapeshifter Network read windows of a flat bank, as many numbers as they have; what a larger "
            "layer reads is enlarged"
        )
    words.append("members' own: heads, norms, biases, weights that nothing shares.")
    return tag(
        "p",
        f"Budget {plan.budget:,}, which counts {counted}; {plan.budget - plan.spent:,} unspent. "
        f"{plan.num_templates:,} parameters in {_templates(plan)} (at least {plan.minimum_templates:,}), "
        f"{plan.num_coefficients:,} in coefficients. {'; '.join(words)}".replace(". layers", ". Layers"),
        class_="note",
    )


def _templates(plan: SharingPlan) -> str:
    if not plan.ssn_groups:
        return "templates"
    return "templates and flat banks" if plan.superweight_clusters else "flat banks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure: SVG or PNG, and what it draws as CSV, where that is known."""

    name: str
    width: int
    height: int
    data: bytes
    kind: str = "png"
    csv: str = ""


def read_pictures(folder: Path) -> dict[str, Picture]:
    """All PNG files of a folder, by name without ``.png``, in the order of their names.

    Raises:
        SuperWeightError: A file that is no PNG.
    """
    pictures = {}
    for path in sorted(folder.glob("*.png")):
        if path.name.startswith("."):
            continue
        data = read_bytes(path)
        if len(data) < 24 or not data.startswith(_SIGNATURE):
            raise SuperWeightError(f"{path} is no PNG file: remove it and write the report again")
        width, height = struct.unpack(">II", data[16:24])
        pictures[path.stem] = Picture(name=path.stem, width=width, height=height, data=data)
    return pictures


def picture_title(name: str) -> str:
    """What a figure is called: the title of those that this library draws, the file's name of others.

    Example:
        >>> picture_title("sharing_map"), picture_title("my_own-figure")
        ('Who shares with whom', 'My own figure')
    """
    if name in _CAPTIONS:
        return _CAPTIONS[name][0]
    words = name.replace("_", " ").replace("-", " ").strip() or name
    return words[0].upper() + words[1:]


def figures(pictures: Iterable[Picture], results: RunResults, plan: SharingPlan) -> Html:
    """Figures side by side where there is room; wide ones on a line of their own."""
    return tag("div", [_figure(picture, results, plan) for picture in pictures], class_="figures")


def _figure(picture: Picture, results: RunResults, plan: SharingPlan) -> Html:
    title = picture_title(picture.name)
    reading = _reading(picture.name, plan)
    wide = picture.width >= _WIDE
    image = tag(
        "img",
        src=_data_uri(f"image/{picture.kind}", picture.data),
        alt=describe(picture.name, results, plan),
        width=picture.width,
        height=picture.height,
    )
    frame = scrolled(image, label=title, class_="frame") if wide else tag("div", image, class_="frame")
    link: str = ""
    if picture.csv:
        address = _data_uri("text/csv;charset=utf-8", picture.csv.encode())
        file = f"{picture.name}.csv"
        link = tag("a", "Data as CSV", href=address, download=file, class_="data", aria_label=f"{title}: data as CSV")
    caption = tag("figcaption", tag("h3", title), tag("p", reading, " ", link))
    return tag("figure", caption, frame, class_="wide" if wide else None)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _reading(name: str, plan: SharingPlan) -> str:
    """How to read a figure."""
    if name not in _CAPTIONS:
        return f"From figures/{name}.png."
    words = _CAPTIONS[name][1]
    if name != "sharing_map" or not plan.ssn_groups:
        return words
    if not plan.superweight_clusters:
        words = words.replace("the same templates", "one bank").replace(
            " The lines in a block are its width slots.", ""
        )
    return f"{words} A layer that is larger than its flat bank is pale above as many weights as it reads."


def describe(name: str, results: RunResults, plan: SharingPlan) -> str:
    """What a figure shows, in words and numbers, for those who do not see it."""
    arms = results.arms
    accuracies = _each({arm.name: f"{100 * arm.ensemble.metrics.accuracy:.2f} %" for arm in arms})
    names = ", ".join(plan.member_names)
    clusters = f"{len(plan.clusters)} cluster{'s' * (len(plan.clusters) != 1)}"
    if plan.ssn_groups:
        clusters += f" ({len(plan.ssn_groups)} of them flat banks)" if plan.superweight_clusters else " of flat banks"
    if name == "accuracy_flops":
        return (
            f"Test accuracy against FLOPs of {len(arms[0].subsets)} sets of members. All members together, at "
            f"{arms[0].ensemble.flops / 1e6:,.2f} MFLOPs: {accuracies}."
        )
    if name == "accuracy_parameters":
        counts = _each({arm.name: f"{arm.num_parameters:,}" for arm in arms})
        return f"Test accuracy against trainable parameters. Parameters: {counts}. Accuracy: {accuracies}."
    if name == "training_curves":
        losses = {arm.name: _mean_loss(arm.history[-1]) for arm in arms if arm.history}
        epochs = max((len(arm.history) for arm in arms), default=0)
        return f"Training loss and validation accuracy over {epochs} epochs. Loss of the last epoch: {_each(losses)}."
    if name == "reliability_diagram":
        errors = _each({arm.name: f"{100 * arm.ensemble.metrics.ece:.2f} %" for arm in arms})
        return f"Accuracy against confidence of the ensembles. Expected calibration error: {errors}."
    if name == "sharing_map":
        layers = sum(len(cluster.targets) for cluster in plan.clusters)
        return f"Map of the {layers} generated layers of {names}, coloured by the {clusters} that generate them."
    if name == "budget_split":
        parts = _each({c.name: f"{c.num_templates + c.num_coefficients:,}" for c in plan.clusters})
        parts = f"{parts}; members' own: {plan.num_private:,}"
        return f"Bars of trainable parameters, {plan.num_parameters:,} in all. {parts}."
    if name == "anytime_curves":
        return "Test accuracy against cost of streams and cascades, in FLOPs and in time. The table has their points."
    if name == "uncertainty_curves":
        known = {arm.name: arm.uncertainty for arm in arms if arm.uncertainty is not None}
        areas = _each({arm: f"{100 * one.risk_coverage_area:.2f} %" for arm, one in known.items()})
        return f"Error of the ensembles over the share of images that they are surest of. Mean over shares: {areas}."
    if name == "similarity_matrix":
        return (
            f"Matrices of how well the gradients of the layers of {names} agree, with the sets that the search found."
        )
    if name == "sharing_change":
        return f"The clusters of the layers of {names} before and after the search, which ended with {clusters}."
    return f"{picture_title(name)}: a figure in the run's folder, without a description."


def _each(values: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _mean_loss(epoch: Epoch) -> str:
    losses = [loss for loss in epoch.train_loss.values() if loss is not None]
    return f"{sum(losses) / max(len(losses), 1):.3f}"
