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
    loss = losses.mean_squared_error().function
    setup._check_loss(loss, "a_loss", 10)
    with pytest.raises(ConfigError, match=f"loss: .* returns the shape {shape} for .* must return"):
        setup._check_loss(lambda logits, targets: reduced(loss(logits, targets)), "a_loss", 10)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_categorical_crossentropy_equals_keras(smoothing):
    expected = keras.losses.categorical_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)
    got = losses.categorical_crossentropy(label_smoothing=smoothing).function(logits, targets)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_mean_squared_error_equals_keras_on_softmax():
    expected = keras.losses.mean_squared_error(targets, tf.nn.softmax(logits))
    np.testing.assert_allclose(losses.mean_squared_error().function(logits, targets), expected, rtol=1e-6)


def test_mean_squared_error_by_hand():
    two = tf.constant([[0.0, 0.0]])
    assert losses.mean_squared_error().function(two, tf.constant([[1.0, 0.0]])).numpy() == pytest.approx([0.25])
    smoothed = losses.mean_squared_error(label_smoothing=0.2).function(two, tf.constant([[1.0, 0.0]]))
    assert smoothed.numpy() == pytest.approx([0.16])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_loss_is_one_number_an_image_and_lower_when_right(option):
    loss = config.parse([f"loss={option}"]).loss.function
    values = loss(logits, targets)
    assert values.shape == (7,) and values.dtype == tf.float32
    assert (values.numpy() > loss(10 * targets, targets).numpy()).all()
    alone = tf.concat([loss(logits[i : i + 1], targets[i : i + 1]) for i in range(7)], 0)
    np.testing.assert_allclose(values, alone, rtol=1e-6)


COUNTS = np.array([500, 300, 180, 108, 65, 39, 23, 14, 8, 5])


def trained(loss, counts=COUNTS):
    return loss.of_counts(counts)(logits, targets).numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("option", ["categorical_crossentropy", "mean_squared_error", "focal"])
def test_an_image_mixed_from_two_has_each_part_weighted_by_its_class(option, smoothing):
    settings = {"class_weights": [1.0, 2.0, 5.0]} | ({} if option == "focal" else {"label_smoothing": smoothing})
    loss = getattr(losses, option)(**settings).of_counts(np.array([9, 5, 2]))
    logits = tf.constant([[0.0, 2.0, -1.0]])

    def value_and_gradient(targets):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits, tf.constant([targets]))
        return np.append(value.numpy(), tape.gradient(value, logits).numpy())

    parts = 0.3 * value_and_gradient([1.0, 0.0, 0.0]) + 0.7 * value_and_gradient([0.0, 0.0, 1.0])
    assert value_and_gradient([0.3, 0.0, 0.7]) == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
def test_the_gradient_of_focal_loss_is_finite_for_a_certain_image(gamma):
    logits, targets = tf.constant([[20.0, 0.0, 0.0], [0.5, 0.0, -1.0]]), tf.constant([[1.0, 0.0, 0.0]] * 2)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = losses.focal(gamma=gamma).function(logits, targets)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(gradient).all() and abs(gradient[0]).max() < 1e-3 < abs(gradient[1]).max()


@pytest.mark.parametrize("option", ["categorical_crossentropy", "mean_squared_error", "focal"])
def test_class_weights_are_of_the_images_own_classes(option):
    plain = config.parse([f"loss={option}"]).loss
    assert plain.of_counts is None
    weights, classes = np.arange(1.0, 11), tf.argmax(targets, -1).numpy()
    given = config.parse([f"loss={option}", f"loss.class_weights={weights.tolist()}"]).loss
    np.testing.assert_allclose(trained(given), weights[classes] * plain.function(logits, targets).numpy(), rtol=1e-6)
    np.testing.assert_allclose(given.function(logits, targets), plain.function(logits, targets))


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(10), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    np.testing.assert_allclose(losses._weights("balanced", COUNTS), expected)


def test_effective_number_weights_by_hand():
    weights = losses._weights("effective_number", np.array([1, 2]))
    assert weights[0] / weights[1] == pytest.approx((1 - 0.9999**2) / (1 - 0.9999))
    assert weights.mean() == pytest.approx(1)


def test_logit_adjustment_adds_the_log_of_the_share():
    adjusted = trained(losses.logit_adjusted(tau=0.5))
    shifted = logits + 0.5 * np.log(COUNTS / COUNTS.sum()).astype("float32")
    np.testing.assert_allclose(adjusted, losses.categorical_crossentropy().function(shifted, targets), rtol=1e-5)
    weighted = np.exp(logits) * COUNTS
    shares = (weighted / weighted.sum(1, keepdims=True))[np.arange(7), tf.argmax(targets, -1)]
    np.testing.assert_allclose(trained(losses.balanced_softmax()), -np.log(shares), rtol=1e-4)


def test_losses_for_noise_by_hand():
    two, target = tf.constant([[np.log(3.0), 0.0]], tf.float32), tf.constant([[1.0, 0.0]])  # probabilities 0.75, 0.25
    assert losses.generalized_cross_entropy(q=1.0).function(two, target).numpy() == pytest.approx([0.25])
    assert losses.generalized_cross_entropy(q=0.5).function(two, target).numpy() == pytest.approx([2 * (1 - 0.75**0.5)])
    nearly = losses.generalized_cross_entropy(q=1e-3).function(two, target).numpy()
    assert nearly == pytest.approx([-np.log(0.75)], rel=1e-3)
    assert losses.symmetric_cross_entropy(alpha=0.0).function(two, target).numpy() == pytest.approx([4 * 0.25])
    both = losses.symmetric_cross_entropy(alpha=2.0, beta=0.5).function(two, target).numpy()
    assert both == pytest.approx([-2 * np.log(0.75) + 0.5])
    assert losses.focal(gamma=2.0).function(two, target).numpy() == pytest.approx([-np.log(0.75) / 16])


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_finite_for_a_sure_network(option):
    loss = config.parse([f"loss={option}"]).loss.function
    sure = tf.Variable([[200.0] + [0.0] * 9, [0.0] * 9 + [200.0]])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss(sure, tf.one_hot([0, 0], 10)))
    assert np.isfinite(tape.gradient(value, sure)).all()


@pytest.mark.parametrize(
    ("overrides", "counts", "message"),
    [
        (["loss.class_weights=[1,2]"], COUNTS, r"loss.class_weights: has 2 weights, and the data has 10 classes"),
        (
            ["loss.class_weights=balanced"],
            COUNTS * (COUNTS > 5),
            "loss.class_weights: needs training images of every class",
        ),
        (["loss=balanced_softmax"], COUNTS * (COUNTS > 5), "loss: needs training images of every class"),
    ],
)
def test_counts_that_a_loss_cannot_use_are_refused(overrides, counts, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(["loss=categorical_crossentropy", *overrides][-2:]).loss.of_counts(counts)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.class_weights=[1,-2]", "loss.class_weights: -2 is out of range"),
        (
            "loss.class_weights=weighted",
            "loss.class_weights: 'weighted' is not one of none, balanced, effective_number",
        ),
    ],
)
def test_wrong_class_weights_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        config.parse([word])
