"""The images that a run is tested on: its own test set, another data set of the same classes, CIFAR-10.1."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config import schema, settings
from cifar_research.data import datasets
from cifar_research.data.datasets import Dataset
from cifar_research.runtime import folders
from cifar_research.runtime.errors import DataError

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What, beside the images themselves, decides which of them are held out.
_SPLIT_KEYS = ("val_fraction", "validation", "split_seed", "classes", "test_fraction")
_OVERRIDE = re.compile(r"(data(\.\w+)*|allow_targets)=")


def is_override(word: str) -> bool:
    """Say whether a word of the command line is `data=…`, `data.key=…` or `allow_targets=…`."""
    return _OVERRIDE.match(word) is not None


def load(report: Mapping[str, Any], words: Sequence[str]) -> tuple[Dataset, str | None]:
    """Return the data to test a run on, and a name for it; None if its splits are those that the run was trained with.

    report: the run's; words: overrides of its data section, data=OPTION or data.key=value, and allow_targets=[…], which
    holds from then on. Another option than the run's begins with that option's defaults. Labels are by the run's order
    of the classes, whatever theirs.
    ConfigError for words that do not compose; DataError if the data cannot be had, or has other classes or another size
    than the run's.
    """
    section = settings.evaluation_data(report["config"], words)
    is_same = section.name == report["config"]["data"]["name"]
    data = datasets.load(section, report["data"].get("found_in") if is_same else None)
    classes = tuple(report["data"]["classes"])
    if len(data.classes) != len(classes):
        raise DataError(
            f"data: {data.name} has {len(data.classes)} classes, and the run was trained on {len(classes)}: "
            f"{_some(classes)}; give data of those classes"
        )
    if sorted(data.classes) != sorted(classes):
        raise DataError(
            f"data: {data.name} has the classes {_some(data.classes)}, and the run was trained on {_some(classes)}; "
            "give data of those classes"
        )
    data = _in_order(data, classes)
    size = schema.data_section(report["config"]["data"]).image_size
    if data.test.images.shape[1:] != (size, size, 3):
        found = " x ".join(map(str, data.test.images.shape[1:]))
        raise DataError(f"data: its images are {found}, and the run takes {size} x {size} x 3; set data.image_size")
    if not len(data.test):
        raise DataError(f"data: {data.name} has no test images; give data that has some")
    own = report["config"]["data"]
    is_own = data.fingerprint == report["data"]["fingerprint"] and all(
        own.get(key) == vars(section).get(key) for key in _SPLIT_KEYS
    )
    if is_own:
        return data, None
    return data, f"images_{Path(data.found_in).resolve().name}" if data.name == "images" else data.name


def _in_order(data: Dataset, classes: tuple[str, ...]) -> Dataset:
    """Return the data with its classes in this order."""
    if data.classes == classes:
        return data
    numbers = np.array([*(classes.index(name) for name in data.classes), -1])  # -1 stays what belongs to no class
    splits = {
        name: dataclasses.replace(split, labels=numbers[split.labels])
        for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
    }
    return dataclasses.replace(data, classes=classes, **splits)


def doubts(report: Mapping[str, Any], data: Dataset, *, is_own: bool) -> str | None:
    """Return why a run's score on data may be too high, as far as its report tells; None if nothing does."""
    config = report["config"]["data"]
    if config["name"] == data.name == "images" and report["data"]["fingerprint"] != data.fingerprint:
        return (
            "was trained on another split of a folder of images, or on another folder, and perhaps on some of those that "
            "are tested here"
        )
    return report["data"].get("note") if is_own and report["data"].get("note") != data.note else None


def cifar10_1(folder: str, classes: Sequence[str], image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2,000 new test images of CIFAR-10.1 v6, uint8 [N, 32, 32, 3], and labels int64 [N] (Recht et al. 2018).

    folder: holds cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy, as published. DataError if they are missing or
    damaged, or if a run of these classes and this image size does not know its own. Labels are by the order of classes.
    Nothing is unpickled.
    """
    if sorted(classes) != sorted(_CIFAR10):
        raise DataError(f"--cifar10-1: has the ten classes of CIFAR-10, and the run has {_some(classes)}; leave it out")
    if image_size != 32:
        raise DataError(
            f"--cifar10-1: its images are 32 x 32, and the run takes {image_size} x {image_size}; leave it out"
        )
    arrays = []
    for name in ("cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"):
        path = folders.expanded(folder, "--cifar10-1") / name
        try:
            arrays.append(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            raise DataError(f"--cifar10-1: there is no {path}; give the folder that holds the published file") from None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as an array ({error}); download it again") from error
    images, labels = arrays
    is_sound = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.shape == images.shape[:1]
    if not is_sound or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise DataError(
            f"{folder}: images {images.dtype} {list(images.shape)} and labels {labels.dtype} {list(labels.shape)} are "
            "not uint8 [N, 32, 32, 3] and integers [N]; download both files again"
        )
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{folder}: a label is {labels.min()} or {labels.max()}, and they go from 0 to 9")
    return images, np.array([list(classes).index(name) for name in _CIFAR10], np.int64)[labels]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
