"""Cells as jobs of a SLURM cluster, by submitit: arrays with a limit, requeued into the same folder.

The launcher asks squeue what became of its jobs, since accounting (sacct), which submitit asks, is not everywhere, and
without it a job that died is never told from one that runs. A job's exit code is a file beside submitit's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from cifar_research.config import targets
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.files import atomic_write
from cifar_research.runtime.programs import pip
from cifar_research.sweeps.launchers import worker

LOGS = "slurm"  # in the sweep's folder: submitit's files, exit codes, and which job is whose
_JOBS = "jobs.json"
_LARGEST_ARRAY = 1000  # SLURM's own default limit is 1001
_ASK_SECONDS = 5.0  # between two questions to the cluster's controller
_GRACE_SECONDS = 600.0  # the longest that a preempted job waits to be ended
_STOPPED = 128 + signal.SIGTERM
_QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "SUSPENDED"}
_RUNNING = ("RUNNING\n", "SUSPENDED\n")
_ALIVE = _QUEUED | {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED"}


def slurm(
    *,
    jobs: int = 8,
    partition: str | None = None,
    minutes: int = 240,
    requeues: int = 20,
    cpus: int = 4,
    gpus: int = 0,
    memory_gb: float | None = None,
    sbatch: dict | None = None,
) -> Slurm:
    """Run each cell as a job, at most `jobs` at once, in an array where several are submitted together.

    A job gets so many cpus, gpus and GB of memory (null: the cluster's default) for so many minutes; when they end
    before the run does, or the cluster takes the node back, the run saves, and the job is requeued, up to `requeues`
    times for its time limit, and goes on in its folder. sbatch: more of sbatch's options, by their long names. The
    sweep's folder must be one that all nodes see. Killing the command leaves its jobs to the cluster; the next one
    finds them.
    """
    targets.check_range("[]", 1, jobs=jobs, minutes=minutes, cpus=cpus)
    targets.check_range("[]", 0, requeues=requeues, gpus=gpus)
    targets.check_range("(]", 0, memory_gb=memory_gb)
    for name, value in (sbatch or {}).items():
        if not re.fullmatch(r"[\w-]+", str(name)) or not re.fullmatch(r"[^\r\n]*", str(value)):
            raise ValueError(
                f"sbatch: {name!r}: {value!r} would be a line of its own in the job's script; leave it out"
            )
    more: dict[str, Any] = {"requeue": True, **(sbatch or {})}
    memory = None if memory_gb is None else f"{int(memory_gb * 1024)}MB"
    given = {"partition": partition, "gpus_per_node": None if gpus == 0 else gpus, "mem": memory}
    parameters = {
        "job_name": "cifar",
        "time": minutes,
        "cpus_per_task": cpus,
        "array_parallelism": jobs,
        # Time to save in; SLURM itself may be up to a minute early.
        "signal_delay_s": min(120, 30 * minutes),
        "additional_parameters": more,
        **{name: value for name, value in given.items() if value is not None},
    }
    return Slurm(jobs, requeues, cpus, parameters)


class Slurm:
    """See `slurm`."""

    is_on_this_machine = False
    queue = _LARGEST_ARRAY

    def __init__(self, jobs: int, requeues: int, cpus: int, parameters: dict[str, Any]) -> None:
        self.slots = jobs
        self._requeues, self._cpus, self._parameters = requeues, cpus, parameters
        self._waiting: dict[str, Job] = {}  # by cell: handed out, not yet submitted
        self._jobs: dict[str, str] = {}  # by cell: the number of its job
        self._known: dict[str, str] = {}  # the same, with those of earlier launches and those that have ended
        self._earlier: dict[str, str] = {}  # those of an earlier launch that go on
        self._run_dirs: dict[str, Path] = {}
        self._states: dict[str, str] = {}  # by job, as squeue says
        self._missing: set[str] = set()  # cells whose job squeue did not know when last asked
        self._asked = 0.0
        self._logs = Path()
        self._is_stopping = False

    def open(self, folder: Path) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError(f"hydra/launcher=slurm needs submitit: {pip()} install 'cifar_research[slurm]'")
        for program in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"hydra/launcher=slurm: there is no {program} on this machine; start the sweep on a node of the "
                    "cluster from which jobs are submitted, or choose hydra/launcher=local"
                )
        if not self._ask():
            raise ConfigError("hydra/launcher=slurm: squeue fails here, so no job could be followed; try squeue --me")
        self._logs = folder.absolute() / LOGS
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads((self._logs / _JOBS).read_bytes())
        self._earlier = {
            key: number
            for key, number in self._known.items()
            if self._states.get(number) in _ALIVE and self._exit_code(number) is None
        }

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        self._run_dirs[key] = run_dir
        if number := self._earlier.pop(key, None):
            self._jobs[key] = number
            return
        self._waiting[key] = Job(arguments, run_dir.absolute(), trial, self._cpus, self._logs)

    def is_queued(self, key: str) -> bool:
        return key in self._waiting or self._states.get(self._jobs.get(key, ""), "PENDING") in _QUEUED

    def wait(self, seconds: float) -> dict[str, int]:
        if self._is_stopping:
            ended = dict.fromkeys(self._waiting, _STOPPED)
            self._waiting.clear()
        else:
            self._submit()
            ended = {}
        ended |= self._ended()
        if not ended:
            time.sleep(seconds)
            ended = self._ended()
        for key in ended:
            self._jobs.pop(key, None)
            self._missing.discard(key)
        return ended

    def stop(self) -> None:
        self._is_stopping = True
        self.close()

    def close(self) -> None:
        if self._jobs:
            _call("scancel", *self._jobs.values())

    def _submit(self) -> None:
        """Submit what waits: all at once while nothing runs, since an array keeps its own limit; else what fits."""
        free = len(self._waiting) if not self._jobs else self.slots - len(self._jobs)
        keys = list(self._waiting)[: max(0, free)]
        if not keys:
            return
        from submitit.core.utils import FailedJobError
        from submitit.slurm.slurm import SlurmExecutor

        self._logs.mkdir(parents=True, exist_ok=True)
        executor = SlurmExecutor(self._logs, max_num_timeout=self._requeues)
        executor.update_parameters(**self._parameters)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):  # to which submitit prints what sbatch says
                submitted = executor.submit_array([self._waiting[key] for key in keys])
        except FailedJobError as error:
            lines = (said.getvalue() or str(error)).strip().splitlines()
            raise ConfigError(f"hydra.launcher: SLURM refuses the job: {lines[-1]}") from error
        for key, job in zip(keys, submitted, strict=True):
            del self._waiting[key]
            self._jobs[key] = self._known[key] = str(job.job_id)
            (self._logs / f"{job.job_id}.code").unlink(missing_ok=True)  # of a cluster that began to count anew
        atomic_write(self._logs / _JOBS, json.dumps(self._known, indent=1).encode())
        self._asked = time.monotonic()  # which the controller takes a moment to know

    def _ended(self) -> dict[str, int]:
        ended = {key: code for key, number in self._jobs.items() if (code := self._exit_code(number)) is not None}
        if time.monotonic() - self._asked < _ASK_SECONDS or not self._ask():
            return ended
        for key, number in self._jobs.items():
            if key in ended or self._states.get(number) in _ALIVE:
                self._missing.discard(key)
            elif key not in self._missing:  # a shared file system may show the exit code a moment late
                self._missing.add(key)
            else:
                ended[key] = self._post_mortem(key, number)
        return ended

    def _ask(self) -> bool:
        """Learn the states of this user's jobs; False if the controller does not answer, which is no job's end."""
        self._asked = time.monotonic()
        said = _call("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T")
        if said is None:
            return False
        self._states = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line.strip())
        return True

    def _exit_code(self, number: str) -> int | None:
        try:
            return int((self._logs / f"{number}.code").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _post_mortem(self, key: str, number: str) -> int:
        """Return the exit code of a job that has ended without telling one, and write down why."""
        said = _call("scontrol", "--oneliner", "show", "job", number) or ""
        found = re.search(r"\bJobState=(\w+)", said)
        state = found.group(1) if found else "gone"
        # Of an array's tasks that had not begun when they were cancelled, it forgets the names.
        if state == "CANCELLED" or (self._is_stopping and state == "gone"):
            return _STOPPED
        code = re.search(r"\bExitCode=(\S+)", said)
        detail = f" (exit code and signal {code.group(1)})" if code else ""
        worker.note(self._run_dirs[key], f"SLURM ended job {number}: {state}{detail}; its own log is in {self._logs}")
        return 1


class Job:
    """A cell on a node, in a process beside this one, which SLURM's signals reach first; submitit pickles it."""

    def __init__(
        self, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None, cpus: int, logs: Path
    ) -> None:
        self._cell = (arguments, run_dir, trial, cpus)
        self._logs = logs
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        import submitit

        number = submitit.JobEnvironment().job_id
        self._process = worker.spawn(*self._cell)
        while self._process.poll() is None:
            time.sleep(0.2)
        code = self._process.returncode
        if code in (_STOPPED, -signal.SIGTERM):
            # SLURM ended it, and knows whether it comes back. One that makes room for another job it requeues only if
            # it is still there when its grace time is over.
            end = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < end and _call("squeue", "--noheader", "--jobs", number, "--format=%T") in _RUNNING:
                time.sleep(1)
            os._exit(_STOPPED)
        atomic_write(self._logs / f"{number}.code", str(code).encode())

    def checkpoint(self) -> Any:
        """Let the run save; submitit calls this shortly before the time limit, and requeues what it returns."""
        from submitit.core.utils import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # Not Popen.wait, whose lock the code that this signal interrupted may hold.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(*self._cell, self._logs))


def _call(*words: str) -> str | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
