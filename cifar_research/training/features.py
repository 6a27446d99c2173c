"""The features of a network's frozen part, computed once and kept beside the data cache."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_research.config.settings import Settings
from cifar_research.data import cache
from cifar_research.data.datasets import Dataset, Split
from cifar_research.runtime import folders
from cifar_research.training.forward import Forward
from cifar_research.training.frozen import Parts
from cifar_research.training.state import TrainState

NAME = "features"
VERSION = 6  # increase it to invalidate kept features
_BATCH = 256


def keep(
    settings: Settings, state: TrainState, parts: Parts, data: Dataset, tell: Callable[[str], None]
) -> tuple[Dataset, Forward]:
    """Return the data set as features of the frozen part, and the forward pass that takes them.

    Features are float32, and shared by all runs with the same frozen part and images. tell: called with a line for the
    user before features are computed.
    """
    extraction = _Extraction(settings, state, parts, tell)
    train = extraction.features(data, data.train, settings.kept_views, augments=bool(settings.transforms))
    val = extraction.features(data, data.val, 1, augments=False) if len(data.val) else data.val

    def targets(labels: tf.Tensor) -> tf.Tensor:
        return labels if labels.dtype.is_floating else tf.one_hot(labels, state.preprocessing.num_classes)

    return dataclasses.replace(data, train=train, val=val), Forward(
        train=lambda inputs, labels, seed, epoch_seed: (inputs, targets(labels)),
        evaluate=lambda inputs, labels: (inputs, targets(labels)),
        network=parts.rest,
        penalties=parts.penalties,
    )


class _Extraction:
    """Computes and identifies the features of a network's frozen part."""

    def __init__(self, settings: Settings, state: TrainState, parts: Parts, tell: Callable[[str], None]) -> None:
        self._settings, self._preprocessing, self._shape, self._tell = settings, state.preprocessing, parts.shape, tell
        mean, deviation = state.preprocessing.mean, state.preprocessing.standard_deviation
        section = settings.content["backbone"]
        values = [f"{key}={value}" for key, value in sorted(section.items()) if key not in ("weights", "_target_")]
        self._identity = {
            "version": [VERSION, keras.__version__],
            "backbone": [section["_target_"], _code(section), *values],
            "weights": _digest(*(weight.value.numpy() for weight in parts.weights)),
            "part": [parts.last, *parts.shape],
            "precision": state.precision,
            "standardize": None if mean is None else [*map(float, mean), *map(float, deviation)],
        }

        @tf.function(reduce_retracing=True, autograph=False)
        def extract(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(parts.frozen(state.preprocessing.standardize(images)), tf.float32)

        self._extract = extract
        self._augment = tf.function(state.preprocessing.augment, reduce_retracing=True, autograph=False)

    def features(self, data: Dataset, split: Split, views: int, *, augments: bool) -> Split:
        """Return a split as features, reusing equal ones of an earlier run."""
        identity = self._identity | {"fingerprint": data.fingerprint}
        if augments:  # a list, since the order of transforms matters
            sections = self._settings.content["augmentation"].items()
            transforms = [[name, section, _code(section)] for name, section in sections if section is not None]
            identity |= {"views": [views, self._settings.seed, transforms]}
        # Rows of the test set may have the same indices and labels as rows of the training set.
        of_train = split.images is data.train.images
        source = "test" if split.images is data.test.images else "training" if of_train else "validation"
        identity |= {"rows": [source, _digest(split.indices, split.labels[split.indices])]}

        def make(folder: Path) -> dict[str, Any]:
            self._tell(
                f"Computing the backbone's features of {views * len(split):,} images; they are kept for later runs."
            )
            features = _memory_map(folder / "features.npy", (views * len(split), *self._shape))
            targets = np.empty((views * len(split), self._preprocessing.num_classes), np.float32)
            for view in range(views):
                self._compute(split, view, augments, features, targets)
            features.flush()
            with cache.needs(targets.nbytes):
                np.save(folder / "targets.npy", targets, allow_pickle=False)
            return {"identity": identity}

        root = folders.root(self._settings.data.cache_dir)
        arrays, _ = cache.load_arrays(root, NAME, identity, make)
        labels = arrays["targets"] if augments else split.labels[split.indices]
        return Split(arrays["features"], labels, np.arange(len(split)), views, split.chances)

    def _compute(self, split: Split, view: int, augments: bool, features: np.ndarray, targets: np.ndarray) -> None:
        """Fill one view's rows of the features and targets."""
        seed = self._settings.seed
        # Mixing pairs images of a batch, and a data set may be sorted by class. Two numbers are a seed of data/splits.py.
        order = np.random.default_rng([seed, view, 1]).permutation(len(split)) if augments else np.arange(len(split))
        for begin in range(0, len(split), _BATCH):
            rows = order[begin : begin + _BATCH]
            chosen = split.indices[rows]
            pixels, soft = self._preprocessing.prepare(split.images[chosen], split.labels[chosen])
            if augments:
                of_view = tf.constant([seed, view], tf.int32)
                of_batch = tf.random.experimental.stateless_fold_in(of_view, begin)
                pixels, soft = self._augment(pixels, soft, of_batch, of_view)
            features[view * len(split) + rows] = self._extract(pixels).numpy()
            targets[view * len(split) + rows] = soft.numpy()


def _memory_map(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create and map a .npy file; allocate it first, since writing to a full disk would crash."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):
        size = path.stat().st_size
        with cache.needs(size), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    return array


def _code(section: Mapping[str, Any]) -> str | None:
    """Return a digest of the file of a user's factory, which may change.

    None for the framework's factories (see VERSION) and those without a file.
    """
    module, _, name = section["_target_"].rpartition(".")
    if module.split(".")[0] == __package__.split(".")[0]:
        return None
    factory = inspect.unwrap(getattr(importlib.import_module(module), name))
    try:
        file = inspect.getsourcefile(factory)
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([[str(array.dtype), array.shape] for array in arrays]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]
