"""One cell in a process of its own: the command line of a run, its lines and errors written into its folder.

`run_cell` is what happens in that process; `spawn` starts one, where a cluster's own process must outlive it.
"""

from __future__ import annotations

import faulthandler
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

from cifar_research.runtime import locks

LOG = "output.log"
_SAID = re.compile(r"(?:error: |\s*(?=[\w.]*(?:Error|Exception|Interrupt)\b))(.+)")
_PATIENCE_SECONDS = 60  # for the process that trained here before, and was told to save and stop
_GRACE_SECONDS = 60  # to save a checkpoint, once told to stop


def run_cell(arguments: list[str], run_dir: Path, trial: tuple[str, int] | None = None) -> int:
    """Train as `cifar-train` with these arguments would, and return its exit code; errors are in output.log."""
    run_dir.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # By descriptor, so that what native code says before it dies is kept as well.
    log = os.open(run_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # the log is in UTF-8, whatever the locale
    faulthandler.enable()
    from cifar_research.config import compose
    from cifar_research.training import command

    lock = locks.Lock(run_dir / ".lock", unlocks=locks.UNLOCK in arguments)
    if lock.acquire(_PATIENCE_SECONDS) is None:
        lock.release(restores=True)
    try:
        is_hopeless = None
        if trial is not None:
            from cifar_research.sweeps import search

            is_hopeless = search.pruner_of(trial)
        unlocks = locks.UNLOCK in arguments
        overrides = [word for word in arguments if word != locks.UNLOCK]
        return command.exit_code(overrides, lambda: command.train(compose(overrides), None, is_hopeless, unlocks))
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def reason(run_dir: Path) -> str:
    """Return why a cell failed: the last error, or exception, that it wrote into output.log; empty if it wrote none."""
    try:
        with (run_dir / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65_536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # TensorFlow puts the user's exception, indented, into the message of its own.
    said = [match.group(1) for line in lines if (match := _SAID.match(line))]
    return said[-1][:300] if said else ""


def note(run_dir: Path, text: str) -> None:
    """Add an error to a cell's output.log that its own process could not write."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOG).open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"error: {text}\n")


def spawn(
    arguments: list[str], run_dir: Path, trial: tuple[str, int] | None, cores: int, folder: str | None = None
) -> subprocess.Popen:
    """Start `run_cell` in a process that uses so many cores, and that saves and stops when this one is gone.

    folder: the one the sweep was started in, where a user's own modules and relative paths are; None is this one's.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    # A cluster counts cores but seldom binds them, and TensorFlow would take those of the whole node.
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    with (run_dir / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps([arguments, str(run_dir), trial])],
            stdin=subprocess.PIPE,  # whose end tells it that this process is gone
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **dict.fromkeys(names, str(cores))},
            start_new_session=True,
        )


def stop_after(is_gone: Callable[[], object]) -> None:
    """Save and stop this process once `is_gone`, which waits for its parent's end, has returned."""

    def watch() -> None:
        is_gone()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _main() -> int:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to every process of a job; the parent acts on it
    stop_after(lambda: os.read(0, 1))
    arguments, run_dir, trial = json.loads(sys.argv[1])
    return run_cell(arguments, Path(run_dir), trial and (trial[0], trial[1]))


if __name__ == "__main__":
    sys.exit(_main())
