"""CIFAR-10 and CIFAR-100: found in any of their published layouts, or downloaded, and read with suspicion.

Layouts, addresses and MD5 sums: https://www.cs.toronto.edu/~kriz/cifar.html; SHA-256 of the archives as in
`keras.datasets` and `tensorflow_datasets`; MD5 of the batches as in `torchvision.datasets`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.data import cache
from cifar_research.data.cache import Source
from cifar_research.data.download import fetch, hash_file
from cifar_research.runtime.errors import DataError

BASE_URL = "https://www.cs.toronto.edu/~kriz"
_PIXELS = 3 * 32 * 32
_MEMBER_BYTES = 1 << 28  # more than any published member has: a bound on what a hostile archive can unpack to


@dataclass(frozen=True)
class Layout:
    """One published form of a data set: a folder of files, and the archive that holds it."""

    folder: str
    archive: str
    sha256: str
    train: tuple[str, ...]
    test: str
    names: str
    md5: dict[str, str]


_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR100_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
LAYOUTS = {
    "cifar10": (
        Layout(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            "batches.meta",
            _CIFAR10_MD5,
        ),
        Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
            {},
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ("train",),
            "test",
            "meta",
            _CIFAR100_MD5,
        ),
        Layout(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            {},
        ),
    ),
}


_PLACES = ("*/*", "train/*/*")  # of images, as data=images takes them


def locate(
    name: str, data_dir: str | None, cache_root: Path, download: bool, found_in: str | None = None
) -> tuple[Layout, Path]:
    """Return where the data set is: (layout, its folder or archive), downloading the archive if nothing is there.

    `data_dir`, or else $CIFAR_DATA_DIR, is the only place looked at if it is given. Otherwise that is `found_in`, where
    the run found it before, if it is still there; then come `cache_root`/data, Keras's cache and the official address.
    """
    key, given = ("data.dir", data_dir) if data_dir else ("CIFAR_DATA_DIR", os.environ.get("CIFAR_DATA_DIR"))
    if given:
        roots = [cache.existing_folder(given, key)]
    elif found_in and Path(found_in).exists():
        roots = [folder_of(found_in)]
    else:
        roots = [cache_root / "data"]
        with contextlib.suppress(RuntimeError):  # without a home directory there is none
            roots.append(Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets")
    problems = []
    for root in roots:
        found, incomplete = _search(name, root)
        if found is not None:
            return found
        if root is roots[0] or not download:  # Keras's own unpacking, broken off, does not hinder a download
            problems += incomplete
    if problems:
        raise DataError(problems[0])
    places = " and ".join(map(str, roots))
    if found_in and not given:
        raise DataError(
            f"data.dir: this run found {name} in {found_in}, where it is no longer, and {places} have none; give "
            "data.dir=<folder>, or set CIFAR_DATA_DIR"
        )
    layout = LAYOUTS[name][0]
    if not download:
        raise DataError(
            f"{key if given else 'data.dir'}: no {name} in {places} (looked for "
            f"{', '.join(x.folder for x in LAYOUTS[name])} and their archives); give the folder that holds one of them, or "
            "set data.download=true"
        )
    if given and any(
        next(roots[0].glob(f"{place}.{kind}"), None) for place in _PLACES for kind in ("png", "jpg", "jpeg")
    ):
        raise DataError(f"{key}: {roots[0]} holds folders of images and no {name}; add data=images, or name another")
    archive = roots[0] / layout.archive
    # The address may be another one for a mirror; what comes is held against the published checksum all the same.
    fetch(f"{os.environ.get('CIFAR_BASE_URL', BASE_URL)}/{layout.archive}", archive, layout.sha256)
    return layout, archive


def folder_of(found_in: str) -> Path:
    """Return what to give as data.dir for a data set that was found in this folder or archive."""
    return Path(found_in) if Path(found_in).is_dir() else Path(found_in).parent


def _search(name: str, root: Path) -> tuple[tuple[Layout, Path] | None, list[str]]:
    """Return where in a folder the data set is, None if it is not whole; and what incomplete copies lack."""
    problems = []
    for layout in LAYOUTS[name]:
        nested = root / f"{layout.folder}-target" / layout.folder  # as Keras 3 unpacks
        for path in (root, root / layout.folder, nested):
            is_named = path == nested or layout.folder in (path.name, path.resolve().name)
            if not is_named or not path.is_dir():
                continue
            members = (*layout.train, layout.test, layout.names)
            missing = [name for name in members if not (path / name).is_file() or not (path / name).stat().st_size]
            if not missing:
                return (layout, path), []
            if path == root and len(missing) == len(members):
                continue  # a folder of that name to download to
            problems.append(f"data.dir: {path} is incomplete: missing or empty: {', '.join(missing)}; fetch it again")
        for path in (root / layout.archive, root / f"{layout.folder}.tar.gz"):
            if path.is_file():
                return (layout, path), []
    return None, problems


def load(name: str, data_dir: str | None, cache_root: Path, download: bool, found_in: str | None = None) -> Source:
    """Return the data set, memory-mapped; DataError if it is missing, damaged or cannot be fetched.

    found_in: see `locate`.
    """
    try:
        layout, path = locate(name, data_dir, cache_root, download, found_in)
        files = [path] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.is_file())
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        for file in files:  # before the cache is made, which names its own folder if a file cannot be read
            file.open("rb").close()
    except OSError as error:
        raise DataError(f"data.dir: {error.filename} cannot be read ({error.strerror}); give another one") from error
    source = cache.load(cache_root, name, [layout.folder, stats], lambda: _decode(name, layout, path))
    return dataclasses.replace(source, found_in=os.path.abspath(path))


def _decode(name: str, layout: Layout, path: Path) -> Source:
    read, note = _reader(layout, path)
    num_classes, is_fine = (10, False) if name == "cifar10" else (100, True)
    is_pickled = layout is LAYOUTS[name][0]

    def batch(member: str) -> tuple[np.ndarray, np.ndarray]:
        decode, where = _unpickle_batch if is_pickled else _split_rows, f"{path}/{member}"
        rows, labels = decode(read(member), where, is_fine)
        if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
            raise DataError(f"{where}: has labels outside of 0 to {num_classes - 1}; fetch the data set again")
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    parts = [batch(member) for member in layout.train]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    classes = _class_names(read(layout.names), is_pickled, is_fine, num_classes, f"{path}: {layout.names}")
    return Source(images, labels, *batch(layout.test), classes, note)


def _reader(layout: Layout, path: Path) -> tuple[Callable[[str], bytes], str | None]:
    """Return a function from a member's name to its bytes, and a note if these are not the published ones."""
    copy = "its checksums are not the published ones, so it is a modified copy: say so beside its results"
    if path.is_file():
        contents = _unpack(layout, path)
        is_published = hash_file(path) == layout.sha256
        return lambda member: contents[member], None if is_published else f"{path.name}: {copy}"

    def read(member: str) -> bytes:
        return (path / member).read_bytes()

    if not layout.md5:
        return read, f"{path.name}: unverified, since no checksums are published for the files of this layout"
    is_published = all(hashlib.md5(read(member)).hexdigest() == md5 for member, md5 in layout.md5.items())
    return read, None if is_published else f"{path.name}: {copy}"


def _unpack(layout: Layout, archive: Path) -> dict[str, bytes]:
    """Read the expected members of an archive into memory; nothing is written.

    One that would be dangerous to unpack is refused whole, since it is no published one.
    """
    wanted = {f"{layout.folder}/{member}": member for member in (*layout.train, layout.test, layout.names)}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if not (entry.isreg() or entry.isdir()) or entry.name.startswith("/") or ".." in entry.name.split("/"):
                    raise ValueError(f"{entry.name} is a link, a device or outside of its folder")
                member = wanted.get(entry.name.removeprefix("./"))
                if member is None or not entry.isreg():
                    continue
                if entry.size > _MEMBER_BYTES:
                    raise ValueError(f"{entry.name} claims {entry.size:,} bytes, more than any published file")
                contents[member] = tar.extractfile(entry).read()
        if missing := sorted(set(wanted.values()) - contents.keys()):
            raise ValueError(f"it has no {', '.join(missing)}")
    except Exception as error:  # a damaged archive may raise anything at all
        raise DataError(f"{archive}: is incomplete or damaged ({error}); remove it and fetch it again") from error
    return contents


def _split_rows(content: bytes, where: str, is_fine: bool) -> tuple[np.ndarray, np.ndarray]:
    """Take the raw layout apart: a row is the label, or the coarse and the fine one, and 3,072 pixels."""
    num_labels = 2 if is_fine else 1
    if not content or len(content) % (_PIXELS + num_labels):
        raise DataError(f"{where}: is cut short, at {len(content):,} bytes; fetch the data set again")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + num_labels)
    return rows[:, num_labels:], rows[:, num_labels - 1].astype(np.int64)


def _unpickle_batch(content: bytes, where: str, is_fine: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"fine_labels" if is_fine else b"labels"], np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            raise ValueError(f"its pixels are {pixels.dtype} {pixels.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle may raise anything at all
        raise DataError(f"{where}: is not a CIFAR batch ({error}); fetch the data set again") from error
    return pixels, labels


def _class_names(content: bytes, is_pickled: bool, is_fine: bool, num_classes: int, where: str) -> tuple[str, ...]:
    try:
        if is_pickled:
            meta = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            names = [name.decode() for name in meta[b"fine_label_names" if is_fine else b"label_names"]]
        else:
            names = [line.strip() for line in content.decode().splitlines() if line.strip()]
        if len(names) != num_classes:
            raise ValueError(f"{len(names)} instead of {num_classes}")
    except Exception as error:  # a damaged pickle may raise anything at all
        raise DataError(f"{where}: has no valid class names ({error!r}); fetch the data set again") from error
    return tuple(names)


class _Unpickler(pickle.Unpickler):
    """Admits plain types and numpy arrays: a pickle can call nothing but these, whatever it says."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how newer Pythons pickle bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which a data set has no use for") from None
