"""A folder of PNG or JPEG images, a subfolder a class."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_research.data import cache
from cifar_research.data.cache import DataError, Source

_SUFFIXES = (".png", ".jpg", ".jpeg")
# What a folder of images to classify may hold, and the formats that are looked for in a file.
SUFFIXES = (*_SUFFIXES, ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
_FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


class ImageError(ValueError):
    """An image that cannot be read, in a sentence with its name."""


def load(data_dir: str, cache_root: Path, image_size: int, test_fraction: float, split_seed: int) -> Source:
    """Return the images of `data_dir`/{train,test}/<class>/*, or of `data_dir`/<class>/* with a share held out for test.

    Any mode becomes RGB; any size becomes image_size x image_size. Classes are sorted by name. DataError names the
    folder or the file that is missing, empty or unreadable.
    """
    try:
        folder = cache.existing_folder(data_dir, "data.dir")
        return _load(folder, cache_root, image_size, test_fraction, split_seed)
    except OSError as error:
        raise DataError(
            f"{error.filename or data_dir}: cannot be read ({error.strerror}); mend it or remove it"
        ) from error


def _load(folder: Path, cache_root: Path, image_size: int, test_fraction: float, split_seed: int) -> Source:
    parts = [name for name in ("train", "test") if (folder / name).is_dir()]
    if len(parts) == 1 and _holds_folders_alone(folder / parts[0]):
        other = "test" if parts == ["train"] else "train"
        raise DataError(
            f"data.dir: {folder} has {parts[0]}/ and no {other}/ beside it; add it, or give data.dir={folder / parts[0]}, of "
            "which data.test_fraction is then held out"
        )
    if len(parts) == 2:
        train, test = _classes(folder / "train"), _classes(folder / "test")
        if odd := sorted(train.keys() ^ test.keys()):
            raise DataError(
                f"{folder}: class {odd[0]!r} is in only one of train/ and test/; give both the same classes"
            )
        fraction = None
    else:
        train, test, fraction = _classes(folder), None, test_fraction
        for name, files in train.items():
            if len(files) < 2:
                raise DataError(f"{folder / name}: holds one image, and data.test_fraction needs one to test; add some")
    listed = [
        (str(f), f.stat().st_size, f.stat().st_mtime_ns)
        for part in (train, test or {})
        for c in part.values()
        for f in c
    ]
    # The last word tells caches with images the way up that their EXIF says from earlier ones.
    identity = [str(folder.resolve()), image_size, fraction, split_seed if test is None else None, listed, "upright"]

    def decode() -> Source:
        images, labels = _decode(train, image_size)
        if test is not None:
            return Source(images, labels, *_decode(test, image_size), tuple(train))
        held_out = hold_out(labels, test_fraction, split_seed)
        return Source(images[~held_out], labels[~held_out], images[held_out], labels[held_out], tuple(train))

    return cache.load(cache_root, "images", identity, decode)


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


def _holds_folders_alone(folder: Path) -> bool:
    """Say whether a folder is one of classes, and not the class of that name, which may be train."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return any(path.is_dir() for path in visible) and not any(path.suffix.lower() in _SUFFIXES for path in visible)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class folder, sorted."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(subfolders) < 2:
        number = f"{len(subfolders)} class folder{'' if len(subfolders) == 1 else 's'}"
        raise DataError(f"{folder}: has {number}; put the images of each class into one of its own")
    classes = {}
    for subfolder in subfolders:
        try:
            subfolder.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{folder}: the name of its folder {subfolder.name!r} is not UTF-8; rename it") from error
        files = sorted(
            path
            for path in subfolder.iterdir()
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and not path.is_fifo()
        )
        if not files:
            raise DataError(f"{subfolder}: holds no PNG or JPEG image; fill it or remove it")
        classes[subfolder.name] = files
    return classes


def decode(source: Any, size: int) -> np.ndarray:
    """Return the pixels of an image as uint8 [size, size, 3], the way up that its EXIF says.

    source: a file, by its path or open for reading in binary, a PIL image, or an array uint8 [h, w, 3]. Any mode becomes
    RGB, any size is resized bilinearly without regard to its proportions. ImageError if it cannot be read.
    """
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
                raise ValueError(f"{source.dtype} {list(source.shape)} is not uint8 [h, w, 3]")
            return source if source.shape[:2] == (size, size) else _resized(Image.fromarray(source), size)
        if isinstance(source, Image.Image):
            return _resized(source, size)
        with Image.open(source, formats=_formats()) as image:
            return _resized(image, size)
    except Exception as error:  # Pillow's decoders raise many kinds
        name = source if isinstance(source, (str, Path)) else getattr(source, "name", type(source).__name__)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is of no format known here"
        raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


@functools.cache
def _formats() -> list[str]:
    """Return the formats to look for. Pillow knows more, and hands some of them to other programs."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _resized(image: Image.Image, size: int) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _decode(classes: dict[str, list[Path]], size: int) -> tuple[np.ndarray, np.ndarray]:
    def read(path: Path) -> np.ndarray:
        try:
            return decode(path, size)
        except ImageError as error:
            raise DataError(f"{error}; replace it or remove it") from error

    files = [path for paths in classes.values() for path in paths]
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(read, files)))
    counts = [len(paths) for paths in classes.values()]
    return images, np.repeat(np.arange(len(counts)), counts)
