"""Measure a classifier on a data set: all of evaluation.json except its figures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config.contracts import LossFunction
from cifar_research.data.datasets import Dataset, Split
from cifar_research.display import console
from cifar_research.evaluation import against, calibration, corruptions, scores
from cifar_research.evaluation.calibration import Temperature
from cifar_research.evaluation.images import description
from cifar_research.inference.trained import Classifier, Ensemble
from cifar_research.runs import metrics

_BLOCK = 500  # images corrupted at once, with one seed


@dataclass(frozen=True)
class Subject:
    """A run to evaluate, or several as an ensemble, the data, and whether that has the splits of the training.

    reports: by run. loss: of a single run, see config.contracts.Loss. cifar10_1: images uint8 [N, 32, 32, 3] and labels
    int64 [N], or None. file: of the result. folder, name: of the document.
    """

    reports: Mapping[Path, dict[str, Any]]
    classifier: Classifier
    data: Dataset
    is_own: bool
    loss: LossFunction | None
    cifar10_1: tuple[np.ndarray, np.ndarray] | None
    file: Path
    folder: Path
    name: str


def measure(subject: Subject, views: str | None, corrupted: int | None) -> tuple[dict[str, Any], np.ndarray]:
    """Return the scores for the result's file, and the test logits float32 [N, K]."""
    classifier, data, is_own = subject.classifier, subject.data, subject.is_own
    images, labels = arrays(data.test)
    logits = classifier.logits(images)
    matrix = metrics.confusion_matrix(labels, logits.argmax(1), len(data.classes))
    counts = np.array(classifier.report["data"]["train_counts"])
    fitted = _temperature(classifier, data, is_own)
    result: dict[str, Any] = {
        "temperature": fitted.value,
        "temperature_images": fitted.num_images,
        "uncalibrated": fitted.reason,
        "calibration": {
            "bins": calibration.NUM_BINS,
            "before": calibration.measures(logits, labels),
            "after": None if fitted.reason else calibration.measures(logits, labels, fitted.value),
        },
        "data": description(subject.reports, data, is_own=is_own) | {"left_out": dict(data.left_out)},
        "classes": list(data.classes),
        "test": scores.summary(logits, labels, counts),
        "by_class": scores.by_class(matrix, data.classes),
        "confusion": matrix.tolist(),
        "confused_pairs": scores.confused_pairs(matrix, data.classes),
        "misclassified": scores.worst(logits / np.float32(fitted.value), labels),
    }
    runs = [
        {"run": str(run), "seed": report["seed"], "config_hash": report["config_hash"]}
        for run, report in subject.reports.items()
    ]
    if isinstance(classifier, Ensemble):
        result |= _members(classifier, runs, images, labels)
    else:
        assert subject.loss is not None
        result |= runs[0] | {"reported_accuracy": classifier.report["test"]["accuracy"] if is_own else None}
        losses = subject.loss(logits, np.eye(len(data.classes), dtype=np.float32)[labels]).numpy()
        result["test"]["loss"] = float(losses.astype(np.float64).mean())
    if views is not None:
        averaged = {kind: dataclasses.replace(classifier, views=kind) for kind in ("none", views)}
        result["views"] = {
            kind: scores.summary(other.logits(images), labels, counts) for kind, other in averaged.items()
        }
    if subject.cifar10_1 is not None:
        new_images, new_labels = subject.cifar10_1
        result["cifar10_1"] = scores.summary(classifier.logits(new_images), new_labels, counts)
    if corrupted != 0:
        result["corruptions"] = _robustness(classifier, images, labels, corrupted)
    return result, logits


def _members(
    ensemble: Ensemble, runs: Sequence[Mapping[str, Any]], images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Return the scores of an ensemble's runs, their mean, and how often two runs disagree."""
    logits = []
    for member in console.counted("Classifying", ensemble.members):
        logits.append(member.logits(images)[:, [member.classes.index(name) for name in ensemble.classes]])
    counts = np.array(ensemble.report["data"]["train_counts"])
    group = against.group(np.stack(logits), labels, [run["seed"] for run in runs])
    return {
        "members": [{**run, **scores.summary(own, labels, counts)} for run, own in zip(runs, logits, strict=True)],
        "mean": {"accuracy": group["mean"], "interval": group["interval"]},
        "disagreement": disagreement(np.stack(logits)),
    }


def disagreement(logits: np.ndarray) -> float:
    """Return how often two members predict different classes (Fort et al. 2019).

    It is the share of images, mean over pairs. logits: float [R, N, K], of two members or more.
    """
    predictions = logits.argmax(2)
    return float(np.mean([(first != second).mean() for first, second in itertools.combinations(predictions, 2)]))


def arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's images uint8 [N, H, W, C] and labels int64 [N]."""
    return np.asarray(split.images[split.indices]), np.asarray(split.labels[split.indices])


def _temperature(classifier: Classifier, data: Dataset, is_own: bool) -> Temperature:
    """Return the temperature fitted on the run's validation images, or the saved one."""
    if not is_own:
        return Temperature(classifier.temperature, None, classifier.uncalibrated)
    if classifier.report["config"]["data"]["validation"] == "test":
        return Temperature(1.0, None, "the validation images are the test images, and a temperature needs others")
    if not len(data.val):
        return Temperature(1.0, None, "the run has no validation images to fit a temperature on")
    images, labels = arrays(data.val)
    return calibration.temperature(classifier.logits(images), labels)


def _robustness(classifier: Classifier, images: np.ndarray, labels: np.ndarray, most: int | None) -> dict[str, Any]:
    """Return the accuracy on `most` of the images, clean and under each corruption."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:most])
    images, labels = images[chosen], labels[chosen]
    blocks = [images[first : first + _BLOCK] for first in range(0, len(images), _BLOCK)]

    def accuracy(pixels: np.ndarray) -> float:
        return float((classifier.logits(pixels).argmax(1) == labels).mean())

    accuracies: dict[str, list[float]] = {name: [] for name in corruptions.NAMES}
    kinds = [*itertools.product(corruptions.NAMES, corruptions.SEVERITIES)]
    for name, severity in console.counted("Corruptions", kinds):
        made = [corruptions.corrupt(block, name, severity, [0, i]) for i, block in enumerate(blocks)]
        accuracies[name].append(accuracy(np.concatenate(made)))
    means = {name: sum(values) / len(values) for name, values in accuracies.items()}
    mean = sum(means.values()) / len(means)
    return {"images": len(labels), "clean": accuracy(images), "mean": mean, "means": means, "accuracies": accuracies}
