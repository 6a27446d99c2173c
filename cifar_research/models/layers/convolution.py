"""Convolution whose filter gradient puts sixteen images side by side.

oneDNN multiplies one row of pixels at a time, and the matrix units process 32 pixels at once. Sixteen images side by
side make rows long enough.
Gains: at batch 512 the filter gradient of 256 channels on 7 x 7 maps takes 33 ms instead of 55, that of 64 to 128
channels on 8 x 8 maps 6.9 ms instead of 8.4. Wider maps are slower and left as they are.
Where: two cores of an Intel Xeon with AMX, bfloat16.
Measured: as single operations, by a script that was not kept; see «What pays on a CPU» in docs/performance.md.
Off: return False from `_is_narrow`, or import `Conv2D` from keras.layers in __init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cifar_research.models.layers.bias import biased
from cifar_research.models.layers.tensorflow_ops import has_onednn, record_gradient


class Conv2D(keras.layers.Conv2D):
    """Convolution with faster filter gradients on narrow maps, and float32 bias gradients.

    Inputs: float [B, H, W, C]; outputs [B, h, w, filters].
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if not isinstance(inputs, tf.Tensor) or self.data_format != "channels_last":
            return super().call(inputs)
        if self.use_bias and inputs.dtype == tf.bfloat16 and not has_onednn("avx512f"):
            return self.activation(biased(self.convolution_op(inputs, self.kernel), self.bias))
        outputs = super().call(inputs)
        if self._is_plain() and _is_narrow(inputs, self.kernel):
            variables = [self.kernel, *([self.bias] if self.use_bias else [])]
            record_gradient("Conv2DSideBySide", [inputs, *map(tf.convert_to_tensor, variables)], outputs)
        return outputs

    def _is_plain(self) -> bool:
        """Return whether `filter_gradient` applies: zero-padded, stride 1, linear."""
        is_dense = self.strides == (1, 1) and self.dilation_rate == (1, 1) and self.groups == 1
        return is_dense and self.padding == "same" and self.activation is keras.activations.linear


@tf.RegisterGradient("Conv2DSideBySide")
def _conv2d_gradient(op: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
    images, kernel, *bias = op.inputs
    of_images = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    of_kernel, of_bias = filter_gradient(images, upstream, kernel.shape[:2])
    return [of_images, of_kernel, *([of_bias] if bias else [])]


def _is_narrow(images: tf.Tensor, kernel: tf.Tensor) -> bool:
    """Return whether maps are narrow enough to gain: bfloat16 on AMX, many channels."""
    is_worth_it = images.shape[2] <= 8 and min(kernel.shape[-2:]) >= 64
    return is_worth_it and images.dtype == tf.bfloat16 and has_onednn("amx_bf16")


def filter_gradient(images: tf.Tensor, gradient: tf.Tensor, size: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return gradients of kernel [h, w, C, K] and bias [K] of a padded convolution, stride 1.

    images: [B, H, W, C]; gradient: of the outputs, [B, H, W, K]. Joins 16 images, with zeros between, if 16 divides B.
    """
    number = tf.where(tf.shape(images)[0] % 16 == 0, 16, 1)
    images, gradient = (_side_by_side(maps, number, size[1] // 2) for maps in (images, gradient))
    filter_sizes = [*size, images.shape[-1], gradient.shape[-1]]
    of_kernel = tf.raw_ops.Conv2DBackpropFilter(
        input=images, filter_sizes=filter_sizes, out_backprop=gradient, strides=[1, 1, 1, 1], padding="SAME"
    )
    return of_kernel, tf.raw_ops.BiasAddGrad(out_backprop=gradient)  # of the same tensor, to be fused


def _side_by_side(images: tf.Tensor, number: tf.Tensor, between: int) -> tf.Tensor:
    _, height, width, channels = images.shape
    rows = tf.transpose(tf.reshape(images, [-1, number, height, width, channels]), [0, 2, 1, 3, 4])
    rows = tf.pad(rows, [[0, 0], [0, 0], [0, 0], [0, between], [0, 0]])
    return tf.reshape(rows, [-1, height, number * (width + between), channels])
