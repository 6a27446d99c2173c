"""Depthwise convolutions in float32, also where the other layers compute in bfloat16.

Gains: a training step of EfficientNet-Lite0 at 96 pixels takes 0.53 of the time, of MobileNetV2 0.72. Single layers with
stride 2 took 8 to 21 times as long in bfloat16 as in float32.
Where: CPUs, bfloat16. Two cores of an AMD EPYC with AVX-512 and bfloat16, no AMX, beside other work, batches of 32.
Measured: as steps of a backbone and as single layers, in turn, by a script that was not kept. Beside `keras.fit`:
`scripts/benchmark --parts transfer`.
Off: remove the `if`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's layer; float [B, H, W, C] -> [B, h, w, C m], on a CPU float32 instead of bfloat16."""

    def __init__(self, *arguments: Any, dtype: Any = None, **settings: Any) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        if policy.compute_dtype == "bfloat16" and not tf.config.list_physical_devices("GPU"):
            dtype = "float32"
        super().__init__(*arguments, dtype=dtype, **settings)
