"""cifar-report: rank runs in one table, with intervals, ties and main effects."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cifar_research.comparison import diff, tables
from cifar_research.comparison import runs as reading
from cifar_research.comparison.diff import Diff
from cifar_research.comparison.ranking import OVERLAP, Comparison, has_several_losses, monitored
from cifar_research.display import console, document
from cifar_research.display.document import Section
from cifar_research.display.tables import as_csv, as_text
from cifar_research.runs.metrics import SHARES, display_name
from cifar_research.runs.report import read_overrides
from cifar_research.runtime import environment, programs
from cifar_research.runtime.errors import ConfigError, ReportError
from cifar_research.runtime.files import atomic_write
from cifar_research.sweeps.live import next_commands, watch

_NOTES = (
    "Ranked by the validation {metric} of the best epoch. A rank with = is a tie with the best: the difference is "
    "within the noise of the seeds (paired or Welch's t-test, 5 %){images}.",
    "± is Student's 95 % interval over n seeds. Brackets are the 95 % interval of one run (Wilson): it says how the accuracy "
    "would vary on other images, not with other seeds. «no spread»: all runs of the row have the same accuracy, so the spread "
    "of others is unknown. If several runs have the same config and seed, only the last one is counted.",
)
_OF_IMAGES = " or of the validation images (binomial, 5 %)"
_SINGLE_SEEDS = (
    "Rows with n = 1 were trained once, with one seed. Another seed gives another {metric}, and may give another order. "
    "{noise} To find out which setting is better, train each with several seeds: {train} resume=<sweep> seed=0,1,2,3,4, or "
    "for a search the command of --best with -m and seed=0,1,2,3,4."
)
_BEYOND_IMAGES = (
    "A rank without = then only means that the difference is larger than the noise of the validation images."
)
_UNTESTED = "Ranks are not tested, since one run has no interval of this metric."
_OTHER_IMAGES = (
    "The runs used different images, see the column images. Compare only rows that have the same images: the order of the "
    "others means nothing."
)
_OTHER_LOSSES = (
    "The runs have different losses, and were ranked by them. Compare only rows that have the same loss: the order of the "
    "others means nothing."
)
_ON_TEST = (
    "Runs with data.validation=test chose their best epoch by the test images, and are ranked by them, so that their test "
    "accuracy is too high."
)
_MOST_ROWS = 100  # of the leaderboard, in report.html and leaderboard.md
_MOST_VALUES = 20  # of a setting's main effects, there


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 2 user error."""
    parser = console.ArgumentParser(prog="cifar-report", description="Compare runs, by the reports in their folders.")
    parser.add_argument("folders", nargs="+", help="folders of runs or sweeps, or globs of them")
    parser.add_argument("--best", action="store_true", help="print only the command that trains the best job")
    parser.add_argument("--watch", action="store_true", help="only show a running sweep until it ends")
    parser.add_argument("--diff", action="store_true", help="compare two runs or two sweeps: config, data, versions, "
                        "hardware, code, results, curves")  # fmt: skip
    parser.add_argument(
        "--write",
        action="store_true",
        help="write leaderboard.csv, leaderboard.md, report.html, figures/ and TensorBoard's columns into the first folder; "
        "with --diff, diff_<second>.md and .html",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.watch and (len(arguments.folders) > 1 or arguments.best or arguments.write or arguments.diff):
        parser.error("--watch: takes one folder and no other option; leave the others out")
    if arguments.diff and (len(arguments.folders) != 2 or arguments.best):
        parser.error(f"--diff: takes two folders, not {len(arguments.folders)}, and no option but --write")
    if arguments.watch:
        watch(Path(arguments.folders[0]))
        return
    if arguments.diff:
        sys.stdout.write(_diff(arguments.folders, arguments.write))
        return
    runs, warnings = reading.find(arguments.folders)
    console.error("\n".join(warnings))
    comparison = Comparison(runs)
    text = f"{best_command(comparison)}\n" if arguments.best else summary(comparison)
    if arguments.write:
        write(Path(arguments.folders[0]), comparison)
    sys.stdout.write(text)
    for folder in [] if arguments.best else arguments.folders:
        with contextlib.suppress(ReportError):  # a damaged sweep is among the warnings
            for command in next_commands(Path(folder)):
                console.tell(f"Next: {command}")


def _diff(folders: Sequence[str], writes: bool) -> str:
    """Return the differences of two folders as text; write its files."""
    comparison, warnings = diff.read(folders)
    console.error("\n".join(warnings))
    sections = comparison.sections()
    written = f"\nEverything is in {write_diff(comparison, sections)}.md and .html\n" if writes else ""
    return _as_text(sections) + written


def summary(comparison: Comparison) -> str:
    """Return the leaderboard with notes, the main effects and the study's table, as text."""
    return _as_text(_sections(comparison))


def _as_text(sections: Sequence[Section]) -> str:
    lines = []
    for section in sections:
        parts = [part for part in section.parts if isinstance(part, (str, list))]
        lines += ["", section.heading, *(part if isinstance(part, str) else as_text(part) for part in parts)]
    return "\n".join([*lines[2:], ""])


def write_diff(comparison: Diff, sections: Sequence[Section]) -> Path:
    """Write the differences with a figure of the curves into A's folder; return the path without .md and .html."""
    environment.provide_home()
    from cifar_research.comparison import figures  # imported here because it takes a second

    first, name = comparison.folders[0], f"diff_{reading.name_of(comparison.folders[1])}"
    path = first / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figures.draw_two_curves(path, comparison.curves)
    *others, curves = sections
    document.write(first, name, "A and B side by side", [*others, Section(curves.heading, [*curves.parts, path])])
    return first / name


def write(folder: Path, comparison: Comparison) -> None:
    """Write leaderboard, report, figures and columns; ReportError or WriteError if it cannot."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: is not a directory; give the folder that --write writes into first")
    if (folder / "figures").is_file():
        raise ReportError(f"{folder / 'figures'}: is not a directory; move it, because --write needs that folder")
    environment.provide_home()
    from cifar_research.comparison import figures, hparams  # imported here because they take a second

    sections = _sections(comparison, _MOST_ROWS, _MOST_VALUES)
    hparams.write(folder, comparison.runs)
    drawn = [Section(heading, [figure]) for heading, figure in figures.draw(comparison, folder / "figures").items()]
    atomic_write(folder / "leaderboard.csv", as_csv(tables.leaderboard_csv(comparison)))
    atomic_write(folder / "leaderboard.md", document.markdown(folder, sections))
    atomic_write(folder / "report.html", document.page(folder.name, [*sections, *drawn]))


def best_command(comparison: Comparison) -> str:
    """Return the command of the run with the best validation accuracy; ReportError if none."""
    rows = comparison.scored_rows
    if not rows:
        raise ReportError("--best: no completed run has a validation accuracy; wait, or give other runs")
    folder = rows[0].runs[0].folder
    try:
        # Of overrides given twice, as a sweep adds some to its jobs', the last counts.
        last = dict.fromkeys(reversed(read_overrides(folder)))
        return shlex.join([programs.program("train"), *reversed(last)])
    except ConfigError as error:
        raise ReportError(f"{error}; the best run is {folder}") from error


def _cautions(comparison: Comparison) -> list[str]:
    """Return why the ranks may mean less than they seem to."""
    runs, images = comparison.runs, {run.fingerprint for run in comparison.runs if run.fingerprint}
    cautions = [_OTHER_IMAGES] if len(images) > 1 else []
    cautions += [_OTHER_LOSSES] if comparison.metric == "loss" and has_several_losses(runs) else []
    return cautions + ([_ON_TEST] if any(run.config["data"]["validation"] == "test" for run in runs) else [])


def _sections(comparison: Comparison, most_rows: int | None = None, most_values: int | None = None) -> list[Section]:
    """Return the report's tables; main effects and the study only where they apply.

    most_rows: of the leaderboard. most_values: of a key's main effects. What is left out is counted below the table.
    """
    num_seeds = [len(row.runs) for row in comparison.scored_rows]
    name, has_noise = display_name(comparison.metric), comparison.metric in SHARES
    notes = [note.format(metric=name, images=_OF_IMAGES if has_noise else "") for note in _NOTES]
    if len(num_seeds) > 1 and 1 in num_seeds:
        noise = _BEYOND_IMAGES if has_noise else _UNTESTED
        notes.append(_SINGLE_SEEDS.format(metric=name, noise=noise, train=programs.program("train")))
    notes += _cautions(comparison)
    notes += [OVERLAP] if any(row.overlap for row in comparison.scored_rows) else []
    leaderboard = tables.leaderboard_table(comparison)
    if most_rows and (hidden := comparison.leaderboard[most_rows:]):
        leaderboard = leaderboard[: most_rows + 1]
        states = ", ".join(f"{num:,} {state}" for state, num in Counter(row.runs[0].state for row in hidden).items())
        total = len(comparison.leaderboard)
        notes.insert(0, f"The first {most_rows} of {total:,} rows. leaderboard.csv also has the others: {states}.")
    sections = [Section("Leaderboard", [leaderboard, *notes])]
    if len(effects := tables.effects_table(comparison, most_values)) > 1:
        cut = [
            f"{comparison.titles[key]}: the best {most_values} of {num:,} values. {programs.program('report')} prints all."
            for key, rows in comparison.effects.items()
            if most_values and (num := len(rows)) > most_values
        ]
        sections.append(Section("Main effects", [effects, *cut]))
    if studied := tables.study_table(comparison):
        sections.append(Section("Beside the study", [studied]))
    for folder in dict.fromkeys(run.folder.parent for run in comparison.runs):
        if (folder / "study.db").exists():
            from cifar_research.sweeps import study  # imported here because it takes half a second

            metric = monitored([run for run in comparison.runs if run.folder.parent == folder])
            sections.append(study.section(folder, f"Search of {folder}", metric))
    return sections


if __name__ == "__main__":
    main()
