"""cifar-train: from a config to a trained, tested and reported classifier."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf

from cifar_research import (
    announcement,
    commandline,
    config,
    console,
    cores,
    mistakes,
    phases,
    report,
    reproduction,
    run_folder,
)
from cifar_research import environment as environments
from cifar_research import sweep as sweeps
from cifar_research.backbones.weights import WeightsError
from cifar_research.checkpoint import Checkpoint, CheckpointError, Checkpoints
from cifar_research.data import datasets
from cifar_research.data.datasets import DataError
from cifar_research.sweep.cells import LEDGER

if TYPE_CHECKING:
    import keras
    from omegaconf import DictConfig

    from cifar_research import loop, steps, tensorboard
    from cifar_research.data.datasets import Dataset

log = logging.getLogger(__name__)
Report = dict[str, Any]
# What a user can mend and needs no traceback for; anything else is a mistake of ours, or of a user's own module.
USER_ERRORS = (config.ConfigError, DataError, WeightsError, CheckpointError, report.ReportError)


def run(
    cfg: DictConfig,
    run_dir: Path | str,
    display: console.Display | None = None,
    is_hopeless: loop.Rule | None = None,
) -> Report:
    """Train, test and report one classifier in the folder `run_dir`; return what is in its report.json.

    is_hopeless: asked after each epoch with its row of the history; if it says so the run ends as `pruned`, untested.
    Called again in the same folder it goes on where it stopped, or returns the report it wrote if it had ended.
    Raises a ValueError in sentences for the user: ConfigError if the config cannot work or is not the folder's,
    DataError if data is missing or damaged, CheckpointError if no checkpoint can be used.
    """
    began = time.perf_counter()
    config.check(cfg)
    run_dir = Path(run_dir)
    is_chief = environments.is_chief(cfg.training.strategy)
    display = display or console.Display(quiet=not is_chief)
    with run_folder.only_process_in(run_dir, is_chief):
        ended, checkpoint = run_folder.begun(cfg, run_dir)
        if ended is not None:
            run_folder.mend_history(run_dir, ended)
            display.message(f"{run_dir}: this run has ended already, {ended['status']}.")
            return ended

        # Data before TensorFlow: what is missing or damaged is told at once.
        seconds: dict[str, float | None] = {}
        with _timed(seconds, "data"):
            data = datasets.load(cfg.data)
            _check_data(cfg, data, checkpoint)

        with _timed(seconds, "import"):
            environment = environments.prepare(cfg.training, cfg.seed, cores.parts(cfg, data))
            from cifar_research import loop, steps, tasks, tensorboard

        with environment.strategy.scope():
            task = tasks.build(cfg, data, environment.parts)
            if checkpoint is None:
                tasks.load_weights(cfg, task, data)
        checkpoints, record = Checkpoints(run_dir / "checkpoints", cfg.training.keep_checkpoints), loop.Record()
        if checkpoint is not None:
            loop.restore(task, record, checkpoint)

        writer = None
        if cfg.tensorboard.enabled and is_chief:
            writer = tensorboard.Writer(run_dir / "tensorboard", resume_step=record.step if checkpoint else None)
            if checkpoint is None:
                _describe(writer, cfg, task, data)
        with display, contextlib.closing(writer) if writer else contextlib.nullcontext():
            plan = phases.plan(cfg)
            # Of all phases, so that a layer's name misspelt in the last one costs no training of the first.
            trained = {phase.name: tasks.num_trained(task, phase) for phase in plan}
            display.announce(announcement.rows(cfg, task, data, environment, run_dir, max(trained.values())))
            if checkpoint is not None:
                display.message(f"Going on from step {record.step}.")
                if (before := checkpoint.meta.get("device", environment.device)) != environment.device:
                    display.message(
                        f"It was saved on {before}: its last digits will not be those of a run on either alone."
                    )
            evaluate = functools.partial(loop.Evaluation, task, environment, cfg.training.eval_batch_size)
            evaluate_images = evaluate(steps.images_view(task, views=cfg.evaluation.views))
            total_steps, total_epochs = tasks.total_steps(cfg, data), phases.total_epochs(cfg.training)
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
                display.phase(*announcement.phase(cfg, number))
                began_enter = time.perf_counter()
                # Outside of stop_signals: all is saved, and a signal may end a computation of features at once.
                seen, view = tasks.enter(cfg, task, data, plan, record, display.message)
                record.seconds += time.perf_counter() - began_enter
                evaluate_phase = evaluate_images if seen is data else evaluate(view)
                is_last = number == len(plan) - 1
                with environments.stop_signals(within_calls=True) as received:
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
            result = report.gather(cfg, task, data, environment, record, outcome, test, seconds, trained)
            if is_chief:
                _leave(run_dir, result, task, data, record, test, writer)
            display.results(result, run_dir, _next_commands(result, run_dir), announcement.pace(cfg, record.history))
        return result


def _check_data(cfg: DictConfig, data: Dataset, checkpoint: Checkpoint | None) -> None:
    """Refuse what can only be seen once the data is there."""
    if checkpoint is not None and checkpoint.meta["fingerprint"] != data.fingerprint:
        raise config.ConfigError(
            f"data: this run was begun with the images of fingerprint {checkpoint.meta['fingerprint']}, and what is "
            f"found now has {data.fingerprint}; give the data.dir it had, or choose another hydra.run.dir"
        )
    if problems := phases.check_numbers(cfg, len(data.train), len(data.val)):
        raise config.ConfigError("\n".join(problems))


def _describe(writer: tensorboard.Writer, cfg: DictConfig, task: steps.Task, data: Dataset) -> None:
    """Show in TensorBoard what is about to be trained: the config, the graph, augmented samples."""
    import tensorflow as tf

    from cifar_research import augmentation
    from cifar_research.steps import prepare

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

    from cifar_research import figures, metrics

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
        figures.confusion(folder / "confusion.png", matrix, data.classes)
        if writer is not None:
            writer.scalars(record.step, {"test/loss": test.loss, "test/accuracy": test.accuracy})
            writer.images("confusion", figures.confusion_image(matrix, data.classes), record.step)
            wrong = np.flatnonzero(labels != test.predictions)[:25]
            if len(wrong):
                names = [[data.classes[i] for i in of[wrong]] for of in (labels, test.predictions)]
                pictures = data.test.images[data.test.indices[wrong]]
                writer.images("misclassified", figures.mistakes_image(pictures, *names), record.step)
    # One that was stopped will end later: TensorBoard takes these once.
    if writer is not None and result["status"] != "stopped" and result["val"] is not None:
        outcomes = {"val/accuracy": result["val"]["accuracy"], "val/loss": result["val"]["loss"]}
        outcomes |= {} if test is None else {"test/accuracy": test.accuracy}
        is_cell = (run_dir.parent / LEDGER).exists()
        writer.hparams(config.settings(result["config"]), outcomes, with_columns=not is_cell)
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
        raise report.WriteError(error.errno, f"{path}: cannot be written ({reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _next_commands(result: Report, run_dir: Path) -> list[str]:
    train = commandline.program("train")
    if result["status"] == "stopped":
        allowed = result["config"]["allow_targets"]
        allowing = f"allow_targets=[{','.join(allowed)}] " if allowed else ""
        return [f"{train} {allowing}{shlex.quote(f'resume={run_dir}')}"]
    watch = "scripts/tensorboard" if train.startswith("scripts") else "tensorboard --logdir"
    more = [f"{watch} {shlex.quote(str(run_dir.parent))}", f"{train} --help"]
    is_completed = result["status"] == "completed"
    return [f"{commandline.program('evaluate')} {shlex.quote(str(run_dir))}"] * is_completed + more


@contextlib.contextmanager
def _timed(seconds: dict[str, float | None], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


@console.command
def main() -> None:
    """The command line.

    Exit codes: 0 done, 1 diverged or failed, 2 a user's mistake, 128 and the number of the signal that stopped it, and
    with --verify 0 identical, 3 within noise, 1 not reproduced.
    """
    sys.exit(command(sys.argv[1:]))


def command(arguments: Sequence[str], is_hopeless: loop.Rule | None = None) -> int:
    """Do what `cifar-train` with these arguments does, and return its exit code; is_hopeless: see `run`."""
    # Hydra then hands errors through as exceptions, instead of printing them its own way with exit code 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
    codes: list[int] = []
    original: reproduction.Original | None = None

    def job(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        for difference in original.differences() if original else ():
            log.warning("%s", difference)
        try:
            result = run(cfg, HydraConfig.get().runtime.output_dir, is_hopeless=is_hopeless)
        except (*USER_ERRORS, OSError) as error:
            console.error(str(error))
            log.info("ended by an error: %s", error)  # into the run's own log; on the terminal it stands already
            codes.append(2 if isinstance(error, USER_ERRORS) else 1)
            return
        codes.append(128 + result["signal"] if result["status"] == "stopped" else result["status"] == "diverged")
        if original is not None and original.is_verified and result["status"] != "stopped":
            code, sentence = original.verdict(result)
            console.tell(sentence)
            log.info("%s", sentence)
            codes.append(code)

    try:
        arguments, original = reproduction.taken(arguments)
        if told := mistakes.flags(arguments):
            raise config.ConfigError(told)
        sys.argv[1:] = arguments = sweeps.for_help(commandline.expand(arguments))
        if sweeps.is_sweep(arguments):
            if original is not None and original.is_verified:
                raise config.ConfigError("--verify: is for one run, and this is a sweep; leave one of them out")
            return sweeps.run(arguments)
        if not any(argument.startswith("-") for argument in arguments):
            _refuse_early(arguments, original)
        elif any(
            word.startswith(("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help")) for word in arguments
        ):
            # Hydra sets up its own logging before it shows anything.
            config.compose([word for word in arguments if not word.startswith("-") and "=" in word], with_hydra=True)
        hydra.main(version_base="1.3", config_path=config.config_dir(), config_name="config")(job)()
    except USER_ERRORS as error:
        console.error(str(error))
        return 2
    except config.HYDRA_ERRORS as error:
        console.error(mistakes.explain(error, list(arguments)))
        return 2
    except BrokenPipeError:  # `--help | head`
        raise
    except OSError as error:
        # Of Hydra's own files, on a full disk, it tells no name.
        place = error.filename or next((word for word in arguments if word.startswith("hydra.run.dir=")), "outputs")
        is_told = isinstance(error, report.WriteError) or not error.strerror
        console.error(str(error) if is_told else f"{place}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        console.error("interrupted")
        return 128 + signal.SIGINT
    return int(max(codes, default=0))


def _refuse_early(arguments: list[str], original: reproduction.Original | None) -> None:
    """Refuse a config before Hydra writes into a folder: a bad one leaves none, another one leaves what is there."""
    cfg = config.compose(arguments)
    config.check(cfg)
    is_given = any(argument.startswith("hydra.run.dir=") for argument in arguments)
    if cfg.training.strategy == "multi_worker" and not is_given:
        raise config.ConfigError(
            "hydra.run.dir: the workers of training.strategy=multi_worker go on from one folder; give the same one, "
            "on a disk that they share, to all of them"
        )
    run_dir = Path(config.compose(arguments, with_hydra=True).hydra.run.dir) if is_given else None
    if original is not None:
        original.check(cfg, run_dir)
    if run_dir is not None:
        logging.disable(logging.WARNING)  # `run` looks again, and then says what it finds
        with run_folder.only_process_in(run_dir, environments.is_chief(cfg.training.strategy)):
            run_folder.begun(cfg, run_dir)
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
