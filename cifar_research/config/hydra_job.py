"""The job that Hydra would set up for a run: its folder, log and .hydra/."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import messages
from cifar_research.config.composition import Composed
from cifar_research.config.identity import without_hydra
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.files import atomic_write


@dataclass
class HydraJob:
    """A run's job. config: includes Hydra's own section; run_dir: absolute."""

    config: DictConfig
    run_dir: Path
    _held: MemoryHandler

    def begin(self) -> None:
        """Write .hydra/, and from now on train.log, with the records so far."""
        folder = self.run_dir / self.config.hydra.output_subdir
        folder.mkdir(parents=True, exist_ok=True)
        log = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._held.setTarget(log)
        self._held.flush()
        logging.getLogger().removeHandler(self._held)
        logging.getLogger().addHandler(log)
        own = without_hydra(self.config)
        files = {"config": own, "hydra": HydraConfig.instance().cfg, "overrides": self.config.hydra.overrides.task}
        for name, content in files.items():
            atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(content).encode())


@contextlib.contextmanager
def of(composed: Composed) -> Iterator[HydraJob]:
    """Yield the job of a command line, with HydraConfig active and warnings shown; restores both on exit.

    Writes nothing.
    """
    whole, hydra_config = composed.config, HydraConfig.instance()
    before = hydra_config.cfg
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, hydra_config, "cfg", before)
        stack.enter_context(logging_kept())
        hydra_config.set_config(whole)
        try:
            run_dir = Path(os.path.abspath(str(whole.hydra.run.dir)))
            with read_write(whole.hydra), open_dict(whole.hydra):
                whole.hydra.mode = RunMode.RUN
                whole.hydra.runtime.output_dir = str(run_dir)
            hydra_config.set_config(whole)
        except OmegaConfBaseException as error:
            raise ConfigError(messages.explain(error, list(composed.overrides))) from error
        held, shown, root = MemoryHandler(1_000), logging.StreamHandler(), logging.getLogger()
        shown.setLevel(logging.WARNING)
        shown.setFormatter(logging.Formatter("warning: %(message)s"))
        root.setLevel(logging.INFO)
        for handler in (held, shown):
            root.addHandler(handler)
        yield HydraJob(whole, run_dir, held)


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
