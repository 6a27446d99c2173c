"""Sweeps on a real SLURM and a real Ray cluster: scripts/cluster scripts/test -m cluster."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_sweep import SMALL, finish, start, states, wait_for

from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps.launchers import ray as ray_launcher
from cifar_research.sweeps.launchers import slurm as slurm_launcher
from cifar_research.sweeps.launchers import worker

LONG = ["training.epochs=40", "data.train_images=2000", "training.batch_size=10"]


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def jobs():
    return call("squeue", "--me", "--array", "--noheader", "--format=%i %T").split()


def log(folder, name):
    path = folder / "sweep" / name / "output.log"
    return path.read_text() if path.exists() else ""


def epochs(folder, name):
    path = folder / "sweep" / name / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


@pytest.fixture
def on_slurm():
    """The overrides for a sweep on the running SLURM cluster."""
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed; scripts/cluster installs it")
    try:
        call("squeue")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no SLURM answers here ({error}); scripts/cluster starts one")
    yield ["-m", "hydra/launcher=slurm", "hydra.launcher.cpus=1", "hydra.launcher.minutes=60"]
    subprocess.run(["scancel", "--me"], check=False)
    wait_for(lambda: not jobs(), None)


@pytest.fixture
def on_ray():
    """The overrides for a sweep on the running Ray cluster."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; scripts/cluster installs it")
    if "RAY_ADDRESS" not in os.environ:
        pytest.skip("no Ray cluster is named by RAY_ADDRESS; scripts/cluster starts one")
    return ["-m", "hydra/launcher=ray"]


@pytest.mark.cluster
def test_slurm_runs_an_array_within_its_limit(lab, on_slurm):
    grid = ["schedule.how=fine,raise,kill,diverge,once", "sweep.retries=1", "hydra.launcher.jobs=2"]
    done = finish(lab, *on_slurm, *grid, code=1)
    assert "2 completed, 1 diverged, 2 failed" in done.stdout
    assert states(lab)["how=once"] == "completed"
    assert "no such rate" in done.stdout and "killed by SIGKILL" in done.stdout
    scripts = [path.read_text() for path in (lab / "sweep" / "slurm").glob("*.sh")]
    assert any("--array=0-4%2" in text for text in scripts)
    assert all("--requeue" in text for text in scripts)


@pytest.mark.cluster
def test_slurm_takes_more_jobs_than_an_array_may_have(lab, on_slurm):
    done = finish(lab, *on_slurm, "seed=range(9)", "training.epochs=1", "hydra.launcher.jobs=2")
    assert "9 completed" in done.stdout
    arrays = re.findall(
        r"--array=0-(\d+)%", "".join(path.read_text() for path in (lab / "sweep" / "slurm").glob("*.sh"))
    )
    assert set(map(int, arrays)) == {2, 5}  # scripts/cluster sets MaxArraySize=6


@pytest.mark.cluster
def test_slurm_gives_a_preempted_run_back_to_its_folder(lab, on_slurm):
    process = start(lab, *on_slurm, "seed=1,2", *LONG, "hydra.launcher.jobs=1")
    wait_for(lambda: epochs(lab, "seed=1") > 0, process)
    call("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "2 completed" in output
    assert "Continuing from step" in log(lab, "seed=1") + log(lab, "seed=2")
    assert epochs(lab, "seed=1") == 40
    number = json.loads((lab / "sweep" / "slurm" / "jobs.json").read_text())["seed=1"]
    assert re.search(r"Restarts=[1-9]", call("scontrol", "show", "job", number))


@pytest.mark.cluster
def test_slurm_requeues_a_run_that_meets_its_time_limit(lab, on_slurm):
    # SLURM warns a job up to a minute early, and this one, 90 seconds before the end of its third.
    process = start(lab, *on_slurm, *LONG, "training.epochs=1500", "hydra.launcher.minutes=3")
    wait_for(lambda: (lab / "sweep" / "jobs.jsonl").exists(), process)
    (name,) = states(lab)
    wait_for(lambda: "Continuing from step" in log(lab, name), process, seconds=500)
    before = epochs(lab, name)
    wait_for(lambda: epochs(lab, name) > before, process)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130


@pytest.mark.cluster
def test_slurm_jobs_outlive_the_command_and_are_found_again(lab, on_slurm):
    process = start(lab, *on_slurm, "seed=1,2", *LONG)
    wait_for(lambda: epochs(lab, "seed=1") > 0, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    submitted = (lab / "sweep" / "slurm" / "jobs.json").read_text()
    done = finish(lab, *on_slurm, "seed=1,2", *LONG)
    assert "2 completed" in done.stdout
    assert (lab / "sweep" / "slurm" / "jobs.json").read_text() == submitted
    assert "Continuing from step" not in log(lab, "seed=1")


@pytest.mark.cluster
def test_an_interrupt_cancels_the_slurm_jobs_which_save(lab, on_slurm):
    process = start(lab, *on_slurm, "seed=1,2,3", *LONG, "hydra.launcher.jobs=1")
    wait_for(lambda: epochs(lab, "seed=1") > 0, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and "3 stopped" in output
    wait_for(lambda: not jobs(), None)
    finish(lab, *on_slurm, "seed=1,2,3", *LONG)
    assert "Continuing from step" in log(lab, "seed=1")


@pytest.mark.cluster
def test_a_slurm_job_that_dies_without_a_word_costs_its_job_alone(lab, on_slurm):
    process = start(lab, *on_slurm, "seed=1,2", *LONG, "sweep.retries=0", "hydra.launcher.jobs=1")
    wait_for(lambda: epochs(lab, "seed=1") > 0, process)
    result = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"submitit.core._submit" in path.read_bytes() and b"srun" not in path.read_bytes()
    ]
    for number in result:
        os.kill(number, signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 1 and "1 completed, 1 failed" in output, output
    assert re.search(r"SLURM ended job \d+_0: FAILED", output), output


@pytest.mark.cluster
def test_slurm_refuses_in_a_sentence(lab, on_slurm):
    done = finish(lab, *on_slurm, "seed=1,2", "hydra.launcher.partition=nowhere", code=2)
    assert "SLURM rejects the job" in done.stderr and "partition" in done.stderr


@pytest.mark.cluster
def test_ray_runs_jobs_and_tells_how_they_went(lab, on_ray):
    done = finish(lab, *on_ray, "schedule.how=fine,raise,kill,diverge,once", code=1)
    assert "2 completed, 1 diverged, 2 failed" in done.stdout
    assert "no such rate" in done.stdout and "killed by SIGKILL" in done.stdout


@pytest.mark.cluster
def test_an_interrupt_stops_the_ray_tasks_which_save(lab, on_ray):
    process = start(lab, *on_ray, "seed=1,2,3", *LONG)
    wait_for(lambda: epochs(lab, "seed=1") > 0, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and re.search(r"2 stopped, 1 waiting", output), output
    finish(lab, *on_ray, "seed=1,2,3", *LONG)
    assert "Continuing from step" in log(lab, "seed=1")


@pytest.mark.cluster
def test_a_ray_node_that_dies_costs_no_job(lab, on_ray):
    node = Path(os.environ.get("RAY_TMPDIR", "/nowhere")) / "ray-node.pid"
    if not node.exists():
        pytest.skip("only scripts/cluster starts a second Ray node that this test may kill")
    process = start(lab, *on_ray, "seed=1,2,3,4", *LONG, "sweep.retries=0")
    wait_for(lambda: epochs(lab, "seed=1") > 0 and epochs(lab, "seed=2") > 0, process)
    os.kill(int(node.read_text()), signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "4 completed" in output, output
    assert "Continuing from step" in log(lab, "seed=1") + log(lab, "seed=2")


def test_without_slurm_the_launcher_says_so(monkeypatch, tmp_path):
    launcher = slurm_launcher.slurm()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cifar_research\[slurm\]"):
        launcher.open(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="squeue --me fails on this machine; start the sweep on a login node"):
        launcher.open(tmp_path)


def test_without_ray_the_launcher_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(ray_launcher.__dict__, "__builtins__", dict(ray_launcher.__builtins__, __import__=_no_ray))
    with pytest.raises(ConfigError, match=r"cifar_research\[ray\]"):
        ray_launcher.ray().open(tmp_path)


def _no_ray(name, *more):
    if name == "ray":
        raise ImportError(name)
    return __import__(name, *more)


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (slurm_launcher.slurm, {"jobs": 0}, "jobs: 0 is out of range"),
        (slurm_launcher.slurm, {"requeues": -1}, "requeues: -1 is out of range"),
        (ray_launcher.ray, {"cpus": 0}, "cpus: 0 is out of range"),
        (ray_launcher.ray, {"gpus": -1}, "gpus: -1 is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(factory, settings, message):
    with pytest.raises(ValueError, match=message):
        factory(**settings)


def test_a_job_saves_and_stops_when_the_process_that_started_it_is_gone(tmp_path):
    overrides = [*SMALL, *LONG, f"hydra.run.dir={tmp_path / 'run'}"]
    process = worker.spawn(worker.JobCommand(overrides, tmp_path / "run", None), 1)
    wait_for(lambda: (tmp_path / "run" / "history.csv").exists(), process, seconds=120)
    process.send_signal(signal.SIGUSR2)  # SLURM's, for the parent
    time.sleep(0.5)
    assert process.poll() is None
    process.stdin.close()  # as the end of this process would
    assert process.wait(120) == 128 + signal.SIGTERM
    assert "CPU, 1 thread" in (tmp_path / "run" / "output.log").read_text()


def test_a_ray_task_tells_its_run_to_stop_once(monkeypatch, tmp_path):
    """A stop comes by the file and by the cancellation; a second signal would end the run before it saves."""
    message, polls = [], iter([None, None, KeyboardInterrupt, None, 143])

    class Process:
        returncode = 143

        def poll(self):
            value = next(polls)
            if value is KeyboardInterrupt:
                raise value
            return value

        def terminate(self):
            message.append(1)

    monkeypatch.setattr(worker, "spawn", lambda *arguments: Process())
    (tmp_path / ray_launcher._STOP).touch()
    assert ray_launcher._run(worker.JobCommand([], tmp_path, None), 1, str(tmp_path)) == 143
    assert message == [1]
