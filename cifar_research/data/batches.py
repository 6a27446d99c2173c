"""Batches by tf.data: each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifar_research.data.datasets import Split

_MOST_ON_DEVICE = 2**30  # bytes: 50,000 images of 32 x 32 are a seventh of it
_ALIGNMENT = 64  # bytes: TensorFlow aborts the process if it finds a tensor's memory elsewhere


def steps_per_epoch(num_images: int, batch_size: int, drop_remainder: bool) -> int:
    """Return how many batches an epoch has; the last may be smaller unless it is dropped."""
    return num_images // batch_size if drop_remainder else -(-num_images // batch_size)


def smallest(num_images: int, batch_size: int, drop_remainder: bool) -> int:
    """Return how many images an epoch's smallest batch has."""
    return batch_size if drop_remainder else num_images % batch_size or batch_size


def indices(
    step: tf.Tensor, num_images: int, batch_size: int, steps: int, seed: int, count: tf.Tensor | int = 1
) -> tf.Tensor:
    """Return which images of the split make the batch of `step`: int64 [B], B at most batch_size.

    count: the batches of how many steps of its epoch, one after the other.

    An epoch, of `steps` batches, is a permutation of the split keyed by (seed, epoch), so that nothing has to be
    remembered between steps: the batch after a resume is the batch that would have come.
    """
    epoch, batch = step // steps, step % steps
    first = batch * batch_size
    positions = tf.range(first, tf.minimum(first + count * batch_size, num_images), dtype=tf.int64)
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(positions, key, tf.cast(num_images - 1, tf.int64))


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
    """Yield (images uint8 [B, H, W, C], labels int64 [B]) for the steps from initial_step on.

    Images come from `split`'s memory map, whose pages all runs on the machine share. Under a strategy,
    `context` says which replicas this pipeline feeds: each gets its share of the step's batch, one element each.
    device: where the next batches are copied to ahead of time, "/GPU:0" for example; None leaves them in memory.
    """
    replicas = 1 if context is None else context.num_replicas_in_sync
    pipelines = 1 if context is None else context.num_input_pipelines
    mine = replicas // pipelines
    first_replica = 0 if context is None else context.input_pipeline_id * mine
    steps, read = steps_per_epoch(len(split), batch_size, drop_remainder), _reader(split)

    def batch(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = indices(element // mine, len(split), batch_size, steps, seed)
        replica, size = first_replica + element % mine, tf.size(chosen, tf.int64)
        view = element // mine // steps % split.views
        return read(chosen[size * replica // replicas : size * (replica + 1) // replicas], view)

    dataset = tf.data.Dataset.range(initial_step * mine, total_steps * mine)
    return _ahead(dataset.map(batch), device)


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
    """Yield which rows of the split's arrays make the batches of `training`, as (int64 [steps, B],).

    steps: as many as have one size and are of one call; a call is of steps_per_call steps, or ends with the epoch.
    """
    steps, rows = steps_per_epoch(len(split), batch_size, drop_remainder), _tensor(split.indices)
    full, begins, counts, step = len(split) // batch_size, [], [], initial_step
    while step < total_steps:
        left = min(steps - step % steps, total_steps - step)
        of_call = min(steps_per_call, left)
        is_ragged = (step + of_call) % steps == 0 and steps > full
        for count in filter(None, (of_call - is_ragged, int(is_ragged))):
            begins.append(step)
            counts.append(count)
            step += count

    def of_steps(step: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor]:
        chosen = indices(step, len(split), batch_size, steps, seed, count)
        return (tf.reshape(tf.gather(rows, chosen) + step // steps % split.views * _rows_a_view(split), [count, -1]),)

    dataset = tf.data.Dataset.from_tensor_slices((np.array(begins, np.int64), np.array(counts, np.int64)))
    return _ahead(dataset.map(of_steps), None)


def evaluation(split: Split, *, batch_size: int, device: str | None = None) -> tf.data.Dataset:
    """Yield (images, labels) of every image of the split, once, in order; the last batch may be smaller."""
    read = _reader(split)

    def batch(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read(tf.range(first, tf.minimum(first + batch_size, len(split))), 0)

    return _ahead(tf.data.Dataset.range(0, len(split), batch_size).map(batch), device)


def fits_on_device(split: Split) -> bool:
    """Say whether a split is small enough to be kept on a GPU, whose memory TensorFlow does not tell."""
    return split.images.nbytes <= _MOST_ON_DEVICE


def reader_on_device(split: Split, device: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Copy a split to the device, and return the function (rows of its arrays, int64 [B]) -> their images and labels."""
    with tf.device(device):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    return lambda rows: (tf.gather(images, rows), tf.gather(labels, rows))


def _reader(split: Split) -> Callable[[tf.Tensor, tf.Tensor | int], tuple[tf.Tensor, tf.Tensor]]:
    """Return the function (which images of the split, in which of its views) -> those images and their labels.

    It has no Python in it, which would want a core for itself while the last step is still at work.
    """
    images, labels, rows = (_tensor(array) for array in (split.images, split.labels, split.indices))

    def read(chosen: tf.Tensor, view: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        wanted = tf.gather(rows, chosen) + tf.cast(view, tf.int64) * _rows_a_view(split)
        return tf.gather(images, wanted), tf.gather(labels, wanted)

    return read


def _rows_a_view(split: Split) -> int:
    return len(split.images) // split.views


def _tensor(array: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor that is the same memory, if it lies as TensorFlow needs it: memory maps of .npy do."""
    if array.ctypes.data % _ALIGNMENT or not (array.flags.c_contiguous and array.flags.writeable):
        with tf.device("/CPU:0"):  # where tf.data works
            return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _ahead(dataset: tf.data.Dataset, device: str | None) -> tf.data.Dataset:
    options = tf.data.Options()
    # Batches are ready in a fraction of a millisecond: tuning their pipeline would cost more than it finds.
    options.autotune.enabled = False
    options.deterministic = True
    dataset = dataset.with_options(options)
    if device is None:
        return dataset.prefetch(4)
    return dataset.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=4))
