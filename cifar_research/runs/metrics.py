"""Figures drawn from predictions."""

from __future__ import annotations

import math

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 [K, K]: how many images of class i were taken for class j.

    labels, predictions: integers [N] of any width, in [0, num_classes).
    """
    # As int64, because CIFAR-100's labels as uint8 would wrap around in the product.
    flat = np.bincount(labels.astype(np.int64) * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy, a fraction, measured on so many images (Wilson 1927).

    From 0 to 1 for no images, which say nothing.
    """
    from scipy import stats  # takes a second to import

    if num_images == 0:
        return 0.0, 1.0
    interval = stats.binomtest(round(accuracy * num_images), num_images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def difference_interval(first: float, second: float, num_first: int, num_second: int) -> tuple[float, float]:
    """Return the 95 % interval of first - second, accuracies on so many images each (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson_interval(first, num_first), wilson_interval(second, num_second)
    difference = first - second
    return (
        difference - math.hypot(first - low, other_high - second),
        difference + math.hypot(high - first, second - other_low),
    )
