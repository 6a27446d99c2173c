"""A batch in parts, each of which one core works on.

On a few cores one thread an op, and two ops at a time, is faster than one op at a time by two threads, which wait for
each other at the end of every op: a step of `experiment=first_version` takes four fifths of the time. What a network makes
of an image must not depend on the rest of the batch, so that networks that normalise over batches are left whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cifar_research.runtime.environment import usable_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset

_MOST_CORES = 4  # beyond which it was not measured
_MOST_IMAGES = 128  # of a part in training: larger ones, whose maps fall out of the core's own cache, are slower
_MOST_PARTS = 4  # a core: each is a copy of the network in the graph, and makes the first step take longer


def parts(cfg: DictConfig, data: Dataset) -> int:
    """Return into how many parts a run's batches are cut on a processor: a multiple of its threads, or 1.

    Without TensorFlow, whose threads depend on it.
    """
    from cifar_research.config import phases, targets
    from cifar_research.config.contracts import Backbone, Head

    threads = cfg.training.threads or usable_cores()
    if not 1 < threads <= _MOST_CORES or cfg.training.strategy != "none" or cfg.training.jit_compile:
        return 1
    backbone, head = Backbone.of(targets.instantiate(cfg.backbone)), Head.of(targets.instantiate(cfg.model))
    if not (backbone.is_by_image and head.is_by_image):
        return 1
    if not str(cfg.loss._target_).startswith("cifar_research.optimization.losses."):
        return 1  # a loss of the user's may look at the whole batch
    if any(phase.is_backbone_frozen for phase in phases.plan(cfg)):  # whose features are not computed in parts
        return 1
    number = threads * -(-cfg.training.batch_size // (threads * _MOST_IMAGES))
    if number > threads * _MOST_PARTS:
        return 1
    sizes = {cfg.training.batch_size, cfg.training.eval_batch_size}
    sizes |= {len(split) % cfg.training.eval_batch_size for split in (data.val, data.test)}
    if not cfg.data.drop_remainder:
        sizes.add(len(data.train) % cfg.training.batch_size)
    return 1 if any(0 < size < number for size in sizes) else number  # TensorFlow convolves no empty part


def cut(number: int, *of_batch: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield, for each of so many parts of tensors [B, ...], its first row in the batch and its rows of each tensor."""
    if number == 1:
        yield None, of_batch
        return
    import tensorflow as tf

    size = tf.shape(of_batch[0])[0]
    for part in range(number):
        begin, end = size * part // number, size * (part + 1) // number
        yield begin, tuple(tensor[begin:end] for tensor in of_batch)
