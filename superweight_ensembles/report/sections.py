"""The table of results: members and ensemble, shared beside independent, and the difference of the ensembles."""

from __future__ import annotations

import base64
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import Recipe
from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup, bank_words
from superweight_ensembles.report.findings import Results, arm_of
from superweight_ensembles.report.template import NOTHING, Html, join, scrolled, signed, tag

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure: its heading, where a row holds it, how it is written, and whether a difference means anything."""

    heading: str
    value: Callable[[Row], float]
    scale: float = 1.0
    decimals: int
    compared: bool = True

    def cell(self, row: Row) -> str:
        return f"{self.scale * self.value(row):,.{self.decimals}f}"

    def difference(self, row: Row, other: Row) -> str:
        if not self.compared:
            return NOTHING
        return signed(self.scale * (self.value(row) - self.value(other)), self.decimals)


def _metric(name: str) -> Callable[[Row], float]:
    return lambda row: row["metrics"][name]


_COLUMNS = (
    Column(heading="MFLOPs", value=lambda row: row["flops"], scale=1e-6, decimals=2),
    Column(heading="latency ms", value=lambda row: row["latency_ms"], decimals=2, compared=False),
    Column(heading="accuracy %", value=_metric("accuracy"), scale=100, decimals=2),
    Column(heading="NLL", value=_metric("nll"), decimals=4),
    Column(heading="ECE %", value=_metric("ece"), scale=100, decimals=2),
    Column(heading="Brier", value=_metric("brier"), decimals=4),
)


def result_section(results: Results) -> Html:
    """Members, then the ensemble, of each the arms below each other; last what the ensembles differ by."""
    arms: Sequence[Row] = results["arms"]
    headings = ("member", "arm", "parameters", *(column.heading for column in _COLUMNS))
    left = {"member", "arm"}
    head = tag(
        "tr", [tag("th", name, scope="col", class_="left" if name in left else None) for name in headings]
    )  # fmt: skip
    groups = [
        _group(
            member["name"],
            arms,
            [arm["members"][index] for arm in arms],
            [_own(arm, index) for arm in arms],
        )
        for index, member in enumerate(arms[0]["members"])
    ]  # fmt: skip
    groups.append(
        _group(
            "ensemble",
            arms,
            [arm["ensemble"] for arm in arms],
            [f"{arm['num_parameters']:,}" for arm in arms],
            class_="strong",
        )
    )
    note = _NOTE
    shared, independent = arm_of(results, "shared"), arm_of(results, "independent")
    if shared is not None and independent is not None:
        groups.append(_change(shared, independent))
        note += _NOTE_OF_ARMS
    table = tag("table", tag("caption", _caption(results)), tag("thead", head), groups)
    return join([scrolled(table, label="Results, member by member", class_="sheet"), tag("p", note, class_="note")])


_NOTE = (
    "FLOPs an image, two a multiply-add. Latency of one image, median; an ensemble's is the sum over its members. "
    "Parameters of a member: as a plain network. The ensemble is the mean of its members' probabilities. "
    "ECE in 15 bins. Of NLL, ECE and Brier, less is better."
)
_NOTE_OF_ARMS = (
    " Difference: shared minus independent, on the same images. Both arms run the same plain networks, so that their "
    "latencies differ only by what else the machine did."
)


def _own(arm: Row, index: int) -> str:
    return "in the bank" if arm["name"] == "shared" else f"{arm['members'][index]['num_parameters']:,}"


def _caption(results: Results) -> str:
    dataset, training = results["dataset"], results["arms"][0].get("training") or {}
    where = f", on {training['device']}" if training.get("device") else ""
    return f"{dataset['num_test']:,} test images of {dataset['name']}{where}"


def _group(
    name: str, arms: Sequence[Row], rows: Sequence[Row], parameters: Sequence[str], class_: str | None = None
) -> Html:
    lines = []
    for index, (arm, row) in enumerate(zip(arms, rows)):
        first = [tag("th", name, scope="rowgroup", rowspan=len(arms))] if index == 0 else []
        cells = [tag("td", parameters[index]), *(tag("td", column.cell(row)) for column in _COLUMNS)]
        lines.append(tag("tr", first, tag("td", arm["name"], class_="left"), cells))
    return tag("tbody", lines, class_=class_)


def _change(shared: Row, independent: Row) -> Html:
    """Paired: both arms saw the same test images."""
    saved = shared["num_parameters"] - independent["num_parameters"]
    cells = [column.difference(shared["ensemble"], independent["ensemble"]) for column in _COLUMNS]
    return tag(
        "tbody",
        tag(
            "tr",
            tag("th", "difference", scope="row"),
            tag("td", "paired", class_="left"),
            tag("td", signed(saved, 0)),
            [tag("td", cell) for cell in cells],
        ),
        class_="change",
    )


# FOLDED report.anytime_section: Accuracy at any compute, where a run has measured it: areas under the curves, and
# their points.

_ANYTIME_COLUMNS = {
    "members_used": ("members", 1.0, 2),
    "members": ("members", 1.0, 2),
    "flops": ("MFLOPs", 1e-6, 2),
    "latency_ms": ("latency ms", 1.0, 2),
    "accuracy": ("accuracy %", 100.0, 2),
    "nll": ("NLL", 1.0, 4),
    "ece": ("ECE %", 100.0, 2),
    "brier": ("Brier", 1.0, 4),
}
_AREAS = {"area": "over FLOPs", "latency_area": "over time"}
_INTRODUCTION = (
    "What the ensemble answers when it may stop early. Stream: the mean of the members so far, after each. Cascade: "
    "images that are sure enough leave before the next member; thresholds come from validation images."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One way to answer at any compute, as an arm measured it; every key may be missing."""

    arm: str
    name: str
    areas: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]


def read_curves(results: Results) -> list[Curve]:
    """The curves of all arms, and the policy that each arm keeps; what an arm does not hold is left out."""
    curves = []
    for arm in results["arms"]:
        anytime = _mapping(arm.get("anytime"))
        for curve in map(_mapping, _list(anytime.get("curves"))):
            points = tuple(point for point in _list(curve.get("points")) if isinstance(point, Mapping))
            name = str(curve.get("name", "unnamed"))
            curves.append(Curve(arm=str(arm["name"]), name=name, areas=curve, points=points))
        kept = _mapping(anytime.get("calibrated"))
        if kept:
            curves.append(Curve(arm=str(arm["name"]), name="policy kept", areas={}, points=(kept,)))
    return curves


def anytime_section(curves: Sequence[Curve], drawn: str = "") -> Html:
    """The figure, a table of areas, a curve of an arm a row, and one of points, a curve a group of rows."""
    held = [key for key in _AREAS if any(_is_number(curve.areas.get(key)) for curve in curves)]
    rows = [
        tag(
            "tr",
            tag("th", curve.name, scope="row"),
            tag("td", curve.arm, class_="left"),
            [tag("td", _number(curve.areas.get(key), 100.0, 2)) for key in held],
        )
        for curve in curves
        if any(key in curve.areas for key in held)
    ]
    areas = tag(
        "table",
        tag("caption", "Mean accuracy, in per cent, over the logarithm of the cost: the area under each curve"),
        tag("thead", tag("tr", _left("curve"), _left("arm"), [_heading(_AREAS[key]) for key in held])),
        tag("tbody", rows),
        class_="lines",
    )
    points = [curve for curve in curves if curve.points]
    return join(
        [
            tag("p", _INTRODUCTION),
            drawn,
            tag("h3", "Areas under the curves") if rows else "",
            scrolled(areas, label="Areas under the anytime curves", class_="sheet") if rows else "",
            tag("h3", "Points of the curves") if points else "",
            scrolled(_points(points), label="Points of the anytime curves", class_="sheet") if points else "",
        ]
    )


def _points(curves: Sequence[Curve]) -> Html:
    columns = [
        key for key in _ANYTIME_COLUMNS if any(point.get(key) is not None for curve in curves for point in curve.points)
    ]
    head = tag("tr", _left("curve"), _left("arm"), [_heading(_ANYTIME_COLUMNS[key][0]) for key in columns])
    groups = []
    for curve in curves:
        name = tag("th", curve.name, scope="rowgroup", rowspan=len(curve.points))
        lines = [
            tag(
                "tr",
                name if index == 0 else "",
                tag("td", curve.arm if index == 0 else "", class_="left"),
                [tag("td", _number(point.get(key), *_ANYTIME_COLUMNS[key][1:])) for key in columns],
            )
            for index, point in enumerate(curve.points)
        ]
        groups.append(tag("tbody", lines))
    return tag("table", tag("caption", "Means of a test image"), tag("thead", head), groups)


def _left(name: str) -> Html:
    return tag("th", name, scope="col", class_="left")


def _heading(name: str) -> Html:
    return tag("th", name, scope="col")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object, scale: float, decimals: int) -> str:
    """A number as its column has it, names one after the other, a dash for nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{scale * value:,.{decimals}f}"
    if isinstance(value, list):
        return " + ".join(str(name) for name in value)
    return NOTHING if value is None else str(value)


# FOLDED report.origin_section: Where the numbers come from: what was run, its whole configuration, and what it ran on.

_KEYS = {
    "time": "time",
    "commit": "commit",
    "python": "Python",
    "cpu": "CPU",
    "cpu_capability": "CPU instructions",
    "gpu": "GPU",
    "num_threads": "threads",
    "omp_wait_policy": "OMP_WAIT_POLICY",
}


def facts(results: Results, recipe: Recipe, plan: SharingPlan) -> Html:
    """Name, data, members, budget, seed: what was run, at a glance."""
    dataset, training = results["dataset"], recipe.training
    members = [f"{member.name}: {member.model}{_options(member.model_extra or {})}" for member in recipe.members]
    images = " x ".join(str(size) for size in dataset["image_shape"])
    entries: dict[str, str | list[Html]] = {
        "Data": f"{dataset['name']}: {len(dataset['classes'])} classes, images {images}; {dataset['num_train']:,} to "
        f"train, {dataset['num_validation']:,} to validate, {dataset['num_test']:,} to test",
        "Members": [tag("div", member) for member in members],
        "Budget": f"{plan.budget:,} parameters; the members own {plan.independent_parameters:,} apart",
        "Training": f"{training.epochs} epochs, batches of {training.batch_size}, {training.optimizer}, "
        f"{training.schedule} from {training.learning_rate:g}, {training.precision}",
        "Seed": str(results["seed"]),
        "Arms": ", ".join(str(arm["name"]) for arm in results["arms"]),
    }
    return tag("dl", [join([tag("dt", key), tag("dd", value)]) for key, value in entries.items()], class_="facts")


def configuration_section(recipe: Recipe) -> Html:
    """The recipe with every default, folded."""
    text = scrolled(tag("pre", tag("code", recipe.to_yaml())), label="Configuration as YAML", class_="sheet")
    return tag("details", tag("summary", "The whole recipe as YAML, every default in it"), text)


def origin_section(run: Mapping[str, Any], results: Results) -> Html:
    """Versions, machine, commit and date: of the training, and of the evaluation."""
    sources = {"training": run.get("provenance") or {}, "evaluation": results.get("provenance") or {}}
    names = list(dict.fromkeys(name for source in sources.values() for name in source.get("packages") or {}))
    rows = [
        _row(label, [source.get(key) for source in sources.values()])
        for key, label in _KEYS.items()
        if any(source.get(key) is not None for source in sources.values())
    ]
    rows += [_row(name, [(source.get("packages") or {}).get(name) for source in sources.values()]) for name in names]
    head = tag("tr", tag("td"), [tag("th", name, scope="col") for name in sources])
    took = [
        f"{arm['name']} {arm['training']['seconds']:,.0f} s on {arm['training'].get('device', 'an unknown device')}"
        for arm in results["arms"]
        if (arm.get("training") or {}).get("seconds") is not None
    ]
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="lines wrap")
    note = tag("p", f"Training took: {', '.join(took)}.", class_="note") if took else ""
    return join([scrolled(table, label="Versions and machines", class_="sheet"), note])


def _row(name: str, values: list[Any]) -> Html:
    written = [NOTHING if value is None else _plain(value) for value in values]
    cells = [tag("td", value) for value in written]
    return tag("tr", tag("th", name, scope="row"), cells)


def _options(options: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in options.items())


def _plain(value: object) -> str:
    """As people write it: a time of day without its T."""
    text = str(value)
    return text.replace("T", " ").replace("+00:00", " UTC") if text.endswith("+00:00") else text


# FOLDED report.sharing_section: The sharing plan as a table: which cluster gives how many layers to which member, and
# what it costs.


def plan_section(plan: SharingPlan) -> Html:
    """A row a cluster, a column a member; below them what the members keep, and the account of the budget."""
    made = ("bank", "how layers read it") if plan.ssn_groups else ()
    slotted = ("slots", "templates") if plan.superweight_clusters or not made else ()
    columns = ("cluster", *plan.member_names, *slotted, *made, "parameters", "share")
    head = tag("tr", [tag("th", name, scope="col", class_="left" if index == 0 else None)
                      for index, name in enumerate(columns)])  # fmt: skip
    body = [_cluster(cluster, plan) for cluster in plan.clusters]
    idle = len(columns) - 3
    body.append(_account(plan, "members' own", plan.num_private, idle))
    total = tag("tbody", _account(plan, "in all", plan.num_parameters, idle), class_="strong")
    caption = tag("caption", f"Sharing plan {plan.fingerprint}; under a member: its layers in the cluster")
    table = tag("table", caption, tag("thead", head), tag("tbody", body), total, class_="lines")
    return join([scrolled(table, label="Sharing plan, cluster by cluster", class_="sheet"), _note(plan)])


def _cluster(cluster: Cluster | SsnGroup, plan: SharingPlan) -> Html:
    layers = Counter(target.member for target in cluster.targets)
    count = cluster.num_templates + cluster.num_coefficients
    return tag(
        "tr",
        tag("th", cluster.name, scope="row"),
        [tag("td", str(layers[name]) if layers[name] else NOTHING) for name in plan.member_names],
        [tag("td", cell) for cell in _made(cluster, plan)],
        tag("td", f"{count:,}"),
        tag("td", _share(count, plan)),
    )


def _made(cluster: Cluster | SsnGroup, plan: SharingPlan) -> list[str]:
    """Slots and templates, bank and how it is read: the columns that the plan needs."""
    if isinstance(cluster, Cluster):
        slotted = [str(len(cluster.slots)), f"{sum(slot.num_templates for slot in cluster.slots):,}"]
        return [*slotted, NOTHING, NOTHING] if plan.ssn_groups else slotted
    read = [f"{cluster.bank_size:,}", bank_words(cluster)]
    return [NOTHING, NOTHING, *read] if plan.superweight_clusters else read


def _account(plan: SharingPlan, name: str, count: int, idle: int) -> Html:
    empty = [tag("td") for _ in range(idle)]
    return tag("tr", tag("th", name, scope="row"), empty, tag("td", f"{count:,}"), tag("td", _share(count, plan)))


def _share(count: int, plan: SharingPlan) -> str:
    return f"{100 * count / max(plan.num_parameters, 1):.1f} %"


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


# FOLDED report.pictures: The figures of a run inside the page: read as they are, with how to read them and what they
# show.

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE = 1000  # pixels; figures are one column (800) or a page (1400)

RESULT_FIGURES = ("accuracy_flops", "accuracy_parameters", "training_curves", "reliability_diagram")
SHARING_FIGURES = ("sharing_map", "budget_split")
ANYTIME_FIGURES = ("anytime_curves",)
WIDTH_FIGURES = ("width_history",)
SEARCH_FIGURES = ("similarity_matrix", "sharing_change")

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
        "Above, the training loss, mean over members; below, accuracy on validation images. Thick lines are the "
        "ensembles, thin ones their members.",
    ),
    "reliability_diagram": (
        "Calibration",
        "On the diagonal confidence is right; below it the ensemble is too sure. Thin bars are one standard error: "
        "long ones hold few images. Below, how often each confidence occurs.",
    ),
    "sharing_map": (
        "Who shares with whom",
        "A row a member, a block a layer, first to last. Blocks of one colour come from the same templates, and bands "
        "join them across members. The lines in a block are its width slots.",
    ),
    "budget_split": (
        "Where the parameters are",
        "Above, the bank by cluster, in the colours of the map; the dashed line is the budget. Below, the members "
        "apart, one after the other.",
    ),
    "anytime_curves": (
        "Accuracy when members stop early",
        "Up and to the left is better. Solid lines are cascades, dashed steps streams, single markers members alone; "
        "by FLOPs on the left, by measured time on the right.",
    ),
    "width_history": (
        "Widths while they were learned",
        "A line a learned width, in its member's colour: hidden neurons after each epoch.",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG file of a run."""

    name: str
    width: int
    height: int
    data: bytes


def read_pictures(folder: Path) -> dict[str, Picture]:
    """All PNG files of a folder, by name without ``.png``, in the order of their names.

    Raises:
        SuperWeightError: A file that is no PNG.
    """
    pictures = {}
    for path in sorted(folder.glob("*.png")):
        if path.name.startswith("."):
            continue
        data = path.read_bytes()
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


def figures(pictures: Iterable[Picture], results: Results, plan: SharingPlan) -> Html:
    """Figures side by side where there is room; wide ones on a line of their own."""
    return tag("div", [_figure(picture, results, plan) for picture in pictures], class_="figures")


def _figure(picture: Picture, results: Results, plan: SharingPlan) -> Html:
    title = picture_title(picture.name)
    reading = _reading(picture.name, plan)
    wide = picture.width >= _WIDE
    image = tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(picture.data).decode()}",
        alt=describe(picture.name, results, plan),
        width=picture.width,
        height=picture.height,
    )
    frame = scrolled(image, label=title, class_="frame") if wide else tag("div", image, class_="frame")
    caption = tag("figcaption", tag("h3", title), tag("p", reading))
    return tag("figure", caption, frame, class_="wide" if wide else None)


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


def describe(name: str, results: Results, plan: SharingPlan) -> str:
    """What a figure shows, in words and numbers, for those who do not see it."""
    arms = results["arms"]
    of_arms = {arm["name"]: arm["ensemble"]["metrics"] for arm in arms}
    accuracies = _each({name: f"{100 * metrics['accuracy']:.2f} %" for name, metrics in of_arms.items()})
    names = ", ".join(plan.member_names)
    clusters = f"{len(plan.clusters)} cluster{'s' * (len(plan.clusters) != 1)}"
    if plan.ssn_groups:
        clusters += f" ({len(plan.ssn_groups)} of them flat banks)" if plan.superweight_clusters else " of flat banks"
    if name == "accuracy_flops":
        return (
            f"Test accuracy against FLOPs of {len(arms[0]['subsets'])} sets of members. All members together, at "
            f"{arms[0]['ensemble']['flops'] / 1e6:,.2f} MFLOPs: {accuracies}."
        )
    if name == "accuracy_parameters":
        counts = _each({arm["name"]: f"{arm['num_parameters']:,}" for arm in arms})
        return f"Test accuracy against trainable parameters. Parameters: {counts}. Accuracy: {accuracies}."
    if name == "training_curves":
        losses = {arm["name"]: _last_loss(arm["history"]) for arm in arms if arm["history"]}
        epochs = max((len(arm["history"]) for arm in arms), default=0)
        return f"Training loss and validation accuracy over {epochs} epochs. Loss of the last epoch: {_each(losses)}."
    if name == "reliability_diagram":
        errors = _each({arm: f"{100 * metrics['ece']:.2f} %" for arm, metrics in of_arms.items()})
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
    if name == "similarity_matrix":
        return (
            f"Matrices of how well the gradients of the layers of {names} agree, with the sets that the search found."
        )
    if name == "sharing_change":
        return f"The clusters of the layers of {names} before and after the search, which ended with {clusters}."
    return f"{picture_title(name)}: a figure in the run's folder, without a description."


def _each(values: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _last_loss(history: list[dict[str, dict[str, float]]]) -> str:
    losses = history[-1]["train_loss"].values()
    return f"{sum(losses) / max(len(losses), 1):.3f}"
