"""Heads: from a backbone's feature map to logits."""

from __future__ import annotations

from typing import Any, Literal

from cifar_research.config.contracts import Head
from cifar_research.models.backbones.cnn import Activation


def head(
    *,
    pooling: Literal["flatten", "avg", "max"] = "flatten",
    hidden: list[int],
    dropout: float = 0.0,
    batch_norm: bool = False,
    activation: Activation = "relu",
    bias: bool = True,
    scale: float = 1.0,
) -> Head:
    """Dense layers from a feature map to logits.

    pooling: how [B, h, w, C] becomes a vector: flattened, or its average or maximum over h and w.
    hidden: units of each hidden dense layer; batch_norm: between each of them and its activation.
    dropout: once, before the output layer, as in the study.
    bias: whether the output layer has one; scale: what logits are multiplied by, a small number keeps early ones
    small (Jordan 2024, arXiv 2404.00498).
    ValueError names what is out of range.
    """
    if hidden and min(hidden) < 1:
        raise ValueError(f"hidden: {hidden} must be a list of numbers, each at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout} is out of range; it must be at least 0 and below 1")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: {scale} is out of range; it must be above 0 and finite")

    def build(features: Any, num_classes: int) -> Any:
        import keras

        from cifar_research.models.layers import Activation, BatchNormalization, Dense, Dropout

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

    return Head(build, pools=pooling != "flatten", is_by_image=not batch_norm)
