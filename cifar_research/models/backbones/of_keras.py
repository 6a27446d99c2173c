"""A Keras network as a backbone: behind a resize and its own preprocessing, with weights from elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cifar_research.config.contracts import Backbone
from cifar_research.config.targets import check_range
from cifar_research.models.backbones import weights as loading
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras, tf

Interpolation = Literal["bilinear", "bicubic"]

# Moving variances start at 1. If the true variance is 0.01, the start dominates for 500 steps at momentum 0.99, or for
# 5,000 at MobileNetV2's 0.999. Fifty such layers in a row classify at chance level.
_MAX_MOMENTUM = 0.9


@dataclass(frozen=True)
class Resize:
    """The resize of images before a network, to `size` x `size` pixels; the keys are those of `pretrained`."""

    size: int
    interpolation: Interpolation = "bilinear"
    antialias: bool = False

    def __call__(self, images: Any) -> Any:
        """Resize images float [B, H, W, C] in [0, 1]."""
        if images.shape[1:3] == (self.size, self.size):
            return images
        if self.interpolation == "bilinear" and not self.antialias:
            return keras.ops.image.resize(images, (self.size, self.size))
        # TensorFlow has the other kernels for CPUs alone, and XLA none.
        height, width, channels = images.shape[1:]
        resized = keras.ops.reshape(images, (-1, height, width * channels))
        resized = keras.ops.matmul(self._matrix(height)[None], resized)
        resized = keras.ops.reshape(resized, (-1, width, channels))
        resized = keras.ops.matmul(self._matrix(width)[None], resized)
        resized = keras.ops.reshape(resized, (-1, self.size, self.size, channels))
        # Bicubic overshoots at edges.
        return keras.ops.clip(resized, 0.0, 1.0) if self.interpolation == "bicubic" else resized

    def _matrix(self, length: int) -> np.ndarray:
        """Return the share of each old pixel in each new one, float32 [size, length]."""
        with tf.device("/CPU:0"):
            impulses = tf.eye(length)[None, :, :, None]
            resized = tf.image.resize(impulses, (self.size, length), self.interpolation, antialias=self.antialias)
        return resized[0, :, :, 0].numpy()


def of_keras(
    make: Callable[[], keras.Model],
    *,
    name: str,
    resize: Resize,
    preprocess: Callable[[Any], Any] | None = None,
    weights: str = "none",
    sources: Mapping[str, Callable[[], keras.Model]] | None = None,
    batch_norm: Literal["inference", "train"] | None = None,
    upper_blocks: str | None = None,
) -> Backbone:
    """A Keras network without its top, behind a resize and its own preprocessing.

    make: () -> the network with any weights, float [B, size, size, 3] in, feature map out. Its layers are copied;
    BatchNormalization, DepthwiseConv2D and Dropout become those of this package.
    name: The model's name, in messages and as the scope of its weights.
    preprocess: float32 images [B, H, W, 3] in [0, 1] -> the network's input; None leaves them as they are.
    sources: {a name for `weights`: () -> the network with these weights}, such as imagenet.
    The others: see `pretrained`.

    ValueError for weights that do not exist, or a setting out of range.
    """
    check_range("[]", 1, 1024, image_size=resize.size)
    loading.check(weights, sources or ())
    if batch_norm == "inference" and weights == "none":
        raise ValueError("batch_norm: inference needs pretrained weights; use batch_norm=train")
    mode = batch_norm or ("train" if weights == "none" else "inference")

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        if image_shape[-1] != 3:
            raise WeightsError(f"backbone: {name} needs images of 3 channels; these have {image_shape[-1]}")
        images = keras.Input(image_shape, name="images")
        pixels = resize(images)  # always in float32: bfloat16 cannot represent all pixel values up to 255
        if preprocess is not None:
            pixels = preprocess(pixels)
        network = make()
        network.name = name  # the weights of a Sequential model are named after it
        copy = keras.models.clone_model(
            network, clone_function=functools.partial(_with_our_layers, mode=mode), recursive=True
        )
        return keras.Model(images, copy(pixels), name=name)

    return Backbone(
        build,
        load_weights=None if weights == "none" else lambda model, images: loading.load(model, weights, make, sources),
        standardizes=True,
        upper_blocks=upper_blocks,
        runs_in_inference=mode == "inference",
        image_size=resize.size,
    )


def _with_our_layers(layer: keras.layers.Layer, mode: str) -> keras.layers.Layer:
    """Return a copy of a layer, as ours if it is Keras's BatchNormalization, DepthwiseConv2D or Dropout."""
    from cifar_research.models.layers import BatchNormalization, DepthwiseConv2D, Dropout

    settings = layer.get_config()
    if type(layer) in (keras.layers.BatchNormalization, BatchNormalization):
        if mode == "train":
            settings["momentum"] = min(settings["momentum"], _MAX_MOMENTUM)
        return BatchNormalization.from_config(settings)
    if type(layer) is keras.layers.DepthwiseConv2D:
        return DepthwiseConv2D.from_config(settings)
    if type(layer) is keras.layers.Dropout:
        return Dropout(settings["rate"], noise_shape=settings["noise_shape"], name=settings["name"])
    return layer.__class__.from_config(settings)
