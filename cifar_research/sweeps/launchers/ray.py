"""Jobs as tasks of a running Ray cluster; jobs survive the failure of a node."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from cifar_research.config import targets
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.programs import pip
from cifar_research.sweeps.launchers import worker
from cifar_research.sweeps.launchers.worker import JobCommand

_NODE_FAILURES = 20  # of one job, before it is marked failed
_STOP = ".stop"  # in a run's folder: cancelling does not always reach a running task


def ray(*, address: str = "auto", jobs: int | None = None, cpus: int = 1, gpus: float = 0) -> Ray:
    """Run each job as a task of a Ray cluster.

    address: The cluster's host:port; auto is this machine's cluster, or RAY_ADDRESS.
    jobs: How many jobs run at once; null is as many as fit the cluster.
    cpus: The CPUs of each job.
    gpus: The GPUs of each job; a fraction shares one.

    When a node dies, Ray gives its jobs to another node, which resumes them: all nodes must see the sweep's folder.
    """
    targets.check_range("[]", 1, jobs=jobs, cpus=cpus)
    targets.check_range("[]", 0, gpus=gpus)
    return Ray(address, jobs, cpus, gpus)


class Ray:
    """See `ray`."""

    is_on_this_machine = False

    def __init__(self, address: str, jobs: int | None, cpus: int, gpus: float) -> None:
        self._address, self._jobs, self._cpus, self._gpus = address, jobs, cpus, gpus
        self._library: Any = None
        self._task: Any = None
        self._running: dict[Any, tuple[str, Path]] = {}  # by the reference of the task's result

    def open(self, folder: Path) -> None:
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray as library
        except ImportError:
            raise ConfigError(
                f"hydra/launcher: ray needs Ray; install it with {pip()} install 'cifar_research[ray]'"
            ) from None
        try:
            library.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, library.exceptions.RayError) as error:
            raise ConfigError(
                f"hydra.launcher.address: no Ray cluster answers at {self._address} ({targets.error_text(error)}); start one with "
                "ray start --head, and set RAY_AUTH_MODE=token here too if it was started so"
            ) from error
        self._library = library
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": _NODE_FAILURES, "max_calls": 1}
        self._task = library.remote(**options)(_run)

    @property
    def slots(self) -> int:
        resources = self._library.cluster_resources()
        room = resources.get("CPU", 0) // self._cpus
        if self._gpus:
            room = min(room, resources.get("GPU", 0) // self._gpus)
        return max(1, min(int(room), self._jobs or int(room)))

    queue = slots

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        (run_dir / _STOP).unlink(missing_ok=True)
        reference = self._task.remote(JobCommand(arguments, run_dir.absolute(), trial), self._cpus, os.getcwd())
        self._running[reference] = (key, run_dir)

    def is_queued(self, key: str) -> bool:
        return False

    def wait(self, seconds: float) -> dict[str, int]:
        ended = {}
        for reference in self._library.wait(list(self._running), num_returns=1, timeout=seconds)[0]:
            key, run_dir = self._running.pop(reference)
            try:
                ended[key] = self._library.get(reference)
            except self._library.exceptions.TaskCancelledError:
                ended[key] = worker.STOPPED
            except self._library.exceptions.RayError as error:
                worker.add_error(run_dir, f"Ray: {(str(error).strip() or type(error).__name__).splitlines()[-1]}")
                ended[key] = 1
        return ended

    def stop(self) -> None:
        for reference, (_, run_dir) in self._running.items():
            if run_dir.is_dir():
                (run_dir / _STOP).touch()
            self._library.cancel(reference)  # for tasks that have not started

    def close(self) -> None:
        if self._library is not None:
            for reference in self._running:
                self._library.cancel(reference, force=True)
            self._library.shutdown()
            self._library = None


def _run(job: JobCommand, cpus: int, folder: str) -> int:
    """Run a job in a separate process, so that its failure does not end Ray's worker."""
    process, is_stopping = worker.spawn(job, cpus, folder), False
    while True:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if not is_stopping and (job.run_dir / _STOP).exists():
                    process.terminate()
                    is_stopping = True
            return process.returncode
        except BaseException:  # cancelled; a second signal would prevent saving
            if not is_stopping:
                process.terminate()
                is_stopping = True
