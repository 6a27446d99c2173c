"""Batch normalisation's statistics, measured on training images before each evaluation."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from cifar_research.config.settings import Settings
from cifar_research.data.datasets import Split
from cifar_research.models import classifier, layers
from cifar_research.training.forward import Forward
from cifar_research.training.scoring import as_array, averaged_weights
from cifar_research.training.state import TrainState


def of_model(model: keras.Model) -> list[layers.BatchNormalization]:
    """Return the layers whose statistics `batch_norm.statistics` decides."""
    return [layer for layer in classifier.leaves(model) if isinstance(layer, layers.BatchNormalization)]


def measurement(
    settings: Settings, state: TrainState, train: Split, forward: Forward, strategy: tf.distribute.Strategy
) -> Callable[[], None]:
    """Return a function that sets moving statistics as `batch_norm.statistics` says (Wu and Johnson 2021).

    `precise`: means over batches of training images, not augmented, with the weights or their averages as they are, and
    without dropout. Statistics of frozen layers stay. `moving` and `debiased`: nothing, training has set them.
    """
    norms = of_model(state.model)
    if settings.batch_norm.statistics != "precise" or not norms:
        return lambda: None
    size = min(settings.training.batch_size, len(train))
    number = max(min(settings.batch_norm.images, len(train)) // size, 1)
    images = train.images[train.indices[measured(train, number * size)]]
    paths = {weight.path for layer in norms for weight in (layer.moving_mean, layer.moving_variance)}

    @tf.function(autograph=False)
    def measure(inputs: tf.Tensor, batches: tf.Tensor) -> None:
        inputs, _ = forward.evaluate(inputs, tf.zeros([size], tf.int64))
        with layers.measures_norms(batches), layers.called_with(several_images=size > 1):
            forward.network(inputs, True)

    def set_statistics() -> None:
        with averaged_weights(state):
            for batch in range(number):
                inputs = tf.constant(images[batch * size : (batch + 1) * size])
                strategy.run(measure, args=(inputs, tf.constant(float(batch))))
            values = {weight.path: as_array(weight.value) for weight in state.model.weights if weight.path in paths}
        for average, weight in zip(state.averages, state.model.weights, strict=bool(state.averages)):
            if weight.path in values:
                average.assign(values[weight.path])

    return set_statistics


def measured(train: Split, count: int) -> np.ndarray:
    """Return the numbers of the images that statistics are of, int64 [count], drawn as training draws them."""
    rng = np.random.default_rng(0)
    if train.chances is None:
        return rng.permutation(len(train))[:count]
    return rng.choice(len(train), count, p=train.chances)
