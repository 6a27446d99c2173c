"""Random numbers of a batch, from a seed, int32 [2]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cifar_research.runtime.lazy import tf

_QUANTILES = 4097  # draws are interpolated between them


def uniform(images: tf.Tensor, seed: tf.Tensor, *shape: int, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Draw float32 [B, *shape] from [low, high); a row's numbers do not depend on B."""
    return tf.random.stateless_uniform([tf.shape(images)[0], *shape], seed, low, high)


def positions(images: tf.Tensor, seed: tf.Tensor, counts: Sequence[int]) -> tf.Tensor:
    """Draw whole numbers float32 [B, len(counts)], each in [0, count)."""
    # Also in float32, n times the largest number below 1 is below n.
    return tf.floor(uniform(images, seed, len(counts)) * tf.constant(counts, tf.float32))


def order(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draw a permutation of the batch, int32 [B]."""
    return tf.argsort(uniform(images, seed))


def beta(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draw from Beta(alpha, alpha) by its quantiles, since XLA has no gamma distribution."""
    from scipy import stats  # an import of a second

    quantiles = stats.beta.ppf(np.linspace(0, 1, _QUANTILES), alpha, alpha).astype(np.float32)
    position = tf.random.stateless_uniform([], seed) * (_QUANTILES - 1)
    below = tf.floor(position)
    index = tf.cast(below, tf.int32)
    low, high = tf.gather(quantiles[:-1], index), tf.gather(quantiles[1:], index)
    return low + (position - below) * (high - low)
