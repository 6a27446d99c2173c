"""The job that Hydra would set up for a run: its folder, log and .hydra/."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cifar_research.config.composition import Composed
from cifar_research.config.identity import plain
from cifar_research.runtime.files import atomic_write


@dataclass
class HydraJob:
    """A run's job. config: includes Hydra's own section; run_dir: absolute."""

    config: DictConfig
    run_dir: Path
    _shown: logging.Handler
    _held: MemoryHandler

    def begin(self) -> None:
        """Write .hydra/, and from now on train.log, with the records so far."""
        folder = self.run_dir / ".hydra"
        folder.mkdir(parents=True, exist_ok=True)
        log = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._held.setTarget(log)
        self._held.flush()
        logging.getLogger().handlers[:] = [self._shown, log]  # without those of a calling program
        hydra = self.config.hydra
        files = {
            "config": plain(self.config, resolve=False),
            "hydra": {"hydra": hydra},
            "overrides": hydra.overrides.task,
        }
        for name, content in files.items():
            atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)).encode())


@contextlib.contextmanager
def of(composed: Composed) -> Iterator[HydraJob]:
    """Yield the job of a command line, with warnings shown; restores logging on exit. Writes nothing."""
    config, root = composed.config, logging.getLogger()
    run_dir = Path(os.path.abspath(str(config.hydra.run.dir)))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.mode = RunMode.RUN
        config.hydra.runtime.output_dir = str(run_dir)
    with logging_kept():
        held, shown = MemoryHandler(1_000), logging.StreamHandler()
        shown.setLevel(logging.WARNING)
        shown.setFormatter(logging.Formatter("warning: %(message)s"))
        root.setLevel(logging.INFO)
        for handler in (held, shown):
            root.addHandler(handler)
        yield HydraJob(config, run_dir, shown, held)


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
