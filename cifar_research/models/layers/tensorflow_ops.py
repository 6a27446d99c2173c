"""What the layers need of TensorFlow and the processor: gradients of our own, and oneDNN's units."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf


def record_gradient(name: str, inputs: Sequence[tf.Tensor], outputs: tf.Tensor, attributes: Sequence[Any] = ()) -> None:
    """Replace the gradient of the operations from inputs to outputs by the one that is registered by this name.

    By a private function of TensorFlow: each graph that calls the public tf.custom_gradient stays in memory for good, and
    an operation within a function is not fused with the convolution before it.
    """
    tf.__internal__.record_gradient(name, list(inputs), list(attributes), [outputs])


@functools.cache
def has_onednn(feature: str) -> bool:
    """Return whether the operations are oneDNN's, on a processor that has the feature."""
    try:
        has_feature = feature in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("0", "false")
    return has_feature and not is_off and not tf.config.list_physical_devices("GPU")


def has_matrix_units() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in units of its own (Intel AMX)."""
    return has_onednn("amx_bf16")
