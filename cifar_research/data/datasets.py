"""Data sets as memory maps: training, validation and test split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cifar_research.config.schema import CifarConfig, DataConfig, ImagesConfig, SyntheticConfig
from cifar_research.config.targets import nearest
from cifar_research.data import cache, cifar, image_files, image_folders, noise, splits, synthetic
from cifar_research.data.cache import Source
from cifar_research.runtime import folders
from cifar_research.runtime.errors import DataError


@dataclass(frozen=True)
class Split:
    """The rows `indices` of images uint8 [N, H, W, C] and labels int64 [N].

    Images stay a memory map that the runs on a machine share. For backbone features, images are float32 [views N, ...],
    and labels may be targets float32 [views N, K]: `views` copies of the split, one for each epoch in turn.
    chances: how often an image is drawn in training, float64 [len], the sum 1; None: once an epoch.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    views: int = 1
    chances: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def of_classes(self, chosen: Sequence[int]) -> Split:
        """Return the images of the chosen classes, with labels numbered in that order."""
        # One more at the end, for -1: images of classes that were left out before.
        numbers = np.full(max(int(self.labels.max()), *chosen) + 2, -1, np.int64)
        numbers[list(chosen)] = np.arange(len(chosen))
        labels = numbers[self.labels]
        return Split(self.images, labels, self.indices[labels[self.indices] >= 0])

    def counts(self, num_classes: int) -> np.ndarray:
        """Return the number of images of each class, int64 [num_classes]."""
        return np.bincount(self.labels[self.indices], minlength=num_classes)

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each channel's mean and standard deviation, float32 [C], of pixels in [0, 1]."""
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
    """The data to train, validate and test on.

    note: a caveat to show beside results, or None. found_in: the folder or archive it was read from.
    left_out: the number of unused files in the data set's folder, by reason. true_labels: the data set's own, int64 [N],
    if the training images have others.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    note: str | None
    found_in: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    true_labels: np.ndarray | None = None

    def label_matrix(self) -> np.ndarray | None:
        """Return how many training images of each class (row) have which label (column), None without noise."""
        if self.true_labels is None:
            return None
        matrix, rows = np.zeros((len(self.classes),) * 2, np.int64), self.train.indices
        np.add.at(matrix, (self.true_labels[rows], self.train.labels[rows]), 1)
        return matrix

    def labels_sha256(self) -> str:
        """Return the digest of the labels of the training images."""
        return hashlib.sha256(self.train.labels[self.train.indices].astype("<i8").tobytes()).hexdigest()

    def file_summary(self) -> str:
        """Return as one line how many images are used and how many files are left out."""
        num_val = 0 if self.val.images is self.test.images else len(self.val)
        return image_files.summary(len(self.train) + num_val + len(self.test), self.left_out)


def load(data: DataConfig, found_in: str | None = None) -> Dataset:
    """Return the data set of a config; DataError if it cannot be loaded.

    found_in: where an earlier process of the run found it, used without data.dir and $CIFAR_DATA_DIR. The validation
    split is the source's own if it has one. Otherwise it is held out from the training images, stratified, by
    `split_seed` alone. With validation=test it is the test split.
    """
    source = _source(data, found_in)
    notes = [source.note] if source.note else []
    whole = {name: Split(images, labels, np.arange(len(labels))) for name, (images, labels) in source.splits.items()}
    train, test = whole["train"], whole["test"]
    if data.validation == "test":
        val = test
        notes.append("validated on the test set, which also chose the best epoch, so the test accuracy is too high")
        if "val" in whole:
            notes.append("data.validation=test leaves the images of val/ unused")
    elif "val" in whole:
        val = whole["val"]
        if data.folds:
            raise DataError("data.folds: val/ holds the validation images; leave data.folds out, or remove val/")
        if data.val_fraction != DataConfig.val_fraction:
            notes.append(f"data.val_fraction={data.val_fraction} is not used, since val/ holds the validation images")
    else:
        held_out = (
            splits.fold(train.labels, source.classes, data.folds, data.fold, data.split_seed)
            if data.folds
            else splits.hold_out(train.labels, data.val_fraction, data.split_seed)
        )
        val = replace(train, indices=np.flatnonzero(held_out))
        train = replace(train, indices=np.flatnonzero(~held_out))
    classes = source.classes
    if data.classes is not None:
        chosen = _chosen(data.classes, classes)
        classes = tuple(classes[i] for i in chosen)
        train, val, test = (split.of_classes(chosen) for split in (train, val, test))
    train, true_labels = _for_training(train, data, classes)
    if data.imbalance != "none":
        counts = train.counts(len(classes))
        notes.append(f"a class has between {counts.min():,} and {counts.max():,} training images")
    if true_labels is not None:
        share = (true_labels != train.labels)[train.indices].mean()
        notes.append(f"{100 * share:.1f} % of the training images have other labels than the data set's")
    left_out = {reason: len(names) for reason, names in source.left_out.items()}
    note = "; ".join(notes) or None
    return Dataset(
        data.name, classes, train, val, test, source.fingerprint, note, source.found_in, left_out, true_labels
    )


def _for_training(train: Split, data: DataConfig, classes: Sequence[str]) -> tuple[Split, np.ndarray | None]:
    """Return the training images as the config changes them, and their true labels if it changes labels."""
    rows, labels = train.indices, train.labels
    if data.imbalance != "none" and len(rows):
        rows = splits.imbalanced(rows, labels, classes, data.imbalance, data.imbalance_factor, data.split_seed)
    if data.train_size is not None:
        rows = splits.subset(rows, labels, data.train_size, data.split_seed)
    if not len(rows):
        raise DataError(f"data.val_fraction: {data.val_fraction} leaves no training images; lower it")
    given = labels
    if data.label_noise != "none":
        given = noise.noisy(labels, rows, classes, data.label_noise, data.label_noise_rate, data.split_seed)
    elif isinstance(data, CifarConfig) and data.labels_file:
        given = noise.from_file(
            folders.expanded(data.labels_file, "data.labels_file"), data.labels_key, labels, len(classes)
        )
    train = replace(train, indices=rows, labels=given)
    if data.sampling != "uniform":
        counts = np.maximum(train.counts(len(classes)), 1)  # of a class without images, none is drawn
        weights = (1 / counts if data.sampling == "balanced" else counts**-0.5)[given[rows]]
        train = replace(train, chances=weights / weights.sum())
    return train, None if given is labels else labels


def _chosen(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the numbers of these classes, in the order given."""
    for name in names:
        if name not in classes:
            raise DataError(f"data.classes: there is no class {name!r}{nearest(name, classes)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"data.classes: {list(names)} is not valid; give two or more different ones of {', '.join(classes)}"
        )
    return [classes.index(name) for name in names]


def _source(data: DataConfig, found_in: str | None) -> Source:
    root = folders.root(data.cache_dir)
    if isinstance(data, CifarConfig):
        return cifar.load(data.name, data.dir, root, data.download, found_in)
    if isinstance(data, ImagesConfig):
        return image_folders.load(data, root)
    assert isinstance(data, SyntheticConfig)  # the last of schema.DATA_SECTIONS
    numbers = (data.train_images, data.test_images)

    def draw() -> Source:
        train, test = (synthetic.draw(number, data.seed, split) for split, number in enumerate(numbers))
        return Source({"train": train, "test": test}, synthetic.CLASSES)

    return cache.load(root, "synthetic", [*numbers, data.seed, synthetic.VERSION], draw)
