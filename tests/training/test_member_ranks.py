"""Trainings whose members run on several member ranks: what they learn is what one process would have them learn."""

import dataclasses
import os
import signal

import pytest
import torch
import two_processes
from torch import nn
from torch.testing import assert_close
from training_cases import refused

import superweight_ensembles as swe
from superweight_ensembles.models.adaptive import WidthLoss, adaptive_widths, make_adaptive
from superweight_ensembles.search import Untying
from superweight_ensembles.training import LearnedWidths, build_fabric
from superweight_ensembles.training.distributed import (
    Processes,
    build_mesh,
    check_mesh,
    chosen_ranks,
    current_processes,
    placed,
)

CONFIG = swe.TrainConfig(
    epochs=2, batch_size=12, learning_rate=0.05, precision="float32", device="cpu", schedule="constant",
    weight_decay=1e-3,
)  # fmt: skip
NAMES = ("a", "b", "c", "d")


def network(width, depth):
    """With batch norm, a bias of its own, and a layer that no member of another width has."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def networks():
    torch.manual_seed(5)
    return dict(zip(NAMES, (network(4, 1), network(6, 2), network(4, 3), network(6, 1))))


def ensemble(dtype=torch.float64, members=None, **options):
    members = networks() if members is None else members
    rng = torch.Generator().manual_seed(9)
    return swe.SuperWeightEnsemble(members, budget=0.9, rng=rng, **options).to(dtype)


class Rows:
    """Three batches in float64; of each, the rows of one data rank, more of them for the last."""

    def __init__(self, rows, bad=None):
        data = swe.load_data("synthetic", num_train=48)
        rank, size = rows
        bounds = [0, *(12 * (index + 1) // size - (index + 1 < size) for index in range(size))]
        part = slice(bounds[rank], bounds[rank + 1])
        self.batches = [
            (images.double()[part], labels[part]) for images, labels in data.loader("train", 12, drop_last=True)
        ]
        if bad is not None and rank == 0:
            self.batches[bad][0][0, 0, 0, 0] = torch.nan

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from self.batches


def plain(mesh, rows, hooks=(), bad=None, **changes):
    trained = ensemble(coefficients="tied", reserve_untied=True) if hooks == ["untying"] else ensemble()
    return outcome(trained, Rows(rows, bad), mesh, hooks, validation=Rows(rows), **changes)


def on_images(mesh, rows, hooks=(), **changes):
    """In float32, as ImageData is."""
    return outcome(ensemble(torch.float32), swe.load_data("synthetic", num_train=36), mesh, hooks, **changes)


def widths(mesh, rows):
    nets = {}
    torch.manual_seed(0)
    for name in NAMES:
        nets[name] = swe.wide_resnet(10, 0.5, 4)
        make_adaptive(nets[name], [("stages.*.conv1", "stages.*.conv2")])
    free = swe.SuperWeightEnsemble(nets, plan=swe.independent_plan(nets))
    found = outcome(
        free, swe.load_data("synthetic", num_train=36), mesh,
        [LearnedWidths(WidthLoss(prior_rate=1.0, prior_deviation=0.05))], epochs=3, learning_rate=0.02,
    )  # fmt: skip
    sizes = [width.width for name in NAMES for width in adaptive_widths(free.members[name]).values()]
    return {**found, "sizes": torch.tensor(sizes)}


class Thaw(swe.Hook):
    """The bank is trained from the second epoch on."""

    def start(self, state):
        state.ensemble.bank.requires_grad_(False)

    def after_epoch(self, state):
        state.ensemble.bank.requires_grad_(True)
        return {}


class Remembering(nn.Module):
    """Keeps the mean of all batches so far in a buffer that is made in the first call, and a table that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("table", None, persistent=False)

    def forward(self, images):
        if self.training:
            self.seen = torch.cat([self.seen, images.detach().mean()[None]])
        self.table = torch.arange(len(images) * (1 + len(self.seen)))
        return images


def remembering(mesh, rows):
    members = networks()
    for name in ("a", "b", "c"):
        members[name].insert(0, Remembering())
    return outcome(ensemble(members=members), Rows(rows), mesh, validation=Rows(rows))


class Viewing(nn.Module):
    """The mean over pixels, by a view that channels-last memory does not have."""

    def forward(self, images):
        return images.view(len(images), -1).view(*images.shape[:2], -1).mean(2)


def viewing(mesh, rows):
    """Nothing is validated, which would find it before the first step."""
    members = networks()
    members["a"][-3] = Viewing()
    return outcome(ensemble(members=members), Rows(rows), mesh, hooks=["ensemble"])


HOOKS = {
    "thaw": Thaw,
    "untying": lambda: Untying(epoch=1, threshold=0.5),
    "averaged": lambda: swe.AveragedWeights(start=0.3),
    **{
        teacher: lambda teacher=teacher: swe.Distillation(teacher, weight=0.5)
        for teacher in ("ensemble", "others", "prefixes", "history")
    },
}


def outcome(trained, data, mesh, hooks=(), **changes):
    validation = changes.pop("validation", None)
    config = dataclasses.replace(CONFIG, mesh=mesh, **changes)
    made = [HOOKS[hook]() if isinstance(hook, str) else hook for hook in hooks]
    history = swe.train(trained, data, config, validation=validation, hooks=made).history
    validated = [one["validation"]["ensemble"]["nll"] for one in history if one["validation"]]
    return {
        "losses": torch.tensor([list(one["train_loss"].values()) for one in history], dtype=torch.float64),
        "validation": torch.tensor(validated, dtype=torch.float64),
        "skipped": sum(one["skipped_steps"] for one in history),
        "state": {name: value.double() for name, value in trained.state_dict().items()},
        "plan": trained.plan.fingerprint,
    }


FEW = {
    "sgd": lambda *job: plain(*job),
    "clipped": lambda *job: plain(*job, clip_norm=0.05),
    "bad step": lambda *job: plain(*job, bad=1, skip_non_finite=2),
    "their mean": lambda *job: plain(*job, hooks=["ensemble"]),
    "sharded": lambda *job: plain(*job, shard_moments=True),
}
EXACT = {
    **FEW,
    "adamw": lambda *job: plain(*job, optimizer="adamw", learning_rate=0.01),
    "complementing": lambda *job: plain(*job, ensemble_loss=0.5),
    "the others": lambda *job: plain(*job, hooks=["others"]),
    "prefixes": lambda *job: plain(*job, hooks=["prefixes"]),
    "averaged": lambda *job: plain(*job, hooks=["averaged"]),
    "adamw, sharded": lambda *job: plain(*job, optimizer="adamw", learning_rate=0.01, shard_moments=True),
    "thawed": lambda *job: plain(*job, hooks=["thaw"], optimizer="adamw", learning_rate=0.01),
    "buffers that grow": remembering,
    "taught, not channels-last": viewing,
    "untied, sharded": lambda *job: plain(*job, hooks=["untying"], epochs=3, shard_moments=True),
    "untied": lambda *job: plain(*job, hooks=["untying"], epochs=3),
}
ROUNDED = {
    "own batches": lambda *job: on_images(*job, member_batches="own"),
    "history": lambda *job: on_images(*job, hooks=["history"]),
    "history of own batches": lambda *job: on_images(*job, hooks=["history"], member_batches="own"),
    "widths": widths,
}


def trained_in(folder, mesh, rows, *, stop=False, resume=False):
    """Two epochs with moments to remember; stopped after the first step of the second, or resumed from there."""

    def look(progress):
        if stop and (progress.epoch, progress.step) == (2, 1) and progress.record is None:
            os.kill(os.getpid(), signal.SIGTERM)

    sharded = not stop and isinstance(mesh, dict)  # a checkpoint does not depend on it
    config = dataclasses.replace(CONFIG, mesh=mesh, optimizer="adamw", learning_rate=0.01, shard_moments=sharded)
    trained = ensemble()
    try:
        swe.train(trained, Rows(rows), config, hooks=[HOOKS["averaged"]()], out=folder, resume=resume, callback=look)
    except swe.errors.TrainingStopped as stopped:
        return str(stopped)
    return {name: value.double() for name, value in trained.state_dict().items()}


def sharing_norms():
    """Two members with one norm between them."""
    trained = ensemble()
    trained.members["c"][1] = trained.members["a"][1]
    return trained


class Extra(nn.Identity):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def with_extra_state():
    members = networks()
    members["b"].append(Extra())
    return ensemble(members=members)


def broken():
    """A bias of the first member is no number, which its member rank alone can see."""
    trained = ensemble()
    with torch.no_grad():
        trained.members["a"][-1].bias[0] = torch.nan
    return trained


MADE = {"sharing norms": sharing_norms, "extra state": with_extra_state, "broken": broken}
REFUSED = [
    ({"mesh": {"members": 2, "rows": 2}}, "2 member ranks and 2 of rows is for 4 processes, and the job has 2"),
    ({"mesh": {"members": 2, "rows": 1}, "members": ["b"]}, "2 member ranks needs as many members, and 1 are trained"),
    ({"mesh": {"members": 2, "rows": 1}, "optimizer": "lamb"}, "'lamb' clips by the norm of all gradients"),
    ({"mesh": {"members": 2, "rows": 1}, "precision": "float16"}, "precision 'float16' scales"),
    (
        {"mesh": {"members": 2, "rows": 1}, "make": "sharing norms"},
        "members 'a' and 'c' share a tensor outside of the bank, 1.weight",
    ),
    ({"mesh": {"members": 2, "rows": 1}, "make": "extra state"}, "member 'b' keeps 12._extra_state, no tensor"),
    ({"mesh": {"members": 2, "rows": 1}, "optimizer": "clamb"}, "'clamb' clips by the norm of all gradients"),
    (
        {"mesh": {"members": 2, "rows": 1}, "make": "broken", "ensemble_loss": 0.5},
        "weights were not finite before the step",
    ),
    # before anything is made of the members
    ({"mesh": {"members": 2, "rows": 1}, "optimizer": "lamb", "micro_batches": "auto"}, "'auto' works in one process"),
    ({"mesh": {"members": 2, "rows": 1}, "halves": True}, "the job disagree on the first batch (of 2 processes, those"),
]


class Kept(swe.Hook):
    """Names the parameters for which the optimizer keeps something here."""

    watches = True

    def after_step(self, state, scalars):
        self.names = {name for name, one in state.ensemble.named_parameters() if state.optimizer.state.get(one)}


def kept(**changes):
    trained, hook = ensemble(), Kept()
    config = dataclasses.replace(CONFIG, epochs=1, **changes)
    swe.train(trained, Rows((0, 1)), config, hooks=[hook])
    return sorted(hook.names)


def refusal(mesh, members=None, make="", halves=False, **changes):
    trained = MADE.get(make, ensemble)()
    data = Rows((current_processes().rank, 2) if halves else (0, 1))
    try:
        config = dataclasses.replace(CONFIG, mesh=mesh, **changes)
        swe.train(trained if changes.get("precision") != "float16" else trained.float(), data, config, members=members)
    except swe.SuperWeightError as error:
        return str(error)
    return "taken"


def rows_of(mesh):
    return current_processes().rank % mesh["rows"], mesh["rows"]


def job_of_two(rank, folder):
    build_fabric(CONFIG)
    mesh, whole = {"members": 2, "rows": 1}, (0, 1)
    found = {name: case(mesh, whole) for name, case in (EXACT | ROUNDED).items()}
    found["auto"] = on_images("auto", None)
    found["refused"] = [refusal(**given) for given, _ in REFUSED]
    found["kept"] = [kept(mesh=mesh, shard_moments=sharded) for sharded in (False, True)]
    found["stopped"] = trained_in(folder / "by members", mesh, whole, stop=True)
    trained_in(folder / "by rows", "rows", (rank, 2), stop=True)
    found["resumed"] = [trained_in(folder / name, mesh, whole, resume=True) for name in ("by one", "by rows")]
    return found


def job_of_four(rank, folder):
    build_fabric(CONFIG)
    return {f"{members}x{4 // members}": few({"members": members, "rows": 4 // members}) for members in (1, 2, 4)}


def job_of_eight(rank, folder):
    build_fabric(CONFIG)
    return {"2x4": few({"members": 2, "rows": 4})}


def few(mesh):
    return {name: case(mesh, rows_of(mesh)) for name, case in FEW.items()}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert "after step 1 of epoch 2" in trained_in(folder / "by one", "rows", (0, 1), stop=True)
    answers = two_processes.run(job_of_two, folder)
    return folder, answers


@pytest.fixture(scope="module")
def of_one():
    return {name: case("rows", (0, 1)) for name, case in (EXACT | ROUNDED).items()}


def assert_as_one(found, one, rtol, atol):
    for key in ("losses", "validation"):
        assert_close(found[key], one[key], rtol=rtol, atol=0)
    assert (found["skipped"], found["plan"]) == (one["skipped"], one["plan"])
    assert found["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        assert_close(found["state"][name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", EXACT)
def test_two_member_ranks_learn_what_one_process_does(of_two, of_one, case):
    for answer in of_two[1]:
        assert_as_one(answer[case], of_one[case], rtol=1e-9, atol=1e-11)
    assert of_one["bad step"]["skipped"] == 2 and of_one["untied"]["plan"] != of_one["sgd"]["plan"]


@pytest.mark.parametrize("case", ROUNDED)
def test_two_member_ranks_learn_in_float32_what_one_process_does(of_two, of_one, case):
    for answer in of_two[1]:
        assert_as_one(answer[case], of_one[case], rtol=2e-3, atol=2e-3)
    sizes = of_one["widths"]["sizes"]
    assert all(torch.equal(answer["widths"]["sizes"], sizes) for answer in of_two[1]) and int(sizes.min()) < 8


def test_what_the_optimizer_keeps_is_divided(of_two):
    every = {name for name, one in ensemble().named_parameters() if one.requires_grad}
    bank = {name for name in every if name.startswith("bank.")}
    whole, sharded = ([set(answer["kept"][place]) for answer in of_two[1]] for place in (0, 1))
    assert whole[0] & whole[1] == bank and whole[0] | whole[1] == every
    assert sharded[0] & sharded[1] == set() and sharded[0] | sharded[1] == every
    assert all(own & bank and own - bank for own in sharded)


def test_auto_takes_a_mesh_by_the_members_times(of_two):
    one = on_images("rows", None)
    for answer in of_two[1]:
        assert_as_one(answer["auto"], one, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("job", "count"), [(job_of_four, 4), (job_of_eight, 8)])
def test_meshes_of_rows_and_members_learn_what_one_process_does(tmp_path, of_one, job, count):
    for answer in two_processes.run(job, tmp_path, count=count):
        for mesh, cases in answer.items():
            for name, found in cases.items():
                if name == "bad step":  # noted of the mesh's first rows alone
                    assert found["skipped"] == of_one[name]["skipped"], mesh
                assert_as_one(found, of_one[name], rtol=1e-9, atol=1e-11)


def test_a_checkpoint_is_resumed_on_any_mesh(of_two, tmp_path):
    folder, answers = of_two
    whole = trained_in(tmp_path / "whole", "rows", (0, 1))
    told = {answer["stopped"] for answer in answers}
    assert len(told) == 1 and "stopped by SIGTERM after step 2 of epoch 2" in told.pop()  # all have heard of it by then
    by_one = trained_in(folder / "by members", "rows", (0, 1), resume=True)
    for found in (by_one, *(state for answer in answers for state in answer["resumed"])):
        for name, value in whole.items():
            assert_close(found[name], value, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_meshes_that_are_refused(of_two):
    for answer in of_two[1]:
        for told, (_, message) in zip(answer["refused"], REFUSED, strict=True):
            assert message in told
    with refused("is for 2 processes, and the job has 1: start it by torchrun"):
        swe.train(ensemble(), Rows((0, 1)), dataclasses.replace(CONFIG, mesh={"members": 2, "rows": 1}))


def test_members_go_to_ranks_by_their_costs():
    assert placed({"a": 1, "b": 5, "c": 3, "d": 2}, 2) == (("a", "b"), ("c", "d"))
    assert placed({"a": 1, "b": 1}, 1) == (("a", "b"),)
    even = dict.fromkeys("abcd", 1.0)
    assert [chosen_ranks(even, size, True) for size in (1, 2, 3, 4, 6, 8)] == [1, 2, 1, 4, 2, 4]
    assert chosen_ranks({"a": 9.0, "b": 1.0}, 2, True) == 1, "one rank would wait for the other"
    assert chosen_ranks({"a": 1.2, "b": 1.0}, 2, True) == 2
    mesh = build_mesh(Processes(), [NAMES])
    assert (mesh.members, mesh.is_split, mesh.source_of("c")) == (NAMES, False, 0)
    check_mesh("auto", 1, 1)
    check_mesh({"members": 1, "rows": 1}, 1, 1)
