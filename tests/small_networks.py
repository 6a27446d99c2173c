"""A small network in the place of MobileNetV2, with names of its layers: quick to build and trace."""

import math

import keras
import pytest


def mobilenet_v2(input_shape=None, alpha=1.0, include_top=True, weights="imagenet", classes=1000):
    """Return a network as keras.applications.MobileNetV2 does, with 12 of its 154 layers and random weights."""
    filters = 8 * math.ceil(4 * alpha)
    x = images = keras.Input(input_shape)

    def normalized(x, name):
        return keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.999, name=name)(x)

    def convolved(x, filters, strides, name):
        return keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=name)(x)

    x = keras.layers.ReLU(6.0, name="Conv1_relu")(normalized(convolved(x, filters, 2, "Conv1"), "bn_Conv1"))
    x = keras.layers.DepthwiseConv2D(3, 2, "same", use_bias=False, name="expanded_conv_depthwise")(x)
    x = normalized(x, "expanded_conv_depthwise_BN")
    x = keras.layers.Add(name="block_12_add")([x, convolved(x, filters, 1, "block_12_expand")])
    x = convolved(x, filters, 2, "block_13_expand")
    x = normalized(convolved(x, 2 * filters, 4, "Conv_1"), "Conv_1_bn")
    x = keras.layers.ReLU(6.0, name="out_relu")(x)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(classes, name="predictions")(x)
    return keras.Model(images, x)


def install(replace=setattr):
    """Have backbones take the small network; also a hook of forked.run."""
    replace(keras.applications.mobilenet_v2, "MobileNetV2", mobilenet_v2)


@pytest.fixture
def small_mobilenet(monkeypatch):
    """The small network in the place of MobileNetV2 in this process."""
    install(monkeypatch.setattr)
