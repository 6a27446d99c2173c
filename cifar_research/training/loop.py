"""The loop: when a run trains, evaluates, logs, saves and stops. What a step does is in steps.py."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cifar_research.config.phases import Phase
from cifar_research.data import batches
from cifar_research.data.datasets import Dataset, Split
from cifar_research.display.console import Display
from cifar_research.display.tensorboard import Writer
from cifar_research.runs import report
from cifar_research.runs.checkpoint import Checkpoint, Checkpoints, read, write
from cifar_research.runtime.environment import Environment
from cifar_research.runtime.errors import CheckpointError
from cifar_research.training.steps import Task, Totals, View, eval_step, many_steps, one_program

_CHIEF_SECONDS = 120  # for the chief to write what the other workers read
# Asked with an epoch's row of the history.
Rule = Callable[[Mapping[str, Any]], bool]


@dataclass
class Record:
    """What a run remembers beside its variables; goes into every checkpoint.

    phase: the number of the current one; phase_steps, phase_epochs: the steps and epochs done before each one begun.
    epoch: whole epochs done; totals: the current one's so far (losses, right answers, images); seconds: the current
    one's so far; elapsed: the seconds of earlier processes, from their first step on; best: step, epoch and value of
    the monitored metric; history: a row an epoch, as in history.csv.
    """

    step: int = 0
    epoch: int = 0
    phase: int = 0
    phase_steps: list[int] = field(default_factory=lambda: [0])
    phase_epochs: list[int] = field(default_factory=lambda: [0])
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    elapsed: float = 0.0
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found: the mean loss over images, and the predicted class of each, int64 [N]."""

    loss: float
    accuracy: float
    predictions: np.ndarray


@dataclass
class Outcome:
    """How a training ended: `completed`, `diverged`, `pruned`, or `stopped` by the signal of that number."""

    status: str
    signal: int | None = None
    first_step_seconds: float | None = None


def fit(
    task: Task,
    environment: Environment,
    training: Any,
    data: Dataset,
    phase: Phase,
    *,
    is_last: bool,
    received: list[int],
    began: float,
    drop_remainder: bool,
    identity: dict[str, Any],
    evaluate: Evaluation,
    record: Record,
    checkpoints: Checkpoints,
    run_dir: Path,
    display: Display,
    writer: Writer | None,
    histograms: bool = False,
    profile: range = range(0),
    is_hopeless: Rule | None = None,
) -> Outcome:
    """Train from `record.step` to the phase's last step, a validation and a checkpoint at the end of every epoch.

    training: the config's section of that name; is_last: whether no other phase comes after; received: the signals
    that have come, at the first of which the run saves and stops; began: time.perf_counter() when this process's first
    phase began; identity: kept in each checkpoint, so that a run does not go on with another config or other data;
    is_hopeless: ends the run as `pruned` when it says so of an epoch's row. `task` and `record` are changed in place;
    after a restart both come from a checkpoint.
    """
    steps = batches.steps_per_epoch(len(data.train), training.batch_size, drop_remainder)
    total_steps = record.phase_steps[-1] + steps * phase.epochs
    call, source = prepared(task, environment, data.train, training, record.step, total_steps, drop_remainder)
    iterator = iter(source)
    clock = _Clock()

    def save() -> None:
        if environment.is_chief:
            arrays = {name: _numpy(variable) for name, variable in task.variables().items()}
            elapsed = record.elapsed + time.perf_counter() - began
            checkpoints.save(record.step, Checkpoint(arrays, {**asdict(record), "elapsed": elapsed, **identity}))

    def is_over() -> bool:
        return is_last and record.step == total_steps

    def outcome(status: str, number: int | None = None) -> Outcome:
        return Outcome(status, number, clock.first_call_seconds)

    while record.step < total_steps and not _is_patience_over(record, training):
        epoch_end = (record.epoch + 1) * steps
        num_steps = min(training.steps_per_call, epoch_end - record.step)
        if writer and profile and record.step <= profile.start < record.step + num_steps:
            writer.profile_start()
        began_call = time.perf_counter()
        totals = call(iterator, tf.constant(num_steps), tf.constant(record.totals, tf.float64))
        before, record.totals = record.totals, [float(value) for value in totals.numpy()]
        clock.called(record.totals[2] - before[2], time.perf_counter() - began_call)
        record.seconds += time.perf_counter() - began_call
        record.step += num_steps
        if writer and profile and record.step - num_steps < profile.stop <= record.step:
            writer.profile_stop()

        loss, accuracy = _means(record.totals)
        if not math.isfinite(loss):
            display.message(f"The loss is {loss} at step {record.step}: the run has diverged.")
            return outcome("diverged")
        display.progress(record.step, record.epoch + 1, loss, accuracy, clock.images_per_second())
        is_epoch_end = record.step == epoch_end
        if writer and (is_epoch_end or record.step % training.log_every_steps < num_steps):
            writer.scalars(record.step, _rates(task, record, loss, accuracy, clock))
        try:
            if is_epoch_end:
                scores = evaluate(data.val) if len(data.val) else None
                is_best = _end_epoch(record, task, phase.name, scores, clock, training)
                if is_best and environment.is_chief:
                    _keep_best(task, checkpoints, record)
                display.epoch(record.history[-1], is_best)
                if writer:
                    _write_validation(record, writer)
                if writer and histograms:
                    writer.histograms(record.step, {w.path: _numpy(w.value) for w in task.model.weights})
                save()
                # After it, so that a history without a checkpoint tells that checkpoints were lost.
                if environment.is_chief:
                    report.write_history(run_dir / "history.csv", record.history)
                if is_hopeless is not None and is_hopeless(record.history[-1]) and not is_over():
                    display.message(f"Pruned after epoch {record.epoch}: others were better by then.")
                    return outcome("pruned")
            elif received:
                save()
        except FloatingPointError as error:
            display.message(f"{error}: the run has diverged.")
            return outcome("diverged")
        if received and not is_over():
            return outcome("stopped", received[0])
    return outcome("completed")


class Evaluation:
    """Scores splits with the weights as they are, or with their averages if the task keeps them; traced once.

    view: what makes sense of the splits' batches, see steps.View.
    """

    def __init__(self, task: Task, environment: Environment, batch_size: int, view: View) -> None:
        self._task, self._environment, self._batch_size = task, environment, batch_size
        self._view, self._call = view, None

    def __call__(self, split: Split) -> Scores:
        """Score every image of the split, whatever the batch size."""
        device = self._environment.prefetch_device
        dataset = batches.evaluation(split, batch_size=self._batch_size, device=device)
        if self._call is None:  # with the sizes of batches left open, since the last one is often smaller
            task, view = self._task, self._view
            self._call = tf.function(lambda *batch: eval_step(task, *batch, view), dataset.element_spec)
        with averaged_weights(self._task):
            parts = [self._call(inputs, labels) for inputs, labels in dataset]
        losses = np.concatenate([part[0].numpy() for part in parts])
        predictions = np.concatenate([part[1].numpy() for part in parts])
        right = predictions == split.labels[split.indices]
        return Scores(float(losses.mean(dtype=np.float64)), float(right.mean()), predictions)


@contextlib.contextmanager
def averaged_weights(task: Task) -> Iterator[None]:
    """Put the averages of the weights in their place for a while; nothing happens if the task keeps none."""
    if not task.averages:
        yield
        return
    weights = [weight.value for weight in task.model.weights]
    trained = [_numpy(weight) for weight in weights]
    for weight, average in zip(weights, task.averages, strict=True):
        weight.assign(_numpy(average))
    try:
        yield
    finally:
        for weight, value in zip(weights, trained, strict=True):
            weight.assign(value)


def restore(task: Task, record: Record, checkpoint: Checkpoint) -> None:
    """Put everything that a checkpoint remembers back; CheckpointError if it is not this task's."""
    variables = task.variables()
    if variables.keys() != checkpoint.arrays.keys():
        odd = sorted(variables.keys() ^ checkpoint.arrays.keys())
        raise CheckpointError(
            f"The checkpoint's variables are not this model's, whose code has changed since: {', '.join(odd[:5])}; "
            "put the code back, or choose another hydra.run.dir"
        )
    for name, variable in variables.items():
        found = checkpoint.arrays[name]
        if tuple(variable.shape) != found.shape or variable.dtype != found.dtype:
            raise CheckpointError(
                f"The checkpoint's {name} is {found.dtype} {found.shape}, and this model's {variable.dtype} "
                f"{tuple(variable.shape)}: its code has changed since; put it back, or choose another hydra.run.dir"
            )
    if missing := sorted(asdict(record).keys() - checkpoint.meta.keys()):
        raise CheckpointError(f"The checkpoint says nothing of {', '.join(missing)}; choose another hydra.run.dir")
    for name, variable in variables.items():
        variable.assign(checkpoint.arrays[name])
    for name in asdict(record):
        setattr(record, name, checkpoint.meta[name])


def restore_best(task: Task, record: Record, checkpoints: Checkpoints) -> None:
    """Load the best weights by validation into the model and the averages, if it keeps them."""
    arrays = read(checkpoints.best_path(record.best["step"])).arrays
    for weight in task.model.weights:
        weight.value.assign(arrays[f"model/{weight.path}"])
    for average, weight in zip(task.averages, task.model.weights, strict=bool(task.averages)):
        average.assign(weight.value)


def next_phase(
    task: Task, environment: Environment, record: Record, checkpoints: Checkpoints, *, keeps_optimizer: bool
) -> None:
    """Go from the end of a phase to the begin of the next, which starts from the best weights so far.

    keeps_optimizer: go on with what the optimizer has kept of each weight, instead of anew.
    """
    end = time.monotonic() + _CHIEF_SECONDS
    while not environment.is_chief and not checkpoints.best_path(record.best["step"]).exists():
        if time.monotonic() > end:
            break  # and let the reading tell what is missing
        time.sleep(0.1)  # the chief writes it, and is not always first
    restore_best(task, record, checkpoints)
    if not keeps_optimizer:
        task.reset_optimizer()
    record.phase += 1
    record.phase_steps.append(record.step)
    record.phase_epochs.append(record.epoch)


class _Clock:
    """Images a second, without the phase's first call in this process, in which the step is traced."""

    def __init__(self) -> None:
        self.first_call_seconds: float | None = None
        self.images = self.seconds = 0.0

    def called(self, num_images: float, seconds: float) -> None:
        if self.first_call_seconds is None:
            self.first_call_seconds = seconds
        else:
            self.images += num_images
            self.seconds += seconds

    def images_per_second(self) -> float | None:
        return self.images / self.seconds if self.seconds else None

    def reset(self) -> None:
        self.images = self.seconds = 0.0


def prepared(
    task: Task,
    environment: Environment,
    split: Split,
    training: Any,
    step: int,
    total_steps: int,
    drop_remainder: bool,
) -> tuple[Callable[..., Totals], Any]:
    """Return the call that does the steps from `step` on, and what its iterator goes over."""
    settings = {
        "batch_size": training.batch_size,
        "seed": task.seed,
        "initial_step": step,
        "total_steps": total_steps,
        "drop_remainder": drop_remainder,
    }
    device, strategy = environment.prefetch_device, environment.strategy
    if device is not None and training.jit_compile and batches.fits_on_device(split):
        rows = batches.training_rows(split, **settings, steps_per_call=training.steps_per_call)
        return one_program(task, batches.reader_on_device(split, device)), rows

    def pipeline(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return batches.training(split, **settings, context=context, device=device)

    several = strategy.num_replicas_in_sync > 1
    source = strategy.distribute_datasets_from_function(pipeline) if several else pipeline()
    return many_steps(task, strategy), source


def _numpy(variable: Any) -> np.ndarray:
    return tf.convert_to_tensor(variable).numpy()


def _means(totals: list[float]) -> tuple[float, float]:
    return totals[0] / totals[2], totals[1] / totals[2]


def _rates(task: Task, record: Record, loss: float, accuracy: float, clock: _Clock) -> dict[str, float]:
    rate = float(task.learning_rate(tf.constant(float(record.step - 1))))
    scalars = {"train/loss": loss, "train/accuracy": accuracy, "learning_rate": rate}
    speed = clock.images_per_second()
    return scalars | ({} if speed is None else {"images_per_second": speed})


def _end_epoch(record: Record, task: Task, phase: str, scores: Scores | None, clock: _Clock, training: Any) -> bool:
    """Close the epoch: add its row to the history, and say whether it is the best so far."""
    loss, accuracy = _means(record.totals)
    record.epoch += 1
    record.history.append(
        {
            "epoch": record.epoch,
            "step": record.step,
            "phase": phase,
            "learning_rate": float(task.learning_rate(tf.constant(float(record.step - 1)))),
            "loss": loss,
            "accuracy": accuracy,
            "val_loss": scores and scores.loss,
            "val_accuracy": scores and scores.accuracy,
            "seconds": record.seconds,
            "images_per_second": clock.images_per_second(),
        }
    )
    record.totals, record.seconds = [0.0, 0.0, 0.0], 0.0
    clock.reset()
    value = None
    if scores is not None:
        value = scores.accuracy if training.monitor == "accuracy" else -scores.loss
        if not math.isfinite(value):
            raise FloatingPointError(f"the validation loss is {scores.loss} after epoch {record.epoch}")
    # Without validation images the last epoch is the one to test.
    is_best = record.best is None or value is None or value > record.best["value"]
    if is_best:
        record.best = {"step": record.step, "epoch": record.epoch, "value": value}
    return is_best


def _is_patience_over(record: Record, training: Any) -> bool:
    if training.patience is None or record.best is None:
        return False
    return record.epoch - max(record.best["epoch"], record.phase_epochs[-1]) >= training.patience


def _keep_best(task: Task, checkpoints: Checkpoints, record: Record) -> None:
    with averaged_weights(task):
        arrays = {f"model/{weight.path}": _numpy(weight.value) for weight in task.model.weights}
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    write(checkpoints.best_path(record.step), Checkpoint(arrays, {"best": record.best}))


def _write_validation(record: Record, writer: Writer) -> None:
    row = record.history[-1]
    scalars = {"val/loss": row["val_loss"], "val/accuracy": row["val_accuracy"]}
    writer.scalars(record.step, {tag: value for tag, value in scalars.items() if value is not None})
    writer.flush()
