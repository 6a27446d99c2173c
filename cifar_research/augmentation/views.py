"""Test-time views: a network's logits averaged over an image, its mirror image and shifts of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cifar_research.augmentation.geometry import flip, translate

Network = Callable[[Any, bool], Any]
VIEWS = ("none", "flip", "flip_shift")


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

        turned = flip(images, tf.ones(tf.shape(images)[0], tf.bool), axis="columns")
        return (network(images, False) + network(turned, False)) / 2

    def moved(images: Any, pixels: int) -> Any:
        import tensorflow as tf

        offsets = tf.fill([tf.shape(images)[0], 2], pixels)
        return mirrored(translate(images, offsets, padding="reflect"))

    def views(images: Any, training: bool) -> Any:
        if training:
            return network(images, True)
        logits = mirrored(images)
        if kind == "flip_shift":
            logits = logits / 2 + (moved(images, -1) + moved(images, 1)) / 4
        return logits

    return views
