"""What a run leaves in its folder: history.csv and report.json, and the facts about the machine."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cifar_research.config import config_hash
from cifar_research.runtime import sealed
from cifar_research.runtime.errors import ReportError, WriteError

if TYPE_CHECKING:
    import keras
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.runtime.environment import Environment
    from cifar_research.training import loop, steps

HISTORY_COLUMNS = (
    "epoch", "step", "phase", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds",
    "images_per_second",
)  # fmt: skip
_INTEGERS = ("epoch", "step")
_PACKAGES = ("tensorflow", "keras", "numpy", "hydra-core", "omegaconf", "tensorboard", "cifar_research")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all, even if the machine goes down meanwhile.

    A text is written in UTF-8, whatever the locale, with `?` for the bytes of a file's name that are no text.
    WriteError, with the path and the bytes needed, if it cannot be written; what was there then stays.
    """
    temporary = None
    if isinstance(content, str):
        content = content.encode(errors="replace")
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are the owner's alone; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive, too
        finally:
            os.close(folder)
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{path}: cannot be written ({error.strerror}); it needs {len(content):,} bytes in a writable folder",
        ) from error
    finally:  # after an interrupt, too; after the rename there is nothing left
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def as_text(value: object) -> str:
    """Return a value as text that any encoding of Unicode takes, with `?` for bytes of a file's name that are no text."""
    return str(value).encode(errors="replace").decode()


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write history.csv, a row an epoch, and return its SHA-256; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def read_history(path: Path, sha256: str | None = None) -> list[dict[str, Any]]:
    """Read history.csv back; ReportError if it is damaged, or if its SHA-256 is given and is another."""

    def value(column: str, cell: str) -> Any:
        if column == "phase":
            return cell
        if cell == "":
            return None
        return int(cell) if column in _INTEGERS else float(cell)

    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is not the one that report.json speaks of")
        text = content.decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        # A file cut within its last number would still look whole.
        if tuple(header) != HISTORY_COLUMNS or not text.endswith("\n"):
            raise ValueError("its columns are not a history's, or its end is missing")
        return [{c: value(c, cell) for c, cell in zip(HISTORY_COLUMNS, row, strict=True)} for row in rows]
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from error
    except (ValueError, csv.Error) as error:
        raise ReportError(
            f"{path}: is damaged ({error}); the run's checkpoints hold the history, resume to rewrite it"
        ) from error


def gather(
    cfg: DictConfig,
    task: steps.Task,
    data: Dataset,
    environment: Environment,
    record: loop.Record,
    outcome: loop.Outcome,
    test: loop.Scores | None,
    seconds: dict[str, float | None],
    trained: Mapping[str, int],
) -> dict[str, Any]:
    """Return what report.json holds. `train` and `val` are those of the best epoch, `train` as measured in training.

    trained: how many parameters each phase trains. weights_sha256: of the weights that were tested, None of none.
    """
    import tensorflow as tf

    from cifar_research.models import classifier

    best = next((row for row in record.history if record.best and row["epoch"] == record.best["epoch"]), None)
    has_val = best is not None and best["val_loss"] is not None
    return {
        "status": outcome.status,
        "signal": outcome.signal,
        "config_hash": config_hash(cfg),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "seed": cfg.seed,
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "fingerprint": data.fingerprint,
            "found_in": data.found_in,
            "note": data.note,
            "left_out": dict(data.left_out),
            # What data.standardize takes out by channel, so that a model can be used without its data.
            "standardization": None
            if task.mean is None
            else {"mean": task.mean.tolist(), "deviation": task.deviation.tolist()},
        },
        "parameters": {
            "total": task.model.count_params(),
            "trainable": max(trained.values()),
            "trainable_by_phase": dict(trained),
        },
        "forward_flops": None if outcome.status == "stopped" else classifier.forward_flops(task.model),  # takes a moment
        "train": best and {"loss": best["loss"], "accuracy": best["accuracy"]},
        "val": {"loss": best["val_loss"], "accuracy": best["val_accuracy"]} if has_val else None,
        "test": test and {"loss": test.loss, "accuracy": test.accuracy},
        "weights_sha256": test and weights_sha256(task.model),
        "best_epoch": record.best and record.best["epoch"],
        "epochs": record.epoch,
        "steps": record.step,
        "images_per_second": steady_images_per_second(record.history),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "hardware": hardware([gpu.name for gpu in tf.config.list_physical_devices("GPU")])
        | {
            "device": environment.device,
            "deterministic": environment.deterministic,
            "memory_growth": environment.memory_growth,
        },
        "git": git(Path(__file__).parent),
    }


def steady_images_per_second(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median over the epochs, None before the first."""
    speeds = [row["images_per_second"] for row in history if row["images_per_second"]]
    return statistics.median(speeds) if speeds else None


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.json; a number that is not finite becomes null, since JSON has none."""
    atomic_write(path, sealed.dumps(_finite(report)))


def read_report(path: Path) -> dict[str, Any] | None:
    """Read report.json, None if there is none; ReportError if it is damaged."""
    try:
        content = path.read_bytes()
        # One of before there were checksums has neither key; no single bit takes both away.
        is_sealed = b'"checksum": ' in content or b'"weights_sha256": ' in content
        report = sealed.loads(content) if is_sealed else json.loads(content)
        if not isinstance(report, dict) or report.get("status") not in ("completed", "diverged", "pruned", "stopped"):
            raise ValueError("it has no status")
        if not isinstance(report.get("config"), dict) or not isinstance(report["config"].get("augmentation"), dict):
            raise ValueError("it has no config")
        return report
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); choose another hydra.run.dir") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"{path}: is damaged ({error}); delete it and run again, the checkpoints beside it then give a new one"
        ) from error


def weights_sha256(model: keras.Model) -> str:
    """Return a digest of all weights of a model, by their paths, types, shapes and bytes."""
    digest = hashlib.sha256()
    for weight in sorted(model.weights, key=lambda weight: weight.path):
        value = weight.value.numpy()
        digest.update(json.dumps([weight.path, str(value.dtype), value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def hardware(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Return the machine's processor, cores, memory in bytes, and the GPUs given."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
        model = next((name.strip() for key, _, name in lines if key.strip() == "model name"), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_bytes": memory, "gpus": list(gpus)}


def git(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that `folder` belongs to and whether it has changes; None if none."""

    def ask(*words: str) -> str:
        # Without locks: the jobs of a sweep must not wait for each other.
        command = ["git", "--no-optional-locks", *words]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=5, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie in the virtual environment of a checkout that knows nothing of it.
        ask("ls-files", "--error-unmatch", ".")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def peak_memory_bytes() -> int:
    """Return the most memory this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
