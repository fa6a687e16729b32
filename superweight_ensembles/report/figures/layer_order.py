"""Layers of a plan in depth order: a plan knows names, not how a network calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from superweight_ensembles.plan.generated_tensor import GeneratedTensor
from superweight_ensembles.plan.group import SsnGroup
from superweight_ensembles.plan.plan import Cluster, SharingPlan
from superweight_ensembles.plan.slots import Shape
from superweight_ensembles.plan.windows import Reading

_FIRST = (
    "stem",
    "conv_stem",
    "patch_embed",
    "conv_proj",
    "embed",
    "embedding",
    "embeddings",
    "conv1",
    "conv0",
    "conv_1",
)
_LAST = ("conv_head", "final_conv", "pre_logits", "head", "heads", "classifier", "fc", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A generated tensor and the cluster (its index in the plan) that generates it.

    Attributes:
        cluster_index: In the plan.
        target: The tensor.
        shapes: Of the width slots that it composes, its own the last; of a layer that reads a flat bank, its own alone.
        vectors: Its coefficient vectors in those slots; none with a flat bank.
        reading: What it reads of a flat bank; None of SuperWeights.
    """

    cluster_index: int
    target: GeneratedTensor
    shapes: tuple[Shape, ...]
    vectors: tuple[int, ...] = ()
    reading: Reading | None = None


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
        for layer in _slotted(index, cluster) if isinstance(cluster, Cluster) else _reading(index, cluster):
            layers[layer.target.member].append(layer)
    for own in layers.values():
        own.sort(key=lambda layer: depth_key(layer.target.name))
    return layers


def _slotted(index: int, cluster: Cluster) -> Iterator[Layer]:
    shapes = tuple(slot.shape for slot in cluster.slots)
    for target in cluster.targets:
        yield Layer(cluster_index=index, target=target, shapes=shapes[: target.slot + 1], vectors=target.vectors)


def _reading(index: int, group: SsnGroup) -> Iterator[Layer]:
    for target, reading in zip(group.targets, group.readings):
        yield Layer(cluster_index=index, target=target, shapes=(target.shape,), reading=reading)
