"""Pictures of many runs: the best ones' curves, main effects, a heat map of two settings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from cifar_research import report
from cifar_research.comparison.runs import Run
from cifar_research.comparison.tables import Row, text_of
from cifar_research.figures import save


def curves(path: Path, rows: Sequence[Row], titles: Mapping[str, str]) -> None:
    """Draw validation accuracy by epoch, a line a run in a colour a row; rows without a history are left out."""
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    for i, row in enumerate(rows):
        name = ", ".join(f"{title} {text_of(row.runs[0].settings.get(key))}" for key, title in titles.items())
        for run in row.runs:
            with contextlib.suppress(report.ReportError):
                history = report.read_history(run.folder / "history.csv")
                values = [np.nan if one["val_accuracy"] is None else one["val_accuracy"] for one in history]
                axes.plot([one["epoch"] for one in history], values, marker="o", markersize=3, color=f"C{i}",
                          label=name.replace("$", r"\$") or "run")  # fmt: skip
                name = "_"  # one entry a row
    axes.set(xlabel="epoch", ylabel="validation accuracy", title="The best rows")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    save(figure, path)


def effects(path: Path, found: Mapping[str, Sequence[tuple[str, float, float, int]]]) -> None:
    """Draw the mean validation accuracy by value of each key, with its 95 % interval."""
    figure = Figure(figsize=(max(4.0, 2.6 * len(found)), 3.6), layout="constrained", dpi=150)
    for axes, (title, rows) in zip(
        figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found.items(), strict=True
    ):
        places = range(len(rows))
        halves = [0 if math.isnan(row[2]) else row[2] for row in rows]
        axes.errorbar(places, [row[1] for row in rows], halves, fmt="o", capsize=4, color="#4477aa")
        axes.set_xticks(places, [row[0].replace("$", r"\$") for row in rows], rotation=30, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    figure.supylabel("mean validation accuracy", fontsize=9)
    save(figure, path)


def heat_map(path: Path, runs: Sequence[Run], keys: Sequence[tuple[str, str]]) -> None:
    """Draw the mean validation accuracy for each pair of values of two (key, title), over all else."""
    rows, columns, grid = grid_of(runs, [key for key, _ in keys])
    figure = Figure(figsize=(2.5 + len(columns), 1.8 + 0.6 * len(rows)), layout="constrained", dpi=150)
    axes = figure.subplots()
    drawn = axes.imshow(grid, cmap="viridis", aspect="auto")
    figure.colorbar(drawn, ax=axes, label="mean validation accuracy")
    axes.set_xticks(range(len(columns)), [name.replace("$", r"\$") for name in columns], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in rows])
    axes.set(xlabel=keys[1][1], ylabel=keys[0][1])
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for i, j in np.argwhere(~np.isnan(grid)):
        colour = "white" if grid[i, j] < middle else "black"
        axes.text(j, i, f"{grid[i, j]:.3f}", ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def parallel(path: Path, runs: Sequence[Run], titles: Mapping[str, str]) -> None:
    """Draw a line a completed run through its settings to its validation accuracy, coloured by that."""
    done = sorted((run for run in runs if run.state == "completed" and run.val_accuracy is not None),
                  key=lambda run: run.val_accuracy)  # fmt: skip
    columns = [(title, *levels([run.settings.get(key) for run in done])) for key, title in titles.items()]
    columns.append(("val accuracy", [run.val_accuracy for run in done], None))
    figure = Figure(figsize=(max(5.0, 1.9 * len(columns)), 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    heights = []
    for x, (_, values, ticks) in enumerate(columns):
        low, high = min(values), max(values)
        heights.append([(value - low) / (high - low) if high > low else 0.5 for value in values])
        axes.axvline(x, color="black", linewidth=0.8)
        marks = {low: f"{low:.4g}", high: f"{high:.4g}"} if ticks is None else dict(enumerate(ticks))
        for value, name in marks.items():
            y = (value - low) / (high - low) if high > low else 0.5
            axes.text(x, y, f" {name}".replace("$", r"\$"), fontsize=6, va="center")
    for i, shade in enumerate(heights[-1]):
        axes.plot(range(len(columns)), [height[i] for height in heights], color=colormaps["viridis"](shade), alpha=0.7)
    axes.set_xticks(range(len(columns)), [title for title, *_ in columns], fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    save(figure, path)


def grid_of(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[str], list[str], np.ndarray]:
    """Return the values of two keys and the mean validation accuracy of each pair, float [rows, columns], else nan."""
    values: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        if run.state == "completed" and run.val_accuracy is not None:
            place = tuple(text_of(run.settings.get(key)) for key in keys)
            values.setdefault(place, []).append(run.val_accuracy)
    rows, columns = (list(dict.fromkeys(place[i] for place in values)) for i in (0, 1))
    grid = np.full([len(rows), len(columns)], np.nan)
    for (row, column), found in values.items():
        grid[rows.index(row), columns.index(column)] = np.mean(found)
    return rows, columns, grid


def levels(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Return places on an axis, and its ticks' names; numbers are their own places, and None their ticks."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], None
    names = list(dict.fromkeys(text_of(value) for value in values))
    return [float(names.index(text_of(value))) for value in values], names
