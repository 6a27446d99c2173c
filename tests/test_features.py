"""Features of a frozen backbone: equal to computed ones, cached, rebuilt when damaged."""

import json
import re
import shutil

import forked
import numpy as np
import pytest
import small_networks
from PIL import Image
from small_networks import small_mobilenet  # noqa: F401

from cifar_research import config
from cifar_research.data import cache
from cifar_research.models import conversion
from cifar_research.runs import checkpoint, report

# SGD, because Adam makes whole steps of the rounding errors that are all the gradient of a bias before batch
# normalisation, and a batch of another size is rounded otherwise.
FROZEN = [
    "data=synthetic", "data.train_images=300", "data.test_images=60", "backbone.filters=[8,8]",
    "backbone.batch_norm=true", "model=wide", "model.hidden=[16]", "training=feature_extraction", "training.epochs=3",
    "training.batch_size=32", "optimizer=sgd", "optimizer.learning_rate=0.003",
    "loss=categorical_crossentropy", "tensorboard.enabled=false",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, weights_for):
    """A function that runs a command with this test's cache, and returns the folder."""
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))
    weights = weights_for(*FROZEN)

    def run(name, *more, given=FROZEN, hook=None):
        own = [] if "backbone.weights" in str(given) else [weights]
        done = forked.run([*given, *own, *more, f"hydra.run.dir={tmp_path / name}"], hook=hook)
        assert done.returncode == 0, done.stdout + done.stderr
        run.output = done.stdout + done.stderr
        return tmp_path / name

    run.cache = tmp_path / "cache"
    return run


def kept(tmp_path):
    return sorted(path.parent for path in (tmp_path / "cache").glob("features-*/meta.json"))


def losses(folder):
    return [[row[name] for name in ("loss", "val_loss")] for row in report.read_history(folder / "history.csv")]


def weights(folder):
    arrays = checkpoint.read(sorted((folder / "checkpoints").glob("step-*.ckpt"))[-1]).arrays
    return {name: value for name, value in arrays.items() if "block" in name and name.startswith("model/")}


def test_validation_images_of_their_own_have_features_of_their_own(run, tmp_path):
    for part, shade in (("train", 0), ("val", 200), ("test", 100)):
        for number, name in enumerate("ab"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (shade, 9 * i, 50 * number)).save(tmp_path / "d" / part / name / f"{i}.png")
    given = [word for word in FROZEN if not word.startswith("data")]
    run("val", "data=images", f"data.dir={tmp_path / 'd'}", given=given)
    first, second = (np.load(folder / "features.npy") for folder in kept(tmp_path))  # of the same rows and labels
    assert first.shape == second.shape and abs(first - second).max() > 0


def test_kept_features_give_the_losses_of_computed_ones(run, tmp_path, weights_for):
    first, second = run("kept"), run("computed", "features.views=0")
    np.testing.assert_allclose(losses(first), losses(second), atol=1e-5)
    # Training and validation; the run that computes keeps none, and other weights share none.
    assert len(kept(tmp_path)) == 2
    before = weights(run("again", "training.epochs=1"))
    assert len(kept(tmp_path)) == 2
    assert all((before[name] == value).all() for name, value in weights(first).items())
    run("other", weights_for(*FROZEN, "backbone.initialization=dirac"))
    assert len(kept(tmp_path)) == 4
    run("precise", "training.precision=bfloat16")
    assert len(kept(tmp_path)) == 6


@pytest.mark.usefixtures("small_mobilenet")
def test_features_below_the_upper_blocks_give_the_losses_of_computed_ones(run, tmp_path):
    overrides = [
        "experiment=transfer",
        "backbone.image_size=32",
        "backbone=mobilenet_v2",
        "backbone.options.alpha=0.35",
    ]
    made = config.parse([*overrides, "training=scratch", "backbone.weights=none"]).backbone.build((32, 32, 3))
    conversion.network_of(made).save_weights(tmp_path / "a.weights.h5")
    overrides += [*FROZEN[:3], *FROZEN[9:12], "training=combined", "training.phases.backbone.learning_rate=0.001",
              "training.epochs=2", "tensorboard.enabled=false", f"backbone.weights={tmp_path / 'a.weights.h5'}"]  # fmt: skip
    hook = small_networks.install
    runs = [run(name, f"features.views={name}", given=overrides, hook=hook) for name in "10"]
    np.testing.assert_allclose(*map(losses, runs), rtol=1e-4)
    # Training and validation images: pooled features for the head, then maps below the upper blocks.
    assert sorted(np.load(folder / "features.npy").ndim for folder in kept(tmp_path)) == [2, 2, 4, 4]
    arrays = checkpoint.read(sorted((runs[0] / "checkpoints").glob("step-*.ckpt"))[-1]).arrays
    before = {weight.path: weight.numpy() for weight in made.weights}
    for layer, changes in (("block_12_expand", False), ("Conv_1", True)):
        assert (arrays[f"model/{layer}/kernel"] != before[f"{layer}/kernel"]).any() == changes


def test_another_seed_shares_the_features_of_the_same_weights(run, tmp_path):
    first = run("pretrained", "training=scratch")
    run("one", f"backbone.weights={first}", "backbone.filters=[8,8]")
    run("two", f"backbone.weights={first}", "seed=5")
    assert len(kept(tmp_path)) == 2


def test_views_are_augmented_and_taken_in_turn(run, tmp_path):
    folder = run("views", "augmentation=flip", "features.views=2", "seed=0")
    targets = [np.load(path / "targets.npy") for path in kept(tmp_path)]
    assert sorted(map(len, targets)) == [30, 540]
    (features,) = [np.load(path / "features.npy") for path in kept(tmp_path) if len(np.load(path / "targets.npy")) > 30]
    assert 0.2 < (features[:270] != features[270:]).any(1).mean() < 0.8  # half are flipped in one and not in the other
    assert len(losses(folder)) == 3
    mixed = run("mixed", "augmentation=mixup", "features.views=1")
    soft = max((np.load(path / "targets.npy") for path in kept(tmp_path)), key=lambda one: (one.max(1) < 1).sum())
    assert (soft.max(1) < 1).mean() > 0.5
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    assert len(losses(mixed)) == 3


def test_damaged_features_are_rebuilt_with_a_warning(run, tmp_path):
    expected = losses(run("first"))
    for folder in kept(tmp_path):
        content = bytearray((folder / "features.npy").read_bytes())
        content[-3] ^= 1
        (folder / "features.npy").write_bytes(content)
    assert losses(run("second")) == expected
    assert run.output.count("the cache is damaged") == 2 and "written again" in run.output


def test_the_command_clears_them(run, tmp_path):
    run("first")
    module = "cifar_research.cache"
    done = forked.run([], module=module)
    assert re.search(r" MB  features, 2 folders\n.* MB  synthetic, 1 folder\n.* MB  in all, in ", done.stdout)
    done = forked.run(["--all"], module=module)
    assert done.stdout.count("features-") == 2 and done.stdout.count("synthetic-") == 1
    done = forked.run(["--clear", "features"], module=module)
    assert done.stdout.count("deleted") == 2
    assert not kept(tmp_path) and len(list((tmp_path / "cache").glob("synthetic-*/meta.json"))) == 1
    done = forked.run(["--dir", tmp_path / "no"], module=module)
    assert done.returncode == 0 and "Nothing is cached" in done.stdout


def test_what_a_killed_process_left_is_swept_up(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        np.save(folder / "a.npy", np.arange(3))
        return {}

    cache.load_arrays(tmp_path, "features", [1], make)
    (target,) = tmp_path.glob("features-*/")
    left = tmp_path / f".{target.name}.left"
    left.mkdir()
    (left / "a.npy").touch()
    (target / "a.npy").unlink()
    arrays, _ = cache.load_arrays(tmp_path, "features", [1], make)
    assert not left.exists() and len(made) == 2 and list(arrays["a"]) == [0, 1, 2]


def scores(folder):
    result = json.loads((folder / "report.json").read_text())
    return [{name: result[split][name] for name in ("loss", "accuracy", "macro_f1")} for split in ("val", "test")]


def test_other_pooling_and_other_images_have_features_of_their_own(run, tmp_path):
    overrides = ["data.test_images=300", "data.val_fraction=0", "data.validation=test", "model=linear"]
    average, maximum = run("avg", *overrides), run("max", *overrides, "model.pooling=max")
    assert losses(average) != losses(maximum)
    # Three hundred images of each split, of the same classes: the features of one must not stand in for the other's.
    assert scores(average)[0] == pytest.approx(scores(average)[1], rel=1e-6)
    assert len(kept(tmp_path)) == 4


def test_averages_begin_with_the_weights_that_were_loaded(run):
    source = run("source", "training=scratch")
    overrides = [f"backbone.weights={source}", "data.validation=test", "data.val_fraction=0", "training.ema_decay=0.9"]
    val, test = scores(run("frozen", *overrides, "training.epochs=1"))
    assert val == pytest.approx(test, rel=1e-6)


def test_views_do_not_depend_on_the_batches_of_evaluation(run):
    overrides = ["augmentation=slides", "features.views=1", "training.epochs=1"]
    first = losses(run("first", *overrides))
    for folder in list(run.cache.glob("features-*/")):
        shutil.rmtree(folder)
    assert losses(run("second", *overrides, "training.eval_batch_size=20"))[0][0] == pytest.approx(
        first[0][0], abs=1e-6
    )
