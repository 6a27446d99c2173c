"""Damaged or missing files: rebuilt, left out with a warning, or reported with their path."""

import logging
import random
import shutil

import numpy as np
import pytest

from cifar_research import config
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.runs import checkpoint, report
from cifar_research.runtime.errors import CheckpointError, ReportError
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=100", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[4]",
    "training.epochs=3", "training.batch_size=30", "loss=categorical_crossentropy", "tensorboard.enabled=false",
    "training.keep_checkpoints=2", "seed=1",
]  # fmt: skip  # with this seed the second epoch is the best
SHARES = (0, 0.25, 0.5, 0.99)


def damages(content, flips=100):
    """Yield (name, bytes): cut short, and with one bit changed."""
    for share in SHARES:
        yield f"cut at {share}", content[: int(len(content) * share)]
    rng = random.Random(0)
    for position in rng.sample(range(len(content) * 8), min(flips, len(content) * 8)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        yield f"bit {position}", bytes(damaged)


def run(folder):
    return train_run(config.parse(SMALL), folder, console.Display(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a run that has ended."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def steps(folder):
    return sorted((folder / "checkpoints").glob("step-*.ckpt"))


def best_of(folder):
    (path,) = {
        folder / "checkpoints" / f"step-{checkpoint.read(p).meta['best']['step']:08d}.ckpt" for p in steps(folder)
    }
    return path


def half_done(folder):
    """Make the folder that of a run killed after its last checkpoint."""
    for name in ("report.json", "history.csv", "model.weights.h5"):
        (folder / name).unlink()


def test_every_damage_of_the_last_checkpoint_falls_back_to_the_one_before(folder, caplog):
    store = checkpoint.Checkpoints(folder / "checkpoints", keep=2)
    before, last = steps(folder)
    content = last.read_bytes()
    for name, damaged in damages(content):
        last.write_bytes(damaged)
        caplog.clear()
        result = store.latest()
        assert result.meta["step"] == int(before.stem[5:]), name
        assert last.name in caplog.text and f"continuing from {before.name}" in caplog.text, name
    last.unlink()
    assert store.latest().meta["step"] == int(before.stem[5:])


def test_every_damage_of_all_checkpoints_is_an_error(folder):
    half_done(folder)
    for path in steps(folder):
        for _name, damaged in list(damages(path.read_bytes(), flips=10)):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                checkpoint.read(path)
    with pytest.raises(CheckpointError, match="No checkpoint of this run can be used.*backup"):
        run(folder)


def test_every_damage_of_the_best_weights_is_an_error(folder):
    store, best = checkpoint.Checkpoints(folder / "checkpoints", keep=2), best_of(folder)
    if checkpoint.read(steps(folder)[0]).meta["best"] != checkpoint.read(steps(folder)[1]).meta["best"]:
        steps(folder)[0].unlink()  # it would be fallen back on
    content = best.read_bytes()
    for _name, damaged in damages(content):
        best.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=best.name):
            store.latest()
    best.unlink()
    with pytest.raises(CheckpointError, match=best.name):
        store.latest()


@pytest.mark.parametrize("left", ["report.json", "history.csv"])
def test_checkpoints_that_are_gone_are_no_fresh_start(folder, left):
    if left == "report.json":
        report.write_report(folder / left, report.read_report(folder / left) | {"status": "stopped"})
        (folder / "history.csv").unlink()
    else:
        (folder / "report.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="its checkpoints are missing.*backup"):
        run(folder)


def test_every_damage_of_the_report_is_reported_and_repaired_by_running_again(folder):
    path = folder / "report.json"
    content = path.read_bytes()
    for _name, damaged in damages(content):
        path.write_bytes(damaged)
        with pytest.raises(ReportError, match="is damaged"):
            report.read_report(path)
    before = report.read_report(_written(path, content))
    path.unlink()
    assert run(folder)["weights_sha256"] == before["weights_sha256"]


def _written(path, content):
    path.write_bytes(content)
    return path


def test_every_damage_of_the_history_is_reported_and_repaired_from_the_checkpoint(folder, caplog):
    path, result = folder / "history.csv", report.read_report(folder / "report.json")
    content = path.read_bytes()
    for _name, damaged in damages(content):
        path.write_bytes(damaged)
        with pytest.raises(ReportError, match="is damaged"):
            report.read_history(path, result["history_sha256"])
    with caplog.at_level(logging.WARNING):
        run(folder)
    assert path.read_bytes() == content and str(path) in caplog.text
    path.unlink()
    run(folder)
    assert path.read_bytes() == content


def test_every_damage_of_the_cache_is_reported_and_rebuilt(tmp_path, caplog):
    overrides = ["data=synthetic", "data.train_images=10", "data.test_images=10", f"data.cache_dir={tmp_path}"]
    settings = config.parse(overrides).data
    expected = datasets.load(settings)
    (folder,) = tmp_path.glob("synthetic-*/")
    names = ["meta.json", *(f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels"))]
    whole = {name: (folder / name).read_bytes() for name in names}

    def restored():
        caplog.clear()
        data = datasets.load(settings)
        assert "the cache is damaged" in caplog.text and str(folder) in caplog.text
        assert (data.fingerprint, data.classes) == (expected.fingerprint, expected.classes)
        np.testing.assert_array_equal(data.train.images, expected.train.images)

    count = 0
    for name in names:
        for _, damaged in damages(whole[name], flips=20):
            replacement = folder / "new"
            replacement.write_bytes(damaged)
            replacement.rename(folder / name)  # not into the file that `expected` has mapped
            restored()
            count += 1
        (folder / name).unlink()
        restored()
    assert count == len(names) * (len(SHARES) + 20)
