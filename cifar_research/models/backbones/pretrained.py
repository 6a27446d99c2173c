"""Backbones of keras.applications, with or without their ImageNet weights."""

from __future__ import annotations

import functools
from typing import Any, Literal

from cifar_research.config.contracts import Backbone
from cifar_research.config.targets import check_range
from cifar_research.models.backbones import weights as loading
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras

# Moving variances start at 1. If the true variance is 0.01, the start dominates for 500 steps at momentum 0.99, or for
# 5,000 at MobileNetV2's 0.999. Fifty such layers in a row classify at chance level.
_MAX_MOMENTUM = 0.9


def pretrained(
    *,
    application: str,
    module: str,
    weights: str = "imagenet",
    image_size: int,
    min_image_size: int = 32,
    batch_norm: Literal["inference", "train"] | None = None,
    upper_blocks: str,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A model of keras.applications without its top: `<module>.<application>`.

    application: The function's name in keras.applications.
    module: The function's module in keras.applications.
    weights: The first weights: `imagenet`, `none`, a .weights.h5, .h5 or .keras file, or a run folder.
    image_size: Images are resized to this height and width in pixels before the network's own preprocessing.
    min_image_size: The smallest `image_size` that the network takes.
    batch_norm: `inference` keeps all moving statistics; `train` updates those of trained layers; null is `inference`
    with weights and `train` without.
    upper_blocks: The first of the layers that `trainable: upper` means.
    options: More arguments of the function, such as MobileNetV2's alpha.

    Moving statistics are updated with a momentum of at most 0.9.
    The model: float [B, H, W, 3] in [0, 1] in, feature map out.
    """
    check_range("[]", min_image_size, 1024, image_size=image_size)
    loading.check(weights, has_imagenet=True)
    if batch_norm == "inference" and weights == "none":
        raise ValueError("batch_norm: inference needs pretrained weights; use batch_norm=train")
    mode = batch_norm or ("train" if weights == "none" else "inference")
    make = functools.partial(_application, module, application, image_size, options or {})

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        if image_shape[-1] != 3:
            raise WeightsError(f"backbone: {application} needs images of 3 channels; these have {image_shape[-1]}")
        images = keras.Input(image_shape, name="images")
        # Always in float32: bfloat16 cannot represent all pixel values up to 255.
        pixels = images
        if image_shape[:2] != (image_size, image_size):
            pixels = keras.ops.image.resize(pixels, (image_size, image_size), interpolation="bilinear")
        pixels = getattr(keras.applications, module).preprocess_input(pixels * 255.0)
        copy = keras.models.clone_model(make(None), clone_function=functools.partial(_with_our_layers, mode=mode))
        return keras.Model(images, copy(pixels), name=module)

    return Backbone(
        build,
        load_weights=lambda model, images: loading.load(model, weights, make),
        standardizes=True,
        upper_blocks=upper_blocks,
        runs_in_inference=mode == "inference",
    )


def _application(module: str, name: str, image_size: int, options: dict[str, Any], weights: str | None) -> keras.Model:
    """Return the model without its top; WeightsError if it rejects the options."""
    factory = getattr(getattr(keras.applications, module, None), name, None)
    if factory is None:
        raise WeightsError(f"backbone: keras.applications has no {module}.{name}; see keras.io/api/applications")
    try:
        return factory(include_top=False, weights=weights, input_shape=(image_size, image_size, 3), **options)
    except (TypeError, ValueError) as error:
        if weights == "imagenet" and "hash" in str(error):  # a damaged download
            raise
        raise WeightsError(f"backbone: {name} rejects its settings: {error}") from error


def _with_our_layers(layer: keras.layers.Layer, mode: str) -> keras.layers.Layer:
    """Return a copy of a layer, as our BatchNormalization or Dropout if it is Keras's."""
    from cifar_research.models.layers import BatchNormalization, Dropout

    settings = layer.get_config()
    if type(layer) is keras.layers.BatchNormalization:
        if mode == "train":
            settings["momentum"] = min(settings["momentum"], _MAX_MOMENTUM)
        return BatchNormalization.from_config(settings)
    if type(layer) is keras.layers.Dropout:
        return Dropout(settings["rate"], noise_shape=settings["noise_shape"], name=settings["name"])
    return layer.__class__.from_config(settings)
