"""Find the images in a folder, and the reasons why other files are not used."""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from cifar_research.data import images

# Files and folders of the system, of archivers and of photo programs (thumbnails).
_SYSTEM = ("@eaDir", "__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN", "System Volume Information")
# Names that mark a run, a sweep, a report, this package's cache or a virtual environment.
_PROGRAM = ({".hydra"}, {"jobs.jsonl"}, {"leaderboard.csv"}, {"history.csv", "report.json"},
            {"meta.json", "train_images.npy"}, {"pyvenv.cfg"})  # fmt: skip
_NO_READER = (".heic", ".heif", ".hif", ".avif", ".webp", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw",
              ".exr", ".dcm")  # fmt: skip
DAMAGED, NO_READER, RUNS, BROKEN_LINK = "damaged", "(no reader)", "folder of runs", "broken link"

# Names of unused files and folders, by reason.
LeftOut = dict[str, list[str]]


def find(folder: Path) -> tuple[list[Path], LeftOut]:
    """Return the images in a folder and below it, sorted, and what is left out.

    Links to folders are followed; each folder is read once. Hidden names and those of the system are skipped.
    """
    files: list[Path] = []
    left_out: LeftOut = defaultdict(list)
    # The parents too: a link to one would lead back here.
    seen = {_identity(path) for path in (folder, *folder.resolve().parents)}

    def is_new(path: str) -> bool:
        if (identity := _identity(path)) in seen:
            left_out["folder already read"].append(path)
            return False
        seen.add(identity)
        return True

    def note_unreadable(error: OSError) -> None:
        left_out[f"folder that cannot be read ({error.strerror})"].append(error.filename)

    for current, subfolders, names in os.walk(folder, onerror=note_unreadable, followlinks=True):
        if any(marks <= {*subfolders, *names} for marks in _PROGRAM):
            left_out[RUNS].append(current)
            subfolders.clear()
            continue
        for path in (Path(current, name) for name in names if is_visible(name)):
            if why := reason(path):
                left_out[why].append(str(path))
            else:
                files.append(path)
        subfolders[:] = [name for name in subfolders if is_visible(name) and is_new(os.path.join(current, name))]
    return sorted(files), left_out


def _identity(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM


def reason(path: Path) -> str | None:
    """Return why a file cannot be used as an image, by its suffix and type; None if it can."""
    readable, known = _suffixes()
    suffix = path.suffix.lower()
    if suffix not in readable:
        suffix = as_text(suffix) if suffix[1:].isalnum() and len(suffix) < 10 else "other files"
        return f"{suffix} {NO_READER if suffix in known else '(not an image)'}"
    if path.is_file():
        return None
    return "not a file" if path.exists() else BROKEN_LINK


@functools.cache
def _suffixes() -> tuple[frozenset[str], frozenset[str]]:
    """Return the suffixes of images that can be read here, and all known image suffixes."""
    formats, suffixes = images.formats(), Image.registered_extensions()
    readable = frozenset(suffix for suffix, name in suffixes.items() if name in formats)
    return readable, frozenset((*suffixes, *_NO_READER))


def summary(num_used: int, left_out: Mapping[str, int]) -> str:
    """Return as one line how many images are used and how many files are left out, by reason."""
    counts = []
    for why, number in sorted(left_out.items(), key=lambda item: -item[1]):
        plural = re.sub(r"^(folder|broken link|image)\b", r"\1s", why)
        counts.append(f"{number:,} {plural if number > 1 else why}")
    return f"{num_used:,} images used" + (f"; left out: {', '.join(counts)}" if counts else "")


def first(names: Sequence[str], count: int) -> str:
    """Return the first `count` names and the number of the others, as printable text."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return as_text(", ".join(names[:count])) + more


def as_text(name: str) -> str:
    """Return a file name as text that can be encoded; bytes that are not UTF-8 become escapes."""
    return name.encode(errors="backslashreplace").decode()
