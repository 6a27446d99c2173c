"""Test-time augmentation: logits averaged over an image, its mirror image and shifts."""

from __future__ import annotations

from collections.abc import Callable

from cifar_research.runtime.lazy import tf

Network = Callable[["tf.Tensor", bool], "tf.Tensor"]  # (inputs, training) -> logits [B, K]


def averaged(network: Network, kind: str) -> Network:
    """Return a network that averages logits over views of each image, except in training.

    network: (images float32 [B, H, W, C], training) -> logits [B, K].
    kind: `none`: the network itself; `flip`: the image and its mirror image; `flip_shift`: six views (Jordan 2024),
    those two with half the weight, and both moved by one pixel up and left, and down and right, with a quarter each.
    Padding is by reflection.
    """
    if kind == "none":
        return network

    def average(images: tf.Tensor, training: bool) -> tf.Tensor:
        def mirrored(images: tf.Tensor) -> tf.Tensor:
            return (network(images, False) + network(tf.reverse(images, [2]), False)) / 2

        if training:
            return network(images, True)
        if kind == "flip":
            return mirrored(images)
        # Not by `translate`: it is compiled, and a converter got its index arithmetic wrong.
        around = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
        moved = mirrored(around[:, 2:, 2:]) + mirrored(around[:, :-2, :-2])
        return mirrored(images) / 2 + moved / 4

    return average
