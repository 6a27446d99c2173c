"""What a sweep shows while it runs: a table where the terminal can redraw one, a line a change where it cannot."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from cifar_research.config import phases
from cifar_research.runs import report
from cifar_research.runs.ledger import COMPLETE, STATES, Cell
from cifar_research.runtime.errors import ReportError
from cifar_research.sweeps.launchers import Launcher
from cifar_research.sweeps.launchers.worker import LOG

_STYLES = {"running": "cyan", "completed": "green", "diverged": "yellow", "failed": "bold red", "stopped": "yellow"}
_REDRAW_SECONDS = 1.0


class Live:
    """The display of a sweep; a context manager. It reads the runs' own files, so the launcher does not matter.

    cells: the list that a search adds to; launcher: asked which of them wait for their turn; total: how many there
    will be.
    """

    def __init__(
        self, folder: Path, cells: Sequence[Cell], launcher: Launcher, total: int, console: Console | None = None
    ) -> None:
        self._console = console or Console(highlight=False)
        self._folder, self._cells, self._launcher, self._total = folder, cells, launcher, total
        self._began: dict[str, float] = {}
        self._took: list[float] = []  # seconds of the cells that ended in this launch
        self._drawn = 0.0
        self._live = RichLive(console=self._console, auto_refresh=False) if self._console.is_interactive else None

    def __enter__(self) -> Live:
        if self._live:
            self._live.start()
        else:
            self.message(f"{self._folder}: {self._total} cell{'s' * (self._total > 1)}, {self._launcher.slots} at once")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def refresh(self) -> None:
        """Look again at the runs' files, at most once a second."""
        now = time.monotonic()
        for cell in self._cells:
            if self._state(cell) == "running":
                self._began.setdefault(cell.folder, now)
        if self._live and now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._live.update(self._table(), refresh=True)

    def ended(self, cell: Cell) -> None:
        """Note that a cell has ended, as its state says."""
        seconds = time.monotonic() - self._began.pop(cell.folder, time.monotonic())
        if cell.is_complete:
            self._took.append(seconds)
        done = sum(one.is_complete for one in self._cells)
        _, best = self._progress(cell)
        outcome = cell.state if cell.reason is None else f"{cell.state}, {cell.reason}"
        accuracy = "" if best is None else f", validation accuracy {best:.4f} in its best epoch"
        self._line(f"[{done}/{self._total}] {cell.folder}: {outcome}{accuracy}, {seconds:.0f} s{self._left_text()}")

    def retry(self, cell: Cell) -> None:
        """Say that a cell will be tried again."""
        self._line(f"{cell.folder}: will be tried again")

    def message(self, text: str) -> None:
        """Write a line of its own."""
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()

    def summary(self, failed: Sequence[Cell], next_commands: Sequence[str]) -> None:
        """End with how many cells went how, what failed and why, and what to type next."""
        counts = Counter(cell.state for cell in self._cells)
        order = [*COMPLETE, "failed", "stopped", "waiting"]
        self.message(", ".join(f"{counts[state]} {state}" for state in order if counts[state]))
        for cell in failed:
            self.message(f"failed: {cell.folder}: {cell.reason}; its log is {self._folder / cell.folder / LOG}")
        self.message(f"Everything is in {self._folder}")
        for command in next_commands:
            note = "   (what is complete is not run again)" if "resume=" in command else ""
            self.message(f"Next: {command}{note}")

    def _line(self, text: str) -> None:
        if not self._live:
            self.message(text)

    def _table(self) -> Table:
        counts = Counter(self._state(cell) for cell in self._cells)
        title = ", ".join(f"{counts[state]} {state}" for state in ("queued", *STATES) if counts[state])
        table = Table(title=Text(f"{self._folder}: {title}{self._left_text()}"), title_justify="left")
        table.add_column("cell", overflow="fold")
        for name in ("state", "epoch", "val acc, best epoch", "seconds"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        shown, hidden = self._shown()
        for cell in shown:
            epoch, best = self._progress(cell)
            began = self._began.get(cell.folder)
            table.add_row(
                Text(cell.folder),
                Text(self._state(cell), style=_STYLES.get(self._state(cell), "dim")),
                epoch,
                "–" if best is None else f"{best:.4f}",
                "–" if began is None else f"{time.monotonic() - began:.0f}",
            )
        if hidden:
            table.caption = f"and {hidden} more"
        return table

    def _shown(self) -> tuple[list[Cell], int]:
        """Return the cells that fit the terminal, in the grid's order, and how many do not: what runs comes first."""
        height = max(3, shutil.get_terminal_size().lines - 8)
        urgency = {"running": 0, "failed": 1, "diverged": 2, "stopped": 3, "queued": 5, "waiting": 6}
        ranked = sorted(range(len(self._cells)), key=lambda i: urgency.get(self._state(self._cells[i]), 4))
        kept = sorted(ranked[:height])
        return [self._cells[i] for i in kept], len(self._cells) - len(kept)

    def _state(self, cell: Cell) -> str:
        is_queued = cell.state == "running" and self._launcher.is_queued(cell.folder)
        return "queued" if is_queued else cell.state

    def _progress(self, cell: Cell) -> tuple[str, float | None]:
        """Return `3/10` and the validation accuracy of the best epoch so far, from the run's history.csv."""
        training = cell.config["training"]
        try:
            rows = report.read_history(self._folder / cell.folder / "history.csv")
        except ReportError:
            rows = []
        known = [row for row in rows if row["val_accuracy"] is not None]
        # As the run chooses it, and the leaderboard ranks by.
        is_loss = training["monitor"] == "loss"
        best = max(known, key=lambda row: -row["val_loss"] if is_loss else row["val_accuracy"], default=None)
        return f"{len(rows)}/{phases.total_epochs(training)}", best and best["val_accuracy"]

    def _left_text(self) -> str:
        """Return the time left, once a cell says how long one takes."""
        left = self._total - sum(cell.is_complete or cell.state == "failed" for cell in self._cells)
        if left <= 0 or not self._took:
            return ""
        minutes = left * statistics.mean(self._took) / self._launcher.slots / 60
        return f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"
