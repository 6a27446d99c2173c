"""A job in its own process: a run's command line, with output in the run's folder."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cifar_research.runtime import environment, locks

LOG = "output.log"
STALE = 75  # exit code of a job that needs a new process, see environment.StaleProcess
STOPPED = 128 + signal.SIGTERM
_ERROR = re.compile(r"(?:error: |\s*(?=[\w.]*(?:Error|Exception|Interrupt)\b))(.+)")
_PREDECESSOR_SECONDS = 60  # wait for an earlier process of the run to stop
_SAVE_SECONDS = 60


class JobCommand(NamedTuple):
    """A run of a sweep; trial: the address of a search's study and the trial's number."""

    arguments: list[str]
    run_dir: Path
    trial: tuple[str, int] | None


def run(job: JobCommand) -> int:
    """Train with the job's arguments and return the exit code; output goes to output.log."""
    _redirect_output(job.run_dir)
    from cifar_research.config import compose, phases
    from cifar_research.training import command

    unlocks = locks.UNLOCK in job.arguments
    lock = locks.Lock(job.run_dir / ".lock", unlocks=unlocks)
    if lock.acquire(_PREDECESSOR_SECONDS) is None:
        lock.release(restores=True)
    try:
        overrides = [argument for argument in job.arguments if argument != locks.UNLOCK]

        def train() -> int:
            composed, is_hopeless = compose(overrides), None
            if job.trial is not None:
                from cifar_research.sweeps import search

                training = composed.config.training
                is_hopeless = search.pruner_of(job.trial, training.monitor, phases.total_epochs(training))
            return command.train(composed, None, is_hopeless, unlocks)

        return command.exit_code(overrides, train)
    except environment.StaleProcess:
        return STALE
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _redirect_output(run_dir: Path) -> None:
    """Append stdout and stderr, including native code's, to the job's log, in UTF-8."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOG).open("ab") as log:
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), descriptor)
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="replace")
    faulthandler.enable()


def reason(run_dir: Path) -> str:
    """Return the last error in a job's output.log, "" if there is none."""
    try:
        lines = (run_dir / LOG).read_bytes()[-65_536:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    # TensorFlow's message contains the user's exception, indented.
    errors = [match[1] for line in lines if (match := _ERROR.match(line))]
    return errors[-1][:300] if errors else ""


def add_error(run_dir: Path, message: str) -> None:
    """Append an error to a job's output.log that the job could not write itself."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOG).open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"error: {message}\n")


def spawn(job: JobCommand, cores: int, folder: str | None = None) -> subprocess.Popen[bytes]:
    """Start a job in a process with `cores` threads; it saves and stops when this process ends.

    folder: the working directory, for the user's modules and relative paths; None is this process's.
    """
    job.run_dir.mkdir(parents=True, exist_ok=True)
    # Clusters seldom bind jobs to cores, and TensorFlow would use all of the node's.
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    with (job.run_dir / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps([job.arguments, str(job.run_dir), job.trial])],
            stdin=subprocess.PIPE,  # closes when this process ends
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **dict.fromkeys(names, str(cores))},
            start_new_session=True,
        )


def stop_after(wait: Callable[[], object]) -> None:
    """Save and stop this process once `wait`, which blocks until its parent ends, returns."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SAVE_SECONDS)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to all processes, but it is for the parent
    stop_after(lambda: os.read(0, 1))
    _arguments, _run_dir, _trial = json.loads(sys.argv[1])
    sys.exit(run(JobCommand(_arguments, Path(_run_dir), _trial and (_trial[0], _trial[1]))))
