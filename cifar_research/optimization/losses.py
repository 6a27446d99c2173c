"""Losses: (logits float [B, K], targets float [B, K]) -> float32 [B], one loss an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifar_research.config.contracts import Loss, LossFunction
from cifar_research.config.targets import check_range, choice_problem
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.lazy import tf

if TYPE_CHECKING:
    import numpy as np

_WEIGHTS = ("none", "balanced", "effective_number")
_EFFECTIVE_BETA = 0.9999  # of Cui et al.
_LOG_OF_ZERO = -4.0  # of Wang et al.
_LEAST = 2.0**-24  # the smallest difference from 1 in float32


def categorical_crossentropy(*, label_smoothing: float = 0.0, class_weights: str | Sequence[float] = "none") -> Loss:
    """Cross-entropy in nats: -sum_k targets_k log softmax(logits)_k.

    label_smoothing: The share of each target that is spread evenly over all classes (Szegedy et al. 2016).
    class_weights: The weight of each class's images in training; `balanced` or `effective_number`, or a list.
    """
    check_range("[)", 0, 1, label_smoothing=label_smoothing)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax_cross_entropy_with_logits(_smooth(targets, label_smoothing), logits)

    def of_weighted(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        # TensorFlow's own cross-entropy has the gradient of targets that sum to 1.
        return -tf.reduce_sum(_smooth_weighted(targets, label_smoothing) * tf.nn.log_softmax(logits), axis=-1)

    return _weighted(loss, of_weighted, class_weights)


def mean_squared_error(*, label_smoothing: float = 0.0, class_weights: str | Sequence[float] = "none") -> Loss:
    """Brier score over K: mean_k (softmax(logits)_k - targets_k)^2 (Brier 1950)."""
    check_range("[)", 0, 1, label_smoothing=label_smoothing)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        difference = tf.math.squared_difference(tf.nn.softmax(logits), _smooth(targets, label_smoothing))
        return tf.reduce_mean(difference, axis=-1)

    def of_weighted(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        # (p - t)^2 = p^2 - 2 p t + t^2 for each class, of a target that is 1, and the sum over classes by their targets.
        p, size = tf.nn.softmax(logits), targets.shape[-1]
        own = _smooth(tf.one_hot(0, size), label_smoothing)
        squares = tf.reduce_sum(p**2, axis=-1) + tf.reduce_sum(own**2)
        products = tf.reduce_sum(p * _smooth_weighted(targets, label_smoothing), axis=-1)
        return (tf.reduce_sum(targets, axis=-1) * squares - 2 * products) / size

    return _weighted(loss, of_weighted, class_weights)


def focal(*, gamma: float = 2.0, class_weights: str | Sequence[float] = "none") -> Loss:
    """Cross-entropy that counts easy images less: -sum_k targets_k (1 - p_k)^gamma log p_k (Lin et al. 2017).

    gamma: How much less; 0 is cross-entropy.
    """
    check_range("[]", 0, gamma=gamma)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        log_p = tf.nn.log_softmax(logits)
        rest = tf.maximum(1 - tf.exp(log_p), _LEAST)  # a power below 1 of 0 has an infinite gradient
        return -tf.reduce_sum(targets * rest**gamma * log_p, axis=-1)

    return _weighted(loss, loss, class_weights)


def logit_adjusted(*, tau: float = 1.0) -> Loss:
    """Cross-entropy of logits + tau log(share of the class in training), for long tails (Menon et al. 2021).

    tau: The strength of the adjustment; 0 is cross-entropy. Predictions use the logits as they are.
    """
    check_range("[]", 0, tau=tau)

    def of_counts(counts: np.ndarray) -> LossFunction:
        _refuse_empty("loss", counts)
        adjustment = tau * tf.math.log(tf.constant(counts / counts.sum(), tf.float32))
        return lambda logits, targets: _crossentropy(logits + adjustment, targets)

    return Loss(_crossentropy, of_counts)


def balanced_softmax() -> Loss:
    """Softmax weighted by the classes' training images, for long tails (Ren et al. 2020).

    The same as `logit_adjusted` with tau 1.
    """
    return logit_adjusted()


def generalized_cross_entropy(*, q: float = 0.7) -> Loss:
    """(1 - p^q) / q, where p is the target's probability, for noisy labels (Zhang and Sabuncu 2018).

    q: Between cross-entropy (near 0) and the mean absolute error (1).
    """
    check_range("(]", 0, 1, q=q)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        # A power of a small probability: through its logarithm, so that the gradient stays finite.
        log_p = tf.reduce_logsumexp(tf.math.log(targets) + tf.nn.log_softmax(logits), axis=-1)
        return (1 - tf.exp(q * log_p)) / q

    return Loss(loss)


def symmetric_cross_entropy(*, alpha: float = 0.1, beta: float = 1.0) -> Loss:
    """alpha CE(targets, p) + beta CE(p, targets), with log 0 = -4, for noisy labels (Wang et al. 2019).

    alpha: The weight of cross-entropy.
    beta: The weight of reverse cross-entropy.
    """
    check_range("[]", 0, alpha=alpha, beta=beta)

    def loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        log_targets = tf.maximum(tf.math.log(targets), _LOG_OF_ZERO)
        reverse = -tf.reduce_sum(tf.nn.softmax(logits) * log_targets, axis=-1)
        return alpha * _crossentropy(logits, targets) + beta * reverse

    return Loss(loss)


def _crossentropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def _smooth(targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    if label_smoothing == 0:
        return targets
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]


def _smooth_weighted(targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Smooth targets whose sum is a weight."""
    spread = tf.reduce_sum(targets, axis=-1, keepdims=True) / targets.shape[-1]
    return targets * (1 - label_smoothing) + label_smoothing * spread


def _weighted(loss: LossFunction, of_weighted: LossFunction, class_weights: str | Sequence[float]) -> Loss:
    """Return a loss whose images have the weights of their classes in training.

    of_weighted: the same loss of targets times weights, linear in them: of an image that is mixed from two, the sum of
    both classes' losses, each with its own weight.
    """
    if class_weights == "none":
        return Loss(loss)
    if isinstance(class_weights, str):
        if class_weights not in _WEIGHTS:
            raise ValueError(f"class_weights: {choice_problem(class_weights, _WEIGHTS)}")
    else:
        for weight in class_weights:
            check_range("[]", 0, class_weights=weight)

    def of_counts(counts: np.ndarray) -> LossFunction:
        weights = tf.constant(_weights(class_weights, counts), tf.float32)
        return lambda logits, targets: of_weighted(logits, targets * weights)

    return Loss(loss, of_counts)


def _weights(kind: str | Sequence[float], counts: np.ndarray) -> np.ndarray | Sequence[float]:
    """Return the weight of each class, float [K].

    `balanced`: N / (K n_k), as scikit-learn has it. `effective_number`: (1 - b) / (1 - b^n_k) with b = 0.9999, scaled
    to the mean 1 over the classes (Cui et al. 2019).
    """
    if not isinstance(kind, str):
        if len(kind) != len(counts):
            raise ConfigError(
                f"loss.class_weights: has {len(kind)} weights, and the data has {len(counts)} classes; give one each"
            )
        return kind
    _refuse_empty("loss.class_weights", counts)
    if kind == "balanced":
        return counts.sum() / (len(counts) * counts)
    inverse = (1 - _EFFECTIVE_BETA) / (1 - _EFFECTIVE_BETA**counts)
    return inverse * len(counts) / inverse.sum()


def _refuse_empty(key: str, counts: np.ndarray) -> None:
    if empty := [number for number, count in enumerate(counts) if not count]:
        raise ConfigError(f"{key}: needs training images of every class, and class {empty[0]} has none")
