"""Two processes against one: sums, messages, batch norm, gradients, plans, and the loss of a process."""

import os
import signal
import socket
import threading
import time
from datetime import timedelta
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
import two_processes
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from training_cases import refused

import superweight_ensembles as swe
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.search import weight_gradients
from superweight_ensembles.training import build_fabric, joint_backward, recomputing, repeated_blocks
from superweight_ensembles.training.distributed import Processes, current_processes, exchanged_, launch_of, synchronised
from superweight_ensembles.training.distributed import launch as joining

CONFIG = swe.TrainConfig(epochs=1, batch_size=32, precision="float32", device="cpu")
SHARES = (slice(0, 2), slice(2, 7))
SHAPES = {"2d": (7, 4), "3d": (7, 4, 5), "4d": (7, 4, 5, 3), "5d": (7, 4, 3, 2, 2)}


def refusal(function, *args):
    """The text of the error that a call ends with."""
    try:
        function(*args)
    except SuperWeightError as error:
        return str(error)
    return None


def fail(error):
    raise error


# What one process of the two does. Everything here comes back to the tests below as tensors and plain values.


def everything(rank, folder):
    fabric = build_fabric(CONFIG)
    processes = current_processes()
    found = {"messages": messages(rank, processes, folder), "sums": sums(rank, processes)}
    found["fabric"] = fabric_again(rank)
    found["norm"] = {name: normalised(SHAPES[name], SHARES[rank], processes) for name in SHAPES}
    found["options"] = norm_options(SHARES[rank], processes)
    found["models"] = {name: model_gradients(name, SHARES[rank], processes) for name in MODELS}
    found["joint"] = joint(rank, processes)
    found["search"] = search(rank, processes)
    assert fabric.device == torch.device("cpu")
    return found


def messages(rank, processes, folder):
    def write():
        (folder / "written").open("x").write(str(rank))
        return [rank, "written"]

    return {
        "place": [processes.rank, processes.size, processes.is_first, list(processes.shard)],
        "any": [processes.any(False), processes.any(rank == 1), processes.any(True)],
        "objects": processes.gather_objects({"rank": rank, "text": "ä" * rank}),
        "same": refusal(processes.assert_equal_across_ranks, {"epochs": 3, "seed": 4}, "the config"),
        "apart": refusal(processes.assert_equal_across_ranks, {"epochs": 3, "seed": rank}, "the config"),
        "first": processes.on_rank_zero(write),
        "first nothing": processes.on_rank_zero(lambda: None),
        "first refuses": refusal(processes.on_rank_zero, lambda: fail(SuperWeightError("the folder is taken"))),
        "first disk": refusal(processes.on_rank_zero, lambda: fail(OSError(28, "No space left on device"))),
        "first bug": first_bug(processes),
        "current": processes is current_processes(),
    }


def first_bug(processes):
    try:
        processes.on_rank_zero(lambda: fail(ZeroDivisionError("a bug")))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def sums(rank, processes):
    torch.manual_seed(rank)
    formats = (torch.contiguous_format, torch.channels_last)  # of one tensor, another on each process
    given = [
        torch.randn(3, 4, 5, 5).contiguous(memory_format=formats[rank]),
        torch.randn(6, 4).t(),
        torch.randn(5, dtype=torch.float64),
        torch.tensor(1.0 + rank),
        torch.randn(7).bfloat16(),
        torch.zeros(0),
        torch.randn(40)[::2],
        torch.arange(3) + rank,
    ]
    kept = [tensor.clone(memory_format=torch.preserve_format) for tensor in given]
    before = processes.bytes_exchanged
    processes.all_reduce_(given)
    payload = processes.bytes_exchanged - before
    strides = all(one.stride() == other.stride() for one, other in zip(given[:3], kept[:3]))
    small = [tensor.clone() for tensor in kept]
    exchanged_(small, partial(dist.all_reduce, async_op=True), bucket_bytes=64)
    firsts = [tensor.clone() for tensor in kept]
    processes.broadcast_(firsts)
    return {
        "given": kept,
        "sums": given,
        "small": small,
        "firsts": firsts,
        "payload": payload,
        "strides": strides,
        "sparse": refusal(processes.all_reduce_, [torch.zeros(3).to_sparse()]),
    }


def fabric_again(rank):
    """Built several times, as a run does; backward and autocast without modules that were set up."""
    fabric = build_fabric(swe.TrainConfig(epochs=1, precision="bfloat16", device="cpu"))
    weight = torch.ones(3, 3, requires_grad=True)
    with fabric.autocast():
        product = weight @ torch.ones(3, 3)
        fabric.backward(product.float().sum())
    return [str(product.dtype), fabric.world_size, fabric.global_rank, weight.grad.sum().item()]


def norm_case(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3 for _ in range(2))
    format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return images.to(dtype).contiguous(memory_format=format), gradient.to(dtype)


def norm_layer(shape, **options):
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    made = layer(shape[1], dtype=torch.float64, **options)
    if made.affine:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.rand(shape[1], generator=generator))
    return made


def norm_step(layer, images, gradient):
    """Output, gradient of the images, those of the parameters, and the buffers, after two steps."""
    for _ in range(2):
        leaf = images.detach().requires_grad_()
        out = layer(leaf)
        layer.zero_grad()
        (out * gradient).sum().backward()
    of_parameters = [parameter.grad for parameter in layer.parameters()]
    return out.detach(), leaf.grad, of_parameters, [buffer.double() for buffer in layer.buffers()]


def normalised(shape, rows, processes):
    images, gradient = norm_case(shape)
    with synchronised(processes):
        found = norm_step(norm_layer(shape), images[rows], gradient[rows])
    processes.all_reduce_(found[2])
    return found


OPTIONS = {
    "no affine": {"affine": False},
    "no buffers": {"track_running_stats": False},
    "average": {"momentum": None},
    "other": {"momentum": 0.7, "eps": 0.3},
}


def norm_options(rows, processes):
    images, gradient = norm_case(SHAPES["4d"])
    found = {}
    with synchronised(processes):
        for name, options in OPTIONS.items():
            found[name] = norm_step(norm_layer(SHAPES["4d"], **options), images[rows], gradient[rows])
            processes.all_reduce_(found[name][2])
        evaluating = norm_layer(SHAPES["4d"]).eval()
        before = processes.bytes_exchanged
        found["eval"] = norm_step(evaluating, images[rows], gradient[rows])
        found["eval bytes"] = processes.bytes_exchanged - before
        images, gradient = norm_case(SHAPES["4d"], torch.bfloat16)
        found["bfloat16"] = norm_step(norm_layer(SHAPES["4d"]).float(), images[rows], gradient[rows])
        laid = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in found["bfloat16"][:2]]
        found["channels last"] = laid
        one = rows if rows.start == 0 else slice(0, 0)  # a process without any row
        some = norm_step(norm_layer((2, 4)), *(tensor[one].double()[..., 0, 0] for tensor in (images, gradient)))
        found["no rows"] = some[3]
        single = slice(0, 1) if rows.start == 0 else slice(0, 0)
        try:
            norm_layer((1, 4))(torch.ones(1, 4, dtype=torch.float64)[single])
        except ValueError as error:
            found["one value"] = str(error)
        # Its own call, as a network in an old TorchScript style has it.
        mean, variance = torch.zeros(4), torch.ones(4)
        native = torch.batch_norm(images[rows].float(), None, None, mean, variance, True, 0.5, 1e-5, False)
        found["native"] = [native, mean, variance]
    return found


MODELS = {
    "torchvision": lambda: torchvision.models.resnet18(num_classes=4),
    "timm": lambda: timm.create_model("mobilenetv3_small_050", num_classes=4),
    "recomputed": lambda: torchvision.models.resnet18(num_classes=4),
}


def model_gradients(name, rows, processes=None):
    """Gradients, by one process where ``processes`` is None, and buffers, in float64."""
    torch.manual_seed(3)
    model = MODELS[name]().double().train()
    images, labels = torch.randn(7, 3, 32, 32, dtype=torch.float64), torch.arange(7) % 4
    blocks = repeated_blocks(model) if name == "recomputed" else ()
    with synchronised(processes or Processes()), recomputing(blocks):
        loss = F.cross_entropy(model(images[rows]), labels[rows], reduction="sum") / 7
        # In another thread, as on CUDA: there the context of this one is not in force.
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    gradients = [parameter.grad for parameter in model.parameters()]
    if processes is not None:
        processes.all_reduce_(gradients)
    return gradients, [buffer.double() for buffer in model.buffers()]


def small_ensemble():
    torch.manual_seed(5)
    members = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(16, 1, 4)}
    plan = swe.plan_sharing(members, budget=0.9, coefficients="tied", reserve_untied=True)
    return swe.SuperWeightEnsemble(members, plan=plan)


def joint(rank, processes):
    """Three steps of SGD on a global batch of 7; with one process the whole of it."""
    ensemble = small_ensemble().double()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1, momentum=0.9)
    data = swe.load_data("synthetic")
    loader = data.loader("train", 7, shuffle=True, augmentation=None, shard=processes.shard)
    losses = []
    for (images, labels), _ in zip(loader, range(3)):
        optimizer.zero_grad()
        with synchronised(processes):
            found = joint_backward(
                ensemble,
                images.double(),
                labels,
                lambda logits, truth: F.cross_entropy(logits, truth, reduction="sum") / 7,
            )
        processes.all_reduce_([parameter.grad for parameter in ensemble.parameters() if parameter.grad is not None])
        every = torch.stack(list(found.values()))
        processes.all_reduce_([every])
        losses.append(every)
        optimizer.step()
    return torch.stack(losses), [value.double() for value in ensemble.state_dict().values()]


def trained(data):
    ensemble = small_ensemble()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.05)
    for (images, labels), _ in zip(data.loader("train", 32, shuffle=True), range(5)):
        optimizer.zero_grad()
        joint_backward(ensemble, images, labels, F.cross_entropy)
        optimizer.step()
    return ensemble


def search(rank, processes):
    data = swe.load_data("synthetic")
    ensemble = trained(data)
    loader = data.loader("train", 33, shard=processes.shard)
    gradients = weight_gradients(ensemble, loader)
    found = {
        "gradients": {".".join(target): gradient for target, gradient in gradients.items()},
        "plan": swe.search_sharing(ensemble, loader).plan.fingerprint,
        "untied": swe.search.untie_coefficients(ensemble, loader, threshold=0.5).fingerprint,
        "no samples": refusal(weight_gradients, ensemble, []),
    }
    if processes.size > 1:
        method = swe.search.GradientSearch(threshold=-1.0 if rank else 1.0)
        found["apart"] = refusal(lambda: swe.search_sharing(ensemble, loader, method=method))
    return found


# Against one process.


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return two_processes.run(everything, tmp_path_factory.mktemp("everything"))


def test_processes_tell_each_other(answers):
    said = [found["messages"] for found in answers]
    assert [found["place"] for found in said] == [[0, 2, True, [0, 2]], [1, 2, False, [1, 2]]]
    for found in said:
        assert found["any"] == [False, True, True]
        assert found["objects"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ä"}]
        assert found["same"] is None
        assert "disagree on the config: process 0 has" in found["apart"]
        assert '"seed": 0' in found["apart"] and '"seed": 1' in found["apart"]
        assert found["first"] == [0, "written"], "of the first process, and by it alone"
        assert found["first nothing"] is None
        assert found["first refuses"] == "the folder is taken"
        assert "No space left on device" in found["first disk"]
        assert found["current"]
    assert said[0]["first bug"] == "ZeroDivisionError: a bug"
    assert said[1]["first bug"] == "SuperWeightError: the first process failed: ZeroDivisionError: a bug"


def test_sums_are_those_of_all_processes_and_keep_their_layout(answers):
    zero, one = (found["sums"] for found in answers)
    expected = [first + second for first, second in zip(zero["given"], one["given"])]
    for found in (zero, one):
        for kind in ("sums", "small"):
            for tensor, wanted in zip(found[kind], expected):
                assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)
        assert all(torch.equal(tensor, first) for tensor, first in zip(found["firsts"], zero["given"]))
        assert found["strides"]
        assert found["payload"] == 4 * (300 + 24 + 1 + 20) + 8 * (5 + 3) + 2 * 7
        assert "gradients of several processes must be dense; got torch.sparse_coo (3,)" in found["sparse"]


def test_fabric_joins_once_and_works_without_modules_set_up(answers):
    assert [found["fabric"] for found in answers] == [["torch.bfloat16", 2, rank, 3.0 * 9] for rank in (0, 1)]


def assert_parts(answers, whole, **tolerance):
    """Outputs and gradients of the rows of each process, and what all have alike, are those of one process."""
    for found, rows in zip(answers, SHARES):
        out, of_images, of_parameters, buffers = found
        assert_close(out, whole[0][rows], **tolerance)
        assert_close(of_images, whole[1][rows], **tolerance)
        assert_close(of_parameters, whole[2], **tolerance)
        assert_close(buffers, whole[3], **tolerance)


EXACT = {"atol": 1e-10, "rtol": 1e-10}


@pytest.mark.parametrize("name", SHAPES)
def test_batch_norm_is_that_of_one_process(name, answers):
    whole = norm_step(norm_layer(SHAPES[name]), *norm_case(SHAPES[name]))
    assert_parts([found["norm"][name] for found in answers], whole, **EXACT)


@pytest.mark.parametrize("name", OPTIONS)
def test_batch_norm_of_any_options_is_that_of_one_process(name, answers):
    whole = norm_step(norm_layer(SHAPES["4d"], **OPTIONS[name]), *norm_case(SHAPES["4d"]))
    assert_parts([found["options"][name] for found in answers], whole, **EXACT)


def test_batch_norm_in_bfloat16_has_statistics_in_float32(answers):
    images, gradient = norm_case(SHAPES["4d"], torch.bfloat16)
    whole = norm_step(norm_layer(SHAPES["4d"]).float(), images, gradient)
    parts = [found["options"]["bfloat16"] for found in answers]
    assert {part[0].dtype for part in parts} == {part[1].dtype for part in parts} == {torch.bfloat16}
    assert all(found["options"]["channels last"] == [True, True] for found in answers)
    for part, rows in zip(parts, SHARES):
        assert_close(part[0], whole[0][rows], atol=0.02, rtol=0.01)
        assert_close(part[1], whole[1][rows], atol=0.02, rtol=0.01)
        assert_close(part[3], whole[3], atol=1e-6, rtol=1e-6)


def test_batch_norm_at_its_edges(answers):
    images, gradient = norm_case(SHAPES["4d"])
    evaluated = norm_step(norm_layer(SHAPES["4d"]).eval(), images, gradient)
    bfloat16, _ = norm_case(SHAPES["4d"], torch.bfloat16)
    first_two = norm_step(norm_layer((2, 4)), *(tensor.double()[:2, :, 0, 0] for tensor in (bfloat16, bfloat16)))
    mean, variance = torch.zeros(4), torch.ones(4)
    native = torch.batch_norm(bfloat16.float(), None, None, mean, variance, True, 0.5, 1e-5, False)
    for found, rows in zip(answers, SHARES):
        options = found["options"]
        assert options["eval bytes"] == 0
        assert torch.equal(options["eval"][0], evaluated[0][rows])
        assert_close(options["no rows"], first_two[3], **EXACT)
        assert_close(options["native"], [native[rows], mean, variance], atol=1e-5, rtol=1e-5)
    assert "Expected more than 1 value per channel" in answers[1]["options"]["one value"]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_buffers_of_whole_networks_are_those_of_one_process(name, answers):
    whole = model_gradients(name, slice(0, 7))
    for found in answers:
        assert_close(found["models"][name], whole, atol=1e-9, rtol=1e-7)


def test_joint_steps_are_those_of_one_process(answers):
    losses, state = joint(0, Processes())
    for found in answers:
        assert_close(found["joint"][0], losses, **EXACT)
        assert_close(found["joint"][1], state, atol=1e-9, rtol=1e-7)


def test_searches_find_the_plans_of_one_process(answers):
    zero, one = (found["search"] for found in answers)
    whole = search(0, Processes())
    assert zero["plan"] == one["plan"] == whole["plan"]
    assert zero["untied"] == one["untied"] == whole["untied"] != small_ensemble().plan.fingerprint
    for target, gradient in whole["gradients"].items():
        assert torch.equal(zero["gradients"][target], one["gradients"][target])
        assert_close(zero["gradients"][target], gradient, atol=1e-6, rtol=1e-4)
    for found in (zero, one):
        assert "has no samples" in found["no samples"]
        assert "disagree on the sharing plan that the search found" in found["apart"]


# The loss of a process.


def bereaved(rank, folder):
    build_fabric(CONFIG)
    processes = current_processes()
    processes.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    asked = {
        "sum": lambda: processes.all_reduce_([torch.zeros(3)]),
        "any": lambda: processes.any(True),
        "first": lambda: processes.on_rank_zero(lambda: None),
        "norm": lambda: fresh_norm(processes),
    }
    return {name: refusal(ask) for name, ask in asked.items()}


def fresh_norm(processes):
    with synchronised(processes):
        nn.BatchNorm1d(3)(torch.randn(4, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the group is of the CPU")
def test_the_loss_of_a_process_is_told_by_the_others(tmp_path):
    (found,) = two_processes.run(bereaved, tmp_path, lost=1)
    for text in found.values():
        assert "another process of the job ended or does not answer" in text and "--resume" in text


# A single process.


def test_a_single_process_is_a_job_of_one():
    processes = current_processes()
    assert processes is current_processes()
    assert (processes.rank, processes.size, processes.is_first, processes.shard) == (0, 1, True, (0, 1))
    tensors = [torch.ones(2), torch.zeros(3).to_sparse()]
    processes.all_reduce_(tensors)
    processes.broadcast_(tensors)
    processes.assert_equal_across_ranks(object(), "nothing")
    processes.barrier()
    assert torch.equal(tensors[0], torch.ones(2)) and torch.equal(processes.all_gather(tensors[0]), torch.ones(1, 2))
    assert processes.gather_objects((1, 2)) == [[1, 2]]
    with pytest.raises(OSError, match="disk"):
        processes.on_rank_zero(lambda: fail(OSError("disk")))
    assert processes.bytes_exchanged == 0


TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"} | {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "", "MASTER_PORT": ""}, "WORLD_SIZE is 4, and RANK, MASTER_PORT not set: start .* by torchrun"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number, as torchrun sets it; the environment has 'many'"),
        ({"LOCAL_WORLD_SIZE": "3"}, "4 processes with 3 on this machine: every machine needs the same"),
    ],
)
def test_environments_that_are_no_jobs(changes, message):
    with refused(message):
        launch_of(TORCHRUN | changes)


def test_a_job_that_cannot_be_joined(monkeypatch):
    with socket.socket() as taken:  # bound and not listening: a port that refuses
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        for name, value in (TORCHRUN | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(joining, "JOIN_TIMEOUT", timedelta(seconds=1))
        with refused(rf"says 4 processes.*at 127.0.0.1:{port}: start all.*\nseen here: "):
            build_fabric(CONFIG)
    assert not dist.is_initialized()


class OldStore(dict):
    """Holds what processes that are dead wrote; new writes come late to who reads at once."""

    def __init__(self):
        super().__init__({joining._ROUND: "old", "old/is/1": "dead", "old/seen/dead": "1"})

    def set(self, key, value):
        self[key] = value

    def get(self, key):
        while key not in self:
            time.sleep(0.001)
        return self[key].encode()

    def check(self, keys):
        return all(key in self for key in keys)


def test_processes_started_again_agree_on_a_new_round():
    store, found = OldStore(), {}

    def agree(rank):
        found[rank] = joining.agreed_round(store, rank, 3, timeout_s=60)

    threads = [threading.Thread(target=agree, args=(rank,)) for rank in (1, 2)]
    for thread in threads:
        thread.start()
    while "old/is/2" not in store:  # it has read the old name
        time.sleep(0.001)
    agree(0)
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] != "old"
    with pytest.raises(TimeoutError, match="process 0 does not answer process 1"):
        joining.agreed_round(OldStore(), 1, 2, timeout_s=0.05)


def test_more_processes_than_devices(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with refused(r"2 processes and 1 CUDA devices on this machine: .*--nproc-per-node 1"):
        build_fabric(swe.TrainConfig(epochs=1, precision="float32", device="cuda"))
