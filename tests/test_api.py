"""The Python API: results as the commands give them, and a process left as it was."""

import contextlib
import importlib
import inspect
import json
import logging
import os
import random
import signal
import sys
import threading

import forked
import numpy as np
import pytest
from absl.logging import PythonHandler
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import cifar_research
from cifar_research.runs.report import read_report
from cifar_research.runtime.errors import ConfigError, DataError, ReportError, RunError
from cifar_research.training import command

SMALL = [
    "data=synthetic", "data.train_images=120", "data.test_images=40", "backbone.filters=[4]", "model.hidden=[4]",
    "training.epochs=2", "training.batch_size=30", "tensorboard.enabled=false",
]  # fmt: skip


def state():
    """Return what a call must leave as it was."""
    import keras

    loggers = {name: (log.level, tuple(log.handlers)) for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger) and log.handlers}  # fmt: skip
    numbers = random.getstate(), str(np.random.get_state())
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    root = logging.getLogger()
    return {
        "policy": keras.config.dtype_policy().name, "floatx": keras.config.floatx(), "argv": [*sys.argv],
        "cwd": os.getcwd(), "root": (root.level, tuple(root.handlers), logging.raiseExceptions, root.manager.disable),
        "loggers": loggers, "signals": signals, "wakeup": signal.set_wakeup_fd(-1), "environ": dict(os.environ),
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.instance().cfg), "random": numbers,
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
    }  # fmt: skip


def test_what_others_log_to_stays_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("stream", "w") as stream, contextlib.closing(PythonHandler(stream)):
        cifar_research.train([*SMALL, "training.epochs=1"], "run", quiet=True)
        assert not stream.closed


@pytest.mark.parametrize(
    ("run", "overrides", "more", "message"),
    [
        ("run", [], {"views": "rotate"}, "views: 'rotate' is not one of flip, flip_shift"),
        ("run", ["training.epochs=1"], {}, "training.epochs=1: is not a key of the data"),
        ("run", ["data={seed:3}"], {}, "data={seed:3}: give its keys one by one"),
        (["run", "run"], [], {"views": "flip"}, "are for one run and not for an ensemble"),
    ],
)
def test_what_an_evaluation_does_not_have_is_refused(folder, run, overrides, more, message):
    paths = folder / run if isinstance(run, str) else [folder / name for name in run]
    with pytest.raises(ConfigError, match=message):
        cifar_research.evaluate(paths, overrides, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run in half precision, `run`, and a sweep of two seeds of it and a failing job, `sweep`."""
    folder = tmp_path_factory.mktemp("api")
    cifar_research.train([*SMALL, "training.precision=bfloat16"], folder / "run", quiet=True)
    return folder


def test_a_run_returns_its_report_and_history(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = cifar_research.train(SMALL, "run")
    assert "completed" in capsys.readouterr().out
    assert result == read_report(tmp_path / "run" / "report.json") == json.loads(json.dumps(result))
    assert result.folder == tmp_path / "run" and (result.folder / ".hydra" / "overrides.yaml").is_file()
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.history[result["best_epoch"] - 1]["val_accuracy"] == result["val"]["accuracy"]
    # Again it returns its report; with another config it is refused; with more epochs it continues.
    written = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    again = cifar_research.train(SMALL, "run")
    assert again == result and again.history == result.history
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="seed: this run has 0, the command says 1"):
        cifar_research.train([*SMALL, "seed=1"], "run")
    capsys.readouterr()
    longer = cifar_research.train(["resume=run", "training.epochs=3"], quiet=True)
    assert longer["epochs"] == 3 and len(longer.history) == 3 and capsys.readouterr().out == ""
    monkeypatch.setattr(command, "run", lambda *arguments, **settings: {"status": "completed"})
    first, second = (cifar_research.train(SMALL, quiet=True).folder for _ in range(2))
    assert first != second and first.parent == second.parent == tmp_path / "outputs" / "synthetic"


@pytest.mark.parametrize(
    "call",
    [
        lambda folder, path: cifar_research.train([*SMALL, "training.precision=float16"], path, quiet=True),
        lambda folder, path: cifar_research.evaluate(folder / "run", corruptions=0),
        lambda folder, path: cifar_research.load(folder / "run", allow_targets=["my_lab"]),
        lambda folder, path: cifar_research.runs(folder),
        lambda folder, path: cifar_research.train(["optimizer.learning_rate=-1"], path),
        lambda folder, path: cifar_research.train(["data=images", f"data.dir={path}"], path),
        lambda folder, path: cifar_research.sweep([*SMALL, "seed=0,x"], path),
    ],
    ids=["train", "evaluate", "load", "runs", "invalid", "no data", "invalid sweep"],
)
def test_no_state_is_left(folder, tmp_path, call):
    before = state()
    for name in "ab":
        try:
            call(folder, tmp_path / name)
        except (ConfigError, DataError):
            assert not (tmp_path / name).exists()
        assert state() == before


def test_a_module_is_allowed_for_one_call(lab, monkeypatch, folder):
    monkeypatch.chdir(lab)
    monkeypatch.syspath_prepend(lab)
    overrides = [*SMALL, "hydra.searchpath=[file://my_conf]", "schedule=breaks"]
    assert (
        cifar_research.train([*overrides, "allow_targets=[my_lab]"], lab / "run", quiet=True)["status"] == "completed"
    )
    with pytest.raises(ConfigError, match="allow_targets"):
        cifar_research.train(overrides, lab / "other", quiet=True)


def test_a_sweep_returns_rows_and_resumes(tmp_path, monkeypatch, capsys):
    overrides = ["seed=0,1", *SMALL]
    rows = cifar_research.sweep(overrides, tmp_path / "sweep")
    assert [(row["seed"], row["status"]) for row in rows] == [(0, "completed"), (1, "completed")]
    assert "[2/2]" in capsys.readouterr().out and (tmp_path / "sweep" / "report.html").is_file()
    assert rows == cifar_research.runs(tmp_path / "sweep") == cifar_research.runs(f"{tmp_path}/**")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json")}
    assert cifar_research.sweep(overrides, tmp_path / "sweep") == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json")} == written
    with pytest.raises(ConfigError, match="is the folder of a sweep"):
        cifar_research.train(SMALL, tmp_path / "sweep")


def test_a_script_that_sweeps_is_not_run_by_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import cifar_research\nprint('begins')\n"
                      f"print(cifar_research.sweep({[*SMALL, 'seed=0']!r}, 'sweep')[0]['status'])\n")  # fmt: skip
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = forked.run([script], code=code, cwd=tmp_path, workers=False)  # whose workers start as in a sweep
    assert done.stdout.split().count("begins") == 1 and done.stdout.endswith("completed\n"), done.stderr
    assert "begins" not in "".join(path.read_text() for path in tmp_path.rglob("output.log"))


def test_rows_are_a_data_frame(folder):
    cifar_research.train(["model=wide", *SMALL[:4], "model.hidden=[4]", *SMALL[5:]], folder / "other", quiet=True)
    rows = cifar_research.runs(folder)
    assert len({tuple(row) for row in rows}) == 1  # the same columns
    assert all(value is None or isinstance(value, (str, int, float, bool)) for row in rows for value in row.values())
    by_folder = {row["folder"]: row for row in rows}
    row = by_folder[str(folder / "run")]
    report = read_report(folder / "run" / "report.json")
    assert row["training.precision"] == "bfloat16" and row["backbone.filters"] == "[4]" and row["seed"] == 0
    assert row["status"] == "completed" and row["test/accuracy"] == report["test"]["accuracy"]
    assert all(row[f"{split}/{name}"] == value for split in ("val", "test") for name, value in report[split].items())


def test_pandas_takes_the_rows(folder):
    pandas = pytest.importorskip("pandas")
    rows = cifar_research.runs(folder)
    frame = pandas.DataFrame(rows)
    assert list(frame["val/accuracy"]) == [row["val/accuracy"] for row in rows] and len(frame.columns) == len(rows[0])


def test_an_evaluation_is_returned(folder):
    result = cifar_research.evaluate(folder / "run", ["data.test_images=30"], corruptions=0, views="flip")
    written = json.loads((folder / "run" / "evaluation" / "synthetic" / "evaluation.json").read_text())
    assert result == written and result["test"]["images"] == 30 and set(result["views"]) == {"none", "flip"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cifar_research.train("experiment=wide"), ConfigError, r"is one text; give a list of texts"),
        (lambda: cifar_research.train(["seed=0,1"]), ConfigError, "seed"),
        (lambda: cifar_research.train(["sweep=seeds"]), ConfigError, "use cifar_research.sweep"),
        (lambda: cifar_research.train(["optimizer=addam"]), ConfigError, "did you mean"),
        (lambda: cifar_research.train(["resume=nowhere"], "new"), ConfigError, "contradict each other"),
        (lambda: cifar_research.sweep(["seed=0,1", "optimizer=addam"]), ConfigError, "did you mean"),
        (lambda: cifar_research.evaluate("nowhere"), RunError, "nowhere: is not the folder of a run"),
        (lambda: cifar_research.runs("nowhere"), ReportError, "nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, monkeypatch, call, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


def test_the_functions_stay_when_modules_of_their_names_are_imported():
    functions = {name: getattr(cifar_research, name) for name in ("train", "evaluate", "runs", "sweep")}
    for name in ("train", "evaluate", "runs"):
        assert inspect.ismodule(importlib.import_module(f"cifar_research.{name}"))
    assert {name: getattr(cifar_research, name) for name in functions} == functions
    assert all(inspect.isfunction(function) and function.__doc__ for function in functions.values())


def test_outside_of_the_main_thread(tmp_path):
    results = []
    overrides = [*SMALL, "seed=3"]
    thread = threading.Thread(
        target=lambda: results.append(cifar_research.train(overrides, tmp_path / "run", quiet=True))
    )
    thread.start()
    thread.join(120)
    assert results[0]["status"] == "completed"
    assert results[0]["weights_sha256"] == cifar_research.train(overrides, tmp_path / "b", quiet=True)["weights_sha256"]


# A signal during a loop over seeds ends the loop, with the run saved and the handlers as before.
INTERRUPTED = """
import json, os, signal, sys, threading, time
import cifar_research
overrides, folder, number = json.loads(sys.argv[1])
caught = []
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
def interrupt():
    while not list(__import__("pathlib").Path(folder).glob("0/checkpoints/step-*")):
        time.sleep(0.01)
    os.kill(os.getpid(), number)
threading.Thread(target=interrupt, daemon=True).start()
ended = []
try:
    for seed in range(2):
        ended.append(cifar_research.train([*overrides, f"seed={seed}"], f"{folder}/{seed}")["status"])
        if caught:
            break
except KeyboardInterrupt:
    caught.append(2)
assert caught == [number], caught
assert ended == ([] if number == 2 else ["stopped"]), ended
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
again = cifar_research.train([*overrides[:-1], overrides[-1], "seed=0"], f"{folder}/0")
print("again", again["status"], again["weights_sha256"])
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The overrides of a run of forty epochs, and the SHA-256 of its weights."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    overrides = [*SMALL[:5], "training.epochs=40", *SMALL[6:]]
    # In a process of its own too: threads that TensorFlow has in this one may change the last digits.
    done = forked.run([*overrides, "seed=0", f"hydra.run.dir={folder}"])
    assert done.returncode == 0, done.stderr
    return overrides, read_report(folder / "report.json")["weights_sha256"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_is_raised(tmp_path, uninterrupted, number):
    overrides, expected = uninterrupted
    done = forked.run([json.dumps([overrides, str(tmp_path), int(number)])], code=INTERRUPTED)
    assert done.returncode == 0, done.stderr
    assert "Continuing from step" in done.stdout and "again completed" in done.stdout
    assert done.stdout.split()[-1] == expected


def test_an_interrupted_sweep_is_saved_and_raised(tmp_path):
    code = """
import json, os, signal, sys, threading, time
import cifar_research
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupt():
    while not list(Path("sweep").glob("*/checkpoints/step-*")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    cifar_research.sweep(json.loads(sys.argv[1]), "sweep")
except KeyboardInterrupt:
    print([row["status"] for row in cifar_research.runs("sweep")])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    overrides = [*SMALL[:5], "training.epochs=4000", *SMALL[6:], "seed=0,1"]
    done = forked.run([json.dumps(overrides)], code=code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("['stopped', 'waiting']\n"), done.stdout + done.stderr
