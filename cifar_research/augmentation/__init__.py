"""Augmentation: batch transforms (images, targets, seed) -> (images, targets).

images: float32 [B, H, W, C] in [0, 1]; H, W and C are known when traced. targets: float32 [B, K], rows sum to 1.
seed: int32 [2]. An image's draws depend on the seed and on its position in the batch alone.
conf/augmentation names the factories (`horizontal_flip`, `mixup`, …), which do not import TensorFlow.
To add a transform, write one more factory, in any module, and one YAML file that names it.

    python -m cifar_research.preview augmentation=slides data=synthetic --out slides.png
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from cifar_research.augmentation import colour, draws, geometry, mixing
from cifar_research.config.contracts import Transform
from cifar_research.config.targets import check_range
from cifar_research.runtime.control_flow import converted
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.lazy import tf

BatchTransform = Callable[["tf.Tensor", "tf.Tensor", "tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]
Padding = Literal["edge", "reflect", "zeros"]
ProjectionPadding = Literal["edge", "zeros"]
Interpolation = Literal["nearest", "bilinear"]


def compose(transforms: Mapping[str, Transform | BatchTransform]) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Return one transform that applies these in order, each with its own seed.

    Its fourth argument, epoch_seed: int32 [2], is the run's seed and the epoch. Transforms that depend on the epoch get
    it instead of `seed`, unless it is None.
    """
    names, ordered = list(transforms), [Transform.of(transform) for transform in transforms.values()]
    applied = [converted(transform.apply) for transform in ordered]

    def composed(
        images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor, epoch_seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        for i, transform in enumerate(ordered):
            if transform.by_epoch:
                own_seed = seed if epoch_seed is None else epoch_seed
            else:
                own_seed = tf.random.experimental.stateless_fold_in(seed, i)
            changed = applied[i](images, targets, own_seed)
            if not isinstance(changed, (tuple, list)) or len(changed) != 2:
                raise ConfigError(
                    f"augmentation.{names[i]}: returned a {type(changed).__name__}; return images and targets"
                )
            images, targets = changed
        return images, targets

    return composed


def grid(before: np.ndarray, after: np.ndarray, *, columns: int = 8) -> np.ndarray:
    """Return a picture, uint8 [H', W', 3]: rows of images, each above its augmented version.

    before, after: float [N, H, W, 3] in [0, 1], N at least 1.
    """
    columns = min(columns, len(before))
    missing = -len(before) % columns
    tiles = np.pad(np.stack([before, after]), [(0, 0), (0, missing), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
    _, _, height, width, channels = tiles.shape
    tiles = tiles.reshape(2, -1, columns, height, width, channels).transpose(1, 0, 3, 2, 4, 5)
    pairs = tiles.reshape(-1, 2 * height, columns * width, channels)
    pairs = np.pad(pairs, [(0, 0), (0, 4), (0, 0), (0, 0)], constant_values=1.0)
    return np.rint(np.clip(pairs.reshape(-1, columns * width, channels), 0, 1) * 255).astype(np.uint8)


def horizontal_flip(*, probability: float = 0.5) -> BatchTransform:
    """Mirror left and right, each image with this probability.

    probability: The share of images that is mirrored.
    """
    return _flip(2, probability)


def vertical_flip(*, probability: float = 0.5) -> BatchTransform:
    """Mirror top and bottom, each image with this probability.

    probability: The share of images that is mirrored.
    """
    return _flip(1, probability)


def _flip(axis: int, probability: float) -> BatchTransform:
    check_range("[]", 0, 1, probability=probability)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return geometry.flip(images, draws.uniform(images, seed) < probability, axis=axis), targets

    return transform


def alternating_flip() -> Transform:
    """Mirror a random half of the images in one epoch, the other half in the next.

    The halves depend on the run's seed and on an image's pixels: place it before transforms that change them.
    Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """

    def apply(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weights = tf.random.stateless_uniform(images.shape[1:], [seed[0], 0], 1, 2**16, tf.int32)
        chosen = geometry.is_in_first_half(images, weights) != (seed[1] % 2 == 1)
        return geometry.flip(images, chosen, axis=2), targets

    return Transform(apply, by_epoch=True)


def shift(*, pixels: int | None = None, fraction: float | None = None, padding: Padding = "edge") -> BatchTransform:
    """Move each image by whole pixels, uniform in [-limit, limit], along each axis.

    pixels: The limit in pixels; null if `fraction` gives it.
    fraction: The limit as a share of the height or width, rounded to pixels; null if `pixels` gives it.
    padding: What fills the uncovered border: the edge's pixels, a mirror image, or zeros.

    ValueError unless exactly one of `pixels` and `fraction` is given.
    """
    if (pixels is None) == (fraction is None):
        raise ValueError(f"pixels: give either pixels or fraction, and null for the other, not {pixels} and {fraction}")
    check_range("[]", 0, pixels=pixels)
    check_range("[]", 0, 1, fraction=fraction)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        limits = [round((fraction or 0) * size) if pixels is None else pixels for size in images.shape[1:3]]
        steps = draws.positions(images, seed, [2 * limit + 1 for limit in limits])
        offsets = steps - [float(limit) for limit in limits]
        return geometry.translate(images, offsets, padding=padding), targets

    return transform


def crop(*, padding_pixels: int = 4, padding: Padding = "zeros") -> BatchTransform:
    """Pad each side, then crop to the original size at a random position (He et al. 2016).

    padding_pixels: How many pixels each side is padded by.
    padding: What the padding holds: the edge's pixels, a mirror image, or zeros.
    """
    check_range("[]", 0, padding_pixels=padding_pixels)
    # Equal to a shift by at most the padding.
    return shift(pixels=padding_pixels, padding=padding)


def rotation(
    *, degrees: float = 15.0, interpolation: Interpolation = "bilinear", padding: ProjectionPadding = "edge"
) -> BatchTransform:
    """Rotate each image about its centre by an angle uniform in [-degrees, degrees].

    degrees: The largest angle, either way.
    interpolation: How pixel values between pixels are computed.
    padding: What fills the uncovered corners: the edge's pixels, or zeros.
    """
    check_range("[]", 0, 180, degrees=degrees)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        angles = draws.uniform(images, seed, low=-math.radians(degrees), high=math.radians(degrees))
        return geometry.rotate(images, angles, interpolation=interpolation, padding=padding), targets

    return transform


def zoom(
    *,
    low: float = 0.9,
    high: float = 1.1,
    interpolation: Interpolation = "bilinear",
    padding: ProjectionPadding = "edge",
) -> BatchTransform:
    """Scale each image about its centre by a factor uniform in [low, high]; below 1 it shrinks.

    low: The smallest factor.
    high: The largest factor.
    interpolation: How pixel values between pixels are computed.
    padding: What fills the uncovered border: the edge's pixels, or zeros.
    """
    check_range("(]", 0, high=high)
    check_range("(]", 0, high, low=low)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        factors = draws.uniform(images, seed, low=low, high=high)
        return geometry.magnify(images, factors, interpolation=interpolation, padding=padding), targets

    return transform


def brightness(*, amount: float = 0.2) -> BatchTransform:
    """Multiply each image by a factor uniform in [1 - amount, 1 + amount].

    amount: The largest relative change.
    """
    return _jitter("brightness", amount)


def contrast(*, amount: float = 0.2) -> BatchTransform:
    """Scale contrast about the mean grey by a factor uniform in [1 - amount, 1 + amount].

    amount: The largest relative change.
    """
    return _jitter("contrast", amount)


def saturation(*, amount: float = 0.2) -> BatchTransform:
    """Scale each pixel's saturation by a factor uniform in [1 - amount, 1 + amount].

    amount: The largest relative change.
    """
    return _jitter("saturation", amount)


def _jitter(name: str, amount: float) -> BatchTransform:
    check_range("[]", 0, 1, amount=amount)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        factors = draws.uniform(images, seed, low=1 - amount, high=1 + amount)
        return getattr(colour, f"adjust_{name}")(images, factors), targets

    return transform


def cutout(*, size: int = 8) -> BatchTransform:
    """Set a square of size x size pixels to grey, at a random centre (DeVries and Taylor 2017).

    size: The square's side in pixels.
    """
    check_range("[]", 1, size=size)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        centres = draws.positions(images, seed, images.shape[1:3].as_list())
        return mixing.erase(images, centres - size // 2, size=size), targets

    return transform


def mixup(*, alpha: float = 0.2) -> BatchTransform:
    """Blend the batch with itself permuted, by a Beta(alpha, alpha) weight (Zhang et al. 2018).

    alpha: Both parameters of the beta distribution; larger blends more evenly.
    """
    check_range("(]", 0, alpha=alpha)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weight_seed, order_seed = tf.unstack(tf.random.split(seed, 2))
        weight, order = draws.beta(alpha, weight_seed), draws.order(images, order_seed)
        return mixing.blend(images, targets, weight=weight, order=order)

    return transform


def cutmix(*, alpha: float = 1.0) -> BatchTransform:
    """Replace a box of each image by the same box of another image of the batch.

    One box a batch: its centre is uniform, its share of the area from Beta(alpha, alpha) before it is cropped to the
    image. The targets are blended by area (Yun et al. 2019).

    alpha: Both parameters of the beta distribution; 1 draws every share equally often.
    """
    check_range("(]", 0, alpha=alpha)

    def transform(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        share_seed, centre_seed, order_seed = tf.unstack(tf.random.split(seed, 3))
        sizes = tf.constant(images.shape[1:3].as_list(), tf.float32)
        extents = sizes * tf.sqrt(draws.beta(alpha, share_seed))
        starts = tf.random.stateless_uniform([2], centre_seed) * sizes - extents / 2
        box = tf.round(tf.concat([starts, starts + extents], axis=0))
        return mixing.paste(images, targets, box=box, order=draws.order(images, order_seed))

    return transform
