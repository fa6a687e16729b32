"""One point of a growth sweep: what is built, what it should cost on paper, and what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from harness import timed
from peak_memory import Peak, in_fresh_process
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from training_steps import Batch, Step, apart_step, generation_step, joint_step, random_batch, step_peak

import superweight_ensembles as swe
from superweight_ensembles.experiment import estimate_training
from superweight_ensembles.training import TrainConfig

T = TypeVar("T")
_ROOMY_BUDGET = 9.9  # times the members apart: the cap alone decides how many templates a slot has
_CONFIG = TrainConfig(precision="float32", learning_rate=0.01)


class ResidualMLP(nn.Module):
    """Images to logits through blocks of two linear layers, narrow to wide and back; two targets a block.

    Args:
        num_blocks: Of two linear layers each.
        width: Numbers between blocks; twice as many inside.
        image_size: Height and width of the images (B, 3, H, W).
        num_classes: Logits.
    """

    def __init__(self, num_blocks: int, width: int, image_size: int, num_classes: int = 10) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(min(2, image_size))
        self.width = width
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(images).flatten(1)
        hidden = F.pad(pooled, (0, self.width - pooled.shape[1]))
        scale = len(self.blocks) ** -0.5
        for block in self.blocks:
            hidden = torch.add(hidden, block(hidden), alpha=scale)
        logits: Tensor = self.head(hidden)
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a point builds.

    Attributes:
        network: ``wrn16-1``, or ``mlp``: residual MLPs of ``targets`` weights in all.
        members: How many, all alike.
        targets: Of all members together; 0 where the network decides.
        templates: Of every slot.
        batch_size: Images a step.
        image_size: Their side.
        width: Of the MLPs.
        threads: Of torch; 0 for its own number.
    """

    network: str
    members: int
    targets: int
    templates: int
    batch_size: int
    image_size: int
    width: int
    threads: int


def build_members(setting: Setting) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {f"member{index}": _network(setting) for index in range(setting.members)}


def make_plan(members: dict[str, nn.Module], setting: Setting) -> swe.SharingPlan:
    return swe.plan_sharing(members, budget=_ROOMY_BUDGET, cap=setting.templates)


def measure_point(setting: Setting, seconds: float) -> dict[str, Any]:
    """Times, bytes and expectations of one setting, times within about ``seconds`` each."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    members = build_members(setting)
    plan = make_plan(members, setting)
    held = {slot.num_templates for cluster in plan.superweight_clusters.values() for slot in cluster.slots}
    assert held == {setting.templates}, f"every slot must hold {setting.templates} templates; they hold {held}"
    num_targets = sum(len(cluster.targets) for cluster in plan.clusters)
    assert setting.targets in (0, num_targets), f"{setting.targets} targets were asked for; the plan has {num_targets}"
    plan_s, _ = median_seconds(lambda: make_plan(members, setting), seconds / 2)
    build_s, ensemble = median_seconds(
        lambda: swe.SuperWeightEnsemble(members, plan=make_plan(members, setting)), seconds / 2
    )
    times = step_seconds(ensemble, members, setting, seconds)
    peaks = {arm: in_fresh_process(peak_of, setting, arm) for arm in ("bank", "own")}
    return {
        "num_targets": num_targets,
        "num_parameters": ensemble.num_parameters,
        "independent_parameters": ensemble.independent_parameters,
        "plan_s": plan_s,
        "plan_and_build_s": build_s,
        **times,
        **{f"{arm}_peak_bytes": peak.live for arm, peak in peaks.items()},
        **{f"{arm}_persistent_bytes": peak.persistent for arm, peak in peaks.items()},
        **{f"{arm}_resident_bytes": peak.resident for arm, peak in peaks.items()},
        "peak_ratio": peaks["bank"].live / peaks["own"].live,
        "resident_ratio": peaks["bank"].resident / peaks["own"].resident,
        "on_paper": on_paper(ensemble, members, setting),
    }


def step_seconds(
    ensemble: swe.SuperWeightEnsemble, members: dict[str, nn.Module], setting: Setting, seconds: float
) -> dict[str, Any]:
    """Medians of alternating steps."""
    batch = random_batch(setting.batch_size, setting.image_size)
    bank, own = joint_step(ensemble, _CONFIG)[0], apart_step(members.values(), _CONFIG)[0]
    jobs = {"bank": lambda: bank(*batch), "own": lambda: own(*batch), "generation": generation_step(ensemble)}
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    begin = time.perf_counter()
    while len(times["bank"]) < 5 or (time.perf_counter() - begin < seconds and len(times["bank"]) < 60):
        for name, job in jobs.items():
            times[name].append(timed(job))
    return {
        **{f"{name}_ms": 1e3 * statistics.median(found) for name, found in times.items()},
        "step_ratio": statistics.median(a / b for a, b in zip(times["bank"], times["own"])),
        "rounds": len(times["bank"]),
    }


def peak_of(setting: Setting, arm: str) -> Peak:
    """The peak memory of a step of one arm; call it in a fresh process."""
    if setting.threads:
        torch.set_num_threads(setting.threads)

    def build() -> tuple[Step, torch.optim.Optimizer, Batch]:
        members = build_members(setting)
        batch = random_batch(setting.batch_size, setting.image_size)
        if arm == "bank":
            ensemble = swe.SuperWeightEnsemble(members, plan=make_plan(members, setting))
            return *joint_step(ensemble, _CONFIG), batch
        return *apart_step(members.values(), _CONFIG), batch

    return step_peak(_network(setting), build, _CONFIG)


def on_paper(ensemble: swe.SuperWeightEnsemble, members: dict[str, nn.Module], setting: Setting) -> dict[str, int]:
    """What a step of the bank should cost, counted: FLOPs, products of generation, bytes at the peak."""
    with FlopCounterMode(display=False) as counter:
        joint_step(ensemble, _CONFIG)[0](*random_batch(setting.batch_size, setting.image_size))
    shape = (3, setting.image_size, setting.image_size)
    config = replace(_CONFIG, batch_size=setting.batch_size)
    products = sum(
        slot.num_vectors * slot.num_templates * block.size
        for cluster in ensemble.plan.superweight_clusters.values()
        for slot, block in zip(cluster.slots, cluster.blocks)
    )
    return {
        "flops": counter.get_total_flops(),
        "generation_products": products,
        "targets": sum(len(cluster.targets) for cluster in ensemble.plan.clusters),
        "peak_bytes": estimate_training(members, ensemble.plan, shape, config).peak_bytes,
    }


def median_seconds(job: Callable[[], T], seconds: float, most: int = 15) -> tuple[float, T]:
    """The median time of calls within some seconds (thrice as long for the first three), and the last answer."""
    found: list[float] = []
    while len(found) < most and (sum(found) < seconds or (len(found) < 3 and sum(found) < 3 * seconds)):
        begin = time.perf_counter()
        answer = job()
        found.append(time.perf_counter() - begin)
    return statistics.median(found), answer


def _network(setting: Setting) -> nn.Module:
    if setting.network == "mlp":
        return ResidualMLP(setting.targets // (2 * setting.members), setting.width, setting.image_size)
    return swe.wide_resnet(16, 1, 10)
