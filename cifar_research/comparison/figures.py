"""Figures of many runs for report.html; two of them also as PNGs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly import graph_objects as plotly
from plotly.subplots import make_subplots

from cifar_research.comparison import ranking
from cifar_research.comparison.ranking import Comparison, Row
from cifar_research.comparison.runs import Run
from cifar_research.display.figures import phase_changes, plain, save
from cifar_research.display.tables import text_of
from cifar_research.runs.metrics import display_name
from cifar_research.runtime.errors import ReportError

COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377")
_PALE = 0.35  # opacity of background lines and bars
_MOST_CURVES = 10  # of one row of the leaderboard
_MOST_BEHIND = 20  # thin curves behind a technique's mean
_LEGEND_BELOW = {"orientation": "h", "y": -0.2}


class Curve(NamedTuple):
    """What is drawn of a history: a validation metric of each epoch, or nan, and the changes of phase."""

    values: np.ndarray
    changes: list[tuple[int, str]]


def draw(comparison: Comparison, folder: Path) -> dict[str, plotly.Figure | Path]:
    """Return figures by heading; write parallel_coordinates.png and backbones.png.

    Figures without data are left out.
    """
    folder.mkdir(exist_ok=True)
    titles, effects, best = comparison.titles, comparison.effects, comparison.best_rows
    techniques, backbones = (dict.fromkeys(names) for names in zip(*best, strict=True)) if best else ({}, {})
    colours = dict(zip(techniques, itertools.cycle(COLOURS), strict=False))
    figures: dict[str, plotly.Figure | Path] = {"Curves of the best five": _curves(comparison)}
    if effects:
        figures["Main effects, with 95 % intervals"] = _effects(comparison)
    if len(effects) > 1:
        figures[f"Mean validation {display_name(comparison.metric)} by two settings"] = _heat_map(comparison)
    if len(titles) > 1 and best:
        figure = _parallel(comparison)
        save(_static_parallel(figure), folder / "parallel_coordinates.png")
        figures["Parallel coordinates"] = figure
    if len(backbones) > 1:
        path = figures["Backbones, the best setting of each"] = folder / "backbones.png"
        save(draw_backbones(best, colours), path)
    if len(techniques) > 1:
        figures[f"Techniques, the mean of each and its first {_MOST_BEHIND} runs"] = _techniques(
            comparison.completed, colours
        )
    return figures


def _curves(comparison: Comparison) -> plotly.Figure:
    """Return the validation metric by epoch: a line a run, a colour a row of the leaderboard.

    Of a row with many runs, the first ones; the legend says how many.
    """
    label = f"validation {display_name(comparison.metric)}"
    figure = plotly.Figure(layout={"yaxis_title": label, "xaxis_title": "epoch", "legend": _LEGEND_BELOW})
    for colour, row in zip(COLOURS, comparison.leaderboard, strict=False):
        settings = row.runs[0].settings
        name = ", ".join(f"{title} {text_of(settings.get(key))}" for key, title in comparison.titles.items())
        drawn, is_first = row.runs[:_MOST_CURVES], True
        name += f", {_repeat(drawn[0])}" if len(row.runs) == 1 else f", {len(drawn)} of {len(row.runs)} runs"
        for run in drawn:
            with contextlib.suppress(ReportError):
                epochs, values = mean_curve([curve(run.history(), comparison.metric)])
                style = {"line_color": colour, "name": name, "legendgroup": name, "showlegend": is_first}
                figure.add_scatter(x=epochs, y=values, hovertext=_repeat(run), **style)
                is_first = False
    return figure


def _repeat(run: Run) -> str:
    seed, fold = run.repeat
    return f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"


def _effects(comparison: Comparison) -> plotly.Figure:
    """Return the mean validation metric of each value of each setting, with its interval."""
    path, label = f"val/{comparison.metric}", f"mean validation {display_name(comparison.metric)}"
    figure = plotly.Figure(layout={"yaxis_title": label, "margin": {"t": 20, "b": 160}})
    for key, rows in comparison.effects.items():
        title = comparison.titles[key]
        figure.add_scatter(
            name=title,
            x=[f"{title} {value}" for value in rows],
            y=[row.mean(path) for row in rows.values()],
            error_y={"array": [row.half_width(path) for row in rows.values()]},
            hovertext=[f"n = {len(row.runs)}" for row in rows.values()],
            mode="markers",
            marker_size=9,
        )
    return figure


def _heat_map(comparison: Comparison) -> plotly.Figure:
    """Return the mean validation metric by the two settings with the largest effects."""
    path, effects = f"val/{comparison.metric}", comparison.effects
    spread = {key: np.ptp([row.mean(path) for row in rows.values()]) for key, rows in effects.items()}
    first, second = sorted(spread, key=lambda key: -spread[key])[:2]
    scores: dict[tuple[str, str], list[float]] = {}
    for run in comparison.completed:
        cell = text_of(run.settings.get(first)), text_of(run.settings.get(second))
        scores.setdefault(cell, []).append(run.val(comparison.metric))
    rows, columns = (list(dict.fromkeys(values)) for values in zip(*scores, strict=True))
    means = [[float(np.mean(scores.get((row, column), math.nan))) for column in columns] for row in rows]
    figure = plotly.Figure(plotly.Heatmap(z=means, x=columns, y=rows, colorscale="Viridis"))
    figure.update_yaxes(title=comparison.titles[first], type="category", automargin=True)
    figure.update_xaxes(title=comparison.titles[second], type="category", automargin=True)
    return figure


def _parallel(comparison: Comparison) -> plotly.Figure:
    """Return a line a completed run through its settings to its validation metric."""
    values = np.array([run.val(comparison.metric) for run in comparison.completed])
    # The best are drawn last.
    order, left = np.argsort(-values if comparison.metric == "loss" else values, kind="stable"), 0
    dimensions = []
    for key, title in comparison.titles.items():
        positions, ticks = [run.settings.get(key) for run in comparison.completed], {}
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in positions):
            texts = list(map(text_of, positions))
            names = list(dict.fromkeys(texts))
            positions, ticks = list(map(names.index, texts)), {"tickvals": list(range(len(names))), "ticktext": names}
            left = left or max(map(len, names))  # of the first axis, whose names are left of the figure
        dimensions.append({"label": title, "values": np.array(positions, float)[order].tolist()} | ticks)
    dimensions.append({"label": f"val {display_name(comparison.metric)}", "values": values[order].tolist()})
    line = {"color": dimensions[-1]["values"], "colorscale": "Viridis", "showscale": True}
    layout = {"margin": {"t": 60, "l": min(max(120, 7 * left), 400)}}
    return plotly.Figure(plotly.Parcoords(dimensions=dimensions, line=line), layout=layout)


def _static_parallel(parallel: plotly.Figure) -> Figure:
    dimensions = parallel.data[0].dimensions
    figure = Figure(figsize=(max(5.0, 1.9 * len(dimensions)), 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    heights = []
    for x, dimension in enumerate(dimensions):
        low, high = min(dimension.values), max(dimension.values)
        scale = high - low or 1
        heights.append([(value - low) / scale for value in dimension.values])
        axes.axvline(x, color="black", linewidth=0.8)
        names = dimension.ticktext or (f"{low:.4g}", f"{high:.4g}")
        for value, name in zip(dimension.tickvals or (low, high), names, strict=True):
            axes.text(x, (value - low) / scale, plain(f" {name}"), fontsize=6, va="center")
    lines = np.array(heights).T
    points = np.stack([np.broadcast_to(np.arange(len(dimensions)), lines.shape), lines], axis=-1)
    axes.add_collection(LineCollection(list(points), colors=colormaps["viridis"](lines[:, -1]), alpha=0.7))
    axes.autoscale()
    axes.set_xticks(range(len(dimensions)), [dimension.label for dimension in dimensions], fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def draw_backbones(best: Mapping[tuple[str, str], Row], colours: Mapping[str, str]) -> Figure:
    """Return accuracy, parameters and seconds by backbone, a bar for each technique."""
    has_test = all(row.mean("test/accuracy") is not None for row in best.values())
    path, title = ("test/accuracy", "test accuracy") if has_test else ("val/accuracy", "validation accuracy")
    names = list(dict.fromkeys(backbone for _, backbone in best))
    figure = Figure(figsize=(max(10.0, 2.4 * len(names)), 4.2), layout="constrained", dpi=150)
    accuracy, parameters, seconds = panels = figure.subplots(1, 3)
    width = 0.8 / len(colours)
    for (technique, backbone), row in best.items():
        # Centred on the backbone's name, without gaps for missing techniques.
        beside = [name for name in colours if (name, backbone) in best]
        x = names.index(backbone) + (beside.index(technique) - (len(beside) - 1) / 2) * width
        style = {"width": 0.92 * width, "color": colours[technique], "label": plain(technique)}
        mean, (low, high) = row.mean(path) or 0.0, row.bounds(path)
        accuracy.bar(x, mean, yerr=[[mean - low], [high - mean]], capsize=3, **style)
        sizes = row.runs[0].sizes
        parameters.bar(x, sizes["parameters"] or 0, alpha=_PALE, **style)
        parameters.bar(x, sizes["trainable"] or 0, **style)
        seconds.bar(x, row.mean("seconds/total") or 0, **style)
    labels = (f"{title}, 95 % interval", "parameters (pale: not trained)", "seconds")
    for axes, label in zip(panels, labels, strict=True):
        axes.set_ylabel(label)
        axes.set_xticks(range(len(names)), map(plain, names), rotation=30, ha="right", fontsize=8)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    if trainable := [size for row in best.values() if (size := row.runs[0].sizes["trainable"])]:
        # A head has a hundredth of its backbone's parameters: start low enough to show all bars.
        parameters.set(yscale="log")
        parameters.set_ylim(bottom=10 ** math.floor(math.log10(min(trainable) / 2)))
    legend = {text: handle for handle, text in zip(*accuracy.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def draw_two_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float | None]]]) -> None:
    """Write losses and accuracies by epoch as a PNG: a colour a side, training dashed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for colour, (side, rows) in zip(COLOURS, curves.items(), strict=False):
            for column, line, title in ((name, "--", "train"), (f"val_{name}", "-", "validation")):
                values = np.array([row[column] for row in rows], float)
                style = {"linestyle": line, "marker": "o", "markersize": 3, "label": f"{side}, {title}"}
                axes.plot(range(1, len(rows) + 1), values, color=colour, **style)
        axes.set(title=name.capitalize(), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save(figure, path)


def _techniques(runs: Sequence[Run], colours: Mapping[str, str]) -> plotly.Figure:
    """Return validation accuracy by epoch, a panel a backbone, a colour a technique.

    The first runs are thin behind the mean of all; a dotted line marks the first start of a phase.
    """
    panels: dict[str, dict[str, list[Curve]]] = {}
    for run in runs:
        with contextlib.suppress(ReportError):
            drawn = curve(run.history())
            panels.setdefault(run.settings["backbone"], {}).setdefault(ranking.technique(run), []).append(drawn)
    columns = min(max(len(panels), 1), 3)
    num_rows = math.ceil(max(len(panels), 1) / columns)
    figure = make_subplots(num_rows, columns, subplot_titles=list(panels), shared_yaxes="all", x_title="epoch",
                           y_title="validation accuracy")  # fmt: skip
    figure.update_layout(height=360 * num_rows + 100, legend=_LEGEND_BELOW, margin_t=40)
    for number, by_technique in enumerate(panels.values()):
        panel = {"row": number // columns + 1, "col": number % columns + 1}
        styles = {
            name: {"mode": "lines", "line_color": colours[name], "name": name, "legendgroup": name} | panel
            for name in by_technique
        }
        for technique, curves in by_technique.items():
            for thin in curves[:_MOST_BEHIND]:
                x, y = mean_curve([thin])
                figure.add_scatter(x=x, y=y, line_width=1, opacity=_PALE, showlegend=False, **styles[technique])
        for technique, curves in by_technique.items():  # after all thin ones, which would hide them
            colour = colours[technique]
            x, y = mean_curve(curves)
            is_first = not any(trace.name == technique and trace.showlegend for trace in figure.data)
            figure.add_scatter(x=x, y=y, line_width=3, showlegend=is_first, **styles[technique])
            for phase, epoch in phase_starts(curves).items():
                label = {"text": phase, "textposition": "start", "xanchor": "left"}
                figure.add_vline(epoch - 0.5, line={"color": colour, "dash": "dot", "width": 1.5}, label=label, **panel)
    return figure


def curve(history: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> Curve:
    """Return what is drawn of the rows of history.csv, which would fill the memory of a large report."""
    return Curve(np.array([row[f"val_{metric}"] for row in history], float), phase_changes(history))


def mean_curve(curves: Sequence[Curve]) -> tuple[list[int], list[float]]:
    """Return the epochs that all runs have, and the mean of the metric in each, or nan."""
    num_epochs = min(len(each.values) for each in curves)
    means = np.mean([each.values[:num_epochs] for each in curves], axis=0)
    return list(range(1, num_epochs + 1)), means.tolist()


def phase_starts(curves: Sequence[Curve]) -> dict[str, int]:
    """Return the first epoch in which a run starts each phase, except the first phase."""
    changes = sorted((change for each in curves for change in each.changes), reverse=True)
    return {phase: epoch for epoch, phase in changes}
