"""Transforms that move pixels: flips, shift, crop, rotation, zoom."""

from __future__ import annotations

import math
from typing import Literal

from cifar_research.augmentation.contract import Transform, check_choice, check_range, uniform

Padding = Literal["edge", "reflect", "zeros"]
ProjectionPadding = Literal["edge", "zeros"]
Interpolation = Literal["nearest", "bilinear"]


def horizontal_flip(*, probability: float = 0.5) -> Transform:
    """Mirror left and right, each image with this probability."""
    return _flip("columns", probability)


def vertical_flip(*, probability: float = 0.5) -> Transform:
    """Mirror top and bottom, each image with this probability."""
    return _flip("rows", probability)


def alternating_flip() -> Transform:
    """Mirror a random half of the images left and right in the first epoch, the others in the next, and so on.

    So every two epochs see each image both ways (Jordan 2024, arXiv 2404.00498, section 3.6). The halves depend on the
    run's seed and on an image's own pixels: give it before transforms that change them.
    """

    def transform(images, targets, seed):
        import tensorflow as tf

        grey = tf.cast(tf.round(images * 255), tf.int32)
        # A sum of products, whose bits from the middle up depend on all pixels and on the seed.
        weights = tf.random.stateless_uniform(grey.shape[1:], [seed[0], 0], 1, 2**16, tf.int32)
        sums = tf.reduce_sum(grey * weights, axis=[1, 2, 3])
        is_first = tf.bitwise.bitwise_and(tf.bitwise.right_shift(sums, 12), 1) == 1
        return flip(images, is_first != (seed[1] % 2 == 1), axis="columns"), targets

    transform.by_epoch = True
    return transform


def _flip(axis: Literal["rows", "columns"], probability: float) -> Transform:
    check_range("probability", probability, 0, 1)

    def transform(images, targets, seed):
        return flip(images, uniform(images, seed) < probability, axis=axis), targets

    return transform


def shift(*, pixels: int | None = None, fraction: float | None = None, padding: Padding = "edge") -> Transform:
    """Move each image by whole pixels, uniform in [-limit, limit], along each axis.

    The limit is `pixels`, or `fraction` of the axis rounded to pixels; the other of the two is None.
    """
    if (pixels is None) == (fraction is None):
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
        steps = uniform(images, seed, 2) * tf.constant([2.0 * limit + 1 for limit in limits])
        return translate(images, tf.cast(steps, tf.int32) - limits, padding=padding), targets

    return transform


def crop(*, padding_pixels: int = 4, padding: Padding = "zeros") -> Transform:
    """Pad each side and cut the original size out at a place drawn for each image (He et al. 2016)."""
    check_range("padding_pixels", padding_pixels, 0)
    # That is a shift, by up to the padding, of what lies inside the frame and of what the padding shows.
    return shift(pixels=padding_pixels, padding=padding)


def rotation(
    *, degrees: float = 15.0, interpolation: Interpolation = "bilinear", padding: ProjectionPadding = "edge"
) -> Transform:
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
) -> Transform:
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
    import tensorflow as tf

    places = tf.range(images.shape[1] if axis == "rows" else images.shape[2])
    # A gather takes a third of the time of tf.where between the images and their mirror images.
    places = tf.where(chosen[:, None], places[::-1], places)
    return _take(images, places, None) if axis == "rows" else _take(images, None, places)


def translate(images, offsets, *, padding: Padding = "edge"):
    """Move image i down by offsets[i, 0] and right by offsets[i, 1]; offsets: int32 [B, 2].

    Beyond the frame: `edge` repeats the outermost pixels, `reflect` mirrors the image without repeating them,
    as numpy.pad does, `zeros` is black.
    """
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

    return _take(images, inside(rows, images.shape[1]), inside(columns, images.shape[2]))


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


def _project(images, matrix, interpolation: Interpolation, padding: ProjectionPadding):
    """Let (x, y), seen from the centre, show what was at (a x + b y, c x + d y); matrix: a, b, c, d [B]."""
    import tensorflow as tf

    height, width = images.shape[1:3]
    centre = [(width - 1) / 2, (height - 1) / 2]
    linear = tf.reshape(tf.stack(matrix, axis=1), [-1, 2, 2])
    # Written a * x + b * y, a graph would be optimized to other roundings than the same eagerly.
    offsets = centre - tf.reduce_sum(linear * centre, axis=2)
    transforms = tf.reshape(tf.concat([linear, offsets[:, :, None]], axis=2), [-1, 6])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.pad(transforms, [[0, 0], [0, 2]]),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation=interpolation.upper(),
        fill_mode={"edge": "NEAREST", "zeros": "CONSTANT"}[padding],
    )


def _take(images, rows, columns):
    """Return images whose pixel [i, r, c] is that at [i, rows[i, r], columns[i, c]]; None is all in order."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    first_rows = tf.range(tf.shape(images)[0])[:, None] * height
    if columns is None:
        taken = tf.gather(tf.reshape(images, [-1, width * channels]), first_rows + rows)
        return tf.reshape(taken, [-1, rows.shape[1], width, channels])
    # One gather from a flat list of pixels is faster than one along rows and one along columns.
    rows = first_rows + (tf.range(height) if rows is None else rows)
    return tf.gather(tf.reshape(images, [-1, channels]), rows[:, :, None] * width + columns[:, None, :])
