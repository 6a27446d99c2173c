"""Batches by tf.data: each is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from cifar_research.data.datasets import Split

_MOST_ON_DEVICE = 2**30  # bytes, seven times CIFAR-10's training images
_NEVER_WHOLE = (65_537, 262_145, 1_048_577)  # numbers of images of which RandomIndexShuffle never takes the last
_ALIGNMENT = 64  # bytes; TensorFlow aborts the process if a tensor's memory is not aligned


def steps_per_epoch(num_images: int, batch_size: int, drop_remainder: bool) -> int:
    """Return the number of batches an epoch; the last may be smaller unless it is dropped."""
    return num_images // batch_size if drop_remainder else -(-num_images // batch_size)


def smallest(num_images: int, batch_size: int, drop_remainder: bool) -> int:
    """Return the size of an epoch's smallest batch."""
    return batch_size if drop_remainder else num_images % batch_size or batch_size


def indices(
    step: tf.Tensor,
    num_images: int,
    batch_size: int,
    steps: int,
    seed: int,
    count: tf.Tensor | int = 1,
    chances: np.ndarray | None = None,
) -> tf.Tensor:
    """Return the images of `count` batches of an epoch, from `step` on: int64 [B].

    An epoch has `steps` batches. It is a permutation of the split keyed by (seed, epoch), so there is no state to save.
    With chances, an epoch is as many draws with replacement, keyed by the same.
    """
    epoch, batch = step // steps, step % steps
    first = batch * batch_size
    positions = tf.range(first, tf.minimum(first + count * batch_size, num_images), dtype=tf.int64)
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    if chances is None and num_images in _NEVER_WHOLE:
        order = tf.argsort(tf.random.stateless_uniform([num_images], key, dtype=tf.float64))
        return tf.cast(tf.gather(order, positions), tf.int64)
    if chances is None:
        # tf.random.experimental.index_shuffle takes the key as it is and has 4 rounds: the orders of seeds 0 and 1 are
        # alike, and so are those of an epoch and the next.
        key = tf.random.stateless_uniform([3], key, None, None, tf.int64)
        last = tf.cast(num_images - 1, tf.int64)
        return tf.raw_ops.RandomIndexShuffle(index=positions, seed=key, max_index=last, rounds=16)
    draws = tf.gather(tf.random.stateless_uniform([num_images], key, dtype=tf.float64), positions)
    chosen = tf.searchsorted(np.cumsum(chances), draws, side="right")
    return tf.minimum(tf.cast(chosen, tf.int64), num_images - 1)  # the sum may end a little below 1


def training(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    initial_step: int,
    total_steps: int,
    drop_remainder: bool = False,
    context: tf.distribute.InputContext | None = None,
    device: str | None = None,
) -> tf.data.Dataset:
    """Yield (images uint8 [B, H, W, C], labels int64 [B]) for each step from initial_step on.

    context: under a strategy, which replicas this pipeline feeds; each gets its share of a batch as one element.
    device: where batches are prefetched to, such as "/GPU:0"; None keeps them in host memory.
    """
    replicas = 1 if context is None else context.num_replicas_in_sync
    own_replicas = replicas if context is None else replicas // context.num_input_pipelines
    first_replica = 0 if context is None else context.input_pipeline_id * own_replicas
    steps, read = steps_per_epoch(len(split), batch_size, drop_remainder), _reader(split)

    def batch(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        step, replica = element // own_replicas, first_replica + element % own_replicas
        chosen = indices(step, len(split), batch_size, steps, seed, chances=split.chances)
        size = tf.size(chosen, tf.int64)
        return read(chosen[size * replica // replicas : size * (replica + 1) // replicas], step // steps)

    dataset = tf.data.Dataset.range(initial_step * own_replicas, total_steps * own_replicas)
    return _mapped(dataset, batch, device)


def training_rows(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    initial_step: int,
    total_steps: int,
    steps_per_call: int,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Yield the rows in the split's arrays of the batches of `training`: (int64 [steps, B],).

    An element is the batches of one size in a call. A call has steps_per_call steps, or fewer at an epoch's end. If some
    calls have fewer full batches than others, they are padded, since XLA compiles a program for each shape. Then an
    element also has the number of its steps: (int64 [steps, B], int32).
    """
    steps, rows = steps_per_epoch(len(split), batch_size, drop_remainder), _rows(split)
    full, calls, step = len(split) // batch_size, [], initial_step
    while step < total_steps:
        num_steps = min(steps_per_call, steps - step % steps, total_steps - step)
        is_ragged = (step + num_steps) % steps == 0 and steps > full
        for count in filter(None, (num_steps - is_ragged, int(is_ragged))):
            calls.append((step, count))
            step += count

    # A small last batch is an element of its own.
    counts = [count for step, count in calls if step % steps < full]
    longest, are_equal = max(counts, default=1), len(set(counts)) < 2

    def batches(call: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step, count = call[0], call[1]
        chosen = indices(step, len(split), batch_size, steps, seed, count, split.chances)
        of_steps = tf.reshape(rows(chosen, step // steps), [count, -1])
        if are_equal:
            return (of_steps,)
        missing = tf.where(step % steps < full, longest - count, 0)
        return tf.pad(of_steps, [[0, missing], [0, 0]]), tf.cast(count, tf.int32)

    dataset = tf.data.Dataset.from_tensor_slices(np.array(calls, np.int64).reshape(-1, 2))
    return _mapped(dataset, batches, None)


def evaluation(split: Split, *, batch_size: int, device: str | None = None) -> tf.data.Dataset:
    """Yield (images, labels) of the whole split, in order; the last batch may be smaller."""
    read = _reader(split)

    def batch(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read(tf.range(first, tf.minimum(first + batch_size, len(split))), 0)

    return _mapped(tf.data.Dataset.range(0, len(split), batch_size), batch, device)


def fits_on_device(split: Split) -> bool:
    """Return whether a split is small enough to keep on a GPU."""
    return split.images.nbytes <= _MOST_ON_DEVICE


def reader_on_device(split: Split, device: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Copy a split to the device; return the function (rows int64 [B]) -> images and labels."""
    with tf.device(device):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    return lambda rows: (tf.gather(images, rows), tf.gather(labels, rows))


def _reader(split: Split) -> Callable[[tf.Tensor, tf.Tensor | int], tuple[tf.Tensor, tf.Tensor]]:
    """Return the function (indices in the split, epoch) -> images, labels; it runs no Python."""
    images, labels, rows = _tensor(split.images), _tensor(split.labels), _rows(split)

    def read(chosen: tf.Tensor, epoch: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        chosen_rows = rows(chosen, epoch)
        return tf.gather(images, chosen_rows), tf.gather(labels, chosen_rows)

    return read


def _rows(split: Split) -> Callable[[tf.Tensor, tf.Tensor | int], tf.Tensor]:
    """Return the function (indices in the split, epoch) -> rows in its arrays, int64 [B]."""
    indices, rows_a_view = _tensor(split.indices), len(split.images) // split.views
    return lambda chosen, epoch: tf.gather(indices, chosen) + tf.cast(epoch % split.views * rows_a_view, tf.int64)


def _tensor(array: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor, without a copy if it is aligned, as memory maps are."""
    if array.ctypes.data % _ALIGNMENT or not (array.flags.c_contiguous and array.flags.writeable):
        with tf.device("/CPU:0"):  # where tf.data runs
            return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _mapped(dataset: tf.data.Dataset, function: Callable[..., Any], device: str | None) -> tf.data.Dataset:
    """Apply a function to the elements, and prefetch them to a device."""
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(function))  # see runtime/control_flow.py
    options = tf.data.Options()
    # A batch takes a fraction of a millisecond: autotuning would cost more than it gains.
    options.autotune.enabled = False
    options.deterministic = True
    dataset = dataset.with_options(options)
    if device is None:
        return dataset.prefetch(4)
    return dataset.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=4))
