"""A run: train, test and report one classifier in its folder."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cifar_research import config
from cifar_research.config import phases
from cifar_research.data import datasets
from cifar_research.display import console, header
from cifar_research.runs import report, run_folder
from cifar_research.runs.checkpoint import Checkpoint, Checkpoints
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime import environment as environments
from cifar_research.runtime import programs, signals
from cifar_research.runtime.errors import ConfigError, DataError, WriteError
from cifar_research.training import shards
from cifar_research.training.result import gather

if TYPE_CHECKING:
    import keras
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.display import tensorboard
    from cifar_research.training import loop, steps

Report = dict[str, Any]


def run(
    cfg: DictConfig,
    run_dir: Path | str,
    display: console.Display | None = None,
    is_hopeless: loop.Rule | None = None,
    options: Mapping[str, str] | None = None,
    begins: Callable[[], None] | None = None,
    unlocks: bool = False,
) -> Report:
    """Train, test and report one classifier in the folder `run_dir`; return what is in its report.json.

    is_hopeless: asked after each epoch with its row of the history; if it says so the run ends as `pruned`, untested.
    options: names of the options that cfg was composed from, by group, under which reports show them.
    begins: called when everything has been checked, before the first file is written; unlocks: see locks.Lock.
    Called again in the same folder it goes on where it stopped, or returns the report it wrote if it had ended.
    Raises a ValueError in sentences for the user, and leaves the folder as it was: ConfigError if the config cannot
    work or is not the folder's, DataError if data is missing or damaged, CheckpointError if no checkpoint can be used,
    LockedError if another process trains there.
    """
    began = time.perf_counter()
    config.check(cfg)
    run_dir = Path(run_dir)
    is_chief = environments.is_chief(cfg.training.strategy)
    display = display or console.Display(quiet=not is_chief)
    with run_folder.only_process_in(run_dir, is_chief, unlocks) as keep, environments.precision_kept():
        ended, checkpoint = run_folder.begun(cfg, run_dir)
        if ended is not None:
            run_folder.mend_history(run_dir, ended)
            display.message(f"{run_dir}: this run has ended already, {ended['status']}.")
            return ended

        # Data before TensorFlow: what is missing or damaged is told at once.
        seconds: dict[str, float | None] = {}
        with _timed(seconds, "data"):
            data = _load_data(cfg, checkpoint)

        with _timed(seconds, "import"):
            environment = environments.prepare(cfg.training, cfg.seed, shards.parts(cfg, data))
            from cifar_research.display import tensorboard
            from cifar_research.training import loop, setup, steps

        with environment.strategy.scope():
            task = setup.build(cfg, data, environment.parts)
            if checkpoint is None:
                setup.load_weights(task, data)
        checkpoints, record = Checkpoints(run_dir / "checkpoints", cfg.training.keep_checkpoints), loop.Record()
        if checkpoint is not None:
            loop.restore(task, record, checkpoint)
        plan = phases.plan(cfg)
        # Of all phases, so that a layer's name misspelt in the last one costs no training of the first.
        trained = {phase.name: setup.num_trained(task, phase) for phase in plan}

        keep()
        if begins is not None and is_chief:
            begins()
        writer = None
        if cfg.tensorboard.enabled and is_chief:
            writer = tensorboard.Writer(run_dir / "tensorboard", resume_step=record.step if checkpoint else None)
        with display, contextlib.closing(writer) if writer else contextlib.nullcontext():
            if writer and checkpoint is None:
                _describe(writer, cfg, task, data)
            display.announce(
                header.rows(cfg, task.model.count_params(), data, environment, run_dir, max(trained.values()))
            )
            if checkpoint is not None:
                if is_chief and run_folder.reopen(run_dir):
                    display.message(f"Its report is replaced by one of {phases.total_epochs(cfg.training)} epochs.")
                if cfg.data.dir is None and data.found_in:
                    display.message(f"The data is in {data.found_in}.")
                display.message(f"Going on from step {record.step}.")
                if (before := checkpoint.meta["device"]) != environment.device:
                    display.message(
                        f"It was saved on {before}: its last digits will not be those of a run on either alone."
                    )
            evaluate = functools.partial(loop.Evaluation, task, environment, cfg.training.eval_batch_size)
            evaluate_images = evaluate(steps.images_view(task, views=cfg.evaluation.views))
            total_steps, total_epochs = setup.total_steps(cfg, data), phases.total_epochs(cfg.training)
            display.start(total_steps, record.step, total_epochs, cfg.training.monitor)
            fit = functools.partial(
                loop.fit,
                task,
                environment,
                cfg.training,
                began=time.perf_counter(),
                drop_remainder=cfg.data.drop_remainder,
                identity={
                    "config": OmegaConf.to_container(cfg, resolve=True),
                    "fingerprint": data.fingerprint,
                    "classes": list(data.classes),
                    "found_in": data.found_in,
                    "device": environment.device,
                },
                record=record,
                checkpoints=checkpoints,
                run_dir=run_dir,
                display=display,
                writer=writer,
                histograms=cfg.tensorboard.histograms,
                profile=_profiled_steps(cfg),
                is_hopeless=is_hopeless,
            )
            for number in range(record.phase, len(plan)):
                if number > record.phase:
                    keeps = plan[number].keeps_optimizer
                    loop.next_phase(task, environment, record, checkpoints, keeps_optimizer=keeps)
                display.phase(*header.phase(cfg, number))
                began_enter = time.perf_counter()
                # Outside of stop_signals: all is saved, and a signal may end a computation of features at once.
                seen, view = setup.enter(cfg, task, data, plan, record, display.message)
                record.seconds += time.perf_counter() - began_enter
                evaluate_phase = evaluate_images if seen is data else evaluate(view)
                is_last = number == len(plan) - 1
                with signals.stop_signals(within_calls=True) as received:
                    outcome = fit(seen, plan[number], evaluate=evaluate_phase, is_last=is_last, received=received)
                if seconds.get("first_step") is None:
                    seconds["first_step"] = outcome.first_step_seconds
                if outcome.status != "completed":
                    break
            seconds["train"] = sum(row["seconds"] for row in record.history) + record.seconds
            test = None
            if outcome.status == "completed" and is_chief:
                with _timed(seconds, "evaluate"):
                    loop.restore_best(task, record, checkpoints)
                    test = evaluate_images(data.test)
            seconds["total"] = record.elapsed + time.perf_counter() - began
            result = gather(cfg, task, data, environment, record, outcome, test, seconds, trained)
            result["options"] = dict(options or {})
            if is_chief:
                _leave(run_dir, result, task, data, record, test, writer)
            display.results(result, run_dir, _next_commands(result, run_dir), header.pace(cfg, record.history))
        return result


def _load_data(cfg: DictConfig, checkpoint: Checkpoint | None) -> Dataset:
    """Return the data, the same that the checkpoint was trained on; ConfigError for what only it can tell."""
    before = {} if checkpoint is None else checkpoint.meta
    found_in = before["found_in"] if before else None
    try:
        data = datasets.load(cfg.data, found_in)
    except DataError as error:
        if not found_in or found_in in str(error):
            raise
        raise DataError(f"{error}. This run found its data in {found_in}") from error
    if checkpoint is not None:
        run_folder.check_images(before, data)
    if problems := phases.check_numbers(cfg, len(data.train), len(data.val)):
        raise ConfigError("\n".join(problems))
    return data


def _describe(writer: tensorboard.Writer, cfg: DictConfig, task: steps.Task, data: Dataset) -> None:
    """Show in TensorBoard what is about to be trained: the config, the graph, augmented samples."""
    import tensorflow as tf

    from cifar_research import augmentation
    from cifar_research.training.steps import prepare

    writer.text("config", f"```yaml\n{OmegaConf.to_yaml(cfg, resolve=True)}```")
    shape = data.train.images.shape[1:]
    forward = tf.function(lambda images: task.model(images, training=False))
    writer.graph(forward.get_concrete_function(tf.TensorSpec([None, *shape], tf.float32)))
    count = min(32, len(data.train))
    rows = data.train.indices[[i * len(data.train) // count for i in range(count)]]  # which may be sorted by class
    before, targets = prepare(task, data.train.images[rows], data.train.labels[rows])
    after, _ = task.augment(before, targets, tf.constant([cfg.seed, 0]))
    writer.images("augmented", augmentation.grid(before.numpy(), after.numpy()), step=0)


def _profiled_steps(cfg: DictConfig) -> range:
    start = cfg.tensorboard.profile_start_step
    return range(0) if start is None else range(start, start + cfg.tensorboard.profile_num_steps)


def _leave(
    run_dir: Path,
    result: Report,
    task: steps.Task,
    data: Dataset,
    record: loop.Record,
    test: loop.Scores | None,
    writer: tensorboard.Writer | None,
) -> None:
    """Leave behind what a run is read by: weights, figures, TensorBoard's last pages, and report.json at the end."""
    import numpy as np

    from cifar_research.display import figures
    from cifar_research.runs import metrics

    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    history_sha256 = report.write_history(run_dir / "history.csv", record.history)
    if result["status"] != "stopped":  # which goes on to write another one
        result["history_sha256"] = history_sha256
    if record.history:
        figures.curves(folder / "curves.png", record.history)
    if test is not None:
        save_weights(task.model, run_dir / "model.weights.h5")
        labels = data.test.labels[data.test.indices]
        matrix = metrics.confusion_matrix(labels, test.predictions, len(data.classes))
        confusion = figures.confusion(matrix, data.classes)
        figures.save(confusion, folder / "confusion.png")
        if writer is not None:
            writer.scalars(record.step, {"test/loss": test.loss, "test/accuracy": test.accuracy})
            writer.images("confusion", figures.pixels(confusion), record.step)
            wrong = np.flatnonzero(labels != test.predictions)[:25]
            if len(wrong):
                titles = [f"{data.classes[labels[i]]} → {data.classes[test.predictions[i]]}" for i in wrong]
                mistakes = figures.gallery(data.test.images[data.test.indices[wrong]], titles)
                writer.images("misclassified", figures.pixels(mistakes), record.step)
    # One that was stopped will end later: TensorBoard takes these once.
    if writer is not None and result["status"] != "stopped" and result["val"] is not None:
        outcomes = {"val/accuracy": result["val"]["accuracy"], "val/loss": result["val"]["loss"]}
        outcomes |= {} if test is None else {"test/accuracy": test.accuracy}
        is_cell = (run_dir.parent / LEDGER).exists()
        settings = config.settings(result["config"], result["options"])
        writer.hparams(settings, outcomes, with_columns=not is_cell)
    report.write_report(run_dir / "report.json", result)


def save_weights(model: keras.Model, path: Path) -> None:
    """Write a .weights.h5 so that it is there whole or not at all; WriteError if it cannot be written."""
    temporary, size = path.with_name(f".{path.name}"), sum(weight.value.numpy().nbytes for weight in model.weights)
    try:
        # HDF5 that runs out of room takes the process with it, so that is found out before.
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


def _next_commands(result: Report, run_dir: Path) -> list[str]:
    train = programs.program("train")
    if result["status"] == "stopped":
        allowed = result["config"]["allow_targets"]
        allowing = f"allow_targets=[{','.join(allowed)}] " if allowed else ""
        return [f"{train} {allowing}{shlex.quote(f'resume={run_dir}')}"]
    watch = "scripts/tensorboard" if train.startswith("scripts") else "tensorboard --logdir"
    more = [f"{watch} {shlex.quote(str(run_dir.parent))}", f"{train} --help"]
    is_completed = result["status"] == "completed"
    return [f"{programs.program('evaluate')} {shlex.quote(str(run_dir))}"] * is_completed + more


@contextlib.contextmanager
def _timed(seconds: dict[str, float | None], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
