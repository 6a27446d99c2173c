"""Corruptions: drawn from a seed alone, stronger with severity, as their names say."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cifar_research.data import synthetic
from cifar_research.evaluation import corruptions
from cifar_research.evaluation.corruptions import NAMES, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def images():
    """Drawn shapes, blurred so that they have soft edges and textures like photographs."""
    drawn, _ = synthetic.draw(64, 0, split=0)
    return ndimage.gaussian_filter(drawn, (0, 0.7, 0.7, 0))


def distance(first, second):
    return float(((first.astype(float) - second) ** 2).mean())


def test_the_families_are_those_of_the_paper():
    assert len(NAMES) == 15 and SEVERITIES == (1, 2, 3, 4, 5)
    assert {"gaussian_noise", "glass_blur", "snow", "fog", "elastic_transform", "jpeg_compression"} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_function_of_the_seed_and_stronger_with_severity(name, images):
    before = images.copy()
    result = [corrupt(images, name, severity, [3, 1]) for severity in SEVERITIES]
    assert (images == before).all()
    for one in result:
        assert one.dtype == np.uint8 and one.shape == images.shape
    distances = [distance(one, images) for one in result]
    assert distances[0] > 0 and all(a < b for a, b in zip(distances, distances[1:], strict=False)), distances
    assert (corrupt(images, name, 3, [3, 1]) == result[2]).all()
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
             "elastic_transform"}  # fmt: skip
    assert (corrupt(images, name, 3, [3, 2]) != result[2]).any() == (name in drawn)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [8, 64])
def test_other_sizes(name, size):
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    for severity in SEVERITIES:
        assert corrupt(images, name, severity).shape == images.shape


def test_noise_has_its_strength():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 3).std() / 255 == pytest.approx(0.08, rel=0.02)
    # The variance of a share of photons, p / n.
    assert corrupt(grey, "shot_noise", 5).std() / 255 == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.02)
    spots = corrupt(grey, "impulse_noise", 5)
    assert (spots != 128).mean() == pytest.approx(0.07, rel=0.05) and set(np.unique(spots)) == {0, 128, 255}
    assert (spots == 255).sum() / (spots != 128).sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform",
                                  "pixelate", "contrast"])  # fmt: skip
def test_what_only_moves_colours_leaves_an_image_of_one_colour(name):
    plain = np.full((2, 32, 32, 3), (10, 128, 250), np.uint8)
    assert distance(corrupt(plain, name, 5), plain) <= 1


def test_blurs_against_scipy(images):
    kernel = corruptions._disk(1.5, 0.6)
    expected = ndimage.convolve(images[0].astype(np.float32), kernel[..., None], mode="reflect")
    assert np.abs(corrupt(images[:1], "defocus_blur", 5)[0] - expected).max() <= 1
    assert kernel.sum() == pytest.approx(1)
    assert kernel == pytest.approx(kernel.T, abs=1e-6) and kernel == pytest.approx(kernel[::-1], abs=1e-6)
    # One kernel for each image: shift all light by a pixel.
    shift = np.zeros((2, 3, 3), np.float32)
    shift[0, 1, 2], shift[1, 1, 1] = 1, 1
    moved = corruptions._filtered(images[:2].astype(np.float32), shift)
    assert moved[0, :, 1:] == pytest.approx(images[0, :, :-1], abs=0.01) and moved[1] == pytest.approx(
        images[1], abs=0.01
    )


def test_brightness_is_that_of_hsv(images):
    import colorsys

    result = corrupt(images, "brightness", 2)
    for path in ((0, 3, 5), (1, 16, 16), (2, 30, 1)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[path] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.1))
        assert result[path] / 255 == pytest.approx(expected, abs=0.003)
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert (corrupt(black, "brightness", 5) == round(0.3 * 255)).all()


def test_pixelate_and_jpeg_against_pillow(images):
    small = Image.fromarray(images[0]).resize((16, 16), Image.Resampling.BOX)
    assert distance(corruptions._resampled(images[:1].astype(np.float32), corruptions._boxes(32, 16))[0], small) < 1
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "JPEG", quality=40)
    assert (corrupt(images, "jpeg_compression", 5)[0] == np.asarray(Image.open(file))).all()


def test_contrast_keeps_the_mean_and_zoom_blur_the_middle(images):
    result = corrupt(images, "contrast", 4).astype(float)
    assert result.mean((1, 2)) == pytest.approx(images.mean((1, 2)), abs=0.5)
    assert result.std((1, 2)) == pytest.approx(0.3 * images.std((1, 2)), abs=0.5)
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16] = 255
    blurred = corrupt(dot, "zoom_blur", 5)[0, :, :, 0]
    assert blurred.argmax() == 16 * 33 + 16 and blurred.sum() >= 255 and (blurred == blurred[::-1, ::-1]).all()
