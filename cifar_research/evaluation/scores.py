"""How good predictions are: accuracy, cross-entropy, scores by class, the classes most often confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from cifar_research.inference.trained import softmax
from cifar_research.runs import metrics


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


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[label], in nats, float64 [N]."""
    return -special.log_softmax(logits.astype(np.float64), 1)[np.arange(len(labels)), labels]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats."""
    return float(cross_entropies(logits, labels).mean())


def by_class(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class, and its number of images.

    None is a precision of a class that nothing was taken for, and a recall or F1 of a class without images.
    """
    rows = []
    for number, name in enumerate(classes):
        images, predicted = labels == number, predictions == number
        hits, num, num_predicted = int((images & predicted).sum()), int(images.sum()), int(predicted.sum())
        rows.append({
            "class": name,
            "precision": hits / num_predicted if num_predicted else None,
            "recall": hits / num if num else None,
            "f1": 2 * hits / (num + num_predicted) if num else None,
            "images": num,
        })  # fmt: skip
    return rows


def macro(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return the means over the classes that have a number, each counting alike, and how many classes these are."""
    found = {name: [row[name] for row in rows if row[name] is not None] for name in ("precision", "recall", "f1")}
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


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
