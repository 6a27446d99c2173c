"""Forward passes: from a batch of images or kept features to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from cifar_research.augmentation.tta import Network, averaged


@dataclass(frozen=True)
class Preprocessing:
    """The processing of images and labels before the network.

    augment: (images float32 [B, H, W, C] in [0, 1], targets [B, K], seed and epoch_seed int32 [2]) -> the first two.
    mean, standard_deviation: float32 [C], per channel of the training images; None leaves images in [0, 1].
    """

    num_classes: int
    augment: Callable[..., tuple[Any, Any]]
    mean: Any = None
    standard_deviation: Any = None

    def prepare(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return images float32 [B, H, W, C] in [0, 1] and one-hot targets [B, K]."""
        return tf.cast(images, tf.float32) / 255, tf.one_hot(labels, self.num_classes)

    def standardize(self, images: tf.Tensor) -> tf.Tensor:
        """Return images with zero mean and unit variance by channel, if so configured."""
        return images if self.mean is None else (images - self.mean) / self.standard_deviation


@dataclass(frozen=True)
class Forward:
    """The forward pass of a phase: from a batch of the data set to logits and targets.

    train: (inputs, labels, seed int32 [2], epoch_seed int32 [2]) -> (inputs, targets float32 [B, K]).
    evaluate: (inputs, labels) -> the same. penalties: () -> losses added by the network's last call.
    """

    train: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    evaluate: Callable[[Any, Any], tuple[Any, Any]]
    network: Network
    penalties: Callable[[], list[Any]]


def of_images(
    preprocessing: Preprocessing,
    model: keras.Model,
    network: Network | None = None,
    *,
    views: str = "none",
) -> Forward:
    """Return the forward pass of images uint8 [B, H, W, C] and labels int64 [B].

    Images are augmented in training. network: from float32 images to logits; None: the whole model. views: of test-time
    augmentation.
    """

    def train(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, epoch_seed: tf.Tensor) -> tuple[Any, Any]:
        images, targets = preprocessing.augment(*preprocessing.prepare(images, labels), seed, epoch_seed)
        return preprocessing.standardize(images), targets

    def evaluate(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, targets = preprocessing.prepare(images, labels)
        return preprocessing.standardize(images), targets

    whole = network or (lambda images, training: model(images, training=training))
    return Forward(train, evaluate, averaged(whole, views), lambda: model.losses)
