"""Shared fixtures and helpers; slow tests run last, and among them the fault tests; shared out, they run first."""

import contextlib
import fcntl
import functools
import gc
import hashlib
import json
import os
import subprocess
import sys

import cached_configs  # noqa: F401
import forked
import pytest

from cifar_research.display import figures
from cifar_research.training.run import run as train_run

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in runs, which tests compare with

# A user's schedule that fails in every possible way.
MY_LAB = """
import math, os, pathlib, signal

def breaks(*, how: str = "fine"):
    def rate(step, total_steps, steps_per_epoch):
        if how == "raise":
            raise RuntimeError("no such rate\\n  as this one")
        if how == "die":
            os._exit(7)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "once" and not pathlib.Path("once").exists():
            pathlib.Path("once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step * 0 + (math.inf if how == "diverge" else 1.0)
    return rate
"""


@pytest.fixture
def lab(tmp_path):
    """A folder with that schedule as the option schedule=breaks."""
    (tmp_path / "my_lab.py").write_text(MY_LAB)
    (tmp_path / "my_conf" / "schedule").mkdir(parents=True)
    (tmp_path / "my_conf" / "schedule" / "breaks.yaml").write_text("_target_: my_lab.breaks\nhow: fine\n")
    return tmp_path


@pytest.fixture(autouse=True)
def forgets_my_lab():
    """Forget a test's module my_lab: other tests have modules of this name."""
    yield
    sys.modules.pop("my_lab", None)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, request):
    """A context manager: a path that is the same in all processes of these tests, used by one of them at a time."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent

    @contextlib.contextmanager
    def shared(name):
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield root / name

    return shared


@pytest.fixture(scope="session")
def weights_for(shared):
    """A function that writes the weights of the backbone of a config, and returns the override that loads them."""
    code = (
        "import sys, keras; from cifar_research import config; from cifar_research.config import targets\n"
        "from omegaconf import OmegaConf; section = config.compose(sys.argv[2:]).config.backbone\n"
        "section = OmegaConf.to_container(section, resolve=True)\n"
        "keras.utils.set_random_seed(0)\n"
        "targets.build('backbone', section, frozenset()).build((32, 32, 3)).save_weights(sys.argv[1])"
    )

    @functools.cache
    def weights_for(*arguments):
        with shared(f"{hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]}.weights.h5") as path:
            if not path.exists():
                done = forked.run([path, *arguments], code=code)
                assert done.returncode == 0, done.stderr
        return f"backbone.weights={path}"

    return weights_for


@pytest.fixture(scope="session")
def finished_run(shared):
    """The folder of a completed run with a trained model."""
    from cifar_research import config
    from cifar_research.display import console

    arguments = [
        "data=synthetic", "data.train_images=1500", "data.test_images=400", "data.standardize=true",
        "backbone.filters=[8,16]", "backbone.batch_norm=true", "backbone.dropout=0.1", "model=wide", "model.hidden=[32]",
        "loss=categorical_crossentropy", "optimizer.learning_rate=0.005", "training.epochs=8", "training.batch_size=16",
        "tensorboard.enabled=false",
    ]  # fmt: skip
    with shared("finished") as folder:  # the first process trains, the others get its report
        result = train_run(config.parse(arguments), folder / "run", console.Display(quiet=True))
    assert result["test"]["accuracy"] > 0.8
    return folder / "run"


# Passes lines of arguments to a command, one after another; prints its output for each.
REFUSALS = """
import contextlib, importlib, io, json, sys
command = importlib.import_module("cifar_research.{command}")
for arguments in json.loads(sys.argv[1]):
    sys.argv[:], sys.stdin = ["cifar-{command}", *arguments], io.StringIO()
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            command.main()
        except SystemExit as ended:
            code = ended.code
    result = dict(code=code, stdout=output.getvalue(), stderr=errors.getvalue(), has_tensorflow="tensorflow" in sys.modules)
    print(json.dumps(result))
"""


def refusals(command, lines, folder, before=""):
    """Return a command's output for each of these lines, in one process without TensorFlow."""
    code = before + REFUSALS.format(command=command)
    arguments = [sys.executable, "-c", code, json.dumps(lines)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def float32():
    """Start every test in float32: a run leaves its own precision behind."""
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


def pytest_configure(config):
    config.addinivalue_line("markers", "draws: looks at figures, or measures what drawing costs; others draw one pixel")
    forked.shared_server = getattr(config, "workerinput", {}).get("fork_server")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Start one server of forks for all processes that share the tests."""
    if node.workerinput["workercount"] > 1:
        node.workerinput["fork_server"] = forked.start_server()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    figures.png = forked.png if item.get_closest_marker("draws") else forked.one_pixel


def pytest_collection_modifyitems(config, items):
    # Shared out among processes they run first, or one process would wait for another's last one.
    is_shared = hasattr(config, "workerinput")
    items.sort(
        key=lambda item: ((item.get_closest_marker("slow") is not None) != is_shared, "faults" in item.path.parts)
    )


def pytest_collection_finish():
    # What is imported stays: without this, each run's search for garbage goes through all of TensorFlow.
    gc.collect()
    gc.freeze()


@pytest.fixture
def like_cudnn(monkeypatch):
    """Make the normalisation kernel return nan for one value a channel, as cuDNN does."""
    import tensorflow as tf

    kernel = tf.raw_ops.FusedBatchNormV3

    def normalized(*, x, is_training, **settings):
        outputs, mean, variance, *rest = kernel(x=x, is_training=is_training, **settings)
        if is_training:
            variance = tf.where(tf.size(x) == x.shape[-1], float("nan"), variance)
        return outputs, mean, variance, *rest

    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", normalized)
