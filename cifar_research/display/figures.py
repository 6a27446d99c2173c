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
from matplotlib.axes import Axes
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


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Return a confusion matrix, int [K, K] with true classes as rows, as a figure.

    The share of a row is its colour; the counts are written in if there are few classes.
    """
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
    """Draw values, float [R, C] in [0, top], as colours, with a text in each cell, or without any and without names."""
    axes = figure.subplots()
    drawn = axes.imshow(values, cmap=cmap, vmin=0, vmax=top, aspect="auto")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    if texts is not None:
        axes.set_xticks(range(len(columns)), map(plain, columns), rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), map(plain, rows))
        for (i, j), text in np.ndenumerate(texts):
            colour = "white" if values[i, j] > top / 2 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    return axes


def gallery(images: Sequence[np.ndarray | None], titles: Sequence[str], columns: int = 5, size: float = 2.0) -> Figure:
    """Return images, each uint8 [H, W, 3] or None for a gap, under their titles; size: of one, in inches."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(size * columns, 1.08 * size * rows), layout="constrained", dpi=110)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles, strict=False):
        if image is not None:
            axes.imshow(image, interpolation="nearest")
            axes.set_title(plain(title), fontsize=8 if size >= 2 else 7)
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


def pixels(figure: Figure) -> np.ndarray:
    """Return a figure as uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    with _without_glyph_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
