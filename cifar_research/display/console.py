"""What a run shows on the terminal: rich where it is one, plain lines where it is not."""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import os
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

from cifar_research.display.tables import as_text, number
from cifar_research.runs.metrics import wilson_interval

log = logging.getLogger(__name__)
_WIDE = 100  # columns of a terminal that has room for the phase beside the progress bar
_PLAIN_SECONDS = 30  # between two lines of progress in a log
_WIDTHS = {"epoch": 5, "loss": 8, "accuracy": 8, "val loss": 8, "val acc": 8, "rate": 9, "seconds": 8}


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the byte of a file's name that is no text as it is, and ? for a letter that cannot be encoded."""
    letter = error.object[error.start]
    is_byte = "\udc80" <= letter <= "\udcff"
    return letter.encode("ascii", "surrogateescape") if is_byte else "?", error.start + 1


codecs.register_error("cifar_research", _escape)


def tolerate_any_encoding() -> None:
    """Let standard output and error show `?` for what they cannot encode, and nothing where they are closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 — it is open until the end
        with contextlib.suppress(AttributeError):  # of a notebook's
            getattr(sys, name).reconfigure(errors="cifar_research")


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a function a command: on any standard output, and with a sentence if a file or Ctrl-C ends it."""

    @functools.wraps(main)
    def wrapped() -> None:
        tolerate_any_encoding()
        try:
            main()
        except BrokenPipeError:  # `| head`
            pass
        except OSError as problem:
            error(f"{problem.filename}: {problem.strerror}" if problem.filename else str(problem))
            sys.exit(1)
        except KeyboardInterrupt:
            error("interrupted")
            sys.exit(130)
        finally:
            _flush()

    return wrapped


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as problem:
        # Or Python tries again as it ends, and shows a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(problem, BrokenPipeError):
            error(f"standard output: {problem.strerror}")
            sys.exit(1)


class Display:
    """One run's lines on the terminal and in its log; a context manager, in which the progress bar lives.

    quiet: write nothing at all, for runs within a program.
    """

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        if console is None:
            tolerate_any_encoding()
        self.console = console or Console(highlight=False)
        self._is_quiet = quiet
        # A dumb terminal cannot redraw a line, so it is given those of a log.
        self._is_live = self.console.is_interactive and not quiet
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._last_line = time.monotonic()
        self._epochs, self._monitor = 0, "accuracy"
        self._phase, self._unit = "", "images/s"
        self._has_header = self._has_legend = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop()

    def announce(self, lines: Mapping[str, str]) -> None:
        """Say what will be trained on what."""
        width = max(map(len, lines))
        plain = [f"{name:<{width}}  {value}" for name, value in lines.items()]
        table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        for name, value in lines.items():
            table.add_row(Text(name, style="bold"), Text(value))
        panel = Panel(table, title="cifar_research", title_align="left", border_style="cyan", expand=False)
        for line in plain:
            self._log(line)
            if not self._is_live:
                self._show(line)
        if self._is_live:
            self.console.print(panel)

    def start(self, total_steps: int, initial_step: int, epochs: int, monitor: str = "accuracy") -> None:
        """Begin the progress bar; monitor: the validation metric that says which epoch is the best."""
        self._epochs, self._monitor = epochs, monitor
        if self._is_live and total_steps > initial_step:
            whole = Column(no_wrap=True)  # where it is narrow, the bar gets shorter and the times stay whole
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}{task.fields[phase]}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}", table_column=whole.copy()),
                TimeElapsedColumn(whole.copy()),
                TextColumn("left"),
                TimeRemainingColumn(table_column=whole.copy()),
                console=self.console,
                transient=True,
                speed_estimate_period=300,  # slow models report a step less often than every 30 s
            )
            self._progress.start()
            fields = {"epoch": 1, "epochs": epochs, "phase": "", "figures": "tracing the step …"}
            self._bar = self._progress.add_task("", total=total_steps, completed=initial_step, **fields)

    def phase(self, name: str, title: str, unit: str) -> None:
        """Begin a phase: a line with its title if it has one, and a header over its epochs; unit: of its speed."""
        self._phase, self._unit = f" ({name})" if title else "", unit
        self._has_header = False
        if title:
            self._print(Text(title, style="bold"))

    def progress(self, step: int, epoch: int, loss: float, accuracy: float, images_per_second: float | None) -> None:
        """Move the bar; in a log, write a line now and then."""
        speed = "" if images_per_second is None else f" {images_per_second:,.0f} {self._unit}"
        figures = f"loss {loss:.4f} accuracy {accuracy:.4f}{speed}"
        if self._progress is not None:
            phase = self._phase if self.console.width >= _WIDE else ""  # which the line above the epochs has, too
            self._progress.update(self._bar, completed=step, epoch=epoch, phase=phase, figures=figures)
        elif not self._is_live and time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            self._show(f"epoch {epoch}/{self._epochs}{self._phase}  step {step}  {figures}")

    def epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Write an epoch's row of history.csv; a star marks the best so far by validation."""
        has_validation = row["val_loss"] is not None
        if not self._has_legend:
            self._print(
                f"* best so far by validation {self._monitor}; the best epoch is tested at the end"
                if has_validation
                else "There are no validation images: the last epoch is tested at the end"
            )
            self._has_legend = True
        widths = [*_WIDTHS.values(), max(9, len(self._unit))]
        if not self._has_header:
            names = [*_WIDTHS, self._unit]
            header = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
            self._print(Text(header, style="bold"))
            self._has_header = True
        cells = [
            str(row["epoch"]),
            number(row["loss"]),
            number(row["accuracy"]),
            number(row["val_loss"]),
            number(row["val_accuracy"]),
            f"{row['learning_rate']:.3g}",
            f"{row['seconds']:.1f}",
            number(row["images_per_second"], ",.0f"),
        ]
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        is_marked = best and has_validation
        self._print(Text(f"{line}{' *' if is_marked else ''}", style="green" if is_marked else ""))

    def message(self, text: str) -> None:
        """Write a line of its own."""
        self._print(Text(text))

    def results(self, report: Mapping[str, Any], run_dir: Path, next_commands: Sequence[str], pace: str = "") -> None:
        """End with the table of results, where the run lies, and what to type next; pace: how fast it trained."""
        self._stop()
        rows = [["", "epoch", "images", "loss", "accuracy", "95 % interval"]]
        for split, title in (("train", "train"), ("val", "validation"), ("test", "test")):
            scores, size = report[split], report["data"]["sizes"][split]
            epoch = str(report["best_epoch"]) if scores else "–"
            row = [title, epoch, f"{size:,}", *(number(scores and scores[name]) for name in ("loss", "accuracy"))]
            # The training accuracy is a mean over changing weights, so an interval would mean nothing.
            interval = "–"
            if scores and split != "train":
                interval = "{:.4f} – {:.4f}".format(*wilson_interval(scores["accuracy"], size))
            rows.append([*row, interval])
        self._print("")
        lines = [f"{report['config']['name']}: {report['status']}", *as_text(rows).splitlines()]
        for place, line in enumerate(lines):
            self._print(Text(line, style="bold" if place in (0, len(lines) - 1) else ""))
        if report["data"]["note"]:
            self._print(Text(f"Note: {report['data']['note']}", style="yellow"))
        seconds, best = report["seconds"], report["best_epoch"]
        best = "" if best is None else f"Best epoch {best} of {report['epochs']}; "
        pace = pace and f", {pace}"
        self._print(f"{best}{seconds['total']:.0f} s in all, {seconds['train']:.0f} s of training{pace}.")
        self._print(f"Everything is in {run_dir}")
        for command in next_commands:
            self._print(f"Next: {command}")

    def _print(self, what: str | Text) -> None:
        self._log(str(what))
        self._show(what)

    def _log(self, line: str) -> None:
        """Write a line into the run's train.log, which has no progress bar."""
        if line and not self._is_quiet:
            log.info("%s", line)

    def _show(self, what: str | Text) -> None:
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
