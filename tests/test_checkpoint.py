"""Only a complete, verified and recent checkpoint is used."""

import logging

import numpy as np
import pytest

from cifar_research.runs.checkpoint import Checkpoint, Checkpoints, read, write
from cifar_research.runtime.errors import CheckpointError


def checkpoint(step, best=None):
    arrays = {"model/w": np.full((3, 2), step, np.float32), "step": np.int64(step)}
    return Checkpoint(arrays, {"step": step, "best": best and {"step": best}, "rate": 0.1})


def save(store, step, best=None):
    store.save(step, checkpoint(step, best))


def test_round_trip(tmp_path):
    write(tmp_path / "a.ckpt", checkpoint(7))
    back = read(tmp_path / "a.ckpt")
    assert back.meta == {"step": 7, "best": None, "rate": 0.1}
    assert back.arrays.keys() == {"model/w", "step"}
    np.testing.assert_array_equal(back.arrays["model/w"], checkpoint(7).arrays["model/w"])
    assert back.arrays["step"] == 7 and back.arrays["step"].dtype == np.int64


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.99])
def test_cut_short_is_found(tmp_path, share):
    path = tmp_path / "a.ckpt"
    write(path, checkpoint(7))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="a.ckpt"):
        read(path)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    write(path, checkpoint(7))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content) * 8, 100):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read(path)


def test_keeps_the_last_and_what_they_speak_of(tmp_path):
    store = Checkpoints(tmp_path / "c", keep=2)
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]:
        save(store, step, best)
    assert _kept(store) == [2, 4, 5] and store.latest().meta["step"] == 5
    save(store, 6, best=6)
    assert _kept(store) == [2, 5, 6]
    save(store, 7, best=6)
    assert _kept(store) == [6, 7]


def _kept(store):
    return [int(path.stem[5:]) for path in sorted(store.folder.iterdir())]


@pytest.mark.parametrize(
    ("keep", "training", "ended"), [(None, [1, 3, 4], [1, 4]), (1, [1, 4], [1, 4]), (3, [1, 2, 3, 4], [1, 2, 3, 4])]
)
def test_a_run_that_has_ended_keeps_one_state_unless_more_are_asked_for(tmp_path, keep, training, ended):
    store = Checkpoints(tmp_path, keep=keep)
    for step in range(1, 5):
        save(store, step, best=1)
    assert _kept(store) == training
    store.end()
    assert _kept(store) == ended


def test_damaged_latest_falls_back_and_says_so(tmp_path, caplog):
    store = Checkpoints(tmp_path, keep=2)
    save(store, 1)
    save(store, 2)
    (tmp_path / "step-00000002.ckpt").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert store.latest().meta["step"] == 1
    assert "step-00000002.ckpt" in caplog.text and "step-00000001.ckpt" in caplog.text


def test_missing_best_weights_count_as_damage(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    save(store, 1)
    save(store, 2, best=2)
    save(store, 3, best=2)
    store.path(2).unlink()
    store.keep = 3
    assert store.latest().meta["step"] == 1


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    assert store.latest() is None
    save(store, 1)
    (tmp_path / "step-00000001.ckpt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="step-00000001.ckpt"):
        store.latest()


def test_not_finite_is_never_saved(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    bad = Checkpoint({"model/w": np.array([np.nan], np.float32)}, {})
    with pytest.raises(FloatingPointError, match="model/w"):
        store.save(2, bad)
    assert store.latest().meta["step"] == 1


def test_a_damaged_newer_one_does_not_push_out_the_good_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "step-00000020.ckpt").write_bytes(b"rubbish")
    checkpoints.save(15, Checkpoint({"x": np.ones(3, np.float32)}, {"best": None}))
    assert checkpoints.latest().arrays["x"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015.ckpt"]
