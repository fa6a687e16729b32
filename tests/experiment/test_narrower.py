"""Networks of fractional width, the plain network of equal size, and the shorthand for budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_recipe
import torch
from command_line import superweights
from run_cases import refused, wide_resnets
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.experiment import build_arms, narrowed, parse_budgets, parse_recipe
from superweight_ensembles.models import Architecture, build_architecture, recall_architecture
from superweight_ensembles.plan import count_parameters

WRN = Architecture(model="wide_resnet", num_classes=10, options={"depth": 16, "width": 2})
VIT = Architecture(
    model="timm/vit_tiny_patch16_224",
    num_classes=10,
    options={"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
)
MEMBERS = wide_resnets(small=(10, 0.5), large=(10, 2))
CONTENT = {**tiny_recipe.CONTENT, "members": MEMBERS}


def channels(network: nn.Module) -> list[int]:
    """Of the stem and of the last convolution of each stage."""
    return [network.stem.out_channels, *(stage[-1].conv2.out_channels for stage in network.stages)]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(2, [16, 32, 64, 128]), (0.25, [16, 4, 8, 16]), (0.3, [16, 5, 10, 19]), (0.001, [16, 1, 1, 1])],
)
def test_channels_of_a_fractional_width_are_rounded(width: float, expected: list[int]) -> None:
    network = swe.wide_resnet(10, width, 4)
    assert channels(network) == expected
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_a_fractional_width_is_saved_and_made_again(tmp_path: Path) -> None:
    members = parse_recipe(CONTENT).build_members()
    ensemble = swe.SuperWeightEnsemble(members, budget=0.9).eval()
    ensemble.save(tmp_path / "saved")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "saved").eval()
    assert recall_architecture(loaded.members["small"]).options == {"depth": 10, "width": 0.5}
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), ensemble(images), rtol=0, atol=0)


@pytest.mark.parametrize(("made", "option", "step"), [(WRN, "width", 1 / 64), (VIT, "embed_dim", 3)])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0, 2.0])
def test_a_narrowed_network_is_the_widest_that_fits(made: Architecture, option: str, step: float, share: float) -> None:
    own = count_parameters(build_architecture(made))
    found = narrowed(made, int(share * own))
    wider = Architecture(
        model=made.model, num_classes=10, options={**found.options, option: found.options[option] + step}
    )
    assert count_parameters(build_architecture(found)) <= share * own < count_parameters(build_architecture(wider))
    assert {**found.options, option: made.options[option]} == made.options
    if share == 1.0:
        assert found == made


def test_a_narrowed_transformer_keeps_its_number_of_heads() -> None:
    network = build_architecture(narrowed(VIT, 57_000))
    assert [block.attn.num_heads for block in network.blocks] == [3] * 6
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_networks_that_cannot_be_narrowed_are_refused() -> None:
    with refused(r"the narrowest wide_resnet with .* has 769 parameters, more than"):
        narrowed(WRN, 768)
    assert narrowed(WRN, 769).options["width"] == 1 / 64
    with refused("a vision transformer of timm, not 'timm/resnet18': leave it out"):
        narrowed(Architecture(model="timm/resnet18", num_classes=10), 1000)


def test_the_narrower_arm_is_the_largest_member_of_equal_size() -> None:
    recipe = parse_recipe({**CONTENT, "sharing": {"budget": 0.65}})
    shared, narrower = build_arms(recipe, ["narrower"], [])
    (member,) = narrower.recipe.members
    assert (member.name, member.model, member.model_extra["depth"]) == ("large", "wide_resnet", 10)
    assert 0.9 * shared.num_parameters < narrower.num_parameters <= shared.num_parameters
    plan = narrower.recipe.plan(narrower.recipe.build_members())
    assert (plan.num_parameters, plan.clusters) == (narrower.num_parameters, ())


def test_budgets_are_variants_of_one_series() -> None:
    arms = build_arms(parse_recipe(CONTENT), [], parse_budgets("0.7, 1.5,250000"))
    assert [arm.name for arm in arms] == ["shared", "budget 0.7", "budget 1.5", "budget 250000"]
    assert [arm.recipe.sharing.budget for arm in arms] == [0.83, 0.7, 1.5, 250000]
    assert {arm.series for arm in arms[1:]} == {"budget"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "--budgets '': '' is no budget: write fractions"),
        ("0.1,half", "'half' is no budget: write fractions of what the members own apart"),
        ("0.1,,0.5", "'' is no budget"),
        ("0.0", "'0.0' is no budget"),
        ("-0.5", "'-0.5' is no budget"),
        ("50%", "'50%' is no budget"),
        ("0.5,0.1,0.5", "0.5 is there twice: give each once"),
        ("0.7,2", "variant 'budget 2': .*an int counts parameters: write 1.0 for as many as the members own"),
        ("0.0001", r"variant 'budget 0.0001': sharing: a budget of 0.0001 .* is below the minimum of this sharing"),
        ("40.0", "variant 'budget 40.0': sharing: a float budget is a fraction of what the members own apart"),
    ],
)
def test_bad_budgets(text: str, match: str) -> None:
    with refused(match):
        build_arms(parse_recipe(CONTENT), [], parse_budgets(text))


def test_the_command_line_takes_budgets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(parse_recipe(CONTENT).to_yaml())
    answer = superweights(
        monkeypatch, "compare", recipe, "--against", "narrower", "--budgets", "1.5", "--seeds", 1, "--out",
        tmp_path / "out",
    )  # fmt: skip
    said = capsys.readouterr()
    assert answer == 0, said.err
    assert "budget 1.5" in said.out and "plain, equal size" in said.out
    assert superweights(monkeypatch, "compare", recipe, "--budgets", "none") == 2
    assert "'none' is no budget" in capsys.readouterr().err
