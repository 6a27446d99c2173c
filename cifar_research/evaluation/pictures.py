"""Figures of an evaluation: confusion, reliability, corruptions, mistakes, Grad-CAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax

from cifar_research.display.figures import confusion, gallery, heat_map, save
from cifar_research.evaluation import calibration, corruptions
from cifar_research.evaluation.calibration import NUM_BINS
from cifar_research.evaluation.measures import Subject, arrays
from cifar_research.inference.trained import Classifier
from cifar_research.models import classifier as models
from cifar_research.runtime.lazy import keras, tf

_NAMES = ("confusion", "reliability", "misclassified", "corruptions", "grad_cam")
_RIGHT, _UNSURE, _SURE, _GREY = "#4477aa", "#88aacc", "#eeb0b8", "0.55"
_NUM_EVIDENCE = 4  # images for Grad-CAM, correct and wrong each


def draw(subject: Subject, result: Mapping[str, Any], logits: np.ndarray) -> dict[str, Path]:
    """Write the figures of an evaluation into its folder's figures/; return paths by name."""
    classes, (images, labels) = subject.data.classes, arrays(subject.data.test)
    figures: dict[str, Figure | None] = {
        "confusion": confusion(np.array(result["confusion"]), classes),
        "reliability": _reliability(result["calibration"], logits, labels),
    }
    if wrong := result["misclassified"]:
        titles = [f"{classes[row['label']]} → {classes[row['prediction']]}\n{row['probability']:.3f}" for row in wrong]
        figures["misclassified"] = gallery(images[[row["index"] for row in wrong]], titles)
    if "corruptions" in result:
        figures["corruptions"] = _robustness(result["corruptions"]["accuracies"], result["corruptions"]["clean"])
    if len(subject.reports) == 1:
        predictions, few = logits.argmax(1), (row["index"] for row in wrong[:_NUM_EVIDENCE])
        rows = [*np.flatnonzero(predictions == labels)[:_NUM_EVIDENCE], *few]
        figures["grad_cam"] = _evidence(subject.classifier, images[rows], labels[rows], predictions[rows])
    prefix = "" if len(subject.reports) == 1 else f"{subject.name}_"
    paths = {name: subject.folder / "figures" / f"{prefix}{name}.png" for name in _NAMES}
    for name, path in paths.items():
        path.unlink(missing_ok=True)  # of an earlier evaluation
        if (figure := figures.get(name)) is not None:
            save(figure, path)
    return {name: path for name, path in paths.items() if path.exists()}


def _evidence(classifier: Classifier, images: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> Figure | None:
    """Return Grad-CAM of images, a column each; None if the backbone has no feature map.

    Rows: the image, the heat map of its predicted class, and that of its true class.
    """
    inputs, grey, panels = classifier.preprocess(images), images.mean(-1, keepdims=True), [*images]
    for classes in (predictions, labels):
        heat = grad_cam(classifier.model, inputs, classes)
        if heat is None:
            return None
        colours = colormaps["jet"](enlarged(heat, classifier.image_shape[:2]))[..., :3]
        panels += [*(0.55 * grey + 0.45 * 255 * colours).astype(np.uint8)]
    titles = [""] * len(images) + [f"for {classifier.classes[number]}" for number in (*predictions, *labels)]
    return gallery(panels, titles, columns=len(images), size=1.6)


def grad_cam(model: keras.Model, inputs: np.ndarray | tf.Tensor, classes: np.ndarray) -> np.ndarray | None:
    """Return which parts of images support a class (Selvaraju et al. 2017), float32 [B, h, w].

    model: from models.classifier; inputs: float [B, H, W, C]; classes: int [B], the class to explain in each image.
    A heat map is relu(sum_k a_k A_k) of the channels A_k of the backbone's last feature map; a_k is the logit's mean
    gradient over h and w. None if the backbone does not end in a feature map [B, h, w, C].
    """
    backbone, head = models.parts(model)
    features = backbone(inputs, training=False)
    if len(features.shape) != 4:
        return None
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = tf.cast(head(features, training=False), tf.float32)
        chosen = tf.gather(logits, classes, batch_dims=1)
    gradients = tape.gradient(chosen, features, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    weights = tf.reduce_mean(tf.cast(gradients, tf.float32), [1, 2], keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * tf.cast(features, tf.float32), -1)).numpy()


def enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps float32 [B, h, w] at (H, W), bilinear, with maximum 1, or all 0."""
    grown = [np.asarray(Image.fromarray(row).resize(size[::-1], Image.Resampling.BILINEAR)) for row in heat]
    return np.stack(grown) / np.maximum(np.max(grown, (1, 2), keepdims=True), 1e-12)


def _reliability(measured: Mapping[str, Any], logits: np.ndarray, labels: np.ndarray) -> Figure:
    """Return accuracy and image count by confidence, a panel before and one after calibration."""
    titles = {"before": "as trained", "after": "with its temperature"}
    known = [when for when in titles if measured[when] is not None]
    figure = Figure(figsize=(4.4 * len(known) + 0.4, 4.8), layout="constrained", dpi=110)
    grid = figure.subplots(2, len(known), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [4, 1]})
    middles, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 0.92 / NUM_BINS
    for (top, bottom), when in zip(grid.T, known, strict=True):
        temperature, ece = measured[when]["temperature"], measured[when]["ece"]
        bins = calibration.reliability(softmax(logits / temperature, axis=1), labels)
        accuracy, confidence = np.nan_to_num(bins["accuracy"]), np.nan_to_num(bins["confidence"])
        low = np.minimum(accuracy, confidence)
        top.bar(middles, low, width, color=_RIGHT, label="accuracy")
        top.bar(middles, accuracy - low, width, bottom=low, color=_UNSURE, label="accuracy above confidence")
        top.bar(middles, confidence - low, width, bottom=low, color=_SURE, label="confidence above accuracy")
        top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        error = "too few images for an ECE" if ece is None else f"ECE {ece:.4f}"
        top.set(title=f"{titles[when]}, T = {temperature:.3g}, {error}", xlim=(0, 1), ylim=(0, 1))
        bottom.bar(middles, bins["counts"] / bins["counts"].sum(), width, color=_GREY)
        bottom.set(xlabel="confidence")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share")
    grid[0, 0].legend(frameon=False, loc="upper left")
    return figure


def _robustness(accuracies: Mapping[str, Sequence[float]], clean: float) -> Figure:
    """Return the accuracy by corruption (rows) and severity (columns), coloured by loss."""
    values = np.array(list(accuracies.values()))
    figure = Figure(figsize=(5.6, 6.2), layout="constrained", dpi=110)
    names = [name.replace("_", " ") for name in accuracies]
    label = f"accuracy lost (clean accuracy: {clean:.3f})"
    axes = heat_map(figure, clean - values, np.char.mod("%.3f", values), names, [*map(str, corruptions.SEVERITIES)],
                    cmap="Reds", top=max(clean, 0.01), label=label)  # fmt: skip
    axes.set(xlabel="severity", title="Accuracy under corruption")
    return figure
