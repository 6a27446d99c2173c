"""Grad-CAM: which parts of an image support a class (Selvaraju et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cifar_research.models import classifier as models

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def maps(model: keras.Model, inputs: np.ndarray | tf.Tensor, classes: np.ndarray) -> np.ndarray:
    """Return heat maps float32 [B, h, w], at the size of the backbone's last feature map.

    model: from models.classifier; inputs: float [B, H, W, C]; classes: int [B], the class to explain in each image.
    A heat map is relu(sum_k a_k A_k) of the channels A_k; a_k is the logit's mean gradient over h and w. ValueError if
    the backbone does not end in a feature map [B, h, w, C].
    """
    import tensorflow as tf

    backbone, head = models.parts(model)
    features = backbone(inputs, training=False)
    if len(features.shape) != 4:
        raise ValueError(f"backbone: ends in {list(features.shape)}, and Grad-CAM needs a feature map [B, h, w, C]")
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = tf.cast(head(features, training=False), tf.float32)
        chosen = tf.gather(logits, classes, batch_dims=1)
    gradients = tape.gradient(chosen, features, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    weights = tf.reduce_mean(tf.cast(gradients, tf.float32), [1, 2], keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * tf.cast(features, tf.float32), -1)).numpy()


def enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps float32 [B, h, w] at (H, W), bilinear, with maximum 1, or all 0."""
    grown = [np.asarray(Image.fromarray(row).resize(size[::-1], Image.Resampling.BILINEAR)) for row in heat]
    return np.stack(grown) / np.maximum(np.max(grown, (1, 2), keepdims=True), 1e-12)
