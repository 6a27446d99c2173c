"""Augmentation: batch transforms (images, targets, seed) -> (images, targets) that draw from the seed alone.

images: float32 [B, H, W, C] in [0, 1], H, W and C known when traced; targets: float32 [B, K], rows sum to 1;
seed: int32 [2]. What happens to an image depends on the seed and on its position in the batch, with mixup and
cutmix on the rest of the batch too.

The factories (`horizontal_flip`, `mixup` ...) are what conf/augmentation names: they check their settings at
once and import no TensorFlow. What they draw goes to plain functions (`flip`, `blend` ...) that draw nothing.
A new transform is one more factory, here or in a module of one's own, and one YAML file that names it.

    python -m cifar_research.preview augmentation=slides data=synthetic --out slides.png
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cifar_research.augmentation.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    brightness,
    contrast,
    saturation,
)
from cifar_research.augmentation.geometry import (
    alternating_flip,
    crop,
    flip,
    horizontal_flip,
    magnify,
    rotate,
    rotation,
    shift,
    shrink,
    translate,
    vertical_flip,
    zoom,
)
from cifar_research.augmentation.mixing import blend, cutmix, cutout, erase, mixup, paste
from cifar_research.augmentation.preview import grid
from cifar_research.config.contracts import Transform

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_saturation",
    "alternating_flip",
    "blend",
    "brightness",
    "compose",
    "contrast",
    "crop",
    "cutmix",
    "cutout",
    "erase",
    "flip",
    "grid",
    "horizontal_flip",
    "magnify",
    "mixup",
    "paste",
    "rotate",
    "rotation",
    "saturation",
    "shift",
    "shrink",
    "translate",
    "vertical_flip",
    "zoom",
]


def compose(transforms: Mapping[str, Any]) -> Callable[..., tuple[Any, Any]]:
    """Return one transform that applies these in order, each with its own seed; of none, the identity.

    transforms: what their factories returned, plain functions or `Transform`.
    It takes a fourth argument, epoch_seed: int32 [2], the run's seed and the number of the epoch, for transforms that go
    by the epoch; without it, they are given `seed`.
    """
    ordered = [Transform.of(transform) for transform in transforms.values()]

    def transform(images, targets, seed, epoch_seed=None):
        import tensorflow as tf

        for i, one in enumerate(ordered):
            own = tf.random.experimental.stateless_fold_in(seed, i)
            if one.by_epoch:
                own = seed if epoch_seed is None else epoch_seed
            images, targets = one.apply(images, targets, own)
        return images, targets

    return transform
