"""A finished run as a classifier: rebuild its model, load its weights, predict."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from cifar_research.augmentation.tta import Network, averaged
from cifar_research.config import targets
from cifar_research.config.schema import data_section
from cifar_research.data import image_files
from cifar_research.data.images import decode, without_warnings
from cifar_research.models import rebuild
from cifar_research.runs.report import read_report
from cifar_research.runtime import files, programs
from cifar_research.runtime.errors import ReportError, RunError
from cifar_research.runtime.lazy import keras, tf

EVALUATION = "evaluation.json"


class Prediction(NamedTuple):
    """The most likely class of an image, and its probability in [0, 1]."""

    label: str
    probability: float


@dataclass(eq=False, repr=False)
class Classifier:
    """The trained classifier of a run.

    model: float [B, H, W, C] -> logits [B, K]; report: the run's; image_shape: (H, W, C); views: test-time
    augmentation; temperature: divides the logits; uncalibrated: why there is no fitted temperature; network: the model
    with views, replaceable.
    """

    model: keras.Model
    report: dict[str, Any]
    views: str = "none"
    temperature: float = 1.0
    uncalibrated: str | None = None

    @functools.cached_property
    def network(self) -> Network:
        return averaged(lambda images, training: self.model(images, training=training), self.views)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.report["data"]["classes"])

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        size = image_size(self.report)
        return size, size, 3

    def preprocess(self, images: Any) -> tf.Tensor:
        """Return images uint8 [B, H, W, C] as the model's input, float32; may be traced."""
        scaled, statistics = tf.cast(images, tf.float32) / 255, self.report["data"]["standardization"]
        if not statistics:
            return scaled
        mean, std = (np.array(statistics[name], np.float32) for name in ("mean", "deviation"))
        return (scaled - mean) / std

    def forward(self, images: Any) -> tf.Tensor:
        """Return logits float32 [B, K] of images uint8 [B, H, W, C]; may be traced."""
        return tf.cast(self.network(self.preprocess(images), False), tf.float32)

    @functools.cached_property
    def _traced(self) -> Callable[[np.ndarray], tf.Tensor]:
        return tf.function(
            self.forward, [tf.TensorSpec([None, *self.image_shape], tf.uint8)], autograph=False
        ).get_concrete_function()

    def logits(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Return logits float32 [N, K] of images uint8 [N, H, W, C]; ValueError for other images."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images: {images.dtype} {list(images.shape)} is not uint8 [N, {expected}]")
        batches = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
        logits = [self._traced(tf.constant(batch)).numpy() for batch in batches]
        return np.concatenate([np.zeros([0, len(self.classes)], np.float32), *logits])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return softmax(logits / temperature), float32 [N, K], of images uint8 [N, H, W, C]."""
        return softmax(self.logits(images) / np.float32(self.temperature), axis=1)

    def predict(self, images: Any) -> list[Prediction]:
        """Return a prediction for each image.

        images: one or several files, PIL images or arrays [h, w] or [h, w, 1 to 4], of any size. ImageError names an
        image that cannot be read.
        """
        if isinstance(images, (str, Path)) or not isinstance(images, (Sequence, np.ndarray, Iterator)):
            images = [images]
        elif isinstance(images, np.ndarray) and (images.ndim == 2 or images.ndim == 3 and images.shape[2] <= 4):
            images = images[None]
        with without_warnings():
            decoded = [decode(image, self.image_shape[0]) for image in images]
        probabilities = self.probabilities(np.array(decoded, np.uint8).reshape(-1, *self.image_shape))
        return [Prediction(self.classes[row.argmax()], float(row.max())) for row in probabilities]


@dataclass(eq=False, repr=False)
class Ensemble(Classifier):
    """The classifiers of several runs as one: its probabilities are the mean of theirs.

    model and report are the first member's. The members' own temperatures are not used.
    """

    members: Sequence[Classifier] = ()

    def forward(self, images: Any) -> tf.Tensor:
        """Return the log of the members' mean probabilities, float32 [B, K]; may be traced."""
        scores = []
        for member in self.members:
            columns = [member.classes.index(name) for name in self.classes]
            scores.append(tf.gather(tf.nn.log_softmax(member.forward(images)), columns, axis=1))
        return tf.reduce_logsumexp(tf.stack(scores), axis=0) - math.log(len(scores))


def load(
    run: Path | str | Sequence[Path | str], *, precision: str | None = None, allow_targets: Iterable[str] = ()
) -> Classifier:
    """Return the classifier of a completed run, or of several runs as an ensemble.

    run: its folder, or several; nothing in it is unpickled or changed. precision: float32, bfloat16 or float16; None:
    as in training. allow_targets: packages whose factories the config may name, besides $CIFAR_ALLOW_TARGETS. RunError
    if a folder is not a completed run, its weights do not fit, or runs differ in their classes or the size of images.
    """
    allowed = targets.allowed([allow_targets] if isinstance(allow_targets, str) else allow_targets)
    folders = [run] if isinstance(run, (Path, str)) else run
    reports = read_members([Path(os.path.expanduser(folder)) for folder in folders])
    temperature = read_temperature(evaluation_file(reports))
    members = [
        Classifier(rebuild.network(report, folder, precision, allowed), report, report["config"]["evaluation"]["views"])
        for folder, report in reports.items()
    ]
    classifier = members[0] if len(members) == 1 else Ensemble(members[0].model, members[0].report, members=members)
    classifier.temperature, classifier.uncalibrated = temperature
    return classifier


def read_members(runs: Sequence[Path], keys: Sequence[str] = ()) -> dict[Path, dict[str, Any]]:
    """Return the reports of one run, or of an ensemble's; RunError if a run is given twice, or see read_alike."""
    if len({run.resolve() for run in runs}) < max(len(runs), 1):
        raise RunError("RUN: an ensemble needs two runs or more, each of them once; give the folders of different runs")
    return read_alike(runs, keys)


def read_alike(runs: Sequence[Path], keys: Sequence[str] = ()) -> dict[Path, dict[str, Any]]:
    """Return the runs' reports; RunError unless classes, image size and these keys of the data are the same."""
    reports = {run: read(run) for run in runs}
    values: dict[str, Any] = {}
    for run, report in reports.items():
        data = report["data"] | report["config"]["data"]
        own = {"classes": sorted(report["data"]["classes"]), "data.image_size": image_size(report)}
        for key, value in (own | {f"data.{key}": data.get(key) for key in keys}).items():
            if value != (expected := values.setdefault(key, value)):
                shown, other = _shown(value, expected), _shown(expected, value)
                what = {"data.fingerprint": "images"}.get(key, key)
                raise RunError(f"{run}: has {key}={shown}, and {runs[0]} has {other}; give runs of the same {what}")
    return reports


def _shown(value: Any, other: Any) -> Any:
    """Return a value for a message; of a list the first ten, those that the other list lacks before the rest."""
    return image_files.first(sorted(value, key=(other or []).__contains__), 10) if isinstance(value, list) else value


def evaluation_file(reports: Mapping[Path, Mapping[str, Any]]) -> Path:
    """Return the path of the evaluation of a run, or of several as an ensemble.

    An ensemble's is in the folder of the member that has it, else in the first one's. Its name is of the members'
    weights, whatever their order.
    """
    if len(reports) == 1:
        return next(iter(reports)) / EVALUATION
    weights = ",".join(sorted(str(report.get("weights_sha256")) for report in reports.values()))
    name = f"evaluation/ensemble_{hashlib.sha256(weights.encode()).hexdigest()[:8]}.json"
    paths = [run / name for run in reports]
    return next((path for path in paths if path.is_file()), paths[0])


def image_size(report: dict[str, Any]) -> int:
    """Return the height and width of a run's images."""
    return data_section(report["config"]["data"]).image_size


def read(run: Path) -> dict[str, Any]:
    """Return the report of a completed run with weights, else raise RunError."""
    try:
        report = read_report(run / "report.json")
    except ReportError as error:
        raise RunError(str(error)) from error
    if report is None:
        raise RunError(f"{run}: is not the folder of a run that has ended; give one with report.json, or resume it")
    if report["status"] != "completed":
        raise RunError(f"{run}: this run was not completed, it is {report['status']}; resume it, or give another run")
    if not (run / files.WEIGHTS).is_file():
        again = f"{programs.program('train')} --from-run {shlex.quote(str(run))}"
        raise RunError(
            f"{run / files.WEIGHTS}: is missing (a sweep removes those that sweep.keep does not keep); {again}"
        )
    if not rebuild.is_whole(report):
        raise RunError(f"{run / 'report.json'}: is damaged; restore it, or delete it and resume the run")
    return report


def read_temperature(path: Path) -> tuple[float, str | None]:
    """Return the temperature of an evaluation's file, or 1 and the reason; RunError if damaged."""
    try:
        evaluation = json.loads(path.read_bytes())
        if reason := evaluation.get("uncalibrated"):
            return 1.0, str(reason)
        value = float(evaluation["temperature"])
        if not 0 < value < math.inf:
            raise ValueError(f"its temperature is {value}")
    except FileNotFoundError:
        what = "run" if path.name == EVALUATION else "ensemble"
        return (
            1.0,
            f"the {what} has not been evaluated on its own data; {programs.program('evaluate')} fits a temperature",
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise RunError(f"{path}: is damaged ({error}); delete it, and evaluate the run again") from error
    return value, None
