"""Classify image files with a finished run."""

from __future__ import annotations

import csv
import functools
import glob
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np

from cifar_research.data import image_files
from cifar_research.data.images import decoded_or_error, without_warnings
from cifar_research.display import console
from cifar_research.display.tables import as_text
from cifar_research.inference import trained
from cifar_research.inference.trained import Classifier, Prediction
from cifar_research.runtime.errors import ImageError, RunError

FORMATS = ("table", "csv", "jsonl")
_BATCH = 500

# A file and its most likely classes, best first.
Row = tuple[str, list[Prediction]]


def predict(
    runs: Sequence[Path],
    arguments: Sequence[str],
    kind: str = "table",
    top_k: int = 1,
    allow_targets: Sequence[str] = (),
) -> int:
    """Print the `top_k` most likely classes of image files; return 1 if some are unreadable.

    runs: one, or several as an ensemble; arguments: see `find`; kind: one of FORMATS; allow_targets: see trained.load.
    RunError for a user's error, raised before TensorFlow is imported.
    """
    runs = [Path(os.path.expanduser(run)) for run in runs]
    num_classes = len(trained.read_members(runs)[runs[0]]["data"]["classes"])
    if not 1 <= top_k <= num_classes:
        raise RunError(f"--top-k: {top_k} is out of range; it must be at least 1 and at most {num_classes}")
    files, problems, left_out = find(arguments, sys.stdin)
    if not files and problems:
        raise RunError("\n".join(problems))
    console.error("\n".join(problems))
    if not files:
        raise RunError(
            f"IMAGES: no image was found ({image_files.summary(0, left_out)}); give files, folders or globs of images"
        )
    classifier = trained.load(runs, allow_targets=allow_targets)
    note_uncalibrated(classifier)

    def readable() -> Iterator[Row]:
        for file, result in classify(classifier, files, top_k):
            if isinstance(result, ImageError):
                left_out[image_files.DAMAGED] += 1
                console.error(str(result))
            else:
                yield file, result

    _write(sys.stdout, readable(), kind, top_k)
    if left_out:
        console.note(image_files.summary(len(files) - left_out[image_files.DAMAGED], left_out))
    return int(bool(problems) or any(why.endswith((image_files.DAMAGED, image_files.NO_READER)) for why in left_out))


def note_uncalibrated(classifier: Classifier) -> None:
    """Write why the classifier's probabilities are not calibrated, if so."""
    if classifier.uncalibrated is not None:
        console.note(f"The probabilities are not calibrated: {classifier.uncalibrated}")


def find(arguments: Sequence[str], stdin: Iterable[str]) -> tuple[list[str], list[str], Counter[str]]:
    """Return files, problems with arguments, and the number of files left out by reason.

    A folder stands for all images below it, a glob for its matches, `-` for the paths in the lines of `stdin`. Each file
    is returned once.
    """
    files: list[str] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    for argument in arguments:
        is_named, paths = argument != "-" and (os.path.exists(argument) or not glob.has_magic(argument)), [argument]
        if argument == "-":
            paths = [line.rstrip("\r\n") for line in stdin if line.strip()]
        elif not is_named:
            paths = sorted(glob.glob(os.path.expanduser(argument), recursive=True)) or paths
        for path in paths:
            if os.path.isdir(path):
                inside, others = image_files.find(Path(path))
                files += map(str, inside)
                left_out.update({reason: len(names) for reason, names in others.items()})
                if not inside:
                    problems.append(f"{path}: this folder holds no image")
            elif not os.path.exists(path):
                problems.append(f"{path}: there is no such file or folder")
            elif not is_named and (reason := image_files.reason(Path(path))):
                left_out[reason] += 1
            else:
                files.append(path)
    unique: dict[str, str] = {}
    for file in files:
        unique.setdefault(os.path.abspath(file), file)
    return list(unique.values()), problems, left_out


def classify(
    classifier: Classifier, files: Sequence[str], top_k: int = 1
) -> Iterator[tuple[str, list[Prediction] | ImageError]]:
    """Yield each file with its `top_k` most likely classes or its error; threads decode ahead."""
    decode = functools.partial(decoded_or_error, size=classifier.image_shape[0])
    batches = [files[first : first + _BATCH] for first in range(0, len(files), _BATCH)]
    with without_warnings(), ThreadPoolExecutor() as pool:
        coming = pool.map(decode, files[:_BATCH])
        for batch, following in itertools.pairwise([*batches, []]):
            decoded, coming = list(coming), pool.map(decode, following)  # in the background
            images = [result for result in decoded if isinstance(result, np.ndarray)]
            probabilities = iter(classifier.probabilities(np.stack(images)) if images else [])
            for file, result in zip(batch, decoded, strict=True):
                if isinstance(result, ImageError):
                    yield file, result
                else:
                    row = next(probabilities)
                    best = np.argsort(-row, kind="stable")[:top_k]
                    yield file, [Prediction(classifier.classes[i], float(row[i])) for i in best]


def _write(file: TextIO, rows: Iterable[Row], kind: str, top_k: int) -> None:
    """Write rows as they come; a table at the end, since its column widths depend on all rows."""
    columns = [f"{name}{rank}" for rank in ["", *range(2, top_k + 1)] for name in ("class", "probability")]
    if kind == "jsonl":
        for name, best in rows:
            listed = [{"class": label, "probability": round(probability, 6)} for label, probability in best]
            file.write(json.dumps({"file": name, "predictions": listed}) + "\n")
        return
    digits = 6 if kind == "csv" else 4
    cells = ([name, *(cell for label, p in best for cell in (label, f"{p:.{digits}f}"))] for name, best in rows)
    table = itertools.chain([["file", *columns]], cells)
    if kind == "csv":
        csv.writer(file, lineterminator="\n").writerows(table)
    else:
        file.write(as_text([*table], numbers_right=False) + "\n")
