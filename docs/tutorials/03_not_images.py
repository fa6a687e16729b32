# %% [markdown]
# # Tables and texts
#
# The bank knows nothing of images: members are any modules, and a batch may be a tensor, a tuple or a dictionary. This
# page trains an ensemble on a table and one on texts. In both, the members have different architectures.

# %%
import re

import torch
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import superweight_ensembles as swe

torch.manual_seed(0)

# %% [markdown]
# ## A table
#
# The breast cancer data of scikit-learn have 30 measurements of 569 samples, of two classes. Columns are standardised
# by the training rows alone; 120 rows are for calibration and 149 for the test.

# %%
table = datasets.load_breast_cancer()
order = torch.randperm(len(table.data))
rows, classes = torch.tensor(table.data, dtype=torch.float32)[order], torch.tensor(table.target)[order]
rows = (rows - rows[:300].mean(0)) / rows[:300].std(0)
parts = {"train": slice(0, 300), "validation": slice(300, 420), "test": slice(420, 569)}
loaders = {
    part: DataLoader(TensorDataset(rows[which], classes[which]), batch_size=30, shuffle=part == "train")
    for part, which in parts.items()
}

# %% [markdown]
# A perceptron and a residual network share what they have in common: linear layers. A narrow layer's weight is a corner
# of a wide layer's, so sizes need not agree.


# %%
class Residual(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.first, self.head = nn.Linear(30, width), nn.Linear(width, 2)
        blocks = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def perceptron(width):
    return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


members = {"perceptron": perceptron(24), "residual": Residual(32, depth=3)}
ensemble = swe.SuperWeightEnsemble(members, budget=0.7)
print(f"{ensemble.num_parameters:,} parameters in the place of {ensemble.independent_parameters:,}")

# %% [markdown]
# Any sized iterable of (inputs, targets), such as a DataLoader, trains the ensemble. A cascade then sends most rows no
# further than the perceptron. (With `task="regression"` members answer numbers: streams and deadlines serve them; a
# cascade needs a confidence, which numbers do not have.)

# %%
config = swe.TrainConfig(epochs=8, optimizer="adamw", learning_rate=0.01, precision="float32", num_threads=1)
swe.train(ensemble, loaders["train"], config)


def show_cascade(ensemble, loaders):
    predictor = swe.AnytimePredictor(ensemble)
    predictor.calibrate(loaders["validation"], max_accuracy_drop=0.01)
    found = swe.evaluate(ensemble, loaders["test"])
    answers = [(predictor(inputs), labels) for inputs, labels in loaders["test"]]
    right = torch.cat([answer.probabilities.argmax(1) == labels for answer, labels in answers]).float().mean()
    cost = torch.cat([answer.flops for answer, _ in answers]).float().mean() / found.ensemble.flops
    for member in found.members:
        print(f"{member.name:12} {member.metrics.accuracy:.1%} at {member.flops:,} FLOPs")
    print(f"{'all':12} {found.ensemble.metrics.accuracy:.1%}; the cascade {right:.1%} at {cost:.0%} of the FLOPs")
    return found.ensemble.metrics.accuracy


assert show_cascade(ensemble, loaders) > 0.9

# %% [markdown]
# ## A text
#
# Which data set is a passage about? scikit-learn describes each of its own. The descriptions are cut into blocks of 30
# words, and blocks into windows of 12; whole blocks are held out, so that no window of the test overlaps training.

# %%
names = ["breast_cancer", "diabetes", "digits", "iris", "wine"]
windows = {"train": [], "validation": [], "test": []}
for label, name in enumerate(names):
    words = re.findall("[a-z]+", getattr(datasets, f"load_{name}")().DESCR.lower())
    for block in range(len(words) // 30):
        part = ("train", "validation", "train", "test")[block % 4]
        windows[part] += [(words[start : start + 12], label) for start in range(30 * block, 30 * block + 19)]
vocabulary = {word: index for index, word in enumerate(sorted({w for text, _ in windows["train"] for w in text}), 1)}
print({part: len(found) for part, found in windows.items()}, "windows;", len(vocabulary), "words")

# %% [markdown]
# A batch is a pair: a dictionary, whose entries the members take as keywords, and the classes. Index 0 is for words
# that training has not seen; the mask leaves them out.


# %%
def batches(part):
    tokens = torch.tensor([[vocabulary.get(word, 0) for word in text] for text, _ in windows[part]])
    labels = torch.tensor([label for _, label in windows[part]])
    order = torch.randperm(len(labels)).split(32)
    return [({"tokens": tokens[rows], "mask": tokens[rows] > 0}, labels[rows]) for rows in order]


def mean_of_words(x, mask):
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


# %% [markdown]
# Three ways to read a window: a bag of words, a recurrent network and a small transformer. Embeddings stay the members'
# own unless `include=` names them. Here they are most of the parameters, so they are to be shared as well.


# %%
class Reader(nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.kind, self.embedding = kind, nn.Embedding(len(vocabulary) + 1, width)
        if kind == "gru":
            self.body = nn.GRU(width, width, batch_first=True)
        elif kind == "transformer":
            self.body = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=width, dropout=0.0, batch_first=True)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, len(names))

    def forward(self, tokens, mask):
        x = self.embedding(tokens)
        if self.kind == "gru":
            x, _ = self.body(x)
        elif self.kind == "transformer":
            x = self.body(x)
        return self.head(torch.relu(self.hidden(mean_of_words(x, mask))))


readers = {"bag": Reader("bag", 16), "gru": Reader("gru", 24), "transformer": Reader("transformer", 32)}
texts = swe.SuperWeightEnsemble(readers, budget=0.7, include=["*embedding"])
print(texts.plan)

# %% [markdown]
# Training, evaluation and cascade are the same calls as before. So few blocks teach little: compare the accuracies with
# the share of the most frequent class, and train on more text before you compare readers.

# %%
loaders = {part: batches(part) for part in windows}
swe.train(texts, loaders["train"], config)
counts = torch.bincount(torch.tensor([label for _, label in windows["test"]]))
print(f"the most frequent class is {counts.max() / counts.sum():.1%} of the test")
assert show_cascade(texts, loaders) > counts.max() / counts.sum()
