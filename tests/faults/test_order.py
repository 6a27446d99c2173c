"""The data of a step depend only on the seed and the step number, wherever a run continues."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from cifar_research import augmentation, config
from cifar_research.data import batches, datasets

BATCH = 16


def hashes(data, transform, first, seed=7):
    """Return, from this step on, a digest of each batch's sample numbers and one of its augmented pixels."""
    # The images' own numbers in place of their labels.
    split = datasets.Split(data.train.images, np.arange(len(data.train.images)), data.train.indices)
    total = 2 * batches.steps_per_epoch(len(split), BATCH, False)
    stream = batches.training(split, batch_size=BATCH, seed=seed, initial_step=first, total_steps=total)
    result = []
    for step, (images, numbers) in enumerate(stream, first):
        pixels, targets = tf.cast(images, tf.float32) / 255, tf.one_hot(numbers % 10, 10)
        pixels, targets = transform(pixels, targets, tf.constant([seed, step], tf.int32))
        digests = [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in (numbers, pixels, targets)]
        result.append((digests[0], digests[1] + digests[2]))
    return result


def test_every_step_of_two_epochs_is_the_same_wherever_a_run_goes_on(tmp_path):
    overrides = ["data=synthetic", "data.train_images=200", "data.test_images=20", f"data.cache_dir={tmp_path}"]
    settings = config.parse([*overrides, "augmentation=strong"])
    transform = tf.function(augmentation.compose(settings.transforms), reduce_retracing=True)
    data = datasets.load(settings.data)
    whole = hashes(data, transform, 0)
    assert len(whole) == 2 * 12 and len({numbers for numbers, _ in whole}) == len({pixels for _, pixels in whole}) == 24
    for first in range(1, len(whole)):
        assert hashes(data, transform, first) == whole[first:], first
    assert hashes(data, transform, 0, seed=8)[0] != whole[0]


@pytest.mark.parametrize("step", [0, 5, 11])
def test_an_epoch_takes_every_image_once(step, tmp_path):
    overrides = ["data=synthetic", "data.train_images=200", "data.test_images=20", f"data.cache_dir={tmp_path}"]
    num_images = len(datasets.load(config.parse(overrides).data).train)
    epoch = [batches.indices(tf.constant(12 * step + i, tf.int64), num_images, BATCH, 12, 7).numpy() for i in range(12)]
    assert sorted(np.concatenate(epoch)) == list(range(num_images))
