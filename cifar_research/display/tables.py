"""Tables of text, the header first: on a terminal, in Markdown, HTML and CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = list[list[str]]


def of(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """Return a table of records; columns: by heading, `key:format` of a value, where None is written as –."""
    parts = [column.partition(":")[::2] for column in columns.values()]
    return [list(columns), *([number(row[key], form) for key, form in parts] for row in rows)]


def number(value: Any, form: str = ".4f") -> str:
    """Return a value as text, – for None."""
    return "–" if value is None else format(value, form)


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
    """Return a table in HTML, which document.page makes sortable."""
    head, *rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                   for tag, row in zip(["th", *["td"] * (len(table) - 1)], table, strict=True)]  # fmt: skip
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def as_csv(table: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()
