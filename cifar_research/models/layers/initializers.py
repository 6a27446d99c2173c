"""Initial kernels of convolutions.

Dirac belongs to the recipe `experiment=fast` (Jordan 2024); docs/performance.md has its results, measured by
`scripts/time_to_accuracy <folder>`. Its own gain was not measured. Off: `backbone.initialization=glorot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("cifar_research")  # so that models with it can be cloned
class Dirac(keras.initializers.GlorotUniform):
    """Identities as the first min(C, K) filters (Zagoruyko and Komodakis 2017), then Glorot's."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        height, width, channels, filters = shape
        passed = min(channels, filters)
        identity = tf.eye(channels, passed, dtype=dtype or tf.float32)[tf.newaxis, tf.newaxis]
        around = [[(height - 1) // 2, height // 2], [(width - 1) // 2, width // 2], [0, 0], [0, 0]]
        return tf.concat([tf.pad(identity, around), super().__call__(shape, dtype)[..., passed:]], axis=-1)
