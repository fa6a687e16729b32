"""Layers of a plan in depth order, by their names (a plan has no order of calls), and how their clusters look."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.patches import Patch

from superweight_ensembles.plan import Cluster, GeneratedTensor, Shape, SharingPlan, WindowSpec
from superweight_ensembles.report.figures.style import MUTED

_FIRST = (
    "stem", "conv_stem", "patch_embed", "conv_proj", "embed", "embedding", "embeddings", "conv1", "conv0", "conv_1",
)  # fmt: skip
_LAST = ("conv_head", "final_conv", "pre_logits", "head", "heads", "classifier", "fc", "output")
_COLORS = (
    "#332288", "#DDCC77", "#44AA99", "#CC6677", "#88CCEE", "#882255", "#117733", "#E69F00", "#AA4499", "#999933",
)  # fmt: skip
HATCHES = ("", "//////", "......")
_ALONE, _FURTHER = "#C9C9C9", "#A6A6A6"
_NAMED_AT_MOST = len(_COLORS) * len(HATCHES)
_GENERATOR_NAMES = {"superweight": "SuperWeights", "ssn": "SSN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Generated tensor and the cluster that generates it."""

    cluster_index: int  # in the plan
    target: GeneratedTensor
    shapes: tuple[Shape, ...]  # of the width slots that it composes, its own last; with a flat bank, only its own
    vectors: tuple[int, ...] = ()  # its coefficient vectors in those slots; none with a flat bank
    reading: WindowSpec | None = None  # how it reads a flat bank; None with SuperWeights

    @property
    def num_weights(self) -> int:
        return math.prod(self.shapes[-1])


def depth_key(name: str) -> tuple[object, ...]:
    """Sort key of a parameter name: stems first, heads last, numbers by value between them.

    Example:
        >>> sorted(["blocks.10.conv", "fc.weight", "blocks.2.conv", "stem.weight"], key=depth_key)
        ['stem.weight', 'blocks.2.conv', 'blocks.10.conv', 'fc.weight']
    """
    first = name.split(".")[0].lower()
    place = 0 if first in _FIRST else 2 if first in _LAST else 1
    parts = [part for part in re.split(r"(\d+)|[._]", name) if part]
    return place, tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def layers_by_depth(plan: SharingPlan) -> dict[str, list[Layer]]:
    """The generated layers of each member, members as in the plan, layers as :func:`depth_key` sorts them."""
    layers: dict[str, list[Layer]] = {name: [] for name in plan.member_names}
    for index, cluster in enumerate(plan.clusters):
        if isinstance(cluster, Cluster):
            shapes = tuple(slot.shape for slot in cluster.slots)
            for target in cluster.targets:
                composed = shapes[: target.slot + 1]
                layer = Layer(cluster_index=index, target=target, shapes=composed, vectors=target.vectors)
                layers[target.member].append(layer)
            continue
        for tensor, reading in zip(cluster.targets, cluster.window_specs):
            layer = Layer(cluster_index=index, target=tensor, shapes=(tensor.shape,), reading=reading)
            layers[tensor.member].append(layer)
    for own in layers.values():
        own.sort(key=lambda layer: depth_key(layer.target.name))
    return layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLook:
    """Fill of the clusters that stand together in a legend: one that shares, or many that do not."""

    label: str  # the cluster's name, or what the clusters have in common; with their generator if the plan has two
    color: str
    hatch: str
    clusters: tuple[int, ...]  # indices into plan.clusters

    def patch(self, label: str) -> Patch:
        """Legend swatch."""
        edge = "white" if self.color != "white" else MUTED
        return Patch(facecolor=self.color, hatch=self.hatch, edgecolor=edge, linewidth=0.4, label=label)


def cluster_looks(plan: SharingPlan) -> list[ClusterLook]:
    """Looks of a plan's clusters, in the plan's order; every cluster is in exactly one."""
    indices = range(len(plan.clusters))
    mixed = bool(plan.ssn_groups and plan.superweight_clusters)

    def named(label: str, clusters: Sequence[int]) -> str:
        generators = {plan.clusters[index].generator for index in clusters}
        return f"{label} ({_GENERATOR_NAMES[generators.pop()]})" if mixed and len(generators) == 1 else label

    sharing = [index for index in indices if len(plan.clusters[index].targets) > 1]
    largest = sorted(sharing, key=lambda index: -plan.clusters[index].num_templates)[:_NAMED_AT_MOST]
    looks = []
    for place, index in enumerate(sorted(largest)):
        rounds, column = divmod(place, len(_COLORS))
        label = named(plan.clusters[index].name, [index])
        looks.append(ClusterLook(label=label, color=_COLORS[column], hatch=HATCHES[rounds], clusters=(index,)))
    # Where clusters are very many, only those with most templates have own looks. Clusters of one layer share nothing.
    further = tuple(index for index in sharing if index not in largest)
    if further:
        label = named(f"{len(further)} smaller clusters", further)
        looks.append(ClusterLook(label=label, color=_FURTHER, hatch="", clusters=further))
    alone = tuple(index for index in indices if index not in sharing)
    if alone:
        label = plan.clusters[alone[0]].name if len(alone) == 1 else f"{len(alone)} clusters of one layer"
        looks.append(ClusterLook(label=named(label, alone), color=_ALONE, hatch="", clusters=alone))
    return looks
