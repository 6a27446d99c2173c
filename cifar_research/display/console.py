"""Terminal output of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from rich.table import Column
from rich.text import Text

from cifar_research.display import tables
from cifar_research.display.tables import text_of
from cifar_research.runs.metrics import display_name, wilson_interval
from cifar_research.runtime import programs
from cifar_research.runtime.errors import UserError, WriteError

log = logging.getLogger(__name__)
_PLAIN_SECONDS = 30  # between two progress lines in a log
_EPOCH_COLUMNS = {
    "epoch": "epoch", "loss": "loss:.4f", "accuracy": "accuracy:.4f", "val loss": "val_loss:.4f",
    "val acc": "val_accuracy:.4f", "rate": "learning_rate:.3g", "seconds": "seconds:.1f",
}  # fmt: skip
_EPOCH_WIDTHS = (5, 8, 8, 8, 8, 9, 8)
Item = TypeVar("Item")


def tolerate_any_encoding() -> None:
    """Make standard output and error replace unencodable characters; replace closed streams."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 — open until the process ends
        with contextlib.suppress(AttributeError):  # a notebook's streams cannot be reconfigured
            getattr(sys, name).reconfigure(errors="replace")


class ArgumentParser(argparse.ArgumentParser):
    """A command's argument parser, whose errors look like all others."""

    def error(self, message: str) -> NoReturn:
        """Write the problem and exit with code 2."""
        advice = "" if ";" in message else f"; see {programs.program(self.prog.removeprefix('cifar-'))} --help"
        error(f"{message.removeprefix('argument ')}{advice}")
        sys.exit(2)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a command's main function: errors that the user can fix, file errors and Ctrl-C exit with one line."""

    @functools.wraps(main)
    def wrapped() -> None:
        tolerate_any_encoding()
        try:
            if not {"", os.getcwd()} & set(sys.path):  # an installed command finds a user's module as `python -m` does
                sys.path.insert(0, os.getcwd())
            main()
        except BrokenPipeError:  # `| head`
            pass
        except (UserError, WriteError) as problem:
            error(str(problem))
            sys.exit(2)
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
        # Otherwise Python flushes again at exit and prints a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(problem, BrokenPipeError):
            error(f"standard output: {problem.strerror}")
            sys.exit(1)


class Display:
    """A run's lines on the terminal and in its log; a context manager. quiet: write nothing."""

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        if console is None:
            tolerate_any_encoding()
        self.console = console or Console(highlight=False)
        self._is_quiet = quiet
        # A dumb terminal cannot redraw lines: treat it as a log.
        self._is_live = self.console.is_interactive and not quiet
        whole = Column(no_wrap=True)  # in a narrow terminal, shorten the bar and not the times
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}", table_column=whole.copy()),
            TimeElapsedColumn(whole.copy()),
            TextColumn("left"),
            TimeRemainingColumn(table_column=whole.copy()),
            console=self.console,
            transient=True,
            disable=not self._is_live,
            speed_estimate_period=300,  # slow models report steps more than 30 s apart
        )
        self._last_line = time.monotonic()
        self._epochs, self._monitor = 0, "accuracy"
        self._phase, self._unit, self._units = "", "images/s", set[str]()
        self._has_header = self._has_legend = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def announce(self, lines: Mapping[str, str]) -> None:
        """Write the run's settings, one per line."""
        width = max(map(len, lines))
        for name, value in lines.items():
            self._print(Text.assemble((f"{name:<{width}}", "bold cyan"), f"  {value}"))

    def start(self, total_steps: int, initial_step: int, epochs: int, monitor: str = "accuracy") -> None:
        """Start the progress bar; monitor: the validation metric that chooses the best epoch."""
        self._epochs, self._monitor = epochs, monitor
        figures = "tracing the step …"
        self._bar.add_task("", total=total_steps, completed=initial_step, epoch=1, epochs=epochs, figures=figures)
        self._bar.start()

    def phase(self, name: str, title: str, unit: str) -> None:
        """Start a phase: its title, if any, and a header over its epochs; unit: of its speed."""
        self._phase, self._unit = f" ({name})" if title else "", unit
        self._units.add(unit)
        self._has_header = False
        if title:
            self._print(Text(title, style="bold"))

    def progress(self, step: int, epoch: int, loss: float, accuracy: float, images_per_second: float | None) -> None:
        """Update the bar; in a log, write a line every half minute."""
        speed = "" if images_per_second is None else f" {images_per_second:,.0f} {self._unit}"
        figures = f"loss {loss:.4f} accuracy {accuracy:.4f}{speed}"
        if self._is_live:
            self._bar.update(self._bar.task_ids[0], completed=step, epoch=epoch, figures=figures)
        elif time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            self._show(Text(f"epoch {epoch}/{self._epochs}{self._phase}  step {step}  {figures}"))

    def epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Write a row of history.csv; a star marks the best epoch so far by validation."""
        has_validation = row["val_loss"] is not None
        if not self._has_legend:
            self.message(
                f"* best so far by validation {display_name(self._monitor)}; the best epoch is tested at the end"
                if has_validation
                else "There are no validation images: the last epoch is tested at the end"
            )
        more = {self._unit: "images_per_second:,.0f"}
        if self._monitor not in ("accuracy", "loss"):
            more = {f"val {display_name(self._monitor)}": f"val_{self._monitor}:.4f"} | more
        table = tables.of([row], _EPOCH_COLUMNS | more)
        widths = (*_EPOCH_WIDTHS, *(max(9, len(title)) for title in more))
        header, line = ("  ".join(map(str.rjust, cells, widths)) for cells in table)
        if not self._has_header:
            self._print(Text(header, style="bold"))
        self._has_header = self._has_legend = True
        self._print(Text(f"{line} *", style="green") if best and has_validation else Text(line))

    def message(self, text: str) -> None:
        """Write one line."""
        self._print(Text(text))

    def results(self, report: Mapping[str, Any], run_dir: Path, next_commands: Sequence[str]) -> None:
        """Write the results, the run's folder and the next commands."""
        self._bar.stop()
        more = [] if self._monitor in ("accuracy", "loss") else [self._monitor]
        table = [["", "epoch", "images", "loss", "accuracy", "95 % interval", *map(display_name, more)]]
        for split, title in (("train", "train"), ("val", "validation"), ("test", "test")):
            scores, size = report[split] or {}, report["data"]["sizes"][split]
            interval = "–"
            # The training accuracy is a mean over changing weights, so it has no interval.
            if scores and split != "train":
                interval = "{:.4f} – {:.4f}".format(*wilson_interval(scores["accuracy"], size))
            epoch = report["best_epoch"] if scores else None
            loss, accuracy, *others = (text_of(scores.get(name), ".4f") for name in ("loss", "accuracy", *more))
            table.append([title, text_of(epoch), f"{size:,}", loss, accuracy, interval, *others])
        *rows, test = tables.as_text(table).splitlines()
        self.message("")
        self._print(Text(f"{report['config']['name']}: {report['status']}", style="bold"))
        for row in rows:
            self.message(row)
        self._print(Text(test, style="bold"))
        if report["data"]["note"]:
            self._print(Text(f"Note: {report['data']['note']}", style="yellow"))
        seconds, best = report["seconds"], report["best_epoch"]
        best = "" if best is None else f"Best epoch {best} of {report['epochs']}; "
        speed = report["images_per_second"]
        unit = self._unit if len(self._units) == 1 else "images/s"
        pace = "" if speed is None else f", {speed:,.0f} {unit}"
        self.message(f"{best}{seconds['total']:.0f} s in all, {seconds['train']:.0f} s of training{pace}.")
        self.message(f"Everything is in {run_dir}")
        for line in next_commands:
            self.message(f"Next: {line}")

    def _print(self, text: Text) -> None:
        """Write a line to the terminal and to the run's train.log."""
        if text and not self._is_quiet:
            log.info("%s", text.plain)
        self._show(text)

    def _show(self, text: Text) -> None:
        if self._is_quiet:
            return
        self._last_line = time.monotonic()
        if self._is_live:
            # Let the terminal wrap, so that long paths can be copied.
            self.console.print(text, soft_wrap=True)
        else:
            self.console.file.write(f"{text.plain}\n")
            self.console.file.flush()


def counted(title: str, items: Collection[Item]) -> Iterable[Item]:
    """Return an iterator over the items, with a progress bar on a terminal."""
    console = Console(highlight=False)
    return track(items, title, console=console, transient=True, disable=not console.is_interactive)


def tell(text: str) -> None:
    """Write a line to standard output."""
    Console(highlight=False, soft_wrap=True).print(Text(text))


def error(text: str) -> None:
    """Write a user's errors, one a line, to standard error."""
    for line in text.splitlines():
        _label("error", "bold red", line)


def note(text: str) -> None:
    """Write a remark to standard error."""
    _label("note", "bold yellow", text)


def _label(label: str, style: str, text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble((f"{label}: ", style), text))
