"""Warnings before training: photos read at few pixels, a precision that is slow here, a GPU that is not used."""

import importlib.util

import pytest
import tensorflow as tf
from test_phases import LITE, random_data

from cifar_research import config
from cifar_research.runs import report
from cifar_research.runtime import environment, gpus
from cifar_research.training import setup, warnings
from cifar_research.training.run import run

WITHOUT, WITH, WITH_MATRIX_UNITS = "flags : avx2 fma", "flags : avx512f avx512_bf16", "flags : avx512_bf16 amx_bf16"


@pytest.mark.parametrize(
    ("instructions", "precision", "is_depthwise", "expected"),
    [
        (WITHOUT, "bfloat16", False, "in software"),
        (WITHOUT, "float32", True, None),
        (WITH, "bfloat16", False, None),
        (WITH, "bfloat16", True, "depthwise convolutions faster in float32"),
        (WITH_MATRIX_UNITS, "bfloat16", True, None),
    ],
)
def test_the_precision_is_slow_on_a_processor(instructions, precision, is_depthwise, expected, monkeypatch):
    monkeypatch.setattr(environment, "cpu_features", lambda: frozenset(instructions.split()))
    reason = environment.slow_precision(precision, is_depthwise)
    assert reason is None if expected is None else expected in reason


def test_nothing_is_said_where_the_instructions_are_unknown_or_a_gpu_computes(monkeypatch):
    monkeypatch.setattr(environment, "cpu_features", frozenset)
    assert environment.slow_precision("bfloat16", True) is None
    monkeypatch.setattr(environment, "cpu_features", lambda: frozenset(WITHOUT.split()))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    assert environment.slow_precision("bfloat16", True) is None


@pytest.fixture(scope="module")
def lite():
    """An EfficientNet-Lite0 with random weights; no override of these tests gives it other layers."""
    return setup.build(config.parse([*LITE, "backbone.weights=none"]), random_data()).model


@pytest.mark.parametrize(
    ("overrides", "is_computed"),
    [
        (["training.phases.scratch.trainable={last:3}"], False),
        (["training.phases.scratch.trainable={last:3}", "augmentation=flip"], True),
        ([], True),
    ],
)
def test_depthwise_convolutions_count_unless_their_features_are_kept(lite, overrides, is_computed, monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "slow_precision", lambda *question: asked.append(question))
    settings = config.parse([*LITE, "backbone.weights=none", "batch_norm.statistics=precise", *overrides])
    assert warnings.of_run(settings, lite, 100) == []
    assert asked == [("float32", is_computed)]


@pytest.mark.parametrize(("pixels", "is_warned"), [(32, True), (64, False)])
def test_photos_that_are_read_at_fewer_pixels_than_the_backbone_takes(lite, tmp_path, pixels, is_warned):
    overrides = [*LITE, "backbone.weights=none", "backbone.image_size=64", "data=images", f"data.dir={tmp_path}"]
    settings = config.parse([*overrides, f"data.image_size={pixels}"])
    lines = warnings.of_run(settings, lite, 1000)
    assert any("Set data.image_size=64." in line for line in lines) is is_warned


def test_a_run_whose_weights_are_used_differs_in_what_they_do_not_show(tmp_path):
    report.write_report(tmp_path / "report.json", {"config": config.parse(["backbone.pooling=avg"]).content})
    (tmp_path / "model.weights.h5").touch()
    for pooling, expected in (("avg", 0), ("max", 1)):
        settings = config.parse([f"backbone.weights={tmp_path}", f"backbone.pooling={pooling}"])
        lines = warnings._of_source(settings)
        assert len(lines) == expected and all("Set backbone.pooling=avg." in line for line in lines)


def test_a_run_shows_its_warnings(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(environment, "slow_precision", lambda *_: "it is slow")
    run(config.parse(["experiment=quickstart", "data.train_images=64", "training.epochs=1"]), tmp_path / "run")
    assert "Warning: it is slow. Set training.precision=float32." in capsys.readouterr().out


LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1b2c)"


@pytest.mark.parametrize(
    ("listed", "has_libraries", "variables", "expected"),
    [
        (LISTED, False, {}, "the NVIDIA H100 80GB HBM3: NVIDIA's CUDA libraries are not installed. Install them with "),
        (LISTED, True, {}, "the NVIDIA H100 80GB HBM3. It says why with TF_CPP_MIN_LOG_LEVEL=0 "),
        (LISTED, False, {"CUDA_VISIBLE_DEVICES": ""}, None),
        ("NVIDIA-SMI has failed", False, {}, None),
        (None, False, {}, None),
    ],
    ids=["no libraries", "broken", "hidden", "no card", "no driver"],
)
def test_a_gpu_that_is_not_used_is_told_with_what_to_do(
    listed, has_libraries, variables, expected, monkeypatch, tmp_path
):
    if listed is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{listed}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: has_libraries or None if name == "nvidia" else find(name, *of)
    )
    reason = gpus.why_unused()
    assert reason is None if expected is None else expected in reason
