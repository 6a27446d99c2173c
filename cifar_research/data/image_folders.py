"""A data set of image folders: one folder a class, with or without folders of splits."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar_research.config.schema import ImagesConfig
from cifar_research.data import cache, cifar, image_files, images
from cifar_research.data.cache import Labelled, Source
from cifar_research.data.image_files import LeftOut
from cifar_research.data.splits import hold_out
from cifar_research.runtime.errors import DataError, ImageError

_VALIDATION = ("val", "valid", "validation")
_SPLITS = ("train", "training", "test", "testing", *_VALIDATION)
_BESIDE = "image beside the class folders"
log = logging.getLogger(__name__)

Classes = dict[str, list[Path]]


def load(data: ImagesConfig, cache_root: Path) -> Source:
    """Return the images of data.dir/{train,val,test}/<class>/, or of data.dir/<class>/.

    A class has all images below its folder; classes are sorted by name. Without test/, a stratified share is held out
    as the test split. Without val/, the source has no validation split. Damaged images are left out; more than one of
    them, and more than the share max_damaged, is an error. DataError names a missing, empty or unreadable path.
    """
    assert data.dir is not None  # checked by rules.folder_problems
    try:
        folder = cache.existing_folder(data.dir, "data.dir")
        left_out: LeftOut = defaultdict(list)
        notes: list[str] = []
        split_folders = _split_folders(folder)
        listed = {split: _classes(path, cache_root, left_out, notes) for split, path in split_folders.items()}
        if split_folders["train"] != folder:
            _check_same_classes(folder, listed)
            _add_rest(folder, list(split_folders.values()), left_out)
        source = _decoded_or_cached(data, folder, cache_root, listed, left_out)
    except OSError as error:
        path = error.filename or data.dir
        raise DataError(f"{path}: cannot be read ({error.strerror}); repair it or remove it") from error
    if "val" in listed and "test" not in listed:
        notes.append(f"there is no test/, so data.test_fraction={data.test_fraction} of train/ is the test set")
    if "test" in listed and data.test_fraction != ImagesConfig.test_fraction:
        notes.append(f"data.test_fraction={data.test_fraction} is not used, since test/ holds the test images")
    all_left_out = {why: sorted(os.path.relpath(name, folder) for name in names) for why, names in left_out.items()}
    all_left_out = {why: names for why, names in {**all_left_out, **source.left_out}.items() if names}
    for why, names in all_left_out.items():
        log.info("%s: left out, %s: %s", folder, why, image_files.first(names, 1_000))
    return replace(source, note="; ".join(notes) or None, found_in=str(folder), left_out=all_left_out)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders by split; without folders of splits, `train` is the folder itself."""
    folders = {name: folder / name for name in ("train", "test") if (folder / name).is_dir()}
    # Beside train/ and test/ it can be nothing else, so that images beside its classes are left out as theirs are.
    val = [folder / name for name in _VALIDATION if _holds_folders(folder / name, and_images=len(folders) == 2)]
    if "train" in folders and ("test" in folders or val and _holds_folders(folder / "train")):
        return folders | ({"val": val[0]} if val else {})
    for path in sorted(path for path in folder.iterdir() if path.name.lower() in _SPLITS):
        if _holds_folders(path):
            raise DataError(
                f"data.dir: {folder} has {path.name}/, which looks like a split and not like a class; name the splits "
                f"train/, val/ and test/, or give data.dir={path}, which holds out data.test_fraction for the test"
            )
    return {"train": folder}


def _holds_folders(folder: Path, *, and_images: bool = False) -> bool:
    """Return whether a folder contains class folders, and no images unless `and_images`."""
    visible = [path for path in folder.iterdir() if image_files.is_visible(path.name)] if folder.is_dir() else []
    has_images = not all(path.is_dir() or image_files.reason(path) for path in visible)
    return any(path.is_dir() for path in visible) and (and_images or not has_images)


def _classes(folder: Path, cache_root: Path, left_out: LeftOut, notes: list[str]) -> Classes:
    """Return the images of each class folder, sorted; add to left_out and notes."""
    for name, layouts in cifar.LAYOUTS.items():
        has_whole = any((folder / file).exists() for layout in layouts for file in (layout.folder, layout.archive))
        if has_whole or any((folder / layout.members[0]).is_file() for layout in layouts):
            raise DataError(f"data.dir: {folder} has the files of {name} and no class folders; use data={name}")
    classes: Classes = {}
    merged = []
    for path in sorted(path for path in folder.iterdir() if image_files.is_visible(path.name)):
        if not path.is_dir():
            left_out[image_files.reason(path) or _BESIDE].append(str(path))
            continue
        files, others = image_files.find(path)
        runs = others.get(image_files.RUNS, [])
        if (runs and not files) or (cache_root.exists() and path.samefile(cache_root)):
            left_out[image_files.RUNS].append(str(path))
            continue
        _check_class(path, files, runs, others)
        classes[path.name] = files
        for why, names in others.items():
            left_out[why] += names
        below = sorted({file.relative_to(path).parts[0] for file in files})
        if len(below) > 1 and all(file.parent != path for file in files):
            merged.append(f"{path.name} ({image_files.first(below, 3)})")
    if len(classes) < 2:
        raise DataError(
            f"{folder}: has {len(classes) or 'no'} class folder{'' if classes else 's'}, and two are needed; put each class into "
            "its own folder"
        )
    if merged:
        notes.append(f"all images below a folder are one class, subfolders too: {image_files.first(merged, 3)}")
    return classes


def _check_class(path: Path, files: Sequence[Path], runs: Sequence[str], others: LeftOut) -> None:
    """Raise DataError if a folder cannot be a class."""
    name = image_files.as_text(path.name)
    if name != path.name:
        raise DataError(f"{path.parent}: the name of its folder {name!r} is not UTF-8; rename it")
    if runs:
        raise DataError(f"{path}: holds runs ({runs[0]}) and images ({files[0]}); separate them")
    if not files:
        counts = image_files.summary(0, {why: len(names) for why, names in others.items()})
        raise DataError(f"{path}: has no readable image ({counts}); add images, or remove the folder")
    if all((path / split).is_dir() for split in ("train", "test")):
        raise DataError(f"{path}: has train/ and test/, so it is a data set and not a class; give data.dir={path}")


def _check_same_classes(folder: Path, listed: dict[str, Classes]) -> None:
    for split, classes in listed.items():
        if differing := sorted(listed["train"].keys() ^ classes.keys()):
            here, missing = ("train", split) if differing[0] in listed["train"] else (split, "train")
            raise DataError(
                f"{folder}: class {differing[0]!r} is in {here}/ and not in {missing}/; give both the same classes, or use "
                f"only train/: data.dir={folder / 'train'}"
            )


def _add_rest(folder: Path, split_folders: Sequence[Path], left_out: LeftOut) -> None:
    for path in folder.iterdir():
        if not image_files.is_visible(path.name) or path in split_folders:
            continue
        if path.is_dir():
            files, others = image_files.find(path)
            names = " and ".join(f"{path.name}/" for path in split_folders)
            left_out[f"in {image_files.as_text(path.name)}/ (beside {names})"] += map(str, files)
            left_out[image_files.RUNS] += others.get(image_files.RUNS, [])
        else:
            left_out[image_files.reason(path) or _BESIDE].append(str(path))


def _decoded_or_cached(
    data: ImagesConfig, folder: Path, cache_root: Path, listed: dict[str, Classes], left_out: LeftOut
) -> Source:
    """Return the source of the listed images, from the cache if it has them."""
    files = [path for classes in listed.values() for paths in classes.values() for path in paths]
    stats = [(str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in (path.stat(),)]
    test_seed = [data.split_seed, 5]  # not that of the validation images, which would lie beside those of the test
    held_out_for_test = None if "test" in listed else (data.test_fraction, test_seed)
    layout = list(listed) if len(listed) > 1 else ["all"]
    identity = [str(folder.resolve()), data.image_size, held_out_for_test, layout, stats]
    links = [f"{name} (a broken link)" for name in left_out[image_files.BROKEN_LINK]]

    def check(damaged: Sequence[str]) -> None:
        bad, num_images = [*damaged, *links], len(files) + len(links)
        if len(bad) > (max(1, data.max_damaged * num_images) if data.max_damaged else 0):
            raise DataError(
                f"data.max_damaged: {len(bad):,} of {num_images:,} images in {folder} are damaged, more than the share "
                f"{data.max_damaged:g}: {image_files.first(bad, 10)}; replace or remove them, or raise data.max_damaged"
            )

    def decode() -> Source:
        splits, damaged = {}, []
        for split, classes in listed.items():
            splits[split], errors = _decode(classes, data.image_size)
            damaged += [f"{os.path.relpath(path, folder)} ({reason})" for path, reason in errors]
        check(damaged)
        names = tuple(listed["train"])
        _check_counts(folder, names, splits)
        if "test" not in splits:
            pixels, labels = splits["train"]
            held_out = hold_out(labels, data.test_fraction, test_seed)
            splits["train"] = pixels[~held_out], labels[~held_out]
            splits["test"] = pixels[held_out], labels[held_out]
        return Source(splits, names, left_out={image_files.DAMAGED: damaged} if damaged else {})

    source = cache.load(cache_root, "images", identity, decode)
    # Again: another run may have filled the cache with a higher limit.
    check(source.left_out.get(image_files.DAMAGED, []))
    return source


def _decode(classes: Classes, size: int) -> tuple[Labelled, list[tuple[Path, str]]]:
    """Return images, labels and damaged files; DataError if one is unreadable."""
    files = [(label, path) for label, paths in enumerate(classes.values()) for path in paths]
    pixels, labels, damaged = [], [], []
    with images.without_warnings(), ThreadPoolExecutor() as pool:
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
    return (np.array(pixels, np.uint8).reshape(-1, size, size, 3), np.array(labels, np.int64)), damaged


def _check_counts(folder: Path, names: Sequence[str], splits: Mapping[str, Labelled]) -> None:
    """Raise DataError if a class has too few images left in a split."""
    for split, (_, labels) in splits.items():
        least = 2 if split == "train" and "test" not in splits else 1
        for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
            if count < least:
                use = "training and test" if least == 2 else split
                raise DataError(
                    f"{folder}: class {name!r} needs at least {least} readable images for {use}, and has {count}; add some"
                )
