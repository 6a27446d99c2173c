"""Which layers and weights a phase trains, and at what share of the learning rate."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifar_research.config import targets
from cifar_research.models.classifier import leaves
from cifar_research.runtime.errors import ConfigError

if TYPE_CHECKING:
    import keras


def trained_layers(
    trainable: str | Mapping[str, Any], backbone: keras.Model, upper_blocks: str | None
) -> list[keras.layers.Layer]:
    """Return the backbone's layers that a phase trains, those with weights alone.

    `last` counts layers with weights; `from` is every layer from that one on, in the model's order; `upper` is `from`
    `upper_blocks`, a layer's name. ConfigError, naming the nearest layer, if there is no such layer.
    """
    everything = leaves(backbone)
    layers = [layer for layer in everything if layer.weights]
    if trainable == "none":
        return []
    if trainable == "all":
        return layers
    if trainable == "upper":
        if upper_blocks is None:
            raise ConfigError(
                "training.phases: trainable: upper needs a backbone that names its upper blocks, and "
                f"{backbone.name} does not; give {{from: <layer>}} or {{last: <n>}}"
            )
        trainable = {"from": upper_blocks}
    names = [layer.name for layer in everything]
    if isinstance(trainable, str):
        found = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, trainable)]
        if not found:
            raise ConfigError(
                f"training.phases: trainable: no layer with weights of {backbone.name} is called {trainable!r}"
                f"{targets.nearest(trainable, [layer.name for layer in layers])}"
            )
        return found
    if "last" in trainable:
        return layers[-trainable["last"] :]
    first = trainable["from"]
    if first not in names:
        raise ConfigError(
            f"training.phases: trainable.from: {backbone.name} has no layer {first!r}{targets.nearest(first, names)}"
        )
    return [layer for layer in everything[names.index(first) :] if layer.weights]


def learning_rate_scales(layers: Sequence[keras.layers.Layer], decay: float) -> dict[str, float]:
    """Return each weight's learning-rate multiplier: decay^n in the n-th trained layer from the top.

    Discriminative fine-tuning (Howard and Ruder 2018); the head, above them all, keeps the whole rate.
    """
    return {weight.path: decay**depth for depth, layer in enumerate(reversed(layers), 1) for weight in layer.weights}
