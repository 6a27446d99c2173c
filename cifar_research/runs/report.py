"""A run's history.csv, report.json and overrides, and facts about the machine."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cifar_research.config.schema import METRICS
from cifar_research.runtime import files
from cifar_research.runtime.errors import ConfigError, ReportError
from cifar_research.runtime.files import atomic_write

if TYPE_CHECKING:
    import keras


HISTORY_COLUMNS = (
    "epoch", "step", "phase", "learning_rate", "loss", "accuracy", *(f"val_{name}" for name in METRICS),
    "seconds", "images_per_second",
)  # fmt: skip
_KINDS: dict[str, type] = {"epoch": int, "step": int, "phase": str}  # of other columns: float
_PACKAGES = ("tensorflow", "keras", "numpy", "hydra-core", "omegaconf", "tensorboard", "cifar_research")


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write history.csv, one row an epoch, None as an empty cell; return its SHA-256."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def read_history(path: Path, sha256: str | None = None) -> list[dict[str, Any]]:
    """Read history.csv; ReportError if it is damaged or does not match the SHA-256."""
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is not the history of this report.json")
        text = content.decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        # A file cut within its last number would still parse.
        if tuple(header) != HISTORY_COLUMNS or not text.endswith("\n"):
            raise ValueError("its columns are not a history's, or its end is missing")
        kinds = [_KINDS.get(column, float) for column in HISTORY_COLUMNS]
        return [
            {
                column: kind(cell) if cell else None
                for column, kind, cell in zip(HISTORY_COLUMNS, kinds, row, strict=True)
            }
            for row in rows
        ]
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from error
    except (ValueError, csv.Error) as error:
        raise ReportError(
            f"{path}: is damaged ({error}); the run's checkpoints hold the history, resume to rewrite it"
        ) from error


def steady_images_per_second(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the speed over the steps of all phases, by each phase's median over its epochs; None before the first."""
    phases: dict[str, list[float]] = {}
    for row in history:
        if row["images_per_second"]:
            phases.setdefault(row["phase"], []).append(row["images_per_second"])
    seconds = sum(len(speeds) / statistics.median(speeds) for speeds in phases.values())
    return sum(map(len, phases.values())) / seconds if seconds else None


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.json; numbers that are not finite become null, since JSON has none."""
    finite = json.loads(json.dumps(report), parse_constant=lambda name: None)
    atomic_write(path, files.dumps(finite))


def read_report(path: Path) -> dict[str, Any] | None:
    """Read report.json; None if it is missing, ReportError if it is damaged."""
    try:
        report = files.loads(path.read_bytes())
        if report.get("status") not in ("completed", "diverged", "pruned", "stopped"):
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


def read_if_intact(path: Path) -> dict[str, Any] | None:
    """Read report.json; None if it is missing or damaged."""
    with contextlib.suppress(ReportError):
        return read_report(path)
    return None


def read_overrides(folder: Path) -> list[str]:
    """Return a run's overrides and search path; ConfigError if they cannot be read."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        overrides = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
            raise TypeError
        # Hydra stores its own overrides, such as the search path, in another file.
        path = path.with_name("hydra.yaml")
        of_hydra = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["hydra"]
        return overrides + [word for word in of_hydra if word.startswith("hydra.searchpath=")]
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder}: is not the folder of a run or a sweep; give one that a run or a sweep names at its end"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: is damaged; give the run's whole command again, with hydra.run.dir={folder}"
        ) from error


def weights_sha256(model: keras.Model) -> str:
    """Return a digest of a model's weights: paths, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for weight in sorted(model.weights, key=lambda weight: weight.path):
        value = weight.value.numpy()
        digest.update(json.dumps([weight.path, str(value.dtype), value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    versions_by_package = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions_by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions_by_package[package] = "unknown"
    return versions_by_package


def hardware(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Return the processor, cores, memory in bytes, and the given GPUs."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
        model = next((name.strip() for key, _, name in lines if key.strip() == "model name"), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_bytes": memory, "gpus": list(gpus)}


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in kilobytes except on macOS
