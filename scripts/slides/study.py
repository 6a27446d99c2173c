"""Train the study of 2021 slide by slide: scripts/study <folder>. Continues after a kill by the same command.

Each section is a sweep in <folder>/<section>. Their results are written to <folder>/study.csv, and the page to
<folder>/study.md. --publish adds them to docs/results/study.csv and writes docs/study.md from that.
"""

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path

import page
from sections import QUICK, SECTIONS, Section

from cifar_research.comparison import runs as reading

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (
    "section",
    "setting",
    "seed",
    "validation",
    "test",
    "best_epoch",
    "epochs",
    "seconds",
    "parameters",
    "commit",
    "machine",
    "precision",
    "training_curve",
    "validation_curve",
)
# Overrides of published runs: they change no result, but for the precision, which is a column.
PUBLISHED_WITH = ("training.precision=", "training.steps_per_call=", "hydra.launcher.jobs=", "tensorboard.enabled=")

NAMES = [section.name for section in SECTIONS]


def names(text: str) -> list[str]:
    """Return the sections of a list such as first,grid."""
    for name in text.split(","):
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"there is no section {name!r}; use {', '.join(NAMES)}")
    return text.split(",")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/study", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of the sweeps and the page")
    parser.add_argument("overrides", nargs="*", help="of every run, as for scripts/train")
    parser.add_argument("--quick", action="store_true", help="3,000 images, one epoch, two seeds: to see it work")
    parser.add_argument("--sections", type=names, default=[*NAMES], help=f"only these: {','.join(NAMES)}")
    parser.add_argument(
        "--publish", action="store_true", help="add the results to docs/results/study.csv and docs/study.md"
    )
    options = parser.parse_intermixed_args()
    others = [word for word in options.overrides if not word.startswith(PUBLISHED_WITH)]
    if options.publish and (options.quick or others):
        parser.error(
            "--publish: only results of the page's own commands are published; leave out "
            f"{' '.join(['--quick'] * options.quick + others)}"
        )
    failed = []
    if options.folder is not None:
        for section in SECTIONS:
            if section.name in options.sections:
                code = train(section, options.folder, options.overrides, is_quick=options.quick)
                if code > 1:  # a signal, or refused
                    return code
                failed += [section.name] if code else []
        rows = measured(options.folder)
        write(options.folder / "study.csv", rows)
        write_page(options.folder, rows)
    elif not options.publish:
        parser.error("give a folder, or --publish")
    if options.publish:
        publish(options.folder)
    for name in failed:
        print(f"error: {name}: some of its jobs failed; see above", file=sys.stderr)
    return int(bool(failed))


def train(section: Section, folder: Path, overrides: list[str], *, is_quick: bool) -> int:
    """Train a section's sweep, or continue it; return the exit code."""
    words = command(section, overrides, is_quick=is_quick)
    print(f"\n{section.name}: {shlex.join(['scripts/train', *words])}", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "cifar_research.train", *words, f"hydra.sweep.dir={folder / section.name}"], check=False
    ).returncode


def command(section: Section, overrides: list[str], *, is_quick: bool = False) -> list[str]:
    """Return the overrides of a section's sweep; a later value of a key replaces the one before."""
    quick = (*QUICK, *section.quick) if is_quick else ()
    words = {word.partition("=")[0]: word for word in (*section.overrides, *quick, *overrides)}
    if "sweep.trials" in words:  # a search has one seed
        words.pop("seed", None)
    return list(words.values())


def measured(folder: Path) -> list[dict[str, str]]:
    """Return a row for each completed run of the sections in this folder."""
    rows = []
    for section in SECTIONS:
        if not any((folder / section.name).glob("*/report.json")):  # also if no run has ended
            continue
        for run in reading.find([str(folder / section.name)])[0]:
            if not run.is_scored or run.report is None:
                continue
            report = run.report
            words = [section.setting, *run.folder.name.split(",")]
            setting = ",".join(word for word in words if word and not word.startswith("seed="))
            values = (
                section.name, setting, report["seed"], _accuracy(report["val"]), _accuracy(report["test"]),
                report["best_epoch"], report["epochs"], round(report["seconds"]["total"]), report["parameters"]["total"],
                ((report["git"] or {}).get("commit") or "")[:7], report["hardware"]["cpu"],
                report["config"]["training"]["precision"], *(_curve(run.history(), key) for key in ("accuracy", "val_accuracy")),
            )  # fmt: skip
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def _accuracy(scores: dict[str, float]) -> str:
    return f"{scores['accuracy']:.4f}"


def _curve(history: list[dict[str, float]], key: str) -> str:
    """Return a column of the history as one cell, a value an epoch."""
    return " ".join(f"{row[key]:.4f}" for row in history)


def publish(folder: Path | None) -> None:
    """Add a folder's results to those in docs, where they replace older ones of the same run, and render the page."""
    path = ROOT / "docs" / "results" / "study.csv"
    rows = {key(row): row for row in read(path)}
    rows |= {key(row): row for row in read(folder / "study.csv")} if folder else {}
    write(path, sorted(rows.values(), key=lambda row: (NAMES.index(row["section"]), row["setting"], int(row["seed"]))))
    write_page(ROOT / "docs", read(path))


def write_page(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write study.md, which is docs/study.md with the tables of these rows, and its picture."""
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    (folder / "study.md").write_text(page.render(text, rows), encoding="utf-8")
    page.draw(rows, folder)
    page.draw_curves(rows, folder)
    print(f"The page is {folder / 'study.md'}")


def key(row: dict[str, str]) -> tuple[str, ...]:
    return row["section"], row["setting"], row["seed"]


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    raise SystemExit(main())
