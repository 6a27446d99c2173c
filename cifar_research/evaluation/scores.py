"""How good predictions are: accuracy, cross-entropy, scores by class, the classes most often confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cifar_research import metrics
from cifar_research.trained import softmax


def summary(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy, its 95 % interval (Wilson 1927) and the mean cross-entropy in nats.

    logits: float [N, K]; labels: int [N] in [0, K).
    """
    right = int((logits.argmax(1) == labels).sum())
    accuracy = right / len(labels)
    return {
        "images": len(labels),
        "right": right,
        "accuracy": accuracy,
        "interval": list(metrics.wilson_interval(accuracy, len(labels))),
        "cross_entropy": cross_entropy(logits, labels),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, float64 [N, K]."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[label], in nats, float64 [N]."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats."""
    return float(cross_entropies(logits, labels).mean())


def by_class(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class, and its number of images; 0 where nothing was predicted."""
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

    numbers = range(len(classes))
    columns = precision_recall_fscore_support(labels, predictions, labels=numbers, zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    ]


def macro(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the means over the classes, each counting alike."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in ("precision", "recall", "f1")}


def confused_pairs(matrix: np.ndarray, classes: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs (truth, prediction) most often confused, the most frequent first.

    matrix: int [K, K], true classes as rows. share: of the true class's images.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    return [
        {
            "truth": classes[i],
            "prediction": classes[j],
            "images": int(wrong[i, j]),
            "share": float(wrong[i, j] / matrix[i].sum()),
        }
        for i, j in pairs
        if wrong[i, j]
    ]


def worst(logits: np.ndarray, labels: np.ndarray, most: int = 25) -> list[dict[str, Any]]:
    """Return the misclassified images by the probability of their wrong class, the surest first.

    index: the image's place among those given; probability: of the prediction; truth_probability: of the true class.
    """
    probabilities, predictions = softmax(logits), logits.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    order = wrong[np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")[:most]]
    return [
        {
            "index": int(i),
            "label": int(labels[i]),
            "prediction": int(predictions[i]),
            "probability": float(probabilities[i, predictions[i]]),
            "truth_probability": float(probabilities[i, labels[i]]),
        }
        for i in order
    ]
