# %% [markdown]
# # A first ensemble
#
# Three networks of different depth and width are trained from one shared bank of parameters. Then they answer one after
# the other, and an image leaves as soon as its answer is sure. All of it runs in some seconds on one core.

# %%
import matplotlib.pyplot as plt
import torch

import superweight_ensembles as swe

torch.manual_seed(0)

# %% [markdown]
# ## Data and members
#
# `digits` comes with scikit-learn: grey images of 8 x 8 pixels in ten classes. A part of the training images is held
# out for validation; the cascade is fitted on them later, because test images must not be used before the end.

# %%
data = swe.load_data("digits", validation_fraction=0.2)
print(len(data.train), "images train,", len(data.validation), "validate,", len(data.test), "test")

# %% [markdown]
# Members are ordinary PyTorch modules. Here they are WideResNets of the library, given by depth and width; timm's
# networks (`swe.build_member("timm/resnet18", ...)`) and your own modules do as well.

# %%
members = {
    "narrow": swe.wide_resnet(10, 0.5, num_classes=10, in_channels=1),
    "wide": swe.wide_resnet(10, 1, num_classes=10, in_channels=1),
    "deep": swe.wide_resnet(16, 1, num_classes=10, in_channels=1),
}

# %% [markdown]
# ## Budget and plan
#
# The budget is the number of trainable parameters of all members together: a whole number, or a fraction of what the
# members would own apart. The plan says which layers share, and where the parameters go. It is decided before training.

# %%
ensemble = swe.SuperWeightEnsemble(members, budget=0.83)
print(ensemble.plan)

# %% [markdown]
# The budget is a bound: the parameters are counted from the tensors themselves.

# %%
print(f"{ensemble.num_parameters:,} parameters; apart the members have {ensemble.independent_parameters:,}")
assert ensemble.num_parameters <= 0.83 * ensemble.independent_parameters

# %% [markdown]
# ## Training
#
# One call trains all members together: each step takes one batch, and the bank learns from the sum of the members'
# losses. A learning rate therefore means what it means for one network alone.

# %%
config = swe.TrainConfig(epochs=4, batch_size=32, learning_rate=0.1, schedule="one_cycle", num_threads=1)
result = swe.train(ensemble, data, config)
for epoch in result.history:
    losses = ", ".join(f"{name} {loss:.2f}" for name, loss in epoch["train_loss"].items())
    print(f"epoch {epoch['epoch']}: {losses}; validation {epoch['validation']['ensemble']['accuracy']:.1%}")

# %% [markdown]
# ## Evaluation
#
# `evaluate` runs every member once and scores every subset of members: its accuracy, and its cost in floating-point
# operations (FLOPs) for an image.

# %%
found = swe.evaluate(ensemble, data.loader("test", 256))
for subset in found.subsets:
    print(f"{' + '.join(subset.members):20}  {subset.metrics.accuracy:.1%} at {subset.flops / 1e6:5.2f} MFLOPs")
assert found.ensemble.metrics.accuracy > 0.9

# %% [markdown]
# ## Members answer one after the other
#
# A predictor holds the members as plain networks, cheapest first. Its stream yields the mean answer after each member;
# whoever stops reading pays for no later member. Here the stream stops when all eight images are sure enough.

# %%
images, labels = next(iter(data.loader("test", 8)))
predictor = swe.AnytimePredictor(ensemble)
for step in predictor.stream(images):
    surest = step.probabilities.amax(1)
    print(f"{step.member}: {step.flops / 1e6:.2f} MFLOPs, the least sure image has {surest.min():.2f}")
    if surest.min() > 0.9:
        break
print("answered", step.probabilities.argmax(1).tolist(), "right is", labels.tolist())

# %% [markdown]
# ## A cascade
#
# Calibration fits one threshold for each exit on the validation images, so that the mean cost meets a target: here 40 %
# of what all members cost. After that, each image leaves as soon as its own answer is sure.

# %%
calibration = predictor.calibrate(data.loader("validation", 64), flops=0.4)
print("thresholds", [round(threshold, 3) for threshold in predictor.policy.thresholds])

images, labels = next(iter(data.loader("test", 1000)))
answer = predictor(images)
right = (answer.probabilities.argmax(1) == labels).float()
used = torch.bincount(answer.members_used, minlength=len(members) + 1)[1:]
mflops = answer.flops.float().mean() / 1e6
print(f"{right.mean():.1%} at {mflops:.2f} MFLOPs; images by number of members: {used.tolist()}")

# %% [markdown]
# The picture shows what the cascade is for: the accuracy of a large subset at the mean cost of a small one.

# %%
subsets = [(subset.flops / 1e6, 100 * subset.metrics.accuracy) for subset in found.subsets]
plt.scatter(*zip(*subsets), label="fixed subsets of members")
plt.scatter(mflops, 100 * right.mean(), marker="*", s=150, label="cascade")
plt.xlabel("MFLOPs an image (mean)"), plt.ylabel("test accuracy (%)"), plt.legend()
plt.show()

# %% [markdown]
# ## Save and load
#
# The folder holds JSON and safetensors: the bank, the plan and the thresholds, and nothing that is executed on loading.
# The members were made by name, so that loading needs no networks; modules of your own are given again as `members=`.

# %%
predictor.save("first-ensemble")
loaded = swe.AnytimePredictor.load("first-ensemble")
torch.testing.assert_close(loaded(images).probabilities, answer.probabilities)
print("the loaded predictor answers the same; its classes are", loaded.images.classes)
