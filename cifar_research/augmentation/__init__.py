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

from collections.abc import Mapping

from cifar_research.augmentation.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    brightness,
    contrast,
    saturation,
)
from cifar_research.augmentation.contract import Transform
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

__all__ = [
    "Transform",
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


def compose(transforms: Mapping[str, Transform]) -> Transform:
    """Return one transform that applies these in order, each with its own seed; of none, the identity.

    It takes a fourth argument, epoch_seed: int32 [2], the run's seed and the number of the epoch, which is what a
    transform with the attribute `by_epoch` is given instead of a seed of its own; without it, they are given `seed`.
    """
    ordered = tuple(transforms.values())

    def transform(images, targets, seed, epoch_seed=None):
        import tensorflow as tf

        for i, one in enumerate(ordered):
            own = tf.random.experimental.stateless_fold_in(seed, i)
            if getattr(one, "by_epoch", False):
                own = seed if epoch_seed is None else epoch_seed
            images, targets = one(images, targets, own)
        return images, targets

    return transform
