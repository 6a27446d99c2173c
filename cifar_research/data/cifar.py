"""CIFAR-10 and CIFAR-100: find one of the published layouts or download it, and decode it.

Layouts, addresses and MD5 sums: https://www.cs.toronto.edu/~kriz/cifar.html. SHA-256 of archives: as in
`keras.datasets` and `tensorflow_datasets`. MD5 of batches: as in `torchvision.datasets`.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cifar_research.data import cache
from cifar_research.data.cache import Labelled, Source
from cifar_research.data.download import fetch, hash_file
from cifar_research.data.unpickling import PlainUnpickler
from cifar_research.runtime.errors import DataError

BASE_URL = "https://www.cs.toronto.edu/~kriz"
_PIXELS = 3 * 32 * 32
_MEMBER_BYTES = 1 << 28  # above any published member; limits what a hostile archive can unpack


@dataclass(frozen=True)
class Layout:
    """A published form of a data set: a folder of files, and the archive that contains it.

    names: the file of class names. md5: of each file of training images, then of the test images; None where none is
    published, which is the case for files that are not pickles.
    """

    folder: str
    archive: str
    sha256: str
    names: str
    md5: Mapping[str, str | None]

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.md5, self.names)

    @property
    def is_pickled(self) -> bool:
        return None not in self.md5.values()


_CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR100 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
LAYOUTS = {
    "cifar10": (
        Layout(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "batches.meta",
            _CIFAR10,
        ),
        Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            "batches.meta.txt",
            dict.fromkeys(f"{member}.bin" for member in _CIFAR10),
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            "meta",
            _CIFAR100,
        ),
        Layout(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            "fine_label_names.txt",
            dict.fromkeys(f"{member}.bin" for member in _CIFAR100),
        ),
    ),
}


def locate(
    name: str, data_dir: str | None, cache_root: Path, download: bool, found_in: str | None = None
) -> tuple[Layout, Path]:
    """Return the data set's layout and its folder or archive, which is downloaded if missing.

    If `data_dir`, or else $CIFAR_DATA_DIR, is given, only that folder is searched. Otherwise `found_in` is used if it
    still exists; then `cache_root`/data, Keras's cache and the official address are tried. DataError if all fail.
    """
    key, given = ("data.dir", data_dir) if data_dir else ("CIFAR_DATA_DIR", os.environ.get("CIFAR_DATA_DIR"))
    if given:
        roots = [cache.existing_folder(given, key)]
    elif found_in and Path(found_in).exists():
        roots = [folder_of(found_in)]
    else:
        keras_home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
        roots = [cache_root / "data", Path(keras_home, "datasets")]
    for root in roots:
        incomplete = []
        for layout, path in _candidates(name, root):
            lacking = [] if path.is_file() else [member for member in layout.members if _is_empty(path / member)]
            if not lacking:
                return layout, path
            # The root may be an empty folder of that name, to download to.
            if path != root or len(lacking) < len(layout.members):
                incomplete.append(f"{path} is incomplete: missing or empty: {', '.join(lacking)}")
        if incomplete and (root == roots[0] or not download):  # Keras may have been interrupted while unpacking
            raise DataError(f"data.dir: {incomplete[0]}; download it again")
    if not download or (found_in and not given):
        layouts = ", ".join(layout.folder for layout in LAYOUTS[name])
        raise DataError(
            f"{key if given else 'data.dir'}: no {name} in {' and '.join(map(str, roots))} (looked for {layouts} and their "
            f"archives); give the folder that holds one of them{'' if download else ', or set data.download=true'}"
        )
    files = (path for pattern in ("*/*", "train/*/*") for path in roots[0].glob(pattern))
    if given and any(path.suffix in (".png", ".jpg", ".jpeg") for path in files):
        raise DataError(
            f"{key}: {roots[0]} holds folders of images, not {name}; add data=images, or give another folder"
        )
    layout = LAYOUTS[name][0]
    archive = roots[0] / layout.archive
    # Files of a mirror are verified with the published checksum too.
    fetch(f"{os.environ.get('CIFAR_BASE_URL', BASE_URL)}/{layout.archive}", archive, layout.sha256)
    return layout, archive


def folder_of(found_in: str) -> Path:
    """Return the data.dir for a data set that was found in this folder or archive."""
    return Path(found_in) if Path(found_in).is_dir() else Path(found_in).parent


def _candidates(name: str, root: Path) -> Iterator[tuple[Layout, Path]]:
    """Yield the folders and archives below a root that may contain the data set."""
    for layout in LAYOUTS[name]:
        if layout.folder in (root.name, root.resolve().name):
            yield layout, root
        unpacked = root / f"{layout.folder}-target" / layout.folder  # by Keras 3
        yield from ((layout, path) for path in (root / layout.folder, unpacked) if path.is_dir())
        archives = root / layout.archive, root / f"{layout.folder}.tar.gz"
        yield from ((layout, path) for path in archives if path.is_file())


def _is_empty(path: Path) -> bool:
    return not path.is_file() or not path.stat().st_size


def load(name: str, data_dir: str | None, cache_root: Path, download: bool, found_in: str | None = None) -> Source:
    """Return the data set, memory-mapped; DataError if it is missing, damaged or unreadable."""
    try:
        layout, path = locate(name, data_dir, cache_root, download, found_in)
        files = [path] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.is_file())
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        for file in files:  # here, since an error while the cache is written names the cache
            file.open("rb").close()
    except OSError as error:
        raise DataError(f"data.dir: {error.filename} cannot be read ({error.strerror}); give another folder") from error
    source = cache.load(cache_root, name, [layout.folder, stats], lambda: _decode(name, layout, path))
    return replace(source, found_in=os.path.abspath(path))


def _decode(name: str, layout: Layout, path: Path) -> Source:
    contents = _unpack(layout, path) if path.is_file() else {m: (path / m).read_bytes() for m in layout.members}
    num_classes = 10 if name == "cifar10" else 100
    parse_batch, parse_names = (_unpickle_batch, _unpickle_names) if layout.is_pickled else (_split_rows, _split_names)
    *train, test = (parsed(parse_batch, contents[member], f"{path}/{member}", num_classes) for member in layout.md5)
    images, labels = zip(*train, strict=True)
    splits = {"train": (np.concatenate(images), np.concatenate(labels)), "test": test}
    classes = parsed(parse_names, contents[layout.names], f"{path}/{layout.names}", num_classes)
    return Source(splits, classes, _note(layout, path, contents))


def _note(layout: Layout, path: Path, contents: dict[str, bytes]) -> str | None:
    """Return a caveat to show beside results if the files are not the published ones."""
    if path.is_dir() and not layout.is_pickled:
        return f"{path.name}: unverified, since no checksums are published for the files of this layout"
    if path.is_file() and hash_file(path) == layout.sha256:
        return None
    if path.is_dir() and layout.md5 == {member: hashlib.md5(contents[member]).hexdigest() for member in layout.md5}:
        return None
    return (
        f"{path.name}: its checksums are not the published ones, so the images are a modified copy; mention this wherever you "
        "show the results"
    )


def _unpack(layout: Layout, archive: Path) -> dict[str, bytes]:
    """Return the expected members of an archive by name; DataError if a member is unsafe."""
    wanted = {f"{layout.folder}/{member}": member for member in layout.members}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if not (entry.isreg() or entry.isdir()) or entry.name.startswith("/") or ".." in entry.name.split("/"):
                    raise ValueError(f"{entry.name} is a link, a device or outside of its folder")
                member, file = wanted.get(entry.name.removeprefix("./")), tar.extractfile(entry)
                if member is None or file is None:  # None: a folder
                    continue
                if entry.size > _MEMBER_BYTES:
                    raise ValueError(f"{entry.name} claims {entry.size:,} bytes, more than any published file")
                contents[member] = file.read()
        if missing := sorted(set(wanted.values()) - contents.keys()):
            raise ValueError(f"it has no {', '.join(missing)}")
    except Exception as error:  # a damaged archive may raise any type
        raise DataError(f"{archive}: is incomplete or damaged ({error}); remove it and download it again") from error
    return contents


def parsed(parse: Callable[[bytes, int], Any], content: bytes, path: str, num_classes: int) -> Any:
    """Return a file's content as parsed by `parse`; DataError names the path if it is damaged."""
    try:
        return parse(content, num_classes)
    except Exception as error:  # a damaged pickle may raise any type
        raise DataError(f"{path}: is damaged ({error}); download the data set again") from error


def _split_rows(content: bytes, num_classes: int) -> Labelled:
    """Return images and labels of rows: the label, or coarse and fine label, then the pixels."""
    num_labels = 2 if num_classes == 100 else 1
    rows = np.frombuffer(content, np.uint8).reshape(-1, num_labels + _PIXELS)
    return _checked(rows[:, num_labels:], rows[:, num_labels - 1], num_classes)


def _unpickle_batch(content: bytes, num_classes: int) -> Labelled:
    batch = PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    return _checked(np.asarray(batch[b"data"]), batch[b"fine_labels" if num_classes == 100 else b"labels"], num_classes)


def _checked(pixels: np.ndarray, labels: ArrayLike, num_classes: int) -> Labelled:
    labels = np.asarray(labels, np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise ValueError(f"its pixels are {pixels.dtype} {pixels.shape} for {len(labels)} labels")
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"it has labels outside of 0 to {num_classes - 1}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _unpickle_names(content: bytes, num_classes: int) -> tuple[str, ...]:
    meta = PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    names = meta[b"fine_label_names" if num_classes == 100 else b"label_names"]
    return _split_names(b"\n".join(names), num_classes)


def _split_names(content: bytes, num_classes: int) -> tuple[str, ...]:
    names = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    if len(names) != num_classes:
        raise ValueError(f"it has {len(names)} class names instead of {num_classes}")
    return names
