"""From the command line to the report: files and output of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest

from cifar_research import config
from cifar_research.data import datasets
from cifar_research.display import console, header
from cifar_research.runs import checkout, report
from cifar_research.runtime import environment as environments
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import setup
from cifar_research.training.run import _next_commands
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=300", "data.test_images=100", "backbone.filters=[8]", "model.hidden=[16]",
    "training.epochs=2", "training.batch_size=64", "loss=categorical_crossentropy", "optimizer.learning_rate=0.001",
]  # fmt: skip


def run(folder, *overrides):
    settings = config.parse([*SMALL, "tensorboard.enabled=false", *overrides])
    return train_run(settings, folder, console.Display(quiet=True))


def start(*arguments, **changes):
    """Run the command in a new Python process; forked.run is much faster."""
    command = [sys.executable, "-m", "cifar_research.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return (folder, what the command showed) of a run begun on the command line."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = start(*SMALL, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_folder_is_as_promised(finished):
    folder, _ = finished
    expected = {
        ".hydra", "train.log", "history.csv", "report.json", "figures", "checkpoints", "tensorboard",
        "model.weights.h5", "model.txt",
    }  # fmt: skip
    left = {path.name for path in folder.iterdir()}
    assert expected <= left and left <= expected | {".lock", "changes.patch"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "confusion.png"}
    assert not [path for path in folder.rglob(".*") if path.name not in (".hydra", ".lock")]


def test_report_holds_what_the_contract_names(finished):
    result = json.loads((finished[0] / "report.json").read_text())
    assert result["status"] == "completed"
    assert result["config_hash"] == config.parse(SMALL).identity.hash
    assert result["data"]["sizes"] == {"train": 270, "val": 30, "test": 100} and result["data"]["fingerprint"]
    assert result["parameters"]["total"] == result["parameters"]["trainable"] > 0
    assert set(result["seconds"]) == {"import", "data", "first_step", "train", "evaluate", "total"}
    assert all(seconds > 0 for seconds in result["seconds"].values())
    for split in ("train", "val", "test"):
        assert 0 <= result[split]["accuracy"] <= 1 and result[split]["loss"] > 0
    assert (result["epochs"], result["steps"]) == (2, 10) and 1 <= result["best_epoch"] <= 2
    assert result["images_per_second"] > 0 and result["peak_memory_bytes"] > 1e8
    assert result["options"]["augmentation"] == "none" and result["options"]["model"] == "first_version"
    assert result["versions"]["tensorflow"] and result["hardware"]["cores"]
    assert result["git"] is None or len(result["git"]["commit"]) == 40
    last = (finished[0] / "model.txt").read_text().splitlines()[-1].split()
    assert last == ["total", f"{result['parameters']['total']:,}", f"{result['forward_flops']:,}"]


def test_the_log_holds_the_output_and_the_end_offers_to_evaluate_the_run(finished):
    folder, done = finished
    log = [
        line.partition("cifar_research.display.console: ")[2]
        for line in (folder / "train.log").read_text().splitlines()
    ]
    assert [line for line in log if line] == [line for line in done.stdout.splitlines() if line]
    program = "scripts/evaluate" if (Path(config.config_dir()).parent / "scripts").is_dir() else "cifar-evaluate"
    assert [line for line in log if line.startswith("Next: ")][0] == f"Next: {program} {folder}"


def test_the_code_of_each_process_is_kept_and_what_is_not_is_reported(tmp_path, monkeypatch, capsys):
    shown, results = [], []
    for epochs, patch, problem in ((1, b"one", None), (2, b"two", None), (3, None, "too large")):
        code = checkout.Checkout("c", patch, problem)
        monkeypatch.setattr(checkout, "read", lambda folder, code=code: code)
        settings = config.parse([*SMALL, "tensorboard.enabled=false", f"training.epochs={epochs}"])
        results.append(train_run(settings, tmp_path / "run", console.Display())["git"])
        shown.append([line for line in capsys.readouterr().out.splitlines() if ".patch" in line])
    changed = "The uncommitted changes of the code are no longer those in changes.patch."
    expected = [[], [changed], ["changes.patch is not written: too large."]]
    assert [[" ".join(lines)] if lines else [] for lines in shown] == expected
    assert [git["changes"] for git in results] == ["changes.patch", "changes_2.patch", None]
    assert [(tmp_path / "run" / git["changes"]).read_bytes() for git in results[:2]] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("status", "overrides", "expected"),
    [
        ("completed", [], ["evaluate runs/a", "tensorboard runs", "train --help"]),
        ("completed", ["tensorboard.enabled=false"], ["evaluate runs/a", "train --help"]),
        (
            "completed",
            ["allow_targets=[x,y]"],
            ["evaluate runs/a 'allow_targets=[x,y]'", "tensorboard runs", "train --help"],
        ),
        ("stopped", ["allow_targets=[x]"], ["train 'allow_targets=[x]' resume=runs/a"]),
        ("diverged", ["tensorboard.enabled=false"], ["train --help"]),
    ],
)
def test_the_commands_that_a_run_names_next_work_as_they_are(status, overrides, expected):
    settings = config.parse([*SMALL, *overrides])
    content = {"status": status, "config": settings.content}
    commands = _next_commands(content, Path("runs/a"))
    assert [command.removeprefix("scripts/") for command in commands] == expected


def test_history_agrees_with_the_report(finished):
    rows = report.read_history(finished[0] / "history.csv")
    result = json.loads((finished[0] / "report.json").read_text())
    best = rows[result["best_epoch"] - 1]
    assert [row["step"] for row in rows] == [5, 10]
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in rows) == result["val"]["accuracy"]
    assert best["loss"] == result["train"]["loss"]


def test_terminal_shows_the_story_and_no_noise(finished):
    folder, done = finished
    assert done.stderr == ""
    for part in ("synthetic: 270 train, 30 validation, 100 test", "Parameters", "test", "95 %", str(folder)):
        assert part in done.stdout
    assert "Next: scripts/tensorboard" in done.stdout and "\x1b" not in done.stdout


def test_the_header_shows_which_phases_have_the_optimizers_rate(tmp_path, weights_for):
    environment = environments.prepare(config.parse().training, 0)

    def rows(*overrides):
        settings = config.parse([*SMALL, *overrides])
        data = datasets.load(settings.data)
        parameters = setup.build(settings, data).model.count_params()
        return header.rows(settings, parameters, data, environment, tmp_path, 0)

    weights, rate = weights_for(*SMALL), "optimizer.learning_rate=0.002"
    expected = "learning rate 0.002 of head, 0.0001 of backbone, constant"
    assert expected in rows(weights, rate, "training=combined")["Optimizer"]
    assert "learning rate 0.0001, constant" in rows(weights, rate, "training=fine_tuning")["Optimizer"]
    # And which other settings have no effect.
    combined = ["training=combined", weights]
    for overrides, part in (
        (["features.views=3"], "features.views is not used: no phase freezes layers"),
        (["features.views=3", *combined], "views of each image kept: 1"),
        (["features.views=3", *combined, "augmentation=flip"], "views of each image kept: 3"),
        (["training.precision=float16"], "float16, which CPUs compute many times slower"),
    ):
        assert part in " ".join(rows(*overrides).values())


def test_weights_that_are_left_are_those_that_were_tested(finished):
    folder, _ = finished
    settings = config.parse(SMALL)
    data = datasets.load(settings.data)
    task = setup.build(settings, data)
    task.model.load_weights(folder / "model.weights.h5")
    images = data.test.images[data.test.indices].astype(np.float32) / 255
    accuracy = (task.model(images).numpy().argmax(1) == data.test.labels[data.test.indices]).mean()
    assert accuracy == json.loads((folder / "report.json").read_text())["test"]["accuracy"]


def test_early_stopping_ends_after_patience_without_a_better_epoch(tmp_path):
    # A tiny learning rate: the first epoch stays the best by accuracy.
    more = ["training.epochs=50", "training.patience=3", "optimizer=sgd", "optimizer.learning_rate=1e-12"]
    result = run(tmp_path, *more)
    assert result["status"] == "completed" and result["best_epoch"] == 1 and result["epochs"] == 4


def test_without_validation_the_last_epoch_is_tested(tmp_path):
    result = run(tmp_path, "data.val_fraction=0")
    assert result["val"] is None and result["best_epoch"] == 2 and result["test"] is not None


def test_validation_on_the_test_set_is_reported(tmp_path):
    result = run(tmp_path, "data.validation=test")
    assert "validated on the test set" in result["data"]["note"]
    assert result["data"]["sizes"] == {"train": 300, "val": 100, "test": 100}
    assert result["val"] == pytest.approx(result["test"])


def test_profile_and_histograms_by_option(finished, tmp_path):
    options = ["tensorboard.profile_start_step=2", "tensorboard.profile_num_steps=3", "tensorboard.histograms=true"]
    run(tmp_path, "tensorboard.enabled=true", *options)
    folders = {"with": tmp_path, "without": finished[0]}
    assert list(tmp_path.rglob("*.xplane.pb")) and not list(finished[0].rglob("*.xplane.pb"))
    tags = {name: _tags(folder / "tensorboard") for name, folder in folders.items()}
    histograms = {tag for tag in tags["with"] if tag.startswith("histograms") or "kernel" in tag}
    assert histograms and not histograms & tags["without"]
    expected = {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/loss", "test/accuracy", "learning_rate",
        "images_per_second", "augmented", "confusion", "misclassified", "config",
    }  # fmt: skip
    assert expected - tags["without"] == set()


def _tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["tensors"])


def test_lower_precision_learns_and_keeps_float32_weights(tmp_path):
    more = ["training.epochs=3", "data.train_images=500"]
    losses = {
        precision: run(tmp_path / precision, *more, f"training.precision={precision}")["train"]["loss"]
        for precision in ("float32", "bfloat16", "float16")
    }
    assert losses == pytest.approx(dict.fromkeys(losses, losses["float32"]), rel=0.1)


PHASES = [
    "training=combined", "training.epochs=2", "training.batch_size=64",
    "augmentation=flip", "features.views=2",
]  # fmt: skip
FAST = ["experiment=fast", "backbone.filters=[8,8]", "training.precision=float32"]
# Data on the device and all steps of a call as one program, as on a GPU.
PRETENDS_A_DEVICE = """
import dataclasses, sys
from cifar_research.train import command
from cifar_research.runtime import environment
prepare = environment.prepare
environment.prepare = lambda *of: dataclasses.replace(prepare(*of), prefetch_device="/CPU:0")
sys.exit(command(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("overrides", "tolerance", "compiled"),
    [
        ([*SMALL, "training.steps_per_call=3"], 1e-4, ["steps", "device"]),
        # XLA draws other random numbers, so this only shows that it compiles.
        (
            [*SMALL, "augmentation=[flip,mixup]", "backbone.dropout=0.2", "training.steps_per_call=1000"],
            2e-2,
            ["device"],
        ),
        # Kept features in two views, float16 with its scaled loss, averages of the weights.
        ([*SMALL[:5], *PHASES, "training.precision=float16", "training.ema_decay=0.5"], 2e-2, ["device"]),
        # Whitening, batch normalisation, Muon, whose iterations are in bfloat16 on AMX, and alternating flips.
        ([*FAST, *SMALL[:3], *SMALL[5:7]], 1e-2, ["device"]),
    ],
    ids=["study", "drawn", "phases", "fast"],
)
def test_xla_gives_the_same_losses(tmp_path, overrides, tolerance, compiled, weights_for):
    overrides = [*overrides, weights_for(*overrides)] if "training=combined" in overrides else overrides
    # Each in a new process, since TensorFlow cannot turn determinism off again, and XLA has none here.
    losses = {}
    for name in ["plain", *compiled]:
        code = PRETENDS_A_DEVICE if name == "device" else None
        more = [f"training.jit_compile={str(name != 'plain').lower()}", f"hydra.run.dir={tmp_path / name}"]
        more += ["tensorboard.enabled=false"]
        done = forked.run([*overrides, *more], code=code)
        assert done.returncode == 0, done.stderr
        losses[name] = [row["loss"] for row in report.read_history(tmp_path / name / "history.csv")]
    for name in compiled:
        np.testing.assert_allclose(losses[name], losses["plain"], rtol=tolerance)


STOPS = """
import os, signal
from cifar_research.training import loop
one_program = loop.one_program
def stopping(*of):
    call, calls = one_program(*of), []
    def stop(*arguments):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments)
    return stop
loop.one_program = stopping
"""


def test_a_run_on_a_device_goes_on_in_the_middle_of_an_epoch(tmp_path):
    overrides = [
        *SMALL,
        "training.jit_compile=true",
        "training.steps_per_call=2",
        "augmentation=flip",
    ]  # two full calls, and a rest
    whole = forked.run([*overrides, f"hydra.run.dir={tmp_path / 'whole'}"], code=PRETENDS_A_DEVICE)
    stopped = forked.run([*overrides, f"hydra.run.dir={tmp_path / 'run'}"], code=STOPS + PRETENDS_A_DEVICE)
    assert (whole.returncode, stopped.returncode) == (0, 143), whole.stderr + stopped.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 9
    resumed = forked.run([*overrides, f"hydra.run.dir={tmp_path / 'run'}"], code=PRETENDS_A_DEVICE)
    assert resumed.returncode == 0 and "Continuing from step 9" in resumed.stdout, resumed.stderr
    histories = [report.read_history(tmp_path / name / "history.csv") for name in ("whole", "run")]
    assert len(histories[0]) == 2
    for before, after in zip(*histories, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
        assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-6)


def test_a_run_after_another_on_one_replica_normalises_by_its_own_weights(tmp_path):
    overrides = ["backbone.batch_norm=true", "training.strategy=mirrored"]
    run(tmp_path / "first", *overrides)
    again = run(tmp_path / "second", *overrides, "seed=1", "optimizer.learning_rate=0.01")
    plain = run(tmp_path / "plain", *overrides[:1], "seed=1", "optimizer.learning_rate=0.01")
    assert again["train"]["loss"] == pytest.approx(plain["train"]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.precision=bfloat16", "training.strategy=mirrored", "backbone.batch_norm=true"],
        ["training.batch_size=1", "data.train_size=10"],
    ],
    ids=" ".join,
)
def test_a_last_batch_of_one_image_is_the_same_whatever_the_kernel_makes_of_it(overrides, tmp_path, request):
    overrides = [
        "training.epochs=1",
        "data.train_size=65",
        "model=wide",
        "model.hidden=[8]",
        "tensorboard.enabled=false",
        *overrides,
    ]
    first = run(tmp_path / "as it is", *overrides)
    request.getfixturevalue("like_cudnn")
    again = run(tmp_path / "like cuDNN", *overrides)
    assert again["status"] == "completed" and again["test"]["loss"] == first["test"]["loss"]
    assert again["train"]["loss"] == first["train"]["loss"] and np.isfinite(again["test"]["loss"])


NOT_COMPILED = [
    *SMALL,
    "loss._target_=odd.loss",
    "~loss.label_smoothing",
    "~loss.class_weights",
    "allow_targets=[odd]",
]


@pytest.fixture(scope="module")
def odd_loss(tmp_path_factory):
    """The folder of a module with this loss, which XLA cannot compile."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.py").write_text(
        "import tensorflow as tf\n"
        "def squared(logits, targets):\n"
        "    return tf.reduce_sum((logits - targets) ** 2, 1) + tf.random.stateless_gamma([], [1, 2], 1.0)\n"
        "def loss():\n"
        "    return squared\n"
    )
    return folder


@pytest.mark.parametrize("is_device", [False, True])
def test_what_xla_cannot_compile_is_reported_in_a_sentence(odd_loss, tmp_path, is_device):
    overrides = [*NOT_COMPILED, "training.jit_compile=true"]
    code = PRETENDS_A_DEVICE if is_device else None
    done = forked.run([*overrides, f"hydra.run.dir={tmp_path / 'run'}"], cwd=odd_loss, code=code)
    assert done.returncode == 2, done.stderr
    assert "training.jit_compile: XLA cannot compile a step of this run (StatelessRandomGamma" in done.stderr
    assert "training.jit_compile=false" in done.stderr and "Traceback" not in done.stderr


def trained_without_xla(odd_loss, folder, code):
    """Train with this loss; return the losses, and how often the run says that it continues without XLA."""
    overrides = [*NOT_COMPILED, "training.deterministic=false", "training.steps_per_call=3"]
    done = forked.run([*overrides, f"hydra.run.dir={folder}"], cwd=odd_loss, code=code)
    assert done.returncode == 0, done.stderr
    assert not report.read_report(folder / "report.json")["hardware"]["jit_compile"]
    losses = [row["loss"] for row in report.read_history(folder / "history.csv")]
    return losses, done.stdout.count("; this run continues without XLA.")


@pytest.fixture(scope="module")
def plain(odd_loss, tmp_path_factory):
    """The losses of a run with this loss that does not try XLA."""
    losses, count = trained_without_xla(odd_loss, tmp_path_factory.mktemp("plain") / "run", None)
    assert count == 0
    return losses


@pytest.mark.parametrize("is_device", [False, True])
def test_what_xla_cannot_compile_is_trained_without_it_if_xla_was_not_asked_for(odd_loss, plain, tmp_path, is_device):
    chosen = 'prefetch_device="/CPU:0", jit_compile=True' if is_device else "jit_compile=True"
    code = PRETENDS_A_DEVICE.replace('prefetch_device="/CPU:0"', chosen)
    losses, count = trained_without_xla(odd_loss, tmp_path / "xla", code)
    assert count == 1
    assert losses == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["training.jit_compile=false"], False),
        (["training.deterministic=true"], False),
        (["training.strategy=mirrored"], False),
    ],
    ids=["nothing", "false", "deterministic", "mirrored"],
)
def test_xla_is_used_on_a_gpu_unless_something_forbids_it(overrides, expected, monkeypatch):
    training = config.parse(overrides).training
    monkeypatch.setattr(environments, "is_deterministic", lambda: False)
    import tensorflow as tf

    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    assert not environments.prepare(training, 0).jit_compile
    gpu = tf.config.list_physical_devices("CPU")[0]  # stands for one
    monkeypatch.setattr(environments, "import_tensorflow", lambda: [gpu])
    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", lambda gpu: True)
    assert environments.prepare(training, 0).jit_compile == expected
    if expected:  # after a deterministic run
        monkeypatch.setattr(environments, "is_deterministic", lambda: True)
        assert not environments.prepare(training, 0).jit_compile
        monkeypatch.setattr(environments, "raises_if_stale", True)
        with pytest.raises(environments.StaleProcess):
            environments.prepare(training, 0)


def test_a_run_opens_one_gpu_and_mirrored_needs_all(monkeypatch):
    import tensorflow as tf

    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(2)]
    opened = []
    monkeypatch.setattr(environments, "import_tensorflow", lambda: gpus)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus[:1])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: opened.append((devices, kind)))
    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", lambda gpu: True)
    overrides = ["training.jit_compile=false", "training.deterministic=false"]
    assert environments.prepare(config.parse(overrides).training, 0).device == "GPU:0"
    assert opened == [(gpus[:1], "GPU")]
    with pytest.raises(ConfigError, match="training.strategy: mirrored cannot use all GPUs"):
        environments.prepare(config.parse([*overrides, "training.strategy=mirrored"]).training, 0)
    assert len(opened) == 1


@pytest.mark.draws
def test_history_is_written_without_tensorboard_and_class_names_may_hold_anything(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("$\\foo$", "猫"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (16, 16), (i, 9, 9)).save(tmp_path / "pets" / part / name / f"{i}.png")
    (tmp_path / "pets" / "train" / "猫" / "drawn.svg").touch()
    (tmp_path / "pets" / "test" / "猫" / "bad.png").write_text("rubbish")
    overrides = ["data=images", f"data.dir={tmp_path / 'pets'}", "data.image_size=16", *SMALL[3:]]
    done = forked.run([*overrides, "tensorboard.enabled=false", f"hydra.run.dir={tmp_path / 'run'}"])
    assert done.returncode == 0 and done.stderr == ""
    assert "40 images used; left out: 1 .svg (no reader), 1 damaged\n" in done.stdout
    assert report.read_report(tmp_path / "run" / "report.json")["data"]["left_out"] == {
        ".svg (no reader)": 1,
        "damaged": 1,
    }
    logged = (tmp_path / "run" / "train.log").read_text()
    assert "train/猫/drawn.svg" in logged and "test/猫/bad.png (its format is not supported" in logged
    assert len(report.read_history(tmp_path / "run" / "history.csv")) == 2
    assert (tmp_path / "run" / "figures" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.drop_remainder=true", "training.batch_size=500"], "data.drop_remainder"),
        (["tensorboard.profile_start_step=10"], "tensorboard.profile_start_step: 10 is not among the 10 steps"),
        (["tensorboard.profile_start_step=8", "data.drop_remainder=true"], "is not among the 8 steps"),
        (["schedule=cosine", "schedule.warmup_steps=10"], "schedule.warmup_steps: 10 is not below the 10 steps"),
        (["data.train_images=10", "training.patience=1"], "training.patience: .* there are none"),
    ],
)
def test_what_only_the_data_shows_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *overrides)


def test_missing_data_is_one_sentence_and_exit_code_2(tmp_path):
    home = {"KERAS_HOME": str(tmp_path), "CIFAR_CACHE_DIR": str(tmp_path)}
    overrides = [f"data.dir={tmp_path / 'nowhere'}", "data.download=false", f"hydra.run.dir={tmp_path / 'run'}"]
    done = forked.run(overrides, env=os.environ | home)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("nowhere does not exist; correct the path\n") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def _without_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    (tmp_path / "keras.py").write_text("raise SystemExit('Keras was imported')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cifar-train optimizer=ad", "optimizer=adam optimizer=adamw"),
        ("cifar-train training.ep", "training.epochs="),
        ("cifar-train experiment=fi", "experiment=first_version"),
        ("cifar-train augmentation=slides augmentation.rotation.deg", "augmentation.rotation.degrees="),
    ],
)
def test_completion_needs_no_tensorflow(tmp_path, line, expected):
    program = Path(sys.executable).parent / "cifar-train"
    environment = _without_tensorflow(tmp_path) | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run([program, "-sc", "query=bash"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split() == expected.split(), done.stderr


def test_ctrl_c_while_tensorflow_is_imported_is_one(tmp_path):
    code = """
import builtins, os, signal
from cifar_research.train import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored by who started the tests
real = builtins.__import__
def importing(name, *rest, **more):
    if name == "tensorflow":
        builtins.__import__ = real
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed")  # as its extensions do
    return real(name, *rest, **more)
builtins.__import__ = importing
main()
"""
    command = [sys.executable, "-c", code, *SMALL, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stderr == "error: interrupted\n", done.stderr


@pytest.mark.parametrize("overrides", [["--help"], ["--cfg", "job"], ["optimizer=addam"]])
def test_what_needs_no_training_needs_no_tensorflow(tmp_path, overrides):
    done = start(*overrides, env=_without_tensorflow(tmp_path))
    assert done.returncode == (2 if "addam" in overrides[0] else 0) and "was imported" not in done.stderr
    if "--help" in overrides:
        for part in ('eval "$(cifar-train -sc install=bash)"', "augmentation: ", "experiment=quickstart"):
            assert part in done.stdout
