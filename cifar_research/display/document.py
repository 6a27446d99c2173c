"""Sections of sentences, tables and figures, as Markdown and as one HTML page that opens without a network."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_research.comparison.tables import Table, as_markdown
from cifar_research.display import webpage
from cifar_research.runs.report import atomic_write

_STYLE = "img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }"


@dataclass(frozen=True)
class Section:
    """A heading, and below it, in order: a sentence (str), a table (its header first) or a figure (the path of a PNG)."""

    heading: str
    parts: Sequence[str | Table | Path]


def write(folder: Path, name: str, title: str, sections: Sequence[Section]) -> None:
    """Write <name>.md, which refers to the figures, and <name>.html, which holds them; WriteError if it cannot."""
    atomic_write(folder / f"{name}.md", _markdown(folder, title, sections))
    atomic_write(folder / f"{name}.html", _page(title, sections))


def _markdown(folder: Path, title: str, sections: Sequence[Section]) -> str:
    blocks = [f"# {title}"]
    for section in sections:
        blocks.append(f"## {section.heading}")
        for part in section.parts:
            if isinstance(part, Path):
                blocks.append(f"![{section.heading}]({Path(os.path.relpath(part, folder)).as_posix()})")
            else:
                blocks.append(part if isinstance(part, str) else as_markdown(part))
    return "\n\n".join(blocks) + "\n"


def _page(title: str, sections: Sequence[Section]) -> str:
    blocks = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        blocks.append(f"<h2>{html.escape(section.heading)}</h2>")
        for part in section.parts:
            if isinstance(part, Path):
                content = base64.b64encode(part.read_bytes()).decode()
                blocks.append(f'<img alt="{html.escape(section.heading)}" src="data:image/png;base64,{content}">')
            elif isinstance(part, str):
                blocks.append(f"<p>{html.escape(part)}</p>")
            else:
                blocks.append(webpage.table(part))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{webpage.STYLE}{_STYLE}</style>'
    body = "\n".join(blocks)
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n{body}\n<script>{webpage.SORT}</script></body></html>\n"
