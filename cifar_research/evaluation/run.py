"""Evaluate finished runs, alone or as ensembles, or compare two groups of them, and write the results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.comparison import runs as reading
from cifar_research.comparison.ranking import Row
from cifar_research.config import permissions, settings, targets
from cifar_research.config.schema import VIEWS
from cifar_research.display import console, document, tables
from cifar_research.evaluation import against, images, measures, sections
from cifar_research.evaluation.measures import Subject
from cifar_research.inference import trained
from cifar_research.runs.ledger import LEDGER
from cifar_research.runs.report import versions
from cifar_research.runtime import files
from cifar_research.runtime.errors import ConfigError, ReportError
from cifar_research.runtime.files import atomic_write

NUM_CORRUPTED = 2_000  # test images, by default
_NUM_SHOWN = 20  # images where groups differ


def evaluate(
    groups: Sequence[Sequence[Path]],
    overrides: Sequence[str] = (),
    *,
    views: str | None = None,
    corrupted: int | None = NUM_CORRUPTED,
    cifar10_1: str | None = None,
) -> list[tuple[dict[str, Any], str]]:
    """Evaluate each group's run, or its runs as an ensemble; return the result, and text for a terminal, of each.

    overrides: of the data; views: `flip` or `flip_shift`, compared with none; corrupted: number of test images to
    corrupt, None for all, 0 for none, of single runs; cifar10_1: the folder of CIFAR-10.1.
    Writes <run>/evaluation.json and <run>/evaluation/; of an ensemble, evaluation/ensemble_<digest>.* of its first run. For
    other images than the training's, all goes to <run>/evaluation/<data>/.
    All runs are checked before anything is written: ConfigError, DataError, RunError or ReportError.
    """
    if views not in (None, *VIEWS[1:]):
        raise ConfigError(f"views: {targets.choice_problem(views, VIEWS[1:])}")
    subjects = [_subject(runs, overrides, cifar10_1) for runs in groups]
    for subject in subjects:
        (subject.folder / "figures").mkdir(parents=True, exist_ok=True)
    return [_evaluate(subject, views, corrupted) for subject in subjects]


def _subject(runs: Sequence[Path], overrides: Sequence[str], cifar10_1: str | None) -> Subject:
    # Data before TensorFlow, so that errors in it show at once.
    reports = trained.read_members(runs, ("fingerprint", *images.SPLIT_KEYS))
    report = reports[runs[0]]
    data, other = images.load(report, overrides)
    new_images = images.cifar10_1(cifar10_1, data.classes, trained.image_size(report)) if cifar10_1 else None
    allowing = permissions.allowed_packages(overrides)
    loss = settings.loss(report["config"], targets.allowed(allowing)) if len(runs) == 1 else None
    file = trained.evaluation_file(reports)
    home, name = (file.with_name("evaluation"), "report") if len(runs) == 1 else (file.parent, file.stem)
    folder = folder_for(home, other, data.fingerprint)
    file = folder / file.name if other else file
    classifier = trained.load(runs, allow_targets=allowing)
    return Subject(reports, classifier, data, other is None, loss, new_images, file, folder, name)


def _evaluate(subject: Subject, views: str | None, corrupted: int | None) -> tuple[dict[str, Any], str]:
    from cifar_research.evaluation import pictures  # matplotlib takes half a second to import

    num_runs, folder, name = len(subject.reports), subject.folder, subject.name
    if subject.data.left_out:
        console.note(subject.data.file_summary())
    result, logits = measures.measure(subject, views, corrupted if num_runs == 1 else 0)
    result["versions"] = versions()
    shown = sections.evaluation(result, pictures.draw(subject, result, logits))
    what = subject.classifier.report["config"]["name"] if num_runs == 1 else f"An ensemble of {num_runs} runs"
    document.write(folder, name, f"{what}: evaluation", shown)
    write_json(subject.file, result)  # last: it marks the evaluation as complete
    text = sections.as_text(shown, ("Accuracy", "Calibration", "Classes", "Run"))
    return result, f"{text}\n\nEverything is in {folder / name}.html and .md, and in {subject.file}"


def compare(first: Sequence[Path], second: Sequence[Path], overrides: Sequence[str] = ()) -> str:
    """Compare two groups of runs on the same test images; return the comparison as text.

    Writes against_<second>.{json,md,html,csv} into evaluation/ of the first run, or beside its results on other images;
    <second> is the name of a run or sweep, for groups of runs with a digest of both. Classes are matched by name, in the
    first run's order. ConfigError, DataError, RunError or ReportError, also for runs of different classes or image sizes.
    """
    runs = trained.read_alike([*first, *second])
    data, other_data = images.load(runs[first[0]], overrides)
    folder = folder_for(first[0] / "evaluation", other_data, data.fingerprint)
    pixels, labels = measures.arrays(data.test)
    logits = {}
    for run in console.counted("Classifying", runs):
        columns = [runs[run]["data"]["classes"].index(name) for name in data.classes]
        classifier = trained.load(run, allow_targets=permissions.allowed_packages(overrides))
        logits[run] = classifier.logits(pixels)[:, columns]
    logits_first, logits_second = (np.stack([logits[run] for run in group]) for group in (first, second))
    known = {run.folder.resolve(): run for run in reading.find([str(run) for run in (*first, *second)])[0]}
    rows = [Row([known[run.resolve()] for run in group]) for group in (first, second)]
    repeats = tuple([run.repeat for run in row.runs] for row in rows)
    result = against.compare(logits_first, logits_second, labels, data.classes, repeats, [row.overlap for row in rows]) | {
        "runs": {"first": [str(run) for run in first], "second": [str(run) for run in second]},
        "data": images.description(runs, data, is_own=other_data is None),
        "classes": list(data.classes),
        "differences": against.differences(logits_first, logits_second, labels),
    }  # fmt: skip
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    name = f"against_{_name(first, second)}"
    figures = _draw_differences(folder / "figures" / f"{name}.png", pixels, result)
    shown = sections.comparison(result, figures)
    document.write(folder, name, "Two classifiers on the same images", shown)
    atomic_write(folder / f"{name}.csv", tables.as_csv(sections.differences(result)))
    write_json(folder / f"{name}.json", result)
    return f"{sections.as_text(shown, ['Accuracy'])}\n\nEverything is in {folder / name}.html, .md, .json and .csv"


def _draw_differences(path: Path, pixels: np.ndarray, result: Mapping[str, Any]) -> list[Path]:
    from cifar_research.display import figures

    names, rows = result["classes"], result["differences"][:_NUM_SHOWN]
    if not rows:
        return []
    titles = [f"{names[row['label']]}\n{names[row['first']]} | {names[row['second']]}" for row in rows]
    figures.save(figures.gallery(pixels[[row["index"] for row in rows]], titles), path)
    return [path]


def find(paths: Sequence[str], *, leaves_out: bool = False) -> list[Path]:
    """Return the completed runs in folders, globs or sweeps; ReportError if one has none.

    leaves_out: leave out runs of a sweep without weights, with a note.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        folders = [run.folder for run in completed(path)]
        usable = [folder for folder in folders if (folder / files.WEIGHTS).is_file()]
        if leaves_out and len(folders) > len(usable) > 0:
            missing = f"{len(folders) - len(usable)} of {len(folders)} runs have no weights and are left out"
            console.note(f"{path}: {missing}; sweep.keep=all keeps them")
            folders = usable
        runs |= {folder.resolve(): folder for folder in folders}
    if not runs:
        raise ConfigError("RUN: no folder was given; give the folder of a run or of a sweep")
    return list(runs.values())


def groups(paths: Sequence[str]) -> list[list[Path]]:
    """Return the runs of each ensemble: the named runs, and each setting's runs in a sweep.

    A folder or glob with several runs is a sweep; runs of a setting differ by their seed only. A single run of a setting is
    left out with a note. ConfigError if no ensemble is left.
    """
    members: dict[Any, dict[Path, Path]] = {}
    for path in paths:
        inside = completed(path)
        for run in inside:
            setting = (run.group, run.repeat[1]) if len(inside) > 1 else None
            members.setdefault(setting, {})[run.folder.resolve()] = run.folder
    ensembles = [[*group.values()] for group in members.values() if len(group) > 1]
    if not ensembles:
        raise ConfigError(
            "--ensemble: needs two completed runs or more that differ by the seed only; give more runs, or a sweep of seeds"
        )
    for group in members.values():
        if len(group) == 1:
            console.note(f"{next(iter(group.values()))}: is left out; no other run differs from it by the seed only")
    return ensembles


def completed(path: str) -> list[reading.Run]:
    """Return the completed runs in a folder, glob or sweep; ReportError if it has none."""
    inside, warnings = reading.find([os.path.expanduser(path)])
    console.error("\n".join(warnings))
    runs = [run for run in inside if run.state == "completed"]
    if not runs:
        raise ReportError(f"{path}: no run in it was completed; wait, or give another folder")
    return runs


def _name(first: Sequence[Path], second: Sequence[Path]) -> str:
    """Return the second run's name; if a group has several runs, with a digest of both groups."""
    if len(first) == len(second) == 1:
        return reading.name_of(second[0])
    parent = second[0].resolve().parent
    name = parent.name if len(second) > 1 and (parent / LEDGER).exists() else reading.name_of(second[0])
    paths = [sorted(str(run.resolve()) for run in group) for group in (first, second)]
    return f"{name}_{hashlib.sha256(repr(paths).encode()).hexdigest()[:8]}"


def folder_for(folder: Path, name: str | None, fingerprint: str) -> Path:
    """Return where results on images go: the folder, or for other images (`name`) one in it.

    That has the fingerprint in its name if another one has results on other images.
    """
    if name is None:
        return folder
    for path in sorted((folder / name).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_bytes())["data"]["fingerprint"] != fingerprint:
                return folder / f"{name}_{fingerprint[:8]}"
    return folder / name


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
