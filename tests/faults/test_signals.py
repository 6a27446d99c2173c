"""SIGTERM, SIGINT and SIGUSR1: save within one call and set the exit code; a second signal ends at once."""

import functools
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forked import Process, wait_for

from cifar_research.runs import checkpoint

TIMES = int(os.environ.get("CIFAR_TEST_SIGNALS", "3"))
STEPS_PER_CALL = 2
OVERRIDES = [
    "data=synthetic", "data.train_images=200", "data.test_images=40", "backbone.filters=[4]", "model.hidden=[8]",
    "training.epochs=100000", "training.batch_size=32", f"training.steps_per_call={STEPS_PER_CALL}",
    "tensorboard.enabled=false", "training.threads=1",
]  # fmt: skip


def tell_steps(path):
    """Make this process write the time of each step to a file."""
    from cifar_research.display import console

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    show = console.Display.progress

    def progress(self, step, *rest):
        os.write(file, f"{time.monotonic()} {step}\n".encode())
        show(self, step, *rest)

    console.Display.progress = progress


def stop_once(folder, number, seconds):
    """Send a signal some seconds after the first step; return (steps before it, steps after it, steps saved, exit code, report)."""
    folder.mkdir()
    steps = folder / "steps"
    overrides = [*OVERRIDES, f"hydra.run.dir={folder / 'run'}"]
    command = Process(overrides, hook=functools.partial(tell_steps, steps))
    wait_for(lambda: steps.exists() and steps.stat().st_size, command)
    time.sleep(seconds)
    before = time.monotonic()
    command.send_signal(number)
    after = time.monotonic()  # steps may end in between
    code = command.wait(30)
    lines = [line.split() for line in steps.read_text().splitlines()]
    done = [max(int(step) for moment, step in lines if float(moment) < limit) for limit in (before, after)]
    saved = checkpoint.read(sorted((folder / "run" / "checkpoints").glob("step-*.ckpt"))[-1]).meta["step"]
    assert "Traceback" not in command.output
    assert f"resume={folder / 'run'}" in command.output.replace("\n", "")
    return *done, saved, code, json.loads((folder / "run" / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_saves_within_one_call_and_loses_nothing(tmp_path, number, code):
    rng = random.Random(number)
    delays = [rng.uniform(0, 0.5) for _ in range(TIMES)]
    with ThreadPoolExecutor(2) as pool:
        stops = pool.map(lambda i: stop_once(tmp_path / str(i), number, delays[i]), range(TIMES))
        for before, after, saved, result, report in stops:
            assert result == code
            assert before <= saved <= after + STEPS_PER_CALL
            assert (report["status"], report["signal"], report["steps"]) == ("stopped", number, saved)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_in_the_midst_of_a_call(tmp_path, number):
    # An epoch in one call, of seconds.
    more = ["data.train_images=20000", "training.batch_size=1", "training.steps_per_call=1000000"]
    overrides = [*OVERRIDES, *more, f"hydra.run.dir={tmp_path / 'run'}"]
    command = Process(overrides)
    wait_for(lambda: "Folder" in command.output, command)
    time.sleep(3)  # the step is traced, and the call runs
    command.send_signal(number)
    time.sleep(0.7)
    assert command.is_running
    sent = time.monotonic()
    command.send_signal(number)
    assert command.wait(30) == 128 + number
    assert time.monotonic() - sent < 1
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*.ckpt"))
