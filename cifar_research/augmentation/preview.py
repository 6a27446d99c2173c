"""The augmentation as a picture: for the eye, on the command line and in TensorBoard."""

from __future__ import annotations

import math

import numpy as np


def grid(before: np.ndarray, after: np.ndarray, *, columns: int = 8) -> np.ndarray:
    """Lay images out as one picture, uint8 [H', W', 3]: rows of images, and below each row what became of it.

    before, after: float [N, H, W, 3] in [0, 1], N at least 1.
    """
    columns = min(columns, len(before))
    num_rows = math.ceil(len(before) / columns)
    missing = num_rows * columns - len(before)
    cells = np.pad(np.stack([before, after]), [(0, 0), (0, missing), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
    _, _, height, width, channels = cells.shape
    cells = cells.reshape(2, num_rows, columns, height, width, channels).transpose(1, 0, 3, 2, 4, 5)
    pairs = cells.reshape(num_rows, 2 * height, columns * width, channels)
    pairs = np.pad(pairs, [(0, 0), (0, 4), (0, 0), (0, 0)], constant_values=1.0)
    return np.rint(np.clip(pairs.reshape(-1, columns * width, channels), 0, 1) * 255).astype(np.uint8)
