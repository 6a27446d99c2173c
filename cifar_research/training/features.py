"""A frozen backbone's features, computed once and kept beside the data cache."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_research.data import cache
from cifar_research.data.datasets import Dataset, Split
from cifar_research.models import classifier
from cifar_research.runtime import folders
from cifar_research.training.steps import Task, View, prepare, standardize

NAME = "features"
VERSION = 3  # of what is computed below; a change of it makes all that is kept anew
_BATCH = 256


def keep(cfg: Any, task: Task, data: Dataset, views: int, tell: Callable[[str], None]) -> tuple[Dataset, View]:
    """Return the data set as the backbone's features, and what makes sense of them.

    A feature is what the head makes its vector of, float32: pooled, if the head begins with pooling. They are kept in
    the data cache's folder, by all that they depend on, so that the runs of a sweep share them; tell is called before
    they are computed.
    """
    backbone, head = classifier.parts(task.model)
    pool, rest = _split(head)
    shape = rest.input_shape[1:]

    @tf.function(reduce_retracing=True)
    def extract(images: tf.Tensor) -> tf.Tensor:
        found = backbone(standardize(task, images), training=False)
        return tf.cast(found if pool is None else pool(found), tf.float32)

    augments = any(node is not None for node in cfg.augmentation.values())
    augment = tf.function(task.augment, reduce_retracing=True)
    identity = {
        "version": [VERSION, keras.__version__],
        "backbone": [cfg.backbone._target_, _code(cfg.backbone), *_settings(cfg.backbone)],
        "weights": _digest(*(weight.value.numpy() for weight in backbone.weights)),
        "pool": None if pool is None else [type(pool).__name__, list(shape)],
        "precision": task.precision,
        "fingerprint": data.fingerprint,
        "standardize": None if task.mean is None else [*map(float, task.mean), *map(float, task.deviation)],
    }
    # As a list, since they are applied in their order.
    augmentation = [[name, node, _code(node)] for name, node in _plain(cfg.augmentation).items() if node is not None]
    of_training = identity | {"views": [views, cfg.seed, augmentation]} if augments else identity

    def features(split: Split, identity: dict[str, Any], views: int, augments: bool) -> Split:
        # Rows of the test set's images may have the numbers and labels of some of the training set's.
        of_train = split.images is data.train.images
        place = "test" if split.images is data.test.images else "training" if of_train else "validation"
        identity = identity | {"rows": [place, _digest(split.indices, split.labels[split.indices])]}

        def make(folder: Path) -> dict[str, Any]:
            tell(f"Computing the backbone's features of {views * len(split):,} images; they are kept for later runs.")
            kept = _memory_map(folder / "features.npy", (views * len(split), *shape))
            targets = np.empty((views * len(split), task.num_classes), np.float32)
            for view in range(views):
                # Mixing takes its partners from the batch, and a data set may be sorted by class.
                order = np.random.default_rng([cfg.seed, view]).permutation(len(split)) if augments else None
                for begin in range(0, len(split), _BATCH):
                    rows = (
                        np.arange(begin, min(begin + _BATCH, len(split))) if order is None else order[begin:][:_BATCH]
                    )
                    chosen = split.indices[rows]
                    pixels, soft = prepare(task, split.images[chosen], split.labels[chosen])
                    if augments:
                        seed = tf.constant([cfg.seed, view], tf.int32)
                        pixels, soft = augment(
                            pixels, soft, tf.random.experimental.stateless_fold_in(seed, begin), seed
                        )
                    kept[view * len(split) + rows] = extract(pixels).numpy()
                    targets[view * len(split) + rows] = soft.numpy()
            kept.flush()
            with cache.needs(targets.nbytes):
                np.save(folder / "targets.npy", targets, allow_pickle=False)
            return {"identity": identity}

        arrays, _ = cache.load_arrays(folders.root(cfg.data.cache_dir), NAME, identity, ("features", "targets"), make)
        labels = arrays["targets"] if augments else split.labels[split.indices]
        return Split(arrays["features"], labels, np.arange(len(split)), views)

    train = features(data.train, of_training, views, augments)
    val = features(data.val, identity, 1, False) if len(data.val) else data.val
    kept = dataclasses.replace(data, train=train, val=val)

    def targets(labels: tf.Tensor) -> tf.Tensor:
        return labels if labels.dtype.is_floating else tf.one_hot(labels, task.num_classes)

    return kept, View(
        train=lambda inputs, labels, seed, epoch_seed: (inputs, targets(labels)),
        evaluate=lambda inputs, labels: (inputs, targets(labels)),
        network=lambda inputs, training: rest(inputs, training=training),
        penalties=lambda: rest.losses,
    )


def _split(head: keras.Model) -> tuple[keras.layers.Layer | None, keras.Model]:
    """Return the pooling that a head begins with, None if it begins otherwise, and the head from there on."""
    layers = getattr(head, "layers", [])
    if len(layers) < 2 or layers[1].name != "head_pool" or layers[1].weights:
        return None, head
    return layers[1], keras.Model(layers[1].output, head.output)


def _memory_map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Make a .npy file and map it, whole on the disk: writing where there is no room left would kill the process."""
    kept = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):
        size = path.stat().st_size
        with cache.needs(size), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    return kept


def _code(node: Any) -> str | None:
    """Return a digest of the file that a factory of the user's own is in, which may change.

    None for ours, see VERSION, and for one that no file tells of.
    """
    module, _, name = node["_target_"].rpartition(".")
    if module.split(".")[0] == __package__.split(".")[0]:
        return None
    factory = inspect.unwrap(getattr(importlib.import_module(module), name))
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(factory)).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def _settings(node: Any) -> list[str]:
    """Return a backbone's settings but for where its weights came from, which their digest says better."""
    return [f"{key}={value}" for key, value in sorted(_plain(node).items()) if key not in ("weights", "_target_")]


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([[str(array.dtype), array.shape] for array in arrays]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()[:16]
