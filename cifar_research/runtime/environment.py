"""The process a run works in: noise, threads, memory, determinism, precision, devices, seed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research.runtime import folders
from cifar_research.runtime.cores import usable
from cifar_research.runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    import tensorflow as tf

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_WISH_SECONDS = 0.5
STALE = 75  # the exit code of a process that a run can no longer be set up in as another would be
leaves_if_stale = False  # said by who starts the run anew then; elsewhere TensorFlow's threads stay as they are
_threads_set: tuple[int, int] | None = None  # within and between operations, by an earlier run of this process
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True)
class Environment:
    """What `prepare` chose; `strategy` is TensorFlow's default one when training.strategy is none."""

    strategy: tf.distribute.Strategy
    device: str  # for people: "CPU, 2 threads"
    prefetch_device: str | None  # where batches are copied ahead of time; None on a CPU
    deterministic: bool
    is_chief: bool  # see the function of that name
    batch_shards: int  # see training/shards.py
    memory_growth: bool | None  # whether GPUs' memory is taken as it is needed; None on a CPU


def is_chief(strategy: str) -> bool:
    """Say whether this process is the one that writes files, which it is unless TF_CONFIG makes it another worker."""
    if strategy != "multi_worker":
        return True
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise ConfigError(
            "training.strategy: multi_worker needs the environment variable TF_CONFIG, which lists the workers; "
            "set it, or use training.strategy=mirrored for the devices of one machine"
        )
    try:
        cluster = json.loads(text)
        kind, index, workers = cluster["task"]["type"], cluster["task"]["index"], cluster["cluster"]
        return kind == "chief" or ("chief" not in workers and kind == "worker" and index == 0)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"training.strategy: TF_CONFIG is {text!r}, and multi_worker cannot read it ({error!r}); it must be like "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow's start-up messages off the terminal; what matters comes back as an exception.

    Some are written before TensorFlow reads TF_CPP_MIN_LOG_LEVEL, so standard error is turned away meanwhile.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextlib.contextmanager
def stop_signals(*, within_calls: bool = False) -> Iterator[list[int]]:
    """Collect the first stop signal in a list instead of ending; the second one ends the process at once.

    They are SIGTERM, SIGINT, and SIGUSR1, which batch systems send ahead of a time limit (`sbatch --signal=USR1@60`).
    within_calls: end in the middle of a native call, too, where Python hears of no signal until it returns, with 128
    and the signal's number as exit code; what comes within half a second of the first is the same wish, since a
    terminal, a launcher and a cluster may each pass it on.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def give_back() -> None:
        while before:
            number, handler = before.popitem()
            if handler is not None:  # as it is where a program that Python is within has set one
                signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        if not received:
            received.append(number)
        if not within_calls:
            give_back()

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # outside of the main thread, signals are someone else's
            for number in _STOP_SIGNALS:
                before[number] = signal.signal(number, handle)
            if within_calls:
                stack.enter_context(_watched(received))
        try:
            yield received
        finally:
            give_back()


@contextlib.contextmanager
def _watched(received: list[int]) -> Iterator[None]:
    """Let a thread see signals as they come, by the pipe that Python's own handler writes their numbers to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] not in _STOP_SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                if not received:
                    received.append(number[0])
            elif time.monotonic() - first > _SAME_WISH_SECONDS:
                os._exit(128 + number[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writer)
        thread.join()
        os.close(reader)


def provide_home() -> None:
    """Let Keras and matplotlib keep their files in our cache folder where there is no home directory to write into.

    Without one they would make a folder called ~, or take a new one in /tmp each time.
    """
    home = os.path.expanduser("~")
    if os.access(home, os.W_OK):
        return
    try:
        folder = folders.root(None)
        folder.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError):  # one by data.cache_dir, perhaps
        folder = Path(tempfile.gettempdir()) / f"cifar_research-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():  # another user's: what it holds is not to be trusted
            return
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    if not os.path.isdir(os.path.join(home, ".keras")):  # whose weights and data can be read all the same
        os.environ.setdefault("KERAS_HOME", str(folder / "keras"))


def import_tensorflow() -> list[Any]:
    """Import TensorFlow and Keras without their noise, let GPU memory grow as it is needed, and return the GPUs."""
    provide_home()
    # A Ctrl-C in the midst of it would come out of their extensions as an ImportError.
    with stop_signals() as received, quiet():
        import keras  # noqa: F401
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if received:
        signal.raise_signal(received[0])
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # it has been used already, in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


@contextlib.contextmanager
def precision_kept() -> Iterator[None]:
    """Give Keras the precision that it had back at the end."""
    before = sys.modules["keras"].config.dtype_policy() if "keras" in sys.modules else None
    try:
        yield
    finally:
        if "keras" in sys.modules:
            keras = sys.modules["keras"].config
            keras.set_dtype_policy(before or keras.floatx())


def prepare(training: Any, seed: int, batch_shards: int = 1) -> Environment:
    """Import TensorFlow and set up this process for a run with the config section `training`.

    batch_shards: see training/shards.py; if there are several, an op has one thread.

    May be called again in one process. What TensorFlow cannot change any more then stays: the number of threads, and
    determinism once it is on. A ConfigError says so where a setting asks for another; where none does, an operation may
    have other threads than in a process of the run's own, and results differ in their last digits.
    """
    gpus = import_tensorflow()
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.config import is_op_determinism_enabled  # there is no public one

    batch_shards = 1 if gpus else batch_shards
    _set_threads(training.threads, batch_shards)
    deterministic = not gpus and not training.jit_compile if training.deterministic is None else training.deterministic
    if training.jit_compile and is_op_determinism_enabled():
        if leaves_if_stale:
            raise SystemExit(STALE)
        raise ConfigError(
            "training.jit_compile: true came too late, a deterministic run came before it in this process; start "
            "this run in a process of its own"
        )
    if deterministic:
        tf.config.experimental.enable_op_determinism()

    keras.backend.clear_session()
    keras.config.set_dtype_policy(POLICIES[training.precision])
    keras.utils.set_random_seed(seed)
    strategy = _strategy(training.strategy)
    threads = training.threads or usable()
    device = (
        gpus[0].name.removeprefix("/physical_device:") if gpus else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    )
    if strategy.num_replicas_in_sync > 1:
        device = f"{strategy.num_replicas_in_sync} replicas, {device} each"
    return Environment(
        strategy=strategy,
        device=device,
        prefetch_device="/GPU:0" if gpus and training.strategy == "none" else None,
        deterministic=deterministic,
        is_chief=is_chief(training.strategy),
        batch_shards=batch_shards,
        memory_growth=all(map(tf.config.experimental.get_memory_growth, gpus)) if gpus else None,
    )


def _set_threads(threads: int | None, batch_shards: int) -> None:
    import tensorflow as tf

    global _threads_set
    setting = tf.config.threading
    is_now = setting.get_intra_op_parallelism_threads(), setting.get_inter_op_parallelism_threads()
    wanted = (threads or 0,) * 2 if batch_shards == 1 else (1, threads or usable())
    is_callers_own = batch_shards == 1 and threads is None and is_now != _threads_set
    if wanted == is_now or is_callers_own:
        return
    try:
        setting.set_intra_op_parallelism_threads(wanted[0])
        setting.set_inter_op_parallelism_threads(wanted[1])
        _threads_set = wanted
    except RuntimeError as error:
        if leaves_if_stale:
            raise SystemExit(STALE) from error
        if threads is not None and threads != max(is_now):
            raise ConfigError(
                f"training.threads: {threads} came too late, TensorFlow already runs in this process; "
                "start this run in a process of its own"
            ) from error


def _strategy(name: str) -> tf.distribute.Strategy:
    import tensorflow as tf

    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()
