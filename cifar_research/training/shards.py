"""Batch shards: each batch is split so that every core works on a shard of it.

Two threads on separate operations are faster than two on one operation, which wait for each other at its end. A step of
`experiment=first_version` takes four fifths of the time. An image's output must not depend on the batch, so networks
that normalize over batches are not sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cifar_research.runtime.environment import usable_cores

if TYPE_CHECKING:
    from cifar_research.config.settings import Settings
    from cifar_research.data.datasets import Dataset

_MOST_CORES = 4  # not measured beyond
_MOST_IMAGES = 128  # per training shard: the feature maps of larger ones exceed the core's cache
_MOST_SHARDS = 4  # per core: each copies the network in the graph, which slows the first step


def count(settings: Settings, data: Dataset) -> int:
    """Return the number of shards of a batch on a CPU: a multiple of its threads, or 1.

    Works without TensorFlow, since the number of threads depends on it.
    """
    training = settings.training
    threads = training.threads or usable_cores()
    if not 1 < threads <= _MOST_CORES or training.strategy != "none" or training.jit_compile is True:
        return 1
    if not (settings.backbone.is_by_image and settings.head.is_by_image):
        return 1
    if not str(settings.content["loss"]["_target_"]).startswith("cifar_research.optimization.losses."):
        return 1  # a user's loss may depend on the whole batch
    if any(phase.is_backbone_frozen for phase in settings.phases):  # features are not computed in shards
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
    """Yield each shard of tensors [B, ...]: its first row, and its rows of each tensor."""
    if number == 1:
        yield None, of_batch
        return
    import tensorflow as tf

    size = tf.shape(of_batch[0])[0]
    for shard in range(number):
        begin, end = size * shard // number, size * (shard + 1) // number
        yield begin, tuple(tensor[begin:end] for tensor in of_batch)
