"""Metrics of predictions, confusion matrix and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_NORMAL = 1.959963984540054  # the normal distribution's quantile at 97.5 %

SHARES = ("accuracy", "top5_accuracy")  # of all images, so that their errors are binomial
_WORDS = {"macro_f1": "macro F1", "top5_accuracy": "top-5 accuracy", "many_accuracy": "many-shot accuracy",
          "medium_accuracy": "medium-shot accuracy", "few_accuracy": "few-shot accuracy"}  # fmt: skip
# Classes by their numbers of training images (Liu et al. 2019).
_SHOTS = {"many_accuracy": (101, math.inf), "medium_accuracy": (20, 100), "few_accuracy": (0, 19)}


def problems(monitor: str, train_counts: np.ndarray, val_counts: np.ndarray) -> list[str]:
    """Return the problem if the data does not define the monitored metric.

    train_counts, val_counts: the images of each class, int [K].
    """
    if monitor == "top5_accuracy" and len(train_counts) <= 5:
        return [
            f"training.monitor: top5_accuracy needs more than 5 classes, and the data has {len(train_counts)}; use accuracy"
        ]
    if monitor not in _SHOTS:
        return []
    (low, high), chosen = _SHOTS[monitor], _shots(train_counts)[monitor]
    limits = f"over {low - 1}" if high == math.inf else f"{low} to {high}"
    if not (has_long_tail(train_counts) and chosen.any()):
        return [
            f"training.monitor: {monitor} needs classes with {limits} training images and others without, and the data has "
            "none; use balanced_accuracy"
        ]
    if val_counts.any() and not val_counts[chosen].any():
        return [
            f"training.monitor: {monitor} needs validation images of classes with {limits} training images, and there are "
            "none; raise data.val_fraction, or use balanced_accuracy"
        ]
    return []


def worth(scores: Mapping[str, float | None] | None, name: str) -> float | None:
    """Return a score as a number whose largest value is the best: the loss is negated; None if unknown.

    name: of a metric, or of a column of history.csv.
    """
    value = scores.get(name) if scores else None
    return -value if name in ("loss", "val_loss") and value is not None else value


def display_name(name: str) -> str:
    """Return a metric's name for people: `macro F1`, `few-shot accuracy`."""
    return _WORDS.get(name, name.replace("_", " "))


def has_long_tail(train_counts: np.ndarray) -> bool:
    """Return whether classes differ in their kind: many, medium or few training images."""
    return sum(bool(chosen.any()) for chosen in _shots(train_counts).values()) > 1


def of_matrix(matrix: np.ndarray, train_counts: np.ndarray) -> dict[str, float | None]:
    """Return balanced accuracy, macro F1 and the accuracies by number of training images.

    matrix: int [K, K], true classes as rows. train_counts: int [K]. As in scikit-learn, recall is a mean over classes with
    images, and F1 over classes with images or predictions. The accuracies of many (over 100), medium and few (below 20)
    training images are means over such classes; None without a long tail or without such classes.
    """
    correct, images, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        recall, f1 = correct / images, 2 * correct / (images + predicted)
    values = {"balanced_accuracy": _mean(recall), "macro_f1": _mean(f1)}
    tail = has_long_tail(train_counts)
    return values | {name: _mean(recall[chosen]) if tail else None for name, chosen in _shots(train_counts).items()}


def _shots(train_counts: np.ndarray) -> dict[str, np.ndarray]:
    return {name: (train_counts >= low) & (train_counts <= high) for name, (low, high) in _SHOTS.items()}


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


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
    # Rounding may leave a share of 0 or 1 outside.
    return min(share, max(0.0, centre - half_width)), max(share, min(1.0, centre + half_width))


def difference_interval(first: float, second: float, num_first: int, num_second: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracies' first - second (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson_interval(first, num_first), wilson_interval(second, num_second)
    difference = first - second
    return (
        difference - math.hypot(first - low, other_high - second),
        difference + math.hypot(high - first, second - other_low),
    )
