"""Every preset and option composes, passes the checks and takes a step."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_pretrained import BACKBONES

from cifar_research import config
from cifar_research.data.datasets import Dataset, Split
from cifar_research.training import setup, steps

PRESETS = sorted(path.stem for path in Path(config.config_dir(), "experiment").glob("*.yaml"))
OPTIONS = [
    (path.parent.name, path.stem)
    for group in ("augmentation", "backbone", "model", "loss", "optimizer", "schedule", "training")
    for path in sorted(Path(config.config_dir(), group).glob("*.yaml"))
    if path.stem not in BACKBONES  # which take steps in test_pretrained.py
]
# From the study: all weights, and trained ones.
PARAMETERS = {
    "first_version": (620_362, 620_362),
    "dropout": (620_362, 620_362),
    "wide": (1_280_202, 1_278_218),
    "enlarged": (1_474_858, 1_472_426),
    "augmented": (1_474_858, 1_472_426),
}


def one_step(overrides):
    """Take one step of the composed config on 16 random images; return (loss, task)."""
    settings = config.parse(overrides)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    split = Split(images=images, labels=np.arange(16) % 10, indices=np.arange(16))
    classes = tuple(f"class {i}" for i in range(10))
    data = Dataset(name="random", classes=classes, train=split, val=split, test=split, fingerprint="", note=None)
    task = setup.build(settings, data)
    before = [weight.numpy() for weight in task.weights]
    totals = tf.function(lambda a, b: steps.train_step(task, a, b))(images, split.labels).numpy()
    assert totals[2] == 16 and np.isfinite(totals).all()
    assert any((weight.numpy() != value).any() for weight, value in zip(task.weights, before, strict=True))
    return totals[0] / totals[2], task


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_takes_a_step(preset):
    _, task = one_step([f"experiment={preset}", "training.batch_size=16"])
    if preset in PARAMETERS:
        trainable = sum(int(weight.shape.num_elements()) for weight in task.weights)
        assert (task.model.count_params(), trainable) == PARAMETERS[preset]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_takes_a_step(group, option, weights_for):
    if (group, option) == ("backbone", "airbench"):
        one_step(["backbone=airbench", "backbone.filters=[8]", "model=scaled"])
        return
    overrides = [f"{group}={option}", "backbone.filters=[8]", "model.hidden=[16]"][: 2 if option == "linear" else 3]
    one_step([*overrides, *([weights_for("backbone.filters=[8]")] if group == "training" else [])])


@pytest.mark.parametrize("override", ["backbone.pooling=avg", "model.pooling=avg", "model.pooling=max"])
def test_other_pooling_takes_a_step(override):
    one_step([override, "backbone.filters=[8]", "model.hidden=[16]"])


def test_preset_headers_say_how_to_run_them_and_what_to_expect():
    for preset in PRESETS:
        header = Path(config.config_dir(), "experiment", f"{preset}.yaml").read_text()
        assert f"scripts/train experiment={preset}" in header, preset
        assert "accuracy" in header, preset


@pytest.mark.parametrize(("training", "names"), [("fine_tuning", ["backbone"]), ("combined", ["head", "backbone"])])
def test_another_technique_replaces_the_phase_of_the_recipe(training, names, tmp_path):
    (tmp_path / "model.weights.h5").touch()
    settings = config.parse(["experiment=fast", f"training={training}", f"backbone.weights={tmp_path}"])
    assert [phase.name for phase in settings.phases] == names and settings.training.steps_per_call == 20
    (phase,) = config.parse(["experiment=fast"]).phases
    assert phase.trainable == {"from": "block1_conv1"}


def test_study_settings():
    settings = config.parse()
    optimizer = settings.content["optimizer"]
    assert (optimizer["_target_"], optimizer["learning_rate"]) == (
        "cifar_research.optimization.optimizers.adam",
        0.005,
    )
    assert settings.content["loss"]["_target_"] == "cifar_research.optimization.losses.mean_squared_error"
    assert (settings.training.epochs, settings.training.batch_size) == (10, 128)
    assert config.parse(["experiment=dropout"]).content["model"]["dropout"] == 0.3
    assert list(config.parse(["experiment=augmented"]).transforms) == [
        "rotation", "horizontal_flip", "vertical_flip", "shift"
    ]  # fmt: skip
