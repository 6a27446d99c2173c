"""Fifteen corruptions at five severities, like CIFAR-10-C (Hendrycks and Dietterich 2019).

Strengths are those of CIFAR-10-C; for defocus, motion and glass blur, frost and fog they are close. Ice, snow and fog
are drawn instead of photographed, and an elastic image is only displaced. So accuracies are close to those on the
published files, but not equal. Lengths are in pixels of a 32 x 32 image and grow with the image.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import fft, ndimage

SEVERITIES = (1, 2, 3, 4, 5)
Rng = np.random.Generator


def corrupt(images: np.ndarray, name: str, severity: int, seed: Sequence[int] = (0,)) -> np.ndarray:
    """Return corrupted images, uint8 [N, H, W, 3], of images uint8 [N, H, W, 3] with H = W.

    name: one of NAMES; severity: 1 to 5. Draws depend on seed, name and row in the batch, not on severity.
    """
    function, strengths = _CORRUPTIONS[name]
    rng = np.random.default_rng([*seed, zlib.crc32(name.encode())])
    corrupted = function(images.astype(np.float32) / 255, strengths[severity - 1], rng)
    return np.rint(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)


# Each is (images float32 [N, H, W, 3] in [0, 1], strength, rng) -> images, not yet clipped to [0, 1].


def _gaussian_noise(images: np.ndarray, deviation: float, rng: Rng) -> np.ndarray:
    return images + deviation * rng.standard_normal(images.shape, np.float32)


def _shot_noise(images: np.ndarray, photons: float, rng: Rng) -> np.ndarray:
    return (rng.poisson(images * photons) / photons).astype(np.float32)


def _impulse_noise(images: np.ndarray, share: float, rng: Rng) -> np.ndarray:
    drawn, is_white = rng.random(images.shape, np.float32), rng.random(images.shape, np.float32) < 0.5
    return np.where(drawn < share, is_white, images).astype(np.float32)


def _defocus_blur(images: np.ndarray, strength: tuple[float, float], rng: Rng) -> np.ndarray:
    radius, softness = (length * _scale(images) for length in strength)
    return _filtered(images, _disk(radius, softness)[None])


def _glass_blur(images: np.ndarray, strength: tuple[float, float, int], rng: Rng) -> np.ndarray:
    deviation, share, rounds = strength
    deviation *= _scale(images)
    sigma, reach = (0, deviation, deviation, 0), max(1, round(_scale(images)))
    blurred, shape = ndimage.gaussian_filter(images, sigma, mode="reflect"), images.shape[:3]
    for _ in range(rounds):
        moves = rng.integers(-reach, reach + 1, (2, *shape))
        moves *= rng.random(shape) < share
        blurred = blurred[np.arange(len(images))[:, None, None], *_displaced(moves)]
    return ndimage.gaussian_filter(blurred, sigma, mode="reflect")


def _motion_blur(images: np.ndarray, strength: tuple[int, float], rng: Rng) -> np.ndarray:
    angles = rng.uniform(-math.pi / 4, math.pi / 4, len(images))
    return _filtered(images, _streaks(angles, *strength, _scale(images)))


def _zoom_blur(images: np.ndarray, most: float, rng: Rng) -> np.ndarray:
    zooms = np.arange(1, most, 0.01)
    middle = (images.shape[1] - 1) / 2
    total = images.copy()
    for zoom in zooms:
        total += _resampled(images, _linear((np.arange(images.shape[1]) - middle) / zoom + middle, images.shape[1]))
    return total / (len(zooms) + 1)


def _snow(images: np.ndarray, strength: tuple[float, ...], rng: Rng) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, spread, share = strength
    num, size = images.shape[:2]
    field = rng.standard_normal((num, size, size), np.float32)
    few = math.ceil(size / zoom)
    grown = _resampled(field[:, :few, :few, None], _linear(np.linspace(0, few - 1, size), few))[..., 0]
    flakes = grown * deviation + mean
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))[..., None]
    angles = rng.uniform(-3 * math.pi / 4, -math.pi / 4, len(images))
    flakes = _filtered(flakes, _streaks(angles, int(radius), spread, _scale(images)))
    grey = images @ np.array([0.299, 0.587, 0.114], np.float32)
    pale = share * images + (1 - share) * np.maximum(images, grey[..., None] * 1.5 + 0.5)
    return pale + flakes + flakes[:, ::-1, ::-1]


def _frost(images: np.ndarray, strength: tuple[float, float], rng: Rng) -> np.ndarray:
    share, ice = strength
    # Needles are where smooth noise crosses zero; patches modulate them.
    needles = 1 - np.abs(_clouds(rng, images.shape, 1.2) * 2 - 1) * 2.5
    patches = _clouds(rng, images.shape, 1.8)
    white = np.clip(0.25 + 0.75 * patches + 0.6 * patches * needles, 0, 1)[..., None]
    return share * images + ice * white * np.array([0.92, 0.97, 1], np.float32)


def _fog(images: np.ndarray, strength: tuple[float, float], rng: Rng) -> np.ndarray:
    density, slope = strength
    brightest = images.max((1, 2, 3), keepdims=True)
    return (images + density * _clouds(rng, images.shape, slope)[..., None]) * brightest / (brightest + density)


def _brightness(images: np.ndarray, more: float, rng: Rng) -> np.ndarray:
    # The value of HSV is the largest channel; a common factor keeps hue and saturation.
    value = images.max(-1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, images * brighter / np.maximum(value, 1e-6), brighter)


def _contrast(images: np.ndarray, contrast: float, rng: Rng) -> np.ndarray:
    mean = images.mean((1, 2), keepdims=True)
    return (images - mean) * contrast + mean


def _elastic_transform(images: np.ndarray, pixels: float, rng: Rng) -> np.ndarray:
    fields = rng.standard_normal((2, *images.shape[:3]), np.float32)
    deviation = 3 * _scale(images)
    fields = ndimage.gaussian_filter(fields, (0, 0, deviation, deviation), mode="reflect")
    fields *= pixels * _scale(images) / fields.std((2, 3), keepdims=True)
    moved = [
        [ndimage.map_coordinates(channel, coordinates, order=1) for channel in np.moveaxis(image, -1, 0)]
        for image, *coordinates in zip(images, *_displaced(fields), strict=True)
    ]
    return np.moveaxis(np.array(moved), 1, -1)


def _pixelate(images: np.ndarray, share: float, rng: Rng) -> np.ndarray:
    size = images.shape[1]
    small = int(size * share)
    return _resampled(_resampled(images, _boxes(size, small)), _boxes(small, size))


def _jpeg_compression(images: np.ndarray, quality: int, rng: Rng) -> np.ndarray:
    decoded = []
    for image in np.rint(images * 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return np.array(decoded, np.float32) / 255


def _scale(images: np.ndarray) -> float:
    return images.shape[1] / 32


def _displaced(moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel rows and columns [N, H, W] moved by [2, N, H, W], within the image."""
    height, width = moves.shape[2:]
    rows, columns = np.indices((height, width))
    return np.clip(rows + moves[0], 0, height - 1), np.clip(columns + moves[1], 0, width - 1)


def _disk(radius: float, softness: float) -> np.ndarray:
    """Return a disk's kernel, float32 [k, k] with sum 1, its edge smoothed by a Gaussian."""
    reach = math.ceil(radius + 3 * softness)
    grid = np.arange(-reach, reach + 1 / 16, 1 / 8)  # eight samples a pixel
    disk = (np.hypot(*np.meshgrid(grid, grid)) <= radius).astype(np.float32)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    pixels = np.clip(np.rint(grid).astype(int) + reach, 0, 2 * reach)
    np.add.at(kernel, (pixels[:, None], pixels), ndimage.gaussian_filter(disk, 8 * softness, mode="constant"))
    return kernel / kernel.sum()


def _streaks(angles: np.ndarray, radius: int, deviation: float, scale: float) -> np.ndarray:
    """Return kernels float32 [N, k, k] with sum 1: half a Gaussian along each angle."""
    reach = math.ceil(radius * scale)
    grid = np.arange(-reach, reach + 1)
    kernels = np.zeros((len(angles), 2 * reach + 1, 2 * reach + 1), np.float32)
    for step in np.arange(0, reach + 0.25, 0.5):
        y = np.maximum(0, 1 - np.abs(grid - step * np.sin(angles)[:, None]))
        x = np.maximum(0, 1 - np.abs(grid - step * np.cos(angles)[:, None]))
        kernels += math.exp(-((step / (deviation * scale)) ** 2) / 2) * y[:, :, None] * x[:, None]
    return kernels / kernels.sum((1, 2), keepdims=True)


def _filtered(images: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, C] convolved with kernels [N or 1, k, k], padded by reflection."""
    reach, (height, width) = kernels.shape[1] // 2, images.shape[1:3]
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "symmetric")
    shape = [fft.next_fast_len(length + 2 * reach, real=True) for length in (height, width)]
    spectrum = fft.rfft2(padded, shape, axes=(1, 2)) * fft.rfft2(kernels, shape, axes=(1, 2))[..., None]
    return fft.irfft2(spectrum, shape, axes=(1, 2))[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def _clouds(rng: Rng, shape: Sequence[int], slope: float) -> np.ndarray:
    """Return noise float32 [N, H, W] in [0, 1] with amplitudes frequency^-slope."""
    num, height, width = shape[:3]
    noise = fft.rfft2(rng.standard_normal((num, height, width), np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no mean
    clouds = fft.irfft2(noise * (frequency**-slope).astype(np.float32), (height, width))
    low = clouds.min((1, 2), keepdims=True)
    return (clouds - low) / (clouds.max((1, 2), keepdims=True) - low)


def _resampled(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return images [N, H, H, C]: a matrix [H, h] applied to rows and columns of [N, h, h, C]."""
    rows = np.tensordot(images, matrix, (1, 1))  # [N, h, C, H]
    return np.ascontiguousarray(np.tensordot(rows, matrix, (1, 1)).transpose(0, 2, 3, 1))


def _linear(places: np.ndarray, size: int) -> np.ndarray:
    """Return the matrix float32 [new, size] of linear interpolation at these places."""
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)


def _boxes(old: int, new: int) -> np.ndarray:
    """Return the matrix float32 [new, old] of area averages."""
    edges = np.linspace(0, old, new + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    matrix = np.maximum(overlap, 0)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


# Mean, deviation, size and threshold of the flakes, length and spread of their streaks, share of the colours kept.
_SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)  # fmt: skip
# Function and strength at each severity, by name.
_CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, Any, Rng], np.ndarray], Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.6), (1.5, 0.6))),
    # Deviation of both blurs, share of displaced pixels, rounds of displacement.
    "glass_blur": (_glass_blur, ((0.1, 0.3, 1), (0.2, 0.5, 1), (0.25, 0.8, 1), (0.25, 1, 2), (0.25, 1, 3))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2.5), (9, 3))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (_snow, _SNOW),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.95, 0.4), (0.92, 0.46), (0.9, 0.52))),
    "fog": (_fog, ((0.2, 2), (0.5, 2), (0.75, 1.9), (1, 1.8), (1.5, 1.7))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (_elastic_transform, (0.5, 0.75, 1.0, 1.3, 1.6)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
}
NAMES = tuple(_CORRUPTIONS)
