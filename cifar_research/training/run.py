"""A run: train, test and report one classifier in its folder."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research.config import rules
from cifar_research.config.settings import Settings
from cifar_research.data import datasets
from cifar_research.display import console, header
from cifar_research.runs import checkout, metrics, run_folder
from cifar_research.runs.checkpoint import Checkpoint, Checkpoints
from cifar_research.runtime import environment as environments
from cifar_research.runtime import programs, signals
from cifar_research.runtime.errors import DataError, refuse
from cifar_research.training import shards

if TYPE_CHECKING:
    from cifar_research.data.datasets import Dataset
    from cifar_research.training.loop import Outcome, Rule, Run
    from cifar_research.training.saver import Saver
    from cifar_research.training.scoring import Scores

Report = dict[str, Any]


def run(
    settings: Settings,
    run_dir: Path | str,
    display: console.Display | None = None,
    *,
    is_hopeless: Rule | None = None,
    begins: Callable[[], None] | None = None,
    unlocks: bool = False,
    second_signal_exits: bool = False,
) -> Report:
    """Train, test and report one classifier in `run_dir`; return the content of report.json.

    In a folder with an earlier run of this config, continues it, or returns its report if it has ended.
    is_hopeless: called after each epoch with its row of the history; True ends the run as `pruned`, untested.
    begins: called after all checks, before the first file is written. unlocks, second_signal_exits: see Lock, stop_signals.
    Raises, with the folder unchanged, ConfigError if the config is invalid or differs from the folder's, DataError if
    data is missing or damaged, CheckpointError if no checkpoint is usable, LockedError if another process trains there.
    """
    began, seconds = time.perf_counter(), dict[str, float | None]()
    run_dir, is_chief = Path(run_dir), environments.is_chief(settings.training.strategy)
    display = display or console.Display(quiet=not is_chief)
    with run_folder.only_process_in(run_dir, is_chief, unlocks) as keep, environments.restored():
        ended, checkpoint = run_folder.earlier_state(settings, run_dir)
        if ended is not None:
            run_folder.repair_history(run_dir, ended)
            display.message(f"{run_dir}: this run has already ended: {ended['status']}.")
            return ended
        # Data before TensorFlow: errors in the data are reported at once.
        with _timed(seconds, "data"):
            data = _load_data(settings, checkpoint)
        with _timed(seconds, "import"):
            environment = environments.prepare(settings.training, settings.seed, shards.count(settings, data))
            from cifar_research.training import loop, outputs, result, saver, setup
            from cifar_research.training.state import Progress
        with environment.strategy.scope():
            state, progress = setup.build(settings, data, environment.batch_shards), Progress()
            if checkpoint is None:
                setup.load_weights(state, settings.backbone, data)
            else:
                saver.restore(state, progress, checkpoint)
        # Check all phases now: a wrong layer name must not fail after the first has trained.
        trained = setup.trained_by_phase(settings, state)
        keep()
        if begins is not None and is_chief:
            begins()
        resumed = None if checkpoint is None else progress
        with outputs.opened(display, run_dir, settings, is_chief, resumed) as opened:
            saving = _saver(settings, data, environment.device, run_dir, is_chief)
            parts = loop.Run(settings, data, environment, state, progress, saving, opened, seconds)
            flops, git = _describe(parts, max(trained.values()), checkpoint)
            outcome, test = _train_and_test(parts, is_hopeless, second_signal_exits)
            seconds["total"] = progress.elapsed + time.perf_counter() - began
            content = result.gather(parts, outcome, test, trained, flops, git)
            if is_chief:
                outputs.leave(opened, content, state.model, data, progress, test)
            if is_chief and content["status"] != "stopped":
                saving.checkpoints.end()
            display.results(content, run_dir, _next_commands(content, run_dir))
        return content


def _saver(settings: Settings, data: Dataset, device: str, run_dir: Path, is_chief: bool) -> Saver:
    from cifar_research.training.saver import Saver

    identity = {
        "config": settings.content,
        "fingerprint": data.fingerprint,
        "labels_sha256": data.labels_sha256(),
        "classes": list(data.classes),
        "found_in": data.found_in,
        "device": device,
    }
    checkpoints = Checkpoints(run_dir / "checkpoints", settings.training.keep_checkpoints)
    return Saver(checkpoints, identity, is_chief, time.perf_counter())


def _load_data(settings: Settings, checkpoint: Checkpoint | None) -> Dataset:
    """Return the data, the same as the checkpoint's; ConfigError if it does not fit the config."""
    found_in = None if checkpoint is None else checkpoint.meta["found_in"]
    try:
        data = datasets.load(settings.data, found_in)
    except DataError as error:
        if not found_in or found_in in str(error):
            raise
        raise DataError(f"{error} (this run found its data in {found_in})") from error
    if checkpoint is not None:
        run_folder.check_images(checkpoint.meta, data)
    problems = rules.data_problems(settings.content, len(data.train), len(data.val))
    counts = (split.counts(len(data.classes)) for split in (data.train, data.val))
    refuse(problems + metrics.problems(settings.training.monitor, *counts))
    return data


def _describe(run: Run, num_trained: int, checkpoint: Checkpoint | None) -> tuple[int | None, dict[str, Any] | None]:
    """Show the run's config and where it continues; return forward_flops and git of report.json.

    Writes model.txt and the uncommitted changes.
    """
    from cifar_research.training import outputs

    settings, data, display, folder = run.settings, run.data, run.outputs.display, run.outputs.folder
    if run.outputs.writer and checkpoint is None:
        outputs.describe(run.outputs.writer, settings.yaml, run.state, data.train)
    parameters = run.state.model.count_params()
    display.announce(header.rows(settings, parameters, data, run.environment, folder, num_trained))
    if checkpoint is not None:
        if run.saver.is_chief and run_folder.reopen(folder):
            display.message(
                f"Its report will be replaced by one for {settings.total_epochs} epochs; an evaluation is removed."
            )
            if (folder / "export").exists():
                display.message(f"{folder / 'export'} holds the earlier weights; export again after this run.")
        if settings.data.dir is None and data.found_in:
            display.message(f"The data is in {data.found_in}.")
        display.message(f"Continuing from step {run.progress.step}.")
        if (before := checkpoint.meta["device"]) != (now := run.environment.device):
            display.message(f"This run was saved on {before}. On {now} the results may differ.")
    if not run.saver.is_chief:
        return None, None
    git = None
    if code := checkout.read(Path(__file__).parent):
        git = code.leave(folder)
        if code.not_kept:
            display.message(f"{checkout.PATCH} is not written: {code.not_kept}.")
        elif git["changes"] != checkout.PATCH and (folder / checkout.PATCH).exists():
            display.message(f"The uncommitted changes of the code are no longer those in {checkout.PATCH}.")
    return outputs.describe_model(folder / "model.txt", run.state.model), git


def _train_and_test(run: Run, is_hopeless: Rule | None, second_signal_exits: bool) -> tuple[Outcome, Scores | None]:
    """Train all phases, and test the best weights if all are complete."""
    from cifar_research.training import forward, loop, norms, setup, warnings
    from cifar_research.training.scoring import Evaluation

    settings, data, state, progress, saver = run.settings, run.data, run.state, run.progress, run.saver
    batch_size, device = settings.training.eval_batch_size, run.environment.prefetch_device
    whole = forward.of_images(state.preprocessing, state.model, views=settings.evaluation.views)
    counts = data.train.counts(len(data.classes))
    evaluate_images = Evaluation(state, batch_size, whole, counts, device)
    total_steps = setup.steps_per_epoch(settings, data) * settings.total_epochs
    for line in warnings.of_run(settings, state.model, total_steps):
        run.outputs.display.message(line)
    run.outputs.display.start(total_steps, progress.step, settings.total_epochs, settings.training.monitor)
    run.seconds["first_step"] = None
    for number in range(progress.phase, len(settings.phases)):
        phase = settings.phases[number]
        if number > progress.phase:
            loop.next_phase(state, progress, saver, keeps_optimizer=phase.keeps_optimizer)
        run.outputs.display.phase(*header.phase(settings, number))
        began = time.perf_counter()
        # Outside stop_signals: all is saved, so a signal may interrupt the computation of features.
        phase_data, phase_forward = setup.enter(settings, state, data, progress, run.outputs.display.message)
        progress.seconds += time.perf_counter() - began
        is_of_images = phase_data is data
        evaluate = evaluate_images if is_of_images else Evaluation(state, batch_size, phase_forward, counts, device)
        with signals.stop_signals(within_calls=second_signal_exits) as stop:
            measure = norms.measurement(settings, state, phase_data.train, phase_forward, run.environment.strategy)
            outcome = loop.fit(run, loop.Stage(phase_data, evaluate, measure, stop, is_hopeless))
        if outcome.status != "completed":
            break
    run.seconds["train"] = sum(row["seconds"] for row in progress.history) + progress.seconds
    if outcome.status != "completed" or not run.saver.is_chief:
        return outcome, None
    with _timed(run.seconds, "evaluate"):
        saver.restore_best(state, progress)
        return outcome, evaluate_images(data.test)


def _next_commands(result: Report, run_dir: Path) -> list[str]:
    train = programs.program("train")
    allowed = result["config"]["allow_targets"]
    allowing = [f"allow_targets=[{','.join(allowed)}]"] if allowed else []
    if result["status"] == "stopped":
        return [f"{train} {shlex.join([*allowing, f'resume={run_dir}'])}"]
    commands = []
    if result["status"] == "completed":
        commands.append(f"{programs.program('evaluate')} {shlex.join([str(run_dir), *allowing])}")
    if result["config"]["tensorboard"]["enabled"]:
        watch = "scripts/tensorboard" if train.startswith("scripts") else "tensorboard --logdir"
        commands.append(f"{watch} {shlex.quote(str(run_dir.parent))}")
    return [*commands, f"{train} --help"]


@contextlib.contextmanager
def _timed(seconds: dict[str, float | None], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
