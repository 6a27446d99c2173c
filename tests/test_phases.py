"""Phases: the weights each trains, at which learning rate; others stay equal to the bit."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from small_networks import small_mobilenet  # noqa: F401

from cifar_research import config
from cifar_research.config import phases
from cifar_research.data.datasets import Dataset, Split
from cifar_research.models import classifier
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import loop, setup, steps
from cifar_research.training.saver import Saver
from cifar_research.training.state import Progress

BASE = ["backbone.filters=[4,8]", "backbone.batch_norm=true", "model.hidden=[8]", "loss=categorical_crossentropy"]
MOBILENET = ["experiment=transfer", "backbone.image_size=32", "backbone.options.alpha=0.35"]
SGD = ["optimizer=sgd", "optimizer.learning_rate=0.1"]


def random_data(count=16, size=32):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    split = Split(images, np.arange(count) % 10, np.arange(count))
    classes = tuple(f"class {i}" for i in range(10))
    return Dataset(name="random", classes=classes, train=split, val=split, test=split, fingerprint="random", note=None)


def any_backbone():
    """Allow a frozen backbone with random weights."""
    return mock.patch.object(phases, "random_backbone_problems", return_value=[])


def entered(*overrides, phase=0, base=BASE):
    """Return a state in one of its phases, and the data of that phase."""
    with any_backbone():
        settings = config.parse([*base, *overrides])
    data = random_data()
    task = setup.build(settings, data)
    setup.load_weights(task, settings.backbone, data)
    progress = Progress(phase=phase, phase_steps=[0] * (phase + 1), phase_epochs=[0] * (phase + 1))
    seen, _ = setup.enter(settings, task, data, progress)
    return task, seen


def step(task, seen, count=1):
    call = tf.function(lambda images, labels: steps.train_step(task, images, labels))
    for _ in range(count):
        totals = call(seen.train.images[:16], seen.train.labels[:16]).numpy()
    assert np.isfinite(totals).all() and totals[2] == 16


def values(task):
    return {weight.path.removeprefix("cnn/"): weight.value.numpy() for weight in task.model.weights}


def changed(task, seen, count=1):
    """Return the paths of the weights that a step changes, moving statistics among them."""
    before = values(task)
    step(task, seen, count)
    return {path for path, value in values(task).items() if (value != before[path]).any()}


def layers_of(paths):
    return {path.partition("/")[0] for path in paths}


def test_ordinary_training_is_one_phase_of_all_weights():
    (phase,) = config.parse().phases
    assert (phase.name, phase.epochs, phase.learning_rate, phase.trainable) == ("scratch", 10, 0.005, "all")
    assert config.parse(["training.epochs=3"]).total_epochs == 3


def test_phases_take_epochs_and_rates_of_their_own():
    overrides = [
        "training=combined",
        "training.epochs=4",
        "training.phases.head.epochs=2",
        "optimizer.learning_rate=0.01",
    ]
    with any_backbone():
        settings = config.parse(overrides)
    result = [(p.name, p.epochs, p.learning_rate, p.trainable) for p in settings.phases]
    assert result == [("head", 2, 0.01, "none"), ("backbone", 4, 0.0001, "upper")]
    assert settings.total_epochs == 6


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("none", set()),
        ("all", {"block1_conv1", "block1_conv1_norm", "block2_conv1", "block2_conv1_norm"}),
        ("upper", {"block2_conv1", "block2_conv1_norm"}),
        ("{last:1}", {"block2_conv1_norm"}),
        ("{from:block1_pool}", {"block2_conv1", "block2_conv1_norm"}),
        ("block?_conv1", {"block1_conv1", "block2_conv1"}),
    ],
)
def test_what_is_trained(trainable, expected):
    task, seen = entered("training=fine_tuning", f"training.phases.backbone.trainable={trainable}", "augmentation=flip")
    moved = layers_of(changed(task, seen, 2))
    assert {layer for layer in moved if layer.startswith("block")} == expected
    assert {"head_dense1", "logits"} <= moved
    frozen = dataclasses.replace(config.parse().phases[0], trainable="none")
    head = setup.trained_paths(task.model, frozen, None)
    assert task.count(head) < task.count([weight.path for weight in task.model.weights])


def test_moving_statistics_of_what_is_frozen_stay_to_the_bit():
    task, seen = entered("training=feature_extraction", "augmentation=flip")
    assert not [path for path in changed(task, seen, 3) if path.startswith("block")]
    task, seen = entered("training=combined", phase=1)
    moved = changed(task, seen, 3)
    assert not [path for path in moved if path.startswith("block1")]
    assert "block2_conv1_norm/moving_mean" in moved


def test_a_schedule_starts_over_in_each_phase():
    overrides = ["schedule=one_cycle", "schedule.peak_at=0", "training=combined", "training.phases.head.epochs=1"]
    overrides += [
        "training.phases.backbone.epochs=3",
        "training.phases.backbone.learning_rate=0.1",
        "training.batch_size=4",
    ]
    overrides += ["optimizer.learning_rate=0.2"]
    with any_backbone():
        settings = config.parse([*BASE, *overrides])
    data = random_data()
    task = setup.build(settings, data)
    setup.enter(settings, task, data, Progress(phase=1, phase_steps=[0, 4], phase_epochs=[0, 1]))
    rates = [float(task.learning_rate(tf.constant(step))) for step in (4.0, 16.0)]
    assert rates == pytest.approx([0.1, 0.0])


@pytest.mark.usefixtures("small_mobilenet")
@pytest.mark.parametrize(("mode", "moves"), [("inference", False), ("train", True)])
def test_batch_norm_of_a_pretrained_backbone(tmp_path, mode, moves):
    weights = save_mobilenet(tmp_path)
    overrides = [f"backbone.weights={weights}", f"backbone.batch_norm={mode}", "training=scratch"]
    task, seen = entered(*overrides, base=MOBILENET)
    moved = [path for path in changed(task, seen, 2) if path.endswith(("moving_mean", "moving_variance"))]
    assert bool(moved) is moves
    assert "Conv_1_bn/gamma" in {weight.path for weight in task.model.weights}


def save_mobilenet(folder):
    import keras

    path = folder / "mobilenet.weights.h5"
    settings = {"include_top": False, "weights": None, "input_shape": (32, 32, 3), "alpha": 0.35}
    keras.applications.mobilenet_v2.MobileNetV2(**settings).save_weights(path)
    return path


LITE = ["experiment=transfer", "backbone=efficientnet_lite0", "backbone.image_size=32", "training=scratch"]


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("{last:3}", {"block7a_project_bn", "top_conv", "top_bn"}),
        ("{from:top_conv}", {"top_conv", "top_bn"}),
        ("block?a_dwconv", {f"block{number}a_dwconv" for number in range(1, 8)}),
    ],
)
def test_part_of_a_pretrained_backbone_is_trained_at_rates_that_fall_with_depth(trainable, expected):
    overrides = [
        f"training.phases.scratch.{word}" for word in (f"trainable={trainable}", "learning_rate_decay_by_depth=0.5")
    ]
    task, _ = entered("backbone.weights=none", *overrides, base=LITE)
    scales = {weight.name.split("/")[0]: scale for weight, scale in zip(task.weights, task.scales, strict=True)}
    names = [layer.name for layer in classifier.leaves(classifier.parts(task.model)[0]) if layer.name in expected]
    assert scales == {"logits": 1.0} | {name: 0.5**depth for depth, name in enumerate(reversed(names), 1)}
    assert len(names) == len(expected)


def test_rates_fall_with_depth():
    overrides = ["training=scratch", "training.phases.scratch.learning_rate_decay_by_depth=0.5", *SGD]
    whole, seen = entered("training=scratch", *SGD)
    before = values(whole)
    fallen, _ = entered(*overrides)
    for weight in fallen.model.weights:
        weight.assign(before[weight.path.removeprefix("cnn/")])
    step(whole, seen)
    step(fallen, seen)
    depth = {"block2_conv1_norm": 1, "block2_conv1": 2, "block1_conv1_norm": 3, "block1_conv1": 4, "logits": 0}
    for layer, n in depth.items():
        name = f"{layer}/{'gamma' if layer.endswith('norm') else 'kernel'}"
        moves = [values(task)[name] - before[name] for task in (whole, fallen)]
        np.testing.assert_allclose(moves[1], moves[0] * 0.5**n, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("mode", "is_kept"), [("reset", False), ("keep", True)])
def test_what_of_the_optimizer_is_kept(tmp_path, mode, is_kept):
    from cifar_research.runs.checkpoint import Checkpoints

    task, seen = entered("training=combined", f"training.phases.backbone.optimizer={mode}", "augmentation=flip")
    record, saver = Progress(), Saver(Checkpoints(tmp_path, 1), {}, True, 0.0)
    step(task, seen, 2)
    record.step, record.epoch, record.best = 2, 1, {"step": 2, "epoch": 1, "value": 0.5, "loss": 1.0}
    saver.save(task, record)
    best = values(task)
    step(task, seen)
    loop.next_phase(task, record, saver, keeps_optimizer=is_kept)
    assert (record.phase, record.phase_steps, record.phase_epochs) == (1, [0, 2], [0, 1])
    assert all((value == best[path]).all() for path, value in values(task).items())
    slots = [value.numpy().any() for name, value in task.variables().items() if name.startswith("optimizer/logits/k")]
    assert all(slots) is is_kept and any(slots) is is_kept


BAD = [
    ("~training.phases.scratch", ["training.phases", "is empty"]),
    ("training.phases.scratch.epochs=0", ["training.phases.scratch.epochs", "0", "at least 1"]),
    ("training.phases.scratch.learning_rate=-1", ["training.phases.scratch.learning_rate", "-1"]),
    ("training.phases.scratch.learning_rate_decay_by_depth=2", ["learning_rate_decay_by_depth", "2"]),
    ("training.phases.scratch.optimizer=kep", ["optimizer", "kep", "did you mean 'keep'"]),
    ("training.phases.scratch.epoch=1", ["training.phases.scratch.epoch"]),
    ("training.phases.scratch.trainable=3", ["trainable", "3"]),
    ("training.phases.scratch.trainable={last:0}", ["trainable: {'last': 0} does not choose layers"]),
    ("training.phases.scratch.trainable={lst:2}", ["trainable", "lst"]),
    ("training.phases.scratch=null", ["training.phases.scratch"]),
    ("features.views=-1", ["features.views", "-1"]),
    ("schedule=cosine schedule.warmup_epochs=3 training=combined training.phases.head.epochs=2", ["warmup", "head"]),
]


@pytest.mark.parametrize(("overrides", "parts"), BAD)
def test_bad_phases_are_refused(overrides, parts):
    with pytest.raises(ConfigError) as error:
        config.parse(overrides.split())
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize(
    ("trainable", "part"),
    [("{from:block2_conv}", "did you mean 'block2_conv1'"), ("block9_*", "no layer"), ("blok2_conv1", "did you mean")],
)
def test_unknown_layers_are_named(trainable, part):
    with pytest.raises(ConfigError, match=part):
        entered("training=fine_tuning", f"training.phases.backbone.trainable={trainable}")


def test_what_the_optimizer_counts_begins_with_each_weights_first_update():
    overrides = [
        "training=combined",
        "training.phases.backbone.optimizer=keep",
        "training.phases.backbone.trainable=all",
    ]
    with any_backbone():
        settings = config.parse([*BASE, *overrides])
    task = setup.build(settings, random_data())
    progress = Progress(phase=1, phase_steps=[0, 7], phase_epochs=[0, 1])
    setup.enter(settings, task, random_data(), progress)
    result = dict(zip(task._slots, task.optimizer_first_steps, strict=True))
    assert {step for path, step in result.items() if "block" in path} == {7}
    assert {step for path, step in result.items() if "logits" in path} == {0}


def test_what_the_optimizer_counts_leaves_out_phases_that_do_not_train_a_weight():
    phase = "{{epochs:1,optimizer:keep,trainable:{}}}".format
    more = f"++training.phases={{pause:{phase('none')},again:{phase('all')}}}"
    overrides = [
        "training=combined",
        "training.phases.backbone.optimizer=keep",
        "training.phases.backbone.trainable=all",
    ]
    with any_backbone():
        settings = config.parse([*BASE, *overrides, more])
    model = setup.build(settings, random_data()).model
    result = setup._optimizer_first_steps(model, settings, Progress(phase=3, phase_steps=[0, 7, 12, 20]))
    assert {step for path, step in result.items() if "block" in path} == {7 + 20 - 12}
    assert {step for path, step in result.items() if "logits" in path} == {0}


BACKBONES = """
def twins():
    def build(image_shape):
        import keras
        def branch():
            return keras.Sequential([keras.Input(image_shape), keras.layers.Conv2D(4, 3, name="same")], name="branch")
        images = keras.Input(image_shape)
        one, two = branch(), branch()
        two.name = "other"
        return keras.Model(images, keras.layers.Add()([one(images), two(images)]))
    return build

def token():
    import keras
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Conv2D(4, 3, name="inner")
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        def call(self, images):
            return self.inner(images) * self.scale
    return lambda image_shape: Net()
"""


@pytest.fixture
def own_backbones(tmp_path, monkeypatch):
    (tmp_path / "own_backbones.py").write_text(BACKBONES)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_subclassed_backbone_is_trained_with_its_own_weights_and_frozen_as_a_whole(
    own_backbones, tmp_path, monkeypatch
):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path))
    base = [
        "allow_targets=[own_backbones]",
        "~backbone",
        "+backbone={_target_: own_backbones.token}",
        "model=linear",
        "optimizer.learning_rate=0.1",
    ]
    task, seen = entered(base=base)
    assert {"inner", "scale"} <= {path.split("/")[-2] if "kernel" in path else path.split("/")[-1]
                                  for path in changed(task, seen)}  # fmt: skip
    task, seen = entered("training=feature_extraction", base=base)
    assert seen.train.images.shape == (16, 4)
    assert all("logits" in path for path in changed(task, seen))


def test_weights_of_one_name_are_refused(own_backbones):
    with pytest.raises(ConfigError, match="two weights have the name"):
        entered(
            base=[
                "allow_targets=[own_backbones]",
                "~backbone",
                "+backbone={_target_: own_backbones.twins}",
                "model=linear",
            ]
        )


RANDOM = [
    ("training=feature_extraction", False),
    ("training=combined", False),
    ("training=fine_tuning", False),
    ("training=feature_extraction ~backbone.weights", False),
    ("training=combined backbone=vgg16 backbone.weights=none", False),
    ("backbone=airbench training.phases.scratch.trainable=none", False),
    ("backbone=airbench training.phases.scratch.trainable={from:block1_conv1}", True),
    ("training=combined training.phases.head.trainable=all training.phases.backbone.trainable=none", True),
    ("training=combined backbone=vgg16", True),
    ("training=scratch backbone=vgg16 backbone.weights=none", True),
]


@pytest.mark.parametrize(("overrides", "is_taken"), RANDOM)
def test_a_random_backbone_is_not_frozen_before_it_is_trained(overrides, is_taken):
    if is_taken:
        config.parse(overrides.split())
    else:
        with pytest.raises(ConfigError, match=r"^backbone\.weights: none makes .*choose training=scratch"):
            config.parse(overrides.split())
