"""Choose rows of labelled images, stratified by class, by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cifar_research.runtime.errors import DataError


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask, bool [N], of this fraction of the images of each class.

    A class with two images or more keeps at least one on each side, unless the fraction is 0.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1) if fraction else 0
        mask[rng.permutation(rows)[:count]] = True
    return mask


def subset(rows: np.ndarray, labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return `size` rows, sorted, stratified by class; DataError if `size` is out of range."""
    classes, counts = np.unique(labels[rows], return_counts=True)
    if not len(classes) <= size <= len(rows):
        raise DataError(
            f"data.train_size: {size} is out of range; it must be at least {len(classes)}, one image for each class, and at "
            f"most {len(rows)}, the number of training images"
        )
    # One image of each class, and the rest by the largest-remainder method.
    exact = 1 + (counts - 1) * (size - len(classes)) / max(len(rows) - len(classes), 1)
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - quotas.sum()]] += 1
    rng = np.random.default_rng([seed, 1])
    chosen = [rng.permutation(rows[labels[rows] == c])[:quota] for c, quota in zip(classes, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def renumbered(labels: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return labels as positions among the chosen classes; other classes become -1."""
    numbers = np.full(max(int(labels.max()), *chosen) + 1, -1, np.int64)
    numbers[list(chosen)] = np.arange(len(chosen))
    return numbers[labels]
