"""Choose rows of labelled images, stratified by class, by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cifar_research.runtime.errors import DataError


def hold_out(labels: np.ndarray, fraction: float, seed: int | Sequence[int]) -> np.ndarray:
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


def fold(labels: np.ndarray, classes: Sequence[str], folds: int, number: int, seed: int) -> np.ndarray:
    """Return a mask, bool [N], of one of `folds` disjoint parts, stratified by class.

    DataError if a class has fewer images than there are folds.
    """
    rng, mask, first = np.random.default_rng([seed, 2]), np.zeros(len(labels), bool), 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < folds:
            raise DataError(
                f"data.folds: {folds} is more than the {len(rows)} training images of class {classes[label]}; give fewer folds"
            )
        # Each class begins where the last one ended, so that the parts differ by one image at most.
        mask[rows[(first + np.arange(len(rows))) % folds == number]] = True
        first += len(rows)
    return mask


def imbalanced(
    rows: np.ndarray, labels: np.ndarray, classes: Sequence[str], kind: str, factor: float, seed: int
) -> np.ndarray:
    """Return the rows, sorted, that are left of each class; DataError if nothing is left of one.

    The first class keeps its images, and the last one 1/`factor` of them: `exponential` in between (Cui et al. 2019), or
    in a `step` after half of the classes (Buda et al. 2018). A class that has fewer images keeps all of them.
    """
    number, rng = np.arange(len(classes)), np.random.default_rng([seed, 3])
    exponent = number / (len(classes) - 1) if kind == "exponential" else number >= len(classes) // 2
    counts = np.bincount(labels[rows], minlength=len(classes))
    most = (counts.max() * factor ** -exponent.astype(float) + 1e-9).astype(int)  # 1e-9: 4500 / 100 is 45, not 44
    if not most.all():
        raise DataError(
            f"data.imbalance_factor: {factor:g} leaves no image of class {classes[int(np.argmin(most))]}; lower it to "
            f"{counts.max()} at most"
        )
    return np.sort(np.concatenate([rng.permutation(rows[labels[rows] == c])[: most[c]] for c in number]))
