# %% [markdown]
# # Your own training loop, Lightning, and hooks
#
# An ensemble is an `nn.Module`, so any PyTorch trainer trains it. This page trains one in a loop of your own and in
# Lightning; then it adds code of your own to the library's loop, as hooks, and says what else that loop does.

# %%
import warnings

import lightning
import torch
from torch.nn import functional as F

import superweight_ensembles as swe

torch.manual_seed(0)
data = swe.load_data("digits", validation_fraction=0.2)


def make_ensemble():
    members = {
        "narrow": swe.wide_resnet(10, 0.5, num_classes=10, in_channels=1),
        "wide": swe.wide_resnet(10, 1, num_classes=10, in_channels=1),
    }
    return swe.SuperWeightEnsemble(members, budget=0.83)


# %% [markdown]
# ## A loop of your own
#
# Called with images, the ensemble gives the logits of all members: (members, batch, classes). The loss is the sum of
# the members' losses; a mean would divide the learning rate by the number of members.


# %%
def joint_loss(logits, labels):
    return sum(F.cross_entropy(one, labels) for one in logits)


ensemble = make_ensemble()
loader = data.loader("train", 64)
optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1, momentum=0.9, nesterov=True)
for epoch in range(2):
    for images, labels in loader:
        loss = joint_loss(ensemble(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.2f}")

# %% [markdown]
# All other tools of the library take an ensemble that was trained elsewhere. `evaluate` puts members into evaluation
# mode by itself.

# %%
own = swe.evaluate(ensemble, data.loader("test", 256)).ensemble.metrics.accuracy
print(f"own loop: {own:.1%}")

# %% [markdown]
# ## Lightning
#
# A LightningModule holds the ensemble as any other network. Checkpoints, loggers and devices are then Lightning's
# business; here they are switched off to keep the page short.


# %%
class LitEnsemble(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.ensemble = make_ensemble()

    def training_step(self, batch, index):
        images, labels = batch
        return joint_loss(self.ensemble(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


warnings.filterwarnings("ignore", module="lightning")  # it would rather have more processes to load data
module = LitEnsemble()
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, loader)
lit = swe.evaluate(module.ensemble, data.loader("test", 256)).ensemble.metrics.accuracy
print(f"Lightning: {lit:.1%}")

# %% [markdown]
# ## What `swe.train` does that these loops do not
#
# - It generates each weight once a step and runs members one after the other, so that it holds one member's activations
#   at a time; the loops above hold those of all members.
# - It keeps weight decay away from coefficients, norms and biases, and has schedules, warm-up and mixed precision.
# - It validates and, with `out=`, keeps checkpoints, so that a training that was stopped goes on as if it never was.
# - It names the step, the member and the layers when a loss or a gradient is not finite.
# - Under torchrun it divides rows or members among processes, with batch norm over the whole batch.
#
# ## A hook of your own
#
# A hook adds to that loop. It subclasses `swe.Hook` and overrides the methods it needs; each sees the state of the
# training. What `after_epoch` returns becomes a part of the epoch's record.


# %%
class Wildest(swe.Hook):
    """Notes the largest loss of a member in each epoch."""

    def start(self, state):
        self.largest = 0.0

    def after_step(self, state, scalars):
        self.largest = max(self.largest, *state.losses.values())

    def after_epoch(self, state):
        largest, self.largest = self.largest, 0.0
        return {"largest_loss": round(largest, 2)}


# %% [markdown]
# Ready hooks go beside it. `Distillation` makes members learn from a teacher besides the labels: here from the ensemble
# of the first loop. `EarlyStopping` ends the training when validation gets no better; the schedule makes the learning
# rate so small that this must happen.

# %%
hooks = [Wildest(), swe.Distillation(ensemble, weight=0.5), swe.training.EarlyStopping(patience=1, min_delta=0.01)]
taught = make_ensemble()
config = swe.TrainConfig(epochs=6, batch_size=64, learning_rate=0.1, schedule="step", milestones=(2,), gamma=1e-6,
                         num_threads=1)  # fmt: skip
result = swe.train(taught, data, config, hooks=hooks)
for record in result.history:
    print(f"epoch {record['epoch']}: largest loss {record['largest_loss']}, rate {record['lr']:.0e}, "
          f"validation {record['validation']['ensemble']['accuracy']:.1%}")  # fmt: skip
print("stopped:", result.stopped)
assert result.stopped is not None and len(result.history) < 6
