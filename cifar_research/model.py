"""The classifier: a backbone's feature map, a head on it, logits out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from cifar_research.backbones.cnn import Activation

if TYPE_CHECKING:
    import keras


def head(
    *,
    pooling: Literal["flatten", "avg", "max"] = "flatten",
    hidden: list[int],
    dropout: float = 0.0,
    batch_norm: bool = False,
    activation: Activation = "relu",
    bias: bool = True,
    scale: float = 1.0,
) -> Callable[[Any, int], Any]:
    """Dense layers from a feature map to logits.

    pooling: how [B, h, w, C] becomes a vector: flattened, or its average or maximum over h and w.
    hidden: units of each hidden dense layer; batch_norm: between each of them and its activation.
    dropout: once, before the output layer, as in the study.
    bias: whether the output layer has one; scale: what logits are multiplied by, a small number keeps early ones
    small (Jordan 2024, arXiv 2404.00498).
    Returns a function (feature map, num_classes) -> logits float32 [B, num_classes]; see cnn for its `is_by_image`.
    """
    if hidden and min(hidden) < 1:
        raise ValueError(f"hidden: {hidden} must be a list of numbers, each at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout} is out of range; it must be at least 0 and below 1")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: {scale} is out of range; it must be above 0 and finite")

    def build(features: Any, num_classes: int) -> Any:
        import keras

        from cifar_research.layers import Activation, BatchNormalization, Dense, Dropout

        to_vector = {
            "flatten": keras.layers.Flatten,
            "avg": keras.layers.GlobalAveragePooling2D,
            "max": keras.layers.GlobalMaxPooling2D,
        }[pooling]
        vector = to_vector(name="head_pool")(features)
        for number, units in enumerate(hidden, 1):
            vector = Dense(units, name=f"head_dense{number}")(vector)
            if batch_norm:
                vector = BatchNormalization(name=f"head_dense{number}_norm")(vector)
            vector = Activation(activation, name=f"head_dense{number}_{activation}")(vector)
        if dropout > 0:
            vector = Dropout(dropout, name="head_dropout")(vector)
        # In float32 whatever the precision: of logits in bfloat16 the two highest are the same for one image in a hundred.
        logits = Dense(num_classes, use_bias=bias, dtype="float32", name="logits")(vector)
        return logits if scale == 1 else keras.layers.Rescaling(scale, dtype="float32", name="logits_scale")(logits)

    build.pools = pooling != "flatten"
    build.is_by_image = not batch_norm
    return build


def classifier(
    backbone: Callable[[tuple[int, int, int]], keras.Model],
    head: Callable[[Any, int], Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> keras.Model:
    """Return the model: float images [B, H, W, C] in, logits [B, num_classes] out; see `parts`."""
    import keras

    images = keras.Input(image_shape, name="images")
    features = backbone(image_shape)(images)
    # A head that pools takes maps of any size, so that a phase may train on smaller images.
    height_and_width = (None, None) if getattr(head, "pools", False) else features.shape[1:3]
    inputs = keras.Input((*height_and_width, *features.shape[3:]), dtype=features.dtype, name="features")
    return keras.Model(images, keras.Model(inputs, head(inputs, num_classes), name="head")(features), name="classifier")


def parts(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the backbone and the head that a classifier was made of."""
    _, backbone, head = model.layers
    return backbone, head


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
