"""Batch normalisation, ReLU and max pooling of float32 maps as one, in passes over memory that XLA compiles.

A maximum of normalised values is the normalised maximum (or minimum, where the scale is negative), so that only what is
kept has to be normalised: a quarter. Forward, the map is read twice, and nothing of its size is written; backward, it is
read once, and its gradient written. On two cores that takes two thirds of the time of the six operations of TensorFlow
that it replaces, and compiling it half a second.
"""

from __future__ import annotations

import functools
import math

import tensorflow as tf

_LEAST_PIXELS = 1024  # of a map: of smaller ones, in the core's own cache, there is less to gain than compiling takes
_UNROLLED = 16  # pixels that a sum adds up itself: XLA's own reductions are slower, and less exact


def are_for(images: tf.Tensor) -> bool:
    """Say whether maps, [B, H, W, C], are what `normalized_and_pooled` is for and faster at."""
    _, height, width, _ = images.shape
    is_even = height % 2 == 0 and width % 2 == 0
    is_worth_it = images.dtype == tf.float32 and height * width >= _LEAST_PIXELS
    return is_even and is_worth_it and not tf.config.list_physical_devices("GPU")


def normalized_and_pooled(
    images: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, near: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return what a normalisation in training, ReLU and pooling of 2 x 2 make of float32 [B, H, W, C]: [B, H/2, W/2, C].

    And the mean and the (biased) variance, float32 [C], through which no gradient goes. near: what the mean is near to,
    float32 [C], so that the variance loses no digits. Where a window has its maximum twice, the first takes the
    gradient, as in TensorFlow's pooling.
    """
    # As tensors: of variables a trace that is kept may go on with those of an earlier run.
    settings = (tf.convert_to_tensor(setting) for setting in (scale, offset, near))
    outputs, mean, variance = _differentiable(epsilon)(images, *settings)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


@functools.cache
def _differentiable(epsilon: float):
    @tf.custom_gradient
    def apply(images, scale, offset, near):
        count = tf.cast(tf.reduce_prod(tf.shape(images)[:3]), tf.float32)
        moved, squares = tf.unstack(_moments(images, near) / count)
        mean, variance = near + moved, tf.maximum(squares - moved**2, 0)
        inverse = tf.math.rsqrt(variance + epsilon)
        slope = scale * inverse
        intercept = offset - mean * slope
        kept = _maxima(images, slope)
        outputs = _outputs(kept, slope, intercept)

        def gradient(upstream, *_):
            of_offset, products = tf.unstack(_sums(upstream, kept, slope, intercept, mean))
            of_scale = products * inverse
            linear = -slope * inverse * of_scale / count
            constant = -slope * of_offset / count - linear * mean
            return _spread(images, kept, upstream, slope, intercept, linear, constant), of_scale, of_offset, None

        return (outputs, mean, variance), gradient

    # A function that is traced once a shape: TensorFlow holds each graph that calls tf.custom_gradient for good.
    return tf.function(apply, autograph=False)


_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


@_compiled
def _moments(images, near):
    """Return the sums of differences and of their squares, [2, C]."""
    return _added_up([(values - near, (values - near) ** 2) for (values,) in _pixels(images)])


@_compiled
def _sums(upstream, kept, slope, intercept, mean):
    """Return the sums of the normalised maxima's gradients, and of their products with what was normalised, [2, C]."""
    terms = []
    for gradients, values in _pixels(upstream, kept):
        passed = _passed(gradients, values, slope, intercept)
        terms.append((passed, passed * (values - mean)))
    return _added_up(terms)


def _pixels(*maps):
    """Return, for each of a few pixels, the maps' values there, [B, the rest of the pixels, C] each."""
    _, height, width, channels = maps[0].shape
    number = math.gcd(height * width, _UNROLLED)
    reshaped = [tf.reshape(each, [-1, height * width // number, number, channels]) for each in maps]
    return [tuple(each[:, :, place] for each in reshaped) for place in range(number)]


def _added_up(terms):
    """Add two terms up, [B, pixels, C] each, to [2, C]: in three steps, so that roundings are few, and as one array."""
    first, second = (functools.reduce(tf.add, each)[:, :, tf.newaxis] for each in zip(*terms, strict=True))
    both = tf.where([[False], [True]], second, first)
    return tf.reduce_sum(tf.reduce_sum(both, 1), 0)


def _passed(gradients, values, slope, intercept):
    """Return the gradients that ReLU lets through."""
    return tf.where(values * slope + intercept > 0, gradients, 0.0)


@_compiled
def _outputs(kept, slope, intercept):
    return tf.nn.relu(kept * slope + intercept)


@_compiled
def _maxima(images, slope):
    """Return of each window the value that has the largest product with the slope: its maximum or its minimum."""
    sign = tf.where(slope < 0, -1.0, 1.0)
    windows = _windows(images) * sign
    return tf.reduce_max(tf.stack([windows[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]), 0) * sign


@_compiled
def _spread(images, kept, upstream, slope, intercept, linear, constant):
    """Return the gradient of the images: that of a maximum where it was, and what goes through mean and variance."""
    windows = _windows(images)
    gradient = _passed(upstream, kept, slope, intercept) * slope
    first = 3
    for place, (row, column) in reversed(list(enumerate(((0, 0), (0, 1), (1, 0))))):
        first = tf.where(windows[:, :, row, :, column] == kept, place, first)
    is_there = _wide(first) == tf.reshape(tf.range(4), [1, 1, 2, 1, 2, 1])
    return tf.reshape(tf.where(is_there, _wide(gradient), 0.0) + windows * linear + constant, tf.shape(images))


def _windows(images):
    _, height, width, channels = images.shape
    return tf.reshape(images, [-1, height // 2, 2, width // 2, 2, channels])


def _wide(pooled):
    return pooled[:, :, tf.newaxis, :, tf.newaxis]
