"""Transforms that move pixels: flips, shift, crop, rotation, zoom."""

from __future__ import annotations

import functools
import math
from typing import Literal

from cifar_research.augmentation.draws import BatchTransform, check_choice, check_range, uniform
from cifar_research.config.contracts import Transform

Padding = Literal["edge", "reflect", "zeros"]
ProjectionPadding = Literal["edge", "zeros"]
Interpolation = Literal["nearest", "bilinear"]


def horizontal_flip(*, probability: float = 0.5) -> BatchTransform:
    """Mirror left and right, each image with this probability."""
    return _flip("columns", probability)


def vertical_flip(*, probability: float = 0.5) -> BatchTransform:
    """Mirror top and bottom, each image with this probability."""
    return _flip("rows", probability)


def alternating_flip() -> Transform:
    """Mirror a random half of the images left and right in the first epoch, the others in the next, and so on.

    So every two epochs see each image both ways (Jordan 2024, arXiv 2404.00498, section 3.6). The halves depend on the
    run's seed and on an image's own pixels: give it before transforms that change them.
    """

    def apply(images, targets, seed):
        import tensorflow as tf

        weights = tf.random.stateless_uniform(images.shape[1:], [seed[0], 0], 1, 2**16, tf.int32)
        is_first = _compiled(_is_of_first_half)(images, weights)
        return flip(images, is_first != (seed[1] % 2 == 1), axis="columns"), targets

    return Transform(apply, by_epoch=True)


def _is_of_first_half(images, weights):
    import tensorflow as tf

    grey = tf.cast(tf.round(images * 255), tf.int32)
    # A sum of products, whose bits from the middle up depend on all pixels and on the seed.
    sums = tf.reduce_sum(grey * weights, axis=[1, 2, 3])
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(sums, 12), 1) == 1


def _flip(axis: Literal["rows", "columns"], probability: float) -> BatchTransform:
    check_range("probability", probability, 0, 1)

    def transform(images, targets, seed):
        return flip(images, uniform(images, seed) < probability, axis=axis), targets

    return transform


def shift(*, pixels: int | None = None, fraction: float | None = None, padding: Padding = "edge") -> BatchTransform:
    """Move each image by whole pixels, uniform in [-limit, limit], along each axis.

    The limit is `pixels`, or `fraction` of the axis rounded to pixels; the other of the two is None.
    """
    if pixels is None and fraction is None:
        raise ValueError("pixels: null and fraction=null leave no limit; give one of them")
    if pixels is not None and fraction is not None:
        raise ValueError(f"pixels: {pixels} does not go with fraction={fraction}; give one and make the other null")
    if pixels is not None:
        check_range("pixels", pixels, 0)
    if fraction is not None:
        check_range("fraction", fraction, 0, 1)
    check_choice("padding", padding, Padding)

    def transform(images, targets, seed):
        import tensorflow as tf

        limits = [pixels if fraction is None else round(fraction * size) for size in images.shape[1:3]]
        # The largest uniform below 1 times n is below n in float32 too, so the casts give 0 ... 2 * limit.
        steps = tf.floor(uniform(images, seed, 2) * tf.constant([2.0 * limit + 1 for limit in limits]))
        return translate(images, tf.cast(steps - tf.cast(limits, tf.float32), tf.int32), padding=padding), targets

    return transform


def crop(*, padding_pixels: int = 4, padding: Padding = "zeros") -> BatchTransform:
    """Pad each side and cut the original size out at a place drawn for each image (He et al. 2016)."""
    check_range("padding_pixels", padding_pixels, 0)
    # That is a shift, by up to the padding, of what lies inside the frame and of what the padding shows.
    return shift(pixels=padding_pixels, padding=padding)


def rotation(
    *, degrees: float = 15.0, interpolation: Interpolation = "bilinear", padding: ProjectionPadding = "edge"
) -> BatchTransform:
    """Rotate each image about its centre by an angle uniform in [-degrees, degrees]."""
    check_range("degrees", degrees, 0, 180)
    check_choice("interpolation", interpolation, Interpolation)
    check_choice("padding", padding, ProjectionPadding)

    def transform(images, targets, seed):
        angles = uniform(images, seed, low=-math.radians(degrees), high=math.radians(degrees))
        return rotate(images, angles, interpolation=interpolation, padding=padding), targets

    return transform


def zoom(
    *,
    low: float = 0.9,
    high: float = 1.1,
    interpolation: Interpolation = "bilinear",
    padding: ProjectionPadding = "edge",
) -> BatchTransform:
    """Magnify each image about its centre by a factor uniform in [low, high]; below 1 it shrinks."""
    check_range("low", low, 0, excluded=True)
    check_range("high", high, 0, excluded=True)
    if low > high:
        raise ValueError(f"low: {low} is above high, {high}; it must be at most that")
    check_choice("interpolation", interpolation, Interpolation)
    check_choice("padding", padding, ProjectionPadding)

    def transform(images, targets, seed):
        factors = uniform(images, seed, low=low, high=high)
        return magnify(images, factors, interpolation=interpolation, padding=padding), targets

    return transform


def flip(images, chosen, *, axis: Literal["rows", "columns"]):
    """Reverse the order of rows or columns in the chosen images; chosen: bool [B]."""
    return _compiled(_flip_chosen)(images, chosen, axis)


def _flip_chosen(images, chosen, axis: Literal["rows", "columns"]):
    import tensorflow as tf

    mirrored = tf.reverse(images, [1 if axis == "rows" else 2])
    return tf.where(chosen[:, None, None, None], mirrored, images)


def translate(images, offsets, *, padding: Padding = "edge"):
    """Move image i down by offsets[i, 0] and right by offsets[i, 1]; offsets: int32 [B, 2].

    Beyond the frame: `edge` repeats the outermost pixels, `reflect` mirrors the image without repeating them,
    as numpy.pad does, `zeros` is black.
    """
    return _compiled(_moved)(images, offsets, padding)


def _moved(images, offsets, padding: Padding):
    import tensorflow as tf

    rows = tf.range(images.shape[1]) - offsets[:, :1]
    columns = tf.range(images.shape[2]) - offsets[:, 1:]
    if padding == "zeros":
        # Black is what repeats when the outermost pixels are black.
        images, rows, columns = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), rows + 1, columns + 1

    def inside(places, size):
        if padding == "reflect":
            places = tf.math.floormod(places, max(2 * size - 2, 1))
            places = tf.minimum(places, 2 * size - 2 - places)
        return tf.clip_by_value(places, 0, size - 1)

    height, width, channels = images.shape[1:]
    rows, columns = inside(rows, height), inside(columns, width)
    first = (tf.range(tf.shape(images)[0]) * (height * width))[:, None, None]
    return tf.gather(tf.reshape(images, [-1, channels]), first + rows[:, :, None] * width + columns[:, None, :])


def rotate(images, radians, *, interpolation: Interpolation = "bilinear", padding: ProjectionPadding = "edge"):
    """Rotate image i about its centre by radians[i], float32 [B], counter-clockwise as it is seen."""
    import tensorflow as tf

    cosines, sines = tf.cos(radians), tf.sin(radians)
    return _project(images, [cosines, -sines, sines, cosines], interpolation, padding)


def magnify(images, factors, *, interpolation: Interpolation = "bilinear", padding: ProjectionPadding = "edge"):
    """Enlarge image i about its centre by factors[i], float32 [B] above 0, and keep its size in pixels."""
    import tensorflow as tf

    zeros = tf.zeros_like(factors)
    # 1 / factors would become this in a graph, and differ from the division in the last bit.
    inverses = tf.math.reciprocal(factors)
    return _project(images, [inverses, zeros, zeros, inverses], interpolation, padding)


def shrink(images, size: int):
    """Return images [B, size, size, C] of which each pixel is the mean of those it covers, in parts perhaps."""
    import numpy as np
    import tensorflow as tf

    def shares(length: int):
        """Return how much of each of the new pixels, in rows, lies in which of the old ones."""
        edges = np.linspace(0, length, size + 1)[:, None]
        inside = np.clip(
            np.minimum(edges[1:], np.arange(1, length + 1)) - np.maximum(edges[:-1], np.arange(length)), 0, None
        )
        return (inside * size / length).astype(np.float32)

    # By products of matrices, which XLA and a GPU know; tf.image.resize by area is on processors alone.
    return tf.einsum("ph,bhwc,qw->bpqc", shares(images.shape[1]), images, shares(images.shape[2]))


def _project(images, matrix, interpolation: Interpolation, padding: ProjectionPadding):
    """Let (x, y), seen from the centre, show what was at (a x + b y, c x + d y); matrix: a, b, c, d [B]."""
    import tensorflow as tf

    return _compiled(_sample)(images, tf.stack(matrix, axis=1), interpolation, padding)


def _sample(images, matrix, interpolation: Interpolation, padding: ProjectionPadding):
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    a, b, c, d = (matrix[:, i, None, None] for i in range(4))
    x = tf.range(width, dtype=tf.float32) - (width - 1) / 2
    y = (tf.range(height, dtype=tf.float32) - (height - 1) / 2)[:, None]
    columns, rows = a * x + b * y + (width - 1) / 2, c * x + d * y + (height - 1) / 2
    pixels = tf.reshape(images, [-1, channels])
    first = (tf.range(tf.shape(images)[0]) * (height * width))[:, None, None]

    def at(row, column):
        row, column = tf.cast(row, tf.int32), tf.cast(column, tf.int32)
        inside = tf.clip_by_value(row, 0, height - 1), tf.clip_by_value(column, 0, width - 1)
        taken = tf.gather(pixels, first + inside[0] * width + inside[1])
        if padding == "edge":
            return taken
        return tf.where(((row == inside[0]) & (column == inside[1]))[..., None], taken, 0.0)

    if interpolation == "nearest":
        return at(tf.floor(rows + 0.5), tf.floor(columns + 0.5))
    top, left = tf.floor(rows), tf.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - down) + below * down


@functools.cache
def _compiled(function):
    """Return a function as one pass over memory: XLA fuses what draws no random numbers, several times as fast here.

    On a GPU it also keeps whole numbers there: TensorFlow's own int32 arithmetic is done in the host's memory.
    """
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)
