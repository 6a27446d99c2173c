"""One cell in a process of its own: the command line of a run, its lines and errors written into its folder."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import traceback
from pathlib import Path

from filelock import FileLock, Timeout

LOG = "output.log"
_SAID = re.compile(r"(?:error: |\s*(?=[\w.]*(?:Error|Exception|Interrupt)\b))(.+)")
_PATIENCE_SECONDS = 60  # for the process that trained here before, and was told to save and stop


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
    faulthandler.enable()
    from cifar_research import train

    with contextlib.suppress(Timeout), FileLock(run_dir / ".lock", timeout=_PATIENCE_SECONDS):
        pass
    try:
        if trial is None:
            return train.command(arguments)
        from cifar_research.sweep import search

        return train.command(arguments, search.pruner_of(trial))
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
