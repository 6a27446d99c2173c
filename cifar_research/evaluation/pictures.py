"""Pictures of an evaluation: reliability, corruptions, mistakes, Grad-CAM, where two runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cifar_research.data.datasets import Dataset
from cifar_research.display import figures
from cifar_research.display.figures import plain, save
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
    pictures, labels = arrays(data.test)
    paths = {name: folder / "figures" / f"{name}.png" for name in (
        "confusion", "reliability", "misclassified", "corruptions", "corrupted", "grad_cam")}  # fmt: skip
    for path in paths.values():
        path.unlink(missing_ok=True)  # of an evaluation before this one
    figures.confusion(paths["confusion"], np.array(result["confusion"]), data.classes)
    found = {}
    for title, how in (("as trained", "before"), ("with its temperature", "after")):
        if (measured := result["calibration"][how]) is None:
            continue
        bins = calibration.reliability(trained.softmax(logits / measured["temperature"]), labels)
        ece = "too few images for an ECE" if measured["ece"] is None else f"ECE {measured['ece']:.4f}"
        found[f"{title}, T = {measured['temperature']:.3g}, {ece}"] = bins
    reliability(paths["reliability"], found)
    if wrong := result["misclassified"]:
        names = [(data.classes[row["label"]], data.classes[row["prediction"]]) for row in wrong]
        titles = [
            f"{truth} → {guess}\n{row['probability']:.3f}" for (truth, guess), row in zip(names, wrong, strict=True)
        ]
        gallery(paths["misclassified"], pictures[[row["index"] for row in wrong]], titles)
    if found := result.get("corruptions"):
        robustness(paths["corruptions"], found["accuracies"], found["clean"])
        shown = {
            name: np.concatenate(
                [corruptions.corrupt(pictures[:1], name, one, [0, 0]) for one in corruptions.SEVERITIES]
            )
            for name in corruptions.NAMES
        }
        examples(paths["corrupted"], shown)
    _evidence(paths["grad_cam"], classifier, data, result, logits)
    return {name: path for name, path in paths.items() if path.exists()}


def _evidence(path: Path, classifier: Classifier, data: Dataset, result: dict[str, Any], logits: np.ndarray) -> None:
    """Draw Grad-CAM of a few images, some of them classified rightly; none if the backbone has no feature map."""
    pictures, labels = arrays(data.test)
    predictions = logits.argmax(1)
    rows = [*np.flatnonzero(predictions == labels)[:_NUM_EVIDENCE].tolist(),
            *(row["index"] for row in result["misclassified"][:_NUM_EVIDENCE])]  # fmt: skip
    inputs = classifier.preprocess(pictures[rows])
    try:
        heat = [
            gradcam.enlarged(gradcam.maps(classifier.model, inputs, of[rows]), classifier.image_shape[:2])
            for of in (predictions, labels)
        ]
    except ValueError:
        return
    columns = []
    for place, row in enumerate(rows):
        guess, truth = data.classes[predictions[row]], data.classes[labels[row]]
        maps = [(f"for {guess}", heat[0][place])]
        columns.append(maps if guess == truth else [*maps, (f"for {truth}", heat[1][place])])
    evidence(path, pictures[rows], columns)


def reliability(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw accuracy by confidence, a panel a title, with the share of images in each bin below.

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
    save(figure, path)


def robustness(path: Path, accuracies: Mapping[str, Sequence[float]], clean: float) -> None:
    """Draw the accuracy under each corruption, a row, at each severity, a column; its colour is the loss against clean."""
    grid = np.array(list(accuracies.values()))
    figure = Figure(figsize=(5.6, 6.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    drawn = axes.imshow(clean - grid, cmap="Reds", aspect="auto", vmin=0, vmax=max(clean, 0.01))
    figure.colorbar(drawn, ax=axes, shrink=0.7, label=f"lost of the clean accuracy, {clean:.3f}")
    axes.set_xticks(range(grid.shape[1]), range(1, grid.shape[1] + 1))
    axes.set_yticks(range(len(grid)), [name.replace("_", " ") for name in accuracies])
    axes.set(xlabel="severity", title="Accuracy under corruption")
    for (i, j), value in np.ndenumerate(grid):
        colour = "white" if clean - value > 0.6 * clean else "black"
        axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def examples(path: Path, images: Mapping[str, np.ndarray]) -> None:
    """Draw an image under each corruption: a column a name, a row a severity, of uint8 [5, H, W, 3] each."""
    rows = len(next(iter(images.values())))
    figure = Figure(figsize=(0.78 * len(images) + 0.4, 0.78 * rows + 1.0), layout="constrained", dpi=110)
    grid = figure.subplots(rows, len(images), squeeze=False)
    for column, (name, pictures) in zip(grid.T, images.items(), strict=True):
        for axes, picture in zip(column, pictures, strict=True):
            _show(axes, picture)
        column[0].set_title(name.replace("_", "\n"), fontsize=7)
    for severity, axes in enumerate(grid[:, 0], 1):
        axes.set_ylabel(severity, fontsize=8, rotation=0, labelpad=8, va="center")
    save(figure, path)


def gallery(path: Path, images: np.ndarray, titles: Sequence[str], columns: int = 5) -> None:
    """Draw images, uint8 [N, H, W, 3], each under its title of one or two lines."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.15 * rows), layout="constrained", dpi=110)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(plain(title), fontsize=8)
    save(figure, path)


def evidence(path: Path, images: np.ndarray, maps: Sequence[Sequence[tuple[str, np.ndarray]]]) -> None:
    """Draw Grad-CAM: a column an image, uint8 [H, W, 3], and below it its heat maps, each (title, [H, W] in [0, 1])."""
    rows = 1 + max(map(len, maps))
    figure = Figure(figsize=(1.6 * len(images), 1.75 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, len(images), squeeze=False)
    for column, image, of_image in zip(grid.T, images, maps, strict=True):
        for axes in column:
            axes.axis("off")
        column[0].imshow(image, interpolation="nearest")
        for axes, (title, heat) in zip(column[1:], of_image, strict=False):
            axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.imshow(heat, cmap="jet", vmin=0, vmax=1, alpha=0.45, interpolation="bilinear")
            axes.set_title(plain(title if heat.any() else f"{title}, none"), fontsize=7)
    save(figure, path)


def _show(axes: Any, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
