"""A frozen backbone's features, computed once and kept beside the data cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from cifar_research import layers, model
from cifar_research.data import batches, cache
from cifar_research.data.datasets import Dataset, Split
from cifar_research.steps import Task, View, prepare, standardize

if TYPE_CHECKING:
    import keras

NAME = "features"


def num_views(cfg: Any) -> int:
    """Return how many views of each image are kept while the backbone is frozen, 0 if they are computed every time."""
    has_augmentation = any(node is not None for node in cfg.augmentation.values())
    if cfg.features.views is None:
        return 0 if has_augmentation else 1
    # Without augmentation all views would be the same.
    return cfg.features.views if has_augmentation else min(cfg.features.views, 1)


def keep(cfg: Any, task: Task, data: Dataset, views: int) -> tuple[Dataset, View]:
    """Return the data set as the backbone's features, and what makes sense of them.

    A feature is what the head makes its vector of, float32: pooled, if the head's first layer pools. They are kept in
    the data cache's folder, by all that they depend on, so that the runs of a sweep share them.
    """
    backbone, head = model.parts(task.model)
    pool, rest = _split(head)
    shape = pool.output_shape[1:] if pool else backbone.output_shape[1:]

    @tf.function(reduce_retracing=True)
    def extract(images: tf.Tensor) -> tf.Tensor:
        found = backbone(standardize(task, images), training=False)
        return tf.cast(pool(found) if pool else found, tf.float32)

    augments = any(node is not None for node in cfg.augmentation.values())
    identity = {
        "backbone": [cfg.backbone._target_, *_settings(cfg.backbone)],
        "weights": _digest(*(weight.value.numpy() for weight in backbone.weights)),
        "pool": pool and type(pool).__name__,
        "precision": task.precision,
        "fingerprint": data.fingerprint,
        "standardize": None if task.mean is None else [*map(float, task.mean), *map(float, task.deviation)],
    }
    of_training = identity | {"views": [views, cfg.seed, _plain(cfg.augmentation)]} if augments else identity
    root, size = cache.root(cfg.data.cache_dir), cfg.training.eval_batch_size

    def features(split: Split, identity: dict[str, Any], views: int, augment: Callable[..., Any] | None) -> Split:
        rows = {"rows": _digest(split.indices, split.labels[split.indices])}

        def make(folder: Path) -> dict[str, Any]:
            kept = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (views * len(split), *shape))
            targets = np.empty((views * len(split), task.num_classes), np.float32)
            end = 0
            for view in range(views):
                for number, (images, labels) in enumerate(batches.evaluation(split, batch_size=size)):
                    pixels, soft = prepare(task, images, labels)
                    if augment is not None:
                        seed = tf.constant([cfg.seed, view], tf.int32)
                        pixels, soft = augment(pixels, soft, tf.random.experimental.stateless_fold_in(seed, number))
                    begin, end = end, end + len(pixels)
                    kept[begin:end], targets[begin:end] = extract(pixels).numpy(), soft.numpy()
            kept.flush()
            np.save(folder / "targets.npy", targets, allow_pickle=False)
            return {"identity": identity}

        arrays, _ = cache.kept(root, NAME, identity | rows, ("features", "targets"), make)
        targets = arrays["targets"] if augment is not None else split.labels[split.indices]
        return Split(arrays["features"], targets, np.arange(len(split)), views)

    with layers.random_seed(tf.constant([cfg.seed, 0])):
        train = features(data.train, of_training, views, tf.function(task.augment) if augments else None)
        val = features(data.val, identity, 1, None) if len(data.val) else data.val
    kept = Dataset(data.name, data.classes, train, val, data.test, data.fingerprint, data.note)

    def targets(labels: tf.Tensor) -> tf.Tensor:
        return labels if labels.dtype.is_floating else tf.one_hot(labels, task.num_classes)

    return kept, View(
        train=lambda inputs, labels, seed: (inputs, targets(labels)),
        evaluate=lambda inputs, labels: (inputs, targets(labels)),
        network=lambda inputs, training: rest(inputs, training=training),
    )


def _split(head: keras.Model) -> tuple[keras.layers.Layer | None, keras.Model]:
    """Return the pooling that a head begins with, None if it begins otherwise, and the head from there on."""
    import keras

    pool = next((layer for layer in head.layers if layer.name == "head_pool"), None)
    if pool is None:
        return None, head
    return keras.Model(head.input, pool.output), keras.Model(pool.output, head.output)


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
