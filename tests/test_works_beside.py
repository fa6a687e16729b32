"""The ensemble as a module of other people's programs: their trainers, wrappers, compilers and shards."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import superweight_ensembles as swe

MISSING = "{} is not installed: pip install superweight-ensembles[dev]"


def needs(name: str) -> Any:
    return pytest.importorskip(name, reason=MISSING.format(name))


def build(**options: Any) -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    members = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(10, 2, 4)}
    return swe.SuperWeightEnsemble(members, budget=0.9, **options)


def images(rows: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(rows) % 4
    return torch.randn(rows, 3, 8, 8, generator=generator) + labels[:, None, None, None].float(), labels


def joint_loss(answers: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(one, labels) for one in answers]).sum()


def moved(before: dict[str, Tensor], module: nn.Module) -> float:
    """How far the bank's templates went."""
    now = module.state_dict()
    return max(float((now[name] - value).abs().max()) for name, value in before.items() if "templates" in name)


def templates(module: nn.Module) -> dict[str, Tensor]:
    found = {name: value.detach().clone() for name, value in module.state_dict().items() if "templates" in name}
    assert found
    return found


def bert(width: int, layers: int) -> nn.Module:
    transformers = needs("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(40, (48, 10), generator=generator)
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
    return [{key: value[start : start + 16] for key, value in rows.items()} for start in range(0, 48, 16)]


def language_ensemble() -> swe.SuperWeightEnsemble:
    torch.manual_seed(0)
    return swe.SuperWeightEnsemble({"a": bert(16, 2), "b": bert(24, 2)}, budget=0.8)


def test_hugging_face_models_are_members() -> None:
    ensemble = language_ensemble()
    config = swe.TrainConfig(epochs=6, optimizer="adamw", learning_rate=0.01, device="cpu", precision="float32")
    result = swe.train(ensemble, texts(), config, validation=texts())
    first, last = (sum(result.history[index]["train_loss"].values()) for index in (0, -1))
    assert last < 0.7 * first
    found = swe.evaluate(ensemble, texts())
    assert found.ensemble.metrics.accuracy == result.history[-1]["validation"]["ensemble"]["accuracy"]
    inputs = {key: value for key, value in texts()[0].items() if key != "labels"}
    answers = ensemble(**inputs)
    assert answers.shape == (2, 16, 3)
    torch.testing.assert_close(ensemble.materialize("a")(**inputs).logits, answers[0])
    steps = list(swe.AnytimePredictor(ensemble).stream(inputs))
    torch.testing.assert_close(steps[-1].probabilities, answers.softmax(2).mean(0))


def test_hugging_face_batches_of_their_own_class_are_taken() -> None:
    transformers = needs("transformers")
    ensemble = language_ensemble().eval()
    inputs = {key: value for key, value in texts()[0].items() if key != "labels"}
    torch.testing.assert_close(ensemble(transformers.BatchEncoding(inputs)), ensemble(inputs))


class WithLoss(nn.Module):
    """What Hugging Face's trainer asks of a model: the loss, where labels are given."""

    accepts_loss_kwargs = False

    def __init__(self, ensemble: swe.SuperWeightEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        answers = self.ensemble(inputs)
        logits = answers.softmax(2).mean(0).log()
        return {"logits": logits} if labels is None else {"loss": joint_loss(answers, labels), "logits": logits}


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.rows = [{key: value[row] for key, value in batch.items()} for batch in texts() for row in range(16)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def test_hugging_face_trainer_trains_it(tmp_path: Path) -> None:
    needs("accelerate")
    transformers = needs("transformers")
    model = WithLoss(language_ensemble())
    before = templates(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=16, learning_rate=0.01, report_to=[],
        save_strategy="steps", save_steps=2, use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    assert moved(before, model) > 1e-3 and any(tmp_path.glob("checkpoint-*"))
    assert trainer.evaluate()["eval_loss"] > 0


def test_lightning_trains_it() -> None:
    lightning = needs("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.ensemble = build()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return joint_loss(self.ensemble(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    before = templates(module)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*images()), 8))
    assert moved(before, module) > 1e-3


def test_accelerate_trains_it() -> None:
    accelerate = needs("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    ensemble = build()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*images()), 8)
    model, optimizer, loader = accelerator.prepare(ensemble, optimizer, loader)
    before = templates(ensemble)
    for pictures, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(joint_loss(model(pictures), labels))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert moved(before, accelerator.unwrap_model(model)) > 1e-3


def test_skorch_trains_it() -> None:
    skorch = needs("skorch")

    class Criterion(nn.Module):
        def forward(self, answers: Tensor, labels: Tensor) -> Tensor:
            return joint_loss(answers, labels)

    pictures, labels = images()
    net = skorch.NeuralNet(build(), Criterion, max_epochs=2, lr=0.1, batch_size=8, train_split=None, verbose=0)
    net.fit(pictures, labels)
    assert net.history[-1, "train_loss"] < net.history[0, "train_loss"]


def test_it_is_pickled_and_copied(tmp_path: Path) -> None:
    ensemble = build().eval()
    pictures, labels = images()
    file = io.BytesIO()
    torch.save(ensemble, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=False), copy.deepcopy(ensemble)):
        torch.testing.assert_close(again(pictures), ensemble(pictures))
        assert again.task is ensemble.task
        assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in ensemble.parameters()}
        joint_loss(again.train()(pictures), labels).backward()
        assert all(parameter.grad is None for parameter in ensemble.parameters())
    torch.save(ensemble.state_dict(), tmp_path / "state.pt")
    other = build()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(other.eval()(pictures), ensemble(pictures))


def test_averaged_model_keeps_a_mean_of_it() -> None:
    ensemble = build()
    averaged = AveragedModel(ensemble, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    pictures, labels = images()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1)
    for _ in range(2):
        joint_loss(ensemble(pictures), labels).backward()
        optimizer.step()
        averaged.update_parameters(ensemble)
    assert moved(templates(averaged.module), ensemble) > 0
    assert averaged.eval()(pictures).shape == (2, 16, 4)


@pytest.mark.slow
def test_it_is_compiled_as_a_whole_once_a_mode() -> None:
    ensemble = build()
    pictures, labels = images()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        compiled = torch.compile(ensemble, backend="aot_eager")
        plain = copy.deepcopy(ensemble)
        for _ in range(3):
            joint_loss(compiled(pictures), labels).backward()
            joint_loss(plain(pictures), labels).backward()
            for one, other in zip(ensemble.parameters(), plain.parameters()):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
        ensemble.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(pictures), plain.eval()(pictures), rtol=1e-3, atol=1e-4)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def test_fully_shard_shards_it(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, ensemble = build(), build()
    pictures, labels = images()
    fully_shard(ensemble, mesh=init_device_mesh("cpu", (1,)))
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (plain, ensemble)]
    losses = []
    for model, optimizer in zip((plain, ensemble), optimizers):
        for _ in range(2):
            optimizer.zero_grad()
            loss = joint_loss(model(pictures), labels)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
