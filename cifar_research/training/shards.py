"""Batch shards: each batch is cut so that every core works on a shard of it.

On a few cores one thread an op, and two ops at a time, is faster than one op at a time by two threads, which wait for
each other at the end of every op: a step of `experiment=first_version` takes four fifths of the time. What a network makes
of an image must not depend on the rest of the batch, so that networks that normalise over batches are left whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cifar_research.runtime.environment import usable_cores

if TYPE_CHECKING:
    from cifar_research.config.settings import Settings
    from cifar_research.data.datasets import Dataset

_MOST_CORES = 4  # beyond which it was not measured
_MOST_IMAGES = 128  # of a shard in training: larger ones, whose maps fall out of the core's own cache, are slower
_MOST_SHARDS = 4  # a core: each is a copy of the network in the graph, and makes the first step take longer


def count(settings: Settings, data: Dataset) -> int:
    """Return the number of shards of a run's batches on a processor: a multiple of its threads, or 1.

    Without TensorFlow, whose threads depend on it.
    """
    training = settings.training
    threads = training.threads or usable_cores()
    if not 1 < threads <= _MOST_CORES or training.strategy != "none" or training.jit_compile:
        return 1
    if not (settings.backbone.is_by_image and settings.head.is_by_image):
        return 1
    if not str(settings.content["loss"]["_target_"]).startswith("cifar_research.optimization.losses."):
        return 1  # a loss of the user's may depend on the whole batch
    if any(phase.is_backbone_frozen for phase in settings.phases):  # whose features are not computed in shards
        return 1
    number = threads * -(-training.batch_size // (threads * _MOST_IMAGES))
    if number > threads * _MOST_SHARDS:
        return 1
    sizes = {training.batch_size, training.eval_batch_size}
    sizes |= {len(split) % training.eval_batch_size for split in (data.val, data.test)}
    if not settings.data.drop_remainder:
        sizes.add(len(data.train) % training.batch_size)
    return 1 if any(0 < size < number for size in sizes) else number  # TensorFlow cannot convolve an empty shard


def cut(number: int, *of_batch: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield, for each shard of tensors [B, ...], its first row in the batch and its rows of each tensor."""
    if number == 1:
        yield None, of_batch
        return
    import tensorflow as tf

    size = tf.shape(of_batch[0])[0]
    for shard in range(number):
        begin, end = size * shard // number, size * (shard + 1) // number
        yield begin, tuple(tensor[begin:end] for tensor in of_batch)
