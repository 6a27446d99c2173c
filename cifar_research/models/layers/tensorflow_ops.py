"""TensorFlow and CPU features for the layers: custom gradients, oneDNN, matrix units."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from cifar_research.runtime import environment


def record_gradient(name: str, inputs: Sequence[tf.Tensor], outputs: tf.Tensor, attributes: Sequence[Any] = ()) -> None:
    """Replace the gradient between inputs and outputs by the one registered under this name.

    This is a private function of TensorFlow. With the public tf.custom_gradient each calling graph stays in memory, and
    an operation inside a function is not fused with the convolution before it.
    """
    tf.__internal__.record_gradient(name, list(inputs), list(attributes), [outputs])


@functools.cache
def has_onednn(feature: str) -> bool:
    """Return whether operations use oneDNN, on a CPU with this feature."""
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("0", "false")
    return feature in environment.cpu_features() and not is_off and not tf.config.list_physical_devices("GPU")


def has_frozen_norm_gradient() -> bool:
    """Return whether the fused normalisation has a gradient where the moving statistics are used.

    TensorFlow has no deterministic one for GPUs.
    """
    return not (environment.is_deterministic() and tf.config.list_physical_devices("GPU"))
