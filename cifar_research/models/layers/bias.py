"""Bias gradients of bfloat16 layers, summed in float32.

Gains: exact sums. TensorFlow sums bfloat16 in bfloat16: for a batch of 2,048 the gradient of the logits' bias was off
by 0.27, that of convolutions on 32 x 32 maps by up to 0.98. A step takes 0.92 to 1.00 of the time.
Where: CPUs, bfloat16; convolutions only where oneDNN lacks AVX-512, with which it sums in float32 itself.
Measured: `pytest tests/test_layers.py -k float32`; the time by a script that was not kept, see docs/performance.md.
Off: return `tf.nn.bias_add(outputs, bias)` from `biased`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from cifar_research.models.layers.tensorflow_ops import record_gradient


class Dense(keras.layers.Dense):
    """Dense layer with a float32 sum as bias gradient: float [B, ..., C] -> [B, ..., units]."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not (self.use_bias and isinstance(inputs, tf.Tensor) and inputs.dtype == tf.bfloat16):
            return super().call(inputs, training=training)
        return self.activation(biased(keras.ops.matmul(inputs, self.kernel), self.bias))


def biased(outputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Add a bias [K] to bfloat16 [..., K]; its gradient is summed in float32."""
    bias = tf.convert_to_tensor(bias)
    added = tf.nn.bias_add(outputs, bias)
    record_gradient("BiasAddInFloat32", [outputs, bias], added)
    return added


@tf.RegisterGradient("BiasAddInFloat32")
def _bias_gradient(op: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
    sums = tf.reduce_sum(tf.cast(upstream, tf.float32), list(range(upstream.shape.rank - 1)))
    return [upstream, tf.cast(sums, upstream.dtype)]
