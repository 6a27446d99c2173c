"""Scores of predictions: accuracy, cross-entropy, scores by class, confused classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from cifar_research.runs import metrics


def summary(logits: np.ndarray, labels: np.ndarray, train_counts: np.ndarray) -> dict[str, Any]:
    """Return accuracy, its 95 % interval (Wilson 1927), the mean cross-entropy in nats, and other metrics.

    logits: float [N, K]; labels: int [N] in [0, K). train_counts: training images of each class, int [K]. The metrics are
    those of runs.metrics.of_matrix, top-5 accuracy with more than 5 classes, and the area under the ROC curve.
    """
    num_classes = logits.shape[1]
    matrix = metrics.confusion_matrix(labels, logits.argmax(1), num_classes)
    correct = int((logits.argmax(1) == labels).sum())
    accuracy, own = correct / len(labels), logits[np.arange(len(labels)), labels][:, None]
    return {
        "images": len(labels),
        "right": correct,
        "accuracy": accuracy,
        "interval": list(metrics.wilson_interval(accuracy, len(labels))),
        "cross_entropy": cross_entropy(logits, labels),
        **metrics.of_matrix(matrix, train_counts),
        "top5_accuracy": float(((logits > own).sum(1) < 5).mean()) if num_classes > 5 else None,
        "auc": auc(logits, labels),
    }


def auc(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under the ROC curve of each class against the others, their mean (Hand and Till 2001).

    By probabilities, as scikit-learn's `roc_auc_score(multi_class="ovr")`. None if a class has no images, or all.
    """
    from scipy.stats import rankdata  # takes a second to import

    is_own = np.eye(logits.shape[1], dtype=bool)[labels]
    positive = is_own.sum(0)
    if not (positive * (len(labels) - positive)).all():
        return None
    ranks = (rankdata(special.softmax(logits.astype(np.float64), 1), axis=0) * is_own).sum(0)
    return float(np.mean((ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats."""
    return float(-special.log_softmax(logits.astype(np.float64), 1)[np.arange(len(labels)), labels].mean())


def by_class(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and number of images of each class.

    matrix: int [K, K], true classes as rows. Precision is None without predictions, recall and F1 without images.
    """
    counts = zip(classes, matrix.diagonal().tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist(), strict=True)
    return [
        {
            "class": name,
            "precision": correct / predicted if predicted else None,
            "recall": correct / images if images else None,
            "f1": 2 * correct / (images + predicted) if images else None,
            "images": images,
        }
        for name, correct, images, predicted in counts
    ]


def confused_pairs(matrix: np.ndarray, classes: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs (truth, prediction) most often confused, the most frequent first.

    matrix: int [K, K], true classes as rows. share: of the true class's images.
    """
    errors = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-errors, axis=None, kind="stable")[: min(most, np.count_nonzero(errors))]
    rows, columns = np.unravel_index(order, errors.shape)
    names, counts = np.array([*classes], object), errors[rows, columns]
    shares = counts / matrix[rows].sum(1)
    return records({"truth": names[rows], "prediction": names[columns], "images": counts, "share": shares})


def worst(logits: np.ndarray, labels: np.ndarray, most: int = 25) -> list[dict[str, Any]]:
    """Return misclassified images by the probability of the wrong class, highest first.

    index: the image's row; probability: of the prediction; truth_probability: of the true class.
    """
    probabilities, predictions = special.softmax(logits, axis=1), logits.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    order = wrong[np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")[:most]]
    return records({
        "index": order,
        "label": labels[order],
        "prediction": predictions[order],
        "probability": probabilities[order, predictions[order]],
        "truth_probability": probabilities[order, labels[order]],
    })  # fmt: skip


def records(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return columns of equal length as a list of rows with Python numbers."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
