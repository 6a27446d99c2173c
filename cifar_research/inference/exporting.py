"""Export a finished run's model, after verifying it against the run."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config.schema import data_section
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.inference import formats, prediction, trained
from cifar_research.inference.formats import FORMATS
from cifar_research.inference.trained import Classifier
from cifar_research.runtime import programs
from cifar_research.runtime.errors import DataError, RunError

TOLERANCE = 1e-4  # of probabilities
ACCURACY_TOLERANCE = 0.01  # of a quantized model
_VERIFIED, _SCORED, _CALIBRATED = 100, 2_000, 200  # images at most


class ExportError(ValueError):
    """A failed export, of which nothing was kept."""


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, H, W, C] to verify an export with, and others to calibrate with, if any."""

    name: str
    test: np.ndarray
    labels: np.ndarray | None = None
    calibration: np.ndarray | None = None


def export(
    run: Path | str,
    kind: str,
    quantize: bool = False,
    output: Path | None = None,
    allow_targets: Sequence[str] = (),
) -> Path:
    """Write the model of a completed run in the format `kind`; return the path.

    The export is kept only if it agrees with the run in float32. allow_targets: see trained.load. RunError for a user's
    error; ExportError if the export fails or differs from the run.
    """
    run = Path(os.path.expanduser(run))
    report = trained.read(run)
    target = _target(output or run / "export", kind, quantize)
    images = _images(report, quantize)
    classifier = trained.load(run, precision="float32", allow_targets=allow_targets)
    if (precision := classifier.report["config"]["training"]["precision"]) != "float32":
        console.note(f"The run computed in {precision}; the export computes in float32, on the same weights")
    prediction.note_uncalibrated(classifier)
    existing = next(parent for parent in target.parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=existing, prefix=f".{target.name}.") as temporary:
        path = Path(temporary) / target.name
        try:
            FORMATS[kind].write(formats.module(classifier), _metadata(classifier, quantize), images.calibration, path)
            verdict = (_verify_quantized if quantize else _verify)(FORMATS[kind].reload(path), classifier, images)
        except Exception as error:  # converters and runtimes raise many types
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
            raise ExportError(f"{target}: the export failed ({line}); nothing was written") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            os.replace(target, Path(temporary) / "before")
        os.replace(path, target)
    console.tell(verdict)
    return target


def _target(output: Path, kind: str, quantize: bool) -> Path:
    """Return the path to write; RunError for the format, missing packages or an existing file."""
    chosen = FORMATS[kind]
    name = chosen.quantized_name if quantize else chosen.name
    if name is None:
        raise RunError(f"--quantize: a {kind} cannot be quantized; choose --format litert or onnx")
    if output.exists() and not output.is_dir():
        raise RunError(f"--output: {output} is not a directory; choose another")
    if missing := [package for package in chosen.packages if importlib.util.find_spec(package) is None]:
        install = f"{programs.pip()} install 'cifar_research[export]'"
        raise RunError(f"--format {kind}: needs {', '.join(missing)}, which are not installed; {install}")
    target = output / name
    if target.is_dir() and not (target / "saved_model.pb").is_file():
        raise RunError(f"{target}: exists already, and is not a SavedModel; give another --output")
    return target


def _images(report: dict[str, Any], quantize: bool) -> Images:
    """Return the run's images, or noise if they cannot be loaded."""
    rng = np.random.default_rng(0)
    try:
        section = data_section(report["config"]["data"], download=False, cache_dir=None)
        data = datasets.load(section, report["data"]["found_in"])
        if data.fingerprint != report["data"]["fingerprint"]:
            raise DataError(f"{data.name}: the images are not the run's")
    except DataError as error:
        if quantize:
            raise RunError(
                f"--quantize: needs the run's images ({error}); restore them, or leave out --quantize"
            ) from error
        console.note(f"Verified on random images, since the run's cannot be loaded: {error}")
        size = trained.image_size(report)
        return Images("random images", rng.integers(0, 256, (_VERIFIED, size, size, 3), np.uint8))
    test = rng.permutation(data.test.indices)[:_SCORED]
    train = rng.permutation(data.train.indices)[: _CALIBRATED if quantize else 0]
    calibration = data.train.images[train] if quantize else None
    return Images("test images", data.test.images[test], data.test.labels[test], calibration)


def _verify(model: formats.Model, classifier: Classifier, images: Images) -> str:
    """Return the largest difference of probabilities as text; ExportError if too large."""
    few = images.test[:_VERIFIED]
    expected = classifier.probabilities(few)
    # Also a batch of one, since the batch size is open.
    differences = np.abs(np.concatenate([model(few) - expected, model(few[:1]) - expected[:1]]))
    largest = float(differences.max())
    if not largest <= TOLERANCE:  # also rejects nan
        raise ExportError(
            f"its probabilities differ from the run's by {largest:.2g} on {len(few)} {images.name}, more than {TOLERANCE:g}"
        )
    return f"Verified: probabilities differ by at most {largest:.1g} on {len(few)} {images.name}"


def _verify_quantized(model: formats.Model, classifier: Classifier, images: Images) -> str:
    """Return the change of accuracy as text; ExportError if too large."""
    num = len(images.test)
    predictions = np.concatenate([model(images.test[i : i + _VERIFIED]) for i in range(0, num, _VERIFIED)]).argmax(1)
    expected = classifier.probabilities(images.test).argmax(1)
    change = (predictions == images.labels).mean() - (expected == images.labels).mean()
    result = f"change of accuracy: {change:+.4f} on {num:,} {images.name}"
    if round(abs(change) * num) > ACCURACY_TOLERANCE * num:
        raise ExportError(f"{result}, more than {ACCURACY_TOLERANCE}")
    return f"Verified: {result}"


def _metadata(classifier: Classifier, quantize: bool) -> dict[str, Any]:
    report = classifier.report
    return {
        "classes": list(classifier.classes),
        "image_shape": list(classifier.image_shape),
        "input": "images: uint8 [N, H, W, C], RGB",
        "output": "probabilities: float32 [N, K]",
        "temperature": classifier.temperature,
        "quantized": quantize,
        "run": report["config"]["name"],
        "config_hash": report["config_hash"],
        "test_accuracy": report["test"]["accuracy"],
        "made_by": f"cifar_research {metadata.version('cifar_research')}",
    }
