"""The training loop: when to train, evaluate, log, save and stop; a step is in steps.py."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from cifar_research.config.schema import METRICS, TrainingConfig
from cifar_research.config.settings import Settings
from cifar_research.data import batches
from cifar_research.data.datasets import Dataset, Split
from cifar_research.runs import metrics
from cifar_research.runtime.environment import Environment
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.signals import StopRequest
from cifar_research.training.outputs import Outputs
from cifar_research.training.saver import Saver
from cifar_research.training.scoring import Evaluation, Scores, as_array
from cifar_research.training.state import Progress, TrainState
from cifar_research.training.steps import CannotCompile, Totals, many_steps, one_program

# (an epoch's row of the history) -> whether the run is hopeless
Rule = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Run:
    """A run in progress; `seconds` is the time by activity."""

    settings: Settings
    data: Dataset
    environment: Environment
    state: TrainState
    progress: Progress
    saver: Saver
    outputs: Outputs
    seconds: dict[str, float | None]


@dataclass(frozen=True)
class Stage:
    """The current phase with its data: images or features.

    evaluate: scores the splits. measure: sets batch normalisation's statistics before it. stop: a request to save and
    stop. is_hopeless: True prunes.
    """

    data: Dataset
    evaluate: Evaluation
    measure: Callable[[], None]
    stop: StopRequest
    is_hopeless: Rule | None = None


@dataclass
class Outcome:
    """How training ended: `completed`, `diverged`, `pruned`, or `stopped` by a signal."""

    status: str
    signal: int | None = None


def fit(run: Run, stage: Stage) -> Outcome:
    """Train to the phase's last step, updating state and progress; save after every epoch."""
    state, progress, outputs, phases = run.state, run.progress, run.outputs, run.settings.phases
    training = run.settings.training
    steps = batches.steps_per_epoch(len(stage.data.train), training.batch_size, run.settings.data.drop_remainder)
    total_steps = progress.phase_steps[-1] + steps * phases[progress.phase].epochs
    call, clock = _steps(run, stage.data.train, total_steps), Clock()
    while progress.step < total_steps and not _is_patience_over(progress, training):
        epoch_end = (progress.epoch + 1) * steps
        num_steps = min(training.steps_per_call, epoch_end - progress.step)
        outputs.before_steps(progress.step, num_steps)
        _advance(call, run, num_steps, clock)
        outputs.after_steps(progress.step, num_steps)
        loss, accuracy = progress.means
        if not math.isfinite(loss):
            outputs.display.message(f"The loss is {loss} at step {progress.step}: the run has diverged.")
            return Outcome("diverged")
        outputs.display.progress(progress.step, progress.epoch + 1, loss, accuracy, clock.images_per_second)
        is_epoch_end = progress.step == epoch_end
        if outputs.writer and (is_epoch_end or progress.step % training.log_every_steps < num_steps):
            rates = {"learning_rate": _learning_rate(state, progress), "images_per_second": clock.images_per_second}
            outputs.scalars(progress.step, {"train/loss": loss, "train/accuracy": accuracy} | rates)
        is_over = progress.phase == len(phases) - 1 and progress.step == total_steps
        try:
            if is_epoch_end:
                _end_epoch(run, stage, clock)
                if stage.is_hopeless is not None and stage.is_hopeless(progress.history[-1]) and not is_over:
                    outputs.display.message(f"Pruned after epoch {progress.epoch}: other jobs were better.")
                    return Outcome("pruned")
            elif stage.stop.signal:
                run.saver.save(state, progress)
        except FloatingPointError as error:
            outputs.display.message(f"{error}: the run has diverged.")
            return Outcome("diverged")
        if stage.stop.signal and not is_over:
            return Outcome("stopped", stage.stop.signal)
    return Outcome("completed")


def next_phase(state: TrainState, progress: Progress, saver: Saver, *, keeps_optimizer: bool) -> None:
    """Advance to the next phase, starting from the best weights so far.

    keeps_optimizer: keep the optimizer's slots instead of resetting them.
    """
    saver.restore_best(state, progress)
    if not keeps_optimizer:
        state.reset_optimizer()
    progress.phase += 1
    progress.phase_steps.append(progress.step)
    progress.phase_epochs.append(progress.epoch)


@dataclass
class Clock:
    """The images and seconds of an epoch so far, without the phase's first call, which traces the step."""

    has_traced: bool = False
    images: float = 0.0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.seconds if self.seconds else None


def prepared(
    state: TrainState,
    environment: Environment,
    split: Split,
    training: TrainingConfig,
    step: int,
    total_steps: int,
    drop_remainder: bool,
) -> tuple[Callable[..., Totals], Any]:
    """Return the function that runs the steps from `step` on, and its data set."""
    settings = {
        "batch_size": training.batch_size,
        "seed": state.seed,
        "initial_step": step,
        "total_steps": total_steps,
    }
    device, strategy = environment.prefetch_device, environment.strategy
    if device is not None and environment.jit_compile and batches.fits_on_device(split):
        rows = batches.training_rows(
            split, **settings, steps_per_call=training.steps_per_call, drop_remainder=drop_remainder
        )
        return one_program(state, batches.reader_on_device(split, device)), rows

    def pipeline(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return batches.training(split, **settings, drop_remainder=drop_remainder, context=context, device=device)

    several = strategy.num_replicas_in_sync > 1
    source = strategy.distribute_datasets_from_function(pipeline) if several else pipeline()
    return many_steps(state, strategy, jit_compile=environment.jit_compile), source


def _steps(run: Run, split: Split, total_steps: int) -> Callable[..., Totals]:
    """Return the function (num_steps, totals) -> totals; with jit_compile=auto, one that can do without XLA."""
    state, progress, training = run.state, run.progress, run.settings.training

    def made(jit_compile: bool) -> Callable[..., Totals]:
        environment = dataclasses.replace(run.environment, jit_compile=jit_compile)
        drops = run.settings.data.drop_remainder
        call, source = prepared(state, environment, split, training, progress.step, total_steps, drops)
        return functools.partial(call, iter(source))

    current = made(run.environment.jit_compile and not state.does_without_xla)

    def steps(*arguments: Any) -> Totals:
        nonlocal current
        try:
            return current(*arguments)
        except CannotCompile as error:
            if training.jit_compile != "auto":
                raise ConfigError(f"{error}; set training.jit_compile=false") from error
            run.outputs.display.message(f"{error}; this run continues without XLA.")
            state.step.assign(progress.step)  # the call may have counted steps before it failed
            state.does_without_xla = True
            current = made(False)
            return current(*arguments)

    return steps


def _advance(call: Callable[..., Totals], run: Run, num_steps: int, clock: Clock) -> None:
    progress, began, before = run.progress, time.perf_counter(), run.progress.totals
    totals = call(tf.constant(num_steps), tf.constant(before, tf.float64))
    progress.totals = [float(value) for value in totals.numpy()]
    seconds = time.perf_counter() - began
    if run.seconds["first_step"] is None:
        run.seconds["first_step"] = seconds
    if clock.has_traced:
        clock.images += progress.totals[2] - before[2]
        clock.seconds += seconds
    clock.has_traced = True
    progress.seconds += seconds
    progress.step += num_steps


def _learning_rate(state: TrainState, progress: Progress) -> float:
    return float(state.learning_rate(tf.constant(float(progress.step - 1))))


def _end_epoch(run: Run, stage: Stage, clock: Clock) -> None:
    """Validate, extend the history and save; FloatingPointError if a value is not finite."""
    state, progress, outputs = run.state, run.progress, run.outputs
    stage.measure()
    scores = stage.evaluate(stage.data.val) if len(stage.data.val) else None
    _add_row(state, progress, run.settings.phases[progress.phase].name, scores, clock)
    row = progress.history[-1]
    outputs.display.epoch(row, _is_best(progress, scores, run.settings.training.monitor))
    _report_overflows(state, progress, outputs)
    outputs.scalars(progress.step, {f"val/{name}": row[f"val_{name}"] for name in METRICS})
    outputs.histograms(progress.step, state.model)
    run.saver.save(state, progress)
    # After the checkpoint, so that a history without checkpoints shows that they were lost.
    if run.saver.is_chief:
        outputs.history(progress.history)


def _report_overflows(state: TrainState, progress: Progress, outputs: Outputs) -> None:
    """Show how many steps of the epoch overflowed float16."""
    number = int(as_array(state.overflows)) - progress.overflows
    if number:
        scale = float(as_array(state.loss_scale))
        steps = f"{number:,} steps" if number > 1 else "1 step"
        outputs.display.message(
            f"float16: {steps} overflowed and changed no weight. The loss scale is now {scale:,.0f}."
        )
    progress.overflows += number


def _add_row(state: TrainState, progress: Progress, phase: str, scores: Scores | None, clock: Clock) -> None:
    """Add the epoch to the history and reset its totals."""
    loss, accuracy = progress.means
    progress.epoch += 1
    progress.history.append(
        {
            "epoch": progress.epoch,
            "step": progress.step,
            "phase": phase,
            "learning_rate": _learning_rate(state, progress),
            "loss": loss,
            "accuracy": accuracy,
            "seconds": progress.seconds,
            "images_per_second": clock.images_per_second,
        }
        | {f"val_{name}": scores and scores.values[name] for name in METRICS}
    )
    progress.totals, progress.seconds = [0.0, 0.0, 0.0], 0.0
    clock.images = clock.seconds = 0.0


def _is_best(progress: Progress, scores: Scores | None, monitor: str) -> bool:
    """Return whether the epoch is the best so far; if so, store it in progress.best.

    Of epochs with the same monitored value, the one with the lowest validation loss is the best.
    """
    value = loss = None
    if scores is not None:
        value, loss = metrics.worth(scores.values, monitor), scores.values["loss"]
        if value is None or not math.isfinite(value):
            raise FloatingPointError(f"the validation loss is {loss} after epoch {progress.epoch}")
    # Without validation images the last epoch counts as the best.
    best = progress.best
    is_best = best is None or value is None or loss is None or (value, -loss) > (best["value"], -best["loss"])
    if is_best:
        progress.best = {"step": progress.step, "epoch": progress.epoch, "value": value, "loss": loss}
    return is_best


def _is_patience_over(progress: Progress, training: TrainingConfig) -> bool:
    if training.patience is None or progress.best is None:
        return False
    return progress.epoch - max(progress.best["epoch"], progress.phase_epochs[-1]) >= training.patience
