"""Activations compiled by XLA into one pass over memory.

Gains: GELU and its gradient take 113 ms of a step of `experiment=fast`, and 287 of 650 ms as TensorFlow's operations.
Where: two cores of an Intel Xeon with AMX, batches of 512.
Measured: as parts of a step, by a script that was not kept; see «What pays on a CPU» in docs/performance.md.
Off: import `Activation` from keras.layers in __init__.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from cifar_research.models.layers.context import current


class Activation(keras.layers.Activation):
    """An activation fused by XLA, except ReLU and where `portable` is set.

    Inputs and outputs: float [B, ...]. TensorFlow itself fuses ReLU with the operation before it.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        name = keras.activations.serialize(self.activation)
        if current.portable and name == "gelu":  # Keras uses erfc, which ONNX lacks
            return 0.5 * inputs * (1 + tf.math.erf(inputs * tf.cast(0.5**0.5, inputs.dtype)))
        if current.portable or name == "relu" or not isinstance(inputs, tf.Tensor):
            return super().call(inputs)
        return _fused(name)(inputs)


@functools.cache
def _fused(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    function = keras.activations.get(name)

    def slope(inputs: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        return tape.gradient(outputs, inputs, gradient)

    forward = tf.function(function, jit_compile=True, autograph=False)
    backward = tf.function(slope, jit_compile=True, autograph=False)

    @tf.custom_gradient
    def apply(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return forward(inputs), lambda gradient: backward(inputs, gradient)

    # One trace a shape: each graph that calls tf.custom_gradient stays in memory.
    return tf.function(apply, autograph=False)
