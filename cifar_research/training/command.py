"""The command line of one run: its job, its exit code, and errors as messages."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cifar_research import config
from cifar_research.config import hydra_job, messages
from cifar_research.config.composition import Composed
from cifar_research.config.identity import option_names
from cifar_research.display import console
from cifar_research.runs import reproduction
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
    from cifar_research.training import loop

log = logging.getLogger(__name__)

# Errors that the user can fix, shown without a traceback. Anything else is a bug, or an error in a user's own module.
USER_ERRORS = (
    ConfigError, DataError, WeightsError, CheckpointError, ReportError, LockedError,
)  # fmt: skip


def exit_code(arguments: Sequence[str], work: Callable[[], int]) -> int:
    """Return what `work` returns; print an error that the user can fix, and return its exit code instead.

    arguments: the command line, for messages. Logging is as it was afterwards.
    """
    with hydra_job.logging_kept():
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
    composed: Composed,
    original: reproduction.Original | None = None,
    is_hopeless: loop.Rule | None = None,
    unlocks: bool = False,
) -> int:
    """Train the one run of a command line, and return the exit code; is_hopeless, unlocks: see `run`."""
    with hydra_job.of(composed) as this:
        parsed = config.parse_composed(composed)
        if parsed.training.strategy == "multi_worker" and not any(
            word.startswith("hydra.run.dir=") for word in composed.overrides
        ):
            raise ConfigError(
                "hydra.run.dir: the workers of training.strategy=multi_worker share one folder; give all of them the same "
                "one, on a disk that they share"
            )
        if original is not None:
            original.check(parsed.identity, this.run_dir)
            # The overrides that repeat a run give its groups value by value: only those typed now have other options.
            options = option_names(original.report["options"]) | option_names(composed.overrides)
            parsed = dataclasses.replace(parsed, options=options)
            for difference in original.differences():
                log.warning("%s", difference)
        try:
            result = run(parsed, this.run_dir, is_hopeless=is_hopeless, begins=this.begin, unlocks=unlocks)
        except (*USER_ERRORS, OSError) as error:
            log.info("ended by an error: %s", error)  # in the run's own log; `exit_code` shows it on the terminal
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
