"""The study's convolutional network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cifar_research.config.contracts import Backbone
from cifar_research.models.backbones import weights as loading

if TYPE_CHECKING:
    import keras

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
    """Blocks of convolutions, each block ended by 2 x 2 pooling and, if asked for, dropout.

    filters: output channels by block; `convolutions` of them a block, stride 1, zero-padded.
    batch_norm: between each convolution and its activation.
    initialization: `glorot` (Glorot and Bengio 2010), or `dirac`, see `initializer`.
    weights: `none`, a .weights.h5 file, or the folder of a run, whose backbone it is.
    The model: float [B, H, W, C] in, float [B, H / 2^n, W / 2^n, filters[-1]] out, n blocks.
    ValueError names what is out of range.
    """
    if not filters or min(filters) < 1:
        raise ValueError(f"filters: {filters} must be a list of at least one number, each at least 1")
    for name, value in {"convolutions": convolutions, "kernel_size": kernel_size}.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is out of range; it must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout} is out of range; it must be at least 0 and below 1")
    loading.check(weights)

    def build(image_shape: tuple[int, int, int]) -> keras.Model:
        import keras

        from cifar_research.models.layers import Activation, BatchNormalization, Conv2D, Dropout

        stack: list[keras.layers.Layer] = [keras.Input(image_shape, name="images")]
        for block, channels in enumerate(filters, 1):
            for number in range(1, convolutions + 1):
                name, kernel = f"block{block}_conv{number}", initializer(initialization)
                stack.append(Conv2D(channels, kernel_size, padding="same", kernel_initializer=kernel, name=name))
                if batch_norm:
                    stack.append(BatchNormalization(name=f"{name}_norm"))
                if number < convolutions:
                    stack.append(Activation(activation, name=f"{name}_{activation}"))
            stack += _pooled(activation, pooling, name, f"block{block}_pool")
            if dropout > 0:
                stack.append(Dropout(dropout, name=f"block{block}_dropout"))
        return keras.Sequential(stack, name="cnn")

    return Backbone(
        build,
        load_weights=lambda model, images: loading.load(model, weights),
        min_image_size=2 ** len(filters),
        takes_any_size=True,
        is_by_image=not batch_norm,
        upper_blocks=f"block{len(filters)}_conv1",
    )


def _pooled(activation: Activation, pooling: str, convolution: str, name: str) -> list[keras.layers.Layer]:
    """Return the activation of a block's last convolution and its pooling, which may be one layer."""
    import keras

    from cifar_research.models import layers

    if activation == "relu" and pooling == "max":
        return [layers.ReluMaxPooling2D(2, name=name)]
    pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D
    return [layers.Activation(activation, name=f"{convolution}_{activation}"), pool(2, name=name)]


def initializer(name: Initialization) -> Any:
    """Return a Keras initializer of convolution kernels [h, w, C, K].

    `dirac`: see layers.Dirac.
    """
    import keras

    from cifar_research.models.layers import Dirac

    return Dirac() if name == "dirac" else keras.initializers.GlorotUniform()
