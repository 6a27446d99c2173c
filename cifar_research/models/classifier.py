"""The classifier: a backbone and a head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from cifar_research.config.contracts import Backbone, Head
from cifar_research.config.targets import error_text
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras


def classifier(backbone: Backbone, head: Head, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Return the model: float images [B, H, W, C] in, logits [B, num_classes] out.

    WeightsError names the backbone or head if it cannot be built, or if the two do not fit together.
    """
    images = keras.Input(image_shape, name="images")
    features = _features(backbone, images, num_classes)
    inputs = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    name = _name(head.build)
    hint = "" if len(inputs.shape) == 4 else ", a vector, which needs model.pooling=flatten"
    with _as_weights_error(f"model: {name} cannot be built on features {list(inputs.shape)}{hint}"):
        logits = head.build(inputs, num_classes)
    if _shape(logits) != [None, num_classes]:
        returned = _shape(logits) or type(logits).__name__
        raise WeightsError(f"model: {name} returns {returned}; return logits {[None, num_classes]}")
    return keras.Model(images, keras.Model(inputs, logits, name="head")(features), name="classifier")


def _features(backbone: Backbone, images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Return the backbone's output; all dimensions but the batch's are known."""
    name = _name(backbone.build)
    with _as_weights_error(f"backbone: {name} cannot be built for images {list(images.shape[1:])}"):
        model = backbone.build(images.shape[1:])
        features = model(images) if isinstance(model, keras.Model) else model
    shape = _shape(features)
    is_valid = isinstance(model, keras.Model) and len(shape) > 1 and None not in shape[1:]
    activation = getattr(leaves(model)[-1], "activation", None) if is_valid else None
    is_linear = activation is keras.activations.linear
    is_classifier = activation is keras.activations.softmax or (is_linear and shape[1] == num_classes)
    if not is_valid or (is_classifier and len(shape) == 2):
        raise WeightsError(
            f"backbone: {name} returns {shape or type(features).__name__}, of a {type(model).__name__}; return a keras.Model with "
            "one feature map [None, h, w, channels] of a known size, or a vector with model.pooling=flatten, and without a "
            "classifier's last layer"
        )
    return features


@contextlib.contextmanager
def _as_weights_error(problem: str) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 — a user's own code may raise any type
        raise WeightsError(f"{problem}: {error_text(error)}") from error


def _shape(value: Any) -> list[int | None]:
    return list(getattr(value, "shape", ()))


def _name(function: Callable[..., Any]) -> str:
    """Return the name of the factory that returned a function."""
    name = str(getattr(function, "__qualname__", type(function).__name__)).partition(".<locals>")[0]
    return f"{getattr(function, '__module__', '')}.{name}"


def parts(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the backbone and the head of a classifier."""
    _, backbone, head = model.layers
    return backbone, head


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Return a model's layers in order, with nested models replaced by their layers.

    A model that is neither sequential nor functional counts as one layer: its own weights and order are unknown.
    """
    if not isinstance(model, (keras.Sequential, keras.Function)):
        return [model]
    return [leaf for layer in model.layers for leaf in (leaves(layer) if isinstance(layer, keras.Model) else [layer])]
