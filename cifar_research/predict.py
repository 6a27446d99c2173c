"""cifar-predict: classify image files with a finished run."""

from __future__ import annotations

import argparse
import csv
import functools
import glob
import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifar_research.data import image_files, images
from cifar_research.display import console
from cifar_research.display.tables import as_text
from cifar_research.inference import trained
from cifar_research.inference.trained import Prediction
from cifar_research.runtime import programs
from cifar_research.runtime.errors import ImageError, RunError, WriteError
from cifar_research.runtime.files import atomic_write

if TYPE_CHECKING:
    from cifar_research.inference.trained import Classifier

FORMATS = ("table", "csv", "jsonl")
_BATCH = 500

# A file and its likeliest classes, the likeliest first.
Row = tuple[str, list[Prediction]]


@console.command
def main() -> None:
    """The command line. Exit codes: 0 done, 1 some files could not be read, 2 a user's mistake or nothing found."""
    parser = argparse.ArgumentParser(prog="cifar-predict", description="Classify image files with a finished run.")
    parser.add_argument("run", type=Path, help="folder of a completed run")
    parser.add_argument(
        "images", nargs="+", help="files, folders (with all below them), globs, or - for paths from standard input"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="of what is written (default: table)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="classes of each image (default: 1)")
    given = parser.parse_args()
    try:
        sys.exit(command(given))
    except (RunError, WriteError) as error:
        console.error(str(error))
        sys.exit(2)


def command(given: argparse.Namespace) -> int:
    """Do what the command line says, and return its exit code; RunError for a mistake, before TensorFlow is imported."""
    run = Path(os.path.expanduser(given.run))
    classes = trained.read(run)["data"]["classes"]
    if not 1 <= given.top_k <= len(classes):
        raise RunError(f"--top-k: {given.top_k} is out of range; it must be at least 1 and at most {len(classes)}")
    if given.output is not None and not given.output.parent.is_dir():
        raise RunError(f"--output: {given.output.parent} is not a directory; make it, or choose another file")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # As the file system has them, since a file's name may be no text in any encoding.
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    files, problems, left_out = find(given.images, sys.stdin)
    for problem in problems:
        console.error(problem)
    if not files:
        raise RunError(f"No image was found{_others(left_out)}; give files, folders or globs of images")
    classifier = trained.load(given.run)
    note_uncalibrated(classifier, run)

    def tell(error: ImageError) -> None:
        problems.append(str(error))
        left_out[image_files.DAMAGED] += 1
        console.error(str(error))

    rows = classify(classifier, files, given.top_k, tell)
    if given.output is None:
        _write(sys.stdout, rows, given.format, given.top_k)
    else:
        content = io.StringIO()
        _write(content, rows, given.format, given.top_k)
        encoded = content.getvalue().encode(errors="surrogateescape")
        if given.output.is_fifo() or given.output.is_char_device():  # which is not to be replaced
            given.output.write_bytes(encoded)
        else:
            atomic_write(given.output.resolve(), encoded)
    if left_out:
        console.note(image_files.summary(len(files) - left_out[image_files.DAMAGED], +left_out))
    is_unread = any(reason.endswith(image_files.NO_READER) for reason in left_out)
    return 1 if problems or is_unread else 0


def note_uncalibrated(classifier: Classifier, run: Path) -> None:
    """Write why the probabilities of a run's classifier are not calibrated, if they are not."""
    if classifier.uncalibrated is not None:
        is_evaluated = (run / trained.EVALUATION).is_file()
        advice = "" if is_evaluated else f"; {programs.program('evaluate')} {run} fits a temperature"
        console.note(f"The probabilities are not calibrated: {classifier.uncalibrated}{advice}")


def find(words: Sequence[str], stdin: Iterable[str]) -> tuple[list[str], list[str], Counter[str]]:
    """Return the files that the words of a command line name, in their order, and a sentence for each that names none.

    A folder stands for the images in it and below it, as in training, sorted; a glob for what it matches, sorted; `-`
    for the paths of `stdin`, a line each, which are no globs. Last comes how many files of folders are left out, by reason.
    """
    files: list[str] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()

    def add(word: str, is_glob: bool) -> None:
        if os.path.isdir(word):
            inside, others = image_files.find(Path(word))
            files.extend(map(str, inside))
            counted = Counter({reason: len(names) for reason, names in others.items()})
            left_out.update(counted)
            if not inside:
                problems.append(f"{word}: this folder holds no image{_others(counted)}")
        elif os.path.exists(word):
            files.append(word)
        elif is_glob and glob.has_magic(word):
            matches = sorted(glob.glob(os.path.expanduser(word), recursive=True))
            for match in matches:
                add(match, is_glob=False)
            if not matches:
                problems.append(f"{word}: matches no file")
        else:
            problems.append(f"{word}: there is no such file or folder")

    for word in words:
        if word == "-":
            for line in stdin:
                if path := line.rstrip("\r\n"):
                    add(path, is_glob=False)
        else:
            add(word, is_glob=True)
    return files, problems, left_out


def _others(left_out: Mapping[str, int]) -> str:
    return f" ({image_files.summary(0, left_out)})" if left_out else ""


def classify(
    classifier: Classifier, files: Sequence[str], top_k: int = 1, tell: Callable[[ImageError], None] | None = None
) -> Iterator[Row]:
    """Yield each file with its `top_k` likeliest classes, in order, while threads decode those that come next.

    tell: is called with each ImageError, and the file is left out; None raises it.
    """
    decode = functools.partial(images.decoded_or_error, size=classifier.image_shape[0])
    batches = [files[first : first + _BATCH] for first in range(0, len(files), _BATCH)]
    with images.without_warnings(), ThreadPoolExecutor() as pool:
        coming = pool.map(decode, files[:_BATCH])
        for batch, following in itertools.pairwise([*batches, []]):
            decoded, coming = list(coming), pool.map(decode, following)  # in the background
            good = [
                (file, pixels) for file, pixels in zip(batch, decoded, strict=True) if isinstance(pixels, np.ndarray)
            ]
            for error in decoded:
                if isinstance(error, ImageError):
                    if tell is None:
                        raise error
                    tell(error)
            if not good:
                continue
            found = classifier.probabilities(np.stack([pixels for _, pixels in good]), _BATCH)
            best = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
            for (file, _), row, order in zip(good, found, best, strict=True):
                yield file, [Prediction(classifier.classes[i], float(row[i])) for i in order]


def _write(file: io.TextIOBase, rows: Iterable[Row], kind: str, top_k: int) -> None:
    """Write rows as they come; a table only when all are there, since its columns must be as wide as the widest."""
    columns = [f"{name}{rank}" for rank in ["", *range(2, top_k + 1)] for name in ("class", "probability")]
    if kind == "jsonl":
        for name, best in rows:
            listed = [{"class": label, "probability": round(probability, 6)} for label, probability in best]
            file.write(json.dumps({"file": name, "predictions": listed}) + "\n")
    elif kind == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *columns])
        for name, best in rows:
            writer.writerow([name, *(cell for label, p in best for cell in (label, f"{p:.6f}"))])
    else:
        cells = [(name, *(cell for label, p in best for cell in (label, f"{p:.4f}"))) for name, best in rows]
        file.write(as_text([("file", *columns), *cells], numbers_right=False) + "\n")


if __name__ == "__main__":
    main()
