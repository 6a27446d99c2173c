"""The command line of one run: its job, its exit code, and errors as messages."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cifar_research import config
from cifar_research.config import messages
from cifar_research.display import console
from cifar_research.runs import job, reproduction
from cifar_research.runtime.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LockedError,
    ReportError,
    WeightsError,
    WriteError,
)
from cifar_research.training.run import run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.training import loop

log = logging.getLogger(__name__)

# What a user can mend and needs no traceback for; anything else is a mistake of ours, or of a user's own module.
USER_ERRORS = (
    ConfigError, DataError, WeightsError, CheckpointError, ReportError, LockedError,
)  # fmt: skip


def exit_code(arguments: Sequence[str], work: Callable[[], int]) -> int:
    """Return what `work` returns; print an error that the user can fix, and return its exit code instead.

    arguments: the command line, for messages. Logging is as it was afterwards.
    """
    with job.logging_kept():
        logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
        try:
            return work()
        except USER_ERRORS as error:
            console.error(str(error))
            return 2
        except config.HYDRA_ERRORS as error:
            console.error(messages.explain(error, list(arguments)))
            return 2
        except BrokenPipeError:  # `--help | head`
            raise
        except OSError as error:
            has_message = isinstance(error, WriteError) or not error.strerror or not error.filename
            console.error(str(error) if has_message else f"{error.filename}: {error.strerror}")
            return 1
        except KeyboardInterrupt:
            console.error("interrupted")
            return 128 + signal.SIGINT


def train(
    arguments: Sequence[str],
    original: reproduction.Original | None = None,
    is_hopeless: loop.Rule | None = None,
    unlocks: bool = False,
) -> int:
    """Train the one run of a command line, and return the exit code; is_hopeless: see `run`."""
    with job.of(arguments) as this:
        config.check(this.cfg)
        if this.cfg.training.strategy == "multi_worker" and not any(
            argument.startswith("hydra.run.dir=") for argument in arguments
        ):
            raise ConfigError(
                "hydra.run.dir: the workers of training.strategy=multi_worker go on from one folder; give the same one, "
                "on a disk that they share, to all of them"
            )
        if original is not None:
            original.check(this.cfg, this.run_dir)
            for difference in original.differences():
                log.warning("%s", difference)
        try:
            result = run(
                this.cfg,
                this.run_dir,
                is_hopeless=is_hopeless,
                options=_options(this.whole.hydra, original),
                begins=this.begin,
                unlocks=unlocks,
            )
        except (*USER_ERRORS, OSError) as error:
            log.info("ended by an error: %s", error)  # into the run's own log; the terminal is given it by `command`
            raise
        if result["status"] == "stopped":
            return 128 + result["signal"]
        code = int(result["status"] == "diverged")
        if original is not None and original.is_verified:
            verdict, sentence = original.verdict(result)
            console.tell(sentence)
            log.info("%s", sentence)
            code = max(code, verdict)
        return code


def _options(hydra: DictConfig, original: reproduction.Original | None) -> dict[str, str]:
    """Return the names of a run's options; hydra: Hydra's own section."""
    if original is None:
        names = config.option_names(hydra.runtime.choices)
        # Words that repeat a run give groups value by value.
        words = [word.lstrip("+~").partition("=")[0] for word in hydra.overrides.task if word[:1] in "+~"]
        changed = {"training" if word.startswith("training.phases") else word for word in words}
        return {group: name for group, name in names.items() if group not in changed}
    # Its groups are given value by value, but for those that are typed anew.
    return config.option_names(original.report["options"]) | config.option_names(hydra.overrides.task)
