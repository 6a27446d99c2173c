"""Jobs on this machine, in worker processes that share its cores or GPUs."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType

from cifar_research.config import targets
from cifar_research.runtime import environment, gpus
from cifar_research.sweeps.launchers import worker
from cifar_research.sweeps.launchers.worker import JobCommand


def local(*, jobs: int | None = None, runs_per_gpu: int = 1, runs_per_process: int = 50) -> Local:
    """Run jobs in worker processes on this machine.

    jobs: How many jobs run at once; null is `runs_per_gpu` for each GPU, or one without GPUs.
    runs_per_gpu: How many jobs share a GPU if `jobs` is null.
    runs_per_process: The number of jobs after which a worker process is replaced.

    Each worker sees its own GPU alone (CUDA_VISIBLE_DEVICES), or has an equal share of the cores. A worker is also
    replaced if the next job needs another setup of TensorFlow (threads, determinism), or if it dies; joblib and
    concurrent.futures end with their first dead worker instead.
    """
    targets.check_range("[]", 1, jobs=jobs, runs_per_gpu=runs_per_gpu, runs_per_process=runs_per_process)
    return Local(jobs, runs_per_gpu, runs_per_process)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    runs: int = 0
    job: tuple[str, JobCommand] | None = None  # its key and command, None while idle

    def exit_code(self) -> int | None:
        """Return the exit code of the worker's job, None while it runs."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
        return None if self.process.is_alive() else self.process.exitcode

    def end(self) -> None:
        """End an idle worker."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Local:
    """See `local`."""

    is_on_this_machine = True

    def __init__(self, jobs: int | None, runs_per_gpu: int, runs_per_process: int) -> None:
        self._shares = _shares(jobs, visible_gpus(), runs_per_gpu)
        self.slots = self.queue = len(self._shares)
        self._runs_per_process = runs_per_process
        self._workers: dict[int, _Worker] = {}  # by the index of the share
        self._is_stopping = False

    def open(self, folder: Path) -> None:
        pass

    def is_queued(self, key: str) -> bool:
        return False

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        index = next(i for i in range(self.slots) if i not in self._workers or not self._workers[i].job)
        if index in self._workers and not self._workers[index].process.is_alive():
            self._workers.pop(index).end()
        if index not in self._workers:
            self._workers[index] = _spawn(self._shares[index])
        used, job = self._workers[index], JobCommand(arguments, run_dir, trial)
        used.job, used.runs = (key, job), used.runs + 1
        with contextlib.suppress(OSError):  # it has died, which `wait` detects
            used.pipe.send(job)

    def wait(self, seconds: float) -> dict[str, int]:
        busy = {index: used for index, used in self._workers.items() if used.job}
        connection.wait([handle for used in busy.values() for handle in (used.pipe, used.process.sentinel)], seconds)
        ended: dict[str, int] = {}
        for index, used in busy.items():
            code = used.exit_code()
            if code is None or used.job is None:
                continue
            (key, job), used.job = used.job, None
            # After a failure the worker's state is unknown.
            if code != 0 or used.runs >= self._runs_per_process:
                self._workers.pop(index).end()
            if code == worker.STALE and used.runs > 1 and not self._is_stopping:
                self.start(key, *job)
            else:
                ended[key] = worker.STOPPED if code == worker.STALE else code
        return ended

    def stop(self) -> None:
        self._is_stopping = True
        for index, used in list(self._workers.items()):
            if used.job:
                used.process.terminate()
            else:
                self._workers.pop(index).end()

    def close(self) -> None:
        for used in self._workers.values():
            if used.job:
                used.process.kill()
            used.end()
        self._workers.clear()


@dataclass(frozen=True)
class Share:
    """The resources of a worker: its GPU's name, and the cores for runs that cannot use a GPU."""

    cores: tuple[int, ...]
    gpu: str | None


def _shares(jobs: int | None, gpus: Sequence[str], runs_per_gpu: int) -> list[Share]:
    jobs = jobs or len(gpus) * runs_per_gpu or 1
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    # Equal shares, even if a core is unused: a run's last digits depend on its number of cores.
    size = max(len(cores) // jobs, 1)
    return [
        Share(tuple(cores[(i * size + j) % len(cores)] for j in range(size)), gpus[i % len(gpus)] if gpus else None)
        for i in range(jobs)
    ]


def visible_gpus() -> list[str]:
    """Return the GPU names from CUDA_VISIBLE_DEVICES or nvidia-smi, without TensorFlow."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        # As CUDA reads it: names after an invalid one, such as -1, do not count.
        return list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, map(str.strip, names.split(","))))
    instances = [re.findall(r"UUID: (MIG-[^)]+)", card) for card in re.split(r"^GPU ", gpus.listed(), flags=re.M)[1:]]
    return [name for number, names in enumerate(instances) for name in names or [str(number)]]


def _spawn(share: Share) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the state of this process's threads
    pipe, other_end = context.Pipe()
    process = context.Process(target=_work, args=(other_end, share), name="job worker")
    # Without a file: a worker would run it again, and with it the call that starts this sweep.
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    other_end.close()
    return _Worker(process, pipe)


def _work(pipe: connection.Connection, share: Share) -> None:
    """Run jobs until the pipe closes; the main function of a worker process."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C must reach only the sweep, which stops each job once
    has_gpu = False
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
        has_gpu = bool(environment.import_tensorflow())  # not without NVIDIA's libraries, even if there is a card
    if not has_gpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cores)  # TensorFlow and BLAS count the usable cores
    elif not has_gpu:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(len(share.cores))
    parent = multiprocessing.parent_process()
    worker.stop_after(lambda: parent and connection.wait([parent.sentinel]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(worker.run(pipe.recv()))
            environment.raises_if_stale = True
