"""Losses equal Keras's, and every option of the group keeps their common promises."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_research import config
from cifar_research.optimization import losses
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import setup

OPTIONS = sorted(path.stem for path in Path(config.config_dir(), "loss").glob("*.yaml"))
rng = np.random.default_rng(0)
logits = tf.constant(rng.normal(size=(7, 10)).astype("float32"))
targets = tf.one_hot(rng.integers(0, 10, 7), 10)


@pytest.mark.parametrize(
    ("reduced", "shape"), [(tf.reduce_mean, r"\[\]"), (lambda losses: losses[:, None], r"\[2, 1\]")]
)
def test_a_loss_that_is_not_one_an_image_is_refused(reduced, shape):
    loss = losses.mean_squared_error()
    setup._check_loss(loss, "a_loss", 10)
    with pytest.raises(ConfigError, match=f"loss: .* returns the shape {shape} for .* must return"):
        setup._check_loss(lambda logits, targets: reduced(loss(logits, targets)), "a_loss", 10)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_categorical_crossentropy_equals_keras(smoothing):
    expected = keras.losses.categorical_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)
    got = losses.categorical_crossentropy(label_smoothing=smoothing)(logits, targets)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_mean_squared_error_equals_keras_on_softmax():
    expected = keras.losses.mean_squared_error(targets, tf.nn.softmax(logits))
    np.testing.assert_allclose(losses.mean_squared_error()(logits, targets), expected, rtol=1e-6)


def test_mean_squared_error_by_hand():
    two = tf.constant([[0.0, 0.0]])
    assert losses.mean_squared_error()(two, tf.constant([[1.0, 0.0]])).numpy() == pytest.approx([0.25])
    smoothed = losses.mean_squared_error(label_smoothing=0.2)(two, tf.constant([[1.0, 0.0]]))
    assert smoothed.numpy() == pytest.approx([0.16])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_loss_is_one_number_an_image_and_lower_when_right(option):
    loss = config.parse([f"loss={option}"]).loss
    values = loss(logits, targets)
    assert values.shape == (7,) and values.dtype == tf.float32
    assert (values.numpy() > loss(10 * targets, targets).numpy()).all()
    alone = tf.concat([loss(logits[i : i + 1], targets[i : i + 1]) for i in range(7)], 0)
    np.testing.assert_allclose(values, alone, rtol=1e-6)
