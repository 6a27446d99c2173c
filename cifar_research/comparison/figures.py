"""Figures of many runs for report.html: curves, main effects, settings, backbones, techniques; two also as PNGs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.comparison import tables
from cifar_research.comparison.runs import Run, varied
from cifar_research.comparison.tables import text_of
from cifar_research.display.document import Plot
from cifar_research.display.figures import phase_changes, plain, save
from cifar_research.runtime.errors import ReportError

History = list[dict[str, Any]]  # a row an epoch, see runs/report.py
COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377")
PALE = 0.35  # the opacity of what stands behind
_PARALLEL, _BACKBONES = "Parallel coordinates", "Backbones, the best setting of each"


def plots(runs: Sequence[Run]) -> dict[str, Plot]:
    """Return, by heading, the figures that these runs allow."""
    titles = varied(runs)
    found = {"Curves of the best five": _curves(runs, titles)}
    if effects := tables.effects(runs):
        found["Main effects, with 95 % intervals"] = _effects(effects)
    if two := tables.strongest_two(runs):
        found["Mean validation accuracy by two settings"] = _heat_map(runs, two)
    if len(titles) > 1 and tables.completed(runs):
        found[_PARALLEL] = _parallel(runs, titles)
    if tables.differs(runs, "backbone"):
        found[_BACKBONES] = _backbones(runs)
    if tables.differs(runs, "training"):
        found["Techniques, the mean of each and its runs"] = _techniques(runs)
    return found


def write_pictures(folder: Path, found: Mapping[str, Plot]) -> None:
    """Write parallel_coordinates.png and backbones.png, if these are among the plots."""
    for heading, name, draw in (
        (_PARALLEL, "parallel_coordinates", _draw_parallel),
        (_BACKBONES, "backbones", _draw_backbones),
    ):
        if heading in found:
            folder.mkdir(exist_ok=True)
            save(draw(found[heading]), folder / f"{name}.png")


def _curves(runs: Sequence[Run], titles: Mapping[str, str]) -> Plot:
    """Return validation accuracy by epoch, a line a run in a colour a row; runs without a history are left out."""
    traces = []
    for colour, row in zip(COLOURS, tables.leaderboard(runs), strict=False):
        name = ", ".join(f"{title} {text_of(row.runs[0].settings.get(key))}" for key, title in titles.items())
        for run in row.runs:
            with contextlib.suppress(ReportError):
                epochs, values = mean_curve([run.history()])
                traces.append({"type": "scatter", "name": f"{name}, seed {run.seed}", "line": {"color": colour},
                               "x": epochs, "y": values})  # fmt: skip
    axes = {"yaxis": _titled("validation accuracy"), "xaxis": _titled("epoch")}
    return Plot(traces, axes | {"legend": {"orientation": "h", "y": -0.2}})


def _effects(found: Mapping[str, Sequence[tuple[str, float, float, int]]]) -> Plot:
    traces = [
        {"type": "scatter", "mode": "markers", "name": title, "x": [f"{title} {row[0]}" for row in rows],
         "y": [row[1] for row in rows], "text": [f"n = {row[3]}" for row in rows], "marker": {"size": 9},
         "error_y": {"type": "data", "array": [row[2] for row in rows]}}
        for title, rows in found.items()
    ]  # fmt: skip
    return Plot(traces, {"yaxis": _titled("mean validation accuracy"), "margin": {"t": 20, "b": 160}})


def _heat_map(runs: Sequence[Run], keys: Sequence[tuple[str, str]]) -> Plot:
    """Return the mean validation accuracy for each pair of values of two (key, title), over all else."""
    values: dict[tuple[str, ...], list[float]] = {}
    for run in tables.completed(runs):
        pair = tuple(text_of(run.settings.get(key)) for key, _ in keys)
        values.setdefault(pair, []).append(run.val_accuracy)
    rows, columns = (list(dict.fromkeys(pair[i] for pair in values)) for i in (0, 1))
    grid = [[float(np.mean(values.get((row, column), math.nan))) for column in columns] for row in rows]
    trace = {"type": "heatmap", "z": grid, "x": columns, "y": rows, "colorscale": "Viridis"}
    axes = {axis: _titled(title) | {"type": "category", "automargin": True}
            for axis, (_, title) in zip(("yaxis", "xaxis"), keys, strict=True)}  # fmt: skip
    return Plot([trace], axes)


def _parallel(runs: Sequence[Run], titles: Mapping[str, str]) -> Plot:
    """Return a line a completed run through its settings to its validation accuracy, coloured by that."""
    done = sorted(tables.completed(runs), key=lambda run: run.val_accuracy)
    accuracies = [run.val_accuracy for run in done]
    dimensions = []
    for key, title in titles.items():
        values, ticks = levels([run.settings.get(key) for run in done])
        named = {} if ticks is None else {"tickvals": list(range(len(ticks))), "ticktext": ticks}
        dimensions.append({"label": title, "values": values} | named)
    dimensions.append({"label": "val accuracy", "values": accuracies})
    line = {"color": accuracies, "colorscale": "Viridis", "showscale": True}
    return Plot([{"type": "parcoords", "dimensions": dimensions, "line": line}], {"margin": {"t": 60, "l": 120}})


def _draw_parallel(plot: Plot) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    dimensions = plot.traces[0]["dimensions"]
    figure = Figure(figsize=(max(5.0, 1.9 * len(dimensions)), 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    heights = []
    for x, dimension in enumerate(dimensions):
        low, high = min(dimension["values"]), max(dimension["values"])
        ends = {"tickvals": [low, high], "ticktext": [f"{low:.4g}", f"{high:.4g}"]} | dimension
        values, ticks = (
            (np.array(dimension) - low) / ((high - low) or 1) for dimension in (dimension["values"], ends["tickvals"])
        )
        heights.append(values)
        axes.axvline(x, color="black", linewidth=0.8)
        for y, name in zip(ticks, ends["ticktext"], strict=True):
            axes.text(x, y, plain(f" {name}"), fontsize=6, va="center")
    for line in zip(*heights, strict=True):
        axes.plot(line, color=colormaps["viridis"](line[-1]), alpha=0.7)
    axes.set_xticks(range(len(dimensions)), [dimension["label"] for dimension in dimensions], fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def _backbones(runs: Sequence[Run]) -> Plot:
    """Return what backbones reach and cost, a bar a technique: accuracy with its 95 % interval, parameters, seconds."""
    best = tables.best_rows(runs)
    has_test = all(row.mean("test/accuracy") is not None for row in best.values())
    tag, title = ("test/accuracy", "test accuracy") if has_test else ("val/accuracy", "validation accuracy")
    traces = []
    for technique, colour in colours(runs).items():
        rows = {backbone: row for (name, backbone), row in best.items() if name == technique}
        means, bounds = [row.mean(tag) for row in rows.values()], [row.bounds(tag) for row in rows.values()]
        error = {"type": "data", "symmetric": False,
                 "array": [high - mean for mean, (_, high) in zip(means, bounds, strict=True)],
                 "arrayminus": [mean - low for mean, (low, _) in zip(means, bounds, strict=True)]}  # fmt: skip
        sizes = [row.runs[0].sizes for row in rows.values()]
        for panel, values, more in (
            ("", means, {"error_y": error, "showlegend": True}),
            ("2", [size.get("parameters") for size in sizes], {"opacity": PALE, "name": f"{technique}, all"}),
            ("2", [size.get("trainable") for size in sizes], {"name": f"{technique}, trainable"}),
            ("3", [row.mean("seconds/total") for row in rows.values()], {}),
        ):
            common = {"type": "bar", "name": technique, "legendgroup": technique, "offsetgroup": technique}
            common |= {"marker": {"color": colour}, "showlegend": False, "x": list(rows)}
            traces.append(common | {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "y": values} | more)
    order = {"categoryorder": "array", "categoryarray": list(dict.fromkeys(backbone for _, backbone in best)),
             "automargin": True}  # fmt: skip
    layout = {"grid": {"rows": 1, "columns": 3, "pattern": "independent"}, "legend": {"orientation": "h", "y": -0.3}}
    titles = (f"{title}, 95 % interval", "parameters, pale those not trained", "seconds")
    for panel, title in zip(("", "2", "3"), titles, strict=True):
        layout |= {f"xaxis{panel}": order, f"yaxis{panel}": _titled(title)}
    if known := [size for row in best.values() if (size := row.runs[0].sizes.get("trainable"))]:
        # A head is a hundredth of its backbone. Bars rise from a power of ten so low that all are seen.
        layout["yaxis2"] |= {"type": "log", "range": [math.floor(math.log10(min(known) / 2)), None]}
    return Plot(traces, layout)


def _draw_backbones(plot: Plot) -> Any:
    from matplotlib.figure import Figure

    names = plot.layout["xaxis"]["categoryarray"]
    figure = Figure(figsize=(max(10.0, 2.4 * len(names)), 4.2), layout="constrained", dpi=150)
    panels = dict(zip(("y", "y2", "y3"), figure.subplots(1, 3), strict=True))
    techniques = [trace for trace in plot.traces if trace["showlegend"]]
    width = 0.8 / len(techniques)
    for trace in plot.traces:
        places = []
        for name in trace["x"]:
            # Side by side around their backbone's name, with no gap for a technique that it lacks.
            beside = [one["name"] for one in techniques if name in one["x"]]
            places.append(names.index(name) + (beside.index(trace["offsetgroup"]) - (len(beside) - 1) / 2) * width)
        error = trace.get("error_y")
        style = {"color": trace["marker"]["color"], "alpha": trace.get("opacity"), "capsize": 3}
        if trace["showlegend"]:
            style["label"] = plain(trace["name"])
        panels[trace["yaxis"]].bar(places, np.array(trace["y"], float), 0.92 * width,
                                   yerr=error and [error["arrayminus"], error["array"]], **style)  # fmt: skip
    for axis, axes in panels.items():
        layout = plot.layout[axis.replace("y", "yaxis")]
        axes.set(ylabel=layout["title"]["text"], yscale=layout.get("type", "linear"))
        if "range" in layout:
            axes.set_ylim(bottom=10 ** layout["range"][0])
        axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=30, ha="right", fontsize=8)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(
        *panels["y"].get_legend_handles_labels(), loc="outside lower center", ncols=len(techniques), frameon=False
    )
    return figure


def _techniques(runs: Sequence[Run]) -> Plot:
    """Return validation accuracy by epoch, a panel a backbone: the mean of each technique, its runs thinly behind it.

    A dotted line stands where a phase begins, with its name.
    """
    panels, colour_of = _histories(runs), colours(runs)
    columns = max(1, min(len(panels), 3))
    rows = max(1, math.ceil(len(panels) / columns))
    layout = {"grid": {"rows": rows, "columns": columns, "pattern": "independent"}, "height": 360 * rows + 100,
              "legend": {"orientation": "h", "y": -0.2}, "margin": {"t": 40}}  # fmt: skip
    traces, titles, lines = [], [], []
    named: set[str] = set()  # one entry a technique in the legend
    for place, (backbone, found) in enumerate(panels.items(), 1):
        x, y = (f"{axis}{place if place > 1 else ''}" for axis in "xy")
        layout[x.replace("x", "xaxis")] = _titled("epoch")
        layout[y.replace("y", "yaxis")] = _titled("validation accuracy") | {"matches": "y"}
        titles.append({"text": backbone, "xref": f"{x} domain", "yref": f"{y} domain", "x": 0.5, "y": 1,
                       "yanchor": "bottom", "showarrow": False})  # fmt: skip
        for technique, histories in found.items():
            colour = colour_of[technique]
            one = {"type": "scatter", "name": technique, "legendgroup": technique, "xaxis": x, "yaxis": y,
                   "legendrank": list(colour_of).index(technique)}  # fmt: skip
            for width, opacity, some in [*((1, PALE, [history]) for history in histories), (3, 1, histories)]:
                epochs, values = mean_curve(some)
                traces.append(one | {"x": epochs, "y": values, "opacity": opacity, "mode": "lines",
                                     "line": {"color": colour, "width": width},
                                     "showlegend": some is histories and technique not in named})  # fmt: skip
            named.add(technique)
            lines += [
                {"type": "line", "xref": x, "yref": f"{y} domain", "x0": at, "x1": at, "y0": 0, "y1": 1,
                 "line": {"color": colour, "dash": "dot", "width": 1.5},
                 "label": {"text": name, "textposition": "start", "xanchor": "left"}}
                for at, name in phase_marks(histories)
            ]  # fmt: skip
    return Plot(traces, layout | {"annotations": titles, "shapes": lines})


def _titled(text: str) -> dict[str, Any]:
    """Return a plotly axis with this title."""
    return {"title": {"text": text}}


def colours(runs: Sequence[Run]) -> dict[str, str]:
    """Return the colour of each technique of these runs, the same in all pictures."""
    return dict(zip(tables.techniques(runs), itertools.cycle(COLOURS), strict=False))


def _histories(runs: Sequence[Run]) -> dict[str, dict[str, list[History]]]:
    """Return the completed runs' histories by backbone and by technique; a run without one is left out."""
    found: dict[str, dict[str, list[History]]] = {}
    for run in tables.completed(runs):
        with contextlib.suppress(ReportError):
            history = run.history()
            found.setdefault(run.settings["backbone"], {}).setdefault(tables.technique(run), []).append(history)
    return found


def mean_curve(histories: Sequence[History]) -> tuple[list[int], list[float]]:
    """Return the epochs that all runs have, and the mean validation accuracy in each, nan without one.

    Only those, since a mean would jump where a run ends early.
    """
    rows = list(zip(*histories, strict=False))
    values = [[math.nan if one["val_accuracy"] is None else one["val_accuracy"] for one in row] for row in rows]
    return [row[0]["epoch"] for row in rows], [sum(one) / len(one) for one in values]


def phase_marks(histories: Sequence[History]) -> list[tuple[float, str]]:
    """Return where, between two epochs, phases of these runs begin, with their names.

    Runs that stop early change at several places; only the first bears the name, the others "".
    """
    named: set[str] = set()
    marks = []
    for epoch, name in sorted({change for history in histories for change in phase_changes(history)}):
        marks.append((epoch - 0.5, "" if name in named else name))
        named.add(name)
    return marks


def levels(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Return places on an axis, and its ticks' names; numbers are their own places, and None their ticks."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], None
    names = list(dict.fromkeys(text_of(value) for value in values))
    return [float(names.index(text_of(value))) for value in values], names
