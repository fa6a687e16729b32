"""The pictures of the page: the figures of a run with their titles, how to read them, and what they show in words."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import RunResults
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figure_data import width_rows
from superweight_ensembles.report.figures import mean_loss
from superweight_ensembles.storage import read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE = 1000  # pixels; figures are one column (800) or a page (1400)
_CAPTIONS = {  # section, title, how to read it
    "accuracy_flops": (
        "results",
        "Accuracy against compute",
        "Up and to the left is better. Small dots are sets of members, large markers members alone, the star all of "
        "them; the line joins the sets that no cheaper set beats.",
    ),
    "accuracy_parameters": (
        "results",
        "Accuracy against parameters",
        "Stars are the ensembles, squares independent members alone. The arrow is what the bank saves.",
    ),
    "training_curves": (
        "results",
        "Training",
        "Above, the training loss, mean over members; below, the error on validation images, on a logarithmic axis. "
        "Thick lines are the ensembles, thin ones their members, each with a line style of its own.",
    ),
    "reliability_diagram": (
        "results",
        "Calibration",
        "On the diagonal confidence is right; below it the ensemble is too sure. Bars are one standard error; bins "
        "of few images are joined. Below, how often each confidence occurs, on a logarithmic axis.",
    ),
    "sharing_map": (
        "sharing",
        "Who shares with whom",
        "A row a member, a block a layer, first to last, as wide as the square root of its weights. Blocks of one "
        "colour come from the same templates; bands join them across members. Lines in a block are its width slots.",
    ),
    "budget_split": (
        "sharing",
        "Where the parameters are",
        "Above, the bank by cluster, in the colours of the map, each part again under it; the dashed line is the "
        "budget. Below, the members apart, one after the other.",
    ),
    "anytime_curves": (
        "anytime",
        "Accuracy when members stop early",
        "Up and to the left is better. Solid lines are cascades, dashed steps streams, single markers members alone; "
        "by FLOPs on the left, by measured time on the right.",
    ),
    "uncertainty_curves": (
        "uncertainty",
        "What the ensembles know",
        "Above, the error when the least sure images are left out: lower is better. Below, accuracy on corrupted test "
        "images: thick lines are means over corruptions, thin ones each of them.",
    ),
    "width_history": (
        "widths",
        "Widths while they were learned",
        "A panel a member, a line a layer: hidden neurons after each epoch.",
    ),
    "similarity_matrix": (
        "search",
        "What the search saw",
        "Each square is how well the gradients of two layers agree: red together, blue against each other. Boxes are "
        "the sets found; hatched layers were not compared and follow the one with the dot.",
    ),
    "sharing_change": (
        "search",
        "What the search changed",
        "A panel a plan, a column a member, a row a layer. Shades of a colour are the parts of one split cluster; "
        "layers with a letter in common use the same coefficients.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Figure as SVG or PNG, its size in pixels, and its data as CSV where they are known."""

    name: str
    width: int
    height: int
    data: bytes
    kind: str = "png"
    csv: str = ""
    section: str = "others"
    title: str = ""
    reading: str = ""
    alt: str = ""

    @property
    def wide(self) -> bool:
        """Whether it takes a line of its own."""
        return self.width >= _WIDE

    @property
    def uri(self) -> Markup:
        return _data_uri(f"image/{self.kind}", self.data)

    @property
    def csv_uri(self) -> Markup:
        return _data_uri("text/csv;charset=utf-8", self.csv.encode())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")


def read_pictures(folder: Path) -> dict[str, Picture]:
    """PNG files of a folder, by name without ``.png``, in the order of their names; other content is refused."""
    pictures = {}
    for path in sorted(folder.glob("[!.]*.png")):
        data = read_bytes(path)
        if len(data) < 24 or not data.startswith(_SIGNATURE):
            raise SuperWeightError(f"{path} is no PNG file: remove it and write the report again")
        width, height = struct.unpack(">II", data[16:24])
        pictures[path.stem] = Picture(name=path.stem, width=width, height=height, data=data)
    return pictures


def captioned(picture: Picture, results: RunResults, plan: SharingPlan) -> Picture:
    """Picture with its section, its title, how to read it and what it shows."""
    name = picture.name
    section, title, reading = _CAPTIONS.get(name, ("others", picture_title(name), f"From figures/{name}.png."))
    if name == "sharing_map" and plan.ssn_groups:
        if not plan.superweight_clusters:
            reading = reading.replace("the same templates", "one bank")
            reading = reading.replace(" Lines in a block are its width slots.", "")
        reading += " A layer that is larger than its flat bank is pale above as many weights as it reads."
    alt = describe(name, results, plan)
    return replace(picture, section=section, title=title, reading=reading, alt=alt)


def picture_title(name: str) -> str:
    """Title of a figure: its caption's, if this library draws it, else its file's name.

    Example:
        >>> picture_title("sharing_map"), picture_title("my_own-figure")
        ('Who shares with whom', 'My own figure')
    """
    if name in _CAPTIONS:
        return _CAPTIONS[name][1]
    words = name.replace("_", " ").replace("-", " ").strip() or name
    return words[0].upper() + words[1:]


def describe(name: str, results: RunResults, plan: SharingPlan) -> str:
    """Words and numbers for what a figure shows, for those who do not see it."""
    arms = results.arms
    accuracies = _each({arm.name: f"{100 * arm.ensemble.metrics.accuracy:.2f} %" for arm in arms})
    names = ", ".join(plan.member_names)
    clusters = f"{len(plan.clusters)} cluster{'s' * (len(plan.clusters) != 1)}"
    if plan.ssn_groups:
        clusters += f" ({len(plan.ssn_groups)} of them flat banks)" if plan.superweight_clusters else " of flat banks"
    match name:
        case "accuracy_flops":
            return (
                f"Test accuracy against FLOPs of {len(arms[0].subsets)} sets of members. All members together, at "
                f"{arms[0].ensemble.flops / 1e6:,.2f} MFLOPs: {accuracies}."
            )
        case "accuracy_parameters":
            counts = _each({arm.name: f"{arm.num_parameters:,}" for arm in arms})
            return f"Test accuracy against trainable parameters. Parameters: {counts}. Accuracy: {accuracies}."
        case "training_curves":
            losses = _each({arm.name: f"{mean_loss(arm.history[-1]):.3f}" for arm in arms if arm.history})
            epochs = max(len(arm.history) for arm in arms)
            return f"Training loss and validation accuracy over {epochs} epochs. Loss of the last epoch: {losses}."
        case "reliability_diagram":
            errors = _each({arm.name: f"{100 * arm.ensemble.metrics.ece:.2f} %" for arm in arms})
            return f"Accuracy against confidence of the ensembles. Expected calibration error: {errors}."
        case "sharing_map":
            layers = sum(len(cluster.targets) for cluster in plan.clusters)
            return f"Map of the {layers} generated layers of {names}, coloured by the {clusters} that generate them."
        case "budget_split":
            parts = _each({one.name: f"{one.num_templates + one.num_coefficients:,}" for one in plan.clusters})
            kept = f"{parts}; members' own: {plan.num_private:,}"
            return f"Bars of trainable parameters, {plan.num_parameters:,} in all. {kept}."
        case "anytime_curves":
            return (
                "Test accuracy against cost of streams and cascades, in FLOPs and in time. The table has their points."
            )
        case "uncertainty_curves":
            areas = _each(
                {arm.name: f"{100 * arm.uncertainty.risk_coverage_area:.2f} %" for arm in arms if arm.uncertainty}
            )
            return (
                f"Error of the ensembles over the share of images that they are surest of. Mean over shares: {areas}."
            )
        case "width_history":
            _, *rows = width_rows(results)
            learned = {f"{member}.{layer}": f"{width}" for _, _, member, layer, width in rows}  # of the last epoch
            return f"Hidden neurons of each layer over the epochs in which widths were learned. Last: {_each(learned)}."
        case "similarity_matrix":
            return (
                f"Matrices of how well the gradients of the layers of {names} agree, with the sets that the search "
                "found."
            )
        case "sharing_change":
            return f"The clusters of the layers of {names} before and after the search, which ended with {clusters}."
    return f"{picture_title(name)}: a figure in the run's folder, without a description."


def _each(values: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
