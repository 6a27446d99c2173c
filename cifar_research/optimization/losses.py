"""Losses: (logits float [B, K], targets float [B, K]) -> float32 [B], one loss an image."""

from __future__ import annotations

from collections.abc import Callable

from cifar_research.config.targets import check_range
from cifar_research.runtime.lazy import tf

Loss = Callable[["tf.Tensor", "tf.Tensor"], "tf.Tensor"]


def categorical_crossentropy(*, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy in nats: -sum_k targets_k log softmax(logits)_k.

    label_smoothing: The share of each target that is spread evenly over all classes (Szegedy et al. 2016).
    """
    check_range("[)", 0, 1, label_smoothing=label_smoothing)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax_cross_entropy_with_logits(_smooth(targets, label_smoothing), logits)

    return loss


def mean_squared_error(*, label_smoothing: float = 0.0) -> Loss:
    """Brier score over K: mean_k (softmax(logits)_k - targets_k)^2 (Brier 1950)."""
    check_range("[)", 0, 1, label_smoothing=label_smoothing)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        difference = tf.math.squared_difference(tf.nn.softmax(logits), _smooth(targets, label_smoothing))
        return tf.reduce_mean(difference, axis=-1)

    return loss


def _smooth(targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    if label_smoothing == 0:
        return targets
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
