"""Pictures of many runs: curves of the best, main effects, a heat map of two settings, backbones and techniques."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from cifar_research.comparison import tables
from cifar_research.comparison.runs import Run
from cifar_research.comparison.tables import Row, text_of
from cifar_research.display.figures import phase_changes, save
from cifar_research.runtime.errors import ReportError

History = list[dict[str, Any]]  # a row an epoch, see report.read_history
COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377")
PALE = 0.35  # the opacity of what stands behind


def curves(path: Path, rows: Sequence[Row], titles: Mapping[str, str]) -> None:
    """Draw validation accuracy by epoch, a line a run in a colour a row; rows without a history are left out."""
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    for i, row in enumerate(rows):
        name = ", ".join(f"{title} {text_of(row.runs[0].settings.get(key))}" for key, title in titles.items())
        for run in row.runs:
            with contextlib.suppress(ReportError):
                history = run.history()
                axes.plot(*mean_curve([history]), marker="o", markersize=3, color=f"C{i}",
                          label=_plain(name) or "run")  # fmt: skip
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
        axes.errorbar(places, [row[1] for row in rows], [row[2] for row in rows], fmt="o", capsize=4, color="#4477aa")
        axes.set_xticks(places, [_plain(row[0]) for row in rows], rotation=30, ha="right", fontsize=7)
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
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
    axes.set(xlabel=keys[1][1], ylabel=keys[0][1])
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for i, j in np.argwhere(~np.isnan(grid)):
        colour = "white" if grid[i, j] < middle else "black"
        axes.text(j, i, f"{grid[i, j]:.3f}", ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def parallel(path: Path, runs: Sequence[Run], titles: Mapping[str, str]) -> None:
    """Draw a line a completed run through its settings to its validation accuracy, coloured by that."""
    done = sorted(tables.completed(runs), key=lambda run: run.val_accuracy)
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
            axes.text(x, y, _plain(f" {name}"), fontsize=6, va="center")
    for i, shade in enumerate(heights[-1]):
        axes.plot(range(len(columns)), [height[i] for height in heights], color=colormaps["viridis"](shade), alpha=0.7)
    axes.set_xticks(range(len(columns)), [title for title, *_ in columns], fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    save(figure, path)


def backbones(path: Path, runs: Sequence[Run]) -> None:
    """Draw what backbones reach and cost, a bar a technique: accuracy with its 95 % interval, parameters, seconds."""
    accuracy, bars = tables.bars(runs)
    colour_of, places = colours(runs), list(dict.fromkeys(bar.backbone for bar in bars))
    figure = Figure(figsize=(max(10.0, 2.4 * len(places)), 4.2), layout="constrained", dpi=150)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.04})
    width = 0.8 / len(colour_of)
    for bar in bars:
        own = [other.technique for other in bars if other.backbone == bar.backbone]
        # Side by side around their backbone's name, with no gap for a technique that it lacks.
        x = places.index(bar.backbone) + (own.index(bar.technique) - (len(own) - 1) / 2) * width
        style = {"width": 0.92 * width, "color": colour_of[bar.technique]}
        error = [[bar.accuracy - bar.low], [bar.high - bar.accuracy]]
        panels[0].bar(x, bar.accuracy, yerr=error, capsize=3, error_kw={"linewidth": 1}, **style)
        panels[1].bar(x, _or_nan(bar.total), alpha=PALE, **style)
        panels[1].bar(x, _or_nan(bar.trainable), **style)
        panels[2].bar(x, _or_nan(bar.seconds), **style)
    for axes, title in zip(panels, (f"{accuracy}, 95 % interval", "parameters, log scale", "seconds"), strict=True):
        axes.set(ylabel=title, xlim=(-0.5, len(places) - 0.5))
        axes.set_xticks(range(len(places)), [_plain(name) for name in places], rotation=30, ha="right", fontsize=8)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    if (power := foot(bars)) is not None:
        panels[1].set_yscale("log")  # a head is a hundredth of its backbone
        panels[1].set_ylim(bottom=10**power)
        panels[1].yaxis.set_major_formatter(EngFormatter(sep=""))
    handles = [Patch(color=colour, label=_plain(name)) for name, colour in colour_of.items()]
    handles.append(Patch(color="grey", alpha=PALE, label="parameters not trained"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    save(figure, path)


def techniques(path: Path, runs: Sequence[Run]) -> None:
    """Draw validation accuracy by epoch, a panel a backbone: the mean of each technique, its runs thinly behind it.

    A dotted line stands where a phase begins, with its name.
    """
    panels, colour_of = histories(runs), colours(runs)
    rows, columns = shape(len(panels))
    figure = Figure(figsize=(max(7.0, 4.2 * columns), 3.6 * rows + 0.4), layout="constrained", dpi=150)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for axes, (backbone, found) in zip(grid, panels.items(), strict=False):
        marks = [(technique, *mark) for technique, of in found.items() for mark in phase_marks(of)]
        for technique, of in found.items():
            for history in of:
                axes.plot(*mean_curve([history]), color=colour_of[technique], linewidth=0.8, alpha=PALE)
            axes.plot(*mean_curve(of), color=colour_of[technique], linewidth=2, marker="o", markersize=3)
        height = 0.02
        for technique, place, name in marks:
            axes.axvline(place, color=colour_of[technique], linestyle=":", linewidth=1.2)
            if name:  # one above the other, since some may begin in the same epoch
                side = "right" if place > 0.8 * axes.get_xlim()[1] else "left"  # it must not leave the panel
                axes.annotate(f" {_plain(name)} ", (place, height), xycoords=("data", "axes fraction"), fontsize=8,
                              color="0.3", ha=side)  # fmt: skip
                height += 0.06
        axes.set(title=_plain(backbone), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.supylabel("validation accuracy", fontsize=10)
    handles = [Line2D([], [], color=colour, linewidth=2, label=_plain(name)) for name, colour in colour_of.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    save(figure, path)


def colours(runs: Sequence[Run]) -> dict[str, str]:
    """Return the colour of each technique of these runs, the same in all pictures."""
    return dict(zip(tables.techniques(runs), itertools.cycle(COLOURS), strict=False))


def foot(bars: Sequence[tables.Bar]) -> int | None:
    """Return the power of ten from which bars of parameters rise, so low that all are seen; None without parameters."""
    known = [bar.trainable for bar in bars if bar.trainable]
    return math.floor(math.log10(min(known) / 2)) if known else None


def shape(num: int) -> tuple[int, int]:
    """Return the rows and columns of so many panels, three in a row."""
    columns = max(1, min(num, 3))
    return max(1, math.ceil(num / columns)), columns


def histories(runs: Sequence[Run]) -> dict[str, dict[str, list[History]]]:
    """Return the completed runs' histories by backbone and by technique; a run without one is left out."""
    found: dict[str, dict[str, list[History]]] = {}
    for run in tables.completed(runs):
        with contextlib.suppress(ReportError):
            history = run.history()
            found.setdefault(run.settings["backbone"], {}).setdefault(tables.technique(run), []).append(history)
    return found


def mean_curve(of: Sequence[History]) -> tuple[list[int], list[float]]:
    """Return the epochs that all runs have, and the mean validation accuracy in each, nan without one.

    Only those, since a mean would jump where a run ends early.
    """
    rows = list(zip(*of, strict=False))
    values = [[np.nan if one["val_accuracy"] is None else one["val_accuracy"] for one in row] for row in rows]
    return [row[0]["epoch"] for row in rows], [sum(one) / len(one) for one in values]


def phase_marks(of: Sequence[History]) -> list[tuple[float, str]]:
    """Return where, between two epochs, phases of these runs begin, with their names.

    Runs that stop early change at several places; only the first bears the name, the others "".
    """
    told: set[str] = set()
    marks = []
    for epoch, name in sorted({change for history in of for change in phase_changes(history)}):
        marks.append((epoch - 0.5, "" if name in told else name))
        told.add(name)
    return marks


def grid_of(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[str], list[str], np.ndarray]:
    """Return the values of two keys and the mean validation accuracy of each pair, float [rows, columns], else nan."""
    values: dict[tuple[str, ...], list[float]] = {}
    for run in tables.completed(runs):
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


def _plain(text: str) -> str:
    """Return text as matplotlib writes it as it is: a $ would begin a formula."""
    return text.replace("$", r"\$")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
