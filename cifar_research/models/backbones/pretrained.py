"""Backbones of keras.applications, with the weights they were trained to, or without."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

from cifar_research.config.contracts import Backbone
from cifar_research.models.backbones import weights as loading
from cifar_research.runtime.errors import WeightsError

if TYPE_CHECKING:
    import keras

# Moving variances start at 1. In a layer whose own is a hundredth of that, what is left of the start after 500 steps at
# 0.99, or 5,000 at MobileNetV2's 0.999, still outweighs it, and fifty such layers in a row classify by chance.
_MOST_MOMENTUM = 0.9


def pretrained(
    *,
    application: str,
    module: str,
    weights: str = "imagenet",
    image_size: int,
    min_image_size: int = 32,
    batch_norm: Literal["inference", "train"] | None = None,
    upper_blocks: str,
    options: dict | None = None,
) -> Backbone:
    """A model of keras.applications without its top: `keras.applications.<module>.<application>`.

    weights: `imagenet`, `none`, a .weights.h5, .h5 or .keras file, or the folder of a run of ours, whose backbone it is.
    image_size: what images are resized to, bilinearly, before the application's own preprocessing.
    batch_norm: `inference` leaves every moving statistic as the weights brought it, in trained layers too, as one does
    in fine-tuning; `train` moves those of trained layers, with a momentum of 0.9 at the most; null is inference with
    weights, and train without.
    upper_blocks: the first of the layers that `trainable: upper` means.
    options: more of the application's own arguments, such as MobileNetV2's alpha.
    The model: float [B, H, W, 3] in [0, 1] in, feature map out. ValueError names what is out of range.
    """
    _check_size(application, image_size, min_image_size)
    if taken := {"include_top", "weights", "input_shape", "input_tensor", "pooling", "classes"} & set(options or {}):
        raise ValueError(
            f"options: {', '.join(sorted(taken))}: this is not {application}'s own to choose here; leave it out"
        )
    loading.check(weights, has_imagenet=True)
    if batch_norm == "inference" and weights == "none":
        raise ValueError(
            "batch_norm: inference leaves moving statistics as they are, and weights=none brings none; choose train"
        )
    mode = batch_norm or ("train" if weights == "none" else "inference")

    make = functools.partial(_application, module, application, image_size, options or {})

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        import keras

        if image_shape[-1] != 3:
            raise WeightsError(f"backbone: {application} takes images of 3 channels, and these have {image_shape[-1]}")
        images = keras.Input(image_shape, name="images")
        # In float32, whatever the precision of the layers: a pixel of 255 has no room in bfloat16's eight bits.
        pixels = images
        if image_shape[:2] != (image_size, image_size):
            pixels = keras.ops.image.resize(pixels, (image_size, image_size), interpolation="bilinear")
        pixels = getattr(keras.applications, module).preprocess_input(pixels * 255.0)
        copy = keras.models.clone_model(make(None), clone_function=functools.partial(_ours, mode=mode))
        return keras.Model(images, copy(pixels), name=module)

    return Backbone(
        build,
        load_weights=lambda model, images: loading.load(model, weights, make),
        standardizes=True,
        upper_blocks=upper_blocks,
        runs_in_inference=mode == "inference",
    )


def _check_size(application: str, image_size: int, min_image_size: int) -> None:
    """Raise ValueError if the size that images are resized to is out of range."""
    if image_size < min_image_size:
        raise ValueError(
            f"image_size: {image_size} is too small for {application}, which takes {min_image_size} or more"
        )
    if image_size > 1024:
        raise ValueError(f"image_size: {image_size} is out of range; it must be at most 1024")


def _application(module: str, name: str, image_size: int, options: dict, weights: str | None) -> keras.Model:
    """Return a model of keras.applications without its top; WeightsError if there is none with these options."""
    import keras

    home = getattr(keras.applications, module, None)
    if not hasattr(home, name):
        raise WeightsError(
            f"backbone.application: keras.applications has no {module}.{name}; see keras.io/api/applications"
        )
    try:
        return getattr(home, name)(
            include_top=False, weights=weights, input_shape=(image_size, image_size, 3), **options
        )
    except (TypeError, ValueError) as error:
        if weights == "imagenet" and "hash" in str(error):
            raise  # which is the download's
        raise WeightsError(f"backbone: {name} refuses its settings: {error}") from error


def _ours(layer: keras.layers.Layer, mode: str) -> keras.layers.Layer:
    """Return a copy of a layer, on our fused kernels and stateless masks where Keras has its own."""
    import keras

    from cifar_research.models.layers import BatchNormalization, Dropout

    settings = layer.get_config()
    if type(layer) is keras.layers.BatchNormalization:
        if mode == "train":
            settings["momentum"] = min(settings["momentum"], _MOST_MOMENTUM)
        return BatchNormalization.from_config(settings)
    if type(layer) is keras.layers.Dropout:
        return Dropout(settings["rate"], noise_shape=settings["noise_shape"], name=settings["name"])
    return layer.__class__.from_config(settings)
