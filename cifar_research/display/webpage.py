"""What the HTML pages of the house share: a style, and tables that a click on a header sorts."""

from __future__ import annotations

import html
from collections.abc import Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
div.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { cursor: pointer; background: #f4f4f4 } th:hover { background: #e4e4e4 } p { color: #555; max-width: 60rem }
"""
# A click on a header sorts by it, another one the other way round; numbers as numbers, what is none last.
SORT = """
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


def table(table: Sequence[Sequence[str]]) -> str:
    """Return a table, the header first, as HTML."""
    head, *rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                   for tag, row in zip(["th", *["td"] * (len(table) - 1)], table, strict=True)]  # fmt: skip
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
