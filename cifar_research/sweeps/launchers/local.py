"""Cells on this machine: a few worker processes, each with its share of the cores or its GPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from cifar_research.config import targets
from cifar_research.runtime import environment
from cifar_research.sweeps.launchers import worker


def local(*, jobs: int | None = None, runs_per_gpu: int = 1, runs_per_process: int = 10) -> Local:
    """Run so many cells at once, each in a worker process that is replaced after `runs_per_process` runs.

    jobs: null is one a GPU (or `runs_per_gpu`), or one in all on a machine without. Without a GPU the cores are
    divided among the jobs, as many to each; with one, each worker sees only its own, by CUDA_VISIBLE_DEVICES. A worker
    whose TensorFlow is set up otherwise than the next cell needs (threads, determinism) is replaced, too. A worker that
    dies costs its cell alone, which is why joblib and concurrent.futures do not serve here: they end with their first
    dead worker (joblib's TerminatedWorkerError, BrokenProcessPool), and neither tells how it died.
    """
    targets.check_range("[]", 1, jobs=jobs, runs_per_gpu=runs_per_gpu, runs_per_process=runs_per_process)
    return Local(jobs, runs_per_gpu, runs_per_process)


@dataclass
class _Worker:
    process: Any
    pipe: connection.Connection
    place: int
    runs: int = 0
    key: str | None = None  # of the cell it works on
    cell: Any = None  # what it was sent of that, to be sent again


class Local:
    """See `local`."""

    is_on_this_machine = True

    def __init__(self, jobs: int | None, runs_per_gpu: int, runs_per_process: int) -> None:
        self._shares = _shares(jobs, visible_gpus(), runs_per_gpu)
        self._runs_per_process = runs_per_process
        self._workers: dict[int, _Worker] = {}
        self._is_stopping = False

    @property
    def slots(self) -> int:
        return len(self._shares)

    queue = slots

    def open(self, folder: Path) -> None:
        """There is nothing to do: workers start with their first cell."""

    def is_queued(self, key: str) -> bool:
        return False

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        place = next(
            place for place in range(self.slots) if place not in self._workers or self._workers[place].key is None
        )
        found = self._workers.get(place)
        if found is None or not found.process.is_alive():
            if found is not None:
                self._retire(found)
            found = self._workers[place] = self._spawn(place)
        found.key, found.cell = key, (arguments, run_dir, trial)
        found.runs += 1
        with contextlib.suppress(OSError):  # it died meanwhile, which `wait` sees
            found.pipe.send(found.cell)

    def wait(self, seconds: float) -> dict[str, int]:
        busy = [one for one in self._workers.values() if one.key is not None]
        if not busy:
            time.sleep(seconds)
            return {}
        connection.wait([one.pipe for one in busy] + [one.process.sentinel for one in busy], seconds)
        ended: dict[str, int] = {}
        for one in busy:
            code = None
            try:
                if one.pipe.poll():
                    code = one.pipe.recv()
            except (EOFError, OSError):
                one.process.join()
            if code is None and not one.process.is_alive():
                code = one.process.exitcode
            if code is None:
                continue
            key, one.key = one.key, None
            if code == environment.STALE and one.runs > 1:
                if not self._is_stopping:
                    self._retire(one)
                    self.start(key, *one.cell)
                    continue
                code = 128 + signal.SIGTERM
            ended[key] = code
            # After an exception too: what it has left in the process is unknown.
            if code != 0 or one.runs >= self._runs_per_process:
                self._retire(one)
        return ended

    def stop(self) -> None:
        self._is_stopping = True
        for one in list(self._workers.values()):
            if one.key is None:
                self._retire(one)
            else:
                one.process.terminate()

    def close(self) -> None:
        for one in list(self._workers.values()):
            one.key is None or one.process.kill()
            self._retire(one)

    def _spawn(self, place: int) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork would inherit whatever threads this process has
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self._shares[place]), name=f"cell worker {place}")
        process.start()
        there.close()
        return _Worker(process, here, place)

    def _retire(self, one: _Worker) -> None:
        """End a worker that has nothing to do."""
        one.pipe.close()  # at which it ends
        one.process.join(10)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
        one.process.close()
        self._workers.pop(one.place, None)


@dataclass(frozen=True)
class Share:
    """What a worker may use: the numbers of its cores, None for all of them, and its GPU's name."""

    cores: tuple[int, ...] | None
    gpu: str | None


def _shares(jobs: int | None, gpus: Sequence[str], runs_per_gpu: int) -> list[Share]:
    if gpus:
        places = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
        return [Share(None, places[i % len(places)]) for i in range(jobs or len(places))]
    jobs = jobs or 1
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    # As many to each, though one may be left over: how many a cell has decides on its last digits (see shards.parts), and
    # whichever worker is free goes on with it.
    each = max(len(cores) // jobs, 1)
    return [Share(tuple(cores[(i * each + j) % len(cores)] for j in range(each)), None) for i in range(jobs)]


def visible_gpus() -> list[str]:
    """Return the GPUs' names for CUDA_VISIBLE_DEVICES, without TensorFlow: that variable's own, else nvidia-smi's."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(line for line in done.stdout.splitlines() if line.startswith("GPU "))]


def _work(pipe: connection.Connection, share: Share) -> None:
    """Run cells until the pipe closes; the main function of a worker process."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C is the sweep's to see, which then asks every cell once to save and stop
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    if share.cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cores)  # TensorFlow and the BLAS libraries count the cores they may use
    elif share.cores is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(len(share.cores))
    worker.stop_after(lambda: connection.wait([multiprocessing.parent_process().sentinel]))
    while True:
        try:
            arguments, run_dir, trial = pipe.recv()
        except (EOFError, OSError):
            return
        code = worker.run_cell(arguments, run_dir, trial)
        environment.leaves_if_stale = True
        try:
            pipe.send(code)
        except OSError:
            return
