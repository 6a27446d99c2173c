"""Labels other than the data set's: wrong ones by a seed, or those of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config.targets import choice_problem
from cifar_research.data.unpickling import PlainUnpickler
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


def from_file(path: Path, key: str | None, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the labels, int64 [N], in a .npy file: an array, or CIFAR-10N's dict of arrays (Wei et al. 2022).

    key: of the dict. labels: the data set's own, int64 [N], in the order of its files. DataError if the file's do not fit.
    """
    content = _read(path)
    if isinstance(content, dict):
        if key not in content:
            raise DataError(f"data.labels_key: {choice_problem(key, list(content))}")
        clean, given = content.get("clean_label"), np.asarray(content[key])
        if clean is not None and not np.array_equal(clean, labels):
            raise DataError(
                f"data.labels_file: clean_label of {path} differs from the labels of the data; give a file in the order of the "
                "data set's own files, such as CIFAR-10_human.npy"
            )
    elif key is not None:
        raise DataError(f"data.labels_key: {path} holds one array and has no keys; remove {key!r}")
    else:
        given = content
    is_of_labels = given.shape == labels.shape and given.dtype.kind in "iu"
    if not is_of_labels or given.min() < 0 or given.max() >= num_classes:
        raise DataError(
            f"data.labels_file: {path} has {given.dtype} {list(given.shape)}; it must hold a whole number from 0 to "
            f"{num_classes - 1} for each of the {len(labels)} training images"
        )
    return given.astype(np.int64)


def _read(path: Path) -> Any:
    """Return the array or the dict of arrays in a .npy file; DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            if not dtype.hasobject:
                return np.load(path)
            return PlainUnpickler(file).load().item()
    except Exception as error:  # numpy and pickle raise many types for damaged files
        raise DataError(f"data.labels_file: {path} cannot be read as a .npy file of labels: {error}") from error
