"""What a backbone, a head and a transform promise: the types that their factories may return.

A factory may also return the first field alone, a plain function, which promises nothing: see `of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import keras
    import numpy as np


class _Contract:
    if TYPE_CHECKING:

        def __init__(self, function: Callable[..., Any]) -> None: ...

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return what a factory has returned as this type: itself, or a plain function with the defaults."""
        return value if isinstance(value, cls) else cls(value)


@dataclass(frozen=True)
class Backbone(_Contract):
    """A network from images to a feature map.

    build: image shape (H, W, C) -> Keras model, float [B, H, W, C] in, [B, h, w, channels] or [B, channels] out.
    load_weights: is called before the first step, if the run is new, with the model and a function that returns some
    training images as the model sees them.
    min_image_size: the smallest height and width that it takes.
    takes_any_size: whether the model may be called with images of another size than it was built for, as a phase's
    `image_size` asks.
    is_by_image: whether an image's output depends on it alone, and what is added to the loss on weights alone: each of
    a few cores then works on a shard of the batch.
    standardizes: whether it has a preprocessing of its own, which does not go with `data.standardize`.
    upper_blocks: the name of the first of the layers that `trainable: upper` means.
    runs_in_inference: whether it is called with training=False in training, too, so that moving statistics stay.
    """

    build: Callable[[tuple[int, int, int]], keras.Model]
    load_weights: Callable[[keras.Model, Callable[[], np.ndarray]], None] | None = None
    min_image_size: int = 1
    takes_any_size: bool = False
    is_by_image: bool = False
    standardizes: bool = False
    upper_blocks: str | None = None
    runs_in_inference: bool = False


@dataclass(frozen=True)
class Head(_Contract):
    """Layers from a feature map to logits.

    build: (Keras tensor of features, number of classes) -> logits [B, classes].
    pools: whether it takes feature maps of any height and width, as a phase's `image_size` asks.
    is_by_image: see Backbone.
    """

    build: Callable[[Any, int], Any]
    pools: bool = False
    is_by_image: bool = False


@dataclass(frozen=True)
class Transform(_Contract):
    """An augmentation of a batch.

    apply: (images float32 [B, H, W, C] in [0, 1], targets float32 [B, K], seed int32 [2]) -> images and targets.
    by_epoch: whether its seed is that of the epoch, int32 [2] of the run's seed and the epoch's number, and not of the
    step.
    """

    apply: Callable[[Any, Any, Any], tuple[Any, Any]]
    by_epoch: bool = False
