"""The classifier: valid outputs of a user's backbone, and messages about others."""

import sys

import pytest
from test_config import LAB
from test_phases import random_data

from cifar_research import config
from cifar_research.runtime.errors import WeightsError
from cifar_research.training import setup


def build(*overrides):
    base = ["allow_targets=[my_nets]", "~backbone", "model=linear"]
    settings = config.parse([*base, *overrides])
    return setup.build(settings, random_data())


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)


@pytest.mark.parametrize(
    ("kind", "pooling", "parts"),
    [
        ("classifier", "avg", ["[None, 10]", "classifier's last layer"]),
        ("classifier", "flatten", ["[None, 10]", "without a classifier's last layer"]),
        ("raise", "avg", ["RuntimeError: out of ideas (my_nets.py, line 6)"]),
        ("none", "avg", ["returns NoneType", "keras.Model"]),
    ],
)
def test_a_backbone_that_the_head_cannot_take_is_refused(my_nets, kind, pooling, parts):
    with pytest.raises(WeightsError) as raised:
        build(f"+backbone={{_target_:my_nets.net,kind:{kind}}}", f"model.pooling={pooling}")
    message = str(raised.value)
    assert message.startswith("backbone: my_nets.net ") and "\n" not in message
    assert not [part for part in parts if part not in message], message


def test_a_vector_of_features_cannot_be_pooled(my_nets):
    with pytest.raises(
        WeightsError,
        match=r"model: .*heads.head cannot be built on features \[None, 4\], a vector, which needs model.pooling=flatten: ",
    ):
        build("+backbone={_target_:my_nets.net,kind:vector}", "model.pooling=avg")


def test_a_backbone_that_takes_no_shape_is_refused(my_nets):
    with pytest.raises(WeightsError, match="backbone: my_nets.no_shape cannot be built for images .*TypeError"):
        build("+backbone={_target_:my_nets.no_shape}")


def test_a_vector_of_features_is_taken_flat(my_nets):
    task = build("+backbone={_target_:my_nets.net,kind:vector}", "model.pooling=flatten")
    assert task.model.output_shape == (None, 10)
