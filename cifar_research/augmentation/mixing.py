"""Transforms that replace a part of an image, or mix it with others of its batch."""

from __future__ import annotations

from cifar_research.runtime.lazy import tf


def erase(images: tf.Tensor, corners: tf.Tensor, *, size: int) -> tf.Tensor:
    """Set a square of image i to grey, 0.5.

    corners: float32 [B, 2], the first row and column, which may be outside the image. The paper sets it to 0 in
    standardized images; 0.5 stands for that mean here.
    """
    rows, columns = _spans(images, corners, corners + size)
    return _replace(images, 0.5, rows, columns)


def blend(images: tf.Tensor, targets: tf.Tensor, *, weight: tf.Tensor, order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blend each example with another one of the same batch (Zhang et al. 2018).

    weight: the share of the original, float32 scalar in [0, 1]. order: int32 [B]; row i is blended with row order[i].
    """
    partner_images, partner_targets = tf.gather(images, order), tf.gather(targets, order)
    return weight * images + (1 - weight) * partner_images, weight * targets + (1 - weight) * partner_targets


def paste(images: tf.Tensor, targets: tf.Tensor, *, box: tf.Tensor, order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Replace a box of each image by that of another, and blend the targets by area.

    box: float32 [4]: first row, first column, row after the last, column after the last; may exceed the image.
    order: int32 [B]; row i gets the box of row order[i].
    """
    rows, columns = _spans(images, box[None, :2], box[None, 2:])
    area = tf.math.count_nonzero(rows, dtype=tf.float32) * tf.math.count_nonzero(columns, dtype=tf.float32)
    # A graph turns `/` into a product, whose last bit differs.
    own_share = 1 - tf.math.divide_no_nan(area, float(images.shape[1] * images.shape[2]))
    mixed = _replace(images, tf.gather(images, order), rows, columns)
    return mixed, own_share * targets + (1 - own_share) * tf.gather(targets, order)


def _spans(images: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the rows, bool [N, H], and columns, bool [N, W], between starts and ends.

    These are float32 [N, 2], since TensorFlow compares int32 on the host, even with images on a GPU.
    """
    rows, columns = (tf.range(size, dtype=tf.float32) for size in images.shape[1:3])
    return (
        (rows >= starts[:, :1]) & (rows < ends[:, :1]),
        (columns >= starts[:, 1:]) & (columns < ends[:, 1:]),
    )


def _replace(images: tf.Tensor, replacement: tf.Tensor | float, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Replace pixels where rows, bool [B|1, H], and columns, bool [B|1, W], meet."""
    height, width, channels = images.shape[1:]
    images = tf.reshape(images, [-1, height, width * channels])
    if tf.is_tensor(replacement):
        replacement = tf.reshape(replacement, [-1, height, width * channels])
    # Broadcast over channels and batch first: tf.where is slow at it.
    inside = rows[:, :, None] & tf.repeat(columns, channels, axis=1)[:, None, :]
    inside = tf.broadcast_to(inside, tf.shape(images))
    return tf.reshape(tf.where(inside, replacement, images), [-1, height, width, channels])
