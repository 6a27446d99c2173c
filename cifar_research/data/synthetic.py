"""Ten classes of coloured shapes and textures, drawn by numpy from a seed."""

from __future__ import annotations

import numpy as np

CLASSES = (
    "circle", "square", "triangle", "cross", "ring",
    "horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard", "dots",
)  # fmt: skip
SIZE = 32
VERSION = 1  # increase it when the drawing changes, to rebuild caches


def draw(num_images: int, seed: int, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 32, 32, 3] and labels int64 [N], the classes in turn.

    Position, size, angle, phase and both colours are random, so a linear classifier fails. split: separates the random
    numbers of training and test images.
    """
    labels = np.arange(num_images) % len(CLASSES)
    images = np.empty((num_images, SIZE, SIZE, 3), np.uint8)
    rng = np.random.default_rng([seed, split])
    for begin in range(0, num_images, 1000):  # in chunks, to bound the memory of float arrays
        chunk = labels[begin : begin + 1000]
        images[begin : begin + 1000] = _draw(chunk, rng)
    return images, labels


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (len(labels), 1, 1)).astype(np.float32)

    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    angle, radius = uniform(-0.35, 0.35), uniform(7, 12)
    down, right = rows - uniform(11, 20), columns - uniform(11, 20)
    v, u = np.cos(angle) * down - np.sin(angle) * right, np.sin(angle) * down + np.cos(angle) * right
    distance, wave = np.hypot(u, v), 2 * np.pi / uniform(5, 9)
    # Signed distances from the edge in pixels, below 0 inside; for textures, waves of a similar slope.
    shapes = (
        distance - radius,
        np.maximum(abs(u), abs(v)) - 0.85 * radius,
        np.maximum(v, np.maximum(-0.866 * u, 0.866 * u) - 0.5 * v) - 0.6 * radius,
        np.minimum(
            np.maximum(abs(u) - radius, abs(v) - 0.3 * radius), np.maximum(abs(v) - radius, abs(u) - 0.3 * radius)
        ),
        abs(distance - 0.8 * radius) - 0.22 * radius,
        2 * np.sin(wave * v),
        2 * np.sin(wave * u),
        2 * np.sin(wave * (u + v) * 0.707),
        3 * np.sin(wave * u) * np.sin(wave * v),
        2 * (0.7 - np.cos(wave * u) - np.cos(wave * v)),
    )
    edge = np.choose(labels[:, None, None], shapes)
    inside = np.clip(0.5 - edge, 0, 1)[..., None]
    background = rng.uniform(0, 1, (len(labels), 1, 1, 3)).astype(np.float32)
    # Visible against the background.
    foreground = (background + rng.uniform(0.3, 0.7, background.shape).astype(np.float32)) % 1
    noise = rng.normal(0, 0.06, (len(labels), SIZE, SIZE, 3)).astype(np.float32)
    pixels = background * (1 - inside) + foreground * inside + noise
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
