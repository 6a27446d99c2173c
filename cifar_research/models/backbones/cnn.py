"""The study's convolutional network."""

from __future__ import annotations

from typing import Literal

from cifar_research.config.contracts import Backbone
from cifar_research.config.targets import check_range
from cifar_research.models.backbones import weights as loading
from cifar_research.runtime.lazy import keras

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"]
Initialization = Literal["glorot", "dirac"]


def cnn(
    *,
    filters: list[int],
    convolutions: int = 1,
    kernel_size: int = 3,
    pooling: Literal["max", "avg"] = "max",
    batch_norm: bool = False,
    dropout: float = 0.0,
    activation: Activation = "relu",
    initialization: Initialization = "glorot",
    weights: str = "none",
) -> Backbone:
    """Blocks of convolutions, each followed by 2 x 2 pooling and dropout.

    filters: The output channels of each block.
    convolutions: The convolutions of each block, with stride 1 and zero padding.
    kernel_size: The height and width of the kernels.
    pooling: The 2 x 2 pooling that ends each block.
    batch_norm: Normalise between each convolution and its activation.
    dropout: The dropout rate at the end of each block.
    activation: The activation after each convolution.
    initialization: How kernels start: `glorot` (Glorot and Bengio 2010), or `dirac`, which passes channels on unchanged.
    weights: The first weights: `none`, a weights file, or a run folder.

    The model: float [B, H, W, C] in, float [B, H / 2^n, W / 2^n, filters[-1]] out, n blocks.
    """
    check_filters(filters)
    check_range("[]", 1, convolutions=convolutions, kernel_size=kernel_size)
    check_range("[)", 0, 1, dropout=dropout)
    loading.check(weights)

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        from cifar_research.models import layers

        pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D
        stack = [keras.Input(image_shape, name="images")]
        for block, channels in enumerate(filters, 1):
            for number in range(1, convolutions + 1):
                name, kernel = f"block{block}_conv{number}", initializer(initialization)
                stack.append(layers.Conv2D(channels, kernel_size, padding="same", kernel_initializer=kernel, name=name))
                if batch_norm:
                    stack.append(layers.BatchNormalization(name=f"{name}_norm"))
                is_fused = number == convolutions and activation == "relu" and pooling == "max"
                if not is_fused:
                    stack.append(layers.Activation(activation, name=f"{name}_{activation}"))
            stack.append((layers.ReluMaxPooling2D if is_fused else pool)(2, name=f"block{block}_pool"))
            if dropout > 0:
                stack.append(layers.Dropout(dropout, name=f"block{block}_dropout"))
        return keras.Sequential(stack, name="cnn")

    return Backbone(
        build,
        load_weights=lambda model, images: loading.load(model, weights),
        min_image_size=2 ** len(filters),
        is_by_image=not batch_norm,
        upper_blocks=f"block{len(filters)}_conv1",
    )


def check_filters(filters: list[int]) -> None:
    """Raise ValueError without blocks, or for a block without channels."""
    if min(filters, default=0) < 1:
        raise ValueError(f"filters: {filters} must be a list of numbers, each at least 1")


def initializer(name: Initialization) -> keras.Initializer:
    """Return a Keras initializer of convolution kernels [h, w, C, K]."""
    from cifar_research.models.layers import Dirac

    return Dirac() if name == "dirac" else keras.initializers.GlorotUniform()
