"""What the caller of a model tells the layers in it: the random seed, the rows, how it is traced.

Each thread has its own values, since each replica of a `tf.distribute` strategy is traced in a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf


class _Context(threading.local):
    seed: tf.Tensor | None = None
    first_row: tf.Tensor | None = None
    several_images: bool = False
    portable: bool = False


current = _Context()


def random_seed(seed: tf.Tensor) -> contextlib.AbstractContextManager[None]:
    """Draw the random numbers of every layer called within from `seed`, int32 [2].

    The layers keep no random state, so a step's masks depend on nothing but the seed it is given.
    """
    return _within("seed", seed)


def rows_from(first: tf.Tensor | None) -> contextlib.AbstractContextManager[None]:
    """Draw masks within for the batch's rows from this one on, int32, so that shards have the whole batch's masks.

    None: layers see the whole batch.
    """
    return _within("first_row", first)


def several_images(are_there: bool) -> contextlib.AbstractContextManager[None]:
    """Say whether every batch seen within has more than one image, so that no layer provides for one."""
    return _within("several_images", are_there)


def portable() -> contextlib.AbstractContextManager[None]:
    """Trace what is called within from TensorFlow's plain ops, which converters to other formats know."""
    return _within("portable", True)


@contextlib.contextmanager
def _within(name: str, value: Any) -> Iterator[None]:
    before = getattr(current, name)
    setattr(current, name, value)
    try:
        yield
    finally:
        setattr(current, name, before)
