"""cifar-report: many runs as one ranked table, with intervals, ties and main effects."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_research.comparison import runs as reading
from cifar_research.comparison import tables
from cifar_research.comparison.runs import Run
from cifar_research.display import console
from cifar_research.display.tables import Table, as_csv, as_text
from cifar_research.runs import overrides
from cifar_research.runtime import environment, programs
from cifar_research.runtime.errors import ConfigError, ReportError, WriteError
from cifar_research.runtime.files import atomic_write

_NOTES = [
    "Ranked by the validation accuracy of the best epoch. A rank with = is a tie with the best: the difference is "
    "within the noise of the seeds (paired or Welch's t-test, 5 %) or of the validation images (binomial, 5 %).",
    "± is Student's 95 % interval over n seeds; brackets are the 95 % interval of one run's images (Wilson), which says "
    "nothing of how another seed would do. Of runs that repeat one another, seed and all, the last counts.",
]
_SINGLE_SEEDS = (
    "Rows with n = 1 were trained once, with one seed. Another seed gives another accuracy, and may give another order: "
    "a rank without = then only means that the difference is more than the choice of validation images explains. To "
    "find out which setting is better, train each with several seeds: add -m seed=0,1,2,3,4 to the command."
)
_NO_SPREAD = (
    "«no spread»: all seeds reached the same accuracy, so nothing is known of how much others would differ; the data has "
    "too few images, or the seeds change nothing."
)


@console.command
def main() -> None:
    """The command line. Exit codes: 0 done, 2 a user's mistake."""
    parser = argparse.ArgumentParser(prog="cifar-report", description="Compare runs, by the reports in their folders.")
    parser.add_argument("folders", nargs="+", help="folders of runs or sweeps, or globs of them")
    parser.add_argument("--best", action="store_true", help="print the command that trains the best cell, and no more")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write leaderboard.csv, leaderboard.md, report.html, figures/ and TensorBoard's columns into the first folder",
    )
    given = parser.parse_args()
    try:
        runs, warnings = reading.find(given.folders)
        for warning in warnings:
            console.error(warning)
        told = f"{best_command(runs)}\n" if given.best else summary(runs)
        if given.write:
            write(Path(given.folders[0]), runs)
        sys.stdout.write(told)
    except (ReportError, WriteError) as error:
        console.error(str(error))
        sys.exit(2)


def summary(runs: Sequence[Run]) -> str:
    """Return what the command shows: the leaderboard, the main effects, and the study's table if it is its grid."""
    board, *others = _tables(runs).items()
    parts = [as_text(board[1]), *_notes(runs)]
    for name, table in others:
        parts += ["", name, as_text(table)]
    return "\n".join([*parts, ""])


def write(folder: Path, runs: Sequence[Run]) -> None:
    """Write leaderboard.csv, leaderboard.md, report.html, figures/ and TensorBoard's columns; WriteError if it cannot."""
    environment.provide_home()
    from cifar_research.comparison import figures, hparams  # which take half a second to import
    from cifar_research.display import document
    from cifar_research.display.document import Section

    if not folder.is_dir():
        raise ReportError(f"{folder}: --write needs a folder to write into; give that one first")
    pictures = folder / "figures"
    if pictures.exists() and not pictures.is_dir():
        raise ReportError(f"{pictures}: is not a directory, and the figures are to be written there; move it away")
    parts = {heading: [table] for heading, table in _tables(runs).items()}
    parts[list(parts)[-1]] += _notes(runs)
    sections, plots = [Section(*item) for item in parts.items()], figures.plots(runs)
    page = document.page(folder.name, [*sections, *(Section(heading, [plot]) for heading, plot in plots.items())])
    hparams.write(folder, runs)
    atomic_write(folder / "leaderboard.csv", as_csv(tables.leaderboard_csv(runs)))
    atomic_write(folder / "leaderboard.md", document.markdown(folder, sections))
    atomic_write(folder / "report.html", page)
    figures.write_pictures(pictures, plots)


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what must be said below the leaderboard."""
    rows = [row for row in tables.leaderboard(runs) if row.rank is not None]
    notes = list(_NOTES)
    if len(rows) > 1 and any(len(row.runs) == 1 for row in rows):
        notes.append(_SINGLE_SEEDS)
    if any(tables.NO_SPREAD in (row.interval("val/accuracy"), row.interval("test/accuracy")) for row in rows):
        notes.append(_NO_SPREAD)
    return notes


def _tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Return the tables by their headings; the effects if something varies, the study's if this is its grid."""
    named = {"Leaderboard": tables.leaderboard_table(runs)}
    effects, study = tables.effects_table(runs), tables.study_table(runs)
    named |= {"Main effects": effects} if len(effects) > 1 else {}
    return named | ({} if study is None else {"Beside the study": study})


def best_command(runs: Sequence[Run]) -> str:
    """Return the command that trains the run with the best validation accuracy; ReportError if none has one."""
    row = tables.leaderboard(runs)[0]
    if row.rank is None:
        raise ReportError("No run here has ended with a validation accuracy, so there is no best one; wait, or "
                                 "give other folders")  # fmt: skip
    folder = row.runs[0].folder
    try:
        words = overrides.run_words(folder)
    except ConfigError as error:
        raise ReportError(f"{error}; the best run is {folder}") from error
    return shlex.join([programs.program("train"), *words])


if __name__ == "__main__":
    main()
