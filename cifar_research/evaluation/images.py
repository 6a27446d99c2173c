"""Images to test a run on: its own test set, other data of the same classes, CIFAR-10.1."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config.overrides import without_sweeps
from cifar_research.config.settings import evaluation_data
from cifar_research.data import datasets, image_files
from cifar_research.data.datasets import Dataset
from cifar_research.inference.trained import image_size
from cifar_research.runtime import folders
from cifar_research.runtime.errors import ConfigError, DataError

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Besides the images, these keys decide the splits.
SPLIT_KEYS = ("val_fraction", "validation", "split_seed", "folds", "fold", "classes", "test_fraction")


def is_override(word: str) -> bool:
    """Return whether an argument is `data=…`, `data.key=…` or `allow_targets=…`."""
    return re.match(r"(data(\.\w+)*|allow_targets)=", word) is not None


def load(report: dict[str, Any], overrides: Sequence[str]) -> tuple[Dataset, str | None]:
    """Return the data to test a run on, and its name; None for the run's own splits.

    report: the run's; overrides: data=OPTION, data.key=value and allow_targets=[…]. Another option than the run's
    starts from its own defaults. Labels are in the run's order of classes.
    ConfigError for invalid overrides. DataError if the data are missing, or have other classes or another image size.
    """
    for word in overrides:
        if not is_override(word):
            raise ConfigError(f"{word}: is not a key of the data; leave it out")
        if word not in without_sweeps([word]):
            raise ConfigError(f"{word}: has several values; give one")
    own = report["config"]["data"]
    section = evaluation_data(report["config"], overrides)
    data = datasets.load(section, report["data"].get("found_in") if section.name == own["name"] else None)
    classes = tuple(report["data"]["classes"])
    if sorted(data.classes) != sorted(classes):
        raise DataError(
            f"data: {data.name} has {len(data.classes)} classes ({image_files.first(data.classes, 10)}), and the run was "
            f"trained on {len(classes)} ({image_files.first(classes, 10)}); give data of those classes"
        )
    size, shape = image_size(report), data.test.images.shape[1:]
    if shape != (size, size, 3):
        raise DataError(f"data: its images are {shape}, and the run takes {(size, size, 3)}; set data.image_size")
    if not len(data.test):
        raise DataError(f"data: {data.name} has no test images; give data with test images")
    order = [data.classes.index(name) for name in classes]
    train, val, test = (split.of_classes(order) for split in (data.train, data.val, data.test))
    data = dataclasses.replace(data, classes=classes, train=train, val=val, test=test)
    has_own_splits = all(own.get(key) == getattr(section, key, None) for key in SPLIT_KEYS)
    if has_own_splits and data.fingerprint == report["data"]["fingerprint"]:
        return data, None
    if data.name != "images" or data.found_in is None:
        return data, data.name
    return data, f"images_{Path(data.found_in).resolve().name}"


def description(reports: Mapping[Path, Mapping[str, Any]], data: Dataset, *, is_own: bool) -> dict[str, Any]:
    """Return the data as written with results; note: also why a run's score on it may be too high."""
    texts = [data.note] if data.note else []
    for run, report in reports.items():
        of_training = report["data"]
        if report["config"]["data"]["name"] == data.name == "images" and of_training["fingerprint"] != data.fingerprint:
            texts.append(f"{run}: was trained on another split or folder, perhaps also on images that are tested here")
        elif is_own and of_training.get("note") not in (None, data.note):
            texts.append(f"{run}: {of_training['note']}")
    note = "; ".join(texts) or None
    return {"name": data.name, "fingerprint": data.fingerprint, "note": note, "is_own": is_own}


def cifar10_1(folder: str, classes: Sequence[str], size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return CIFAR-10.1 v6, images uint8 [2000, 32, 32, 3] and labels int64 [2000].

    Source: Recht et al. 2018. folder: with cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy, as published; nothing is
    unpickled. classes: the order of the labels. DataError if files are missing or damaged, or do not suit the run.
    """
    if sorted(classes) != sorted(_CIFAR10) or size != 32:
        raise DataError(
            "--cifar10-1: has the ten classes of CIFAR-10 and images of 32 x 32, and the run has "
            f"{image_files.first(classes, 10)} and {size} x {size}; remove it"
        )
    paths = [folders.expanded(folder, "--cifar10-1") / f"cifar10.1_v6_{name}.npy" for name in ("data", "labels")]
    try:
        images, labels = (np.load(path, allow_pickle=False) for path in paths)
        is_whole = (
            images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.shape == images.shape[:1] != (0,)
        )
        if not is_whole or not np.isin(labels, range(10)).all():
            raise ValueError("images of 32 x 32 pixels with labels from 0 to 9 are expected")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"--cifar10-1: {folder} does not hold the published files ({error}); replace them") from error
    return images, np.array([classes.index(name) for name in _CIFAR10])[labels.astype(int)]
