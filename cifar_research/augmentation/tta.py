"""Test-time augmentation: logits averaged over an image, its mirror image and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

Network = Callable[["tf.Tensor", bool], "tf.Tensor"]


def averaged(network: Network, kind: str) -> Network:
    """Return the network that averages logits over views of each image when it does not train.

    network: (images float32 [B, H, W, C], training) -> logits [B, K].
    kind: `none` is the network itself; `flip`, the image and its mirror image; `flip_shift`, half of that and a quarter
    each of the same moved one pixel up and left, and down and right, by reflection: six views (Jordan 2024).
    """
    if kind == "none":
        return network

    def average(images: tf.Tensor, training: bool) -> tf.Tensor:
        import tensorflow as tf

        def mirrored(images: tf.Tensor) -> tf.Tensor:
            return (network(images, False) + network(tf.reverse(images, [2]), False)) / 2

        if training:
            return network(images, True)
        if kind == "flip":
            return mirrored(images)
        # Not by `translate`, which is compiled, and whose index arithmetic a converter has been seen to get wrong.
        around = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
        moved = mirrored(around[:, 2:, 2:]) + mirrored(around[:, :-2, :-2])
        return mirrored(images) / 2 + moved / 4

    return average
