"""Calls with options that nobody takes are answered by the nearest word, and what takes them stays as it is."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError
from refusals import assert_refused

import superweight_ensembles as swe
from superweight_ensembles.anytime import ExitPolicy
from superweight_ensembles.data import Augmentation
from superweight_ensembles.errors import names_options, unknown_name
from superweight_ensembles.plan import SsnOptions
from superweight_ensembles.training import Execution, JointLoss, LearnedWidths

MEMBERS = {"a": swe.wide_resnet(10, 0.25, 4), "b": swe.wide_resnet(10, 0.5, 4)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swe.TrainConfig(epoch=3), "unknown option of TrainConfig 'epoch': did you mean 'epochs'"),
        (lambda: swe.TrainConfig(lr=0.1), "'lr': did you mean 'learning_rate'"),
        (lambda: swe.TrainConfig(bs=3), "'bs': did you mean 'batch_size'"),
        (lambda: swe.TrainConfig(wd=0.1), "'wd': did you mean 'weight_decay'"),
        (lambda: swe.TrainConfig(num_epochs=3), "'num_epochs': did you mean 'epochs'"),
        (lambda: swe.TrainConfig(optim="sgd"), "'optim': did you mean 'optimizer'"),
        (lambda: swe.TrainConfig(amp=True), "'amp': did you mean 'precision'"),
        (lambda: swe.TrainConfig(gradient_checkpointing=True), "did you mean 'recompute'"),
        (lambda: swe.TrainConfig(3), "too many positional arguments: write options by name, such as epochs="),
        (
            lambda: swe.plan_sharing({}, 0.9, bins=2),
            "too many positional arguments: write options by name, such as budget=",
        ),
        (lambda: replace(swe.TrainConfig(), epoch=3), "'epoch': did you mean 'epochs'"),
        (lambda: swe.TrainConfig(device="cuda:1"), "device: 'cuda:1': write 'cuda', and CUDA_VISIBLE_DEVICES=1"),
        (lambda: swe.TrainConfig(device="mps"), "unknown device 'mps': did you mean 'cpu'"),
        (lambda: swe.TrainConfig(precision="bf16-mixed"), "did you mean 'bfloat16'"),
        (lambda: swe.TrainConfig(precision="fp32"), "did you mean 'float32'"),
        (lambda: swe.TrainConfig(precision="16-mixed"), "did you mean '(b?float16)'"),
        (lambda: swe.TrainConfig(milestones=3), r"milestones must be a list \(got 3\)"),
        (
            lambda: swe.TrainConfig(milestones=(1.5,), schedule="step"),
            r"milestones\.0 must be a whole number \(got 1\.5\)",
        ),
        (lambda: Augmentation(hflip=True), "unknown option of Augmentation 'hflip': did you mean 'flip'"),
        (lambda: swe.adaptive.AdaptiveWidth(rat=1), "unknown option of AdaptiveWidth 'rat': did you mean 'rate'"),
        (lambda: swe.adaptive.WidthLoss(prior=1), "unknown option of WidthLoss 'prior': did you mean 'prior_rate'"),
        (lambda: swe.adaptive.make_adaptive(MEMBERS["a"], pair=[]), "unknown option of make_adaptive 'pair'"),
        (lambda: swe.Distillation("ensemble", wieght=1), "unknown option of Distillation 'wieght': did you mean"),
        (lambda: swe.Distillation("ensemble"), "Distillation: missing a required argument: 'weight'"),
        (lambda: ExitPolicy(order=("a",), temperature=1), "unknown option of ExitPolicy 'temperature': did you mean"),
        (lambda: Execution(micro_batch=2), "unknown option of Execution 'micro_batch': did you mean 'micro_batches'"),
        (lambda: JointLoss(penalties=1), "unknown option of JointLoss 'penalties': did you mean 'penalty'"),
        (lambda: LearnedWidths(los=None), "unknown option of LearnedWidths 'los'"),
        (lambda: SsnOptions(combin="avg"), "unknown option of SsnOptions 'combin': did you mean 'combine'"),
        (lambda: swe.search.Untying(epochs=3), "unknown option of Untying 'epochs': did you mean 'epoch'"),
        (lambda: swe.search.KMeansSearch(), "KMeansSearch: missing a required argument: 'num_groups'"),
        (lambda: swe.SuperWeightEnsemble(MEMBERS, budgte=0.5), "unknown plan option 'budgte': did you mean 'budget'"),
        (lambda: swe.plan.plan_sharing(MEMBERS, budgte=0.5), "'budgte': did you mean 'budget'"),
        (lambda: swe.plan.plan_sharing(MEMBERS, budget=0.9, cluster="one"), "'cluster': did you mean 'clusters'"),
        (lambda: swe.train(None, None, callbak=3), "unknown option of train 'callbak': did you mean 'callback'"),
        (lambda: swe.AnytimePredictor(MEMBERS, odrer="cost"), "'odrer': did you mean 'order'"),
        (
            lambda: swe.load_data("image_folder", root="x"),
            "option of image_folder 'root': did you mean 'folder'",
        ),
        (lambda: swe.build_member("wide_resnet", num_classes=4, depht=10), "'depht': did you mean 'depth'"),
        (lambda: swe.build_member("timm/resnet18", num_classes=4, stem_widht=4), "did you mean 'stem_width'"),
        (lambda: swe.build_member("timm/resnet18", classes=4), "'classes': did you mean 'num_classes'"),
    ],
)
def test_unknown_options_are_answered_by_the_nearest(call, message: str) -> None:
    assert_refused(message, call)


def test_what_takes_options_stays_as_it_is() -> None:
    config = swe.TrainConfig(epochs=3, schedule="step", milestones=[2])
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == replace(config, epochs=3)
    assert TypeAdapter(swe.TrainConfig).validate_python({"epochs": 3, "schedule": "step", "milestones": [2]}) == config
    assert list(inspect.signature(swe.TrainConfig).parameters)[:2] == ["epochs", "batch_size"]
    assert not hasattr(config, "__dict__") and hash(config) == hash(replace(config))
    assert "ensemble" in inspect.signature(swe.train).parameters


def test_a_type_error_of_the_code_itself_stays_one() -> None:
    class Odd(swe.adaptive.WidthLoss):
        def __post_init__(self) -> None:
            raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        Odd(prior_rate=0.5)


def test_a_word_of_others_is_no_word_of_ours() -> None:
    assert "did you mean 'rate'" not in str(unknown_name("key", "lr", ["rate", "width"]))


def test_distillation_of_weight_zero_is_none() -> None:
    data, answers = swe.load_data("synthetic", num_train=96), []
    for hooks in ((), (swe.Distillation("ensemble", weight=0),)):
        members = {name: copy.deepcopy(member) for name, member in MEMBERS.items()}
        ensemble = swe.SuperWeightEnsemble({"a": members["a"]}, budget=0.9)  # one member has no mean to learn from
        answers.append(swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=32), hooks=hooks).history)
    assert answers[0][0]["train_loss"].keys() == answers[1][0]["train_loss"].keys()


def test_what_a_call_raises_inside_is_not_taken_for_its_options() -> None:
    def objective(member, inputs, targets):
        return TypeAdapter(int).validate_python("of the user's own")

    @names_options
    def call(*, of) -> object:
        return of(None, None, None)

    with pytest.raises(ValidationError, match="valid integer"):
        call(of=objective)
