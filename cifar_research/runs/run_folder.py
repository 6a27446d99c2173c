"""A run's folder: its lock, and the state that an earlier process left there."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_research.config.identity import Identity
from cifar_research.config.settings import Settings
from cifar_research.data import datasets
from cifar_research.runs import extension, report
from cifar_research.runs.checkpoint import Checkpoint, Checkpoints
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime import locks
from cifar_research.runtime.errors import CheckpointError, ConfigError, DataError, ReportError

log = logging.getLogger(__name__)


def earlier_state(settings: Settings, run_dir: Path) -> tuple[dict[str, Any] | None, Checkpoint | None]:
    """Return the report of a run that has ended here, or the checkpoint to continue from.

    Both are None in a new folder. ConfigError if of another config, CheckpointError if no checkpoint is usable.
    """
    ended = report.read_report(run_dir / "report.json")
    checkpoints = Checkpoints(run_dir / "checkpoints", settings.training.keep_checkpoints)
    final = ended if ended is not None and ended["status"] != "stopped" else None
    if final is not None and not extension.is_asked_for(before := Identity(final["config"]), settings.identity):
        before.require_same(settings.identity, run_dir)
        # A folder of images may have moved, with the same content.
        if settings.data.name == "images" and settings.data.dir != final["config"]["data"]["dir"]:
            check_images(final["data"], datasets.load(settings.data))
        return final, None
    checkpoint = checkpoints.latest()
    if checkpoint is not None:
        before = Identity(checkpoint.meta["config"])
        if extension.is_asked_for(before, settings.identity):
            extension.check(before, settings, run_dir, checkpoint.meta, ended)
        else:
            before.require_same(settings.identity, run_dir)
    elif final is not None:
        extension.check(Identity(final["config"]), settings, run_dir, None, final)
    elif ended is not None or (run_dir / "history.csv").exists():  # both are written after the first checkpoint
        raise CheckpointError(
            f"{checkpoints.folder}: this run has started, and its checkpoints are missing; restore them from a backup, or "
            "start over in another hydra.run.dir"
        )
    return None, checkpoint


def check_images(before: Mapping[str, Any], data: datasets.Dataset) -> None:
    """Raise ConfigError unless a checkpoint's or report's images are those of `data`."""
    if before["fingerprint"] != data.fingerprint:
        raise ConfigError(
            f"data: this run started with other images (in {before['found_in']}, fingerprint {before['fingerprint']}; now "
            f"in {data.found_in}, {data.fingerprint}); restore its data.dir, or choose another hydra.run.dir"
        )
    if before["labels_sha256"] != data.labels_sha256():
        raise ConfigError(
            "data.labels_file: this run started with other labels; restore the file, or choose another hydra.run.dir"
        )
    if list(data.classes) != before["classes"]:
        raise ConfigError(
            f"data: this run started with the classes {', '.join(before['classes'])}, and the same images now have "
            f"{', '.join(data.classes)}; restore the names of the classes, or choose another hydra.run.dir"
        )


def reopen(run_dir: Path) -> bool:
    """Remove the report and evaluation of a run that continues to more epochs; return whether it had a report."""
    ended = report.read_report(run_dir / "report.json")
    if ended is None or ended["status"] == "stopped":
        return False
    # An evaluation, and its temperature, is of weights that will be replaced.
    shutil.rmtree(run_dir / "evaluation", ignore_errors=True)
    for name in ("evaluation.json", "report.json"):
        (run_dir / name).unlink(missing_ok=True)
    return True


def repair_history(run_dir: Path, ended: dict[str, Any]) -> None:
    """Restore a damaged or missing history.csv of a run that has ended, from a checkpoint."""
    path, checkpoints = run_dir / "history.csv", Checkpoints(run_dir / "checkpoints", keep=1)
    try:
        report.read_history(path, ended["history_sha256"])
    except ReportError:
        with contextlib.suppress(CheckpointError):
            checkpoint = checkpoints.latest()
            if checkpoint is not None and checkpoint.meta["step"] == ended["steps"]:
                report.write_history(path, checkpoint.meta["history"])
                log.warning("%s: was damaged; it is rewritten from %s", path, checkpoints.folder)


@contextlib.contextmanager
def only_process_in(run_dir: Path, is_chief: bool = True, unlocks: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the folder's lock; yield a function to call before the first write.

    Only the chief of a multi-worker run locks. User errors before the first checkpoint leave the folder unchanged.
    """
    if (run_dir / LEDGER).exists():
        raise ConfigError(f"hydra.run.dir: {run_dir} is the folder of a sweep; choose another")
    if below := sorted(run_dir.glob("*/.hydra")):
        raise ConfigError(f"hydra.run.dir: {run_dir} holds other runs, such as {below[0].parent.name}; choose another")
    if not is_chief:
        yield lambda: None
        return
    with locks.only_process_in(run_dir, key="hydra.run.dir", what="process trains", unlocks=unlocks) as keep:

        def begin() -> None:
            keep()
            for name in ("checkpoints", "figures"):
                (run_dir / name).mkdir(exist_ok=True)
            # Remove unfinished files of a killed process, by prefix: the folder may contain other files.
            names = (".history.csv", ".report.json", ".model.", ".changes", "checkpoints/.step-")
            for name in (*names, "figures/.curves.png", "figures/.confusion.png", ".tracker_key"):
                for path in run_dir.glob(f"{name}*"):
                    path.unlink()

        try:
            yield begin
        except (ConfigError, DataError):
            # XLA errors appear only in the first step, a full disk only when features are written.
            if not any(run_dir.glob("checkpoints/*")):
                keep(False)
            raise
