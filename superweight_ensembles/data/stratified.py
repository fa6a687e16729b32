"""Splits that keep the proportions of the classes."""

from __future__ import annotations

import numpy as np
import torch


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to keep and indices to hold out, both ascending.

    Round(``fraction`` x images) are held out, shared among the classes by largest remainder; then a class of two or
    more images gives at least one and keeps at least one. A fraction of 0 holds nothing out.
    scikit-learn's splitter refuses classes of one image and small hold-outs, which image folders do have.

    Args:
        labels: int64 (N,).
        fraction: 0 <= fraction < 1.
        seed: Chooses the images; the choice is the same on every platform and version.

    Example:
        >>> keep, hold = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(keep), len(hold)
        (6, 2)
    """
    values = labels.numpy()
    held = np.zeros(len(values), dtype=bool)
    if fraction > 0 and len(values):
        # RandomState's stream is frozen by numpy for good; those of newer generators may change with a version.
        random = np.random.RandomState(seed)
        classes, counts = np.unique(values, return_counts=True)
        for label, share in zip(classes, _shares(counts, fraction)):
            members = np.flatnonzero(values == label)
            held[random.permutation(members)[:share]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """How many images each class gives: int64 (K,)."""
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    largest_first = np.argsort(shares - exact, kind="stable")
    shares[largest_first[:missing]] += 1
    return np.minimum(np.maximum(shares, 1), counts - 1)
