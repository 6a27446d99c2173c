"""Test-time views: a network's logits averaged over an image, its mirror image and shifts of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cifar_research.config.schema import VIEWS

Network = Callable[[Any, bool], Any]


def averaged(network: Network, kind: str) -> Network:
    """Return the network that averages logits over views of each image when it does not train.

    network: (images float32 [B, H, W, C], training) -> logits [B, K].
    kind: `none` is the network itself; `flip`, the image and its mirror image; `flip_shift`, half of that and a quarter
    each of the same moved one pixel up and left, and down and right, by reflection: six views (Jordan 2024).
    """
    if kind not in VIEWS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(VIEWS)}")
    if kind == "none":
        return network

    def mirrored(images: Any) -> Any:
        import tensorflow as tf

        return (network(images, False) + network(tf.reverse(images, [2]), False)) / 2

    def views(images: Any, training: bool) -> Any:
        if training:
            return network(images, True)
        logits = mirrored(images)
        if kind == "flip_shift":
            import tensorflow as tf

            # Not by `translate`, which is compiled, and whose index arithmetic a converter has been seen to get wrong.
            around = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
            moved = mirrored(around[:, 2:, 2:]) + mirrored(around[:, :-2, :-2])
            logits = logits / 2 + moved / 4
        return logits

    return views
