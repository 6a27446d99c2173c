"""Data sets as arrays in memory, or rather in memory maps: training, validation and test split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from cifar_research.config.schema import DataConfig
from cifar_research.config.targets import nearest
from cifar_research.data import cache, cifar, image_files, image_folders, synthetic
from cifar_research.data.cache import Source
from cifar_research.runtime import folders
from cifar_research.runtime.errors import DataError

__all__ = ["DataError", "Dataset", "Split", "load"]


@dataclass(frozen=True)
class Split:
    """Some rows of a source: images uint8 [N, H, W, C] and labels int64 [N] of all of it, and which rows are meant.

    Kept apart so that the images stay the memory map that every run on the machine shares. Of a backbone's features,
    images are float32 [views N, ...] and labels may be targets float32 [views N, K]: `views` copies, one an epoch.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    views: int = 1

    def __len__(self) -> int:
        return len(self.indices)

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel, float32 [C], of pixels scaled to [0, 1]."""
        height, width, channels = self.images.shape[1:]
        at_once = min(2_000, 2_000 * 32 * 32 // (height * width) or 1)
        sums = np.zeros((2, channels))
        for begin in range(0, len(self), at_once):
            pixels = self.images[self.indices[begin : begin + at_once]].reshape(-1, channels).astype(np.float64) / 255
            sums += pixels.sum(0), (pixels**2).sum(0)
        mean, square = sums / (len(self) * height * width)
        return mean.astype(np.float32), np.sqrt(np.maximum(square - mean**2, 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Dataset:
    """What a run trains, validates and tests on. `note`: what must be said beside its results, or None.

    left_out: how many files of the data set's folder are not used, by the reason.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    note: str | None
    found_in: str | None = None  # the folder or archive that it was read from
    left_out: Mapping[str, int] = field(default_factory=dict)


def files_told(data: Dataset) -> str:
    """Return how many images are used and how many files are left out, as one line."""
    used = {id(split): len(split) for split in (data.train, data.val, data.test)}  # val may be test
    return image_files.told(sum(used.values()), data.left_out)


def load(data: Any, found_in: str | None = None) -> Dataset:
    """Return the data set that the config section `data` describes; DataError if it cannot be loaded.

    found_in: where an earlier process of the run found it, used if neither data.dir nor $CIFAR_DATA_DIR is given.

    Validation images are held out from the training images, the same share of each class, by `split_seed` alone:
    other runs' seeds hold out the same. Where the source has validation images of its own, they are these. With
    validation=test they are the test images, as some studies did.
    """
    source = _source(data, found_in)
    everything = np.arange(len(source.train_labels))
    test = Split(source.test_images, source.test_labels, np.arange(len(source.test_labels)))
    notes = [source.note] if source.note else []
    if data.validation == "test":
        held_out, val = np.zeros(len(everything), bool), test
        notes.append("validated on the test set, so its test accuracy is too high by the choice of the best epoch")
        if source.val_images is not None:
            notes.append("data.validation=test leaves the images of val/ unused")
    elif source.val_images is not None:
        held_out = np.zeros(len(everything), bool)
        val = Split(source.val_images, source.val_labels, np.arange(len(source.val_labels)))
        if data.val_fraction != DataConfig.val_fraction:
            notes.append(f"data.val_fraction={data.val_fraction} is not used, since val/ holds the validation images")
    else:
        held_out = image_folders.hold_out(source.train_labels, data.val_fraction, data.split_seed)
        val = Split(source.train_images, source.train_labels, everything[held_out])
    rows, labels, classes = everything[~held_out], source.train_labels, source.classes
    if data.classes is not None:
        chosen = _chosen(data.classes, classes)
        classes, labels = tuple(classes[i] for i in chosen), _renumbered(labels, chosen)
        rows, val, test = (rows[labels[rows] >= 0], _only(val, chosen), _only(test, chosen))
    if data.train_size is not None:
        rows = _subset(rows, labels, data.train_size, data.split_seed)
    if not len(rows):
        raise DataError(f"data.val_fraction: {data.val_fraction} leaves no training image; lower it")
    return Dataset(
        name=data.name,
        classes=classes,
        train=Split(source.train_images, labels, rows),
        val=val,
        test=test,
        fingerprint=source.fingerprint,
        note="; ".join(notes) or None,
        found_in=source.found_in,
        left_out={reason: len(names) for reason, names in source.left_out.items()},
    )


def _chosen(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the numbers of the classes of these names, in the order given."""
    names = [_as_written(name, classes) for name in names]
    for name in names:
        if name not in classes:
            raise DataError(f"data.classes: there is no class {name!r}{nearest(name, classes)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"data.classes: {list(names)} must be at least two different ones of {', '.join(classes)}")
    return [classes.index(name) for name in names]


def _as_written(name: str, classes: Sequence[str]) -> str:
    """Return the one class that YAML, in a file, reads as this name: 'True' is true, '1000.0' is 1e3."""
    read = [one for one in classes if re.fullmatch(r"[\w.+-]+", one) and str(OmegaConf.create(f"[{one}]")[0]) == name]
    return read[0] if name not in classes and len(read) == 1 else name


def _renumbered(labels: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return labels counted among the chosen classes; those of others are -1."""
    numbers = np.full(max(int(labels.max()), *chosen) + 1, -1, np.int64)
    numbers[list(chosen)] = np.arange(len(chosen))
    return numbers[labels]


def _only(split: Split, chosen: Sequence[int]) -> Split:
    labels = _renumbered(split.labels, chosen)
    return Split(split.images, labels, split.indices[labels[split.indices] >= 0])


def _source(data: Any, found_in: str | None) -> Source:
    root = folders.root(data.cache_dir)
    match data.name:
        case "cifar10" | "cifar100":
            return cifar.load(data.name, data.dir, root, data.download, found_in)
        case "images":
            split = (data.test_fraction, data.split_seed)
            source = image_folders.load(data.dir, root, data.image_size, *split, data.max_damaged)
            return replace(source, found_in=str(Path(data.dir).expanduser().absolute()))
        case "synthetic":
            identity = [data.train_images, data.test_images, data.seed, synthetic.VERSION]

            def draw() -> Source:
                train = synthetic.draw(data.train_images, data.seed, split=0)
                return Source(*train, *synthetic.draw(data.test_images, data.seed, split=1), synthetic.CLASSES)

            return cache.load(root, "synthetic", identity, draw)
    raise DataError(f"data.name: {data.name!r} is not a data set")


def _subset(rows: np.ndarray, labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return `size` of the rows, as many of each class as its share of them, in order."""
    classes, counts = np.unique(labels[rows], return_counts=True)
    if not len(classes) <= size <= len(rows):
        raise DataError(
            f"data.train_size: {size} is out of range; it must be at least {len(classes)}, an image a class, and at "
            f"most {len(rows)}, the training images there are"
        )
    # One of each class, and the rest by their shares: the largest remainders first.
    exact = 1 + (counts - 1) * (size - len(classes)) / max(len(rows) - len(classes), 1)
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - quotas.sum()]] += 1
    rng = np.random.default_rng([seed, 1])
    chosen = [rng.permutation(rows[labels[rows] == c])[:quota] for c, quota in zip(classes, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))
