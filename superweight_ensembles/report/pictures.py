"""The figures of a run inside the page: read as they are, with how to read them and what they show."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.report.elements import Html, scrolled, tag
from superweight_ensembles.report.findings import Results

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
