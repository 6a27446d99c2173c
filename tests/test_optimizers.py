"""Optimizers equal Keras's, and every option of the group keeps their common promises."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_research import config
from cifar_research.optimization import optimizers

OPTIONS = sorted(path.stem for path in Path(config.config_dir(), "optimizer").glob("*.yaml"))
PEERS = {
    "adam": (optimizers.adam(learning_rate=0.01), lambda: keras.optimizers.Adam(0.01)),
    "adamw": (
        optimizers.adamw(learning_rate=0.01, weight_decay=0.1),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    ),
    "sgd": (optimizers.sgd(learning_rate=0.01), lambda: keras.optimizers.SGD(0.01)),
    "momentum": (optimizers.sgd(learning_rate=0.01, momentum=0.9), lambda: keras.optimizers.SGD(0.01, momentum=0.9)),
    "nesterov": (
        optimizers.sgd(learning_rate=0.01, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    ),
    "sgd_decay": (
        optimizers.sgd(learning_rate=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "rmsprop": (optimizers.rmsprop(learning_rate=0.01), lambda: keras.optimizers.RMSprop(0.01)),
    "lion": (
        optimizers.lion(learning_rate=0.01, weight_decay=0.1),
        lambda: keras.optimizers.Lion(0.01, weight_decay=0.1),
    ),
    "clipped": (
        optimizers.sgd(learning_rate=0.01, clip_norm=0.5),
        lambda: keras.optimizers.SGD(0.01, global_clipnorm=0.5),
    ),
}


def updates(optimizer, weights, gradients):
    slots = optimizer.init(weights)
    for step, gradient in enumerate(gradients, 1):
        rates, steps = ([tf.constant(float(value))] * len(weights) for value in (optimizer.learning_rate, step))
        optimizer.apply(weights, slots, gradient, rates, steps)
    return [weight.numpy() for weight in weights]


def gradients(count):
    rng = np.random.default_rng(1)
    return [[tf.constant(rng.normal(size=shape).astype("float32")) for shape in ((4, 3), (3,))] for _ in range(count)]


def weights():
    rng = np.random.default_rng(0)
    return [tf.Variable(rng.normal(size=(4, 3)).astype("float32")), tf.Variable(np.ones(3, "float32"))]


@pytest.mark.parametrize("name", PEERS)
def test_equals_keras(name):
    ours, make_theirs = PEERS[name]
    theirs, variables = make_theirs(), [keras.Variable(value.numpy()) for value in weights()]
    if ours.weight_decay:
        theirs.build(variables)
        theirs.exclude_from_weight_decay(var_list=[variables[1]])
    for gradient in gradients(20):
        theirs.apply(gradient, variables)
    for got, expected in zip(updates(ours, weights(), gradients(20)), variables, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_optimizer_descends_and_is_reproducible(option):
    optimizer = config.parse([f"optimizer={option}"]).optimizer

    def descend():
        weight = tf.Variable([[2.0, -3.0]])
        slots = optimizer.init([weight])

        @tf.function
        def step(number):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(weight**2)
            rate = tf.constant(optimizer.learning_rate)
            optimizer.apply([weight], slots, tape.gradient(loss, [weight]), [rate], [number])
            return loss

        return [step(tf.constant(float(number))).numpy() for number in range(1, 41)]

    first, second = descend(), descend()
    assert first == second
    assert first[-1] < first[0]


def test_weight_decay_spares_vectors():
    optimizer = optimizers.adamw(learning_rate=0.1, weight_decay=0.5)
    matrix, vector = tf.Variable([[1.0]]), tf.Variable([1.0])
    updates(optimizer, [matrix, vector], [[tf.zeros([1, 1]), tf.zeros([1])]])
    assert matrix.numpy() == pytest.approx(0.95) and vector.numpy() == 1


def test_bias_scale_multiplies_the_rate_of_vectors_alone():
    ordinary, scaled = (optimizers.sgd(learning_rate=0.01, bias_scale=scale) for scale in (1.0, 64.0))
    before = [weight.numpy() for weight in weights()]
    moved = [
        [a - b for a, b in zip(updates(o, weights(), gradients(1)), before, strict=True)] for o in (ordinary, scaled)
    ]
    np.testing.assert_array_equal(moved[0][0], moved[1][0])
    np.testing.assert_allclose(moved[0][1] * 64, moved[1][1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalized_keeps_directions_and_evens_out_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    got = optimizers.orthogonalized(tf.constant(matrix[None]), 8).numpy()[0]
    assert np.linalg.svd(got, compute_uv=False) == pytest.approx(1, abs=0.35)
    cosine = (got * (left @ right)).sum() / np.linalg.norm(got) / np.linalg.norm(left @ right)
    assert cosine > 0.97


def test_muon_turns_kernels_by_its_rate_and_leaves_the_rest_to_sgd():
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 8, 16), (20, 10), (10,)]
    values, given = ([rng.normal(size=shape).astype("float32") for shape in shapes] for _ in range(2))
    muon = optimizers.muon(learning_rate=0.1, momentum=0.6, iterations=8, other_scale=0.5, bias_scale=3.0)
    got = updates(muon, [tf.Variable(value) for value in values], [[tf.constant(value) for value in given]])
    sgd = optimizers.sgd(learning_rate=0.05, momentum=0.6, nesterov=True, bias_scale=3.0)
    rest = updates(sgd, [tf.Variable(value) for value in values[1:]], [[tf.constant(value) for value in given[1:]]])
    for one, other in zip(got[1:], rest, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    normed = values[0] * 4 / np.linalg.norm(values[0])
    singular = np.linalg.svd((normed - got[0]).reshape(-1, 16), compute_uv=False)
    assert singular == pytest.approx(0.1, abs=0.035)


def test_muon_computes_kernels_of_one_shape_together_on_a_gpu_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 8, 16), (2, 2, 3, 8), (20, 10), (3, 3, 8, 16)]
    values = [rng.normal(size=shape).astype("float32") for shape in shapes]
    given = [[tf.constant(rng.normal(size=shape).astype("float32")) for shape in shapes] for _ in range(3)]
    muon, counts, alone = optimizers.muon(learning_rate=0.1), [], optimizers.orthogonalized

    def counted(matrices, iterations):
        counts.append(matrices.shape[0])
        return alone(matrices, iterations)

    monkeypatch.setattr(optimizers, "orthogonalized", counted)
    separate = updates(muon, [tf.Variable(value) for value in values], given)
    assert counts == [1, 1, 1] * 3
    counts.clear()
    monkeypatch.setattr(optimizers, "_on_gpu", lambda: True)
    together = updates(muon, [tf.Variable(value) for value in values], given)
    assert counts == [2, 1] * 3
    for one, other in zip(separate, together, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)  # bfloat16 on a GPU
