"""The networks of airbench94 and airbench96 (Jordan 2024, arXiv 2404.00498)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from cifar_research.config.contracts import Backbone
from cifar_research.models.backbones import weights as loading
from cifar_research.models.backbones.cnn import Activation, Initialization, check_filters, initializer
from cifar_research.runtime.lazy import keras

if TYPE_CHECKING:
    import numpy as np


_PATCH_SIZE, _EPSILON = 2, 0.0005  # of the whitening layer's patches (section 3.1)
_NORM_MOMENTUM = 0.6  # the share that moving statistics keep at each step


def airbench(
    *,
    filters: list[int],
    convolutions: Literal[2, 3] = 2,
    initialization: Initialization = "dirac",
    activation: Activation = "gelu",
    weights: str = "none",
) -> Backbone:
    """A whitening layer, then blocks: convolution, pooling, norm, and one or two more convolutions with a norm.

    filters: The output channels of each block.
    convolutions: How many each block has. With 3, as in airbench96, the first one's output is added to that of the last.
    initialization: How kernels start: `glorot` (Glorot and Bengio 2010), or `dirac`, which passes channels on unchanged.
    activation: The activation after each normalisation.
    weights: The first weights: `none`, a weights file, or a run folder.

    The whitening layer is set before the first step, see `whitening`; {from: block1_conv1} never trains it. The model:
    float [B, H, W, C] in, [B, h, w, filters[-1]] out, h = floor((H - 1) / 2^n) after n blocks.
    """
    check_filters(filters)
    loading.check(weights)

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        from cifar_research.models import layers

        width = 2 * image_shape[-1] * _PATCH_SIZE**2
        inputs = keras.Input(image_shape, name="images")
        maps = layers.Conv2D(width, _PATCH_SIZE, name="whitening")(inputs)
        maps = layers.Activation(activation, name=f"whitening_{activation}")(maps)
        for block, channels in enumerate(filters, 1):
            residual = None
            for number in range(1, convolutions + 1):
                name = f"block{block}_conv{number}"
                options = {"padding": "same", "use_bias": False, "kernel_initializer": initializer(initialization)}
                maps = layers.Conv2D(channels, 3, **options, name=name)(maps)
                if number == 1:
                    maps = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(maps)
                norm = {"momentum": _NORM_MOMENTUM, "epsilon": 1e-5, "scale": False}
                maps = layers.BatchNormalization(**norm, name=f"{name}_norm")(maps)
                if number == 3:
                    maps = keras.layers.Add(name=f"block{block}_add")([maps, residual])
                maps = layers.Activation(activation, name=f"{name}_{activation}")(maps)
                residual = maps if number == 1 else residual
        return keras.Model(inputs, maps, name="airbench")

    def load_weights(model: keras.Model, images: Callable[[], np.ndarray]) -> None:
        if weights == "none":
            layer = model.get_layer("whitening")
            layer.set_weights([whitening(images(), _PATCH_SIZE, _EPSILON), layer.get_weights()[1]])
        else:
            loading.load(model, weights)

    least, upper = _PATCH_SIZE - 1 + 2 ** len(filters), f"block{len(filters)}_conv1"
    return Backbone(build, load_weights, min_image_size=least, upper_blocks=upper)


def whitening(images: np.ndarray, size: int, epsilon: float) -> np.ndarray:
    """Return the kernel float32 [size, size, C, 2 size^2 C] that whitens patches of images.

    images: float [N, H, W, C]. The first half of the filters are the patches' principal components, strongest first,
    each divided by the square root of its variance plus epsilon. The second half is their negative.
    """
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * images.shape[-1]).astype(np.float64)
    variances, components = np.linalg.eigh(patches.T @ patches / len(patches))
    scaled = (components / np.sqrt(np.maximum(variances, 0) + epsilon))[:, ::-1]
    kernel = np.concatenate([scaled, -scaled], axis=1)
    return kernel.reshape(size, size, images.shape[-1], -1).astype(np.float32)
