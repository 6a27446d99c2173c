"""Initial kernels of convolutions.

Dirac is part of the recipe `experiment=fast` (Jordan 2024), whose results are in docs/performance.md, measured by
`scripts/time_to_accuracy <folder>`; what it gains alone was not measured. Off: `backbone.initialization=glorot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("cifar_research")  # so that a model that has it can be cloned
class Dirac(keras.initializers.GlorotUniform):
    """Kernels [h, w, C, K] whose first min(C, K) filters pass their channel on as it is (Zagoruyko and Komodakis 2017).

    The rest are Glorot's.
    """

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        height, width, channels, filters = shape
        passed = min(channels, filters)
        identity = tf.eye(channels, passed, dtype=dtype or tf.float32)[tf.newaxis, tf.newaxis]
        around = [[(height - 1) // 2, height // 2], [(width - 1) // 2, width // 2], [0, 0], [0, 0]]
        return tf.concat([tf.pad(identity, around), super().__call__(shape, dtype)[..., passed:]], axis=-1)
