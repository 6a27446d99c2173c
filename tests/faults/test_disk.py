"""A full disk or a read-only folder: one message with the path, and no existing file is lost."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from forked import Process, wait_for

from cifar_research import config
from cifar_research.data import datasets
from cifar_research.runs import checkpoint
from cifar_research.runtime.errors import DataError, WriteError
from cifar_research.training.outputs import save_weights

is_root = hasattr(os, "geteuid") and os.geteuid() == 0
needs_root = pytest.mark.skipif(
    not (is_root and sys.platform == "linux"), reason="mounting, and other users, need root"
)
NOBODY = 65534
OVERRIDES = [
    "data=synthetic", "data.train_images=400", "data.test_images=40", "backbone.filters=[4]", "model.hidden=[8]",
    "training.epochs=100000", "training.batch_size=4", "loss=categorical_crossentropy",
]  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def open_folder():
    """A folder that other users can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def fill(folder):
    """Fill a disk."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step-*.ckpt"))


def assert_told(command, part, code=1):
    assert command.wait(60) == code, command.output
    (line,) = [line for line in command.output.splitlines() if line.startswith("error: ")]
    assert part in line and "Traceback" not in command.output, command.output
    return line


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("with_tensorboard", ["true", "false"])
def test_a_disk_that_gets_full_ends_the_run_which_goes_on_when_there_is_room(small_disk, tmp_path, with_tensorboard):
    folder, environment = small_disk / "run", os.environ | {"CIFAR_CACHE_DIR": str(tmp_path / "cache")}
    overrides = [*OVERRIDES, f"hydra.run.dir={folder}", f"tensorboard.enabled={with_tensorboard}"]
    command = Process(overrides, env=environment)
    wait_for(lambda: len(checkpoints(folder)) == 2, command)
    fill(small_disk)
    line = assert_told(command, str(folder))
    # Which file meets the full disk first depends on the room in the last page of each.
    assert "No space left on device" in line and ("bytes" in line or "tensorboard" in line)
    last = checkpoint.Checkpoints(folder / "checkpoints", keep=2).latest().meta["step"]
    assert last == int(checkpoints(folder)[-1].stem[5:]) and not list(folder.rglob(".*ckpt*"))

    (small_disk / "filler").unlink()
    command = Process(overrides, env=environment)
    wait_for(lambda: int(checkpoints(folder)[-1].stem[5:]) > last, command)
    assert f"Continuing from step {last}." in command.output
    command.kill()


@needs_root
@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(small_disk, tmp_path):
    fill(small_disk)
    overrides = [*OVERRIDES, f"hydra.run.dir={small_disk / 'run'}"]
    command = Process(overrides, env=os.environ | {"CIFAR_CACHE_DIR": str(tmp_path / "cache")})
    assert command.wait(60) != 0 and "Traceback" not in command.output
    assert str(small_disk / "run") in command.output and "No space left on device" in command.output


@needs_root
@pytest.mark.slow
def test_features_that_find_no_room_are_reported_with_their_size(small_disk, tmp_path, weights_for):
    overrides = [
        *OVERRIDES,
        "training=feature_extraction",
        weights_for(*OVERRIDES),
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    overrides += ["data.train_images=500", "data.test_images=20"]
    (small_disk / "synthetic").mkdir()
    command = Process(overrides, env=os.environ | {"CIFAR_CACHE_DIR": str(small_disk)})
    line = assert_told(command, f"{small_disk}/features-", code=2)
    assert "No space left on device" in line and "it needs" in line and "data.cache_dir" in line
    assert not list(small_disk.glob("features-*/")) and not list(small_disk.glob(".features-*"))


@needs_root
@pytest.mark.slow
def test_a_folder_that_becomes_read_only(open_folder, tmp_path):
    folder, environment = open_folder / "mine" / "run", {"CIFAR_CACHE_DIR": str(open_folder / "mine" / "cache")}
    (open_folder / "mine").mkdir()
    os.chown(open_folder / "mine", NOBODY, NOBODY)
    overrides = [*OVERRIDES, f"hydra.run.dir={folder}"]
    command = Process(overrides, user=NOBODY, env=environment)
    wait_for(lambda: checkpoints(folder), command)
    os.chown(folder / "checkpoints", 0, 0)
    line = assert_told(command, str(folder / "checkpoints"))
    assert "Permission denied" in line and "bytes" in line
    assert checkpoint.Checkpoints(folder / "checkpoints", keep=2).latest() is not None


@needs_root
def test_a_folder_that_may_not_be_written(open_folder, tmp_path):
    overrides = [*OVERRIDES, f"hydra.run.dir={open_folder / 'run'}"]
    command = Process(overrides, user=NOBODY, env=os.environ | {"CIFAR_CACHE_DIR": str(open_folder)})
    line = assert_told(command, str(open_folder / "run"), code=2)
    assert "hydra.run.dir" in line and "not a writable directory" in line


@needs_root
def test_a_cache_that_finds_no_room_is_reported_with_its_size(small_disk):
    overrides = ["data=synthetic", "data.train_images=900", "data.test_images=10", f"data.cache_dir={small_disk}"]
    with pytest.raises(DataError, match=r"synthetic-.*needs 2,764,800 bytes.*data\.cache_dir"):
        datasets.load(config.parse(overrides).data)
    assert not list(small_disk.glob("*/")) and not list(small_disk.glob(".synthetic*"))


@needs_root
def test_weights_that_find_no_room_are_reported_with_their_size(small_disk):
    import keras

    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000)])
    (small_disk / "model.weights.h5").write_bytes(b"before")
    with pytest.raises(WriteError, match=r"model\.weights\.h5: cannot be written.*needs 4,004,000 bytes"):
        save_weights(model, small_disk / "model.weights.h5")
    assert (small_disk / "model.weights.h5").read_bytes() == b"before" and len(list(small_disk.iterdir())) == 1
