"""Cells as tasks of a Ray cluster that runs already; a node that dies costs no cell."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from cifar_research.config import targets
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.programs import pip
from cifar_research.sweeps.launchers import worker

_NODE_FAILURES = 20  # that a cell may meet before it counts as failed
# In a run's folder, which all nodes see: a cancellation does not always get through to a task that runs.
_STOP = ".stop"
_STOPPED = 128 + signal.SIGTERM


def ray(*, address: str = "auto", jobs: int | None = None, cpus: int = 1, gpus: float = 0) -> Ray:
    """Run each cell as a task with so many cpus and gpus (a fraction shares one), at most `jobs` at once.

    address: the cluster's host:port, or auto for the one of this machine or of RAY_ADDRESS; jobs: null is as many as
    the cluster has room for. When a node dies, Ray gives its cells to another, where they go on from their checkpoints:
    the sweep's folder must be one that all nodes see.
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
        self._running: dict[Any, tuple[str, Path]] = {}  # by the reference to a task's result

    def open(self, folder: Path) -> None:
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray as library
        except ImportError:
            raise ConfigError(f"hydra/launcher=ray needs Ray: {pip()} install 'cifar_research[ray]'") from None
        try:
            library.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, library.exceptions.RayError) as error:
            raise ConfigError(
                f"hydra.launcher.address: {self._address}: no Ray cluster answers there ({targets.said(error)}); start one "
                "with ray start --head, and set RAY_AUTH_MODE=token here too if it was started so"
            ) from error
        self._library = library
        self._task = library.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=_NODE_FAILURES, max_calls=1)(
            _run
        )

    @property
    def slots(self) -> int:
        """As many as fit the nodes there are at this moment."""
        has = self._library.cluster_resources()
        room = has.get("CPU", 0) // self._cpus
        if self._gpus:
            room = min(room, has.get("GPU", 0) // self._gpus)
        return max(1, min(int(room), self._jobs or int(room)))

    queue = slots

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        (run_dir / _STOP).unlink(missing_ok=True)
        task = self._task.remote(arguments, str(run_dir.absolute()), trial, self._cpus, os.getcwd())
        self._running[task] = (key, run_dir)

    def is_queued(self, key: str) -> bool:
        return False

    def wait(self, seconds: float) -> dict[str, int]:
        if not self._running:
            time.sleep(seconds)
            return {}
        library = self._library
        ended = {}
        for reference in library.wait(list(self._running), num_returns=1, timeout=seconds)[0]:
            key, run_dir = self._running.pop(reference)
            try:
                ended[key] = library.get(reference)
            except library.exceptions.TaskCancelledError:
                ended[key] = _STOPPED
            except library.exceptions.RayError as error:
                said = str(error).strip().splitlines()
                worker.note(run_dir, f"Ray: {said[-1] if said else type(error).__name__}")
                ended[key] = 1
        return ended

    def stop(self) -> None:
        for reference, (_, run_dir) in self._running.items():
            if run_dir.is_dir():
                (run_dir / _STOP).touch()
            self._library.cancel(reference)  # which reaches those that have not begun

    def close(self) -> None:
        if self._library is not None:
            for reference in self._running:
                self._library.cancel(reference, force=True)
            self._library.shutdown()
            self._library = None


def _run(arguments: list[str], run_dir: str, trial: tuple[str, int] | None, cpus: int, folder: str) -> int:
    """Run a cell in a process beside Ray's own, whose end is then the cell's and not the node's."""
    process, is_told = worker.spawn(arguments, Path(run_dir), trial, cpus, folder), False
    while True:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if not is_told and (Path(run_dir) / _STOP).exists():
                    process.terminate()
                    is_told = True
            return process.returncode
        except BaseException:  # cancelled; once, since a second signal would end the run before it has saved
            if not is_told:
                process.terminate()
                is_told = True
