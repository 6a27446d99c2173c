"""What a run shows on the terminal: rich where it is one, plain lines where it is not."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from cifar_research.metrics import wilson_interval

_PLAIN_SECONDS = 30  # between two lines of progress in a log
_WIDTHS = {
    "epoch": 5, "loss": 8, "accuracy": 8, "val loss": 8, "val acc": 8, "rate": 9, "seconds": 8, "images/s": 9,
}  # fmt: skip


class Display:
    """One run's lines on the terminal; a context manager, in which the progress bar lives.

    quiet: write nothing at all, for runs within a program.
    """

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        if console is None:
            # A dash, or a folder's name, that the terminal cannot encode must not end a run.
            with contextlib.suppress(AttributeError):
                sys.stdout.reconfigure(errors="replace")
        self.console = console or Console(highlight=False)
        self._is_quiet = quiet
        # A dumb terminal cannot redraw a line, so it is given those of a log.
        self._is_live = self.console.is_interactive and not quiet
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._last_line = time.monotonic()
        self._epochs = 0
        self._has_header = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop()

    def announce(self, lines: Mapping[str, str]) -> None:
        """Say what will be trained on what."""
        if not self._is_live:
            width = max(map(len, lines))
            for name, value in lines.items():
                self._print(f"{name:<{width}}  {value}")
            return
        table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        for name, value in lines.items():
            table.add_row(Text(name, style="bold"), Text(value))
        panel = Panel(table, title="cifar_research", title_align="left", border_style="cyan", expand=False)
        self.console.print(panel)

    def start(self, total_steps: int, initial_step: int, epochs: int) -> None:
        """Begin the progress bar."""
        self._epochs = epochs
        if self._is_live and total_steps > initial_step:
            whole = Column(no_wrap=True)  # where it is narrow, the bar gets shorter and the times stay whole
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(whole.copy()),
                TextColumn("left"),
                TimeRemainingColumn(table_column=whole.copy()),
                console=self.console,
                transient=True,
                speed_estimate_period=300,  # slow models report a step less often than every 30 s
            )
            self._progress.start()
            fields = {"epoch": 1, "epochs": epochs, "figures": "tracing the step …"}
            self._bar = self._progress.add_task("", total=total_steps, completed=initial_step, **fields)

    def progress(self, step: int, epoch: int, loss: float, accuracy: float, images_per_second: float | None) -> None:
        """Move the bar; in a log, write a line now and then."""
        speed = "" if images_per_second is None else f" {images_per_second:,.0f} images/s"
        figures = f"loss {loss:.4f} accuracy {accuracy:.4f}{speed}"
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, epoch=epoch, figures=figures)
        elif not self._is_live and time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            self._print(f"epoch {epoch}/{self._epochs}  step {step}  {figures}")

    def epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Write an epoch's row of history.csv; a star marks the best so far by validation."""
        if not self._has_header:
            self._print(Text("  ".join(f"{name:>{width}}" for name, width in _WIDTHS.items()), style="bold"))
            self._has_header = True
        cells = [
            str(row["epoch"]),
            _number(row["loss"]),
            _number(row["accuracy"]),
            _number(row["val_loss"]),
            _number(row["val_accuracy"]),
            f"{row['learning_rate']:.3g}",
            f"{row['seconds']:.1f}",
            _number(row["images_per_second"], ",.0f"),
        ]
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS.values(), strict=True))
        self._print(Text(f"{line}{' *' if best else ''}", style="green" if best else ""))

    def message(self, text: str) -> None:
        """Write a line of its own."""
        self._print(Text(text))

    def results(self, report: Mapping[str, Any], run_dir: Path, next_commands: Sequence[str]) -> None:
        """End with the table of results, where the run lies, and what to type next."""
        self._stop()
        rows = [["", "images", "loss", "accuracy", "95 % interval"]]
        for split, title in (("train", "train"), ("val", "validation"), ("test", "test")):
            scores, size = report[split], report["data"]["sizes"][split]
            row = [title, f"{size:,}", *(_number(scores and scores[name]) for name in ("loss", "accuracy"))]
            # The training accuracy is a mean over changing weights, so an interval would mean nothing.
            interval = "–"
            if scores and split != "train":
                interval = "{:.4f} – {:.4f}".format(*wilson_interval(scores["accuracy"], size))
            rows.append([*row, interval])
        self._print("")
        self._table(f"{report['config']['name']}: {report['status']}", rows)
        if report["data"]["note"]:
            self._print(Text(f"Note: {report['data']['note']}", style="yellow"))
        seconds, speed = report["seconds"], report["images_per_second"]
        pace = "" if speed is None else f", {speed:,.0f} images/s"
        best = report["best_epoch"]
        best = "" if best is None else f"Best epoch {best} of {report['epochs']}; "
        self._print(f"{best}{seconds['total']:.0f} s in all, {seconds['train']:.0f} s of training{pace}.")
        self._print(f"Everything is in {run_dir}")
        for command in next_commands:
            self._print(f"Next: {command}")

    def _table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """Write a table: names first, the header on top, the last row the one that counts."""
        if self._is_live:
            table = Table(title=Text(title), title_justify="left")
            for name in rows[0]:
                table.add_column(name, justify="right" if name else "left", no_wrap=True)
            for row in rows[1:]:
                table.add_row(*row, style="bold" if row is rows[-1] else None)
            self.console.print(table)
            return
        self._print(title)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *cells in rows:
            numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            self._print(f"{name:<{widths[0]}}  {numbers}")

    def _print(self, what: str | Text) -> None:
        if self._is_quiet:
            return
        self._last_line = time.monotonic()
        if self._is_live:
            # The terminal wraps, not rich, so that a long path can be copied.
            self.console.print(what, markup=False, highlight=False, soft_wrap=True)
        else:  # as it is: no wrapping, no control characters, and at once
            self.console.file.write(f"{what.plain if isinstance(what, Text) else what}\n")
            self.console.file.flush()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextlib.contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show how many of `total` pieces of work are done; call what is yielded with the name of each before it begins."""
    console = Console(highlight=False)
    begun, last_line = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        bar = None
        if console.is_interactive:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            progress = stack.enter_context(Progress(*columns, TimeElapsedColumn(), console=console, transient=True))
            bar = progress.add_task(title, total=total)

        def begin(name: str) -> None:
            nonlocal begun, last_line
            begun += 1
            if bar is not None:
                progress.update(bar, completed=begun - 1, description=f"{title}: {name}")
            elif time.monotonic() - last_line >= _PLAIN_SECONDS:
                last_line = time.monotonic()
                tell(f"{title}: {name}, {begun} of {total}")

        yield begin


def tell(text: str) -> None:
    """Write a line to standard output, wherever it ends up."""
    Console(highlight=False, soft_wrap=True).print(Text(text))


def error(text: str) -> None:
    """Write a user's mistake to standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in text.splitlines():
        console.print(Text("error: ", style="bold red") + Text(line))


def note(text: str) -> None:
    """Write to standard error what one should know beside the results."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text("note: ", style="bold yellow") + Text(text))


def _number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)
