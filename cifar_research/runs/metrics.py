"""Confusion matrix and confidence intervals."""

from __future__ import annotations

import math

import numpy as np

_NORMAL = 1.959963984540054  # the normal distribution's quantile at 97.5 %


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 [K, K]: the number of images of class i predicted as class j.

    labels, predictions: integers [N] of any width, in [0, num_classes).
    """
    # uint8 labels of CIFAR-100 would overflow in the product.
    flat = np.bincount(labels.astype(np.int64) * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Wilson 1927); 0 to 1 without images."""
    if num_images == 0:
        return 0.0, 1.0
    # Not by scipy, whose function takes a millisecond: a report calls it for each of its rows.
    square, share = _NORMAL**2 / num_images, round(accuracy * num_images) / num_images
    centre = (share + square / 2) / (1 + square)
    half_width = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def difference_interval(first: float, second: float, num_first: int, num_second: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracies' first - second (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson_interval(first, num_first), wilson_interval(second, num_second)
    difference = first - second
    return (
        difference - math.hypot(first - low, other_high - second),
        difference + math.hypot(high - first, second - other_low),
    )
