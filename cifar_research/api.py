"""The Python API: the commands as functions, which leave the process as it was."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cifar_research import config
from cifar_research.comparison import runs as reading
from cifar_research.config import hydra_job, messages
from cifar_research.config.composition import Composed
from cifar_research.config.overrides import quoted
from cifar_research.config.sweep import SweepSettings, parse_command
from cifar_research.display import console
from cifar_research.runs import report
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import resume
from cifar_research.sweeps import run as sweeps
from cifar_research.training import command


class Report(dict[str, Any]):
    """The content of a run's report.json. folder: the run's, absolute."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        super().__init__(content)
        self.folder = folder

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of history.csv: one for each epoch, with its metrics."""
        return report.read_history(self.folder / "history.csv", self.get("history_sha256"))


def train(overrides: Sequence[str] = (), folder: Path | str | None = None, *, quiet: bool = False) -> Report:
    """Train, test and report one run, as `scripts/train` does; return its report.

    overrides: as on the command line. folder: of the run; None: a new one in outputs/. In the folder of an earlier run,
    that run continues, or its report is returned. quiet: print nothing but warnings.
    An interrupt saves the run and is then raised: KeyboardInterrupt. ConfigError if the config is invalid, DataError if
    data is missing; both leave the folder unchanged.
    """
    with _unchanged(overrides):
        parsed = parse_command(_expanded(overrides, "hydra.run.dir", folder))
        if not isinstance(parsed, Composed):
            raise ConfigError("overrides: several values of a key make a sweep; use cifar_research.sweep")
        result, run_dir = command.trained(parsed, display=console.Display(quiet=quiet))
    if result["status"] == "stopped" and result["signal"]:
        signal.raise_signal(result["signal"])
    return Report(report.read_report(run_dir / "report.json") or result, run_dir)


def sweep(overrides: Sequence[str], folder: Path | str | None = None) -> list[dict[str, Any]]:
    """Run a sweep, as `scripts/train -m` does; return a row for each job, see `runs`.

    overrides: as on the command line, with several values of a key or a `sweep=` option. folder: of the sweep; None: a
    new one in outputs/. In the folder of an earlier sweep, only jobs that are not complete run. Jobs that fail are rows.
    An interrupt saves the running jobs and is then raised: KeyboardInterrupt. ConfigError if a job is invalid.
    """
    with _unchanged(overrides):
        parsed = parse_command(["-m", *_expanded(overrides, "hydra.sweep.dir", folder)])
        assert isinstance(parsed, SweepSettings)  # since there is -m
        code = sweeps.run(parsed)
    if code > 128:
        signal.raise_signal(code - 128)
    return runs(parsed.folder)


def evaluate(
    run: Path | str | Sequence[Path | str],
    overrides: Sequence[str] = (),
    *,
    views: str | None = None,
    corruptions: int | None = 2_000,
    cifar10_1: str | None = None,
) -> dict[str, Any]:
    """Evaluate a run, as `scripts/evaluate` does; return the content of evaluation.json.

    overrides: of the data, as on the command line. views: `flip` or `flip_shift`, compared with none. corruptions: the
    number of test images to corrupt, None for all, 0 for none. cifar10_1: the folder of CIFAR-10.1.
    Of several runs, return the evaluation of their ensemble, which has none of these three.
    """
    from cifar_research.evaluation import run as evaluation

    folders = [Path(folder).expanduser() for folder in ([run] if isinstance(run, (Path, str)) else run)]
    with _unchanged(overrides):
        if len(folders) > 1 and (views, corruptions, cifar10_1) != (None, 2_000, None):
            raise ConfigError("views, corruptions, cifar10_1: are for one run and not for an ensemble; leave them out")
        [(result, _)] = evaluation.evaluate(
            [folders], overrides, views=views, corrupted=corruptions, cifar10_1=cifar10_1
        )
    return result


def runs(*folders: Path | str) -> list[dict[str, Any]]:
    """Return a flat row, for pandas.DataFrame, for each run in and below folders.

    folders: folders or globs; none: outputs/. All rows have the same keys: folder, status, reason, seed, scores such as
    `val/accuracy`, and the settings that decide the results, by their dotted keys. A value that a run does not have is
    None; a list is text.
    """
    listed, warnings = reading.find([os.path.expanduser(folder) for folder in folders or ["outputs"]])
    console.error("\n".join(warnings))
    return reading.rows(listed)


@contextlib.contextmanager
def _unchanged(overrides: Sequence[str]) -> Iterator[None]:
    """Restore logging on exit, and raise Hydra's errors as ConfigError."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: {overrides!r} is one text; give a list of texts: [{overrides!r}]")
    try:
        with hydra_job.logging_kept():
            yield
    except config.HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, list(overrides))) from error


def _expanded(overrides: Sequence[str], key: str, folder: Path | str | None) -> list[str]:
    """Return the overrides with `resume=` and ~ expanded, and a key for the folder."""
    chosen = [] if folder is None else [f"{key}={quoted(os.path.expanduser(folder))}"]
    return resume.expand([*map(str, overrides), *chosen])
