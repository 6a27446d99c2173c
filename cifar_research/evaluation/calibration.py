"""Whether a classifier is as often right as it says: reliability, ECE, temperature scaling (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cifar_research.evaluation.scores import cross_entropy
from cifar_research.inference.trained import softmax

NUM_BINS = 15
LOWEST, HIGHEST = 0.02, 50.0  # temperatures; a network without a validation error would go to 0
# What says how hot a temperature must be are the wrong images. In simulations with ten of them, the standard deviation
# of a fit was 16 % and no fit made the test loss worse; with four it was 35 % to 69 %, and one fit in twelve did.
MIN_IMAGES, MIN_OF_EACH = 50, 10
# Of few images the ECE is large by chance: 0.08 of 300 that are calibrated perfectly, 0.14 of 100.
MIN_IMAGES_OF_ECE = 20 * NUM_BINS


class Temperature(NamedTuple):
    """A temperature of 1 and the reason, if there is no other one to use; num_images: it was fitted on, or None."""

    value: float
    num_images: int | None
    reason: str | None


def reliability(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, np.ndarray]:
    """Return what each of `num_bins` equal bins of confidence, (low, high], holds.

    probabilities: float [N, K]; labels: int [N].
    Returns counts int [M], and by bin the mean confidence and the accuracy, float [M], nan in an empty one.
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        return {
            "counts": counts,
            "confidence": np.bincount(bins, confidence, num_bins) / counts,
            "accuracy": np.bincount(bins, right, num_bins) / counts,
        }


def expected_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Return the ECE: the mean of |accuracy - confidence| over bins, weighted by their images; labels: at least one."""
    found = reliability(probabilities, labels, num_bins)
    gaps = np.nan_to_num(np.abs(found["accuracy"] - found["confidence"]))
    return float((gaps * found["counts"]).sum() / len(labels))


def temperature(logits: np.ndarray, labels: np.ndarray) -> Temperature:
    """Return the temperature fitted on images that were not trained on, or 1 and why these are too few to fit one.

    logits: float [N, K]; labels: int [N]. A fit needs MIN_IMAGES images, of them MIN_OF_EACH right and as many wrong,
    and must end within its bounds.
    """
    num, wrong = len(labels), int((logits.argmax(1) != labels).sum())
    kept = f"{MIN_IMAGES} images, at least {MIN_OF_EACH} of them right and {MIN_OF_EACH} wrong"
    if num < MIN_IMAGES or not MIN_OF_EACH <= wrong <= num - MIN_OF_EACH:
        reason = f"{wrong:,} of {num:,} validation images are wrong, and a temperature needs at least {kept}"
        return Temperature(1.0, None, reason)
    value = fit_temperature(logits, labels)
    if not LOWEST < value < HIGHEST:
        return Temperature(1.0, None, f"the fit of a temperature ended at its bound, {value:g}")
    return Temperature(value, num, None)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T in [0.02, 50] that minimises the cross-entropy of softmax(logits / T).

    logits: float [N, K]; labels: int [N], of images that were not trained on.
    The cross-entropy is convex in 1 / T, so its slope has one root, which is found by Brent's method.
    """
    from scipy.optimize import brentq  # takes half a second to import

    logits = logits.astype(np.float64)
    of_truth = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(logits * inverse) * logits).sum(1) - of_truth).mean())

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(1 / LOWEST) <= 0:
        return LOWEST
    return float(1 / brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-10))


def measures(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """Return ECE, cross-entropy (nats), Brier score (sum over classes) and mean confidence at a temperature.

    The ECE is None of fewer than MIN_IMAGES_OF_ECE images.
    """
    scaled = logits.astype(np.float64) / temperature
    probabilities = softmax(scaled)
    truth = np.eye(logits.shape[1])[labels]
    return {
        "temperature": temperature,
        "ece": expected_error(probabilities, labels) if len(labels) >= MIN_IMAGES_OF_ECE else None,
        "cross_entropy": cross_entropy(scaled, labels),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
        "confidence": float(probabilities.max(1).mean()),
    }
