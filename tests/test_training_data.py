"""What the config changes of the training images: folds, long tails, sampling, wrong labels."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from interrupted import KEEPS_BOTH, interrupted
from test_datasets import lay_out

from cifar_research import config
from cifar_research.data import batches, datasets, noise, splits
from cifar_research.runs import report as history
from cifar_research.runtime.errors import ConfigError, DataError
from cifar_research.training.run import run

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
SMALL = ["data=synthetic", "data.train_images=600", "data.test_images=100"]


def load(*overrides):
    return datasets.load(config.parse([*SMALL, *overrides]).data)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_disjoint_stratified_and_cover_all_images(folds):
    data = [load(f"data.folds={folds}", f"data.fold={number}") for number in range(folds)]
    held_out = [set(each.val.indices) for each in data]
    assert set().union(*held_out) == set(range(600)) and sum(map(len, held_out)) == 600
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    counts = np.array([each.val.counts(10) for each in data])
    assert (counts.max(0) - counts.min(0) <= 1).all()
    for each, own in zip(data, held_out, strict=True):
        assert set(each.train.indices) == set(range(600)) - own


def test_folds_depend_on_the_splits_seed_alone():
    first, again, other = (
        load("data.folds=3"),
        load("data.folds=3", "seed=5"),
        load("data.folds=3", "data.split_seed=1"),
    )
    assert (first.val.indices == again.val.indices).all()
    assert not np.array_equal(first.val.indices, other.val.indices)


def test_a_long_tail_has_the_published_counts():
    def counts(kind, factor):
        rows = splits.imbalanced(np.arange(50_000), LABELS, TEN, kind, factor, 0)
        assert (np.diff(rows) > 0).all()
        return np.bincount(LABELS[rows]).tolist()

    # Cui et al. 2019 and Cao et al. 2019.
    assert counts("exponential", 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert counts("exponential", 10) == [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]
    assert counts("step", 100) == [5000] * 5 + [50] * 5


def test_a_long_tail_leaves_validation_and_test_as_they_are():
    plain, tail = load(), load("data.imbalance=exponential", "data.imbalance_factor=10")
    assert re.search(r"a class has between \d+ and \d+ training images", tail.note) and "between" not in str(plain.note)
    for split in ("val", "test"):
        assert (getattr(plain, split).indices == getattr(tail, split).indices).all()
    counts = tail.train.counts(10)
    assert counts[0] == plain.train.counts(10).max() and counts[0] // 10 == counts[9]
    assert set(tail.train.indices) < set(plain.train.indices)


def test_a_users_own_tail_is_not_filled_up():
    labels = np.repeat([0, 1, 2], [100, 5, 100])
    rows = splits.imbalanced(np.arange(205), labels, ("a", "b", "c"), "exponential", 10, 0)
    assert np.bincount(labels[rows]).tolist() == [100, 5, 10]


@pytest.mark.parametrize(("sampling", "power"), [("balanced", 0.0), ("sqrt", 0.5)])
def test_sampling_draws_classes_as_it_says(sampling, power):
    train = load("data.imbalance=exponential", "data.imbalance_factor=20", f"data.sampling={sampling}").train
    steps = batches.steps_per_epoch(len(train), 16, False)
    drawn = np.concatenate(
        [
            batches.indices(tf.constant(step, tf.int64), len(train), 16, steps, 0, chances=train.chances)
            for step in range(60 * steps)
        ]
    )
    shares = np.bincount(train.labels[train.indices][drawn], minlength=10) / len(drawn)
    expected = train.counts(10) ** power
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.02)
    assert len(np.unique(drawn)) == len(train)


def test_a_drawn_batch_is_a_function_of_seed_and_step():
    train = load("data.sampling=balanced").train
    steps = batches.steps_per_epoch(len(train), 16, False)

    def batch(step, seed=0, count=1):
        step = tf.constant(step, tf.int64)
        return batches.indices(step, len(train), 16, steps, seed, count, train.chances).numpy()

    assert (np.concatenate([batch(3), batch(4)]) == batch(3, count=2)).all()
    assert not np.array_equal(batch(3), batch(3, seed=1)) and not np.array_equal(batch(3), batch(3 + steps))
    assert len(batch(steps - 1)) == len(train) - 16 * (steps - 1)


def test_symmetric_noise_changes_its_share_to_any_other_class():
    rows = np.arange(0, 50_000, 2)
    given = noise.noisy(LABELS, rows, TEN, "symmetric", 0.4, 0)
    assert (given != LABELS).sum() == 10_000 and (given == LABELS)[1::2].all()
    matrix = np.zeros((10, 10))
    np.add.at(matrix, (LABELS[rows], given[rows]), 1)
    np.testing.assert_allclose(
        matrix / matrix.sum(1, keepdims=True), 0.6 * np.eye(10) + 0.4 / 9 * (1 - np.eye(10)), atol=0.02
    )
    assert not np.array_equal(given, noise.noisy(LABELS, rows, TEN, "symmetric", 0.4, 1))


def test_asymmetric_noise_is_between_similar_classes():
    given = noise.noisy(LABELS, np.arange(50_000), TEN, "asymmetric", 0.3, 0)
    pairs = {(TEN[true], TEN[label]): n for (true, label), n in _counts(LABELS, given).items() if true != label}
    similar = [("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"), ("dog", "cat")]
    assert pairs == dict.fromkeys(similar, 1500)


def _counts(true, given):
    pairs, numbers = np.unique(np.stack([true, given], 1), axis=0, return_counts=True)
    return {tuple(pair): number for pair, number in zip(pairs.tolist(), numbers.tolist(), strict=True)}


def test_noise_is_of_the_training_labels_alone_and_both_are_known():
    plain, noisy = load(), load("data.label_noise=symmetric", "data.label_noise_rate=0.25")
    for split in ("val", "test"):
        assert (getattr(plain, split).labels == getattr(noisy, split).labels).all()
    matrix = noisy.label_matrix()
    assert matrix.sum() == len(plain.train) and matrix.trace() == len(plain.train) - round(0.25 * len(plain.train))
    assert (matrix.sum(1) == plain.train.counts(10)).all() and (matrix.sum(0) == noisy.train.counts(10)).all()
    assert "25.0 % of the training images have other labels" in noisy.note
    assert plain.label_matrix() is None and plain.note is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.fold=1"], "data.fold: 1 needs data.folds"),
        (
            ["data.folds=5", "data.fold=5"],
            r"data.fold: 5 is out of range; it must be at most 4, and 'data.fold=range\(5\)' sweeps all",
        ),
        (["data.folds=5", "data.validation=test"], "data.folds: 5 does not work with data.validation=test"),
        (["data.folds=1"], "data.folds: 1 is out of range"),
        (["data.imbalance=linear"], "data.imbalance: 'linear' is not one of none, exponential, step"),
        (["data.imbalance=step", "data.imbalance_factor=0.1"], "data.imbalance_factor: 0.1 is out of range"),
        (["data.label_noise=symmetric", "data.label_noise_rate=1"], "data.label_noise_rate: 1.0 is out of range"),
        (["data.sampling=weighted"], "data.sampling: 'weighted' is not one of"),
    ],
)
def test_wrong_settings_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config.parse([*SMALL, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.folds=100"], "data.folds: 100 is more than the .* training images of class"),
        (["data.imbalance=step", "data.imbalance_factor=1000"], "data.imbalance_factor: 1000 leaves no image of class"),
        (["data.label_noise=asymmetric"], "data.label_noise: asymmetric changes truck to automobile"),
    ],
)
def test_settings_that_the_data_does_not_allow_are_refused(overrides, message):
    with pytest.raises(DataError, match=message):
        load(*overrides)


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Return a function that loads a small CIFAR-10 with a labels file of this content, and the file's path."""
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))
    folder = lay_out(tmp_path / "data", "cifar10", 0, archive=False)
    path = tmp_path / "labels.npy"

    def load_with(content, *overrides):
        if content is not None:
            np.save(path, content, allow_pickle=True)
        overrides = [f"data.dir={folder}", f"data.labels_file={path}", *overrides]
        return datasets.load(config.parse(["data.val_fraction=0", *overrides]).data)

    return load_with, path


def test_the_labels_may_be_in_the_home_directory(labelled, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, given = own_labels(labelled)
    assert (labelled[0](given, "data.labels_file='~/labels.npy'").train.labels == given).all()


def own_labels(labelled):
    labels = np.array(labelled[0](None, "data.labels_file=null").train.labels)
    return labels, (labels + (np.arange(len(labels)) % 4 == 0)) % 10


def test_a_file_gives_the_labels_of_the_training_images(labelled):
    labels, given = own_labels(labelled)
    several = {"clean_label": labels, "worse_label": given, "aggre_label": labels}  # as in CIFAR-10N
    for content, overrides in (
        (given, []),
        (given.astype(np.uint8), []),
        (several, ["data.labels_key=worse_label"]),
    ):
        data = labelled[0](content, *overrides)
        assert (data.train.labels == given).all() and (data.true_labels == labels).all()
        assert data.note.endswith("25.0 % of the training images have other labels than the data set's")
        assert not np.array_equal(data.test.labels, given)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (lambda own, new: new[:-1], [], r"labels_file: .* has int64 \[\d+\]; it must hold"),
        (lambda own, new: new + 1, [], "labels_file: .* must hold a whole number from 0 to 9 for each"),
        (lambda own, new: new / 2, [], "labels_file: .* must hold a whole number from 0 to 9 for each"),
        (lambda own, new: {"worse_label": new}, [], "labels_key: null is not one of worse_label"),
        (
            lambda own, new: {"worse_label": new},
            ["data.labels_key=worst"],
            "labels_key: 'worst' is not one of worse_label",
        ),
        (lambda own, new: new, ["data.labels_key=worst"], "labels_key: .* holds one array"),
        (
            lambda own, new: {"clean_label": np.roll(own, 1), "noisy": new},
            ["data.labels_key=noisy"],
            "labels_file: clean_label of .* differs from the labels of the data",
        ),
        (lambda own, new: None, [], "labels_file: .*labels.npy cannot be read .*No such file"),
        (lambda own, new: b"no array", [], "labels_file: .*labels.npy cannot be read as a .npy file of labels"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(labelled, content, overrides, message):
    content = content(*own_labels(labelled))
    if isinstance(content, bytes):
        labelled[1].write_bytes(content)
        content = None
    with pytest.raises(DataError, match=f"data.{message}"):
        labelled[0](content, *overrides)


def test_a_labels_file_runs_no_code(labelled, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    np.save(labelled[1], np.array({"worse_label": Hostile()}), allow_pickle=True)
    with pytest.raises(DataError, match="it would load posix.system"):
        labelled[0](None, "data.labels_key=worse_label")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labels_key=a"], "data.labels_key: 'a' needs data.labels_file"),
        (["data.labels_file=a.npy", "data.label_noise=symmetric"], "does not work with data.label_noise"),
        (["data.labels_file=a.npy", "data.classes=[cat,dog]"], "does not work with data.classes"),
    ],
)
def test_settings_that_exclude_a_labels_file_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(overrides)


def test_a_run_continues_with_the_labels_that_it_began_with(labelled, tmp_path):
    labels, given = own_labels(labelled)
    labelled[0](given)
    overrides = [f"data.dir={tmp_path / 'data'}", f"data.labels_file={labelled[1]}", "training.epochs=2"]
    small = ["backbone.filters=[4]", "model.hidden=[4]", "tensorboard.enabled=false", "data.val_fraction=0.2"]
    report = run(config.parse([*overrides, *small]), tmp_path / "run")
    assert np.trace(report["data"]["label_matrix"]) < np.sum(report["data"]["label_matrix"])
    labelled[0](labels)
    with pytest.raises(ConfigError, match="data.labels_file: this run started with other labels"):
        run(config.parse([*overrides, *small, "training.epochs=3"]), tmp_path / "run")


LOSSES = sorted(path.stem for path in (Path(config.__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
IMBALANCES = ("none", "exponential", "step")
SAMPLINGS = ("balanced", "sqrt", "uniform")
NOISES = ("symmetric", "none")


# Each option of each key with another partner; all combinations would be 189.
@pytest.mark.parametrize("number", range(len(LOSSES)))
def test_a_continued_run_is_the_same_with_every_option(tmp_path, number):
    overrides = [
        *SMALL, f"loss={LOSSES[number]}", f"data.imbalance={IMBALANCES[number % 3]}", "data.imbalance_factor=5",
        f"data.sampling={SAMPLINGS[(number + number // 3) % 3]}", f"data.label_noise={NOISES[number % 2]}",
        "data.folds=4", "backbone.filters=[4]", "model.hidden=[4]", "training.batch_size=64", "optimizer.learning_rate=0.01",
        "tensorboard.enabled=false",
    ]  # fmt: skip
    if LOSSES[number] in ("focal", "mean_squared_error"):
        overrides.append("loss.class_weights=effective_number")
    settings = config.parse([*overrides, "training.epochs=2", KEEPS_BOTH])
    whole = run(settings, tmp_path / "whole")
    continued = run(settings, interrupted(tmp_path / "whole", tmp_path / "part"))
    assert continued["weights_sha256"] == whole["weights_sha256"] and np.isfinite(whole["train"]["loss"])
    assert continued["val"] == whole["val"] and continued["data"] == whole["data"]
    rows = [history.read_history(tmp_path / name / "history.csv") for name in ("whole", "part")]
    losses = [[row["loss"] for row in each] for each in rows]
    assert losses[0] == losses[1]
