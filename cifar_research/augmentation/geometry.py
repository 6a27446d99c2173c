"""Geometric transforms: flips, shifts, rotation, zoom."""

from __future__ import annotations

import functools
from collections.abc import Callable

from cifar_research.runtime.lazy import tf


def _compiled(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Return a function compiled by XLA at its first call, when TensorFlow is imported.

    XLA fuses it into one pass over memory, several times as fast. On a GPU it also keeps int32 arithmetic there:
    TensorFlow's own runs on the host.
    """
    compiled = functools.cache(lambda: tf.function(function, jit_compile=True, autograph=False))
    return functools.wraps(function)(lambda *arguments, **settings: compiled()(*arguments, **settings))


@_compiled
def flip(images: tf.Tensor, chosen: tf.Tensor, *, axis: int) -> tf.Tensor:
    """Reverse the rows (axis 1) or columns (axis 2) of the chosen images; chosen: bool [B]."""
    return tf.where(chosen[:, None, None, None], tf.reverse(images, [axis]), images)


@_compiled
def is_in_first_half(images: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return which images are in the first half, bool [B]; weights: int32 [H, W, C]."""
    grey = tf.cast(tf.round(images * 255), tf.int32)
    # The middle bits of a sum of products depend on all pixels and weights.
    sums = tf.reduce_sum(grey * weights, axis=[1, 2, 3])
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(sums, 12), 1) == 1


@_compiled
def translate(images: tf.Tensor, offsets: tf.Tensor, *, padding: str = "edge") -> tf.Tensor:
    """Move image i down by offsets[i, 0] and right by offsets[i, 1].

    offsets: whole numbers [B, 2]. padding: `edge` repeats the outermost pixels, `zeros` is black, `reflect` mirrors the
    image without repeating its edge, as numpy.pad does.
    """
    offsets = tf.cast(offsets, tf.int32)
    rows = tf.range(images.shape[1]) - offsets[:, :1]
    columns = tf.range(images.shape[2]) - offsets[:, 1:]
    if padding == "zeros":
        # With a black border, repeating the edge gives black.
        images, rows, columns = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), rows + 1, columns + 1

    def inside(places: tf.Tensor, size: int) -> tf.Tensor:
        if padding == "reflect":
            places = tf.math.floormod(places, max(2 * size - 2, 1))
            places = tf.minimum(places, 2 * size - 2 - places)
        return tf.clip_by_value(places, 0, size - 1)

    height, width = images.shape[1:3]
    return _pixels_at(images, inside(rows, height)[:, :, None], inside(columns, width)[:, None, :])


def rotate(
    images: tf.Tensor, radians: tf.Tensor, *, interpolation: str = "bilinear", padding: str = "edge"
) -> tf.Tensor:
    """Rotate image i about its centre by radians[i], float32 [B], counter-clockwise."""
    cosines, sines = tf.cos(radians), tf.sin(radians)
    return _project(images, tf.stack([cosines, -sines, sines, cosines], axis=1), interpolation, padding)


def magnify(
    images: tf.Tensor, factors: tf.Tensor, *, interpolation: str = "bilinear", padding: str = "edge"
) -> tf.Tensor:
    """Enlarge image i about its centre by factors[i], float32 [B] above 0."""
    zeros = tf.zeros_like(factors)
    # A graph turns 1 / factors into this, which differs in the last bit: use it in both modes.
    inverses = tf.math.reciprocal(factors)
    return _project(images, tf.stack([inverses, zeros, zeros, inverses], axis=1), interpolation, padding)


@_compiled
def _project(images: tf.Tensor, matrix: tf.Tensor, interpolation: str, padding: str) -> tf.Tensor:
    """Map (x, y), from the centre, to the old pixel at (a x + b y, c x + d y).

    matrix: a, b, c, d [B, 4]. interpolation: bilinear or nearest. padding: edge or zeros.
    """
    height, width = images.shape[1:3]
    a, b, c, d = (matrix[:, i, None, None] for i in range(4))
    x = tf.range(width, dtype=tf.float32) - (width - 1) / 2
    y = (tf.range(height, dtype=tf.float32) - (height - 1) / 2)[:, None]
    columns, rows = a * x + b * y + (width - 1) / 2, c * x + d * y + (height - 1) / 2

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        row, column = tf.cast(row, tf.int32), tf.cast(column, tf.int32)
        row_inside, column_inside = tf.clip_by_value(row, 0, height - 1), tf.clip_by_value(column, 0, width - 1)
        pixels = _pixels_at(images, row_inside, column_inside)
        if padding == "edge":
            return pixels
        return tf.where(((row == row_inside) & (column == column_inside))[..., None], pixels, 0.0)

    if interpolation == "nearest":
        return at(tf.floor(rows + 0.5), tf.floor(columns + 0.5))
    top, left = tf.floor(rows), tf.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - down) + below * down


def _pixels_at(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Return pixels [B, h, w, C] at rows and columns, int32, which broadcast to [B, h, w]."""
    height, width, channels = images.shape[1:]
    first = (tf.range(tf.shape(images)[0]) * (height * width))[:, None, None]
    return tf.gather(tf.reshape(images, [-1, channels]), first + rows * width + columns)
