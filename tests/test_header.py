"""The header of a run, its phase titles and its units of speed."""

from pathlib import Path
from unittest import mock

import pytest

from cifar_research import config
from cifar_research.config import phases as config_phases
from cifar_research.data import datasets
from cifar_research.display import header
from cifar_research.runtime import environment
from cifar_research.training import setup


def rows(*overrides):
    settings = config.parse(["data=synthetic", "data.train_images=40", "data.test_images=20", *overrides])
    data = datasets.load(settings.data)
    task = setup.build(settings, data)
    return header.rows(
        settings, task.model.count_params(), data, environment.prepare(settings.training, 0), Path("run"), 1
    )


def test_the_header_says_size_classes_and_weights_in_twelve_rows():
    shown = rows()
    assert shown["Images"] == "32 x 32 pixels, 10 classes: circle, square, triangle, cross, ring and 5 more"
    assert shown["Model"].startswith("cnn (weights: random) + ") and len(shown) <= 12
    assert rows("data.classes=[ring,cross]")["Images"].endswith("2 classes: ring, cross")


@pytest.mark.parametrize(
    ("overrides", "titles", "units"),
    [
        ([], [""], ["images/s"]),
        (["training=combined", "training.epochs=2"], ["Phase head, 1 of 2: 2 epochs", "Phase backbone, 2 of 2: 2 epochs"],
         ["features/s", "images/s"]),
        # With augmentation, the features are computed every time.
        (["training=feature_extraction", "augmentation=flip"], [""], ["images/s"]),
        (["training=feature_extraction"], [""], ["features/s"]),
    ],
)  # fmt: skip
def test_phases_and_the_units_of_their_speed(overrides, titles, units):
    with mock.patch.object(config_phases, "random_backbone_problems", return_value=[]):
        settings = config.parse(overrides)
    phases = [header.phase(settings, number) for number in range(len(titles))]
    assert [(title, unit) for _, title, unit in phases] == list(zip(titles, units, strict=True))
