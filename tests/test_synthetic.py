"""The synthetic data set is reproducible and as hard as it should be."""

import numpy as np
import pytest

from cifar_research import config
from cifar_research.data import synthetic
from cifar_research.display import console
from cifar_research.training.run import run as train_run


def test_drawn_from_the_seed_alone_and_splits_differ():
    images, labels = synthetic.draw(50, 3, 0)
    assert images.shape == (50, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [5] * 10
    np.testing.assert_array_equal(images, synthetic.draw(50, 3, 0)[0])
    assert (images != synthetic.draw(50, 4, 0)[0]).any() and (images != synthetic.draw(50, 3, 1)[0]).any()


@pytest.mark.slow
def test_the_studys_cnn_learns_it_and_a_linear_classifier_does_not(tmp_path):
    def accuracy(*overrides):
        settings = config.parse(["experiment=quickstart", *FEWER, *overrides])
        return train_run(settings, tmp_path / str(len(overrides)), console.Display(quiet=True))["test"]["accuracy"]

    assert accuracy() > 0.9
    # The linear model is the output layer on the pixels: no convolution before it.
    assert (
        accuracy(
            "model=linear",
            "model.pooling=flatten",
            "allow_targets=[tests]",
            "backbone._target_=tests.test_synthetic.pixels",
            *[f"~backbone.{k}" for k in KEYS],
        )
        < 0.6
    )


# A third of the images in smaller batches, for about as many steps.
FEWER = [
    "data.train_images=3000", "data.test_images=500", "training.batch_size=32", "training.epochs=4",
    "tensorboard.enabled=false",
]  # fmt: skip
KEYS = list(key for key in config.parse().content["backbone"] if key != "_target_")


def pixels():
    """A backbone without layers."""

    def build(shape):
        import keras

        images = keras.Input(shape)
        return keras.Model(images, keras.layers.Identity()(images))

    return build
