"""Label noise: wrong labels for a share of the training images, by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cifar_research.runtime.errors import DataError

# CIFAR-10's pairs of similar classes (Patrini et al. 2017).
_SIMILAR = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def noisy(
    labels: np.ndarray, rows: np.ndarray, classes: Sequence[str], kind: str, rate: float, seed: int
) -> np.ndarray:
    """Return a copy of the labels, int64 [N], with this share of those of `rows` changed.

    `symmetric` changes a share of all rows to any other class, all equally likely. `asymmetric` changes a share of each
    class that has a similar one to that one: truck to automobile, bird to airplane, deer to horse, cat and dog to each
    other. DataError if the classes have no such pair.
    """
    rng, given = np.random.default_rng([seed, 4]), labels.copy()
    if kind == "symmetric":
        changed = rng.permutation(rows)[: round(rate * len(rows))]
        given[changed] = (labels[changed] + rng.integers(1, len(classes), len(changed))) % len(classes)
        return given
    pairs = {source: target for source, target in _SIMILAR.items() if {source, target} <= set(classes)}
    if not pairs:
        raise DataError(
            "data.label_noise: asymmetric changes truck to automobile, bird to airplane, deer to horse, cat and dog to each "
            "other, and the data has none of these pairs; use symmetric"
        )
    for source, target in pairs.items():
        own = rng.permutation(rows[labels[rows] == classes.index(source)])
        given[own[: round(rate * len(own))]] = classes.index(target)
    return given
