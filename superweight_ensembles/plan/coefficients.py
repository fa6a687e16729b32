"""The forms in which a slot holds coefficients, and what each costs.

Shapes: N coefficient vectors of a slot, K templates, O rows (output channels) of the slot's blocks, E numbers in an
embedding.

- ``vector``: a K-vector each, as published: (N, K).
- ``embedding``: an E-vector each, (N, E), and one affine map a slot, alpha = A e + b: (K, E + 1).
- ``channel``: a K-vector for each output channel: (N, O, K).

Source: Teterwak et al., WACV 2024 (vector); Plummer et al., ICLR 2022 (embedding, with E = 24). ``channel`` is ours.
"""

from __future__ import annotations

from typing import Literal

from superweight_ensembles.plan.slots import SlotBlocks

CoefficientForm = Literal["vector", "embedding", "channel"]
EMBEDDING_SIZE = 24


def numbers_per_template(form: CoefficientForm, block: SlotBlocks, num_vectors: int, embedding_size: int) -> int:
    """Coefficient scalars that each template of a slot brings along."""
    if form == "embedding":
        return embedding_size + 1
    return num_vectors * (block.num_rows if form == "channel" else 1)


def fixed_numbers(form: CoefficientForm, num_vectors: int, embedding_size: int) -> int:
    """Coefficient scalars of a slot that do not depend on its templates: the embeddings."""
    return num_vectors * embedding_size if form == "embedding" else 0
