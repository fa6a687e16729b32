"""How a cluster looks in every figure: a colour of its own if it shares, grey if it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.patches import Patch

from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.report.figures.style import MUTED

_COLORS = (
    "#332288",
    "#DDCC77",
    "#44AA99",
    "#CC6677",
    "#88CCEE",
    "#882255",
    "#117733",
    "#E69F00",
    "#AA4499",
    "#999933",
)
_HATCHES = ("", "//////", "......")
_ALONE = "#C9C9C9"
_FURTHER = "#A6A6A6"
GENERATOR_NAMES = {"superweight": "SuperWeights", "ssn": "SSN"}
_NAMED_AT_MOST = len(_COLORS) * len(_HATCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLook:
    """Fill of the clusters that stand together in a legend: one that shares, or many that do not.

    Attributes:
        label: Name of the cluster, or what the clusters have in common; their generator where the plan has two.
        color: Fill.
        hatch: Matplotlib hatch over the fill.
        clusters: Indices into ``plan.clusters``.
    """

    label: str
    color: str
    hatch: str
    clusters: tuple[int, ...]

    def patch(self, label: str) -> Patch:
        """Legend swatch."""
        edge = "white" if self.color != "white" else MUTED
        return Patch(facecolor=self.color, hatch=self.hatch, edgecolor=edge, linewidth=0.4, label=label)


def cluster_looks(plan: SharingPlan) -> list[ClusterLook]:
    """Looks of a plan's clusters, in the plan's order; every cluster is in exactly one.

    Clusters of several layers have a look each (with very many, the thirty with most templates do);
    clusters of a single layer share nothing and are one grey.
    """
    indices = range(len(plan.clusters))
    mixed = bool(plan.ssn_groups and plan.superweight_clusters)

    def named(label: str, clusters: Sequence[int]) -> str:
        generators = {plan.clusters[index].generator for index in clusters}
        return f"{label} ({GENERATOR_NAMES[generators.pop()]})" if mixed and len(generators) == 1 else label

    sharing = [index for index in indices if len(plan.clusters[index].targets) > 1]
    largest = sorted(sharing, key=lambda index: -plan.clusters[index].num_templates)[:_NAMED_AT_MOST]
    looks = []
    for place, index in enumerate(sorted(largest)):
        rounds, column = divmod(place, len(_COLORS))
        name = plan.clusters[index].name
        label = named(name, [index])
        looks.append(ClusterLook(label=label, color=_COLORS[column], hatch=_HATCHES[rounds], clusters=(index,)))
    further = tuple(index for index in sharing if index not in largest)
    if further:
        label = named(f"{len(further)} smaller clusters", further)
        looks.append(ClusterLook(label=label, color=_FURTHER, hatch="", clusters=further))
    alone = tuple(index for index in indices if index not in sharing)
    if alone:
        label = plan.clusters[alone[0]].name if len(alone) == 1 else f"{len(alone)} clusters of one layer"
        looks.append(ClusterLook(label=named(label, alone), color=_ALONE, hatch="", clusters=alone))
    return looks
