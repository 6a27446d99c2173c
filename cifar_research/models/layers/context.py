"""Settings that a model's caller makes for the layers: random seed, first row, tracing.

They are thread-local, since each replica of a `tf.distribute` strategy is traced in its own thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf


class _Context(threading.local):
    seed: tf.Tensor | None = None
    first_row: tf.Tensor | None = None
    several_images: bool = False
    portable: bool = False
    norm_rate: Callable[[float], Any] | None = None
    measures_norms: bool = False


current = _Context()


def random_seed(seed: tf.Tensor) -> AbstractContextManager[None]:
    """Draw the random numbers of all layers from `seed`, int32 [2]."""
    return _set("seed", seed)


def rows_from(first: tf.Tensor | None) -> AbstractContextManager[None]:
    """Draw dropout masks for a shard that starts at row `first`, int32; None: the whole batch."""
    return _set("first_row", first)


def several_images(has_several: bool) -> AbstractContextManager[None]:
    """Set whether all batches have more than one image, so layers skip that case."""
    return _set("several_images", has_several)


def debiased(steps: tf.Tensor | None) -> AbstractContextManager[None]:
    """Correct moving statistics for their start, after `steps` earlier ones, float32 []; None: do not.

    As in Adam (Kingma and Ba 2015, section 3): after t steps the first value's weight is 0, not momentum^t.
    """
    if steps is None:
        return contextlib.nullcontext()
    return _set("norm_rate", lambda momentum: (1 - momentum) / -tf.math.expm1((steps + 1) * tf.math.log(momentum)))


@contextlib.contextmanager
def measures_norms(batches: tf.Tensor) -> Iterator[None]:
    """Make moving statistics the means over batches, after `batches` earlier ones, float32 []; drop nothing out."""
    with _set("norm_rate", lambda momentum: 1 / (batches + 1)), _set("measures_norms", True):
        yield


def portable() -> AbstractContextManager[None]:
    """Trace plain TensorFlow operations only, for conversion to other formats."""
    return _set("portable", True)


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    before = getattr(current, name)
    setattr(current, name, value)
    try:
        yield
    finally:
        setattr(current, name, before)
