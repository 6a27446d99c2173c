"""The table of a network's layers: shapes, parameters, operations."""

import keras
import pytest

from cifar_research import config
from cifar_research.models import classifier, summary


@keras.saving.register_keras_serializable()
class Mine(keras.Model):
    """A model that is neither sequential nor functional."""

    def __init__(self):
        super().__init__(name="mine")
        self.conv = keras.layers.Conv2D(4, 3)

    def call(self, images):
        return self.conv(images)


def rows(model):
    return {layer.name: layer[1:] for layer in summary.layers(model)}


def test_definitions_by_hand():
    images = keras.Input((8, 8, 3))
    conv, other = (keras.layers.Conv2D(5, 3, padding="same", name=name) for name in ("conv", "conv_1"))
    again = keras.layers.Conv2D(5, 1, name="shared")
    maps = again(again(other(conv(images))))
    inner = keras.Model(images, Mine()(maps) * 2, name="conv")
    sequence = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Flatten(name="flat")], name="sequence")
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.Dense(10, name="conv_1")(sequence(inner(images))), name="classifier")
    # A multiply-add is 2, and each bias 1; a layer that is called twice counts twice.
    assert rows(model) == {
        "conv/conv": ("Conv2D", "8 x 8 x 5", 3 * 3 * 3 * 5 + 5, 8 * 8 * 5 * (2 * 3 * 3 * 3 + 1)),
        "conv/conv_1": ("Conv2D", "8 x 8 x 5", 3 * 3 * 5 * 5 + 5, 8 * 8 * 5 * (2 * 3 * 3 * 5 + 1)),
        "conv/shared": ("Conv2D", "8 x 8 x 5", 5 * 5 + 5, 2 * 8 * 8 * 5 * (2 * 5 + 1)),
        "conv/mine": ("Mine", "6 x 6 x 4", 3 * 3 * 5 * 4 + 4, 6 * 6 * 4 * (2 * 3 * 3 * 5 + 1)),
        "sequence/flat": ("Flatten", "144", 0, 0),
        "conv_1": ("Dense", "10", 1450, 10 * (2 * 144 + 1)),
        "others": ("–", "–", 0, 144),
    }


@pytest.mark.parametrize(
    "overrides", [["experiment=wide"], ["experiment=fast"], ["backbone=mobilenet_v2", "backbone.weights=none"]]
)
def test_all_layers_are_listed_and_add_up(overrides):
    settings = config.parse([*overrides, "training=scratch"] if "backbone=mobilenet_v2" in overrides else overrides)
    model = classifier.classifier(settings.backbone, settings.head, (32, 32, 3), 10)
    result = summary.layers(model)
    leaves = [layer for layer in classifier.leaves(model) if not isinstance(layer, keras.layers.InputLayer)]
    assert [layer.name.rpartition("/")[2] for layer in result if layer.name != "others"] == [
        leaf.name for leaf in leaves
    ]
    assert sum(layer.parameters for layer in result) == model.count_params()
    others = sum(layer.flops for layer in result if layer.name == "others")
    assert others < 0.01 * sum(layer.flops for layer in result)
