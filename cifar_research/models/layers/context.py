"""What the caller of a model sets for the layers in it: the random seed, the rows, how it is traced.

Each thread has its own values, since each replica of a `tf.distribute` strategy is traced in a thread of its own.
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
    """Draw the random numbers of every layer from `seed`, int32 [2], and from nothing else."""
    return _set("seed", seed)


def rows_from(first: tf.Tensor | None) -> AbstractContextManager[None]:
    """Draw the masks of the batch's rows from this one on, int32, for a shard; None is for the whole batch."""
    return _set("first_row", first)


def several_images(has_several: bool) -> AbstractContextManager[None]:
    """Set whether every batch has more than one image, so that no layer provides for one."""
    return _set("several_images", has_several)


def portable() -> AbstractContextManager[None]:
    """Trace plain TensorFlow operations, which converters to other formats know."""
    return _set("portable", True)


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    before = getattr(current, name)
    setattr(current, name, value)
    try:
        yield
    finally:
        setattr(current, name, before)
