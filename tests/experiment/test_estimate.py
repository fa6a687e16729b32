"""Estimates of a training against hand-computed bytes, counted FLOPs and a real optimiser's state."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import superweights
from run_cases import refused, wide_resnets
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.data import DataFacts, known_facts
from superweight_ensembles.experiment import estimate as reference_speed
from superweight_ensembles.experiment import (
    estimate_lines,
    estimate_training,
    load_recipe,
    parse_recipe,
    planned_run,
    timing,
)
from superweight_ensembles.experiment import tables as plan_preview
from superweight_ensembles.experiment.estimate import TrainingEstimate, estimate_on_mesh
from superweight_ensembles.experiment.timing import time_run
from superweight_ensembles.models import count_flops
from superweight_ensembles.plan import PlannedMember, SsnGroup, Target, independent_plan
from superweight_ensembles.training import TrainProgress, build_optimizer, joint_backward

RECIPES = Path(__file__).parents[2] / "recipes"


class Small(nn.Module):
    """A convolution of 3 to 4 channels, a ReLU, a mean over pixels, a head of 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


class Breaking(Small):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def members() -> dict[str, nn.Module]:
    return {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(16, 2, 4)}


def test_activations_by_hand() -> None:
    small = {"small": Small()}
    config = swe.TrainConfig(batch_size=6)
    found = estimate_training(small, independent_plan(small), (3, 8, 8), config)
    # The convolution keeps the images, which are counted with the batch; the ReLU its answer; the head its input; the
    # loss log-probabilities, labels (given) and the sum of the labels' weights, one number.
    relu, head_input, log_probabilities, total = 6 * 4 * 8 * 8, 6 * 4, 6 * 5, 1
    assert found.activation_bytes == 4 * (relu + head_input + log_probabilities + total)
    assert found.batch_bytes == 4 * 6 * 3 * 8 * 8
    assert found.forward_flops == 2 * (4 * 3 * 9 * 8 * 8 + 4 * 5)


def test_parts_of_a_batch_keep_fewer_activations() -> None:
    plan = swe.plan_sharing(members(), budget=0.9)
    whole, small = (
        estimate_training(members(), plan, (3, 8, 8), swe.TrainConfig(batch_size=batch_size)) for batch_size in (32, 8)
    )
    parts = estimate_training(members(), plan, (3, 8, 8), swe.TrainConfig(batch_size=30, micro_batches=4))
    assert parts.activation_bytes == small.activation_bytes < whole.activation_bytes
    assert parts.forward_flops == whole.forward_flops
    assert any("batch 30 in 4 parts" in line for line in estimate_lines(parts, 1e9, "as given"))


def test_bfloat16_halves_what_autocast_casts() -> None:
    small = {"small": Small()}
    plan = swe.plan_sharing(small, budget=1.5)
    found = estimate_training(small, plan, (3, 8, 8), swe.TrainConfig(batch_size=6), bfloat16=True)
    # Images and head weight are kept as copies in bfloat16; the convolution's weight is generated in it.
    images, relu, head_input, head_weight = 6 * 3 * 8 * 8, 6 * 4 * 8 * 8, 6 * 4, 4 * 5
    log_probabilities, total = 6 * 5, 1
    assert found.activation_bytes == 2 * (images + relu + head_input + head_weight) + 4 * (log_probabilities + total)
    assert found.generated_gradient_bytes == 2 * 4 * 3 * 9
    assert found.generated_bytes == 2 * 4 * 3 * 9


@pytest.mark.parametrize(("loss", "joined"), [(0.0, max), (0.5, sum)])
def test_activations_of_members(loss: float, joined) -> None:
    modules = members()
    found, twice = (
        estimate_training(
            modules, swe.plan_sharing(modules, budget=0.9), (3, 8, 8),
            swe.TrainConfig(batch_size=batch_size, ensemble_loss=loss),
        )
        for batch_size in (8, 16)
    )  # fmt: skip
    assert [member.name for member in found.members] == ["a", "b"] and found.largest.name == "b"
    assert found.activation_bytes == joined(member.activation_bytes for member in found.members)
    assert 1.9 * found.activation_bytes < twice.activation_bytes <= 2 * found.activation_bytes


def test_activations_are_what_a_real_step_keeps() -> None:
    """The same count over real tensors, of a training without fake ones."""
    module = swe.wide_resnet(10, 1, 4)
    images, labels, kept = torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64), {}
    given = {tensor.data_ptr() for tensor in (images, labels, *module.parameters(), *module.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in given:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nn.functional.cross_entropy(module(images), labels)
    expected = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    modules = {"a": module}
    found = estimate_training(modules, independent_plan(modules), (3, 8, 8), swe.TrainConfig(batch_size=5))
    assert found.activation_bytes == expected


def test_flops_are_those_that_are_counted() -> None:
    modules = members()
    plan = swe.plan_sharing(modules, budget=0.9)
    config = swe.TrainConfig(batch_size=8, epochs=3)
    found = estimate_training(modules, plan, (3, 8, 8), config, num_images=50)
    image = torch.zeros(1, 3, 8, 8)
    forward = {name: count_flops(module.eval(), image) for name, module in modules.items()}
    assert {member.name: member.forward_flops for member in found.members} == forward
    generation = sum(
        2 * slot.num_vectors * slot.num_templates * block.size
        for cluster in plan.clusters
        for slot, block in zip(cluster.slots, cluster.blocks)
    )
    assert found.step_flops == 3 * (8 * sum(forward.values()) + generation)
    assert found.num_steps == 3 * (50 // 8) and found.total_flops == 18 * found.step_flops
    assert found.seconds(1e9, 18) == pytest.approx(found.total_flops / 1e9)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0, "nesterov": False}, {"optimizer": "adamw"}], ids=["momentum", "plain", "adamw"]
)
@pytest.mark.parametrize("coefficients", ["own", "embedding"])
def test_bytes_are_those_of_a_real_step(options: dict, coefficients: str) -> None:
    plan = swe.plan_sharing(members(), budget=0.9, coefficients=coefficients)
    found = estimated_and_stepped(plan, swe.TrainConfig(batch_size=4, **options))
    running = found.generated_bytes + found.activation_bytes
    through_bank = found.generated_gradient_bytes + found.gradient_bytes
    held = found.parameter_bytes + found.optimizer_bytes + found.batch_bytes
    assert found.peak_bytes == held + max(running, through_bank)


def num_bytes(tensors: Iterable[Any]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))


def estimated_and_stepped(plan: swe.SharingPlan, config: swe.TrainConfig) -> TrainingEstimate:
    """An estimate whose bytes are those that a real step holds."""
    modules = members()
    found = estimate_training(modules, plan, (3, 8, 8), config)
    ensemble = swe.SuperWeightEnsemble(modules, plan=plan)
    optimizer = build_optimizer(ensemble, config)
    joint_backward(ensemble, torch.randn(4, 3, 8, 8), torch.arange(4), nn.functional.cross_entropy)
    optimizer.step()
    assert found.optimizer_bytes == num_bytes(one for held in optimizer.state.values() for one in held.values())
    assert found.gradient_bytes == num_bytes(one.grad for one in ensemble.parameters())
    weights = {id(weight): weight for own in ensemble.generate().values() for weight in own.values()}
    assert found.generated_bytes == sum(4 * weight.numel() for weight in weights.values())
    assert found.parameter_bytes == num_bytes((*ensemble.parameters(), *ensemble.buffers()))
    return found


GROUPS = {
    "mixed": {"budget": 0.25},
    "below": {"budget": 0.05, "generator": "ssn"},
    "above": {"budget": 1.5, "generator": "ssn", "clusters": "one"},
    "mean": {"budget": 0.2, "generator": "ssn", "ssn": swe.plan.SsnOptions(combine="avg", upsample="repeat")},
    "softmax": {
        "budget": 0.2,
        "generator": "ssn",
        "ssn": swe.plan.SsnOptions(combine="softmax", upsample="inter", templates=4),
    },
    "embedding": {"budget": 0.2, "generator": "ssn", "ssn": swe.plan.SsnOptions(combine="emb", upsample="mask")},
    "tiles": {"budget": 0.2, "generator": "ssn", "ssn": swe.plan.SsnOptions(upsample="wavg")},
}


@pytest.mark.parametrize("case", GROUPS)
def test_bytes_of_flat_banks_are_those_of_a_real_step(case: str) -> None:
    plan = swe.plan_sharing(members(), **GROUPS[case])
    assert plan.ssn_groups and bool(plan.superweight_clusters) == (case == "mixed")
    found = estimated_and_stepped(plan, swe.TrainConfig(batch_size=4, optimizer="adamw"))
    assert found.gradient_bytes == 4 * plan.num_parameters


def flat_plan(bank_size: int, options: swe.plan.SsnOptions) -> swe.SharingPlan:
    """Of a :class:`Small` whose convolution, 4 x 3 x 3 x 3 = 108 numbers, and head, 5 x 4, read one bank."""
    targets = (
        Target(member="small", names=("conv.weight",), kind="conv2d", shape=(4, 3, 3, 3)),
        Target(member="small", names=("head.weight",), kind="linear", shape=(5, 4)),
    )
    group = SsnGroup(name="all", bank_size=bank_size, targets=targets, options=options)
    member = PlannedMember(name="small", num_parameters=108 + 20 + 5, num_private=5)
    return swe.SharingPlan(members=(member,), clusters=(group,), budget=1000)


def test_flops_and_copies_of_a_flat_bank_by_hand() -> None:
    found = estimate_training(
        {"small": Small()}, flat_plan(113, swe.plan.SsnOptions()), (3, 8, 8), swe.TrainConfig(batch_size=6)
    )
    # One window of 108 numbers, and floor(113 / 20) = 5 of 20; two for each product, and two gradients.
    assert found.generation_flops == 3 * 2 * (1 * 108 + 5 * 20)
    # The head reads numbers 108 to 208: a copy so long, and gradients for it, of which 113 are counted as the bank's.
    assert found.bank_copy_bytes == 4 * (208 + 208 - 113)


@pytest.mark.parametrize(
    ("upsample", "combined", "enlarging"),
    [
        # p = 0.6: 2 x (2 x 9) of 4 x (3 x 9) fit in 40 numbers; four products and sums a number, forward and back.
        ("inter", 36, 2 * 8 * 108),
        ("repeat", 40, 108),  # one sum a number in backward
        ("wavg", 6 * 2 * 20, 0),  # six tiles of 20 of two halves each
    ],
)
def test_flops_of_layers_larger_than_their_bank_by_hand(upsample: str, combined: int, enlarging: int) -> None:
    plan = flat_plan(40, swe.plan.SsnOptions(upsample=upsample))
    found = estimate_training({"small": Small()}, plan, (3, 8, 8), swe.TrainConfig(batch_size=6))
    assert found.generation_flops == 3 * 2 * (combined + 2 * 20) + enlarging


def test_an_estimate_changes_nothing() -> None:
    modules = members()
    modules["a"].eval()
    before = {name: {key: value.clone() for key, value in m.state_dict().items()} for name, m in modules.items()}
    state = torch.get_rng_state()
    estimate_training(modules, swe.plan_sharing(modules, budget=0.9), (3, 8, 8), swe.TrainConfig(), bfloat16=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer.training for layer in modules["a"].modules())
    assert all(layer.training for layer in modules["b"].modules())
    for name, module in modules.items():
        assert all(torch.equal(value, before[name][key]) for key, value in module.state_dict().items())


def test_members_that_do_not_run_are_named() -> None:
    breaking = {"small": Breaking()}
    with refused(r"member 'small' does not run where only the shape \(6, 3, 8, 8\) is known"):
        estimate_training(breaking, independent_plan(breaking), (3, 8, 8), swe.TrainConfig(batch_size=6))
    modules = members()
    found = estimate_training(modules, independent_plan(modules), (3, 8, 8), swe.TrainConfig())
    with refused("flops_per_second must be positive and finite; got 0"):
        found.seconds(0)


def test_the_lines_say_batch_precision_and_time() -> None:
    modules = members()
    plan, config = swe.plan_sharing(modules, budget=0.9), swe.TrainConfig(batch_size=8, epochs=3)
    known = estimate_training(modules, plan, (3, 8, 8), config, num_images=50, bfloat16=True)
    text = "\n".join(estimate_lines(known, known.step_flops / 20, "as given"))
    assert "largest member (b), batch 8, bfloat16" in text and "3 epochs of about 50 images" in text
    assert "6.0 minutes  at" in text  # 18 steps of 20 seconds
    unknown = estimate_training(modules, plan, (3, 8, 8), config)
    text = "\n".join(estimate_lines(unknown, unknown.step_flops / 20, "as given"))
    assert "1,000 steps" in text and "5.6 hours  at" in text


@pytest.mark.parametrize("name", ["digits", "spiral", "synthetic"])
@pytest.mark.parametrize("options", [{}, {"validation_fraction": 0.25}, {"num_train": 120}])
def test_what_is_known_without_data_is_what_the_data_say(name: str, options: dict) -> None:
    data = swe.load_data(name, **options)
    facts = known_facts(name, options)
    assert (facts.image_shape, facts.channels) == (data.image_shape, data.image_shape[0])
    assert (facts.num_classes, facts.num_test) == (data.num_classes, len(data.test))
    for found, split in ((facts.num_train, data.train), (facts.num_validation, data.validation)):
        assert found is not None and abs(found - len(split)) <= data.num_classes


def test_what_only_files_tell_is_not_known() -> None:
    assert known_facts("image_folder", {"image_size": 64, "pool": 2}) == DataFacts(channels=3, image_shape=(3, 32, 32))
    assert known_facts("image_folder", {}) == DataFacts(channels=3)
    assert known_facts("elsewhere", {}) == DataFacts()
    assert known_facts("cifar10", {"validation_fraction": 0.2, "num_train": 5120}).num_train == 5120
    assert known_facts("cifar100", {"validation_fraction": 0}).num_train == 50_000


def test_the_reference_speed_is_a_rate() -> None:
    state = torch.get_rng_state()
    rate = reference_speed.training_flops_per_second(torch.device("cpu"), bfloat16=False, seconds=0.01)
    assert 1e6 < rate < 1e15
    assert torch.equal(torch.get_rng_state(), state)


def test_plan_prints_the_estimate(monkeypatch, capsys) -> None:
    recipe = RECIPES / "digits.yaml"
    assert superweights(monkeypatch, "plan", recipe, "--flops-per-second", "1e10") == 0
    printed = capsys.readouterr().out
    chosen = load_recipe(recipe)
    modules = chosen.build_members()
    estimate = chosen.estimate(modules, chosen.plan(modules))
    assert estimate is not None
    assert printed.splitlines()[-11:] == estimate_lines(estimate, 1e10, "as given")
    monkeypatch.setattr(plan_preview, "time_run", lambda *given: {"start": 5.0, "shared": 120.0, "evaluation": 9.0})
    assert superweights(monkeypatch, "plan", recipe) == 0
    *_, training, evaluation = capsys.readouterr().out.splitlines()
    assert training.startswith("time of train      2.1 minutes  start 5.0 s, shared 2.0 minutes; some steps and epochs")
    assert evaluation.startswith("time of evaluate         9.0 s  ")
    folder = RECIPES / "image-folder.yaml"
    assert superweights(monkeypatch, "plan", folder, "--set", "data.image_size=null") == 0
    assert "no estimate of memory and time: the size of the images is in the files" in capsys.readouterr().out
    assert superweights(monkeypatch, "plan", recipe, "--flops-per-second", "-1") == 2
    assert "flops_per_second must be positive and finite; got -1.0" in capsys.readouterr().err


SMALL = {
    "name": "small",
    "data": {"name": "synthetic", "num_train": 120, "num_test": 40, "validation_fraction": 0.2},
    "members": wide_resnets(a=(10, 0.25), b=(10, 0.5)),
    "sharing": {"budget": 0.9},
    "training": {"epochs": 50, "batch_size": 16, "precision": "float32", "device": "cpu", "crop_padding": 1},
}
ADAPTIVE = {"pairs": [["stages.*.conv1", "stages.*.conv2"]]}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, ["start", "shared", "independent", "evaluation"]),
        ({"baseline": "none"}, ["start", "shared", "evaluation"]),
        ({"distillation": {"teacher": "independent", "weight": 0.5}}, ["start", "independent", "shared", "evaluation"]),
        (
            {"sharing": {"budget": 0.95, "search": "gradient", "search_epochs": 2}, "baseline": "none"},
            ["start", "search", "shared", "evaluation"],
        ),
        (
            {
                "members": [{**member, "adaptive": ADAPTIVE} for member in SMALL["members"]],
                "learn_widths": {"epochs": 2},
                "baseline": "none",
            },
            ["start", "widths", "shared", "evaluation"],
        ),
    ],
    ids=["arms", "one", "taught", "searched", "widths"],
)
def test_every_stage_of_a_run_is_timed(changes: dict, stages: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe({**SMALL, **changes})
    modules, plan = planned_run(recipe)
    before, state = modules["a"].state_dict(), torch.get_rng_state()
    before = {key: value.clone() for key, value in before.items()}
    found = time_run(recipe, modules, plan, recipe.estimate(modules, plan))
    assert list(found) == stages and all(seconds > 0 for seconds in found.values())
    assert all(torch.equal(value, before[key]) for key, value in modules["a"].state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not list(tmp_path.iterdir())


def test_twice_the_epochs_take_twice_as_long(monkeypatch) -> None:
    """By a clock on which every step takes 1, the end of an epoch 10, and a validation of 24 images 6 more."""
    now = [0.0]

    def train_by_the_clock(ensemble, data, config, *, callback, **options) -> None:
        def tell(seconds: float, epoch: int, step: int, record: dict | None = None) -> None:
            now[0] += seconds
            callback(TrainProgress(epoch=epoch, step=step, steps_per_epoch=steps, epochs=config.epochs, record=record))

        steps = len(data.train) // config.batch_size
        for epoch in range(1, config.epochs + 1):
            for step in range(1, steps + 1):
                tell(1.0, epoch, step)
            validated = epoch % config.validate_every == 0
            cost = len(data.validation) / 4 if validated else 0.0
            tell(10.0 + cost, epoch, steps, {"validation": {} if validated else None})

    monkeypatch.setattr(timing, "train", train_by_the_clock)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "training_flops_per_second", lambda *given, **options: 1e12)
    for epochs, validate_every in ((50, 1), (100, 5)):
        content = {**SMALL, "training": {**SMALL["training"], "epochs": epochs, "validate_every": validate_every}}
        recipe = parse_recipe(content)
        modules, plan = planned_run(recipe)
        found = time_run(recipe, modules, plan, recipe.estimate(modules, plan))
        steps, validations = 96 // 16, epochs // validate_every  # of 120 images 24 are held out
        assert found["shared"] == found["independent"] == epochs * (steps * 1 + 10) + validations * 24 / 4


@pytest.mark.slow
def test_imagenet_is_estimated_without_data_or_memory() -> None:
    recipe = load_recipe(RECIPES / "imagenet.yaml", ["training.precision=bfloat16"])
    modules = recipe.build_members()
    found = recipe.estimate(modules, recipe.plan(modules))
    assert found is not None and found.largest.name == "resnet50" and found.num_images is None
    # timm's resnet18, resnet34 and resnet50 at 224: 1.81, 3.66 and 4.09 G multiply-adds.
    macs = [round(member.forward_flops / 2e9, 2) for member in found.members]
    assert macs == [1.81, 3.66, 4.09]
    assert 10 < found.peak_bytes / 2**30 < 13


def test_a_mesh_by_hand() -> None:
    """Two members of which one is three times the other: what each rank has, sends and takes."""
    modules = {
        "small": swe.wide_resnet(10, 1, 4),
        "large": swe.wide_resnet(10, 2, 4),
        "twin": swe.wide_resnet(10, 2, 4),
    }
    plan = swe.plan_sharing(modules, budget=0.9)
    estimate = estimate_training(modules, plan, (3, 16, 16), swe.TrainConfig(batch_size=8, optimizer="adamw"))
    one = estimate_on_mesh(estimate, plan, 1, "rows", True)
    assert (one.placement, one.exchanged_bytes, one.relative_seconds) == ((("small", "large", "twin"),), 0, 1.0)
    assert one.peak_bytes == pytest.approx(estimate.peak_bytes, rel=1e-6)
    rows = estimate_on_mesh(estimate, plan, 2, "rows", True)
    assert rows.exchanged_bytes == estimate.gradient_bytes and rows.relative_seconds == 0.5 * 1.25
    assert estimate_on_mesh(estimate, plan, 2, "rows", False).relative_seconds == 0.5
    members = estimate_on_mesh(estimate, plan, 2, {"members": 2, "rows": 1}, True)
    assert {frozenset(own) for own in members.placement} in (
        {frozenset({"large"}), frozenset({"twin", "small"})}, {frozenset({"twin"}), frozenset({"large", "small"})},
    )  # fmt: skip
    assert members.exchanged_bytes == 4 * (plan.num_parameters - plan.num_private)
    flops = {member.name: member.forward_flops for member in estimate.members}
    assert members.relative_seconds == pytest.approx((flops["large"] + flops["small"]) / sum(flops.values()))
    assert rows.peak_bytes < one.peak_bytes and members.peak_bytes < one.peak_bytes
    with refused("a mesh of 4 member ranks needs as many members, and 3 are trained"):
        estimate_on_mesh(estimate, plan, 4, {"members": 4, "rows": 1}, True)


def test_plan_says_how_processes_divide_a_training(monkeypatch, capsys) -> None:
    def plan(code: int, *arguments: str) -> tuple[str, str]:
        assert superweights(monkeypatch, "plan", RECIPES / "digits.yaml", *arguments) == code
        return capsys.readouterr()

    out, _ = plan(0, "--flops-per-second", "1e10", "--processes", "4")
    title, ranks, exchanged, fullest, seconds = out.splitlines()[-5:]
    assert title == "On 4 processes, training.mesh auto (the recipe has 'rows', whose numbers are in brackets)"
    assert ranks.startswith("member ranks") and "of rows: " in ranks
    assert "MiB  gradients, a step and process (" in exchanged and "MiB  in a step; one process alone" in fullest
    assert float(seconds.split()[4]) < 0.5
    given = ("--set", "training.mesh={members: 5, rows: 1}")
    _, told = plan(2, "--flops-per-second", "1e10", "--processes", "4", *given)
    assert "5 member ranks and 1 of rows is for 5 processes, and the job has 4" in told
    given = ("--set", "training.mesh={members: 2, rows: 1}", "--set", "training.shard_moments=true")
    assert "training.mesh {'members': 2, 'rows': 1}" in plan(0, "--processes", "2", *given)[0]  # timed by one process
    assert "leave --flops-per-second and --processes out" in plan(2, "--json", "--processes", "4")[1]
