"""Load: many runs at the same time, and many one after another."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import forked
import pytest
from forked import Process

LAUNCHES = 50
RUNS = int(os.environ.get("CIFAR_TEST_RUNS", "15"))
SWEEP_RUNS = 250
SMALL = [
    "data=synthetic", "data.train_images=60", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[4]",
    "training.epochs=1", "training.batch_size=30", "tensorboard.enabled=false",
]  # fmt: skip


@pytest.mark.slow
def test_fifty_launches_at_once_that_are_refused_leave_nothing(tmp_path):
    overrides = ["name=many", "data=images", "data.dir=nowhere"]
    processes = [Process(overrides, cwd=tmp_path) for _ in range(LAUNCHES)]
    errors = [process.communicate()[1] for process in processes]
    assert {process.returncode for process in processes} == {2}
    assert all("nowhere" in error and "Traceback" not in error for error in errors)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_of_twenty_runs_in_one_folder_one_trains(tmp_path):
    overrides = [*SMALL, f"hydra.run.dir={tmp_path / 'run'}"]
    environment = os.environ | {"CIFAR_CACHE_DIR": str(tmp_path / "cache")}
    commands = [Process(overrides, env=environment) for _ in range(20)]
    codes = [command.wait() for command in commands]
    assert set(codes) <= {0, 2} and 0 in codes
    for code, command in zip(codes, commands, strict=True):
        assert "Traceback" not in command.output
        assert "another process trains here" in command.output if code == 2 else "completed" in command.output
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "completed"


# Prints the memory that is held after each run, in MB.
MANY = """
import json, sys
from cifar_research import config
from cifar_research.display import console
from cifar_research.training.run import run as train_run
memory = []
for number in range({runs}):
    result = train_run(config.parse({overrides} + [f"seed={{number}}"]), f"run{{number}}", console.Display(quiet=True))
    assert result["status"] == "completed"
    pages = int(open("/proc/self/statm").read().split()[1])
    memory.append(pages * 4096 / 1e6)
print(json.dumps(memory))
"""


@pytest.mark.draws
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_many_runs_in_one_process(tmp_path, capsys):
    began = time.monotonic()
    done = forked.run([], code=MANY.format(runs=RUNS, overrides=SMALL), cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout.splitlines()[-1])
    settled = memory[RUNS // 5]
    growth = (memory[-1] - settled) / (RUNS - RUNS // 5 - 1)
    with capsys.disabled():
        print(f"\n{RUNS} runs in {time.monotonic() - began:.0f} s, {settled:.0f} MB after a fifth of them, "
              f"{memory[-1]:.0f} MB after all: {growth:.2f} MB a run")  # fmt: skip
    assert growth < 1


@pytest.mark.slow
def test_tensorboard_opens_a_sweep_of_250_runs(tmp_path, capsys):
    _write_sweep(tmp_path / "sweep")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", tmp_path / "sweep", "--host", "127.0.0.1"]
    port = _free_port()
    began = time.monotonic()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        opened = _wait(lambda: b"<title>TensorBoard" in _get(f"{address}/")) - began
        complete = _wait(lambda: len(json.loads(_get(f"{address}/data/runs"))) >= SWEEP_RUNS) - began
        tags = json.loads(_get(f"{address}/data/plugin/timeseries/tags"))
        assert len(tags["scalars"]["runTagInfo"]) >= SWEEP_RUNS
    finally:
        process.terminate()
        process.wait()
    with capsys.disabled():
        print(f"\nTensorBoard on {SWEEP_RUNS} runs: the page after {opened:.1f} s, all runs after {complete:.1f} s")
    assert complete < 60  # on a busy machine, too; the figure is in docs/reliability.md


def _write_sweep(folder):
    from cifar_research.display.tensorboard import Writer

    for number in range(SWEEP_RUNS):
        writer = Writer(folder / f"seed={number}" / "tensorboard")
        for step in range(10):
            scalars = {"train/loss": 1 / (step + 1), "train/accuracy": step / 10, "learning_rate": 0.1}
            writer.scalars(step, scalars | {"val/loss": 1 / (step + 1), "val/accuracy": step / 10})
        writer.hparams({"seed": number, "optimizer": "adam"}, {"val/accuracy": 0.5})
        writer.close()


def _get(address):
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read()


def _wait(what, seconds=120):
    end = time.monotonic() + seconds
    while True:
        try:
            if what():
                return time.monotonic()
        except (OSError, ValueError):
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def _free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
