"""Batch normalisation's statistics: moving averages, the same corrected for their start, measured means."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from interrupted import KEEPS_BOTH, interrupted

from cifar_research import config
from cifar_research.data import datasets
from cifar_research.models import layers
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import norms, setup, warnings
from cifar_research.training.run import run
from cifar_research.training.scoring import averaged_weights

SMALL = [
    "data=synthetic", "data.train_images=300", "data.test_images=60", "experiment=wide", "backbone.filters=[4,4]",
    "model.hidden=[8]", "training.batch_size=32", "training.epochs=2", "tensorboard.enabled=false",
]  # fmt: skip


def moved(momentum, batches, steps=None, **options):
    """Return the moving mean and variance after these batches, float32 [N, C] each."""
    layer = layers.BatchNormalization(momentum=momentum)
    layer.build((None, batches[0].shape[1]))
    for name, value in options.items():
        setattr(layer, name, value)
    for step, batch in enumerate(batches):
        with layers.debiased(None if steps is None else tf.constant(float(step))):
            layer(tf.constant(batch), training=True)
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99, 0.999])
def test_debiased_statistics_are_weighted_means_of_the_batches_alone(momentum):
    batches = np.random.default_rng(0).normal(3, 2, [4, 16, 5]).astype(np.float32)
    mean, variance = moved(momentum, batches, steps=True)
    weights = (1 - momentum) * momentum ** np.arange(3, -1, -1.0) / (1 - momentum**4)
    np.testing.assert_allclose(mean, weights @ batches.mean(1), rtol=1e-4)
    np.testing.assert_allclose(variance, weights @ batches.var(1), rtol=1e-4)


def test_pretrained_statistics_have_no_start_to_correct():
    batches = np.random.default_rng(0).normal(3, 2, [3, 16, 5]).astype(np.float32)
    plain, pretrained = moved(0.9, batches), moved(0.9, batches, steps=True, is_pretrained=True)
    np.testing.assert_array_equal(plain, pretrained)
    assert not np.allclose(plain, moved(0.9, batches, steps=True))


def prepared(*overrides):
    settings = config.parse([*SMALL, *overrides])
    data = datasets.load(settings.data)
    state = setup.build(settings, data)
    return settings, data, state


def test_precise_statistics_are_of_images_as_training_draws_them():
    tail = ["data.imbalance=exponential", "data.imbalance_factor=20"]
    for sampling, is_equal in (("uniform", False), ("balanced", True)):
        data = datasets.load(config.parse([*SMALL, "data.train_images=2000", *tail, f"data.sampling={sampling}"]).data)
        rows = norms.measured(data.train, 400)
        counts = np.bincount(data.train.labels[data.train.indices[rows]], minlength=10)
        assert bool(counts.min() > counts.max() / 3) is is_equal and len(rows) == 400


@pytest.mark.parametrize("overrides", [(), ("training.ema_decay=0.5",)])
def test_precise_statistics_are_means_over_training_images_without_dropout(overrides):
    settings, data, state = prepared("batch_norm.statistics=precise", "batch_norm.images=96", *overrides)
    strategy = tf.distribute.get_strategy()
    norm = norms.of_model(state.model)[0]
    before = norm.moving_mean.numpy()
    measure = norms.measurement(settings, state, data.train, state.forward, strategy)
    measure()
    rows = data.train.indices[np.random.default_rng(0).permutation(len(data.train))[:96]]
    inputs, _ = state.preprocessing.prepare(data.train.images[rows], data.train.labels[rows])
    with averaged_weights(state):
        backbone = state.model.layers[1]
        first = backbone.layers.index(norm)
        maps = inputs  # the first normalisation takes the first convolution's maps
        for layer in backbone.layers[:first]:
            maps = layer(maps)
        batches = np.split(maps.numpy(), 3)
        np.testing.assert_allclose(
            norm.moving_mean.numpy(), np.mean([b.mean((0, 1, 2)) for b in batches], 0), rtol=1e-4
        )
        np.testing.assert_allclose(
            norm.moving_variance.numpy(), np.mean([b.var((0, 1, 2)) for b in batches], 0), rtol=1e-4
        )
        measured = [weight.numpy() for weight in state.model.weights]
    assert np.array_equal(norm.moving_mean.numpy(), before) is bool(
        overrides
    )  # averages keep the trained weights as they are
    measure()
    with averaged_weights(state):
        np.testing.assert_allclose(measured[-1], state.model.weights[-1].numpy())


@pytest.mark.parametrize(
    ("statistics", "epochs", "is_warned"), [("moving", 2, True), ("moving", 40, False), ("precise", 2, False)]
)
def test_moving_statistics_in_a_short_run_are_warned_of(statistics, epochs, is_warned):
    settings, _, state = prepared(f"batch_norm.statistics={statistics}")
    lines = warnings.of_run(settings, state.model, 9 * epochs)
    assert bool(lines) is is_warned
    if is_warned:
        assert "averages will still be 83 % their first values" in lines[0]


def test_frozen_statistics_are_not_measured():
    settings, data, state = prepared("batch_norm.statistics=precise")
    layers_of_backbone = norms.of_model(state.model.layers[1])
    for layer in layers_of_backbone:
        layer.trainable = False
    before = [layer.moving_mean.numpy() for layer in layers_of_backbone]
    norms.measurement(settings, state, data.train, state.forward, tf.distribute.get_strategy())()
    np.testing.assert_array_equal(before, [layer.moving_mean.numpy() for layer in layers_of_backbone])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that trains a run with these statistics, once; it returns the folder and the report."""

    @functools.cache
    def trained(statistics):
        folder = tmp_path_factory.mktemp("norms") / statistics
        return folder, run(config.parse([*SMALL, KEEPS_BOTH, f"batch_norm.statistics={statistics}"]), folder)

    return trained


@pytest.mark.parametrize("statistics", ["moving", "debiased", "precise"])
def test_training_is_the_same_and_a_continued_run_too(tmp_path, trained, statistics):
    folder, whole = trained(statistics)
    part = interrupted(folder, tmp_path / "part")
    continued = run(config.parse([*SMALL, KEEPS_BOTH, f"batch_norm.statistics={statistics}"]), part)
    assert continued["weights_sha256"] == whole["weights_sha256"]
    assert continued["val"] == whole["val"]
    plain_folder, plain = trained("moving")
    assert whole["train"]["loss"] in [float(v) for v in history(plain_folder, "loss")]
    assert (whole["val"]["loss"] == plain["val"]["loss"]) is (statistics == "moving")


def history(folder, column):
    rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    return [row[rows[0].index(column)] for row in rows[1:]]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_norm.statistics=mean", "batch_norm.statistics: 'mean' is not one of moving, debiased, precise"),
        ("batch_norm.images=0", "batch_norm.images: 0 is out of range"),
        ("+batch_norm.momentum=0.9", "batch_norm.momentum"),
    ],
)
def test_wrong_settings_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        config.parse([word])
