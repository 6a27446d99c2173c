"""Transforms that hide a part of an image, or mix it with another of its batch: cutout, mixup, cutmix."""

from __future__ import annotations

from cifar_research.augmentation.draws import BatchTransform, check_range, uniform

_QUANTILES = 4097  # of a distribution, between which its draws are interpolated


def cutout(*, size: int = 8) -> BatchTransform:
    """Grey out a square of size x size pixels, centred anywhere in the image (DeVries and Taylor 2017)."""
    check_range("size", size, 1)

    def transform(images, targets, seed):
        import tensorflow as tf

        centres = tf.floor(uniform(images, seed, 2) * _sizes(images))
        return erase(images, centres - size // 2, size=size), targets

    return transform


def mixup(*, alpha: float = 0.2) -> BatchTransform:
    """Blend the batch with itself reordered, by a weight from Beta(alpha, alpha) (Zhang et al. 2018)."""
    check_range("alpha", alpha, 0, excluded=True)

    def transform(images, targets, seed):
        import tensorflow as tf

        weight_seed, order_seed = tf.unstack(tf.random.split(seed, 2))
        return blend(images, targets, weight=_beta(alpha, weight_seed), order=_order(images, order_seed))

    return transform


def cutmix(*, alpha: float = 1.0) -> BatchTransform:
    """Paste into each image a box of a partner from the same batch, at the same place (Yun et al. 2019).

    One box a batch, its share of the area from Beta(alpha, alpha), centred anywhere and cut at the sides.
    """
    check_range("alpha", alpha, 0, excluded=True)

    def transform(images, targets, seed):
        import tensorflow as tf

        share_seed, centre_seed, order_seed = tf.unstack(tf.random.split(seed, 3))
        sizes = _sizes(images)
        extents = sizes * tf.sqrt(_beta(alpha, share_seed))
        starts = tf.random.stateless_uniform([2], centre_seed) * sizes - extents / 2
        box = tf.round(tf.concat([starts, starts + extents], axis=0))
        return paste(images, targets, box=box, order=_order(images, order_seed))

    return transform


def erase(images, corners, *, size: int):
    """Set a square of image i to grey, 0.5; corners: whole numbers [B, 2], its first row and column, may lie outside.

    The paper sets it to zero after taking out the training set's mean; 0.5 stands for that mean here.
    """
    import tensorflow as tf

    corners = tf.cast(corners, tf.float32)
    rows, columns = _spans(images, corners, corners + size)
    return _replace(images, 0.5, rows, columns)


def blend(images, targets, *, weight, order):
    """Blend each example with a partner from the same batch (Zhang et al. 2018).

    weight: share kept from the original, float32 scalar in [0, 1].
    order: int32 [B]; row i is blended with row order[i].
    """
    import tensorflow as tf

    return tuple(weight * rows + (1 - weight) * tf.gather(rows, order) for rows in (images, targets))


def paste(images, targets, *, box, order):
    """Paste a box of a partner into each image and blend the targets by area (Yun et al. 2019).

    box: whole numbers [4], first row, first column, row after the last, column after the last; may reach outside.
    order: int32 [B]; row i gets the box of row order[i].
    """
    import tensorflow as tf

    box = tf.cast(box, tf.float32)
    rows, columns = _spans(images, box[None, :2], box[None, 2:])
    area = tf.math.count_nonzero(rows, dtype=tf.float32) * tf.math.count_nonzero(columns, dtype=tf.float32)
    # Not by `/`, which a graph makes a product of, whose last bit is another one.
    kept = 1 - tf.math.divide_no_nan(area, float(images.shape[1] * images.shape[2]))
    mixed = _replace(images, tf.gather(images, order), rows, columns)
    return mixed, kept * targets + (1 - kept) * tf.gather(targets, order)


def _sizes(images):
    """Return height and width, float32 [2]."""
    import tensorflow as tf

    return tf.constant(images.shape[1:3].as_list(), tf.float32)


def _spans(images, starts, ends):
    """Say which rows, bool [N, H], and columns, bool [N, W], lie between starts and ends, whole float32 [N, 2].

    As floats, since TensorFlow compares int32 in the host's memory, also where images are on a GPU.
    """
    import tensorflow as tf

    places = (tf.range(size, dtype=tf.float32) for size in images.shape[1:3])
    return tuple((at >= starts[:, i, None]) & (at < ends[:, i, None]) for i, at in enumerate(places))


def _replace(images, replacement, rows, columns):
    """Put `replacement`, images or a number, where rows, bool [B|1, H], and columns, bool [B|1, W], meet."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    images = tf.reshape(images, [-1, height, width * channels])
    if tf.is_tensor(replacement):
        replacement = tf.reshape(replacement, [-1, height, width * channels])
    # Spread over channels and batch first: tf.where is slow when it has to.
    inside = rows[:, :, None] & tf.repeat(columns, channels, axis=1)[:, None, :]
    inside = tf.broadcast_to(inside, tf.shape(images))
    return tf.reshape(tf.where(inside, replacement, images), [-1, height, width, channels])


def _beta(alpha: float, seed):
    """Draw from Beta(alpha, alpha) by its quantiles, since XLA has no gamma distribution to make it from."""
    import numpy as np
    import tensorflow as tf
    from scipy import stats

    quantiles = stats.beta.ppf(np.linspace(0, 1, _QUANTILES), alpha, alpha).astype(np.float32)
    place = tf.random.stateless_uniform([], seed) * (_QUANTILES - 1)
    below = tf.floor(place)
    low, high = (tf.gather(quantiles[part], tf.cast(below, tf.int32)) for part in (np.s_[:-1], np.s_[1:]))
    return low + (place - below) * (high - low)


def _order(images, seed):
    """Draw a permutation of the batch, int32 [B]."""
    import tensorflow as tf

    return tf.argsort(uniform(images, seed))
