"""The job that Hydra would set up for a run: its folder, log and .hydra/."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict, read_write

from cifar_research.config.composition import Composed
from cifar_research.config.identity import plain
from cifar_research.runtime.files import atomic_write


@contextlib.contextmanager
def of(composed: Composed) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a run's absolute folder and a function that begins its job; restores logging on exit.

    Warnings are shown. The function writes .hydra/, and from then on train.log, with the records so far.
    """
    config, root = composed.config, logging.getLogger()
    run_dir = Path(os.path.abspath(str(config.hydra.run.dir)))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.mode = RunMode.RUN
        config.hydra.runtime.output_dir = str(run_dir)
    held, shown = MemoryHandler(1_000), logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("warning: %(message)s"))

    def begin() -> None:
        folder = run_dir / ".hydra"
        folder.mkdir(parents=True, exist_ok=True)
        log = logging.FileHandler(run_dir / "train.log", encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        held.setTarget(log)
        held.flush()
        root.handlers[:] = [shown, log]  # without those of a calling program
        hydra = {"hydra": config.hydra}
        files = {"config": plain(config, resolve=False), "hydra": hydra, "overrides": config.hydra.overrides.task}
        for name, content in files.items():
            atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)).encode())

    with logging_kept():
        root.setLevel(logging.INFO)
        root.handlers += [held, shown]
        yield run_dir, begin


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Restore the root logger's handlers and level, and logging.raiseExceptions, on exit."""
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raises
