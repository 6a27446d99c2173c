"""Documents of text, tables and figures, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cifar_research.display.tables import Table, as_html, as_markdown
from cifar_research.runtime.files import atomic_write

if TYPE_CHECKING:
    import plotly.graph_objects

Part: TypeAlias = "str | Table | Path | plotly.graph_objects.Figure"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
div.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { cursor: pointer; background: #f4f4f4 } th:hover { background: #e4e4e4 } p { color: #555; max-width: 60rem }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
"""
# A click on a header sorts by its column, another one in reverse: numbers by value, rows without a number last.
_SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const sign = head.dataset.sign = -(head.dataset.sign || 1);
  const key = row => parseFloat(row.cells[column].textContent.replace(/^[^0-9.-]+|,/g, ""));
  const text = row => row.cells[column].textContent;
  [...body.rows].sort((a, b) => isNaN(key(a)) - isNaN(key(b))
    || sign * (key(a) - key(b) || text(a).localeCompare(text(b)))).forEach(row => body.append(row));
}));
"""
# A figure is drawn when it comes near the window, or before printing: drawing all would delay a large page.
_DRAW = """
const draw = figure => {
  if (figure.hasChildNodes()) return;
  const {data, layout} = JSON.parse(figure.nextElementSibling.textContent);
  Plotly.newPlot(figure, data, layout, {responsive: true});
};
const figures = document.querySelectorAll("div.figure"), observer = new IntersectionObserver(
  entries => entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target)), {rootMargin: "300px"});
figures.forEach(figure => observer.observe(figure));
addEventListener("beforeprint", () => figures.forEach(draw));
"""
_HEIGHT = 460  # of a figure, in pixels
_TEMPLATE = {"layout": {"margin": {"t": 20}, "height": _HEIGHT}}  # defaults of plotly figures


@dataclass(frozen=True)
class Section:
    """A heading and its parts, in order: sentences, tables, plotly figures, paths of PNGs."""

    heading: str
    parts: Sequence[Part]


def write(folder: Path, name: str, title: str, sections: Sequence[Section]) -> None:
    """Write <name>.md, which links the PNGs, and <name>.html; WriteError if it cannot."""
    atomic_write(folder / f"{name}.md", f"# {title}\n\n{markdown(folder, sections)}")
    atomic_write(folder / f"{name}.html", page(title, sections))


def markdown(folder: Path, sections: Sequence[Section]) -> str:
    """Return the sections, without plotly figures, for a file in this folder."""
    blocks = []
    for section in sections:
        blocks.append(f"## {section.heading}")
        for part in section.parts:
            if isinstance(part, Path):
                blocks.append(f"![{section.heading}]({Path(os.path.relpath(part, folder)).as_posix()})")
            elif isinstance(part, (str, list)):
                blocks.append(part if isinstance(part, str) else as_markdown(part))
    return "\n\n".join(blocks) + "\n"


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the sections as one HTML page without links to other files."""
    head, title = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>', escape(title)
    blocks = [f"<h1>{title}</h1>"]
    for section in sections:
        blocks.append(f"<h2>{escape(section.heading)}</h2>")
        blocks += [_block(part, section.heading) for part in section.parts]
    scripts = [_SORT]
    if any(not isinstance(part, (str, list, Path)) for section in sections for part in section.parts):
        from plotly.offline import get_plotlyjs

        scripts += [get_plotlyjs(), _DRAW]
    # At the end, so that the tables are shown before five megabytes of plotly are read.
    blocks += [f"<script>{script}</script>" for script in scripts]
    body = "\n".join(blocks)
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n{body}\n</body></html>\n"


def _block(part: Part, heading: str) -> str:
    """Return a part as HTML; a plotly figure as an empty element with its data, see _DRAW."""
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, list):
        return as_html(part)
    if isinstance(part, Path):
        image = base64.b64encode(part.read_bytes()).decode()
        return f'<img alt="{escape(heading)}" src="data:image/png;base64,{image}">'
    part.layout.template = _TEMPLATE
    content, height = part.to_json().replace("<", "\\u003c"), part.layout.height or _HEIGHT
    figure = f'<div class="figure" style="min-height: {height}px"></div>'
    return f'{figure}<script type="application/json">{content}</script>'
