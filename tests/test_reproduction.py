"""Repeating a run from its report: identical, within noise, or different."""

import forked
import numpy as np
import pytest
from PIL import Image

from cifar_research import config
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.runs import report, reproduction
from cifar_research.sweeps import plan as planning

SMALL = [
    "data=synthetic", "data.train_images=200", "data.test_images=50", "backbone.filters=[4]", "model.hidden=[4]",
    "augmentation=[shift,flip]", "training=combined", "training.phases.backbone.trainable={last:1}", "seed=5",
    "training.epochs=1", "training.batch_size=50", "schedule=cosine", "tensorboard.enabled=false",
]  # fmt: skip


def command(*arguments, cwd=None):
    return forked.run(arguments, cwd=cwd)


@pytest.fixture(scope="module")
def original(tmp_path_factory, weights_for):
    folder = tmp_path_factory.mktemp("original") / "run"
    done = command(*SMALL, weights_for(*SMALL), f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_it_comes_out_identical(original, tmp_path):
    actual = report.read_report(original / "report.json")
    (tmp_path / "theirs").mkdir()
    there = actual | {"versions": actual["versions"] | {"numpy": "1.0"}, "git": None}
    report.write_report(tmp_path / "theirs" / "report.json", there)  # all that is needed
    done = command("--from-run", tmp_path / "theirs", "--verify", f"hydra.run.dir={tmp_path / 'again'}")
    assert done.returncode == reproduction.IDENTICAL, done.stdout + done.stderr
    assert "Identical: losses, accuracies and all weights" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: numpy is ") and "was 1.0" in line
    again = report.read_report(tmp_path / "again" / "report.json")
    assert again["weights_sha256"] == actual["weights_sha256"] and again["config_hash"] == actual["config_hash"]
    # It can be gone on with like any other.
    assert "already ended" in command(f"resume={tmp_path / 'again'}").stdout


def test_another_seed_is_another_run(original, tmp_path):
    done = command(f"--from-run={original}", "seed=6", f"hydra.run.dir={tmp_path / 'run'}")
    actual = report.read_report(tmp_path / "run" / "report.json")
    assert done.returncode == 0 and actual["seed"] == 6
    assert actual["weights_sha256"] != report.read_report(original / "report.json")["weights_sha256"]


def result(accuracy, *, weights="a", images=10_000, status="completed", loss=1.0, fingerprint="x"):
    scores = {"loss": loss, "accuracy": accuracy}
    return {
        "status": status, "weights_sha256": weights, "train": scores, "val": scores, "test": scores,
        "data": {"sizes": {"test": images}, "fingerprint": fingerprint}, "hardware": {"cpu": "one", "device": "CPU"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("repeated", "code", "part"),
    [
        (result(0.8), reproduction.IDENTICAL, "Identical"),
        (result(0.8, weights="b"), reproduction.WITHIN_NOISE, "-0.0111 to 0.0111"),
        (result(0.5, weights="b", images=2), reproduction.WITHIN_NOISE, "2 test images are too few to say more"),
        (result(0.8, loss=1.1), reproduction.WITHIN_NOISE, "Within noise"),
        (result(0.8109, weights="b"), reproduction.WITHIN_NOISE, "-0.0001 to 0.0219"),
        (result(0.812, weights="b"), reproduction.DIFFERENT, "Not reproduced: test accuracy 0.8120"),
        (result(0.788, weights="b"), reproduction.DIFFERENT, "Not reproduced"),
        (result(0.788, weights="b", images=100), reproduction.WITHIN_NOISE, "Within noise"),
        (result(0.8, weights="b", fingerprint="y"), reproduction.WITHIN_NOISE, "The images differ."),
        (result(0.8, status="diverged"), reproduction.DIFFERENT, "ended as diverged"),
    ],
)
def test_verdicts(tmp_path, repeated, code, part):
    actual, sentence = reproduction.Original(tmp_path, result(0.8), True).verdict(repeated)
    assert actual == code and part in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=transfer"],
        ["experiment=fast"],
        ["experiment=augmented", "name='it\\'s a name'", "augmentation.rotation.degrees=7"],
        ["data=images", "data.dir=/", "augmentation=strong", "training.ema_decay=0.99"],
        ["data=synthetic", "training.phases.scratch.epochs=3", "data.classes=[circle,ring]", "optimizer=lion"],
        ["~training.phases.scratch", "++training.phases={small:{epochs:1},scratch:{}}", "model.pooling=avg"],
        ["training=combined", "training.phases.head.trainable={last:1}", "features.views=3"],
    ],
)
def test_the_words_compose_the_config(arguments):
    made = config.parse(arguments).content
    again = config.parse(reproduction._overrides(made)).content
    assert again == made and list(again["augmentation"]) == list(made["augmentation"])
    assert list(again["training"]["phases"]) == list(made["training"]["phases"])


@pytest.mark.parametrize(
    ("overrides", "targets"),
    [
        (
            ["optimizer=adamw", "optimizer.weight_decay=0.1"],
            {"optimizer": {"weight_decay": 0.1, "learning_rate": 0.001}},
        ),
        (
            ["augmentation=cutout"],
            {"augmentation": {"cutout": {"_target_": "cifar_research.augmentation.cutout"}}},
        ),
        (
            ["training=fine_tuning"],
            {"training": {"epochs": 10, "batch_size": 50, "phases": {"backbone": {"epochs": None}}}},
        ),
        (["data=images", "data.dir=/"], {"data": {"name": "images", "dir": "/"}}),
        (["backbone=airbench", "seed=6", "training=scratch"], {"backbone": {"filters": [64, 256, 256]}, "seed": 6}),
    ],
)
def test_another_option_replaces_the_runs(original, overrides, targets):
    def check(actual, expected):
        for key, value in expected.items():
            check(actual[key], value) if isinstance(value, dict) else None
            assert isinstance(value, dict) or actual[key] == value, key

    arguments, _ = reproduction.parse_arguments(["--from-run", str(original), *overrides])
    actual = config.parse(arguments).content
    check(actual, targets)
    made = report.read_report(original / "report.json")["config"]
    groups = {word.partition("=")[0].partition(".")[0] for word in overrides}
    assert {key: value for key, value in actual.items() if key not in groups} == {
        key: value for key, value in made.items() if key not in groups
    }
    assert list(actual["augmentation"]) == list(targets.get("augmentation", made["augmentation"]))


def test_a_sweep_of_options_has_a_job_for_each(original):
    arguments, _ = reproduction.parse_arguments(
        ["--from-run", str(original), "-m", "optimizer=adam,sgd", "loss=categorical_crossentropy"]
    )
    jobs = planning.Plan.of(parse_sweep(arguments)).grid()
    assert [job.config["optimizer"]["_target_"].rpartition(".")[2] for job in jobs] == ["adam", "sgd"]
    assert {job.config["loss"]["_target_"].rpartition(".")[2] for job in jobs} == {"categorical_crossentropy"}


def test_a_sweep_of_seeds_has_its_seeds(original):
    arguments, _ = reproduction.parse_arguments(["--from-run", str(original), "sweep=seeds"])
    jobs = planning.Plan.of(parse_sweep(arguments)).grid()
    assert [job.config["seed"] for job in jobs] == [0, 1, 2, 3, 4]
    assert {job.config["training"]["batch_size"] for job in jobs} == {50}


def test_images_may_lie_elsewhere_to_be_verified(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "here" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / "here" / name / f"{number}.png"
            )
    arguments = [
        *SMALL[3:5],
        "training.epochs=1",
        "training.batch_size=8",
        "data=images",
        f"data.dir={tmp_path / 'here'}",
    ]
    done = command(*arguments, "tensorboard.enabled=false", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "here").rename(tmp_path / "there")
    moved = f"data.dir={tmp_path / 'there'}"
    done = command("--from-run", tmp_path / "run", "--verify", moved, f"hydra.run.dir={tmp_path / 'again'}")
    assert done.returncode == reproduction.IDENTICAL, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--from-run"], "give the folder"),
        (["--from-run", "nowhere"], "nowhere has no report.json"),
        (["--verify", "seed=1"], "add --from-run"),
        (["--from-run", "{original}", "--verify", "seed=1"], "seed: this run has 5, the command says 1"),
        (["--from-run", "{original}", "hydra.run.dir={original}"], "is the run to repeat"),
        (["--from-run", "{original}", "--verify", "-m", "seed=1,2"], "this is a sweep"),
        (["--from-run", "{original}", "seed=x"], "seed"),
        (["--from-run", "{original}", "--verify", "schedule=step_decay"], "these overrides change the config"),
        (["--from-run", "{original}", "--verify", "~augmentation"], "augmentation"),
        (
            ["--from-run", "{original}", "model={{dropout:0.1}}"],
            "model={dropout:0.1} sets keys of a group; give them one by one",
        ),
        (["--from-run", "{original}", "experiment=wide"], "would replace everything that is repeated"),
        (["--from-run", "{original}", "sweep=hyperparameters"], "would replace everything that is repeated"),
    ],
)
def test_what_cannot_be_repeated_is_refused(original, tmp_path, arguments, part):
    before = sorted(path.stat().st_mtime_ns for path in original.rglob("*"))
    done = command(*[word.format(original=original) for word in arguments], cwd=tmp_path)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(path.stat().st_mtime_ns for path in original.rglob("*")) == before


def test_a_report_cannot_allow_its_own_code(original, tmp_path):
    actual = report.read_report(original / "report.json")
    made = actual["config"] | {"allow_targets": ["os"], "schedule": {"_target_": "os.system", "command": "touch ran"}}
    report.write_report(tmp_path / "report.json", actual | {"config": made})
    done = command("--from-run", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "allow_targets=[os]" in done.stderr and not (tmp_path / "ran").exists()
    report.write_report(tmp_path / "report.json", actual | {"config": {"augmentation": {}, "data": 3, "training": {}}})
    done = command("--from-run", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "is not a run's" in done.stderr and "Traceback" not in done.stderr
