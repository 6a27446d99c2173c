"""cifar-export: a finished run's model as a SavedModel, LiteRT or ONNX file, which needs nothing of this package."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from cifar_research import predict
from cifar_research.data import datasets, image_files, images
from cifar_research.display import console
from cifar_research.inference import trained
from cifar_research.inference.formats import FORMATS, Format, Model, module
from cifar_research.runtime import programs
from cifar_research.runtime.errors import DataError, ImageError, RunError

if TYPE_CHECKING:
    from cifar_research.inference.trained import Classifier

TOLERANCE = 1e-4  # of probabilities
ACCURACY_TOLERANCE = 0.01  # of a quantized model
_VERIFIED, _SCORED, _CALIBRATED = 100, 2_000, 200  # images at the most


class ExportError(ValueError):
    """An export that failed, of which nothing was kept, in a sentence."""


@dataclass(frozen=True)
class Images:
    """What an export is held against. name: of what they are; test: uint8 [N, H, W, C]; labels: int [N], or None.

    calibration: uint8 [N, H, W, C], others than those of test; None if there are none.
    """

    name: str
    test: np.ndarray
    labels: np.ndarray | None
    calibration: np.ndarray | None


@console.command
def main() -> None:
    """The command line. Exit codes: 0 done, 1 the export failed or is not what the run is, 2 a user's mistake."""
    parser = argparse.ArgumentParser(prog="cifar-export", description="Export the model of a finished run.")
    parser.add_argument("run", type=Path, help="folder of a completed run")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--quantize", action="store_true", help="to 8 bits, calibrated on training images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write into (default: <run>/export)")
    parser.add_argument(
        "--images", metavar="FOLDER", help="images to verify with, and to calibrate, instead of the run's own data set"
    )
    given = parser.parse_args()
    try:
        path = export(given.run, given.format, given.quantize, given.output, given.images)
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        console.tell(f"{path}  {size:,} bytes")
    except ExportError as error:
        console.error(str(error))
        sys.exit(1)
    except RunError as error:
        console.error(str(error))
        sys.exit(2)


def export(
    run: Path | str, kind: str, quantize: bool = False, output: Path | None = None, folder: str | None = None
) -> Path:
    """Write the model of a completed run as a file or folder of the format `kind`, and return where it is.

    It takes images uint8 [N, H, W, C] and gives probabilities float32 [N, K]. It is held against the run's own float32
    computation before it gets its name. folder: of images to do that with, instead of the run's data set.
    RunError if that cannot be; ExportError if it fails, or is not what the run is.
    """
    run = Path(os.path.expanduser(run))
    found, chosen = trained.read(run), FORMATS[kind]
    _check(kind, chosen, quantize, output)
    held_against = _images(found, folder, quantize)
    target = (output or run / "export") / (chosen.quantized_name if quantize else chosen.name)
    if target.is_dir() and not (target / "saved_model.pb").is_file():
        raise RunError(f"{target}: is there already, and is no SavedModel; give another --output")
    classifier = trained.load(run, precision="float32")
    if (precision := classifier.config.training.precision) != "float32":
        console.note(f"The run computed in {precision}; the export computes in float32, on the same weights")
    predict.note_uncalibrated(classifier, run)
    missing = [place for place in target.parents if not place.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        made = temporary / target.name
        calibration = held_against.calibration if quantize else None
        try:
            chosen.write(module(classifier), _metadata(classifier, quantize), made, calibration)
            model = chosen.open(made)
            verdict = _verify(model, classifier, held_against, quantize)
        except ExportError:
            raise
        except OSError as error:
            raise ExportError(f"{target}: cannot be written ({error.strerror or error}); nothing was kept") from error
        except Exception as error:  # converters and runtimes raise many kinds
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(f"{target}: {kind} does not take this model ({line[:300]}); nothing was kept") from error
        if target.is_dir():
            os.replace(target, temporary / "before")
        os.replace(made, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for place in () if target.exists() else missing:
            with contextlib.suppress(OSError):
                place.rmdir()
    console.tell(verdict)
    return target


def _check(kind: str, chosen: Format, quantize: bool, output: Path | None) -> None:
    if quantize and chosen.quantized_name is None:
        raise RunError(f"--quantize: a {kind} has no quantized form; choose --format litert or onnx")
    if output is not None and output.exists() and not output.is_dir():
        raise RunError(f"--output: {output} is no folder; give one, which is made if it is missing")
    if missing := [package for package in chosen.packages if importlib.util.find_spec(package) is None]:
        raise RunError(
            f"--format {kind}: needs {', '.join(missing)}, which are not installed; {programs.pip()} install "
            "'cifar_research[export]'"
        )


def _images(found: dict[str, Any], folder: str | None, quantize: bool) -> Images:
    """Return the images to verify with: the run's, or those of a folder, or noise if there are none."""
    size = OmegaConf.select(OmegaConf.create(found["config"]), "data.image_size") or 32
    rng = np.random.default_rng(0)
    if folder is not None:
        return _of_folder(folder, size, rng, quantize)
    try:
        section = OmegaConf.create({**found["config"]["data"], "download": False, "cache_dir": None})
        data = datasets.load(section, found["data"]["found_in"])
        if data.fingerprint != found["data"]["fingerprint"]:
            raise DataError(f"{data.name}: these are other images than the run's")
    except DataError as error:
        if quantize:
            raise RunError(
                f"--quantize: needs images to calibrate, and the run's are not to be had ({error}); give --images FOLDER"
            ) from error
        console.note(f"Verified on random images, since the run's are not to be had: {error}")
        noise = rng.integers(0, 256, (_VERIFIED, size, size, 3), np.uint8)
        return Images("random images", noise, None, None)
    test, train = (
        rng.permutation(split.indices)[:most] for split, most in ((data.test, _SCORED), (data.train, _CALIBRATED))
    )
    return Images("test images", data.test.images[test], data.test.labels[test], data.train.images[train])


def _of_folder(folder: str, size: int, rng: np.random.Generator, quantize: bool) -> Images:
    files, problems, left_out = predict.find([folder], [])
    if left_out:
        console.note(f"--images: {image_files.summary(len(files), left_out)}")
    if problems:
        raise RunError(f"--images: {problems[0]}")
    if quantize and len(files) < _CALIBRATED:
        raise RunError(
            f"--images: {folder} holds {len(files)} images, and --quantize needs {_CALIBRATED}, half to calibrate and "
            "half to verify; give more"
        )
    files = [files[i] for i in rng.permutation(len(files))[: _CALIBRATED + _SCORED]]
    with images.without_warnings():
        results = [images.decoded_or_error(file, size) for file in files]
    good = [result for result in results if not isinstance(result, ImageError)]
    for error in results:
        if isinstance(error, ImageError):
            console.note(f"--images: {error}; it is left out")
    if not good:
        raise RunError(f"--images: {folder} has no image that can be read; give another folder")
    decoded = np.stack(good)
    half = min(len(good) // 2, _CALIBRATED) if quantize else 0
    return Images(f"images of {folder}", decoded[half:], None, decoded[:half])


def _verify(model: Model, classifier: Classifier, held_against: Images, quantize: bool) -> str:
    """Say how near the exported model is to the classifier; ExportError if not near enough."""
    few = held_against.test[:_VERIFIED]
    found = _checked(model(few), len(few), classifier)
    alone = _checked(model(few[:1]), 1, classifier)  # in another batch size
    if not quantize:
        expected = classifier.probabilities(few)
        largest = float(max(abs(found - expected).max(), abs(alone - expected[:1]).max()))
        if not largest <= TOLERANCE:  # nan is not
            raise ExportError(
                f"The exported model's probabilities differ from the run's by {largest:.2g} on {len(few)} "
                f"{held_against.name}, and {TOLERANCE:g} is allowed; nothing was kept"
            )
        return f"Verified: probabilities differ by {largest:.1g} at the most on {len(few)} {held_against.name}"
    batches = range(0, len(held_against.test), _VERIFIED)
    ours = np.concatenate([model(held_against.test[i : i + _VERIFIED]) for i in batches]).argmax(1)
    theirs = classifier.probabilities(held_against.test).argmax(1)
    labels = held_against.labels
    if labels is None:  # no more can be lost than is changed
        what, change = "share of other predictions", (ours != theirs).mean()
    else:
        what, change = "change of accuracy", (ours == labels).mean() - (theirs == labels).mean()
    told = f"{what}: {change:+.4f} on {len(ours):,} {held_against.name}"
    if round(abs(change) * len(ours)) > ACCURACY_TOLERANCE * len(ours):
        raise ExportError(f"The quantized model's {told}, and {ACCURACY_TOLERANCE} is allowed; nothing was kept")
    return f"Verified: {told}"


def _checked(probabilities: np.ndarray, num_images: int, classifier: Classifier) -> np.ndarray:
    wanted = (num_images, len(classifier.classes))
    if probabilities.shape != wanted or probabilities.dtype != np.float32:
        raise ExportError(
            f"The exported model gives {probabilities.dtype} {list(probabilities.shape)} instead of float32 {list(wanted)}; "
            "nothing was kept"
        )
    return probabilities


def _metadata(classifier: Classifier, quantize: bool) -> dict[str, Any]:
    found = classifier.report
    return {
        "classes": list(classifier.classes),
        "image_shape": list(classifier.image_shape),
        "input": "images: uint8 [N, H, W, C], RGB",
        "output": "probabilities: float32 [N, K]",
        "temperature": classifier.temperature,
        "quantized": quantize,
        "run": found["config"]["name"],
        "config_hash": found["config_hash"],
        "test_accuracy": found["test"]["accuracy"],
        "made_by": f"cifar_research {metadata.version('cifar_research')}",
    }


if __name__ == "__main__":
    main()
