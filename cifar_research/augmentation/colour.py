"""Transforms that change pixels where they are; factors as in torchvision's ColorJitter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cifar_research.augmentation.draws import BatchTransform, check_range, uniform

# Share of red, green and blue in the grey of a pixel (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def brightness(*, amount: float = 0.2) -> BatchTransform:
    """Multiply each image by a factor uniform in [1 - amount, 1 + amount]."""
    return _jitter(amount, adjust_brightness)


def contrast(*, amount: float = 0.2) -> BatchTransform:
    """Scale each image's distance from its own mean grey by a factor uniform in [1 - amount, 1 + amount]."""
    return _jitter(amount, adjust_contrast)


def saturation(*, amount: float = 0.2) -> BatchTransform:
    """Scale each pixel's distance from its own grey by a factor uniform in [1 - amount, 1 + amount]."""
    return _jitter(amount, adjust_saturation)


def _jitter(amount: float, adjust: Callable[[Any, Any], Any]) -> BatchTransform:
    check_range("amount", amount, 0, 1)

    def transform(images, targets, seed):
        return adjust(images, uniform(images, seed, low=1 - amount, high=1 + amount)), targets

    return transform


def adjust_brightness(images, factors):
    """Multiply image i by factors[i], float32 [B], and cut to [0, 1]."""
    import tensorflow as tf

    return tf.clip_by_value(images * factors[:, None, None, None], 0, 1)


def adjust_contrast(images, factors):
    """Blend image i, RGB, with its mean grey: 0 is that grey all over, 1 the image, above 1 more contrast."""
    import tensorflow as tf

    factors = factors[:, None, None, None]
    grey = tf.reduce_sum(tf.reduce_mean(images, axis=[1, 2], keepdims=True) * LUMA, axis=-1, keepdims=True)
    return tf.clip_by_value(factors * images + (1 - factors) * grey, 0, 1)


def adjust_saturation(images, factors):
    """Blend image i, RGB, with its greyscale version: 0 is grey, 1 the image, above 1 more colourful."""
    import tensorflow as tf

    factors = factors[:, None, None]
    # As one 3 x 3 matrix an image (Haeberli 1993): half the time of computing grey pixels to blend with.
    matrices = factors * tf.eye(3) + (1 - factors) * LUMA[:, None]
    height, width, channels = images.shape[1:]
    pixels = tf.matmul(tf.reshape(images, [-1, height * width, channels]), matrices)
    return tf.clip_by_value(tf.reshape(pixels, [-1, height, width, channels]), 0, 1)
