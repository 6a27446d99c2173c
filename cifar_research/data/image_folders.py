"""Folders of images: which of their files are used, and the data set that they make, a subfolder a class."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cifar_research.data import cache, image_files, images
from cifar_research.data.cache import Source
from cifar_research.runtime.errors import DataError, ImageError

_VALIDATION = ("val", "valid", "validation")
_SPLITS = ("train", "training", "test", "testing", *_VALIDATION)
log = logging.getLogger(__name__)

Classes = dict[str, list[Path]]


def load(
    data_dir: str, cache_root: Path, image_size: int, test_fraction: float, split_seed: int, max_damaged: float = 0.01
) -> Source:
    """Return the images of `data_dir`/{train,val,test}/<class>/, or of `data_dir`/<class>/ with a share held out for test.

    The images of a class are all those below its folder. Without val/ the source has no validation images; with val/ and
    without test/ a share of train/ is held out for test. Any mode becomes RGB; any size becomes image_size x image_size.
    Classes are sorted by name. Damaged images are left out; more than the share max_damaged of all, and more than one,
    are refused. DataError names the folder or the file that is missing, empty or unreadable.
    """
    try:
        folder = cache.existing_folder(data_dir, "data.dir")
        left_out: image_files.LeftOut = defaultdict(list)
        parts, notes = _parts(folder), []
        listed = {name: _classes(path, cache_root, left_out, notes) for name, path in parts.items()}
        if parts.keys() != {"all"}:
            for name, classes in listed.items():
                if differing := sorted(listed["train"].keys() ^ classes.keys()):
                    raise DataError(
                        f"{folder}: class {differing[0]!r} is in only one of train/ and {parts[name].name}/; give both the "
                        f"same classes, or hold images out of train/ for test: data.dir={folder / 'train'}"
                    )
            _add_rest(folder, parts, left_out)
        source = _load(folder, cache_root, image_size, (test_fraction, split_seed), listed, left_out, max_damaged)
    except OSError as error:
        raise DataError(
            f"{error.filename or data_dir}: cannot be read ({error.strerror}); repair it or remove it"
        ) from error
    if "val" in parts and "test" not in parts:
        notes.append(f"there is no test/ beside train/ and {parts['val'].name}/, so data.test_fraction={test_fraction} of "
                     "train/ is the test set")  # fmt: skip
    for reason, names in source.left_out.items():
        log.info("%s: left out, %s: %s", folder, reason, image_files.first(names, 1_000))
    return dataclasses.replace(source, note="; ".join(notes) or None)


def _load(
    folder: Path,
    cache_root: Path,
    image_size: int,
    split: tuple[float, int],
    listed: Mapping[str, Classes],
    left_out: image_files.LeftOut,
    max_damaged: float,
) -> Source:
    """Return the source of the listed images, from the cache if they are there, and all that is left out of it."""
    files = [path for part in listed.values() for paths in part.values() for path in paths]
    stats = [(str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in (path.stat(),)]
    identity = [str(folder.resolve()), image_size, None if "test" in listed else split, list(listed), stats]
    links = [f"{name} (a broken link)" for name in left_out[image_files.BROKEN_LINK]]

    def refuse_damaged(damaged: Sequence[str]) -> None:
        num_listed, bad = len(files) + len(links), [*damaged, *links]
        if len(bad) > (max(1, max_damaged * num_listed) if max_damaged else 0):
            raise DataError(
                f"data.max_damaged: {len(bad):,} of {num_listed:,} images in {folder} are damaged, and a share of "
                f"{max_damaged:g} may be: {image_files.first(bad, 10)}; replace or remove them, or raise data.max_damaged"
            )

    def decode() -> Source:
        return _decoded(folder, listed, image_size, split, refuse_damaged)

    source = cache.load(cache_root, "images", identity, decode, has_val="val" in listed)
    # Also here: who filled the cache may have allowed more.
    refuse_damaged(source.left_out.get(image_files.DAMAGED, []))
    all_left_out = {why: sorted(os.path.relpath(name, folder) for name in names) for why, names in left_out.items()}
    all_left_out |= source.left_out
    return dataclasses.replace(source, left_out={why: names for why, names in all_left_out.items() if names})


def _decoded(
    folder: Path,
    listed: Mapping[str, Classes],
    image_size: int,
    split: tuple[float, int],
    refuse_damaged: Callable[[Sequence[str]], None],
) -> Source:
    """Return the source of the listed images, decoded; its classes may lose images, but none may lose all."""
    decoded, damaged = {}, []
    for part, classes in listed.items():
        pixels, labels, bad = _decode(classes, image_size)
        decoded[part] = pixels, labels
        damaged += [f"{os.path.relpath(path, folder)} ({reason})" for path, reason in bad]
    refuse_damaged(damaged)
    names = tuple(next(iter(listed.values())))
    for part, (_, labels) in decoded.items():
        for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
            if not count:
                raise DataError(f"{folder}: all images of class {name!r} are damaged; replace them")
            if count < 2 and "test" not in listed and part != "val":
                raise DataError(
                    f"{folder}: class {name!r} has one image, and data.test_fraction needs one to test; add some"
                )
    train_images, train_labels = decoded["train" if "train" in decoded else "all"]
    if "test" not in decoded:
        held_out = hold_out(train_labels, *split)
        decoded["test"] = train_images[held_out], train_labels[held_out]
        train_images, train_labels = train_images[~held_out], train_labels[~held_out]
    val_images, val_labels = decoded.get("val", (None, None))
    return Source(
        train_images, train_labels, *decoded["test"], names, val_images=val_images, val_labels=val_labels,
        left_out={image_files.DAMAGED: damaged} if damaged else {},
    )  # fmt: skip


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask, bool [N], of a share of the images: of each class alike, and fixed by the seed.

    Of each class with two images or more at least one is held out and one is left, unless the fraction is 0.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held_out = min(max(round(len(rows) * fraction), 1), len(rows) - 1) if fraction else 0
        mask[rng.permutation(rows)[:held_out]] = True
    return mask


def _parts(folder: Path) -> dict[str, Path]:
    """Return the folders of classes: `all`, or `train` with `val` or `test` or both."""
    there = [name for name in ("train", "test", *_VALIDATION) if (folder / name).is_dir()]
    val = [name for name in there if name in _VALIDATION and _holds_folders_alone(folder / name)]
    if "train" in there and ("test" in there or val and _holds_folders_alone(folder / "train")):
        if len(val) > 1:
            raise DataError(f"data.dir: {folder} has {val[0]}/ and {val[1]}/; keep one of them for validation")
        parts = {name: folder / name for name in ("train", "test") if name in there}
        return parts | ({"val": folder / val[0]} if val else {})
    for path in sorted(path for path in folder.iterdir() if path.name.lower() in _SPLITS and path.is_dir()):
        if not _holds_folders_alone(path):
            continue
        other = {"train": "test", "test": "train"}.get(path.name)
        what = f"and no {other}/ beside it" if other else "which looks like a part of a data set and not like a class"
        raise DataError(
            f"data.dir: {folder} has {path.name}/{' ' if other else ', '}{what}; name the parts train/, val/ and test/, or "
            f"give data.dir={path}, of which data.test_fraction is then held out"
        )
    return {"all": folder}


def _holds_folders_alone(folder: Path) -> bool:
    """Say whether a folder is one of classes, and not the class of that name, which may be train."""
    visible = [path for path in folder.iterdir() if image_files.is_visible(path.name)]
    return any(path.is_dir() for path in visible) and all(path.is_dir() or image_files.reason(path) for path in visible)


def _classes(folder: Path, cache_root: Path, left_out: image_files.LeftOut, notes: list[str]) -> Classes:
    """Return the images of each class folder, sorted; add to what is left out, and to the notes what looks like a mistake."""
    classes: Classes = {}
    merged = []
    for path in sorted(path for path in folder.iterdir() if image_files.is_visible(path.name)):
        if not path.is_dir():
            left_out[image_files.reason(path) or "image beside the class folders"].append(str(path))
            continue
        files, others = image_files.find(path)
        if others.get(image_files.RUNS) and files:
            raise DataError(
                f"{path}: holds runs ({others[image_files.RUNS][0]}) and images ({files[0]}); separate them"
            )
        if others.get(image_files.RUNS) or cache_root.exists() and path.samefile(cache_root):
            left_out[image_files.RUNS].append(str(path))
            continue
        _refuse_class(path, files, others)
        classes[path.name] = files
        for reason, names in others.items():
            left_out[reason] += names
        below = {file.relative_to(path).parts[0] for file in files}
        if len(below) > 1 and all(file.parent != path for file in files):
            merged.append(f"{path.name} ({image_files.first(sorted(below), 3)})")
    if len(classes) < 2:
        raise DataError(
            f"{folder}: {len(classes)} class folders are too few; put the images of each class into a folder of its own"
        )
    if merged:
        notes.append(f"all images below a folder are one class, subfolders too: {image_files.first(merged, 3)}")
    return classes


def _refuse_class(path: Path, files: Sequence[Path], others: image_files.LeftOut) -> None:
    """Raise DataError if a folder cannot be a class."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path.parent}: the name of its folder {path.name!r} is not UTF-8; rename it") from error
    if not files:
        counted = image_files.told(0, {reason: len(names) for reason, names in others.items()})
        raise DataError(f"{path}: has no image that can be read ({counted}); add some or remove it")
    if all((path / name).is_dir() for name in ("train", "test")):
        raise DataError(f"{path}: has train/ and test/, so it is a data set and not a class; give data.dir={path}")


def _add_rest(folder: Path, parts: Mapping[str, Path], left_out: image_files.LeftOut) -> None:
    """Add what lies beside the parts of a data set."""
    for path in folder.iterdir():
        if not image_files.is_visible(path.name) or path in parts.values():
            continue
        if path.is_dir():
            files, others = image_files.find(path)
            names = " and ".join(f"{part.name}/" for part in parts.values())
            left_out[f"in {image_files.as_text(path.name)}/ (beside {names})"] += map(str, files)
            left_out[image_files.RUNS] += others.get(image_files.RUNS, [])
        else:
            left_out[image_files.reason(path) or "image beside the class folders"].append(str(path))


def _decode(classes: Classes, size: int) -> tuple[np.ndarray, np.ndarray, list[tuple[Path, str]]]:
    """Return images, labels, and the damaged ones with the reason. DataError for a file that the system cannot read."""

    files = [(label, path) for label, paths in enumerate(classes.values()) for path in paths]
    pixels, labels, damaged = [], [], []
    with images.warnings_logged(), ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda file: images.decoded_or_error(file[1], size), files)
        for (label, path), result in zip(files, decoded, strict=True):
            if not isinstance(result, ImageError):
                pixels.append(result)
                labels.append(label)
                continue
            cause = result.__cause__
            if isinstance(cause, MemoryError) or isinstance(cause, OSError) and cause.errno:
                raise DataError(f"{result}; replace it or remove it") from result
            damaged.append((path, result.reason))
    return np.array(pixels, np.uint8).reshape(-1, size, size, 3), np.array(labels, np.int64), damaged
