"""Backbones of keras.applications, with or without their ImageNet weights."""

from __future__ import annotations

import functools
from typing import Any, Literal

from cifar_research.config.contracts import Backbone
from cifar_research.config.targets import check_range
from cifar_research.models.backbones.of_keras import Interpolation, Resize, of_keras
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras


def pretrained(
    *,
    application: str,
    module: str,
    weights: str = "imagenet",
    image_size: int,
    min_image_size: int = 32,
    interpolation: Interpolation = "bilinear",
    antialias: bool = False,
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
    interpolation: How the resize computes pixels.
    antialias: Blur before images are made smaller, so that each pixel is a mean over what it covers.
    batch_norm: `inference` keeps all moving statistics; `train` updates those of trained layers; null is `inference`
    with weights and `train` without.
    upper_blocks: The first of the layers that `trainable: upper` means.
    options: More arguments of the function, such as MobileNetV2's alpha.

    Moving statistics are updated with a momentum of at most 0.9.
    The model: float [B, H, W, 3] in [0, 1] in, feature map out.
    """
    check_range("[]", min_image_size, 1024, image_size=image_size)
    make = functools.partial(_application, module, application, image_size, options or {})
    return of_keras(
        functools.partial(make, None),
        name=module,
        resize=Resize(image_size, interpolation, antialias),
        preprocess=lambda pixels: getattr(keras.applications, module).preprocess_input(pixels * 255.0),
        weights=weights,
        sources={"imagenet": functools.partial(make, "imagenet")},
        batch_norm=batch_norm,
        upper_blocks=upper_blocks,
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
