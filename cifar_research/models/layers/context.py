"""Settings that a model's caller makes for the layers: random seed, first row, tracing.

They are thread-local, since each replica of a `tf.distribute` strategy is traced in its own thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf


class _Context(threading.local):
    seed: tf.Tensor | None = None
    first_row: tf.Tensor | None = None
    several_images: bool = False
    portable: bool = False


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
