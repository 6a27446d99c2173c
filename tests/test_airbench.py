"""The airbench network: whitening, Dirac kernels, parameters, image sizes."""

import numpy as np
import pytest
import tensorflow as tf

from cifar_research import config
from cifar_research.data.datasets import Dataset, Split
from cifar_research.models import summary
from cifar_research.models.backbones import airbench, cnn
from cifar_research.models.layers import convolution
from cifar_research.training import setup


def smooth_images(count):
    """Return images with correlated pixels and channels, as in photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, 18, 18, 1)) + 0.3 * rng.normal(size=(count, 18, 18, 3))
    return sum(np.roll(noise, (i, j), (1, 2)) for i in range(3) for j in range(3))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whitened_patches_are_uncorrelated_and_of_one_variance(size):
    images = smooth_images(50)
    kernel = airbench.whitening(images, size, 1e-9)
    half = size * size * 3
    assert kernel.shape == (size, size, 3, 2 * half) and kernel.dtype == np.float32
    outputs = tf.nn.conv2d(images, kernel.astype(np.float64), 1, "VALID").numpy().reshape(-1, 2 * half)
    np.testing.assert_allclose(outputs[:, :half], -outputs[:, half:], atol=1e-6)
    covariance = outputs[:, :half].T @ outputs[:, :half] / len(outputs)
    np.testing.assert_allclose(covariance, np.eye(half), atol=1e-3)


def test_whitening_begins_with_the_strongest_component_and_epsilon_tames_the_weakest():
    images = smooth_images(50)
    norms = [np.linalg.norm(airbench.whitening(images, 2, e)[..., :12].reshape(12, 12), axis=0) for e in (1e-9, 1.0)]
    assert (np.diff(norms[0]) > 0).all() and norms[1].max() < 1 < norms[0].max()


def test_weights_of_a_file(tmp_path):
    overrides = ["experiment=fast", "backbone.filters=[8,8]"]

    def network(**settings):
        return config.parse([*overrides, *(f"backbone.{key}={value}" for key, value in settings.items())]).backbone

    first = network().build((32, 32, 3))
    first.save_weights(tmp_path / "a.weights.h5")
    backbone = network(weights=tmp_path / "a.weights.h5")
    second = backbone.build((32, 32, 3))
    backbone.load_weights(second, None)
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 6, 4), (2, 2, 3, 3), (1, 1, 2, 5)])
def test_dirac_passes_channels_on(shape):
    kernel = cnn.initializer("dirac")(shape)
    images = tf.random.stateless_normal([2, 5, 5, shape[2]], [1, 2])
    passed = min(shape[2:])
    outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    np.testing.assert_allclose(outputs[..., :passed], images[..., :passed], atol=1e-6)
    assert (kernel.numpy()[..., passed:] != 0).all()


def test_run_begins_with_the_whitening_of_its_own_images_and_leaves_it_alone():
    settings = config.parse(["experiment=fast", "backbone.filters=[8,8]", "training.precision=float32"])
    images = np.clip(smooth_images(64) * 12 + 128, 0, 255).astype(np.uint8)
    split = Split(images=images, labels=np.arange(64) % 10, indices=np.arange(64))
    data = Dataset("smooth", tuple("abcdefghij"), split, split, split, "", None)
    task = setup.build(settings, data)
    setup.load_weights(task, settings.backbone, data)
    mean, deviation = split.channel_statistics()
    expected = airbench.whitening((images / np.float32(255) - mean) / deviation, 2, 0.0005)
    backbone = task.model.layers[1]
    np.testing.assert_allclose(backbone.get_layer("whitening").get_weights()[0], expected, rtol=1e-3, atol=1e-3)
    assert not [
        path
        for path in setup.trained_paths(task.model, settings.phases[0], settings.backbone.upper_blocks)
        if "whitening" in path
    ]


def test_reference_size():
    model = config.parse(["backbone=airbench"]).backbone.build((32, 32, 3))
    assert model.output_shape[-1] == 256
    # Nine times the products of channels, the whitening layer of 24 with its bias, and for each of the 1,152 normalised
    # channels a bias and two moving statistics.
    assert model.count_params() == 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 13 * 24 + 3 * 1_152
    with pytest.raises(ValueError, match="filters"):
        airbench.airbench(filters=[])


def test_three_convolutions_add_the_output_of_the_first():
    backbone = airbench.airbench(filters=[4], convolutions=3, activation="relu")
    network = backbone.build((32, 32, 3))
    for name in ("block1_conv2", "block1_conv3"):
        network.get_layer(name).kernel.assign(tf.zeros((3, 3, 4, 4)))
    first = tf.keras.Model(network.input, network.get_layer("block1_conv1_relu").output)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    assert first(images).numpy().any()
    np.testing.assert_array_equal(network(images), first(images))


def test_flops_count_the_convolutions_whose_gradients_are_our_own(monkeypatch):
    monkeypatch.setattr(convolution, "_is_narrow", lambda *_: True)
    network = airbench.airbench(filters=[4, 8]).build((32, 32, 3))
    sizes = [network.get_layer(f"block{block}_conv{n}").kernel.shape for block in (1, 2) for n in (1, 2)]
    maps = [31, 15, 15, 7]
    convolutions = sum(2 * np.prod(kernel) * size**2 for kernel, size in zip(sizes, maps, strict=True))
    assert convolutions < sum(layer.flops for layer in summary.layers(network)) < 1.5 * convolutions
