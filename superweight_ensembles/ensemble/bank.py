"""The bank: the trainable tensors of a sharing plan."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.generation import Begun, Weights, begin_programs, compile_plan, run_programs
from superweight_ensembles.ensemble.initialization import Deviations, initial_values
from superweight_ensembles.ensemble.superweights import Program, combination
from superweight_ensembles.errors import unknown_name
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import check_parameters_fit

_SAMPLED = 8  # numbers of each template that are kept, to tell whether it has been trained


class SuperWeightBank(nn.Module):
    """Templates and coefficients of a plan, and the weights that they generate.

    Source: Teterwak et al., WACV 2024
    """

    def __init__(self, plan: SharingPlan, deviations: Deviations, rng: torch.Generator | None = None) -> None:
        super().__init__()
        check_parameters_fit(plan.num_templates + plan.num_coefficients, "the bank of this plan")
        values = initial_values(plan, deviations, rng)
        self.plan = plan
        # By slot: templates (K, Q), coefficients (N, K), or embeddings (N, E) with mixers (K, E + 1), the A and b of
        # alpha = A e + b. By group of a Shapeshifter Network: bank (P,), coefficients by the keys of ssn_weights.
        self.templates = nn.ParameterDict(values.templates)
        self.coefficients = nn.ParameterDict(values.coefficients)
        self.mixers = nn.ParameterDict(values.mixers)
        # fixed factors, for groups whose coefficients cannot scale a weight
        self.gains = nn.Module()
        for key, gains in values.gains.items():
            self.gains.register_buffer(key, gains)
        self._memory_format = "contiguous_format"  # by name: torch.save cannot pickle the object
        self._programs: dict[tuple[str, ...], tuple[Program, ...]] = {}
        self._start = {key: rows[..., :_SAMPLED].clone() for key, rows in values.templates.items()}

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the generated weights of convolutions."""
        found: torch.memory_format = getattr(torch, self._memory_format)
        return found

    @memory_format.setter
    def memory_format(self, memory_format: torch.memory_format) -> None:
        self._memory_format = str(memory_format).removeprefix("torch.")

    @property
    def is_untouched(self) -> bool:
        """Whether the templates still are the start values that were drawn."""
        return all(
            torch.equal(values[..., :_SAMPLED].detach().cpu(), self._start[key].to(values.dtype))
            for key, values in self.templates.items()
        )

    def set_plan(self, plan: SharingPlan) -> None:
        """Switch to a plan that the bank's tensors already fit."""
        self.plan = plan
        self._programs.clear()

    def combination(self, key: str) -> Tensor:
        """Coefficients as they combine templates: (N, K); those of a group's tiles, and masks, as they are."""
        return combination(self.coefficients.get(key, None), self.mixers.get(key, None), self.gains._buffers.get(key))

    def generate(self, members: Collection[str] | None = None) -> Weights:
        """Generate the weights of some members: ``{member: {parameter name: tensor}}``, differentiable."""
        names = self._names(members)
        weights = run_programs(*self._inputs(names), self.memory_format)
        return {name: weights.get(name, {}) for name in names}

    def begin(self, members: Collection[str] | None = None) -> Begun:
        """As :meth:`generate`, for backward in two steps: to the weights, which are leaves, and on to the bank."""
        names = self._names(members)
        begun = begin_programs(*self._inputs(names), self.memory_format)
        begun.weights = {name: begun.weights.get(name, {}) for name in names}
        return begun

    def _names(self, members: Collection[str] | None) -> tuple[str, ...]:
        names = self.plan.member_names if members is None else tuple(members)
        for name in names:
            if name not in self.plan.member_names:
                raise unknown_name("member", name, self.plan.member_names)
        return names

    def _inputs(self, names: tuple[str, ...]) -> tuple[tuple[Program, ...], dict[str, Tensor], dict[str, Tensor]]:
        """Programs of the weights of some members, coefficients as they combine templates, and templates."""
        if names not in self._programs:
            self._programs[names] = compile_plan(self.plan, names)
        coefficients = {key: self.combination(key) for key in dict.fromkeys([*self.coefficients, *self.gains._buffers])}
        return self._programs[names], coefficients, dict(self.templates.items())

    forward = generate

    def extra_repr(self) -> str:
        return f"clusters={len(self.plan.clusters)}, templates={self.plan.num_templates:,}"
