"""Batches are a function of (seed, step); epochs are permutations; evaluation is complete."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from cifar_research.data import batches
from cifar_research.data.datasets import Split


def split(count=53):
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return Split(images=images, labels=np.arange(60) % 10, indices=np.arange(60)[:count])


def seen(dataset):
    return [(images.numpy()[:, 0, 0, 0].tolist(), labels.numpy().tolist()) for images, labels in dataset]


def training(initial_step=0, total_steps=14, seed=5, **changes):
    return seen(
        batches.training(
            split(), batch_size=8, seed=seed, initial_step=initial_step, total_steps=total_steps, **changes
        )
    )


def test_an_epoch_is_a_permutation_and_the_next_another():
    both = training()
    first, second = (sum((images for images, _ in both[i : i + 7]), []) for i in (0, 7))
    assert sorted(first) == sorted(second) == list(range(53))
    assert first != second and first != sorted(first)
    assert [len(images) for images, _ in both] == [8, 8, 8, 8, 8, 8, 5] * 2
    assert all(label == image % 10 for images, labels in both for image, label in zip(images, labels, strict=True))


def test_resumed_at_any_step_the_batches_are_the_same():
    whole = training()
    for step in range(14):
        assert training(initial_step=step) == whole[step:]


def test_another_seed_is_another_order():
    assert training(seed=6)[0] != training()[0]
    assert training() == training()


def test_the_orders_of_seeds_and_epochs_have_nothing_in_common():
    images, size = 9_000, 100
    steps = images // size

    def order(seed, epoch):
        first = tf.constant(epoch * steps, tf.int64)
        return batches.indices(first, images, size, steps, seed, count=steps).numpy()

    def together(order, other):
        """Return the share of the pairs of a batch that the other order also has in one batch."""
        batch_of = np.empty(images, int)
        batch_of[other] = np.arange(images) // size
        counts = [np.bincount(batch_of[chosen]) for chosen in order.reshape(steps, size)]
        return sum((count * (count - 1)).sum() for count in counts) / (images * (size - 1))

    orders = [order(seed, epoch) for seed in (0, 1, 2, 256) for epoch in (0, 1, 2, 256)]
    pairs = list(itertools.combinations(orders, 2))
    chance = (size - 1) / (images - 1)
    assert all(0.9 * chance < together(*pair) < 1.1 * chance for pair in pairs)
    assert max(abs(np.corrcoef(*pair)[0, 1]) for pair in pairs) < 0.05


@pytest.mark.parametrize("images", [1, 2, 1_000, 65_536, 65_537, 65_538])
def test_an_epoch_has_every_image_whatever_their_number(images):
    chosen = batches.indices(tf.constant(3, tf.int64), images, images, 1, seed=0)
    assert chosen.dtype == tf.int64 and (np.sort(chosen) == np.arange(images)).all()


def test_drop_remainder():
    dropped = training(total_steps=12, drop_remainder=True)
    assert [len(images) for images, _ in dropped] == [8] * 12
    assert len({image for images, _ in dropped[:6] for image in images}) == 48


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_share_the_batch(replicas):
    whole = training(total_steps=7)
    for pipelines in {1, replicas}:
        pieces = []
        for pipeline in range(pipelines):
            context = tf.distribute.InputContext(pipelines, pipeline, replicas)
            pieces.append(training(total_steps=7, context=context))
        for step in range(7):
            per_pipeline = replicas // pipelines
            parts = [piece[step * per_pipeline + r] for piece in pieces for r in range(per_pipeline)]
            assert sum((images for images, _ in parts), []) == whole[step][0]


@pytest.mark.parametrize("batch_size", [1, 7, 53, 100])
def test_evaluation_sees_every_image_once_in_order(batch_size):
    images = sum((images for images, _ in seen(batches.evaluation(split(), batch_size=batch_size))), [])
    assert images == list(range(53))


def test_steps_per_epoch():
    assert batches.steps_per_epoch(53, 8, False) == 7
    assert batches.steps_per_epoch(53, 8, True) == 6
    assert batches.steps_per_epoch(48, 8, False) == batches.steps_per_epoch(48, 8, True) == 6


def test_the_smallest_batch():
    assert [batches.smallest(count, 10, False) for count in (7, 20, 21)] == [7, 10, 1]
    assert batches.smallest(21, 10, True) == 10 and batches.smallest(3, 1, False) == 1


def test_batches_copied_to_a_device_ahead_of_time_are_the_same():
    assert training(device="/CPU:0") == training()  # runs without a GPU
    assert seen(batches.evaluation(split(), batch_size=7, device="/CPU:0")) == seen(
        batches.evaluation(split(), batch_size=7)
    )


def test_images_of_a_cache_are_read_where_they_are(tmp_path):
    np.save(tmp_path / "images.npy", split().images)
    images = np.load(tmp_path / "images.npy", mmap_mode="c")  # as the cache maps them
    whole = batches.evaluation(Split(images, np.arange(60), np.arange(60)), batch_size=60)
    images[7] = 200  # visible only in the same memory
    [(read, _)] = whole
    np.testing.assert_array_equal(read[7], np.full((4, 4, 3), 200))


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("initial_step", [0, 5])
def test_rows_of_many_steps_are_those_of_the_batches(initial_step, drop_remainder):
    settings = {"initial_step": initial_step, "drop_remainder": drop_remainder, "total_steps": 12}
    pieces = list(batches.training_rows(split(), batch_size=8, seed=5, steps_per_call=4, **settings))
    rows = [step.tolist() for of_steps, count in pieces for step in of_steps.numpy()[:count]]
    assert rows == [images for images, _ in training(**settings)]  # pixels identify rows
    per_epoch = batches.steps_per_epoch(53, 8, drop_remainder)
    ends = np.cumsum([count for _, count in pieces]) + initial_step
    assert set(range(per_epoch, 13, per_epoch)) <= set(ends)  # no call continues into the next epoch
    # XLA compiles a program for each shape: one for full batches, and one for an epoch's smaller last one.
    assert {of_steps.shape.as_list()[0] for of_steps, _ in pieces} == {4} | (set() if drop_remainder else {1})
    assert len({tuple(of_steps.shape) for of_steps, _ in pieces}) == (1 if drop_remainder else 2)


@pytest.mark.parametrize(("steps_per_call", "calls"), [(3, 4), (1_000, 2)])
def test_calls_of_equal_length_have_no_count_which_xla_then_knows_beforehand(steps_per_call, calls):
    settings = {"initial_step": 0, "drop_remainder": True, "total_steps": 12}
    pieces = list(batches.training_rows(split(), batch_size=8, seed=5, steps_per_call=steps_per_call, **settings))
    assert [tuple(of_steps.shape) for (of_steps,) in pieces] == [(12 // calls, 8)] * calls


def test_rows_drawn_with_chances_are_those_of_the_batches():
    drawn = dataclasses.replace(split(), chances=np.arange(1, 54) / np.arange(1, 54).sum())
    settings = {"batch_size": 8, "seed": 5, "initial_step": 0, "total_steps": 14}
    pieces = batches.training_rows(drawn, steps_per_call=7, **settings)
    rows = [step.tolist() for (of_steps,) in pieces for step in of_steps.numpy()]
    assert rows == [images for images, _ in seen(batches.training(drawn, **settings))]


def test_rows_of_views_are_an_epoch_each():
    both = Split(split().images, np.arange(60) % 10, np.arange(26), views=2)  # the second one's rows begin at 30
    settings = {"batch_size": 8, "seed": 5, "initial_step": 2, "total_steps": 12}
    pieces = batches.training_rows(both, steps_per_call=3, **settings)
    rows = [step.tolist() for of_steps, count in pieces for step in of_steps.numpy()[:count]]
    assert rows == [images for images, _ in seen(batches.training(both, **settings))]
    assert min(rows[4]) >= 30 > max(rows[0])


def test_rows_read_on_a_device_are_the_batches():
    read = batches.reader_on_device(split(), "/CPU:0")
    (rows,) = next(
        iter(batches.training_rows(split(), batch_size=8, seed=5, initial_step=0, total_steps=7, steps_per_call=2))
    )
    assert seen(map(read, rows)) == training(total_steps=2)
