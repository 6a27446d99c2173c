"""Test-time augmentation: views and their weights."""

import numpy as np
import tensorflow as tf

from cifar_research.augmentation import tta

IMAGES = np.random.default_rng(0).random((3, 5, 6, 2), dtype=np.float32)


def network(images, training):
    """A network that is linear and different for each pixel, so the logits identify the averaged images."""
    weights = np.random.default_rng(1).random((5 * 6 * 2, 4), dtype=np.float32)
    return tf.reshape(images, [-1, 60]) @ weights + (100.0 if training else 0.0)


def moved(images, rows, columns):
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    return padded[:, 1 - rows : 6 - rows, 1 - columns : 7 - columns]


def test_none_is_the_network():
    assert tta.averaged(network, "none") is network


def test_flip_averages_an_image_and_its_mirror_image():
    got = tta.averaged(network, "flip")(IMAGES, False)
    np.testing.assert_allclose(got, network((IMAGES + IMAGES[:, :, ::-1]) / 2, False), rtol=1e-5)


def test_flip_shift_averages_six():
    half = [image[:, :, ::s] for image in (IMAGES,) for s in (1, -1)]
    quarter = [image[:, :, ::s] for image in (moved(IMAGES, -1, -1), moved(IMAGES, 1, 1)) for s in (1, -1)]
    got = tta.averaged(network, "flip_shift")(IMAGES, False)
    np.testing.assert_allclose(got, network(sum(half) / 4 + sum(quarter) / 8, False), rtol=1e-5)


def test_training_sees_one_view():
    got = tta.averaged(network, "flip_shift")(IMAGES, True)
    np.testing.assert_array_equal(got, network(IMAGES, True))
