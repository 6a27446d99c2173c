"""Outputs: the terminal, TensorBoard and the files of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_research import augmentation
from cifar_research.config.identity import Identity
from cifar_research.config.schema import TensorBoardConfig
from cifar_research.config.settings import Settings
from cifar_research.data.datasets import Dataset, Split
from cifar_research.display import tables
from cifar_research.display.console import Display
from cifar_research.display.tensorboard import Writer
from cifar_research.display.tracking import Tracking, tracked_run
from cifar_research.models import summary
from cifar_research.runs import metrics, report
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime.errors import WriteError
from cifar_research.runtime.files import atomic_write
from cifar_research.training.scoring import Scores, as_array
from cifar_research.training.state import Progress, TrainState


@dataclass(frozen=True)
class Outputs:
    """The terminal, TensorBoard (writer: None if disabled), the run's folder and its tracker."""

    display: Display
    writer: Writer | None
    folder: Path
    tensorboard: TensorBoardConfig
    tracking: Tracking | None

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the values that are not None."""
        if self.writer is not None:
            self.writer.scalars(step, {tag: value for tag, value in values.items() if value is not None})

    def histograms(self, step: int, model: keras.Model) -> None:
        """Write a histogram of each weight, if enabled."""
        if self.writer is not None and self.tensorboard.histograms:
            with self.writer.at(step):
                for weight in model.weights:
                    tf.summary.histogram(weight.path, as_array(weight.value))

    def history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write history.csv, and pass its last row to the tracker."""
        report.write_history(self.folder / "history.csv", rows)
        if self.tracking is not None:
            self.tracking.epoch(rows[-1])

    def before_steps(self, step: int, num_steps: int) -> None:
        """Start the profiler if the steps from `step` on include the first one to profile."""
        first = self.tensorboard.profile_start_step
        if self.writer is not None and first is not None and step <= first < step + num_steps:
            self.writer.profile_start()

    def after_steps(self, step: int, num_steps: int) -> None:
        """Stop the profiler if the steps up to `step` include the last one to profile."""
        first, count = self.tensorboard.profile_start_step, self.tensorboard.profile_num_steps
        if self.writer is not None and first is not None and step - num_steps < first + count <= step:
            self.writer.profile_stop()


@contextlib.contextmanager
def opened(
    display: Display, folder: Path, settings: Settings, is_chief: bool, resumed: Progress | None
) -> Iterator[Outputs]:
    """Yield a run's outputs, and close them. resumed: where it continues, None if new."""
    tensorboard, resume_step = settings.tensorboard, None if resumed is None else resumed.step
    with display, contextlib.ExitStack() as stack:
        writer = tracking = None
        if settings.tracker is not None and is_chief:
            run = tracked_run(settings, folder, [] if resumed is None else resumed.history)
            tracking = Tracking(settings.tracker, run)
            stack.callback(tracking.close, display.message)
        if tensorboard.enabled and is_chief:
            writer = stack.enter_context(contextlib.closing(Writer(folder / "tensorboard", resume_step=resume_step)))
        yield Outputs(display, writer, folder, tensorboard, tracking)


def describe(writer: Writer, yaml: str, state: TrainState, train: Split) -> None:
    """Write the config, the graph and augmented samples to TensorBoard."""
    shape = train.images.shape[1:]
    forward = tf.function(lambda images: state.model(images, training=False), autograph=False)
    function = forward.get_concrete_function(tf.TensorSpec([None, *shape], tf.float32))
    count = min(32, len(train))
    rows = train.indices[[i * len(train) // count for i in range(count)]]  # rows may be sorted by class
    before, targets = state.preprocessing.prepare(train.images[rows], train.labels[rows])
    after, _ = state.preprocessing.augment(before, targets, tf.constant([state.seed, 0]))
    with writer.at(0):
        tf.summary.text("config", f"```yaml\n{yaml}```")
        tf.summary.graph(function.graph)
        tf.summary.image("augmented", augmentation.grid(before.numpy(), after.numpy())[None])


def describe_model(path: Path, model: keras.Model) -> int:
    """Write a table of the model's layers; return the flops of a forward pass, an image."""
    layers, inputs = summary.layers(model), " x ".join(map(str, model.input_shape[1:]))
    flops = sum(layer.flops for layer in layers)
    columns = {"layer": "name", "kind": "kind", "output": "output", "parameters": "parameters:,", "FLOPs": "flops:,"}
    total = summary.Layer("total", "", "", model.count_params(), flops)
    table = tables.as_text(tables.of([layer._asdict() for layer in [*layers, total]], columns))
    atomic_write(path, f"One image of {inputs}. FLOPs: of its forward pass; a multiply-add is 2.\n\n{table}\n")
    return flops


def leave(
    outputs: Outputs, result: dict[str, Any], model: keras.Model, data: Dataset, progress: Progress, test: Scores | None
) -> None:
    """Write weights, figures and TensorBoard's last pages, then report.json."""
    from cifar_research.display import figures  # imported here because matplotlib takes half a second

    folder, writer = outputs.folder, outputs.writer
    (folder / "figures").mkdir(exist_ok=True)
    history_sha256 = report.write_history(folder / "history.csv", progress.history)
    if result["status"] != "stopped":  # a stopped run continues later
        result["history_sha256"] = history_sha256
    if progress.history:
        figures.curves(folder / "figures" / "curves.png", progress.history)
    if test is not None:
        save_weights(model, folder / "model.weights.h5")
        _leave_predictions(outputs, data, progress.step, test)
    # A stopped run continues later, and TensorBoard accepts these only once.
    if writer is not None and result["status"] != "stopped" and result["val"] is not None:
        outcomes = {"val/accuracy": result["val"]["accuracy"], "val/loss": result["val"]["loss"]}
        outcomes |= {} if test is None else {"test/accuracy": test.values["accuracy"]}
        is_job = (folder.parent / LEDGER).exists()
        described = Identity(result["config"]).described(result["options"])
        writer.hparams(described, outcomes, with_columns=not is_job)
    report.write_report(folder / "report.json", result)
    if outputs.tracking is not None:
        files = [folder / "report.json", folder / "history.csv", *sorted((folder / "figures").glob("*.png"))]
        outputs.tracking.finish(result, files)


def _leave_predictions(outputs: Outputs, data: Dataset, step: int, test: Scores) -> None:
    from cifar_research.display import figures

    labels = data.test.labels[data.test.indices]
    matrix = metrics.confusion_matrix(labels, test.predictions, len(data.classes))
    pictures = {"confusion": figures.png(figures.confusion(matrix, data.classes))}
    atomic_write(outputs.folder / "figures" / "confusion.png", pictures["confusion"])
    if outputs.writer is None:
        return
    outputs.scalars(step, {f"test/{name}": value for name, value in test.values.items()})
    wrong = np.flatnonzero(labels != test.predictions)[:25]
    if len(wrong):
        titles = [f"{data.classes[labels[i]]} → {data.classes[test.predictions[i]]}" for i in wrong]
        pictures["misclassified"] = figures.png(figures.gallery(data.test.images[data.test.indices[wrong]], titles))
    with outputs.writer.at(step):
        for name, content in pictures.items():
            tf.summary.image(name, tf.io.decode_png(content, channels=3)[None])


def save_weights(model: keras.Model, path: Path) -> None:
    """Write a .weights.h5 file atomically; WriteError if that fails."""
    temporary, size = path.with_name(f".{path.name}"), sum(weight.value.numpy().nbytes for weight in model.weights)
    try:
        # Reserve space first: on a full disk HDF5 ends the process.
        if hasattr(os, "posix_fallocate"):
            with temporary.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size + 4096 * (len(model.weights) + 4))
        model.save_weights(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = f"{error.strerror or error}); it needs {size:,} bytes in a writable folder"
        raise WriteError(error.errno, f"{path}: cannot be written ({reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
