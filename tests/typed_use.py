"""What the README shows, as a program that is checked by types alone: no public name may answer ``Any``."""

# mypy: disallow-any-expr, disallow-any-decorated

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import superweight_ensembles as swe
from superweight_ensembles.anytime import Evaluation
from superweight_ensembles.data import ImageData
from superweight_ensembles.training import TrainProgress


def build() -> swe.SuperWeightEnsemble:
    members = {
        "wrn16-2": swe.wide_resnet(16, 2, num_classes=10),
        "r18": swe.build_member("timm/resnet18", num_classes=10),
        "mine": nn.Linear(4, 10),
    }
    plan = assert_type(swe.plan_sharing(members, budget=0.83, clusters={"all": ["*"]}), swe.SharingPlan)
    options = swe.plan.PlanOptions(bins=4, cap=8, coefficients="tied", budget_counts="templates")
    assert_type(swe.plan_sharing(members, budget=0.83, **options), swe.SharingPlan)
    swe.plan_sharing(members, budget=0.83, cap="eight")  # type: ignore[arg-type]
    swe.SuperWeightEnsemble(members, budget=0.83, cap="eight")  # type: ignore[arg-type]
    assert_type(swe.SharingPlan.from_json(plan.to_json()), swe.SharingPlan)
    assert_type(plan.num_parameters, int)
    assert_type(plan.member_names, tuple[str, ...])
    swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    return swe.SuperWeightEnsemble(members, budget=400_000, cap=4)


def use(ensemble: swe.SuperWeightEnsemble, folder: Path) -> None:
    assert_type(ensemble(torch.randn(8, 3, 32, 32)), Tensor)
    assert_type(ensemble.materialize("r18"), nn.Module)
    assert_type(ensemble.plan, swe.SharingPlan)
    assert_type(ensemble.bank, swe.ensemble.SuperWeightBank)
    assert_type(ensemble.num_parameters, int)
    assert_type(ensemble.to("cpu"), swe.SuperWeightEnsemble)
    ensemble.save(folder)
    assert_type(swe.SuperWeightEnsemble.load(folder), swe.SuperWeightEnsemble)
    assert_type(swe.SuperWeightEnsemble.from_pretrained("user/name"), swe.SuperWeightEnsemble)
    assert_type([target.name for target in swe.plan.find_targets(ensemble.materialize("r18"))], list[str])
    assert_type(swe.export_member(nn.Linear(4, 3), "a.onnx", format="onnx", input_shape=(4,)), Path)


def widths() -> nn.Module:
    network = swe.adaptive.make_adaptive(swe.wide_resnet(10, 1, 10), [("stages.*.conv1", "stages.*.conv2")])
    assert_type(swe.adaptive.resize_widths(network), dict[str, tuple[int, int]])
    assert_type({path: width.width for path, width in swe.adaptive.adaptive_widths(network).items()}, dict[str, int])
    loss = swe.adaptive.WidthLoss(prior_rate=0.1)
    assert_type(loss(swe.adaptive.adaptive_mlp(2, 3), num_samples=100), Tensor)
    swe.adaptive.freeze_widths(network)
    return swe.adaptive.truncate(network, fraction=0.5)


def look(progress: TrainProgress) -> None:
    assert_type(progress.epoch, int)


def train(ensemble: swe.SuperWeightEnsemble) -> Evaluation | None:
    data = assert_type(swe.load_data("digits", validation_fraction=0.2), ImageData)
    config = swe.TrainConfig(epochs=1, batch_size=64, schedule="one_cycle")
    try:
        result = swe.train(ensemble, data, config, hooks=[swe.search.Untying(epoch=1)], callback=look, out=Path("run"))
    except swe.TrainingStopped as stop:
        assert_type(stop.saved, bool)
        return None
    except swe.SuperWeightError:
        raise
    assert_type(result, swe.TrainResult)
    assert_type(result.best_epoch, int | None)
    swe.train(ensemble, [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))])
    method = swe.search.GradientSearch(threshold=0.1)
    assert_type(swe.search_sharing(ensemble, data.loader("train", 128), method=method).plan, swe.SharingPlan)
    found = swe.evaluate(ensemble, data.loader("test", 256))
    for subset in found.subsets:
        assert_type(subset.members, tuple[str, ...])
        assert_type(subset.metrics.accuracy, float)
        assert_type(subset.flops, int)
    assert_type(swe.anytime.member_costs(ensemble, (1, 8, 8))["r18"].flops, int)
    return found


def answer(ensemble: swe.SuperWeightEnsemble, data: ImageData, images: Tensor) -> None:
    predictor = swe.AnytimePredictor(ensemble, order=["wrn16-2", "r18"])
    for step in predictor.stream(images):
        assert_type(step.member, str)
        assert_type(step.probabilities, Tensor)
    calibration = predictor.calibrate(data.loader("validation", 64), flops=0.5)
    assert_type(calibration.overthinking, dict[str, float])
    found = predictor(images, deadline_ms=20)
    assert_type(found.skipped, tuple[str, ...])
    assert_type(found.probabilities, Tensor)
    assert_type(predictor.policy, swe.anytime.ExitPolicy | None)
    predictor.save("predictor")
    assert_type(swe.AnytimePredictor.load("predictor"), swe.AnytimePredictor)
    if predictor.policy is not None:
        assert_type(swe.export_cascade(predictor.modules, predictor.policy, "out", input_shape=(1, 8, 8)), Path)
