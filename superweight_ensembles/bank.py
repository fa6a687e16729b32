"""The bank: the trainable tensors of a sharing plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from superweight_ensembles.errors import unknown_name
from superweight_ensembles.generation import (
    ClusterProgram,
    Weights,
    compile_plan,
    decompose,
    run_program,
    slot_key,
)
from superweight_ensembles.initial_values import Deviations, initial_values
from superweight_ensembles.plan import SharingPlan


class SuperWeightBank(nn.Module):
    """Templates and coefficients of a plan, and the weights that they generate.

    Args:
        plan: Decides every shape.
        deviations: Standard deviation with which each target starts, by (member, parameter name).
        generator: Source of the start values; the global one where None.

    Attributes:
        templates: (K, Q) a (cluster, slot), float32.
        coefficients: (N, K) a (cluster, slot), one row a coefficient vector.

    Source: Teterwak et al., WACV 2024
    """

    def __init__(self, plan: SharingPlan, deviations: Deviations, generator: torch.Generator | None = None) -> None:
        super().__init__()
        templates, coefficients = initial_values(plan, deviations, generator)
        self.plan = plan
        self.templates = nn.ParameterDict(templates)
        self.coefficients = nn.ParameterDict(coefficients)
        self._programs: dict[tuple[str, ...], tuple[ClusterProgram, ...]] = {}

    def generate(self, members: Collection[str] | None = None) -> Weights:
        """Generate the weights of all members, or of some: ``{member: {parameter name: tensor}}``.

        Differentiable; in the autocast dtype where one is active; each tensor is made once.

        Raises:
            SuperWeightError: No member of that name.
        """
        names = self.plan.member_names if members is None else tuple(members)
        for name in names:
            if name not in self.plan.member_names:
                raise unknown_name("member", name, self.plan.member_names)
        if names not in self._programs:
            self._programs[names] = compile_plan(self.plan, names)
        weights = run_program(self._programs[names], dict(self.templates.items()), dict(self.coefficients.items()))
        return {name: weights.get(name, {}) for name in names}

    forward = generate

    @torch.no_grad()
    def fit_(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Set the templates so that the present coefficients generate given weights as closely as they can.

        Least squares, slot by slot; exact where a slot has as many independent coefficient vectors as users.

        Args:
            weights: Tensors by member and parameter name, such as the members' own.
        """
        for index, cluster in enumerate(self.plan.clusters):
            rows: list[dict[int, Tensor]] = [{} for _ in cluster.slots]
            for target in cluster.targets:
                weight = weights[target.member][target.name].detach()
                for slot, vector in enumerate(decompose(cluster.blocks[: target.slot + 1], weight)):
                    rows[slot].setdefault(target.vectors[slot], vector)
            for slot, found in enumerate(rows):
                key = slot_key(index, slot)
                wanted = torch.stack([found[vector] for vector in range(len(found))])
                inverse = torch.linalg.pinv(self.coefficients[key].double())
                self.templates[key].copy_(inverse @ wanted.to(inverse))

    def extra_repr(self) -> str:
        return f"clusters={len(self.plan.clusters)}, templates={self.plan.num_templates:,}"
