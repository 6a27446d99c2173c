"""What is measured of a classifier on a data set: everything of evaluation.json but its figures."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cifar_research.data.datasets import Dataset, Split
from cifar_research.display import console
from cifar_research.evaluation import calibration, corruptions, scores
from cifar_research.evaluation.calibration import Temperature
from cifar_research.inference.trained import Classifier
from cifar_research.runs import metrics

_BLOCK = 500  # images corrupted at once, from a seed of their own


def measure(
    classifier: Classifier,
    data: Dataset,
    *,
    is_own: bool,
    views: str | None,
    corrupted: int | None,
    cifar10_1: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the scores for evaluation.json, and the test images' logits float32 [N, K].

    is_own: whether the data's splits are those of the training; the others are as in evaluate.evaluate, and cifar10_1
    its images and labels.
    """
    pictures, labels = arrays(data.test)
    began = time.perf_counter()
    logits = classifier.logits(pictures)
    seconds = {"predict": time.perf_counter() - began}
    predictions = logits.argmax(1)
    matrix = metrics.confusion_matrix(labels, predictions, len(data.classes))
    temperature = _temperature(classifier, data, is_own)
    reported = classifier.report["test"] if is_own else None
    result: dict[str, Any] = {
        "temperature": temperature.value,
        "temperature_images": temperature.num_images,
        "uncalibrated": temperature.reason,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "note": data.note,
            "is_own": is_own,
            "left_out": dict(data.left_out),
        },
        "classes": list(data.classes),
        "test": scores.summary(logits, labels) | {"loss": _loss(classifier, logits, labels)},
        "reported_accuracy": reported and reported["accuracy"],
        "by_class": scores.by_class(labels, predictions, data.classes),
        "confusion": matrix.tolist(),
        "confused_pairs": scores.confused_pairs(matrix, data.classes),
        "misclassified": scores.worst(logits / np.float32(temperature.value), labels),
        "calibration": {
            "bins": calibration.NUM_BINS,
            "before": calibration.measures(logits, labels),
            "after": None if temperature.reason else calibration.measures(logits, labels, temperature.value),
        },
    }
    if views is not None:
        result["views"] = _views(classifier, views, pictures, labels)
    if cifar10_1 is not None:
        result["cifar10_1"] = scores.summary(classifier.logits(cifar10_1[0]), cifar10_1[1])
    if corrupted != 0:
        began = time.perf_counter()
        result["corruptions"] = _robustness(classifier, pictures, labels, corrupted)
        seconds["corruptions"] = time.perf_counter() - began
    return result | {"seconds": seconds}, logits


def arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's images uint8 [N, H, W, C] and labels int64 [N]."""
    return np.asarray(split.images[split.indices]), np.asarray(split.labels[split.indices])


def _temperature(classifier: Classifier, data: Dataset, is_own: bool) -> Temperature:
    """Return the temperature fitted on the run's validation images; on other data, that of its own evaluation.

    Other data may hold out what the run was trained on, and with data.validation=test the images are tested on.
    """
    if not is_own:
        return Temperature(classifier.temperature, None, classifier.uncalibrated)
    if classifier.config.data.validation == "test":
        return Temperature(1.0, None, "the validation images are the test images, and a temperature needs others")
    if not len(data.val):
        return Temperature(1.0, None, "the run has no validation images to fit a temperature on")
    pictures, labels = arrays(data.val)
    return calibration.temperature(classifier.logits(pictures), labels)


def _loss(classifier: Classifier, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the loss that the run was trained with."""
    from cifar_research.config import targets

    one_hot = np.eye(logits.shape[1], dtype=np.float32)[labels]
    return float(targets.instantiate(classifier.config.loss)(logits, one_hot).numpy().astype(np.float64).mean())


def _views(classifier: Classifier, kind: str, pictures: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the scores of the bare model and of its logits averaged over views of each image."""
    from cifar_research.augmentation.tta import averaged

    model, found = classifier.model, {}
    for name in ("none", kind):
        seen = Classifier(
            model,
            classifier.report,
            image_shape=classifier.image_shape,
            mean=classifier.mean,
            deviation=classifier.deviation,
        )
        seen.network = averaged(lambda images, training: model(images, training=training), name)
        found[name] = scores.summary(seen.logits(pictures), labels)
    return found


def _robustness(classifier: Classifier, pictures: np.ndarray, labels: np.ndarray, most: int | None) -> dict[str, Any]:
    """Return the accuracy on some of the images as they are, and under each corruption at severities 1 to 5."""
    chosen = np.random.default_rng(0).permutation(len(labels))[:most]
    pictures, labels = pictures[np.sort(chosen)], labels[np.sort(chosen)]
    blocks = [pictures[first : first + _BLOCK] for first in range(0, len(pictures), _BLOCK)]
    found: dict[str, list[float]] = {}
    with console.counted("Corruptions", len(corruptions.NAMES) * len(corruptions.SEVERITIES)) as begin:
        for name in corruptions.NAMES:
            found[name] = []
            for severity in corruptions.SEVERITIES:
                begin(f"{name} {severity}")
                logits = [
                    classifier.logits(corruptions.corrupt(block, name, severity, [0, number]))
                    for number, block in enumerate(blocks)
                ]
                found[name].append(float((np.concatenate(logits).argmax(1) == labels).mean()))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    clean = float((classifier.logits(pictures).argmax(1) == labels).mean())
    mean = sum(means.values()) / len(means)
    return {"images": len(labels), "clean": clean, "mean": mean, "means": means, "accuracies": found}
