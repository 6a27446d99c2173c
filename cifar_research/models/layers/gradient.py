"""Gradients of our own, recorded for operations that were traced as usual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def record_gradient(name: str, inputs: Sequence[tf.Tensor], outputs: tf.Tensor, attributes: Sequence[Any] = ()) -> None:
    """Let the gradient that is registered by this name replace that of the operations from inputs to outputs.

    By a private function of TensorFlow: it holds each graph that calls tf.custom_gradient for good, and an operation
    within a function is not fused with the convolution before it.
    """
    tf.__internal__.record_gradient(name, list(inputs), list(attributes), [outputs])
