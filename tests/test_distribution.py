"""Two devices, or two machines, train to the same losses as one."""

import json
import os
import socket

import forked
import numpy as np
import pytest

from cifar_research.runs import report

# Five epochs of three steps, the last of them with an odd number of images. No dropout and no augmentation, which
# each replica draws for itself.
OVERRIDES = [
    "data=synthetic", "data.train_images=110", "data.test_images=50", "backbone.filters=[8,8]", "model.hidden=[16]",
    "backbone.batch_norm=true", "model.batch_norm=true", "training.epochs=5", "training.batch_size=40",
    "optimizer=sgd", "optimizer.learning_rate=0.003", "loss=categorical_crossentropy", "training.steps_per_call=2",
    "tensorboard.enabled=false",
]  # fmt: skip

RUN = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
from cifar_research import config
from cifar_research.training.run import run as train_run
settings = config.parse(sys.argv[3:])
assert train_run(settings, sys.argv[2])["status"] == "completed"
"""


def start(devices, folder, *overrides, **environment):
    return forked.Process([devices, folder, *OVERRIDES, *overrides], code=RUN, env=os.environ | environment)


def end(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    return output


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    end(start(1, folder))
    return folder


def assert_same_losses(folder, expected_folder):
    rows, expected = (report.read_history(path / "history.csv") for path in (folder, expected_folder))
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        # One device normalises whole maps by a fused kernel, whose roundings grow from step to step.
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in expected], rtol=1e-4)
    tests = [json.loads((path / "report.json").read_text())["test"] for path in (folder, expected_folder)]
    for name in ("loss", "accuracy"):
        assert tests[0][name] == pytest.approx(tests[1][name], rel=1e-5)


def test_mirrored_on_two_devices(one_device, tmp_path):
    output = end(start(2, tmp_path / "run", "training.strategy=mirrored"))
    assert "2 replicas" in output
    assert_same_losses(tmp_path / "run", one_device)


def test_a_batch_that_leaves_a_replica_without_an_image_is_rejected(tmp_path):
    process = start(2, tmp_path / "run", "training.strategy=mirrored", "data.train_size=81")
    _, errors = process.communicate(timeout=300)
    assert process.returncode and "set training.batch_size=40 data.drop_remainder=true" in errors


def test_two_workers(one_device, tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    workers = [f"127.0.0.1:{port}" for port in ports]
    # In one folder, as on a cluster's shared disk: only the chief writes.
    processes = [
        start(
            1,
            tmp_path / "run",
            "training.strategy=multi_worker",
            TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]
    for process in processes:
        end(process)
    assert_same_losses(tmp_path / "run", one_device)
