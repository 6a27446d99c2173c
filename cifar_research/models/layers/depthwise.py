"""Depthwise convolutions: float32 also where the other layers compute in bfloat16, and faster on small maps.

Float32. Gains: a training step of EfficientNet-Lite0 at 96 pixels takes 0.53 of the time, of MobileNetV2 0.72. Single
layers with stride 2 took 8 to 21 times as long in bfloat16 as in float32.
Where: CPUs, bfloat16. Two cores of an AMD EPYC with AVX-512 and bfloat16, no AMX, beside other work, batches of 32.

Small maps. oneDNN's filter gradient is slow on maps smaller than the kernel, so zeros make them as large.
Gains: with 1152 filters of 5 x 5 on 3 x 3 maps the gradient takes 11 ms instead of 52, on 4 x 4 maps 12 ms instead of 45.
Where: CPUs with oneDNN. Two cores of an AMD EPYC with AVX2, float32, batches of 64.

Measured: as steps of a backbone and as single layers, in turn, by scripts that were not kept. Beside `keras.fit`:
`scripts/benchmark --parts transfer`.
Off: remove the first `if` or the second.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from cifar_research.models.layers.tensorflow_ops import has_onednn, record_gradient


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's layer; float [B, H, W, C] -> [B, h, w, C m], on a CPU float32 instead of bfloat16."""

    def __init__(self, *arguments: Any, dtype: Any = None, **settings: Any) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        if policy.compute_dtype == "bfloat16" and not tf.config.list_physical_devices("GPU"):
            dtype = "float32"
        super().__init__(*arguments, dtype=dtype, **settings)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs = super().call(inputs)
        if isinstance(inputs, tf.Tensor) and self._is_plain() and self._is_small(inputs):
            record_gradient("DepthwiseOnSmallMaps", [inputs, tf.convert_to_tensor(self.kernel)], outputs)
        return outputs

    def _is_small(self, maps: tf.Tensor) -> bool:
        """Return whether maps are known to be smaller than the kernel."""
        sizes = maps.shape[1:3].as_list()
        return None not in sizes and max(sizes) < min(self.kernel_size)

    def _is_plain(self) -> bool:
        """Return whether the gradient below applies: with oneDNN, zero-padded, stride 1, linear, without a bias."""
        is_dense = self.strides == (1, 1) and self.dilation_rate == (1, 1) and self.data_format == "channels_last"
        is_linear = not self.use_bias and self.activation is keras.activations.linear
        return has_onednn("avx2") and is_dense and is_linear and self.padding == "same"


@tf.RegisterGradient("DepthwiseOnSmallMaps")
def _depthwise_gradient(op: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
    images, kernel = op.inputs
    settings: dict[str, Any] = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    of_images = tf.nn.depthwise_conv2d_backprop_input(tf.shape(images), kernel, upstream, **settings)
    height, width = (max(size - length, 0) for size, length in zip(kernel.shape[:2], images.shape[1:3], strict=True))
    images, upstream = (tf.pad(maps, [[0, 0], [0, height], [0, width], [0, 0]]) for maps in (images, upstream))
    return [of_images, tf.nn.depthwise_conv2d_backprop_filter(images, kernel.shape, upstream, **settings)]
