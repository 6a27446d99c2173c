"""Pictures of an evaluation: reliability, corruptions, mistakes, Grad-CAM, where two runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from cifar_research.data.datasets import Dataset
from cifar_research.display.figures import confusion, gallery, heat_map, save
from cifar_research.evaluation import calibration, corruptions, gradcam
from cifar_research.evaluation.calibration import NUM_BINS
from cifar_research.evaluation.measures import arrays
from cifar_research.inference import trained
from cifar_research.inference.trained import Classifier

_RIGHT, _UNSURE, _SURE, _GREY = "#4477aa", "#88aacc", "#eeb0b8", "0.55"
_NUM_EVIDENCE = 4  # images of Grad-CAM that are classified rightly, and as many that are not


def draw(
    folder: Path, classifier: Classifier, data: Dataset, result: dict[str, Any], logits: np.ndarray
) -> dict[str, Path]:
    """Draw the figures into <folder>/figures; return their paths by name."""
    images, labels = arrays(data.test)
    paths = {name: folder / "figures" / f"{name}.png" for name in (
        "confusion", "reliability", "misclassified", "corruptions", "corrupted", "grad_cam")}  # fmt: skip
    for path in paths.values():
        path.unlink(missing_ok=True)  # of an evaluation before this one
    save(confusion(np.array(result["confusion"]), data.classes), paths["confusion"])
    found = {}
    for title, how in (("as trained", "before"), ("with its temperature", "after")):
        if (measured := result["calibration"][how]) is None:
            continue
        bins = calibration.reliability(trained.softmax(logits / measured["temperature"]), labels)
        ece = "too few images for an ECE" if measured["ece"] is None else f"ECE {measured['ece']:.4f}"
        found[f"{title}, T = {measured['temperature']:.3g}, {ece}"] = bins
    save(_reliability(found), paths["reliability"])
    if wrong := result["misclassified"]:
        titles = [
            f"{data.classes[row['label']]} → {data.classes[row['prediction']]}\n{row['probability']:.3f}"
            for row in wrong
        ]
        save(gallery(images[[row["index"] for row in wrong]], titles), paths["misclassified"])
    if found := result.get("corruptions"):
        save(_robustness(found["accuracies"], found["clean"]), paths["corruptions"])
        save(_corrupted(images[:1]), paths["corrupted"])
    predictions = logits.argmax(1)
    rows = [*np.flatnonzero(predictions == labels)[:_NUM_EVIDENCE].tolist(),
            *(row["index"] for row in result["misclassified"][:_NUM_EVIDENCE])]  # fmt: skip
    if (evidence := _evidence(classifier, data, rows, predictions)) is not None:
        save(evidence, paths["grad_cam"])
    return {name: path for name, path in paths.items() if path.exists()}


def _corrupted(image: np.ndarray) -> Figure:
    """Return an image, uint8 [1, H, W, 3], under each corruption, a column, at each severity, a row."""
    names, severities = corruptions.NAMES, corruptions.SEVERITIES
    images = [corruptions.corrupt(image, name, severity, [0, 0])[0] for severity in severities for name in names]
    titles = ["{}\n{}".format(name.replace("_", "\n"), severities[0]) for name in names]
    titles += [str(severity) for severity in severities[1:] for _ in names]
    return gallery(images, titles, columns=len(names), size=0.9)


def _evidence(classifier: Classifier, data: Dataset, rows: Sequence[int], predictions: np.ndarray) -> Figure | None:
    """Return Grad-CAM of these test images, a column each; None if the backbone has no feature map.

    Below an image is the heat map for its predicted class, and below that the one for its true class, if that is another.
    predictions: int [N], of all test images.
    """
    images, labels = (values[rows] for values in arrays(data.test))
    inputs, grey = classifier.preprocess(images), images.mean(-1, keepdims=True)
    panels, titles = [*images], [""] * len(rows)
    for classes in (predictions[rows], labels):
        try:
            heat = gradcam.enlarged(gradcam.maps(classifier.model, inputs, classes), classifier.image_shape[:2])
        except ValueError:
            return None
        drawn = np.uint8(0.55 * grey + 0.45 * 255 * colormaps["jet"](heat)[..., :3])
        is_new = (classes != predictions[rows]) if len(panels) > len(rows) else np.full(len(rows), True)
        panels += [image if new else None for image, new in zip(drawn, is_new, strict=True)]
        titles += [
            f"for {data.classes[number]}{'' if warm.any() else ', none'}"
            for number, warm in zip(classes, heat, strict=True)
        ]
    return gallery(panels, titles, columns=len(rows), size=1.6)


def _reliability(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return accuracy by confidence, a panel a title, with the share of images in each bin below.

    found: by title, what calibration.reliability returns.
    """
    figure = Figure(figsize=(4.4 * len(found) + 0.4, 4.8), layout="constrained", dpi=110)
    grid = figure.subplots(2, len(found), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [4, 1]})
    middles = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    for (top, bottom), (title, bins) in zip(grid.T, found.items(), strict=True):
        accuracy, confidence = np.nan_to_num(bins["accuracy"]), np.nan_to_num(bins["confidence"])
        low, width = np.minimum(accuracy, confidence), 0.92 / NUM_BINS
        top.bar(middles, low, width, color=_RIGHT, label="accuracy")
        top.bar(middles, accuracy - low, width, bottom=low, color=_UNSURE, label="accuracy beyond confidence")
        top.bar(middles, confidence - low, width, bottom=low, color=_SURE, label="confidence beyond accuracy")
        top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        top.set(title=title, xlim=(0, 1), ylim=(0, 1))
        bottom.bar(middles, bins["counts"] / bins["counts"].sum(), width, color=_GREY)
        bottom.set(xlabel="confidence")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share")
    grid[0, 0].legend(frameon=False, loc="upper left")
    return figure


def _robustness(accuracies: Mapping[str, Sequence[float]], clean: float) -> Figure:
    """Return the accuracy under each corruption, a row, at each severity, a column; its colour is the loss against clean."""
    grid = np.array(list(accuracies.values()))
    figure = Figure(figsize=(5.6, 6.2), layout="constrained", dpi=110)
    names = [name.replace("_", " ") for name in accuracies]
    label = f"lost of the clean accuracy, {clean:.3f}"
    texts = np.char.mod("%.3f", grid)
    axes = heat_map(figure, clean - grid, texts, names, [*map(str, corruptions.SEVERITIES)], cmap="Reds",
                    top=max(clean, 0.01), label=label)  # fmt: skip
    axes.set(xlabel="severity", title="Accuracy under corruption")
    return figure
