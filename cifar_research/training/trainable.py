"""The layers and weights that a phase trains, and their learning-rate multipliers."""

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
    """Return the backbone's layers with weights that a phase trains.

    `last` counts layers with weights. `from` is that layer and all later ones, in the model's order. `upper` is `from`
    the layer `upper_blocks`. Raises ConfigError, naming the nearest layer, for an unknown one.
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
                "training.phases: trainable=upper needs a backbone that names its upper blocks, and "
                f"{backbone.name} does not; give {{from: <layer>}} or {{last: <n>}}"
            )
        trainable = {"from": upper_blocks}
    names = [layer.name for layer in everything]
    if isinstance(trainable, str):
        matching = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, trainable)]
        if not matching:
            raise ConfigError(
                f"training.phases: trainable={trainable} matches no layer with weights of {backbone.name}"
                f"{targets.nearest(trainable, [layer.name for layer in layers])}"
            )
        return matching
    if "last" in trainable:
        return layers[-trainable["last"] :]
    first = trainable["from"]
    if first not in names:
        raise ConfigError(
            f"training.phases: trainable.from: {backbone.name} has no layer {first!r}{targets.nearest(first, names)}"
        )
    return [layer for layer in everything[names.index(first) :] if layer.weights]


def learning_rate_scales(layers: Sequence[keras.layers.Layer], decay: float) -> dict[str, float]:
    """Return each weight's learning-rate multiplier, decay^n in the n-th layer from the top.

    Discriminative fine-tuning (Howard and Ruder 2018). Only trained layers count; the head has the full learning rate.
    """
    return {weight.path: decay**depth for depth, layer in enumerate(reversed(layers), 1) for weight in layer.weights}
