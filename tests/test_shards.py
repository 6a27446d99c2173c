"""A batch computed in parts equals the whole batch: losses, weights and masks."""

import os

import forked
import numpy as np
import pytest
import tensorflow as tf
from test_steps import images_and_labels, losses_of, make_task, some_batches

from cifar_research import config
from cifar_research.data.datasets import Dataset, Split
from cifar_research.models import layers
from cifar_research.optimization import optimizers
from cifar_research.runtime import environment
from cifar_research.training import shards, steps


def data(train=1280, test=0):
    splits = [Split(np.zeros([count, 1]), np.zeros(count), np.arange(count)) for count in (train, 0, test)]
    return Dataset("zeros", ("a", "b"), *splits, "", None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("experiment=first_version", 2),
        ("experiment=first_version training.batch_size=256", 2),
        ("experiment=first_version training.batch_size=257", 4),
        ("experiment=first_version training.batch_size=512", 4),
        ("experiment=first_version training.batch_size=1024", 8),
        ("experiment=first_version training.batch_size=1025", 1),
        ("experiment=first_version training.threads=1", 1),
        ("experiment=first_version training.threads=4", 4),
        ("experiment=first_version training.threads=5", 1),
        ("experiment=first_version training.strategy=mirrored", 1),
        ("experiment=first_version training.jit_compile=true", 1),
        ("experiment=dropout", 2),
        ("experiment=first_version model.batch_norm=true", 1),
        ("experiment=first_version backbone.batch_norm=true", 1),
        ("experiment=wide", 1),
        ("experiment=fast", 1),
        ("backbone=vgg16 backbone.weights=none", 1),
        ("experiment=first_version training.batch_size=1", 1),
        ("experiment=first_version training.batch_size=2", 2),
        ("experiment=first_version training.eval_batch_size=1", 1),
        ("training=feature_extraction backbone=vgg16 backbone.image_size=32", 1),
    ],
)
def test_how_many_parts(overrides, expected):
    assert shards.count(config.parse(["training.threads=2", *overrides.split()]), data()) == expected


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("0", None), ("auto", None), ("", None), ("-1", None)])
def test_threads_of_the_environment_count_if_they_are_a_number(monkeypatch, given, expected):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    everything = environment.usable_cores()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", given)
    assert environment.usable_cores() == (expected or everything)


def test_a_loss_of_the_users_own_sees_the_whole_batch():
    settings = config.parse(["experiment=first_version", "training.threads=2"])
    settings.content["loss"]["_target_"] = "my_lab.loss_of_the_hardest"
    assert shards.count(settings, data()) == 1


@pytest.mark.parametrize(("train", "test", "expected"), [(1281, 0, 1), (1282, 0, 2), (1280, 501, 1), (1280, 502, 2)])
def test_no_part_is_ever_empty(train, test, expected):
    overrides = ["experiment=first_version", "training.threads=2", "training.eval_batch_size=500"]
    assert shards.count(config.parse(overrides), data(train, test)) == expected
    assert shards.count(config.parse([*overrides, "data.drop_remainder=true"]), data(train, 0)) == 2


def test_usable_cores_are_those_a_launcher_leaves(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    settings = config.parse(["experiment=first_version"])
    assert shards.count(settings, data()) == 2
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    assert shards.count(settings, data()) == 1


@pytest.mark.parametrize("parts", [2, 3])
def test_training_and_evaluation_are_those_of_the_whole_batch(parts):
    batches = [*some_batches(6), images_and_labels(5), images_and_labels(3)]
    results = []
    for number in (1, parts):
        task = make_task(dropout=0.3, batch_shards=number, optimizer=optimizers.sgd(learning_rate=0.003, momentum=0.9))
        losses = losses_of(task, batches)
        scored = [steps.eval_step(task, *images_and_labels(count), task.forward) for count in (32, 7, 3)]
        results.append((losses, [weight.numpy() for weight in task.model.weights], scored))
    (losses, weights, scored), (expected, of_whole, scored_whole) = results[1], results[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for weight, wanted in zip(weights, of_whole, strict=True):
        np.testing.assert_allclose(weight, wanted, rtol=1e-4, atol=1e-6)
    for (some, *classes), (wanted, *wanted_classes) in zip(scored, scored_whole, strict=True):
        np.testing.assert_allclose(some, wanted, rtol=1e-5)
        np.testing.assert_array_equal(classes, wanted_classes)


@pytest.mark.parametrize("shape", [(7, 5), (64, 33), (9, 4, 5, 3)])
@pytest.mark.parametrize("drops_maps", [False, True])
def test_masks_of_parts_are_those_of_the_whole_batch(shape, drops_maps):
    noise_shape = (None, *[1] * (len(shape) - 2), None) if drops_maps else None
    layer = layers.Dropout(0.4, noise_shape=noise_shape, name="some_dropout")

    @tf.function
    def masks(number):
        with layers.called_with(seed=tf.constant([1, 2])):
            result = []
            for first_row, (part,) in shards.cut(number, tf.ones(shape)):
                with layers.called_with(first_row=first_row):
                    result.append(layer(part, training=True))
            return tf.concat(result, 0)

    for number in (2, 3, 4):
        np.testing.assert_array_equal(masks(number), masks(1))


def test_operations_have_one_thread_where_batches_have_parts():
    program = """
import sys
from cifar_research import config
from cifar_research.runtime import environment
import tensorflow as tf
print(environment.prepare(config.parse(["training.threads=1"]).training, 0).device)
training = config.parse(["training.threads=2"]).training
for parts in (2, 1):
    env = environment.prepare(training, 0, parts)
    threads = tf.config.threading
    print(env.batch_shards, env.device, threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads())
    tf.zeros([2]) + 1  # from here on threads cannot be changed
environment.raises_if_stale = True
try:
    environment.prepare(training, 0, 1)
except environment.StaleProcess:
    print("stale")
"""
    done = forked.run([], code=program)
    lines = ["CPU, 1 thread", "2 CPU, 2 threads 1 2", "1 CPU, 2 threads 1 2", "stale"]
    assert done.stdout.splitlines() == lines, done.stdout + done.stderr


def test_determinism_is_read_by_a_private_function_that_exists():
    assert environment.is_deterministic() in (True, False)
