"""The command line of one run: errors as messages, exit codes."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research import config
from cifar_research.config import hydra_job, messages, rules
from cifar_research.config.composition import Composed
from cifar_research.config.identity import option_names
from cifar_research.display import console
from cifar_research.runs import reproduction
from cifar_research.runtime.errors import ConfigError, UserError
from cifar_research.training.run import run

if TYPE_CHECKING:
    from cifar_research.training import loop

log = logging.getLogger(__name__)


def exit_code(arguments: Sequence[str], work: Callable[[], int]) -> int:
    """Return the exit code of `work`; print errors that the user can fix.

    arguments: the command line, for messages. Restores logging on exit.
    """
    with hydra_job.logging_kept():
        logging.raiseExceptions = False  # no traceback if the disk is too full for the log
        try:
            return work()
        except UserError as error:
            console.error(str(error))
            return 2
        except config.HYDRA_ERRORS as error:
            console.error(messages.explain(error, list(arguments)))
            return 2
        except BrokenPipeError:  # `--help | head`
            raise
        except OSError as error:
            console.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
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
    """Train a run, or repeat `original`; return the exit code. Other arguments: see `run`."""
    result, _ = trained(composed, original, is_hopeless=is_hopeless, unlocks=unlocks, second_signal_exits=True)
    if result["status"] == "stopped":
        return 128 + result["signal"]
    code = int(result["status"] == "diverged")
    if original is not None and original.is_verified:
        verdict, sentence = original.verdict(result)
        console.tell(sentence)
        log.info("%s", sentence)
        code = max(code, verdict)
    return code


def trained(
    composed: Composed, original: reproduction.Original | None = None, **settings: Any
) -> tuple[dict[str, Any], Path]:
    """Check and train a run; return the content of report.json, and the run's folder. settings: of `run`."""
    with hydra_job.of(composed) as (run_dir, begin):
        parsed = config.parse_composed(composed)
        if parsed.training.strategy == "multi_worker" and not any(
            word.startswith("hydra.run.dir=") for word in composed.overrides
        ):
            raise ConfigError(
                "hydra.run.dir: the workers of training.strategy=multi_worker need one folder; give all of them the same "
                "one, on a shared disk"
            )
        notes = [*rules.without_effect(parsed.content, composed.overrides).values()]
        if original is not None:
            original.check(parsed.identity, run_dir)
            # --from-run sets groups by their values, so only options typed now differ from the original's.
            options = option_names(original.report["options"]) | option_names(composed.overrides)
            parsed = dataclasses.replace(parsed, options=options)
            notes += original.differences()
        for note in notes:
            log.warning("%s", note)
        try:
            return run(parsed, run_dir, begins=begin, **settings), run_dir
        except (UserError, OSError) as error:
            log.info("ended by an error: %s", error)  # for the run's log; `exit_code` prints it
            raise
