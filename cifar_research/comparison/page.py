"""report.html: the tables and figures of many runs in one file, which opens without a network."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from cifar_research.comparison import figures as pictures
from cifar_research.comparison import tables
from cifar_research.comparison.figures import COLOURS, PALE, colours, grid_of, levels, mean_curve
from cifar_research.comparison.runs import Run, varied
from cifar_research.comparison.tables import Table, text_of
from cifar_research.display import webpage
from cifar_research.runtime.errors import ReportError


def page(title: str, runs: Sequence[Run], named: Mapping[str, Table], notes: Sequence[str]) -> str:
    """Return the page: the tables by their headings, then the figures that these runs allow."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for heading, table in named.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", webpage.table(table)]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for place, (heading, traces, layout) in enumerate(_figures(runs)):
        common = {"template": "none", "margin": {"t": 20}, "height": 460} | layout
        # "</" would end the script.
        drawn = [json.dumps(_finite(one)).replace("</", r"<\/") for one in (traces, common)]
        parts += [f"<h2>{heading}</h2>", f'<div id="figure{place}"></div>',
                  f'<script>Plotly.newPlot("figure{place}", {drawn[0]}, {drawn[1]}, {{responsive: true}})</script>']  # fmt: skip
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{webpage.STYLE}</style>'
    script = f"<script>{get_plotlyjs()}</script>"
    body = "\n".join(parts)
    return f"<!DOCTYPE html>\n<html><head>{head}{script}</head><body>\n{body}\n<script>{webpage.SORT}</script></body></html>\n"


def _figures(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Return (heading, traces, layout) of each, as plotly.js takes them."""
    titles, found = varied(runs), tables.effects(runs)
    done = tables.completed(runs)
    axis = {"title": {"text": "validation accuracy"}}
    figures = [
        (
            "Curves of the best five",
            _curves(runs, titles),
            {"yaxis": axis, "xaxis": {"title": {"text": "epoch"}}, "legend": {"orientation": "h", "y": -0.2}},
        )
    ]
    if len(found) > 0:
        traces = [
            {"type": "scatter", "mode": "markers", "name": title, "x": [f"{title} {row[0]}" for row in rows],
             "y": [row[1] for row in rows], "text": [f"n = {row[3]}" for row in rows], "marker": {"size": 9},
             "error_y": {"type": "data", "array": [row[2] for row in rows]}}
            for title, rows in found.items()
        ]  # fmt: skip
        layout = {"yaxis": {"title": {"text": "mean validation accuracy"}}, "margin": {"t": 20, "b": 160}}
        figures.append(("Main effects, with 95 % intervals", traces, layout))
    if two := tables.strongest_two(runs):
        rows, columns, grid = grid_of(runs, [key for key, _ in two])
        trace = {"type": "heatmap", "z": grid.tolist(), "x": columns, "y": rows, "colorscale": "Viridis"}
        layout = {axis: {"title": {"text": title}, "type": "category", "automargin": True}
                  for axis, (_, title) in zip(("yaxis", "xaxis"), two, strict=True)}  # fmt: skip
        figures.append(("Mean validation accuracy by two settings", [trace], layout))
    if len(titles) > 1 and done:
        values = [run.val_accuracy for run in done]
        dimensions = []
        for key, title in titles.items():
            places, ticks = levels([run.settings.get(key) for run in done])
            named = {} if ticks is None else {"tickvals": list(range(len(ticks))), "ticktext": ticks}
            dimensions.append({"label": title, "values": places} | named)
        dimensions.append({"label": "val accuracy", "values": values})
        line = {"color": values, "colorscale": "Viridis", "showscale": True}
        trace = {"type": "parcoords", "dimensions": dimensions, "line": line}
        figures.append(("Parallel coordinates", [trace], {"margin": {"t": 60, "l": 120}}))
    if tables.differs(runs, "backbone"):
        figures.append(("Backbones, the best setting of each", *_backbones(runs)))
    if tables.differs(runs, "training"):
        figures.append(("Techniques, the mean of each and its runs", *_techniques(runs)))
    return figures


def _backbones(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    accuracy, bars = tables.bars(runs)
    traces = []
    for technique, colour in colours(runs).items():
        own = [bar for bar in bars if bar.technique == technique]
        error = {"type": "data", "symmetric": False, "array": [bar.high - bar.accuracy for bar in own],
                 "arrayminus": [bar.accuracy - bar.low for bar in own]}  # fmt: skip
        for panel, values, more in (
            ("", [bar.accuracy for bar in own], {"error_y": error, "showlegend": True}),
            ("2", [bar.total for bar in own], {"opacity": PALE, "name": f"{technique}, all"}),
            ("2", [bar.trainable for bar in own], {"name": f"{technique}, trainable"}),
            ("3", [bar.seconds for bar in own], {}),
        ):
            common = {"type": "bar", "name": technique, "legendgroup": technique, "offsetgroup": technique}
            common |= {"marker": {"color": colour}, "showlegend": False, "x": [bar.backbone for bar in own]}
            traces.append(common | {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "y": values} | more)
    order = {"categoryorder": "array", "categoryarray": list(dict.fromkeys(bar.backbone for bar in bars)),
             "automargin": True}  # fmt: skip
    layout = {"grid": {"rows": 1, "columns": 3, "pattern": "independent"}, "legend": {"orientation": "h", "y": -0.3}}
    titles = (f"{accuracy}, 95 % interval", "parameters, pale those not trained", "seconds")
    for panel, title in zip(("", "2", "3"), titles, strict=True):
        layout |= {f"xaxis{panel}": order, f"yaxis{panel}": {"title": {"text": title}}}
    layout["yaxis2"] |= {"type": "log", "range": [pictures.foot(bars), None]}
    return traces, layout


def _techniques(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    panels, colour_of = pictures.histories(runs), colours(runs)
    rows, columns = pictures.shape(len(panels))
    layout = {"grid": {"rows": rows, "columns": columns, "pattern": "independent"}, "height": 360 * rows + 100,
              "legend": {"orientation": "h", "y": -0.2}, "margin": {"t": 40}}  # fmt: skip
    traces, titles, lines = [], [], []
    told: set[str] = set()  # one entry a technique in the legend
    for place, (backbone, found) in enumerate(panels.items(), 1):
        x, y = (f"{axis}{place if place > 1 else ''}" for axis in "xy")
        layout[x.replace("x", "xaxis")] = {"title": {"text": "epoch"}}
        layout[y.replace("y", "yaxis")] = {"title": {"text": "validation accuracy"}, "matches": "y"}
        titles.append({"text": backbone, "xref": f"{x} domain", "yref": f"{y} domain", "x": 0.5, "y": 1,
                       "yanchor": "bottom", "showarrow": False})  # fmt: skip
        for technique, of in found.items():
            colour = colour_of[technique]
            one = {"type": "scatter", "name": technique, "legendgroup": technique, "xaxis": x, "yaxis": y,
                   "legendrank": list(colour_of).index(technique)}  # fmt: skip
            for width, opacity, some in [*((1, PALE, [history]) for history in of), (3, 1, of)]:
                epochs, values = mean_curve(some)
                traces.append(one | {"x": epochs, "y": values, "opacity": opacity, "mode": "lines",
                                     "line": {"color": colour, "width": width},
                                     "showlegend": some is of and technique not in told})  # fmt: skip
            told.add(technique)
            lines += [
                {"type": "line", "xref": x, "yref": f"{y} domain", "x0": at, "x1": at, "y0": 0, "y1": 1,
                 "line": {"color": colour, "dash": "dot", "width": 1.5},
                 "label": {"text": name, "textposition": "start", "xanchor": "left"}}
                for at, name in pictures.phase_marks(of)
            ]  # fmt: skip
    return traces, layout | {"annotations": titles, "shapes": lines}


def _curves(runs: Sequence[Run], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    traces = []
    for colour, row in zip(COLOURS, tables.leaderboard(runs), strict=False):
        name = ", ".join(f"{title} {text_of(row.runs[0].settings.get(key))}" for key, title in titles.items())
        for run in row.runs:
            with contextlib.suppress(ReportError):
                history = run.history()
                traces.append({"type": "scatter", "name": f"{name}, seed {run.seed}", "line": {"color": colour},
                               "x": [one["epoch"] for one in history],
                               "y": [one["val_accuracy"] for one in history]})  # fmt: skip
    return traces


def _finite(value: Any) -> Any:
    """Return the value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
