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
    seed: tf.Tensor | None = None  # int32 [2], of the random numbers of all layers
    first_row: tf.Tensor | None = None  # int32, where a shard starts in the batch, for its dropout masks
    several_images: bool = False  # whether all batches have more than one image, so layers skip that case
    portable: bool = False  # trace plain TensorFlow operations only, for conversion to other formats
    norm_rate: Callable[[float], Any] | None = None
    measures_norms: bool = False


current = _Context()


@contextlib.contextmanager
def called_with(**values: Any) -> Iterator[None]:
    """Set fields of the context, for layers called inside: `seed`, `first_row`, `several_images`, `portable`."""
    before = {name: getattr(current, name) for name in values}
    vars(current).update(values)
    try:
        yield
    finally:
        vars(current).update(before)


def debiased(steps: tf.Tensor | None) -> AbstractContextManager[None]:
    """Correct moving statistics for their start, after `steps` earlier ones, float32 []; None: do not.

    As in Adam (Kingma and Ba 2015, section 3): after t steps the first value's weight is 0, not momentum^t.
    """
    if steps is None:
        return contextlib.nullcontext()
    return called_with(norm_rate=lambda momentum: (1 - momentum) / -tf.math.expm1((steps + 1) * tf.math.log(momentum)))


def measures_norms(batches: tf.Tensor) -> AbstractContextManager[None]:
    """Make moving statistics the means over batches, after `batches` earlier ones, float32 []; drop nothing out."""
    return called_with(norm_rate=lambda momentum: 1 / (batches + 1), measures_norms=True)
