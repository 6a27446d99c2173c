"""Calibration: reliability, expected calibration error, temperature (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from cifar_research.evaluation.scores import cross_entropy

NUM_BINS = 15
LOWEST, HIGHEST = 0.02, 50.0  # temperatures; without a validation error the fit would go to 0
# Wrong images determine a temperature. In simulations with ten of them, a fit's standard deviation was 16 % and no fit
# increased the test loss; with four it was 35 % to 69 %, and one fit in twelve did.
MIN_IMAGES, MIN_OF_EACH = 50, 10
# With few images the ECE is large by chance: 0.08 for 300 perfectly calibrated images, 0.14 for 100.
MIN_IMAGES_OF_ECE = 20 * NUM_BINS


class Temperature(NamedTuple):
    """A temperature and the number of images of its fit; or 1, None and the reason."""

    value: float
    num_images: int | None
    reason: str | None


def reliability(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, np.ndarray]:
    """Return counts int [M], mean confidence and accuracy float [M] of confidence bins.

    probabilities: float [N, K]; labels: int [N]. Bins are (low, high], of equal width; an empty one has nan.
    """
    confidence = probabilities.max(1).astype(np.float64)
    is_correct = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        return {
            "counts": counts,
            "confidence": np.bincount(bins, confidence, num_bins) / counts,
            "accuracy": np.bincount(bins, is_correct, num_bins) / counts,
        }


def expected_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error (ECE): mean |accuracy - confidence| over bins."""
    bins = reliability(probabilities, labels, num_bins)
    gaps = np.nan_to_num(np.abs(bins["accuracy"] - bins["confidence"]))
    return float((gaps * bins["counts"]).sum() / len(labels))


def temperature(logits: np.ndarray, labels: np.ndarray) -> Temperature:
    """Return the temperature fitted on held-out images, or 1 and why there is no fit.

    logits: float [N, K]; labels: int [N]. A fit needs MIN_IMAGES images, with MIN_OF_EACH correct and as many wrong
    ones, and must end within its bounds.
    """
    num, wrong = len(labels), int((logits.argmax(1) != labels).sum())
    if num < MIN_IMAGES or not MIN_OF_EACH <= wrong <= num - MIN_OF_EACH:
        needed = f"{MIN_IMAGES} images, at least {MIN_OF_EACH} of them right and {MIN_OF_EACH} wrong"
        reason = f"{wrong:,} of {num:,} validation images are misclassified, and a temperature needs at least {needed}"
        return Temperature(1.0, None, reason)
    value = fit_temperature(logits, labels)
    if not LOWEST < value < HIGHEST:
        return Temperature(1.0, None, f"the fit of a temperature ended at its bound, {value:g}")
    return Temperature(value, num, None)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T in [LOWEST, HIGHEST] with the smallest cross-entropy of softmax(logits / T).

    It is convex in 1 / T, so its slope has one root, which Brent's method finds.
    """
    from scipy.optimize import brentq  # takes half a second to import

    logits = logits.astype(np.float64)
    of_truth = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(logits * inverse, axis=1) * logits).sum(1) - of_truth).mean())

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(1 / LOWEST) <= 0:
        return LOWEST
    return float(1 / brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-10))


def measures(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """Return ECE, cross-entropy (nats), Brier score (sum over classes) and mean confidence.

    The ECE is None for fewer than MIN_IMAGES_OF_ECE images.
    """
    scaled = logits.astype(np.float64) / temperature
    probabilities = softmax(scaled, axis=1)
    return {
        "temperature": temperature,
        "ece": expected_error(probabilities, labels) if len(labels) >= MIN_IMAGES_OF_ECE else None,
        "cross_entropy": cross_entropy(scaled, labels),
        "brier": float(((probabilities - np.eye(logits.shape[1])[labels]) ** 2).sum(1).mean()),
        "confidence": float(probabilities.max(1).mean()),
    }
