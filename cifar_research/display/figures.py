"""Figures of a run: curves, confusion matrix, gallery of images."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_research.runtime.files import atomic_write

_TRAIN, _VAL = "#4477aa", "#cc6677"


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and accuracy by epoch, training and validation, as a PNG.

    rows: of history.csv. A star marks the best validation score, a dotted line a change of phase.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        train, val = (np.array([row[key] for row in rows], float) for key in (name, f"val_{name}"))
        axes.plot(epochs, train, color=_TRAIN, marker="o", markersize=3, label="train")
        if np.isfinite(val).any():
            axes.plot(epochs, val, color=_VAL, marker="o", markersize=3, label="validation")
            known = np.where(np.isfinite(val), val, np.nan)
            best = int(np.nanargmin(known) if name == "loss" else np.nanargmax(known))
            label = f"best, {val[best]:.3f} in epoch {epochs[best]}"
            axes.plot(epochs[best], val[best], "*", color=_VAL, markersize=13, label=label)
        for epoch, phase in phase_changes(rows):
            axes.axvline(epoch - 0.5, color="grey", linestyle=":", linewidth=1)
            axes.annotate(phase, (epoch - 0.4, 0.02), xycoords=("data", "axes fraction"), color="grey")
        axes.set(title=name.capitalize(), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, path)


def phase_changes(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Return the first epoch and the name of each phase of a history, except the first."""
    pairs = itertools.pairwise(rows)
    return [(after["epoch"], after["phase"]) for before, after in pairs if before["phase"] != after["phase"]]


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Return a confusion matrix, int [K, K], true classes as rows, as a figure of row shares."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    is_small = len(classes) <= 20
    figure = Figure(figsize=(6.4, 5.6) if is_small else (9, 8), layout="constrained", dpi=100)
    counts = np.where(matrix > 0, matrix.astype(str), "") if is_small else None
    axes = heat_map(figure, share, counts, classes, classes, cmap="Blues", top=1, label="share of the true class")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"Confusion matrix, accuracy {accuracy:.4f}")
    return figure


def heat_map(
    figure: Figure,
    values: np.ndarray,
    texts: np.ndarray | None,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    cmap: str,
    top: float,
    label: str,
) -> Axes:
    """Draw values, float [R, C] in [0, top], as colours; without texts, also without names."""
    axes = figure.subplots()
    figure.colorbar(axes.imshow(values, cmap=cmap, vmin=0, vmax=top, aspect="auto"), ax=axes, shrink=0.8, label=label)
    if texts is not None:
        axes.set_xticks(range(len(columns)), map(plain, columns), rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), map(plain, rows))
        for (i, j), text in np.ndenumerate(texts):
            colour = "white" if values[i, j] > top / 2 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    return axes


def gallery(
    images: np.ndarray | Sequence[np.ndarray], titles: Sequence[str], columns: int = 5, size: float = 2.0
) -> Figure:
    """Return images, uint8 [H, W, 3], below titles; size: of one, in inches."""
    columns, points = min(columns, len(images)), 8 if size >= 2 else 7
    line = 1.4 * points / 72 / size  # of a title; the unit of all lengths is an image's box
    rows = [titles[first : first + columns] for first in range(0, len(images), columns)]
    bottoms = np.cumsum([1 + line * max(title.count("\n") + 1 for title in row) for row in rows])
    figure = Figure(figsize=(size * columns, size * bottoms[-1]), dpi=110)
    # All in one: axes of their own for each image would take ten times as long.
    axes = figure.add_axes((0, 0, 1, 1))
    for number, (image, title) in enumerate(zip(images, titles, strict=False)):
        x, bottom = number % columns + 0.5, bottoms[number // columns] - 0.02
        tall, wide = (0.94 * pixels / max(image.shape[:2]) for pixels in image.shape[:2])
        axes.imshow(image, interpolation="nearest", extent=(x - wide / 2, x + wide / 2, bottom, bottom - tall))
        axes.text(x, bottom - 0.97, plain(title), ha="center", va="bottom", fontsize=points)
    axes.set(xlim=(0, columns), ylim=(bottoms[-1], 0))
    axes.axis("off")
    return figure


def plain(name: str) -> str:
    """Return a name with $ escaped, which starts a formula in matplotlib."""
    return name.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    atomic_write(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # from the font
        FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
