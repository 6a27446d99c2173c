"""The classifier: a backbone's feature map, a head on it, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cifar_research.config.contracts import Backbone, Head
from cifar_research.config.targets import said
from cifar_research.runtime.errors import WeightsError

if TYPE_CHECKING:
    import keras


def classifier(backbone: Backbone, head: Head, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Return the model: float images [B, H, W, C] in, logits [B, num_classes] out; see `parts`.

    WeightsError names a backbone that cannot be built, or whose output the head does not take.
    """
    import keras

    images = keras.Input(image_shape, name="images")
    features = _features(backbone, images, num_classes)
    if head.pools and len(features.shape) != 4:
        raise WeightsError(
            f"backbone: {_name(backbone.build)} returns the shape {list(features.shape)}, and this head pools a feature map "
            "[None, h, w, channels]; set model.pooling=flatten, or leave out the backbone's last layer"
        )
    # A head that pools takes maps of any size, so that a phase may train on smaller images.
    height_and_width = (None, None) if head.pools else features.shape[1:3]
    inputs = keras.Input((*height_and_width, *features.shape[3:]), dtype=features.dtype, name="features")
    logits = _logits(head, inputs, num_classes)
    return keras.Model(images, keras.Model(inputs, logits, name="head")(features), name="classifier")


def _logits(head: Head, inputs: Any, num_classes: int) -> Any:
    try:
        logits = head.build(inputs, num_classes)
    except Exception as error:  # noqa: BLE001 — a user's own code may raise any kind
        raise WeightsError(
            f"model: {_name(head.build)} cannot be built on features {list(inputs.shape)}: {said(error)}"
        ) from error
    if tuple(getattr(logits, "shape", ())) != (None, num_classes):
        found = list(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        raise WeightsError(f"model: {_name(head.build)} returns {found}, and must return logits {[None, num_classes]}")
    return logits


def _features(backbone: Backbone, images: Any, num_classes: int) -> Any:
    """Return what a backbone makes of images, with a size that is known but for the batch's."""
    import keras

    name = _name(backbone.build)
    try:
        model = backbone.build(images.shape[1:])
        features = model(images) if isinstance(model, keras.Model) else None
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 — a user's own code may raise any kind
        raise WeightsError(
            f"backbone: {name} cannot be built for images {list(images.shape[1:])}: {said(error)}"
        ) from error
    if features is None:
        raise WeightsError(
            f"backbone: {name} returns {type(model).__name__}, and must return a keras.Model for the shape of an image"
        )
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) < 2 or None in shape[1:]:
        found = list(shape) if shape is not None else f"{type(features).__name__} of several outputs"
        raise WeightsError(
            f"backbone: {name} returns {found}; it must return one feature map [None, h, w, channels] of a known size"
        )
    last = leaves(model)[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    is_softmax = activation == "softmax" or isinstance(last, keras.layers.Softmax)
    if len(shape) == 2 and (is_softmax or (activation == "linear" and shape[1] == num_classes)):
        raise WeightsError(
            f"backbone: {name} returns the shape {list(shape)}, as a whole classifier does, and a head is always added to "
            "a feature map [None, h, w, channels]; leave out its last layer (and set model.pooling=flatten for a vector)"
        )
    return features


def _name(function: Any) -> str:
    """Return what a factory is called, by the function that it has returned."""
    name = str(getattr(function, "__qualname__", type(function).__name__)).partition(".<locals>")[0]
    return f"{getattr(function, '__module__', '')}.{name}"


def parts(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the backbone and the head that a classifier was made of."""
    _, backbone, head = model.layers
    return backbone, head


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Return a model's layers in its order, those of models within it in their place.

    A model that is neither sequential nor functional counts as one layer: it may have weights of its own, and any order.
    """
    import keras

    if not isinstance(model, (keras.Sequential, keras.Function)):
        return [model]
    return [leaf for layer in model.layers for leaf in (leaves(layer) if isinstance(layer, keras.Model) else [layer])]


def forward_flops(model: keras.Model) -> int:
    """Return the floating-point operations of a forward pass of one image, a multiplication and an addition as two."""
    import tensorflow as tf
    from tensorflow.compat.v1.profiler import ProfileOptionBuilder, profile

    call = tf.function(lambda images: model(images, training=False))
    graph = call.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]])).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output().build()
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it warns of its own use of what it calls deprecated
    try:
        return profile(graph, options=options).total_float_ops
    finally:
        logger.setLevel(level)
