"""Jobs on a SLURM cluster, by submitit: arrays with a limit, requeued into the same folder.

States are read from squeue: not every cluster has the accounting (sacct) that submitit uses. A job's exit code is in a
file beside submitit's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
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
from cifar_research.sweeps.launchers.worker import STOPPED, JobCommand

LOGS = "slurm"  # in the sweep's folder: submitit's files, exit codes, and each job's SLURM id
_JOBS = "jobs.json"
_ASK_SECONDS = 5.0  # between calls of squeue
_PREEMPTION_SECONDS = 600.0  # how long a preempted job waits to be killed
_QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "SUSPENDED"}
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
    sbatch: dict[str, Any] | None = None,
) -> Slurm:
    """Run each job as a SLURM job, in an array where several are submitted together.

    jobs: How many SLURM jobs run at once.
    partition: The partition; null is the cluster's default.
    minutes: The time limit of a SLURM job.
    requeues: How often a job that has met its time limit is queued again.
    cpus: The CPUs of each SLURM job.
    gpus: The GPUs of each SLURM job.
    memory_gb: The memory of each SLURM job in GB; null is the cluster's default.
    sbatch: More of sbatch's options, by their long names.

    At its time limit, or when the cluster takes the node back, a run saves; it is then requeued and resumed. All nodes
    must see the sweep's folder. If the command is killed, its SLURM jobs continue, and the next launch finds them.
    """
    targets.check_range("[]", 1, jobs=jobs, minutes=minutes, cpus=cpus)
    targets.check_range("[]", 0, requeues=requeues, gpus=gpus)
    targets.check_range("(]", 0, memory_gb=memory_gb)
    for name, value in (sbatch or {}).items():
        if not re.fullmatch(r"[\w-]+", str(name)) or not re.fullmatch(r"[^\r\n]*", str(value)):
            raise ValueError(f"sbatch: {name!r}: {value!r} is not one line of options; remove it")
    parameters: dict[str, Any] = {
        "job_name": "cifar",
        "time": minutes,
        "cpus_per_task": cpus,
        "signal_delay_s": min(120, 30 * minutes),  # time to save; SLURM may be a minute early
        "additional_parameters": {"requeue": True, **(sbatch or {})},
        "partition": partition,
        "gpus_per_node": gpus or None,
        "mem": memory_gb and f"{int(memory_gb * 1024)}MB",
    }
    return Slurm(jobs, requeues, cpus, {name: value for name, value in parameters.items() if value is not None})


class Slurm:
    """See `slurm`."""

    is_on_this_machine = False

    def __init__(self, jobs: int, requeues: int, cpus: int, parameters: dict[str, Any]) -> None:
        self.slots = self.queue = jobs
        self._array, self._limit = "", jobs  # the newest array, and how many of its jobs run at once
        self._requeues, self._cpus, self._parameters = requeues, cpus, parameters
        self._waiting: dict[str, JobCommand] = {}  # by key: not yet submitted
        self._ids: dict[str, str] = {}  # SLURM ids of running and queued jobs
        self._known_ids: dict[str, str] = {}  # with ended jobs and those of earlier launches
        self._run_dirs: dict[str, Path] = {}
        self._states: dict[str, str] = {}  # by SLURM id
        self._missing: set[str] = set()  # keys missing from the last squeue
        self._asked = 0.0
        self._logs = Path()
        self._is_stopping = False

    def open(self, folder: Path) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError(
                f"hydra/launcher: slurm needs submitit; install it with {pip()} install 'cifar_research[slurm]'"
            )
        if not self._ask():
            raise ConfigError(
                "hydra/launcher=slurm: squeue --me fails on this machine; start the sweep on a login node of the cluster, or "
                "use hydra/launcher=local"
            )
        self.queue = max(self.slots, _largest_array())
        self._logs = folder.absolute() / LOGS
        with contextlib.suppress(OSError, ValueError):
            self._known_ids = json.loads((self._logs / _JOBS).read_bytes())

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        known_id = self._known_ids.get(key, "")
        is_alive = self._states.get(known_id) in _ALIVE and self._exit_code(known_id) is None
        if is_alive and key not in self._run_dirs:  # from an earlier launch
            self._ids[key] = known_id
        else:
            self._waiting[key] = JobCommand(arguments, run_dir.absolute(), trial)
        self._run_dirs[key] = run_dir

    def is_queued(self, key: str) -> bool:
        return key in self._waiting or self._states.get(self._ids.get(key, ""), "PENDING") in _QUEUED

    def wait(self, seconds: float) -> dict[str, int]:
        ended: dict[str, int] = {}
        if self._is_stopping:
            ended = dict.fromkeys(self._waiting, STOPPED)
            self._waiting.clear()
        else:
            self._submit()
            self._update_limit()
        ended |= self._ended()
        if not ended:
            time.sleep(seconds)
            ended = self._ended()
        for key in ended:
            self._ids.pop(key, None)
            self._missing.discard(key)
        return ended

    def stop(self) -> None:
        self._is_stopping = True
        self.close()

    def close(self) -> None:
        if self._ids:
            _call("scancel", *self._ids.values())

    def _submit(self) -> None:
        """Submit all waiting jobs as an array once the earlier ones leave room."""
        free, keys = self.slots - len(self._ids), list(self._waiting)
        if free <= 0 or not keys:
            return
        from submitit.core.utils import FailedJobError
        from submitit.slurm.slurm import SlurmExecutor

        self._logs.mkdir(parents=True, exist_ok=True)
        executor = SlurmExecutor(self._logs, max_num_timeout=self._requeues)
        executor.update_parameters(**self._parameters, array_parallelism=free)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):  # submitit prints sbatch's errors
                submitted = executor.submit_array(
                    [SlurmJob(self._waiting[key], self._cpus, self._logs) for key in keys]
                )
        except FailedJobError as error:
            lines = (errors.getvalue() or str(error)).strip().splitlines()
            raise ConfigError(f"hydra.launcher: SLURM rejects the job: {lines[-1]}") from error
        for key, job in zip(keys, submitted, strict=True):
            del self._waiting[key]
            self._ids[key] = self._known_ids[key] = str(job.job_id)
            (self._logs / f"{job.job_id}.code").unlink(missing_ok=True)  # stale if the cluster has reset its ids
        self._array, self._limit = str(submitted[0].job_id).partition("_")[0], free
        atomic_write(self._logs / _JOBS, json.dumps(self._known_ids, indent=1).encode())
        self._asked = time.monotonic()  # squeue lists new jobs with a delay

    def _update_limit(self) -> None:
        """Let the newest array use the slots of earlier ones that have ended."""
        others = sum(slurm_id.partition("_")[0] != self._array for slurm_id in self._ids.values())
        limit = self.slots - others
        if limit != self._limit and others < len(self._ids):
            self._limit = limit
            _call("scontrol", "update", f"JobId={self._array}", f"ArrayTaskThrottle={limit}")

    def _ended(self) -> dict[str, int]:
        ended = {key: code for key, slurm_id in self._ids.items() if (code := self._exit_code(slurm_id)) is not None}
        if time.monotonic() - self._asked < _ASK_SECONDS or not self._ask():
            return ended
        for key, slurm_id in self._ids.items():
            if key in ended or self._states.get(slurm_id) in _ALIVE:
                self._missing.discard(key)
            elif key not in self._missing:  # a shared file system may show the exit code late
                self._missing.add(key)
            else:
                ended[key] = self._code_of_dead(key, slurm_id)
        return ended

    def _ask(self) -> bool:
        """Read the states of the user's SLURM jobs; return whether squeue answers."""
        self._asked = time.monotonic()
        output = _call("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T")
        if output is not None:
            self._states = dict(line.split(maxsplit=1) for line in output.splitlines() if " " in line.strip())
        return output is not None

    def _exit_code(self, slurm_id: str) -> int | None:
        try:
            return int((self._logs / f"{slurm_id}.code").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _code_of_dead(self, key: str, slurm_id: str) -> int:
        """Return the exit code of a job that wrote none; add the reason to its output.log."""
        output = _call("scontrol", "--oneliner", "show", "job", slurm_id) or ""
        fields = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", output))
        state = fields.get("JobState", "gone")
        # SLURM forgets array tasks that were cancelled before they started.
        if state == "CANCELLED" or (self._is_stopping and state == "gone"):
            return STOPPED
        detail = f" (exit code and signal {fields['ExitCode']})" if "ExitCode" in fields else ""
        message = f"SLURM ended job {slurm_id}: {state}{detail}; its own log is in {self._logs}"
        worker.add_error(self._run_dirs[key], message)
        return 1


class SlurmJob:
    """A job on a node, run in a child process; receives SLURM's signals, pickled by submitit."""

    def __init__(self, job: JobCommand, cpus: int, logs: Path) -> None:
        self._job, self._cpus, self._logs = job, cpus, logs
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        import submitit

        slurm_id = submitit.JobEnvironment().job_id
        self._process = worker.spawn(self._job, self._cpus)
        while self._process.poll() is None:
            time.sleep(0.2)
        code = self._process.returncode
        if code in (STOPPED, -signal.SIGTERM):
            # SLURM requeues a preempted job only if it still runs after its grace time.
            end = time.monotonic() + _PREEMPTION_SECONDS
            states = ("RUNNING\n", "SUSPENDED\n")
            while time.monotonic() < end and _call("squeue", "--noheader", "--jobs", slurm_id, "--format=%T") in states:
                time.sleep(1)
            os._exit(STOPPED)
        atomic_write(self._logs / f"{slurm_id}.code", str(code).encode())

    def checkpoint(self) -> Any:
        """Save the run shortly before the time limit; return the job for submitit to requeue."""
        from submitit.core.utils import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # Popen.wait would deadlock if the interrupted code holds its lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmJob(self._job, self._cpus, self._logs))


def _largest_array() -> int:
    """Return how many jobs the cluster takes at once, in an array; 0 if it takes none."""
    settings = dict(
        re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", _call("scontrol", "show", "config") or "", re.M)
    )
    return min(map(int, settings.values()), default=0)


def _call(*command: str) -> str | None:
    """Return a command's output, None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
