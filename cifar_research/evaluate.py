"""cifar-evaluate: what a finished run can do, how sure it may be of itself, and whether another one can do more."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from cifar_research.comparison import runs as reading
from cifar_research.config import targets
from cifar_research.display import console, tables
from cifar_research.evaluation import against, images, measures
from cifar_research.inference import trained
from cifar_research.runs import report
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime.errors import ConfigError, DataError, ReportError, RunError, WriteError
from cifar_research.runtime.files import atomic_write

if TYPE_CHECKING:
    from cifar_research.data.datasets import Dataset

USER_ERRORS = (ConfigError, DataError, RunError, ReportError, WriteError)
_NUM_CORRUPTED = 2_000


@console.command
def main() -> None:
    """The command line. Exit codes: 0 done, 2 a user's mistake."""
    given = _parser().parse_intermixed_args()
    try:
        words = [word for word in [*given.runs, *(given.against or [])] if images.is_override(word)]
        first = _folders([word for word in given.runs if word not in words])
        if given.against is not None:
            if given.views or given.cifar10_1 or given.corruptions != _NUM_CORRUPTED:
                raise ConfigError("--against: compares on the test images alone; leave the other options out")
            second = _folders([word for word in given.against if word not in words])
            tell = compare(first, second, words)
        else:
            options = {"views": given.views, "corrupted": given.corruptions, "cifar10_1": given.cifar10_1}
            if len(first) > 1:  # all are checked before the first is written
                for run in first:
                    _prepared(run, words, given.cifar10_1)
            tell = "\n\n".join(evaluate(run, words, **options) for run in first)
        sys.stdout.write(f"{tell}\n")
    except USER_ERRORS as error:
        console.error(str(error))
        sys.exit(2)


def evaluate(
    run: Path,
    words: Sequence[str] = (),
    *,
    views: str | None = None,
    corrupted: int | None = _NUM_CORRUPTED,
    cifar10_1: str | None = None,
) -> str:
    """Evaluate a completed run and write what comes out beside it; return that as text for a terminal.

    words: overrides of its data section; views: `flip` or `flip_shift`, to be held against none; corrupted: the number
    of test images that are corrupted, None for all, 0 for none; cifar10_1: the folder of CIFAR-10.1.
    Writes <run>/evaluation.json and <run>/evaluation/; for other images than the run's own, <run>/evaluation/<data>/,
    where <data> is images_<folder> for a folder of images, with a part of their fingerprint if that is taken by others.
    One of USER_ERRORS says what a user can mend.
    """
    began = time.perf_counter()
    found, data, other, new_images, folder, classifier = _prepared(run, words, cifar10_1)
    is_own = other is None
    if data.left_out:
        console.note(data.file_summary())
    seconds = {"load": time.perf_counter() - began}
    measured, logits = measures.measure(
        classifier, data, is_own=is_own, views=views, corrupted=corrupted, cifar10_1=new_images
    )

    if doubt := images.doubts(found, data, is_own=is_own):
        measured["data"]["note"] = "; ".join(filter(None, (data.note, f"the run {doubt}")))

    from cifar_research.display import document
    from cifar_research.evaluation import pictures, sections

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    drawn = pictures.draw(folder, classifier, data, measured, logits)
    seconds |= measured["seconds"] | {"figures": time.perf_counter() - began}
    facts = {"run": str(run), "config_hash": found["config_hash"], "versions": report.versions()}
    result = measured | facts | {"seconds": seconds}
    told = sections.evaluation(result, drawn)
    document.write(folder, "report", f"{found['config']['name']}: evaluation", told)
    # Last, since it is what says that an evaluation is there.
    target = run if is_own else folder
    atomic_write(target / trained.EVALUATION, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return f"{sections.summary(result)}\n\nEverything is in {folder}, and in {target / trained.EVALUATION}"


def _prepared(
    run: Path, words: Sequence[str], cifar10_1: str | None
) -> tuple[dict[str, Any], Dataset, str | None, Any, Path, trained.Classifier]:
    """Return what an evaluation begins with; one of USER_ERRORS if it cannot be, before anything is written.

    The run's report, its data and their name if they are others than its own, CIFAR-10.1, the folder to write into, and
    the classifier.
    """
    # Data before TensorFlow: what is missing or damaged is told at once.
    found = trained.read(run)
    data, other = images.load(found, words)
    new_images = None
    if cifar10_1 is not None:
        new_images = images.cifar10_1(cifar10_1, data.classes, data.test.images.shape[1])
    if problems := targets.check("loss", OmegaConf.create(found["config"]).loss):
        raise RunError(f"{run}: its loss cannot be computed: {problems[0]}")
    folder = run / "evaluation" / (_free_name(run, other, data.fingerprint) if other else "")
    _refuse_unwritable(folder)
    return found, data, other, new_images, folder, trained.load(run)


def compare(first: Sequence[Path], second: Sequence[Path], words: Sequence[str] = ()) -> str:
    """Hold a group of runs against another one on the same test images; return the comparison as text.

    Writes against_<second>.{json,md,html,csv} into evaluation/ of the first run, <second> being the name of a run or of a
    sweep. Classes are matched by name, and stand in the first run's order. One of USER_ERRORS says what a user can fix:
    runs of different classes or image sizes are not compared.
    """
    reports = [trained.read(run) for run in [*first, *second]]
    for run, found in zip([*first, *second], reports, strict=True):
        if sorted(found["data"]["classes"]) != sorted(reports[0]["data"]["classes"]):
            raise DataError(f"{run}: was trained on other classes than {first[0]}; compare runs of the same classes")
    data, elsewhere = images.load(reports[0], words)
    doubts = [
        f"{run}: {doubt}" for run, found in zip([*first, *second], reports, strict=True)
        if (doubt := images.doubts(found, data, is_own=elsewhere is None))
    ]  # fmt: skip
    pictures, labels = measures.arrays(data.test)
    folder, logits = first[0] / "evaluation", []
    _refuse_unwritable(folder)
    with console.counted("Classifying", len(reports)) as begin:
        for run, found in zip([*first, *second], reports, strict=True):
            begin(run.name)
            classifier = trained.load(run)
            if classifier.image_shape != pictures.shape[1:]:
                raise DataError(f"{run}: takes images of another size than {first[0]}; compare runs of the same size")
            columns = [found["data"]["classes"].index(name) for name in data.classes]
            logits.append(classifier.logits(pictures)[:, columns])
    one, other = np.stack(logits[: len(first)]), np.stack(logits[len(first) :])
    seeds = [found["seed"] for found in reports]
    result = against.compare(one, other, labels, data.classes, (seeds[: len(first)], seeds[len(first) :]))
    result |= {
        "runs": {"first": [str(run) for run in first], "second": [str(run) for run in second]},
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "note": "; ".join([*([data.note] if data.note else []), *doubts]) or None,
        },
        "classes": list(data.classes),
        "differences": against.differences(one, other, labels),
    }
    from cifar_research.display import document, figures
    from cifar_research.evaluation import sections

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    name, drawn = f"against_{_name(second)}", []
    if few := result["differences"][:20]:
        path = folder / "figures" / f"{name}.png"
        titles = [sections.difference_title(row, data.classes) for row in few]
        figures.save(figures.gallery(pictures[[row["index"] for row in few]], titles), path)
        drawn.append(path)
    document.write(folder, name, "Two classifiers on the same images", sections.comparison(result, drawn))
    atomic_write(folder / f"{name}.csv", tables.as_csv(sections.differences(result)))
    atomic_write(folder / f"{name}.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return f"{sections.comparison_summary(result)}\n\nEverything is in {folder / name}.html, .md, .json and .csv"


def _free_name(run: Path, name: str, fingerprint: str) -> str:
    """Return a name in the run's evaluation/ for other images than its own that no others have."""
    try:
        there = json.loads((run / "evaluation" / name / trained.EVALUATION).read_bytes())["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return name
    return name if there == fingerprint else f"{name}_{fingerprint[:8]}"


def _name(runs: Sequence[Path]) -> str:
    """Return what a group of runs is called: as its sweep if it is all of it, else as its first run, of its sweep."""
    first = runs[0].resolve()
    if not (first.parent / LEDGER).exists():
        return first.name
    is_whole = {run.resolve() for run in runs} == {run.resolve() for run in _folders([str(first.parent)])}
    return first.parent.name if is_whole else f"{first.parent.name}_{first.name}"


def _refuse_unwritable(folder: Path) -> None:
    """Raise ReportError if the folder of an evaluation, or its figures/, cannot be made or written into."""
    for place in (folder, folder / "figures"):
        there = next(one for one in (place, *place.parents) if one.exists())
        if not there.is_dir():
            raise ReportError(f"{there}: is not a directory, and {place} is to be written; move it away")
        if not os.access(there, os.W_OK):
            raise ReportError(f"{place}: cannot be written; make {there} writable, or copy the run")


def _folders(places: Sequence[str]) -> list[Path]:
    """Return the runs that folders, globs of them or sweeps name; of a sweep, those that were completed."""
    found: dict[Path, Path] = {}
    for place in places:
        folder = Path(os.path.expanduser(place))
        if (folder / ".hydra").is_dir() and not (folder / LEDGER).exists() or (folder / "report.json").exists():
            here = [folder]
        elif re.match(r"[\w.]+=", place) and not folder.exists():
            raise ConfigError(f"{place}: is no folder, and only the data of a run can be overridden: data.key=value")
        else:
            inside, warnings = reading.find([str(folder)])
            for warning in warnings:
                console.error(warning)
            here = [run.folder for run in inside if run.state == "completed"]
            if not here:
                raise ReportError(f"{place}: no run in it was completed; wait, or give another folder")
        found |= {run.resolve(): run for run in here}
    if not found:
        raise ConfigError("RUN: no folder was given; give that of a run, or of a sweep")
    return list(found.values())


def _count(text: str) -> int | None:
    """Return what --corruptions says: 0 for none, None for all."""
    if text in ("none", "all"):
        return 0 if text == "none" else None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not none, all or a number of images")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cifar-evaluate", description="Evaluate completed runs, or compare two groups."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN|data.KEY=VALUE", help="folders of runs or sweeps, or globs of "
                        "them, and overrides of their data: data=cifar10 data.dir=FOLDER")  # fmt: skip
    parser.add_argument("--against", nargs="+", metavar="RUN", help="compare with these runs, by McNemar's test")
    parser.add_argument(
        "--views", choices=("flip", "flip_shift"), help="also average over test-time views of each image"
    )
    parser.add_argument("--corruptions", type=_count, default=_NUM_CORRUPTED, metavar="none|all|NUMBER",
                        help="how many test images to corrupt in 15 ways at 5 severities (2000)")  # fmt: skip
    parser.add_argument("--cifar10-1", metavar="FOLDER", help="also test on CIFAR-10.1, whose v6 files are in FOLDER")
    return parser


if __name__ == "__main__":
    main()
