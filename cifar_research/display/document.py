"""Sections of sentences, tables and figures, as Markdown and as one HTML page that opens without a network."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_research.display.tables import Table, as_html, as_markdown
from cifar_research.runtime.files import atomic_write

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
div.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { cursor: pointer; background: #f4f4f4 } th:hover { background: #e4e4e4 } p { color: #555; max-width: 60rem }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
"""
# A click on a header sorts by it, another one the other way round; numbers as numbers, what is none last.
_SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const table = head.closest("table"), place = head.cellIndex, body = table.tBodies[0];
  const down = head.dataset.down !== "1"; head.dataset.down = down ? "1" : "0";
  const key = row => { const text = row.cells[place].textContent, number = parseFloat(text.replace(/^[^0-9.-]+|,/g, ""));
    return isNaN(number) ? text : number };
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) }).forEach(row => body.append(row));
}));
"""


@dataclass(frozen=True)
class Plot:
    """An interactive figure: its traces and its layout as plotly.js takes them."""

    traces: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading, and below it, in order: sentences, tables, and figures, each a Plot or the path of a PNG."""

    heading: str
    parts: Sequence[str | Table | Path | Plot]


def write(folder: Path, name: str, title: str, sections: Sequence[Section]) -> None:
    """Write <name>.md, which refers to the figures, and <name>.html, which holds them; WriteError if it cannot."""
    atomic_write(folder / f"{name}.md", f"# {title}\n\n{markdown(folder, sections)}")
    atomic_write(folder / f"{name}.html", page(title, sections))


def markdown(folder: Path, sections: Sequence[Section]) -> str:
    """Return sections without Plots, for a file in this folder."""
    blocks = []
    for section in sections:
        blocks.append(f"## {section.heading}")
        for part in section.parts:
            if isinstance(part, Path):
                blocks.append(f"![{section.heading}]({Path(os.path.relpath(part, folder)).as_posix()})")
            else:
                blocks.append(part if isinstance(part, str) else as_markdown(part))
    return "\n\n".join(blocks) + "\n"


def page(title: str, sections: Sequence[Section]) -> str:
    """Return sections as one HTML page, which holds all that it shows."""
    blocks = [f"<h1>{html.escape(title)}</h1>"]
    for place, section in enumerate(sections):
        heading = html.escape(section.heading)
        blocks.append(f"<h2>{heading}</h2>")
        blocks += [_block(part, heading, f"figure{place}") for part in section.parts]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    if any(isinstance(part, Plot) for section in sections for part in section.parts):
        from plotly.offline import get_plotlyjs

        head += f"<script>{get_plotlyjs()}</script>"
    body = "\n".join(blocks)
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n{body}\n<script>{_SORT}</script></body></html>\n"


def _block(part: str | Table | Path | Plot, heading: str, name: str) -> str:
    if isinstance(part, Path):
        return f'<img alt="{heading}" src="data:image/png;base64,{base64.b64encode(part.read_bytes()).decode()}">'
    if isinstance(part, Plot):
        layout = {"template": "none", "margin": {"t": 20}, "height": 460} | part.layout
        # "</" would end the script; the NaN of Python's JSON is JavaScript's.
        drawn = ", ".join(json.dumps(value).replace("</", r"<\/") for value in (part.traces, layout))
        return f'<div id="{name}"></div>\n<script>Plotly.newPlot("{name}", {drawn}, {{responsive: true}})</script>'
    return f"<p>{html.escape(part)}</p>" if isinstance(part, str) else as_html(part)
