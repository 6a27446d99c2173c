"""Checkpoints: one file each, written atomically and verified by a checksum."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.runtime.errors import CheckpointError
from cifar_research.runtime.files import atomic_write

MAGIC = b"cifar_research checkpoint 2\n"
_DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """arrays: all variables by name; meta: the rest of the run's state, as JSON values."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: a magic line, the payload's SHA-256, a numpy .npz payload."""
    buffer = io.BytesIO()
    meta = np.frombuffer(json.dumps(checkpoint.meta).encode(), np.uint8)
    arrays = {**checkpoint.arrays, "meta.json": meta}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # a name might equal its other parameter, a bool
    payload = buffer.getvalue()
    atomic_write(path, MAGIC + hashlib.sha256(payload).digest() + payload)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; CheckpointError if it is missing, damaged or not a checkpoint."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    begin = len(MAGIC) + _DIGEST_BYTES
    if not content.startswith(MAGIC) or hashlib.sha256(content[begin:]).digest() != content[len(MAGIC) : begin]:
        raise CheckpointError(f"{path}: is damaged, or not a checkpoint of this version")
    try:
        with np.load(io.BytesIO(content[begin:]), allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        meta = json.loads(loaded.pop("meta.json").tobytes())
        if not isinstance(meta, dict):
            raise ValueError("it holds no state")
        return Checkpoint(loaded, meta)
    except Exception as error:  # a forged file may raise any kind
        raise CheckpointError(f"{path}: is damaged ({error!r})") from error


def _best_of(path: Path) -> int | None:
    """Return the step of the best weights, without reading the arrays."""
    with zipfile.ZipFile(path) as archive, archive.open("meta.json.npy") as member:
        best = json.loads(np.lib.format.read_array(member, allow_pickle=False).tobytes()).get("best")
    return best and best["step"]


class Checkpoints:
    """The checkpoints of a run: the latest steps, and the best that they name.

    `step-N.ckpt` is all that a run needs to continue. Its meta["best"] names the step of the best weights by validation,
    whose checkpoint is kept, too.
    keep: how many of the latest steps are kept; None is two, and one by `end`.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write the state after `step` updates, then delete files that no kept checkpoint needs.

        Raises FloatingPointError if a weight is not finite, so that the last good state is kept.
        """
        for name, array in checkpoint.arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} is not finite at step {step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.path(step), checkpoint)
        # Later steps must be damaged: the run would have continued from them.
        for path in self._steps():
            if path > self.path(step):
                path.unlink()
        self._prune(self.keep or 2)  # two, so that one may be damaged

    def end(self) -> None:
        """Delete what a run needs only while it trains."""
        self._prune(self.keep or 1)

    def _prune(self, keep: int) -> None:
        """Keep the latest steps and the best that they name; delete the others."""
        latest = self._steps()[-keep:]
        try:
            needed = {self.path(best) for path in latest if (best := _best_of(path)) is not None}
        except Exception:  # a damaged archive may raise any kind
            return  # keep all: the damaged file may name any of them
        for path in self._steps()[:-keep]:
            if path not in needed:
                path.unlink()

    def latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint with intact best weights; None if none was written.

        Logs a warning for each damaged one. Raises CheckpointError if all are damaged.
        """
        problems = []
        for path in reversed(self._steps()):
            try:
                checkpoint = read(path)
                if best := checkpoint.meta.get("best"):
                    read(self.path(best["step"]))
            except CheckpointError as error:
                problems.append(str(error))
                continue
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"{path}: is damaged (its best weights cannot be read: {error!r})")
                continue
            for problem in problems:
                log.warning("%s; continuing from %s", problem, path.name)
            return checkpoint
        if problems:
            raise CheckpointError(
                "No checkpoint of this run can be used: " + "; ".join(problems) + ". Restore one from a backup, or "
                f"start over in another hydra.run.dir; nothing in {self.folder} was changed"
            )
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.ckpt"))
