"""The promises of a user's factory are checked and kept."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import keras
import pytest
import tensorflow as tf
from test_phases import random_data
from test_shards import data

from cifar_research import Backbone, Head, Transform, augmentation, config
from cifar_research.config import targets
from cifar_research.inference import trained
from cifar_research.runtime.errors import ConfigError, WeightsError
from cifar_research.training import setup, shards

LAB = """
from cifar_research import Backbone, Head

def backbone(*, promised: dict):
    def build(image_shape):
        import keras
        layers = [keras.layers.Conv2D(4, 3, name=name) for name in ("lower", "upper")]
        return keras.Sequential([keras.Input(image_shape), *layers])
    return Backbone(build, **promised)

def head(*, promised: dict):
    def build(features, num_classes):
        import keras
        return keras.layers.Dense(num_classes)(keras.layers.GlobalAveragePooling2D()(features))
    return Head(build, **promised)
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """A function that composes a config whose backbone and head promise these fields."""
    (tmp_path / "my_nets.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)

    def parse(*overrides, backbone="", head=""):
        nodes = [f"+{group}={{_target_:my_nets.{name},promised:{{{promised}}}}}"
                 for group, name, promised in (("backbone", "backbone", backbone), ("model", "head", head))]  # fmt: skip
        return config.parse(["allow_targets=[my_nets]", "~backbone", "~model", *nodes, *overrides])

    return parse


@pytest.mark.parametrize("contract", [Backbone, Head, Transform])
def test_a_plain_function_promises_nothing(contract):
    wrapped = contract.of(print)
    assert wrapped == contract(print) and contract.of(wrapped) is wrapped


def test_parts_of_another_kind_are_refused():
    settings = config.parse(["backbone.filters=[4]"])
    with pytest.raises(ConfigError, match="^optimizer: the factory returned a str; return an Optimizer"):
        setup.build(dataclasses.replace(settings, optimizer="sgd"), random_data())
    tensor = Backbone(lambda shape: keras.layers.Conv2D(4, 3)(keras.Input(shape)))
    with pytest.raises(WeightsError, match="of a KerasTensor; return a keras.Model"):
        setup.build(dataclasses.replace(settings, backbone=tensor), random_data())
    images = augmentation.compose({"mine": lambda images, targets, seed: images})
    with pytest.raises(ConfigError, match="^augmentation.mine: returned a .*Tensor; return images and targets"):
        images(tf.zeros([2, 8, 8, 3]), tf.eye(2), tf.constant([0, 0]))


@pytest.mark.parametrize(
    ("value", "hint", "is_fit"),
    [
        ("x.txt", Path, True),
        ([1, "a"], tuple[int, str], True),
        ([1, 2], tuple[int, str], False),
        ([1, 2], tuple[int, ...], True),
        ("x", dict, False),
        (3, str, False),
        (3.5, int | Literal["auto"], False),
    ],
)
def test_types_that_yaml_has_are_checked(value, hint, is_fit):
    assert targets.fits(value, hint) is is_fit
    if not is_fit:
        assert "takes" in targets._mismatch(value, hint)


def test_one_package_may_be_allowed_as_a_text(monkeypatch, tmp_path):
    report = {"config": {"evaluation": {"views": "none"}}}
    monkeypatch.setattr(trained, "read_members", lambda runs: dict.fromkeys(runs, report))
    monkeypatch.setattr(trained.rebuild, "network", lambda report, folder, precision, allowed: allowed)
    as_text, as_list = (trained.load(tmp_path, allow_targets=packages) for packages in ("my_lab", ["my_lab"]))
    assert as_text.model == as_list.model >= {"my_lab"}


@pytest.mark.parametrize(
    ("promised", "word", "reason"),
    [
        ("", "seed=1", None),
        ("min_image_size:64", "seed=1", "needs images of at least 64 x 64"),
        ("standardizes:true", "data.standardize=true", r"data\.standardize: true"),
        ("standardises:true", "seed=1", "unexpected keyword argument 'standardises'"),
    ],
)
def test_a_config_is_held_against_what_the_backbone_promises(parse, promised, word, reason):
    if reason is None:
        parse(word, backbone=promised)
    else:
        with pytest.raises(ConfigError, match=reason):
            parse(word, backbone=promised)


@pytest.mark.parametrize(
    ("backbone", "head", "expected"), [("true", "true", 2), ("true", "false", 1), ("false", "true", 1)]
)
def test_batches_have_shards_if_backbone_and_head_are_by_image(parse, backbone, head, expected):
    promised = {"backbone": f"is_by_image:{backbone}", "head": f"is_by_image:{head}"}
    assert shards.count(parse("training.threads=2", **promised), data()) == expected


def test_upper_blocks_are_those_the_backbone_names(parse):
    settings = parse("training.phases.scratch.trainable=upper", backbone="upper_blocks:upper")
    task = setup.build(settings, random_data())
    paths = setup.trained_paths(task.model, settings.phases[0], settings.backbone.upper_blocks)
    assert any("upper" in path for path in paths) and not any("lower" in path for path in paths)
    settings = parse("training.phases.scratch.trainable=upper")
    task = setup.build(settings, random_data())
    with pytest.raises(ConfigError, match="needs a backbone that names its upper blocks"):
        setup.trained_paths(task.model, settings.phases[0], settings.backbone.upper_blocks)


@pytest.mark.parametrize(("by_epoch", "expected"), [(False, "fold of step"), (True, "epoch")])
def test_a_transform_by_epoch_is_given_the_seed_of_the_epoch(monkeypatch, by_epoch, expected):
    import tensorflow as tf

    monkeypatch.setattr(tf.random.experimental, "stateless_fold_in", lambda seed, i: f"fold of {seed}")
    seeds = []
    transform = Transform(lambda images, targets, seed: (seeds.append(seed), targets), by_epoch=by_epoch)
    augmentation.compose({"own": transform})("images", "targets", "step", "epoch")
    assert seeds == [expected]


def test_contracts_import_no_tensorflow():
    program = "import sys; from cifar_research import Backbone, Head, Transform; print('tensorflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60) == "False\n"
