"""A folder of PNG or JPEG images, a subfolder a class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_research.data import cache
from cifar_research.data.cache import DataError, Source

_SUFFIXES = (".png", ".jpg", ".jpeg")


def load(data_dir: str, cache_root: Path, image_size: int, test_fraction: float, split_seed: int) -> Source:
    """Return the images of `data_dir`/{train,test}/<class>/*, or of `data_dir`/<class>/* with a share held out for test.

    Any mode becomes RGB; any size becomes image_size x image_size. Classes are sorted by name. DataError names the
    folder or the file that is missing, empty or unreadable.
    """
    try:
        return _load(Path(data_dir).expanduser(), cache_root, image_size, test_fraction, split_seed)
    except OSError as error:
        raise DataError(
            f"{error.filename or data_dir}: cannot be read ({error.strerror}); mend it or remove it"
        ) from error


def _load(folder: Path, cache_root: Path, image_size: int, test_fraction: float, split_seed: int) -> Source:
    if not folder.is_dir():
        raise DataError(
            f"data.dir: {folder} is no folder; give the one that holds train/ and test/, or a folder a class"
        )
    if (folder / "train").is_dir() and (folder / "test").is_dir():
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
    identity = [str(folder.resolve()), image_size, fraction, split_seed if test is None else None, listed]

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


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class folder, sorted."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(subfolders) < 2:
        raise DataError(
            f"{folder}: has {len(subfolders)} class folders; put the images of each class into one of its own"
        )
    classes = {}
    for subfolder in subfolders:
        files = sorted(
            path for path in subfolder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
        if not files:
            raise DataError(f"{subfolder}: holds no PNG or JPEG image; fill it or remove it")
        classes[subfolder.name] = files
    return classes


def _decode(classes: dict[str, list[Path]], size: int) -> tuple[np.ndarray, np.ndarray]:
    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
                    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
                image = image.convert("RGB")
                if image.size != (size, size):
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                return np.asarray(image)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise DataError(f"{path}: cannot be read as an image ({error}); replace it or remove it") from error

    files = [path for paths in classes.values() for path in paths]
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(read, files)))
    counts = [len(paths) for paths in classes.values()]
    return images, np.repeat(np.arange(len(counts)), counts)
