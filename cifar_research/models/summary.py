"""A summary of a network: its layers, their outputs, parameters and floating-point operations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cifar_research.runtime.lazy import keras, tf

Path = tuple[str, ...]  # of name scopes, or of layers


class Layer(NamedTuple):
    """A layer. output: its shape without the batch. flops: of one image's forward pass, a multiply-add as 2."""

    name: str
    kind: str
    output: str
    parameters: int
    flops: int


def layers(model: keras.Model) -> list[Layer]:
    """Return the layers of a model in order, with nested models replaced by their layers.

    The last one is `others` if the graph has operations of no single layer, so that flops add up to those of the model.
    """
    operations = _operations(model)
    rows = list(_layers(model, (model.name,), operations))
    others = sum(flops for _, flops in operations) - sum(row.flops for row in rows)
    return [*rows, Layer("others", "–", "–", 0, others)] if others else rows


def _operations(model: keras.Model) -> list[tuple[Path, int]]:
    """Return each operation of a forward pass of one image: the names of its scopes, and its flops."""
    from tensorflow.compat.v1.profiler import ProfileOptionBuilder, profile

    call = tf.function(lambda images: model(images, training=False), autograph=False)
    graph = call.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]])).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output().build()
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it warns that it calls a deprecated function
    try:
        nodes = [profile(graph, cmd="scope", options=options)]
    finally:
        logger.setLevel(level)
    for node in nodes:
        nodes += node.children
    # Keras opens a layer's scope twice, to build and to call it, so the second has a number: conv_1, for `conv`.
    return [(tuple(re.sub(r"_\d+$", "", name) for name in node.name.split("/")), node.float_ops) for node in nodes]


def _layers(model: keras.Model, path: Path, operations: Sequence[tuple[Path, int]]) -> Iterator[Layer]:
    """Yield the layers of a model that is called in the scopes of this path."""
    for layer in model.layers:
        own = (*path, layer.name)
        if isinstance(layer, (keras.Sequential, keras.Function)):
            yield from _layers(layer, own, operations)
        elif not isinstance(layer, keras.layers.InputLayer):
            flops = sum(flops for scopes, flops in operations if scopes[: len(own)] == own)
            yield Layer("/".join(own[1:]), type(layer).__name__, _shape(layer), layer.count_params(), flops)


def _shape(layer: keras.layers.Layer) -> str:
    outputs = keras.tree.flatten(layer.output)
    return ", ".join(" x ".join("any" if size is None else str(size) for size in each.shape[1:]) for each in outputs)
