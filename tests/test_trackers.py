"""Trackers: what they are called with, that none can cost a run, and what MLflow and W&B then hold."""

import importlib.util
import json
import os
import shutil
import signal
import struct
import sys
import time
import types

import forked
import pytest

from cifar_research import Tracker, config
from cifar_research.display import console, trackers, tracking
from cifar_research.runs import report, reproduction
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime.errors import ConfigError
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=100", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[8]",
    "model=wide", "training.batch_size=32", "training.epochs=2", "tensorboard.enabled=false", "name=small",
]  # fmt: skip
# A tracker that writes what it is called with into a file, and fails or hangs in one of its methods.
LAB = """
import json, os, pathlib, signal, threading

release = threading.Event()

class Recorder:
    def __init__(self, path, how, where, times):
        self.path, self.how, self.where, self.left = pathlib.Path(path), how, where, times

    def note(self, method, **content):
        if method == self.where and self.left:
            self.left -= 1
            if self.how == "raise":
                raise RuntimeError("POST https://me:secret@example.org/api?to=me@lab\\nno answer")
            if self.how == "exit":
                raise SystemExit(3)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                release.wait()
                return
        with self.path.open("a") as file:
            file.write(json.dumps({"method": method} | content) + "\\n")

    def start(self, run):
        self.note("start", key=run.key, name=run.name, sweep=run.sweep, folder=str(run.folder), config=run.config,
                  settings=run.settings, history=run.history)

    def epoch(self, row):
        self.note("epoch", row=row)

    def finish(self, status, results, files):
        self.note("finish", status=status, results=results, files=[str(path) for path in files])

def track(*, path: str, how: str = "fine", where: str = "start", times: int = -1):
    return Recorder(path, how, where, times)

def number():
    return 3
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The module with that tracker."""
    (tmp_path / "my_trackers.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_trackers", raising=False)
    import my_trackers

    yield my_trackers
    my_trackers.release.set()


def tracked(folder, **keys):
    keys = {"path": folder / "events.jsonl", **keys}
    node = ",".join(f"{key}:{value}" for key, value in {"_target_": "my_trackers.track", **keys}.items())
    return ["allow_targets=[my_trackers]", "~tracker", f"+tracker={{{node}}}"]


def run(folder, *overrides):
    return train_run(config.parse([*SMALL, *overrides]), folder, console.Display(quiet=True))


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def warnings(caplog):
    """Return what was said of trackers, without TensorFlow's own warnings."""
    return [record.getMessage() for record in caplog.records if record.name == tracking.__name__]


def results_of(content):
    return {key: content[key] for key in ("status", "config_hash", "train", "val", "test", "weights_sha256", "epochs")}


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """The report and the files of a run without a tracker."""
    folder = tmp_path_factory.mktemp("untracked") / "run"
    return run(folder), {path.name for path in folder.iterdir()}


def test_a_run_without_a_tracker_has_no_file_of_one(untracked):
    _, files = untracked
    assert files == {".lock", "checkpoints", "figures", "history.csv", "model.txt", "model.weights.h5", "report.json"}


def test_a_tracker_gets_the_run_its_epochs_and_its_end(tmp_path, lab, untracked):
    folder = tmp_path / "small" / "run"
    content = run(folder, *tracked(tmp_path))
    assert results_of(content) == results_of(untracked[0])
    start, *epochs, finish = events(tmp_path)
    assert start["key"] == (folder / tracking.KEY_FILE).read_text().strip() and len(start["key"]) == 32
    assert (start["name"], start["sweep"], start["folder"]) == ("small/run", None, str(folder))
    assert start["config"] == content["config"] and start["history"] == []
    assert start["settings"]["optimizer"] == "adam" and start["settings"]["training.epochs"] == 2
    assert not any(key.startswith("tracker") for key in start["settings"])
    assert [event["row"] for event in epochs] == report.read_history(folder / "history.csv")
    val, test = content["val"], content["test"]
    assert finish["status"] == "completed"
    scores = {f"best_val_{name}": value for name, value in val.items()}
    scores |= {f"test_{name}": value for name, value in test.items()} | {"best_epoch": content["best_epoch"]}
    assert finish["results"] == {name: value for name, value in scores.items() if value is not None}
    assert {"best_val_loss", "test_macro_f1"} < finish["results"].keys()
    names = ["report.json", "history.csv", "figures/confusion.png", "figures/curves.png"]
    assert finish["files"] == [str(folder / name) for name in names]


@pytest.mark.parametrize(("how", "where"), [("raise", "epoch"), ("hang", "finish")])
def test_a_tracker_that_fails_or_hangs_costs_a_run_one_warning(
    tmp_path, lab, untracked, caplog, monkeypatch, how, where
):
    monkeypatch.setattr(tracking, "_LIMIT", 0.3)
    content = run(tmp_path / "run", *tracked(tmp_path, how=how, where=where))
    assert results_of(content) == results_of(untracked[0])
    check_warning(caplog, how)


@pytest.mark.parametrize(
    ("how", "where"), [("raise", "start"), ("raise", "finish"), ("hang", "start"), ("hang", "epoch")]
)
def test_whichever_call_fails_or_hangs_there_is_one_warning(tmp_path, lab, caplog, monkeypatch, how, where):
    monkeypatch.setattr(tracking, "_LIMIT", 0.3)
    tracker = lab.track(path=tmp_path / "events.jsonl", how=how, where=where)
    calls = tracking.Tracking(tracker, tracking.tracked_run(config.parse(SMALL), tmp_path, []))
    for epoch in (1, 2):
        calls.epoch({"epoch": epoch})
    calls.finish({"status": "completed", "val": None, "test": None, "best_epoch": None}, [])
    calls.close(lambda line: None)
    check_warning(caplog, how)


def check_warning(caplog, how):
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker: " + ("RuntimeError: POST" if how == "raise" else "it does not answer"))
    assert "the run goes on" in warning and "secret" not in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("where", "expected"),
    [("start", ["start", "epoch", "epoch", "finish"]), ("epoch", ["start", "epoch", "finish"])],
)
def test_a_failed_start_is_tried_again_and_a_failed_epoch_is_not(tmp_path, lab, where, expected):
    run(tmp_path / "run", *tracked(tmp_path, how="exit", where=where, times=1))
    assert [event["method"] for event in events(tmp_path)] == expected


def test_a_hanging_tracker_is_waited_for_once(tmp_path, lab, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_LIMIT", 0.2)
    monkeypatch.setattr(tracking, "_QUIET_SECONDS", 0.05)
    lines = []
    made = tracking.tracked_run(config.parse(), tmp_path, [])
    tracker = tracking.Tracking(lab.Recorder(tmp_path / "events.jsonl", "hang", "start", 1), made)
    tracker.close(lines.append)
    assert lines == ["Waiting for the tracker, for 0 s at most."] and len(caplog.records) == 1
    tracker.close(lines.append)
    assert len(lines) == len(caplog.records) == 1


def test_a_run_that_ends_by_an_error_is_recorded_as_failed(tmp_path, lab, monkeypatch):
    from cifar_research.training import loop

    monkeypatch.setattr(loop, "fit", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", *tracked(tmp_path))
    last = events(tmp_path)[-1]
    assert (last["method"], last["status"], last["results"], last["files"]) == ("finish", "failed", {}, [])


def test_a_run_that_continues_has_its_key_and_the_history_before(tmp_path, lab):
    run(tmp_path / "run", *tracked(tmp_path))
    run(tmp_path / "run", *tracked(tmp_path), "training.epochs=3")
    first, _, _, _, second, last, finish = events(tmp_path)
    assert second["key"] == first["key"] and [row["epoch"] for row in second["history"]] == [1, 2]
    assert last["row"]["epoch"] == 3 and finish["status"] == "completed"
    run(tmp_path / "run", *tracked(tmp_path), "training.epochs=3")  # has ended, so nothing is recorded
    assert len(events(tmp_path)) == 7


@pytest.mark.parametrize(("where", "epochs_before"), [("start", 0), ("epoch", 1)])
def test_a_killed_run_continues_its_entry(tmp_path, lab, where, epochs_before):
    folder, environment = tmp_path / "run", os.environ | {"PYTHONPATH": str(tmp_path)}
    overrides = [*SMALL, f"hydra.run.dir={folder}"]
    killed = forked.run([*overrides, *tracked(tmp_path, how="kill", where=where)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    key = (folder / tracking.KEY_FILE).read_text().strip()
    done = forked.run([*overrides, *tracked(tmp_path)], env=environment)
    assert done.returncode == 0, done.stderr
    seen = events(tmp_path)
    assert {event["key"] for event in seen if event["method"] == "start"} == {key}
    assert [event["method"] for event in seen].count("finish") == 1
    assert len([event for event in seen if event["method"] == "start"][-1]["history"]) >= epochs_before


def test_a_damaged_key_is_replaced_with_a_warning(tmp_path, caplog):
    (tmp_path / tracking.KEY_FILE).write_text("' or 1 = 1")
    made = tracking.tracked_run(config.parse(), tmp_path, [])
    assert (tmp_path / tracking.KEY_FILE).read_text() == f"{made.key}\n" and len(made.key) == 32
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["tracker=mlfow"], "did you mean 'mlflow'"),
        (["tracker=mlflow", "tracker.experimnt=a"], "experiment"),
        (["tracker=mlflow", "+tracker.experimnt=a"], "mlflow has no parameter 'experimnt'; did you mean 'experiment'"),
        (["tracker=wandb", "tracker.project=3"], "tracker.project: takes a text or null, not 3"),
        (["tracker=null"], "tracker"),
        (["~tracker"], "tracker"),
        (["tracker._target_=my_trackers.track"], "tracker._target_: 'my_trackers.track' is not a factory"),
        (["tracker._target_=cifar_research.display.trackers.os.system"], "a config may not run other code"),
        (["tracker._target_=my_trackers.track", "allow_targets=[my_trackers]"], "tracker.path: track needs a value"),
        (
            ["tracker._target_=my_trackers.number", "allow_targets=[my_trackers]"],
            "tracker: the factory returned no tracker; return an object with start, epoch and finish",
        ),
    ],
)
def test_bad_input_gets_a_sentence(lab, overrides, reason):
    with pytest.raises(ConfigError) as raised:
        config.parse(overrides)
    assert reason in str(raised.value)


@pytest.mark.parametrize(("option", "name"), [("mlflow", "MLflow"), ("wandb", "Weights & Biases")])
def test_a_missing_package_is_named_with_its_command(monkeypatch, option, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError) as raised:
        config.parse([f"tracker={option}"])
    assert f"tracker: {option} needs {name}; install it with " in str(raised.value)
    assert str(raised.value).endswith(f"-m pip install 'cifar_research[{option}]'")


def test_a_tracker_does_not_change_what_a_run_is(tmp_path, lab):
    plain, own = config.parse(SMALL), config.parse([*SMALL, *tracked(tmp_path)])
    assert own.identity.hash == plain.identity.hash and not own.identity.differences(plain.identity)
    assert plain.tracker is None and isinstance(own.tracker, Tracker)


def test_a_repeated_run_is_without_the_tracker(tmp_path, lab):
    run(tmp_path / "run", *tracked(tmp_path))
    overrides, _ = reproduction.parse_arguments(["--from-run", str(tmp_path / "run")])
    assert config.parse(overrides).tracker is None


def test_a_job_is_recorded_with_its_sweep(tmp_path, lab):
    (tmp_path / "sweep_a").mkdir()
    (tmp_path / "sweep_a" / LEDGER).touch()
    made = tracking.tracked_run(config.parse(), _folder(tmp_path / "sweep_a" / "seed=1"), [])
    assert (made.name, made.sweep) == ("sweep_a/seed=1", "sweep_a")


def _folder(path):
    path.mkdir()
    return path


# MLflow: a store in SQLite.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The file of a store without runs, which takes MLflow some seconds to make."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def client(tmp_path, monkeypatch, store):
    from mlflow.tracking import MlflowClient

    shutil.copy(store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_epoch_that_was_lost_in_between_is_added_by_a_continued_run(tmp_path, client, monkeypatch):
    log, failing = trackers.MLflow._log, [2]

    def lossy(tracker, values, step):
        if values.get("epoch") in failing:
            raise ConnectionError("lost")
        log(tracker, values, step)

    monkeypatch.setattr(trackers.MLflow, "_log", lossy)
    run(tmp_path / "run", "tracker=mlflow", "name=gap", "training.epochs=3")
    assert [epoch for _, epoch in points(client, entries(client, "gap")[0], "epoch")] == [1, 3]
    failing.clear()
    run(tmp_path / "run", "tracker=mlflow", "name=gap", "training.epochs=4")
    assert [epoch for _, epoch in points(client, entries(client, "gap")[0], "epoch")] == [1, 2, 3, 4]


def entries(client, experiment, condition=""):
    result = client.get_experiment_by_name(experiment)
    return client.search_runs([result.experiment_id], condition)


def points(client, entry, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(entry.info.run_id, name))


def test_mlflow_has_one_entry_of_a_run_that_continues(tmp_path, client):
    folder, overrides = tmp_path / "small" / "run", ["tracker=mlflow"]
    run(folder, *overrides)
    (entry,) = entries(client, "small")
    assert (entry.info.status, entry.info.run_name, entry.data.tags["status"]) == ("FINISHED", "small/run", "completed")
    content = run(folder, *overrides, "training.epochs=3")
    (entry,) = entries(client, "small")
    history = report.read_history(folder / "history.csv")
    for name in ("loss", "val_accuracy", "learning_rate", "epoch"):
        assert points(client, entry, name) == [(row["step"], row[name]) for row in history]
    assert entry.data.metrics["test_accuracy"] == content["test"]["accuracy"]
    assert entry.data.params["optimizer"] == "adam" and entry.data.params["training.epochs"] == "2"
    files = {file.path for folder in ("", "figures") for file in client.list_artifacts(entry.info.run_id, folder)}
    assert files == {
        "config.yaml", "report.json", "history.csv", "figures", "figures/curves.png", "figures/confusion.png"
    }  # fmt: skip
    text = (tmp_path / client.download_artifacts(entry.info.run_id, "config.yaml")).read_text()
    assert "epochs: 3" in text


@pytest.mark.parametrize(
    ("status", "expected"),
    [("stopped", "KILLED"), ("pruned", "KILLED"), ("diverged", "FAILED"), ("failed", "FAILED")],
)
def test_mlflow_has_a_run_whose_process_was_killed_as_running_until_it_ends(tmp_path, client, status, expected):
    rows = [{"epoch": number, "step": 10 * number, "loss": 1 / number, "phase": "a"} for number in (1, 2, 3)]
    made = tracking.tracked_run(config.parse(["name=killed"]), tmp_path, [])
    first = trackers.mlflow()
    first.start(made)
    first.epoch(rows[0])
    first.epoch(rows[1])  # then killed, with a checkpoint of the first epoch
    assert [entry.info.status for entry in entries(client, "killed")] == ["RUNNING"]
    second = trackers.mlflow()
    second.start(tracking.tracked_run(config.parse(["name=killed"]), tmp_path, rows[:1]))
    second.epoch(rows[1])
    second.epoch(rows[2])
    second.finish(status, {}, [])
    (entry,) = entries(client, "killed")
    assert points(client, entry, "loss") == [(row["step"], row["loss"]) for row in rows]
    assert (entry.info.status, entry.data.tags["status"]) == (expected, status)


def test_mlflow_groups_a_sweep_and_takes_the_experiment_named(tmp_path, client):
    overrides = [*SMALL, "-m", "seed=0,1", "training.epochs=1", "tracker=mlflow", "tracker.experiment=mine"]
    done = forked.run([*overrides, "hydra.sweep.dir=sweep_a"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = entries(client, "mine", "tags.sweep = 'sweep_a'")
    assert sorted(entry.info.run_name for entry in result) == ["sweep_a/seed=0", "sweep_a/seed=1"]
    assert {entry.info.status for entry in result} == {"FINISHED"}
    assert not any("warning" in path.read_text().lower() for path in (tmp_path / "sweep_a").glob("*/output.log"))


def test_mlflow_without_a_server_costs_a_warning(tmp_path, client, monkeypatch, untracked, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert results_of(run(tmp_path / "run", "tracker=mlflow")) == results_of(untracked[0])
    (warning,) = warnings(caplog)
    assert "127.0.0.1" in warning and "secret" not in warning
    assert not any(record.name.startswith(("mlflow", "urllib3")) for record in caplog.records)


# Weights & Biases: offline.


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    library = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield library
    library.teardown()


def wandb_records(path):
    """Yield the records of a .wandb file: 32 KiB blocks of pieces, each with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(content):
            return  # half written
        if kind in (1, 4):  # whole, or a last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_has_one_id_for_a_run_that_continues_and_the_whole_history(tmp_path, wandb, capfd):
    (tmp_path / "sweep_a").mkdir()
    (tmp_path / "sweep_a" / LEDGER).touch()
    folder = tmp_path / "sweep_a" / "seed=0"
    run(folder, "tracker=wandb")
    content = run(folder, "tracker=wandb", "training.epochs=3")
    key = (folder / tracking.KEY_FILE).read_text().strip()
    paths = sorted(folder.glob(f"wandb/offline-run-*/run-{key}.wandb"))  # their folders are named by the second
    assert len(paths) == 2
    end = time.monotonic() + 60  # W&B's own process writes, on a busy machine after it has answered
    while not any(record.HasField("exit") for record in wandb_records(paths[-1])):
        assert time.monotonic() < end
        time.sleep(0.1)
    records = list(wandb_records(paths[-1]))
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.run_id, started.project, started.run_group) == (key, "small", "sweep_a")
    assert started.display_name == "sweep_a/seed=0"
    assert values(started.config.update)["training"]["epochs"] == 3
    history = report.read_history(folder / "history.csv")
    logged = [values(record.history.item) for record in records if record.HasField("history")]
    assert [(row["_step"], row["loss"], row["val_accuracy"]) for row in logged] == [
        (row["step"], row["loss"], row["val_accuracy"]) for row in history
    ]
    summary = {}
    for record in records:
        summary |= values(record.summary.update) if record.HasField("summary") else {}
    assert (summary["status"], summary["test_accuracy"]) == ("completed", content["test"]["accuracy"])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    files = {path.name for path in (paths[-1].parent / "files").rglob("*") if path.is_file() and not path.is_symlink()}
    assert {"report.json", "history.csv", "curves.png", "confusion.png"} <= files
    assert "wandb" not in "".join(capfd.readouterr())


def test_wandb_gets_the_epochs_that_it_lacks():
    tracker, logged = trackers.WandB(None, None), []
    tracker._run = types.SimpleNamespace(starting_step=11, log=lambda row, step, commit: logged.append((step, row)))
    for step in (5, 10, 15):
        tracker.epoch({"step": step, "epoch": step // 5, "phase": "a", "val_loss": None})
    assert logged == [(15, {"epoch": 3})]


def test_wandb_without_a_key_costs_a_warning_and_asks_nothing(tmp_path, wandb, monkeypatch, untracked, caplog):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("it has asked for a key"))
    wandb.teardown()
    assert results_of(run(tmp_path / "run", "tracker=wandb")) == results_of(untracked[0])
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker: ")
