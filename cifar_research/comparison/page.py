"""report.html: the tables and figures of many runs in one file, which opens without a network."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from cifar_research import report
from cifar_research.comparison import tables
from cifar_research.comparison.figures import grid_of, levels
from cifar_research.comparison.runs import Run, varied
from cifar_research.comparison.tables import Table, text_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
div.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { cursor: pointer; background: #f4f4f4 } th:hover { background: #e4e4e4 } p { color: #555; max-width: 60rem }
"""
# A click on a header sorts by it, another one the other way round; numbers as numbers, what is none last.
_SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const table = head.closest("table"), place = head.cellIndex, body = table.tBodies[0];
  const down = head.dataset.down !== "1"; head.dataset.down = down ? "1" : "0";
  const key = row => { const text = row.cells[place].textContent, number = parseFloat(text.replace(/^[^0-9.-]+/, ""));
    return isNaN(number) ? text : number };
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) }).forEach(row => body.append(row));
}));
"""


def page(title: str, runs: Sequence[Run], named: Mapping[str, Table], notes: Sequence[str]) -> str:
    """Return the page: the tables by their headings, then the figures that these runs allow."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for heading, table in named.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", _table(table)]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for place, (heading, traces, layout) in enumerate(_figures(runs)):
        common = {"template": "none", "margin": {"t": 20}, "height": 460} | layout
        # "</" would end the script.
        drawn = [json.dumps(_finite(one)).replace("</", r"<\/") for one in (traces, common)]
        parts += [f"<h2>{heading}</h2>", f'<div id="figure{place}"></div>',
                  f'<script>Plotly.newPlot("figure{place}", {drawn[0]}, {drawn[1]}, {{responsive: true}})</script>']  # fmt: skip
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    script = f"<script>{get_plotlyjs()}</script>"
    body = "\n".join(parts)
    return f"<!DOCTYPE html>\n<html><head>{head}{script}</head><body>\n{body}\n<script>{_SORT}</script></body></html>\n"


def _table(table: Table) -> str:
    head, *rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                   for tag, row in zip(["th", *["td"] * (len(table) - 1)], table, strict=True)]  # fmt: skip
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figures(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Return (heading, traces, layout) of each, as plotly.js takes them."""
    titles, found = varied(runs), tables.effects(runs)
    done = [run for run in runs if run.state == "completed" and run.val_accuracy is not None]
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
             "error_y": {"type": "data", "array": [0 if math.isnan(row[2]) else row[2] for row in rows]}}
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
    return figures


def _curves(runs: Sequence[Run], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    traces = []
    colours = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377")
    for colour, row in zip(colours, tables.leaderboard(runs), strict=False):
        name = ", ".join(f"{title} {text_of(row.runs[0].settings.get(key))}" for key, title in titles.items())
        for run in row.runs:
            with contextlib.suppress(report.ReportError):
                history = report.read_history(run.folder / "history.csv")
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
