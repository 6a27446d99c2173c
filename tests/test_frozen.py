"""The frozen part of a network: found where one tensor separates it, and whole."""

import keras
import numpy as np
import pytest

from cifar_research.training import frozen

LAYERS = keras.layers


def head():
    inputs = keras.Input((None, None, 4))
    return keras.Model(inputs, LAYERS.Dense(3)(LAYERS.GlobalAveragePooling2D()(inputs)))


def conv(name, inputs):
    return LAYERS.Conv2D(4, 3, padding="same", name=name)(inputs)


def network(build, size=8):
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, build(inputs))


def residual(images):
    x = conv("low", images)
    return conv("top", LAYERS.Add(name="add")([x, conv("inside", x)]))


def parts_of(backbone, *trained):
    layers = {layer.name: layer for layer in frozen.leaves(backbone)}
    return frozen.below_layers(backbone, head(), [layers[name] for name in trained])


@pytest.mark.parametrize(
    ("trained", "last", "num_weights"),
    [
        (["top"], "add", 4),
        (["inside", "top"], "low", 2),  # a skip connection passes `inside` by
        (["low"], None, None),  # nothing with weights is below
        (["low", "inside", "top"], None, None),
    ],
)
def test_it_ends_where_one_tensor_separates_it(trained, last, num_weights):
    parts = parts_of(network(residual), *trained)
    assert (parts and parts.last) == last
    if parts:
        assert len(parts.weights) == num_weights and parts.shape == (8, 8, 4)
        images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
        assert parts.frozen(images).shape == (2, 8, 8, 4)


def test_weights_before_a_nested_network_count():
    images = keras.Input((8, 8, 3))
    backbone = keras.Model(images, network(residual)(LAYERS.Conv2D(3, 1, name="adapter")(images)))
    assert len(parts_of(backbone, "top").weights) == 6  # a digest of them identifies what is kept
    assert parts_of(backbone, "adapter", "top") is None


def test_a_network_of_open_size_has_the_size_of_its_images():
    images = keras.Input((8, 8, 3))
    backbone = keras.Model(images, network(residual, size=None)(keras.ops.image.resize(images, (16, 16))))
    assert parts_of(backbone, "top").shape == (16, 16, 4)


def test_a_layer_that_is_called_twice_may_be_in_both_parts():
    def shared(images):
        layer = LAYERS.Conv2D(3, 3, padding="same", name="shared")
        return conv("top", layer(LAYERS.Conv2D(3, 1, name="between")(layer(images))))

    backbone, top = network(shared), head()
    layers = {layer.name: layer for layer in backbone.layers}
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    parts = frozen.below_layers(backbone, top, [layers["top"]])
    np.testing.assert_allclose(parts.rest(parts.frozen(images), False), top(backbone(images)), rtol=1e-5)
    assert frozen.below_layers(backbone, top, [layers["shared"]]) is None


def test_without_a_single_tensor_nothing_is_kept():
    def branches(images):
        return LAYERS.Add()([conv("left", images), conv("right", images)])

    assert parts_of(network(branches), "right") is None
