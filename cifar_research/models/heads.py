"""Heads: from a backbone's feature map to logits."""

from __future__ import annotations

from typing import Literal

from cifar_research.config.contracts import Head
from cifar_research.config.targets import check_range
from cifar_research.models.backbones.cnn import Activation
from cifar_research.runtime.lazy import keras


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

    pooling: How the feature map [B, h, w, C] becomes a vector: flattened, or its average or maximum over h and w.
    hidden: The units of each hidden dense layer.
    dropout: The dropout rate before the output layer.
    batch_norm: Normalise between each hidden layer and its activation.
    activation: The activation of the hidden layers.
    bias: Give the output layer a bias.
    scale: Multiplies the logits; a small number keeps early ones small (Jordan 2024, arXiv 2404.00498).
    """
    check_range("[]", 1, hidden=min(hidden, default=1))
    check_range("[)", 0, 1, dropout=dropout)
    check_range("(]", 0, scale=scale)

    def build(features: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
        from cifar_research.models.layers import Activation, BatchNormalization, Dense, Dropout

        to_vector = {
            "flatten": keras.layers.Flatten,
            "avg": keras.layers.GlobalAveragePooling2D,
            "max": keras.layers.GlobalMaxPooling2D,
        }[pooling]
        vector = to_vector(name="head_pool")(features)
        for number, units in enumerate(hidden, 1):
            name = f"head_dense{number}"
            vector = Dense(units, name=name)(vector)
            if batch_norm:
                vector = BatchNormalization(name=f"{name}_norm")(vector)
            vector = Activation(activation, name=f"{name}_{activation}")(vector)
        if dropout > 0:
            vector = Dropout(dropout, name="head_dropout")(vector)
        # In float32: with bfloat16 the two highest logits are equal for one image in a hundred.
        logits = Dense(num_classes, use_bias=bias, dtype="float32", name="logits")(vector)
        return logits if scale == 1 else keras.layers.Rescaling(scale, dtype="float32", name="logits_scale")(logits)

    return Head(build, is_by_image=not batch_norm)
