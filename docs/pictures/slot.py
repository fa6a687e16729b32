"""The picture of docs/concepts.md: templates of two slots, and the weights that an ensemble generates of them.

python docs/pictures/slot.py
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.report.figures.style import new_figure

SIDES = {"narrow": 16, "wide": 24}


def perceptron(width: int) -> nn.Module:
    layers = [nn.Linear(4, width), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def smooth(num: int, side: int) -> torch.Tensor:
    """Patterns that an eye can tell apart, (num, side, side), in the place of drawn numbers."""
    at = torch.linspace(0, 1, side)
    waves = [torch.sin(2 * torch.pi * (f * at[:, None] + g * at[None])) for f, g in ((1, 0), (0, 1.5), (2, 2), (1, -2))]
    return torch.stack(waves[:num])


def draw_matrix(axes: Axes, values: torch.Tensor, title: str, inner: int | None = None) -> None:
    axes.imshow(values.numpy(), cmap="RdBu", vmin=-1.6, vmax=1.6, extent=(0, values.shape[1], values.shape[0], 0))
    axes.set(xlim=(0, SIDES["wide"]), ylim=(SIDES["wide"], 0))
    axes.axis("off")
    axes.set_title(title, fontsize=8, loc="left")
    if inner is not None:
        axes.add_patch(Rectangle((0, 0), inner, inner, fill=False, edgecolor="#262626", linewidth=1.2))


def picture() -> Figure:
    members = {name: perceptron(side) for name, side in SIDES.items()}
    ensemble = swe.SuperWeightEnsemble(members, budget=0.62, clusters={"hidden": ["*.2.weight", "*.4.weight"]})
    plan, bank = ensemble.plan, ensemble.bank
    inner, outer = sorted(bank.templates, key=lambda key: bank.templates[key].shape[1])[:2]
    small, large = SIDES.values()
    corner = torch.zeros(large, large, dtype=torch.bool)
    corner[:small, :small] = True
    with torch.no_grad():
        for key, side in ((inner, small), (outer, large)):
            patterns = smooth(bank.templates[key].shape[0], side)
            bank.templates[key].copy_(patterns.flatten(1) if key == inner else patterns[:, ~corner])
            rows = torch.tensor([[1.0, 0.2], [0.3, -0.9], [0.8, 0.8], [-0.7, 0.5]])
            bank.coefficients[key].copy_(rows[-bank.coefficients[key].shape[0] :, : bank.templates[key].shape[0]])
    weights = {name: {key: value.detach() for key, value in of.items()} for name, of in ensemble.generate().items()}

    figure = new_figure(7.0, 3.6)
    above, below = figure.subplots(2, 4)
    num_templates = [bank.templates[key].shape[0] for key in (inner, outer)]
    for axes in above[sum(num_templates) :]:
        axes.axis("off")
    for place, template in enumerate(bank.templates[inner].detach()):
        draw_matrix(above[place], template.view(small, small), f"slot 1, template {place + 1}", small)
    for place, template in enumerate(bank.templates[outer].detach(), start=num_templates[0]):
        whole = torch.full((large, large), torch.nan)
        whole[~corner] = template
        draw_matrix(above[place], whole, f"slot 2, template {place - num_templates[0] + 1}")
    layers = [(name, key) for name in SIDES for key in ("2.weight", "4.weight")]
    for axes, (name, key) in zip(below, layers):
        draw_matrix(axes, weights[name][key], f"{name}, layer {key[0]}", small)
    figure.text(
        0.0,
        1.0,
        f"The bank: {num_templates[0]} templates of slot 1, {num_templates[1]} of slot 2",
        va="bottom",
        weight="bold",
        fontsize=9,
    )
    num_weights = sum(value.numel() for of in weights.values() for value in of.values())
    figure.supxlabel(
        "Below: generated weights. Each mixes the templates by its own coefficients; a wide layer reads both slots.\n"
        f"{plan.num_templates} template numbers and {plan.num_coefficients} coefficients make {num_weights:,} weights",
        fontsize=8,
    )
    return figure


if __name__ == "__main__":
    picture().savefig(Path(__file__).with_suffix(".png"), bbox_inches="tight", metadata={"Software": None})
