"""A finished run as a classifier: its model rebuilt from its config, and its weights, loaded as numbers only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from cifar_research.augmentation.tta import averaged
from cifar_research.data import images as image_files
from cifar_research.models import rebuild
from cifar_research.runs import report
from cifar_research.runtime import files
from cifar_research.runtime.errors import ReportError, RunError

if TYPE_CHECKING:
    import keras

EVALUATION = "evaluation.json"


class Prediction(NamedTuple):
    """The likeliest class of an image, and its probability in [0, 1]."""

    label: str
    probability: float


class Classifier:
    """What a run has trained.

    classes: their names, in the order of the logits; image_shape: (H, W, C) of the images it was trained on; config:
    the run's; report: its report.json; temperature: what logits are divided by before the softmax, 1 unless the run's
    evaluation.json has one that was fitted on validation images (Guo et al. 2017); uncalibrated: why there is none, or
    None.
    model: float [B, H, W, C] -> logits [B, K]. network: (images as the model takes them, training) -> logits [B, K]:
    the one way through the model that everything here takes, so that it may be set to another.
    """

    def __init__(
        self,
        model: keras.Model,
        found: dict[str, Any],
        *,
        image_shape: tuple[int, int, int],
        mean: np.ndarray | None = None,
        deviation: np.ndarray | None = None,
    ) -> None:
        self.model, self.report = model, found
        self.config: DictConfig = OmegaConf.create(found["config"])
        self.classes: tuple[str, ...] = tuple(found["data"]["classes"])
        self.image_shape = image_shape
        self.temperature: float = 1.0
        self.uncalibrated: str | None = None
        self.mean, self.deviation = mean, deviation
        self.network: Callable[[Any, bool], Any] = lambda images, training: model(images, training=training)
        self._call: Callable[[Any], Any] | None = None

    def preprocess(self, images: Any) -> Any:
        """Return what the model takes, float32 [B, H, W, C], of images uint8 [B, H, W, C]; may be traced."""
        import tensorflow as tf

        scaled = tf.cast(images, tf.float32) / 255
        return scaled if self.mean is None else (scaled - self.mean) / self.deviation

    def forward(self, images: Any) -> Any:
        """Return logits float32 [B, K] of images uint8 [B, H, W, C]; may be traced."""
        import tensorflow as tf

        return tf.cast(self.network(self.preprocess(images), False), tf.float32)

    def logits(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Return logits float32 [N, K] of images uint8 [N, H, W, C], in batches; traced once, in the run's precision.

        ValueError if the images are of another type or shape.
        """
        import tensorflow as tf

        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images: {images.dtype} {list(images.shape)} is not uint8 [N, {wanted}]")
        if self._call is None:
            self._call = tf.function(self.forward, [tf.TensorSpec([None, *self.image_shape], tf.uint8)])
        parts = [self._call(images[first : first + batch_size]) for first in range(0, len(images), batch_size)]
        return np.concatenate([np.zeros([0, len(self.classes)], np.float32), *(part.numpy() for part in parts)])

    def probabilities(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Return probabilities float32 [N, K], softmax(logits / temperature), of images uint8 [N, H, W, C]."""
        return softmax(self.logits(images, batch_size) / np.float32(self.temperature))

    def predict(self, images: Any) -> list[Prediction]:
        """Return a prediction for each image: files, PIL images or arrays [h, w] or [h, w, 1 to 4] of any size; one, or several.

        Arrays of other numbers than uint8 are scaled as files of such numbers are.
        ImageError, with its name, if one cannot be read as an image.
        """
        if isinstance(images, (str, Path)) or not isinstance(images, (Sequence, np.ndarray, Iterator)):
            images = [images]
        elif isinstance(images, np.ndarray) and (images.ndim == 2 or images.ndim == 3 and images.shape[2] <= 4):
            images = images[None]
        with image_files.without_warnings():
            decoded = [image_files.decode(image, self.image_shape[0]) for image in images]
        found = self.probabilities(np.stack(decoded) if decoded else np.zeros([0, *self.image_shape], np.uint8))
        return [Prediction(self.classes[row.argmax()], float(row.max())) for row in found]


def load(run: Path | str, *, precision: str | None = None) -> Classifier:
    """Return the classifier that a completed run has trained.

    run: its folder. Its model is rebuilt from the config in report.json and given the weights of model.weights.h5, which
    are numbers: nothing of the folder is unpickled, and its data set is not needed.
    precision: float32, bfloat16 or float16, to compute in; None: as the run did.
    RunError if the folder is no run, has not been completed, or lacks weights that fit; nothing is changed in it.
    """
    run = Path(os.path.expanduser(run))
    found = read(run)
    cfg = OmegaConf.create(found["config"])
    calibration = read_temperature(run)
    size = OmegaConf.select(cfg, "data.image_size") or 32
    statistics = found["data"]["standardization"]
    model = rebuild.network(found, run, precision)
    mean, deviation = (np.array(statistics[name], np.float32) if statistics else None for name in ("mean", "deviation"))
    classifier = Classifier(model, found, image_shape=(size, size, 3), mean=mean, deviation=deviation)
    classifier.temperature, classifier.uncalibrated = calibration
    classifier.network = averaged(classifier.network, OmegaConf.select(cfg, "evaluation.views") or "none")
    return classifier


def read(run: Path) -> dict[str, Any]:
    """Return the report of a completed run that has weights; RunError if it is none. Imports no TensorFlow."""
    try:
        found = report.read_report(run / "report.json")
    except ReportError as error:
        raise RunError(str(error)) from error
    if found is None:
        is_begun = (run / ".hydra").is_dir() or (run / "checkpoints").is_dir()
        advice = "resume it and let it end" if is_begun else "give the folder of a run, which holds report.json"
        reason = "this run has not ended" if is_begun else "is no run's folder"
        raise RunError(f"{run}: {reason}; {advice}")
    if found["status"] != "completed":
        raise RunError(f"{run}: this run was not completed, it is {found['status']}; give one that was")
    if not (run / files.WEIGHTS).is_file():
        raise RunError(
            f"{run / files.WEIGHTS}: there is no such file, and it holds the weights; restore it, or delete report.json and "
            "resume the run, whose checkpoints then give both"
        )
    if not rebuild.is_whole(found):
        raise RunError(
            f"{run / 'report.json'}: is damaged, since what a model is rebuilt from is missing; restore it, or delete it "
            "and resume the run"
        )
    return found


def read_temperature(run: Path) -> tuple[float, str | None]:
    """Return the temperature in a run's evaluation.json, and why it is 1 if none was fitted; RunError if damaged."""
    path = run / EVALUATION
    try:
        found = json.loads(path.read_bytes())
        value, reason = found.get("temperature"), found.get("uncalibrated")
        if value is None and reason is None:
            reason = f"{path} holds no temperature"
        value = 1.0 if reason is not None else float(value)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"its temperature is {value}")
    except FileNotFoundError:
        return 1.0, "the run has not been evaluated on its own data"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is damaged ({error}); delete it, and evaluate the run again") from error
    return value, reason if reason is None else str(reason)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [..., K] of logits [..., K]."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
