"""Groups that are learned from coefficients."""

import json

import pytest
import torch
from refusals import assert_refused
from test_ssn import Small

import superweight_ensembles as swe
from superweight_ensembles.experiment import evaluate_run, parse_recipe, read_search, train_run
from superweight_ensembles.plan import SsnOptions
from superweight_ensembles.search import KMeansSearch

READING = {"softmax": {}, "wavg": {}, "emb": {"embedding_size": 3}}


def first(combine="softmax", templates=4, **options):
    torch.manual_seed(0)
    reading = SsnOptions(combine=combine, upsample="inter", templates=templates, **READING.get(combine, {}))
    nets = {"a": Small(4), "b": Small(3)}
    return swe.SuperWeightEnsemble(
        nets, budget=0.5, **{"generator": "ssn", "clusters": "one", "ssn": reading, **options}
    )


def learn(ensemble, num_groups, **options):
    return swe.search_sharing(ensemble, method=KMeansSearch(num_groups=num_groups, **options))


def with_coefficients(made, rows):
    """An ensemble that counts as trained, with these coefficients or embeddings."""
    with torch.no_grad():
        made.bank.templates["c0"].mul_(1.5)
        made.bank.coefficients["c0k4"].copy_(torch.tensor(rows, dtype=torch.float32))
    return made


FAR = {
    "softmax": [[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]],
    "wavg": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]],
    "emb": [[5, 0, 0], [0, 5, 0], [-5, -5, 1]],
}
LABELS = [0, 1, 1, 0, 2, 0, 1, 2]


@pytest.mark.parametrize("combine", READING)
def test_layers_that_mix_alike_are_grouped(combine):
    rows = [[value * (1 + 0.3 * place) for value in FAR[combine][label]] for place, label in enumerate(LABELS)]
    if combine == "emb":  # a length is part of an embedding
        rows = [FAR[combine][label] for label in LABELS]
        rows = [[value + 0.1 * place for value in row] for place, row in enumerate(rows)]
    made = with_coefficients(first(combine), rows)
    found = learn(made, 3)
    assert found.labels == tuple(LABELS)
    groups = [[target.label for target in group.targets] for group in found.plan.clusters]
    labels = [target.label for target in made.plan.clusters[0].targets]
    assert groups == [
        [name for name, label in zip(labels, LABELS, strict=True) if label == number] for number in range(3)
    ]
    assert found.plan.budget == made.plan.budget
    assert found.plan.num_parameters <= found.plan.budget
    assert learn(made, 3).plan == found.plan
    again = swe.SuperWeightEnsemble({"a": Small(4), "b": Small(3)}, plan=found.plan)
    assert again.num_parameters == found.plan.num_parameters


def test_the_evidence_is_json_with_cosines_less_the_mean():
    found = learn(far(), 3)
    content = json.loads(json.dumps(found.to_dict()))
    (seen,) = content["clusters"]
    centred = found.features - found.features.mean(0)
    expected = float(centred[0] @ centred[1] / centred[0].norm() / centred[1].norm())
    assert seen["similarity"][0][1] == pytest.approx(expected, abs=1e-4)
    assert seen["sets"] == LABELS
    assert content["similarity"] == "k_means"


def far(combine="softmax"):
    return with_coefficients(first(combine), [FAR[combine][label] for label in LABELS])


@pytest.mark.parametrize(
    ("make", "num_groups", "options", "message"),
    [
        (first, 3, {}, "the ensemble is untrained, and its coefficients say nothing"),
        (lambda: first(templates=0, combine="wavg"), 3, {}, "groups are learned from layers that all mix the same"),
        (lambda: first(clusters="shape", generator="auto", ssn=None), 3, {}, "groups are learned from layers"),
        (lambda: first("avg"), 3, {}, "groups are learned from layers that all mix the same templates"),
        (lambda: "ensemble", 3, {}, "a search takes a SuperWeightEnsemble; got str"),
        (far, 9, {}, "num_groups is 9, but there are 8 layers"),
        (far, 0, {}, "num_groups of k-means must be a whole number"),
        (far, 4, {}, "num_groups is 4, but only 3 different mixtures of templates were learned"),
        (far, 3, {"generator": "superweight"}, "generator must be 'ssn' or 'auto'"),
        (first, 3, {"seed": -1}, r"seed must be a whole number, from 0 to 4,294,967,295; got -1"),
        (lambda: with_coefficients(first(), [[float("nan")] * 4] * 8), 3, {}, "coefficients are not finite"),
    ],
)
def test_bad_input(make, num_groups, options, message):
    assert_refused(message, learn, make(), num_groups, **options)


def recipe(**sharing):
    return {
        "name": "learned", "data": {"name": "synthetic", "num_classes": 4, "channels": 3},
        "members": [{"name": "w", "model": "wide_resnet", "depth": 10, "width": 1}],
        "sharing": {
            "budget": 0.2, "generator": "ssn", "search": "k_means", "num_groups": 2, "search_epochs": 1, **sharing,
        },
        "training": {"epochs": 1, "batch_size": 64, "num_threads": 1, "precision": "float32"},
        "baseline": "none",
    }  # fmt: skip


def test_a_recipe_learns_groups_and_says_what_it_saw(tmp_path):
    train_run(parse_recipe(recipe(ssn={"combine": "wavg", "upsample": "repeat"})), tmp_path / "run")
    results = evaluate_run(tmp_path / "run")
    content, plans = read_search(tmp_path / "run")
    assert content.similarity == "k_means"
    assert [group.options.templates for group in plans["before the search"].clusters] == [4]
    found = plans["found"]
    assert 1 <= len(found.clusters) <= 2  # a group of one layer is an ordinary weight
    assert all(group.options.upsample == "repeat" and not group.options.templates for group in found.clusters)
    assert results.arms[0].num_parameters == found.num_parameters <= found.budget


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({"num_groups": None}, "search 'k_means' needs num_groups"),
        ({"search_epochs": None}, "a search needs search_epochs"),
        ({"clusters": "shape"}, "clusters does nothing with search 'k_means'"),
        ({"coefficients": "tied"}, "coefficients does nothing with search 'k_means'"),
        ({"generator": "superweight"}, "search 'k_means' groups layers of any kernel"),
        ({"threshold": 0.5}, "threshold does nothing without search: gradient"),
        ({"group_seed": 3}, "group_seed does nothing without clusters: random"),
        ({"ssn": {"windows": 0}}, "sharing.ssn.windows must be at least 1"),
        ({"ssn": {"combin": "avg"}}, "sharing.ssn: unknown key 'combin': did you mean 'combine'"),
    ],
)
def test_bad_recipes(sharing, message):
    assert_refused(message, parse_recipe, recipe(**sharing))


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({"num_groups": 99}, "num_groups is 99, but there are 9 layers to group"),
        ({"num_groups": 0}, "num_groups of k-means must be a whole number, at least 1; got 0"),
        ({"budget": 0.01}, "below the minimum of this sharing"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(tmp_path, sharing, message):
    assert_refused(message, train_run, parse_recipe(recipe(**sharing)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
