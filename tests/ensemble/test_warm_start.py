"""A bank from trained members: held against torch.linalg.svd, slot by slot, and against the members themselves."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from refusals import assert_refused
from torch import nn
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles.ensemble import WarmStart, best_affine_factors, best_factors, fit_rows
from superweight_ensembles.plan import BudgetPolicy, PlannedMember, Target, TargetGroup, plan_groups, tie_all

FLOAT64 = {"atol": 1e-12, "rtol": 1e-10}


def best_of_rank(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Linears(nn.Module):
    """Layers of given shapes; it is never run."""

    def __init__(self, *shapes: tuple[int, int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)
        self.head = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(3)


def trained_members() -> dict[str, nn.Module]:
    """Networks whose norms, heads and statistics are no start values either."""
    members = {"a": swe.wide_resnet(16, 1, 5), "b": swe.wide_resnet(10, 2, 5), "c": swe.wide_resnet(10, 1, 5)}
    for member in members.values():
        for _ in range(2):
            member(torch.randn(8, 3, 8, 8))  # moves norm statistics
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return members


def linear_ensemble(
    shapes: dict[str, list[tuple[int, int]]], templates: int, coefficients: str = "own", tied: bool = False
) -> tuple[dict[str, nn.Module], swe.SuperWeightEnsemble]:
    """Members of linear layers in one cluster with the same number of templates in each slot."""
    members = {name: Linears(*own).double() for name, own in shapes.items()}
    targets = tuple(
        Target(member=name, names=(f"layers.{index}.weight",), shape=shape, kind="linear")
        for name, own in shapes.items()
        for index, shape in enumerate(own)
    )
    groups = [TargetGroup(name="all", targets=targets)]
    planned = []
    for name, module in members.items():
        count, shared = sum(p.numel() for p in module.parameters()), sum(math.prod(shape) for shape in shapes[name])
        planned.append(PlannedMember(name=name, num_parameters=count, num_private=count - shared))
    policy = BudgetPolicy(cap=templates, coefficients=coefficients)
    plan = plan_groups(planned, tie_all(groups) if tied else groups, 10**6, policy)
    return members, swe.SuperWeightEnsemble(members, plan=plan)


def started(members: dict[str, nn.Module], **options) -> tuple[swe.SuperWeightEnsemble, WarmStart]:
    ensemble = swe.SuperWeightEnsemble(members, **options)
    return ensemble, swe.warm_start(ensemble, members)


def given_weights(members: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [layer.weight.detach() for member in members.values() for layer in member.layers]


def weights_of(ensemble: swe.SuperWeightEnsemble) -> list[torch.Tensor]:
    return [weight.detach() for own in ensemble.generate().values() for weight in own.values()]


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
@pytest.mark.parametrize("shape", [(5, 40), (5, 3), (4, 101)])
@pytest.mark.parametrize("numbers_a_piece", [None, 30], ids=["at once", "in pieces"])
def test_factors_are_the_best_of_their_rank(rank, shape, numbers_a_piece, monkeypatch) -> None:
    if numbers_a_piece is not None:
        monkeypatch.setattr("superweight_ensembles.ensemble.warm_starting._NUMBERS_A_PIECE", numbers_a_piece)
    matrix = random(*shape)
    coefficients, templates = best_factors(matrix, rank)
    assert coefficients.shape[-1] == templates.shape[-2] == min(rank, shape[0])
    assert_close(coefficients @ templates, best_of_rank(matrix, rank), **FLOAT64)


def test_scale_of_the_factors() -> None:
    """Rows of norm one on average, columns orthogonal and of one length; templates deviate as the fit does."""
    coefficients, templates = best_factors(0.02 * random(8, 10_000), 4)
    assert_close(coefficients.mT @ coefficients, 8 / 4 * torch.eye(4, dtype=torch.float64), **FLOAT64)
    assert_close(coefficients.square().sum(1).mean(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(templates.square().mean(), (coefficients @ templates).square().mean(), **FLOAT64)


def test_equal_vectors_and_zeros() -> None:
    same, zeros = random(1, 9).expand(3, 9), torch.zeros(3, 9, dtype=torch.float64)
    for matrix in (same, zeros, torch.cat([same, zeros[:1]])):
        for rank in (1, 2, 4):
            coefficients, templates = best_factors(matrix, rank)
            assert_close(coefficients @ templates, matrix, **FLOAT64)


def test_vectors_that_stand_for_several_rows() -> None:
    """The squared distance of all rows, by hand: each vector's mean, weighted by the root of its count."""
    rows, owners = random(6, 20), torch.tensor([0, 1, 1, 2, 2, 2])
    coefficients, templates = fit_rows(rows, owners, lambda vectors, counts: best_factors(vectors, 2, counts))
    means = torch.stack([rows[:1].mean(0), rows[1:3].mean(0), rows[3:].mean(0)])
    roots = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sqrt()[:, None]
    assert_close(coefficients @ templates, best_of_rank(roots * means, 2) / roots, **FLOAT64)


def test_affine_factors_are_a_mean_and_the_best_of_what_is_left() -> None:
    vectors = random(7, 30) + 3
    coefficients, templates = best_affine_factors(vectors, 2)
    mean = vectors.mean(0)
    assert_close(coefficients @ templates, mean + best_of_rank(vectors - mean, 2), **FLOAT64)


def test_missing_numbers_are_not_fitted() -> None:
    """A matrix of rank one with gaps: what is there is met exactly, where zeros in the gaps would not be."""
    whole = random(5, 1) @ random(1, 12)
    there = torch.ones(5, 12, dtype=torch.bool)
    there[:2, 8:] = False
    rows, owners = whole * there, torch.arange(5)
    coefficients, templates = fit_rows(rows, owners, lambda vectors, counts: best_factors(vectors, 1, counts), there)
    assert float(((coefficients @ templates - whole) * there).norm()) < 1e-4 * float(whole.norm())
    assert float(((best_of_rank(rows, 1) - whole) * there).norm()) > 0.1 * float(whole.norm())


def test_as_many_templates_as_users_give_the_members_back() -> None:
    members = {name: member.double() for name, member in trained_members().items()}
    images = random(4, 3, 8, 8)
    ensemble, result = started(members, budget=4.0, cap=32)
    ensemble.eval()
    assert all(slot.num_templates >= slot.num_vectors for one in ensemble.plan.clusters for slot in one.slots)
    assert max(result.errors.values()) < 1e-6
    expected = torch.stack([member.eval()(images) for member in members.values()])
    assert_close(ensemble(images), expected, **FLOAT64)
    assert_close(ensemble.materialize("b").eval()(images), expected[1], **FLOAT64)


def test_half_precision_is_fitted_in_full() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 3}, templates=1, tied=True)
    members["a"].bfloat16()
    ensemble.bfloat16()
    swe.warm_start(ensemble, members)
    mean = torch.stack(given_weights(members)).float().mean(0)
    for made in weights_of(ensemble):
        assert_close(made.float(), mean, atol=1e-3, rtol=2**-6)


def test_left_over_templates_keep_their_values_and_take_no_part() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 2}, templates=5)
    before = ensemble.bank.templates["c0s0"].detach().clone()
    swe.warm_start(ensemble, members)
    assert torch.equal(ensemble.bank.templates["c0s0"][2:], before[2:])
    assert torch.equal(ensemble.bank.coefficients["c0s0"][:, 2:], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("templates", [1, 2, 3])
def test_slots_of_two_widths_are_each_the_best_of_their_rank(templates: int) -> None:
    """(4, 6) is the corner of (8, 9): one slot for the corners of all, one for what the wide ones have beyond."""
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 2 + [(8, 9)], "b": [(8, 9)] * 3}, templates)
    swe.warm_start(ensemble, members)
    given = given_weights(members)
    corners = torch.stack([weight[:4, :6].flatten() for weight in given])
    rests = torch.stack([torch.cat([weight[:4, 6:].flatten(), weight[4:].flatten()]) for weight in given[2:]])
    corners, rests = best_of_rank(corners, templates), best_of_rank(rests, templates)
    for index, made in enumerate(weights_of(ensemble)):
        assert_close(made[:4, :6].flatten(), corners[index], **FLOAT64)
        if index >= 2:
            rest = torch.cat([made[:4, 6:].flatten(), made[4:].flatten()])
            assert_close(rest, rests[index - 2], **FLOAT64)


def test_tied_coefficients_take_the_mean_of_their_users() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 2, "b": [(4, 6)]}, templates=2, tied=True)
    swe.warm_start(ensemble, members)
    for made in weights_of(ensemble):
        assert_close(made, torch.stack(given_weights(members)).mean(0), **FLOAT64)


@pytest.mark.parametrize("templates", [1, 3, 6])
def test_embeddings_hold_what_vectors_would(templates: int) -> None:
    """As many templates as embeddings have numbers, 24, at most: no worse than free vectors."""
    shapes = {"a": [(4, 6)] * 5}
    members, ensemble = linear_ensemble(shapes, templates, coefficients="embedding")
    swe.warm_start(ensemble, members)
    given = torch.stack(given_weights(members)).flatten(1)
    assert_close(torch.stack(weights_of(ensemble)).flatten(1), best_of_rank(given, templates), **FLOAT64)
    rows = ensemble.bank.combination("c0s0").detach()
    assert rows.square().sum(1).mean() == pytest.approx(1)


def test_more_templates_than_an_embedding_has_numbers() -> None:
    """30 layers, 28 templates, embeddings of 24: the best affine fit is the mean and 24 directions about it."""
    members, ensemble = linear_ensemble({"a": [(5, 8)] * 30}, templates=28, coefficients="embedding")
    before = ensemble.bank.templates["c0s0"].detach().clone()
    swe.warm_start(ensemble, members)
    given = torch.stack(given_weights(members)).flatten(1)
    mean = given.mean(0)
    expected = mean + best_of_rank(given - mean, 24)
    assert_close(torch.stack(weights_of(ensemble)).flatten(1), expected, **FLOAT64)
    assert torch.equal(ensemble.bank.templates["c0s0"][25:], before[25:])


def test_slots_that_a_later_one_crops() -> None:
    """(4, 8) comes before (9, 4), which has only the first four columns of its slot."""
    shapes = {"a": [(4, 8)] * 2 + [(9, 4)] * 2}
    members, ensemble = linear_ensemble(shapes, templates=4)
    result = swe.warm_start(ensemble, members)
    assert max(result.errors.values()) < 1e-12
    members, ensemble = linear_ensemble(shapes, templates=1)
    for layer in members["a"].layers:  # of rank one: with zeros for what is cropped away it would not be
        rows, columns = (torch.arange(1.0, size + 1, dtype=torch.float64) for size in layer.weight.shape)
        layer.weight.data = torch.outer(rows, columns)
    assert max(swe.warm_start(ensemble, members).errors.values()) < 1e-3


def test_tied_over_a_crop_takes_the_mean_of_those_that_have_a_number() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 8), (9, 4)]}, templates=1, tied=True)
    wide, tall = given_weights(members)
    swe.warm_start(ensemble, members)
    made = weights_of(ensemble)
    assert_close(made[0][:, 4:], wide[:, 4:], **FLOAT64)
    assert_close(made[0][:, :4], (wide[:, :4] + tall[:4]) / 2, **FLOAT64)
    assert_close(made[1][4:], tall[4:], **FLOAT64)


def test_reported_errors() -> None:
    members = trained_members()
    made = {share: started(members, budget=share) for share in (0.5, 0.6, 0.9)}
    errors = [result.mean_error for _, result in made.values()]
    assert errors[0] > errors[1] > errors[2], "more budget is nearer"
    ensemble, result = made[0.6]
    with torch.no_grad():
        weights = ensemble.generate()
    targets = [(t.member, t.name) for cluster in ensemble.plan.clusters for t in cluster.targets]
    assert set(result.errors) == set(targets) and len(targets) == len(result.errors)
    for (member, name), error in result.errors.items():
        weight = members[member].get_parameter(name).detach()
        assert error == pytest.approx(
            float((weight - weights[member][name]).norm() / weight.norm()), rel=1e-5, abs=1e-9
        )
    assert result.mean_error == pytest.approx(sum(result.errors.values()) / len(targets))
    assert 0.05 < result.mean_error < 1
    lines = str(result).splitlines()
    assert len(lines) == len(targets) + 5
    assert lines[-1].split() == ["mean", "of", str(len(targets)), f"{result.mean_error:.4f}"]
    assert result.to_dict()["errors"][0].keys() == {"member", "parameter", "error"}


def test_a_weight_of_zeros() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 2}, templates=1)
    members["a"].layers[1].weight.data.zero_()
    assert list(swe.warm_start(ensemble, members).errors.values()) == [pytest.approx(0, abs=1e-12), 0.0]
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 2}, templates=1, tied=True)
    members["a"].layers[1].weight.data.zero_()
    assert list(swe.warm_start(ensemble, members).errors.values()) == [pytest.approx(0.5), 1.0]


def test_norms_heads_and_buffers_come_along() -> None:
    trained = trained_members()
    fresh = {"a": swe.wide_resnet(16, 1, 5), "b": swe.wide_resnet(10, 2, 5), "c": swe.wide_resnet(10, 1, 5)}
    ensemble = swe.SuperWeightEnsemble(fresh, budget=0.7)
    before = {name: copy.deepcopy(member.state_dict()) for name, member in trained.items()}
    swe.warm_start(ensemble, dict(reversed(trained.items())))
    for name, member in ensemble.members.items():
        own = member.state_dict()
        assert own and all(torch.equal(tensor, before[name][key]) for key, tensor in own.items())
    for name, member in trained.items():
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in member.state_dict().items())


def test_from_an_ensemble_of_any_plan() -> None:
    trained = trained_members()
    apart = swe.SuperWeightEnsemble(trained, plan=swe.independent_plan(trained))
    direct, _ = started(trained, budget=0.6)
    again = swe.SuperWeightEnsemble(trained_members(), plan=direct.plan)
    swe.warm_start(again, apart)
    for key, tensor in direct.state_dict().items():
        assert_close(again.state_dict()[key], tensor, atol=0, rtol=0)
    smaller = swe.SuperWeightEnsemble(trained, budget=0.45, bins=1)
    result = swe.warm_start(smaller, again)
    generated = {name: dict(again.materialize(name).named_parameters()) for name in again.member_names}
    for (member, name), error in result.errors.items():
        weight = generated[member][name].detach()
        made = smaller.materialize(member).get_parameter(name).detach()
        assert error == pytest.approx(float((weight - made).norm() / weight.norm()), rel=1e-4, abs=1e-8)


def test_one_timm_network_by_itself() -> None:
    """What is called pretrained here is a network whose weights somebody has: it is compressed alone."""
    network = timm.create_model("resnet10t", num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    whole, _ = started({"r": network}, budget=2.0, cap=16)
    assert_close(whole.eval()(images)[0], network(images), atol=1e-4, rtol=1e-4)
    half, result = started({"r": network}, budget=0.7, bins=1)
    assert half.num_parameters <= 0.7 * half.independent_parameters
    assert 0 < result.mean_error < 1


def test_saved_and_adopted_as_any_other(tmp_path) -> None:
    members = trained_members()
    ensemble, _ = started(members, budget=0.7, coefficients="tied", reserve_untied=True)
    ensemble.eval()
    images = torch.randn(3, 3, 8, 8)
    logits = ensemble(images)
    ensemble.save(tmp_path / "kept")
    loaded = swe.SuperWeightEnsemble.load(tmp_path / "kept").eval()
    assert torch.equal(loaded(images), logits)
    labels = torch.randint(0, 5, (3,))
    plan = swe.search.untie_coefficients(ensemble, [(images, labels)], threshold=0.99)
    swe.ensemble.adopt_plan(ensemble, plan)
    assert ensemble.plan == plan
    assert_close(ensemble(images), logits)


@pytest.mark.parametrize("coefficients", ["own", "embedding"])
def test_it_trains_on(coefficients: str) -> None:
    """Nothing is left without a number, and a step of SGD brings the loss down."""
    members = trained_members()
    ensemble, _ = started(members, budget=0.8, coefficients=coefficients)
    ensemble.train()
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum(nn.functional.cross_entropy(own, labels) for own in ensemble(images))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_with_as_many_templates_as_users_sgd_is_sgd_on_own_weights() -> None:
    members, ensemble = linear_ensemble({"a": [(4, 6)] * 3}, templates=3)
    swe.warm_start(ensemble, members)
    ensemble.bank.coefficients.requires_grad_(False)
    pulls = [random(4, 6) for _ in range(3)]
    for _ in range(3):
        ensemble.zero_grad()
        made = list(ensemble.generate()["a"].values())
        sum((weight.square() * pull).sum() for weight, pull in zip(made, pulls)).backward()
        with torch.no_grad():
            for templates in ensemble.bank.templates.values():
                templates -= 0.1 * templates.grad
            for layer, pull in zip(members["a"].layers, pulls):
                layer.weight -= 0.1 * 2 * layer.weight * pull
    for made, layer in zip(weights_of(ensemble), members["a"].layers):
        assert_close(made, layer.weight.detach(), **FLOAT64)


def not_finite(name: str) -> dict[str, nn.Module]:
    members = trained_members()
    with torch.no_grad():
        members["b"].get_parameter(name).view(-1)[0] = math.nan
    return members


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: {**trained_members(), "b": swe.wide_resnet(10, 3, 5)},
            r"does not fit: b\.stages\.\S+ is \(48, 16, \d, \d\), planned \(32, 16, \d, \d\)",
        ),
        (lambda: {"a": swe.wide_resnet(16, 1, 5)}, "the plan is for the members a, b, c; given: a"),
        (lambda: {**trained_members(), "c": swe.wide_resnet(10, 1, 6)}, "member 'c' has .* trainable parameters"),
        (lambda: not_finite("fc.weight"), "member 'b': fc.weight holds numbers that are not finite"),
        (lambda: not_finite("stem.weight"), "member 'b': stem.weight holds numbers that are not finite"),
        (lambda: "members", "members must be a mapping of names to modules, .*; got 'members': swe.build_member"),
        (lambda: None, "members must be a mapping of names to modules, or a list of modules; got NoneType"),
    ],
)
def test_members_that_do_not_fit(given, message: str) -> None:
    ensemble = swe.SuperWeightEnsemble(trained_members(), budget=0.7)
    before = copy.deepcopy(ensemble.state_dict())
    assert_refused(message, swe.warm_start, ensemble, given())
    assert all(torch.equal(tensor, before[key]) for key, tensor in ensemble.state_dict().items())


def test_buffers_that_do_not_fit() -> None:
    shapes = {"a": [(4, 6)]}
    members, ensemble = linear_ensemble(shapes, templates=1)
    members["a"].norm.running_mean = torch.zeros(4)
    assert_refused(r"a\.norm\.running_mean is \(4,\), expected \(3,\)", swe.warm_start, ensemble, members)
    del members["a"].norm.running_mean
    assert_refused(r"a\.norm\.running_mean is missing", swe.warm_start, ensemble, members)


def test_what_is_no_warm_start_is_refused() -> None:
    members = trained_members()
    assert_refused("takes a SuperWeightEnsemble; got dict", swe.warm_start, members, members)
    retired = r"^init= was retired: .* call swe\.warm_start\(ensemble, trained_mem"
    for options in ({"budget": 0.7}, {"plan": swe.independent_plan(members)}):
        assert_refused(retired, swe.SuperWeightEnsemble, members, **options, init="svd")
