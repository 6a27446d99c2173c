"""The process environment of a run: threads, memory, determinism, precision, devices, seed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.runtime import folders
from cifar_research.runtime.errors import ConfigError, DataError
from cifar_research.runtime.lazy import keras, tf
from cifar_research.runtime.signals import stop_signals

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
raises_if_stale = False  # True where the caller restarts a stale run in a new process
_threads_set: tuple[int, int] | None = None  # intra-op, inter-op; set by an earlier run in this process


class StaleProcess(Exception):
    """An earlier run has configured this process; this run needs a new one."""


@dataclass(frozen=True)
class Environment:
    """The devices and settings chosen by `prepare`."""

    strategy: tf.distribute.Strategy
    device: str  # for display: "CPU, 2 threads"
    prefetch_device: str | None  # batches are prefetched to it; None on a CPU
    deterministic: bool
    jit_compile: bool  # by XLA
    batch_shards: int  # see training/shards.py
    memory_growth: bool | None  # None on a CPU


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) > 0 else cores


def is_chief(strategy: str) -> bool:
    """Return whether this process writes files; ConfigError if TF_CONFIG cannot be read."""
    if strategy != "multi_worker":
        return True
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        kind, index, workers = config["task"]["type"], config["task"]["index"], config["cluster"]
        return kind == "chief" or ("chief" not in workers and kind == "worker" and index == 0)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"training.strategy: multi_worker cannot read the environment variable TF_CONFIG, {text!r}; set it to "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress stderr: some TensorFlow messages precede its reading of TF_CPP_MIN_LOG_LEVEL."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def provide_home() -> None:
    """Redirect Keras, matplotlib and CUDA to the cache folder if the home directory is read-only."""
    home = os.path.expanduser("~")
    if os.access(home, os.W_OK):
        return
    try:
        folder = folders.root(None)
        folder.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError):
        folder = Path(tempfile.gettempdir()) / f"cifar_research-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.lstat().st_uid != os.getuid():  # another user's: do not trust its content
            folder = Path(tempfile.mkdtemp(prefix="cifar_research-"))
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    os.environ.setdefault("CUDA_CACHE_PATH", str(folder / "cuda"))  # of kernels that the driver compiles for new cards
    if not os.path.isdir(os.path.join(home, ".keras")):  # an existing ~/.keras can still be read
        os.environ.setdefault("KERAS_HOME", str(folder / "keras"))


def import_tensorflow() -> list[tf.config.PhysicalDevice]:
    """Import TensorFlow and Keras silently, enable GPU memory growth and return the GPUs."""
    provide_home()
    # TensorFlow turns oneDNN on only for CPUs with AVX-512 or VNNI. With AVX2 alone, steps of `first_version` and `wide`
    # are 1.5 times as fast with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with stop_signals() as stop, quiet():  # an interrupt during the import would raise ImportError
        import keras  # noqa: F401
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if stop.signal is not None:
        signal.raise_signal(stop.signal)
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already initialized, for example in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the words of Linux's /proc/cpuinfo, such as avx2 and amx_bf16; empty on other systems."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return frozenset()


def slow_precision(precision: str, is_depthwise: bool) -> str | None:
    """Return why float32 is faster on this computer, if Linux tells that it is.

    is_depthwise: whether images go through depthwise convolutions in every epoch. Without matrix units, training
    EfficientNet-Lite0 and MobileNetV2 in bfloat16 reached 0.90 and 0.86 times the images per second of float32.
    """
    features = cpu_features()
    if precision != "bfloat16" or not features or "amx_bf16" in features:
        return None
    if tf.config.list_physical_devices("GPU"):
        return None
    if not {"avx512_bf16", "bf16"} & features:
        return "this processor computes bfloat16 in software, which is many times slower than float32"
    return "this processor trains networks with depthwise convolutions faster in float32" if is_depthwise else None


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore Keras's dtype policy and the random states of Python and NumPy on exit."""
    before = sys.modules["keras"].config.dtype_policy() if "keras" in sys.modules else None
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if "keras" in sys.modules:
            keras = sys.modules["keras"].config
            keras.set_dtype_policy(before or keras.floatx())


def prepare(training: Any, seed: int, batch_shards: int = 1) -> Environment:
    """Import TensorFlow and set up this process for a run.

    training: the config section. batch_shards: see training/shards.py; with several, each operation uses one thread.
    After an earlier run, TensorFlow cannot change the number of threads or end determinism. Raises ConfigError
    if a setting requires that. Otherwise the last digits of the results may differ.
    """
    gpus = import_tensorflow()
    if training.strategy == "none" and len(gpus) > 1:
        # TensorFlow would take memory of every card.
        with contextlib.suppress(RuntimeError):  # an earlier run of this process has opened them
            tf.config.set_visible_devices(gpus[:1], "GPU")

    batch_shards = 1 if gpus else batch_shards
    _set_threads(training.threads, batch_shards)
    jit_compile = training.jit_compile
    if jit_compile == "auto":
        jit_compile = bool(gpus) and training.strategy == "none" and not training.deterministic
        # After a deterministic run, a worker is restarted, and a notebook trains without XLA.
        jit_compile = jit_compile and (raises_if_stale or not is_deterministic())
    deterministic = not gpus and not jit_compile if training.deterministic is None else training.deterministic
    if jit_compile and is_deterministic():
        raise _stale("training.jit_compile: true does not work after a deterministic run in the same process")
    if deterministic:
        tf.config.experimental.enable_op_determinism()

    keras.backend.clear_session()
    keras.config.set_dtype_policy(POLICIES[training.precision])
    keras.utils.set_random_seed(seed)
    strategy = _strategy(training.strategy)
    threads = training.threads or usable_cores()
    device = gpus[0].name.removeprefix("/physical_device:") if gpus else f"CPU, {threads} thread{'s' * (threads > 1)}"
    if strategy.num_replicas_in_sync > 1:
        device = f"{strategy.num_replicas_in_sync} replicas, {device} each"
    return Environment(
        strategy=strategy,
        device=device,
        prefetch_device="/GPU:0" if gpus and training.strategy == "none" else None,
        deterministic=deterministic,
        jit_compile=jit_compile,
        batch_shards=batch_shards,
        memory_growth=all(map(tf.config.experimental.get_memory_growth, gpus)) if gpus else None,
    )


def is_deterministic() -> bool:
    """Return whether operations are deterministic; only a private function exists for it."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return is_op_determinism_enabled()


def _set_threads(threads: int | None, batch_shards: int) -> None:
    global _threads_set
    setting = tf.config.threading
    current = setting.get_intra_op_parallelism_threads(), setting.get_inter_op_parallelism_threads()
    wanted = (threads or 0,) * 2 if batch_shards == 1 else (1, threads or usable_cores())
    is_callers_own = batch_shards == 1 and threads is None and current != _threads_set
    if wanted == current or is_callers_own:
        return
    try:
        setting.set_intra_op_parallelism_threads(wanted[0])
        setting.set_inter_op_parallelism_threads(wanted[1])
        _threads_set = wanted
    except RuntimeError as error:
        if raises_if_stale or (threads is not None and threads != max(current)):
            raise _stale(
                f"training.threads: {threads} cannot be set, TensorFlow already runs in this process"
            ) from error


def _stale(problem: str) -> Exception:
    return StaleProcess() if raises_if_stale else ConfigError(f"{problem}; start this run in a new process")


def _strategy(name: str) -> tf.distribute.Strategy:
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) < len(tf.config.list_physical_devices("GPU")):
            raise _stale("training.strategy: mirrored cannot use all GPUs after a run on one in the same process")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()
