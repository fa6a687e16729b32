import itertools

import pytest
import torch
from test_ssn import COMBINE, UPSAMPLE, by_reference, ensemble, members
from torch.testing import assert_close

import superweight_ensembles as swe
from superweight_ensembles import SuperWeightEnsemble
from superweight_ensembles.ensemble import compile_group
from superweight_ensembles.ensemble.warm_starting import _best_bank, _place_embeddings
from superweight_ensembles.plan import SsnOptions

CASES = list(itertools.product(COMBINE, UPSAMPLE, [0.35, 0.55, 1.0]))


def options_of(combine, upsample):
    return SsnOptions(combine=combine, upsample=upsample, **({"embedding_size": 2} if combine == "emb" else {}))


def squared_error(made, nets):
    weights = made.generate()
    return sum(
        float((weights[name][key] - net.get_parameter(key)).detach().double().square().sum())
        for name, net in nets.items()
        for key in weights[name]
    )


@pytest.mark.parametrize("upsample", UPSAMPLE)
def test_the_bank_is_the_least_squares_solution_for_its_coefficients(upsample):
    made = ensemble(0.5, count=2, width=2, clusters="one", ssn=options_of("wavg", upsample))
    (group,), bank = made.plan.clusters, made.bank
    assert any(reading.num_tiles > 1 or reading.matrix != (0, 0) for reading in group.window_specs)
    program = compile_group(0, group, ["m0", "m1"])
    coefficients = {key: bank.combination(key).detach() for key in program.keys}
    torch.manual_seed(3)
    wanted = [torch.randn(layer.num_weights, dtype=torch.float64) for layer in program.layers]

    columns = []  # the literal linear map, one number of the bank at a time
    for place in range(group.bank_size):
        with torch.no_grad():
            bank.templates["c0"].zero_()
            bank.templates["c0"][place] = 1
        found = by_reference(made)
        columns.append(torch.cat([found[t.label].movedim(1, -1).flatten() for t in group.targets]).detach())
    matrix, given = torch.stack(columns, dim=1), torch.cat(wanted)
    best = torch.linalg.lstsq(matrix, given[:, None], driver="gelsd").solution[:, 0]

    found = torch.zeros(group.bank_size, dtype=torch.float64)
    for _ in range(8):
        found = _best_bank(program, found, coefficients, wanted)
    assert_close((matrix @ found - given).norm(), (matrix @ best - given).norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("combine", "upsample", "budget"), CASES)
def test_a_warm_start_comes_closer_and_reports_its_errors(combine, upsample, budget):
    made = SuperWeightEnsemble(
        members(2), budget=budget, generator="ssn", clusters="one", ssn=options_of(combine, upsample),
        rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    nets = members(2)
    before = squared_error(made, nets)
    result = swe.warm_start(made, nets)
    assert squared_error(made, nets) < 0.9 * before
    weights = made.generate()
    for (name, key), error in result.errors.items():
        own = nets[name].get_parameter(key).detach().double()
        assert error == pytest.approx(float((weights[name][key].detach().double() - own).norm() / own.norm()), rel=1e-5)
    for net, held in zip(nets.values(), made.members.values(), strict=True):
        assert torch.equal(held.fc.weight, net.fc.weight)


@pytest.mark.parametrize("combine", ["wavg", "emb"])
def test_twice_as_many_numbers_give_the_weights_back(combine):
    nets = members(2)
    made = SuperWeightEnsemble(
        nets, budget=2.2, generator="ssn", clusters="one", ssn=SsnOptions(combine=combine),
        rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert swe.warm_start(made, nets).mean_error < 0.01


def test_a_mixed_plan_starts_warm_with_both_generators():
    nets = {"w": swe.wide_resnet(10, 1, 10)}
    least = swe.plan_sharing(nets, budget=1.0, generator="superweight").minimum_parameters
    made = SuperWeightEnsemble(nets, budget=least - 1)
    assert {cluster.generator for cluster in made.plan.clusters} == {"superweight", "ssn"}
    assert set(swe.warm_start(made, nets).errors) == {
        ("w", t.name) for cluster in made.plan.clusters for t in cluster.targets
    }


@pytest.mark.parametrize(("rows", "count", "size"), [(5, 2, 3), (5, 4, 4), (6, 5, 2)])
def test_embeddings_hold_up_to_as_many_windows_exactly_and_of_more_the_best_affine_ones(rows, count, size):
    torch.manual_seed(0)
    alphas = torch.randn(rows, count, dtype=torch.float64)
    embeddings, mixer = torch.randn(rows, size, dtype=torch.float64), torch.randn(count, size + 1, dtype=torch.float64)
    _place_embeddings(alphas, embeddings, mixer)
    left, values, right = torch.linalg.svd(alphas - alphas.mean(0), full_matrices=False)
    best = alphas.mean(0) + left[:, :size] @ torch.diag(values[:size]) @ right[:size]
    assert_close(embeddings @ mixer[:, :-1].T + mixer[:, -1], alphas if count <= size else best)
