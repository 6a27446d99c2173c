"""The frozen part of a network: what a phase computes once for each image, and the rest, which it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import keras

from cifar_research.models.classifier import leaves


@dataclass(frozen=True)
class Parts:
    """A network in two parts.

    last: what the frozen part ends with. frozen: images -> features, without training. shape: of one image's features.
    weights: of the frozen part. rest: (features, training) -> logits. penalties: () -> losses added by the rest's last
    call.
    """

    last: str
    frozen: Callable[[Any], Any]
    shape: tuple[int, ...]
    weights: list[Any]
    rest: Callable[[Any, bool], Any]
    penalties: Callable[[], list[Any]]


def below_head(backbone: keras.Model, head: keras.Model) -> Parts:
    """Split between backbone and head, or behind the head's first pooling layer."""
    pool = next((layer for layer in head.layers[1:2] if layer.name == "head_pool" and not layer.weights), None)
    rest = head if pool is None else keras.Model(pool.output, head.output)

    def frozen(images: Any) -> Any:
        maps = backbone(images, training=False)
        return maps if pool is None else pool(maps)

    return Parts(
        "" if pool is None else type(pool).__name__,
        frozen,
        rest.input_shape[1:],
        backbone.weights,
        lambda features, training: rest(features, training=training),
        lambda: rest.losses,
    )


def below_layers(backbone: keras.Model, head: keras.Model, trained: Collection[keras.layers.Layer]) -> Parts | None:
    """Split before the lowest trained layers of a backbone that always runs in inference mode.

    None if no single tensor separates them from the images, as where a skip connection passes by, or if the part below
    them has no weights.
    """
    if not isinstance(backbone, keras.Function):
        return None
    before, network = _preprocessing(backbone)
    last = _last_frozen(network, trained)
    if last is None:
        return None
    try:
        lower, upper = keras.Model(network.input, last.output), keras.Model(last.output, network.output)
    except ValueError:  # the rest needs more than this tensor
        return None
    frozen = lower if before is None else keras.Model(backbone.input, lower(before))
    shape = frozen.output.shape[1:]
    if not frozen.weights or None in shape or any(layer in trained for layer in leaves(frozen)):
        return None
    return Parts(
        last.name,
        lambda images: frozen(images, training=False),
        shape,
        frozen.weights,
        lambda features, training: head(upper(features, training=False), training=training),
        lambda: [*upper.losses, *head.losses],
    )


def _preprocessing(backbone: keras.Model) -> tuple[keras.KerasTensor | None, keras.Model]:
    """Return the output of a backbone's own preprocessing, and the network behind it."""
    *before, last = backbone.operations
    if isinstance(last, keras.Function) and before:
        return before[-1].output, last
    return None, backbone


def _last_frozen(network: keras.Model, trained: Collection[keras.layers.Layer]) -> Any:
    """Return the last operation below the trained layers whose output all paths go through; None without one."""
    last, open_tensors = None, dict[int, keras.KerasTensor]()
    consumers = Counter(id(tensor) for operation in network.operations for tensor in _inputs(operation))
    for operation in network.operations[:-1]:
        layers = leaves(operation) if isinstance(operation, keras.Model) else [operation]
        if any(layer in trained for layer in layers) or not isinstance(operation.output, keras.KerasTensor):
            break
        for tensor in _inputs(operation):
            consumers[id(tensor)] -= 1
            if consumers[id(tensor)] <= 0:
                open_tensors.pop(id(tensor), None)
        open_tensors[id(operation.output)] = operation.output
        if len(open_tensors) == 1 and not isinstance(operation, keras.layers.InputLayer):
            last = operation
    return last


def _inputs(operation: Any) -> list[Any]:
    return [] if isinstance(operation, keras.layers.InputLayer) else keras.tree.flatten(operation.input)
