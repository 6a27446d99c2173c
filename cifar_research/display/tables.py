"""Tables of text, the first row the header: for a terminal, Markdown, HTML and CSV."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = list[list[str]]


def of(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """Return a table of records; columns: by heading, a record's key, or `key:format`."""
    formats = [column.partition(":")[::2] for column in columns.values()]
    return [list(columns), *([text_of(row[key], form) for key, form in formats] for row in rows)]


def text_of(value: Any, form: str = "") -> str:
    """Return a value as text: – for None, the shortest form of a float without a format."""
    if value is None:
        return "–"
    return format(value, form or ("g" if isinstance(value, float) else ""))


def as_text(table: Sequence[Sequence[str]], *, numbers_right: bool = True) -> str:
    """Return a table for a terminal or a log."""
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_right = [numbers_right and any(cell[:1].isdigit() for cell in cells) for _, *cells in columns]
    formats = [f"{{:{'>' if right else '<'}{width}}}" for right, width in zip(is_right, widths, strict=True)]
    return "\n".join("  ".join(formats).format(*row).rstrip() for row in table)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in table]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def as_html(table: Sequence[Sequence[str]]) -> str:
    """Return a table in HTML, sortable within document.page."""
    tags = ["th", *["td"] * (len(table) - 1)]
    rows = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in zip(tags, table, strict=True)
    ]
    head, *body = [f"<tr>{row}</tr>" for row in rows]
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def as_csv(table: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV: "" for None and nan, at most ten digits, lists as JSON."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_csv_cell(value) for value in row] for row in table])
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value)
