"""How long a run takes on this machine: some steps and epochs of each of its trainings, run on made-up images.

What is trained here is thrown away; files are written to a temporary folder only.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from superweight_ensembles.data import ImageData, MemorySplit
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.experiment.estimate import TrainingEstimate, training_flops_per_second
from superweight_ensembles.experiment.recipe import INDEPENDENT, Recipe
from superweight_ensembles.experiment.run_folder import training_order
from superweight_ensembles.models.adaptive import adaptive_widths, drop_importance, freeze_widths
from superweight_ensembles.plan import SharingPlan, independent_plan
from superweight_ensembles.search import searched_members
from superweight_ensembles.training import (
    Distillation,
    Hook,
    LearnedWidths,
    TrainConfig,
    TrainProgress,
    build_fabric,
    train,
    uses_bfloat16,
)

_START = 6.0  # seconds until Python, PyTorch and the members are loaded
_LONG_STEP = 1.0  # seconds; of a longer step, a part of the batch is timed
_TIMED = 2.0  # seconds of steps that each stage is timed for, about
_EPOCHS, _MOST_STEPS = 4, 8
_FORWARD = 1 / 3  # share of a step
_MEMBER_FLOOR = 0.01  # least seconds that a member of any size adds to a step
UNKNOWN_STEPS = 1000  # steps of a training, where only files show the number of images
_CLOCK_ROUNDS = 3  # rounds of measure_curves
_CASCADE_SHARE = 0.75  # share of all members' time that a cascade on its curve takes, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """A training of a run."""

    name: str
    members: dict[str, nn.Module]
    plan: SharingPlan
    config: TrainConfig
    hooks: tuple[Hook, ...] = ()
    searched: bool = False
    gradient_passes: float = 0.0  # over the training images, besides its epochs


def time_run(
    recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan, size: TrainingEstimate
) -> dict[str, float]:
    """Seconds of every stage of a run that begins with these members and plan, in order, and of its evaluation."""
    device = build_fabric(recipe.training).device
    rate = training_flops_per_second(device, bfloat16=uses_bfloat16(recipe.training), seconds=0.2)
    num_train, num_validation = recipe.data.facts.num_train, recipe.data.facts.num_validation
    found = {"start": _START}
    with torch.random.fork_rng(devices=[]):
        for stage in _stages(recipe, members, plan):
            found[stage.name] = _seconds_of(stage, recipe, size.seconds(rate), num_train, num_validation)
        evaluation = _evaluation_seconds(recipe, members, num_validation, device)
    if evaluation is not None:
        found["evaluation"] = evaluation * len(training_order(recipe)) + _START
    return found


def _stages(recipe: Recipe, members: dict[str, nn.Module], plan: SharingPlan) -> list[_Stage]:
    apart, sharing, stages = independent_plan(members), recipe.sharing, []
    if recipe.learn_widths is not None:
        hooks = (LearnedWidths(recipe.width_loss),)
        stages.append(_Stage(name="widths", members=members, plan=apart, config=recipe.width_training(), hooks=hooks))
        members = recipe.build_members()
        for module in members.values():
            if adaptive_widths(module):
                freeze_widths(module) if recipe.learn_widths.keep_importance else drop_importance(module)
        plan, apart = recipe.plan(members), independent_plan(members)
    if sharing.search != "none":
        passes = float(sharing.search == "gradient")
        stages.append(
            _Stage(
                name="search", members=members, plan=plan, config=recipe.search_training(), gradient_passes=passes,
                searched=sharing.search != "k_means",
            )
        )  # fmt: skip
    averaging = 0.0 if recipe.averaging is None else _FORWARD  # norms are estimated again
    for arm in training_order(recipe):
        shared = arm == "shared"
        teacher = SuperWeightEnsemble(members, plan=apart) if shared and recipe.taught_by(INDEPENDENT) else None
        timed = [one for one in recipe.hooks(arm, teacher) if isinstance(one, (LearnedWidths, Distillation))]
        stages.append(
            _Stage(
                name=arm, members=members, plan=plan if shared else apart,
                config=recipe.shared_training() if shared else recipe.training,
                hooks=tuple(timed),
                gradient_passes=float(shared and sharing.untie_epoch is not None) + averaging,
            )
        )  # fmt: skip
    return stages


def _seconds_of(
    stage: _Stage, recipe: Recipe, step_guess: float, num_train: int | None, num_validation: int | None
) -> float:
    """Seconds of a whole stage: steps, ends of epochs, and validations."""
    config = stage.config
    guess = step_guess + _MEMBER_FLOOR * len(stage.members)
    batch = min(config.batch_size, max(8, round(config.batch_size * _LONG_STEP / guess)))
    guess *= batch / config.batch_size
    epochs = _EPOCHS if guess < _LONG_STEP / 4 else 2
    steps = min(max(round(_TIMED / (epochs * guess)), 2), _MOST_STEPS)
    data = _made_up(recipe, steps * batch, min(num_validation or 0, 2 * batch))
    ensemble = SuperWeightEnsemble(stage.members, plan=stage.plan, rng=recipe.bank_generator())
    timed = replace(
        config, epochs=epochs, batch_size=batch, validate_every=2, schedule="constant", milestones=(), num_workers=0,
        gamma=TrainConfig().gamma, learning_rate=1e-6, random_resized_crop=False, checkpoint_steps=0,
        mesh="rows",
        micro_batches=min(config.micro_batches, batch) if isinstance(config.micro_batches, int) else 1,
    )  # fmt: skip
    clock = _Clock(device=build_fabric(config).device)
    with tempfile.TemporaryDirectory() as folder:
        train(
            ensemble, data, timed, hooks=stage.hooks, out=Path(folder) / "run", callback=clock,
            members=searched_members(ensemble) if stage.searched else None,
        )  # fmt: skip
    step = statistics.median(clock.steps) * config.batch_size / batch
    validated, plain = (statistics.median(ends) if ends else 0.0 for ends in (clock.validated_ends, clock.ends))
    num_epochs = config.epochs
    steps_per_epoch = UNKNOWN_STEPS // num_epochs if num_train is None else num_train // config.batch_size
    validation = max(validated - plain, 0.0) * (num_validation or 0) / max(len(data.validation), 1)
    times_validated = num_epochs // config.validate_every + (num_epochs % config.validate_every > 0)
    passes = num_epochs + stage.gradient_passes
    return passes * steps_per_epoch * step + num_epochs * plain + times_validated * validation


class _Clock:
    """Training callback: seconds of steps, and from the last step of an epoch to the first of the next."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[float] = []
        self.ends: list[float] = []
        self.validated_ends: list[float] = []
        self._device = device
        self._before: tuple[float, TrainProgress | None] = (0.0, None)

    def __call__(self, progress: TrainProgress) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, (then, last) = time.perf_counter(), self._before
        if progress.record is not None:
            ends = self.ends if progress.record["validation"] is None else self.validated_ends
            ends.append(now - then)
        elif last is not None and last.record is None and progress.step > 1:
            self.steps.append(now - then)
        elif last is not None and last.record is not None and self.steps:
            ends = self.ends if last.record["validation"] is None else self.validated_ends
            ends[-1] += max(now - then - statistics.median(self.steps), 0.0)
        self._before = now, progress


def _made_up(recipe: Recipe, num_train: int, num_validation: int) -> ImageData:
    """Images of noise, of a data set's shape and number of classes."""
    shape, (classes, _) = recipe.image_shape, recipe.classes_and_channels()
    assert shape is not None and classes is not None, "a step was counted with both"

    def noise(count: int) -> MemorySplit:
        return MemorySplit(torch.randint(256, (count, *shape), dtype=torch.uint8), torch.arange(count) % classes)

    return ImageData(
        name="noise", classes=tuple(map(str, range(classes))), image_shape=shape, mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0], train=noise(num_train), validation=noise(num_validation), test=noise(0),
    )  # fmt: skip


def _evaluation_seconds(
    recipe: Recipe, members: dict[str, nn.Module], num_validation: int | None, device: torch.device
) -> float | None:
    """Seconds of evaluating one arm; None where only files show how many images there are."""
    num_test = recipe.data.facts.num_test
    if num_test is None:
        return None
    batch = min(recipe.evaluation.batch_size, 64)
    images, _ = next(iter(_made_up(recipe, batch, 0).loader("train", batch, device=device)))
    modules = [module.to(device).eval() for module in recipe.build_members().values()]
    times = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            for module in modules:
                module(images).cpu()
            times.append(time.perf_counter() - start)
    image = min(times[1:]) / batch
    count, fixed = float(num_test), 0.15 * len(members)
    settings = recipe.anytime
    if settings is not None:
        curve = _CLOCK_ROUNDS * min(settings.timed_images, num_test) * (2 + _CASCADE_SHARE * (settings.num_points + 1))
        count += (num_validation or 0) + curve
        fixed += 0.5
        if settings.truncations:
            versions = 1 + sum(settings.truncations)
            again = num_test + (num_validation or 0) + 50 * recipe.training.batch_size
            count += versions * (again + curve)
            fixed += 3.0
    return count * image + fixed
