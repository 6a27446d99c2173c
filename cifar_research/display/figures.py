"""Pictures of a run: its curves, its confusion matrix, its mistakes."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_research.runtime.files import atomic_write

_TRAIN, _VAL = "#4477aa", "#cc6677"


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and accuracy by epoch, training and validation, as a PNG.

    rows: of history.csv. A star marks the best validation, a dotted line a change of phase.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in rows], color=_TRAIN, marker="o", markersize=3, label="train")
        val = [row[f"val_{name}"] for row in rows]
        known = [(value, epoch) for value, epoch in zip(val, epochs, strict=True) if _is_finite(value)]
        if known:
            axes.plot(epochs, [np.nan if value is None else value for value in val], color=_VAL, marker="o",
                      markersize=3, label="validation")  # fmt: skip
            # The first of equals, as the loop keeps it.
            value, epoch = (min if name == "loss" else max)(known, key=lambda pair: pair[0])
            label = f"best, {value:.3f} in epoch {epoch}"
            axes.plot(epoch, value, "*", color=_VAL, markersize=13, label=label)
        for epoch, phase in phase_changes(rows):
            axes.axvline(epoch - 0.5, color="grey", linestyle=":", linewidth=1)
            axes.annotate(phase, (epoch - 0.4, 0.02), xycoords=("data", "axes fraction"), color="grey")
        axes.set(title=name.capitalize(), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(rows) == 1:
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        axes.margins(y=0.12)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, path)


def phase_changes(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Return the first epoch and the name of each phase of a history but the first."""
    return [
        (after["epoch"], after["phase"])
        for before, after in itertools.pairwise(rows)
        if before["phase"] != after["phase"]
    ]


def confusion(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix, int [K, K] with true classes as rows, as a PNG.

    The share of a row is its colour; the counts are written in if there are few classes.
    """
    save(_confusion_figure(matrix, classes), path)


def confusion_image(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the picture of `confusion` as uint8 [H, W, 3]."""
    return _pixels(_confusion_figure(matrix, classes))


def mistakes_image(images: np.ndarray, labels: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return one picture, uint8 [H', W', 3], of misclassified images, uint8 [N, H, W, 3] with N at least 1.

    labels, predictions: N names each, which make the titles, «truth → prediction».
    """
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 1.8 * rows), layout="constrained", dpi=80)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, label, prediction in zip(grid[: len(images)], images, labels, predictions, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(plain(f"{label} → {prediction}"), fontsize=8)
    return _pixels(figure)


def _confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    is_small = len(classes) <= 20
    figure = Figure(figsize=(6.4, 5.6) if is_small else (9, 8), layout="constrained", dpi=100)
    axes = figure.subplots()
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the true class")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"Confusion matrix, accuracy {accuracy:.4f}")
    axes.set(xlabel="predicted class", ylabel="true class")
    if is_small:
        ticks = range(len(classes))
        names = [plain(name) for name in classes]
        axes.set_xticks(ticks, names, rotation=45, ha="right")
        axes.set_yticks(ticks, names)
        for i, j in itertools.product(ticks, ticks):
            if matrix[i, j]:
                colour = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def plain(name: str) -> str:
    """Return a class's name as matplotlib writes it as it is: a $ would begin a formula."""
    return name.replace("$", r"\$")


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@contextlib.contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """Let a class's name in another script be drawn as boxes without a word about each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    content = io.BytesIO()
    with _without_glyph_warnings():
        FigureCanvasAgg(figure).print_png(content)
    atomic_write(path, content.getvalue())


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    with _without_glyph_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
