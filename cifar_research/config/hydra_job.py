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
from hydra.core.utils import configure_log, env_override
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
    _records: list[logging.LogRecord]

    def begin(self) -> None:
        """Write the run's log and .hydra/ as configured."""
        hydra = self.config.hydra
        self.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            with _others_handlers_open():
                configure_log(hydra.job_logging, hydra.verbose)
        except ValueError as error:
            raise ConfigError(f"hydra.job_logging: is invalid ({error.__cause__ or error}); correct it") from error
        for record in self._records:
            logger = logging.getLogger(record.name)
            for handler in logging.getLogger().handlers:
                # The terminal has already shown this record.
                is_wanted = logger.isEnabledFor(record.levelno) and record.levelno >= handler.level
                if is_wanted and type(handler) is not logging.StreamHandler:
                    handler.handle(record)
        if hydra.output_subdir is not None:
            folder = self.run_dir / hydra.output_subdir
            folder.mkdir(parents=True, exist_ok=True)
            own = without_hydra(self.config)
            files = {"config": own, "hydra": HydraConfig.instance().cfg, "overrides": hydra.overrides.task}
            for name, content in files.items():
                atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(content).encode())
        if hydra.job.chdir:
            os.chdir(self.run_dir)


@contextlib.contextmanager
def of(composed: Composed) -> Iterator[HydraJob]:
    """Yield the job of a command line, with HydraConfig and hydra.job.env_set active.

    Writes nothing. Restores logging, the working directory and the environment on exit.
    """
    whole, hydra_config = composed.config, HydraConfig.instance()
    before, folder = hydra_config.cfg, Path.cwd()
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, hydra_config, "cfg", before)
        stack.callback(os.chdir, folder)
        hydra_config.set_config(whole)
        try:
            run_dir = Path(os.path.abspath(str(whole.hydra.run.dir)))
            with read_write(whole.hydra), open_dict(whole.hydra):
                whole.hydra.mode = RunMode.RUN
                whole.hydra.runtime.output_dir = str(run_dir)
            hydra_config.set_config(whole)
            stack.enter_context(env_override(whole.hydra.job.env_set))
        except OmegaConfBaseException as error:
            raise ConfigError(messages.explain(error, list(composed.overrides))) from error
        yield HydraJob(whole, run_dir, stack.enter_context(_held_log()))


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Restore logging's handlers, levels and switches on exit."""
    root, manager = logging.getLogger(), logging.root.manager
    named = [logger for logger in manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    loggers = [(logger, logger.handlers[:], logger.level, logger.disabled) for logger in [root, *named]]
    switches = manager.disable, logging.raiseExceptions
    try:
        yield
    finally:
        for handler in root.handlers:
            if not any(handler in handlers for _, handlers, _, _ in loggers):
                handler.close()
        for logger, handlers, level, is_disabled in loggers:
            logger.handlers, logger.disabled = handlers, is_disabled
            logger.setLevel(level)
        logging.disable(switches[0])
        logging.raiseExceptions = switches[1]


@contextlib.contextmanager
def _others_handlers_open() -> Iterator[None]:
    """Keep open what others log to: logging.config closes all handlers of the process, and absl's closes its stream."""
    handlers, names = logging._handlerList[:], dict(logging._handlers)  # type: ignore[attr-defined]
    del logging._handlerList[:]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging._handlerList[:0] = handlers  # type: ignore[attr-defined]
        logging._handlers.update(names)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _held_log() -> Iterator[list[logging.LogRecord]]:
    """Show warnings, and yield the list of records logged before the run's log exists."""
    held, shown, root = MemoryHandler(1_000), logging.StreamHandler(), logging.getLogger()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("warning: %(message)s"))
    root.setLevel(logging.INFO)
    for handler in (held, shown):
        root.addHandler(handler)
    try:
        yield held.buffer
    finally:
        for handler in (held, shown):
            root.removeHandler(handler)
