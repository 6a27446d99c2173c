"""Sweeps resume after any stop; a failed job is a row of the table."""

import io
import json
import os
import re
import signal
import time
from pathlib import Path

import forked
import pytest
from forked import wait_for
from rich.console import Console

from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.config.sweep import parse_command
from cifar_research.runs import report, run_folder
from cifar_research.runs.ledger import Job, read
from cifar_research.runtime import locks
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import live
from cifar_research.sweeps import run as sweep
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan

SMALL = [
    "data=synthetic", "data.train_images=200", "data.test_images=50", "backbone.filters=[8]", "model.hidden=[8]",
    "training.epochs=3", "training.batch_size=20", "loss=categorical_crossentropy", "tensorboard.enabled=false",
]  # fmt: skip


def overrides(folder, *more, with_dir=True):
    path = [f"hydra.sweep.dir={folder / 'sweep'}"] if with_dir else []
    own = ["hydra.searchpath=[file://my_conf]", "allow_targets=[my_lab]", "schedule=breaks"]
    extra = own if (folder / "my_conf").exists() else []
    return [*SMALL, *extra, *more, *path]


def start(folder, *more, **settings):
    return forked.Process(overrides(folder, *more), cwd=folder, **settings)


def finish(folder, *more, code=0, command=None, workers=True):
    done = forked.run(command or overrides(folder, *more), cwd=folder, workers=workers)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def own_schedule(folder, source, settings=""):
    """Write a user's schedule `my_lab.breaks` and its option into the folder."""
    (folder / "my_lab.py").write_text(source)
    (folder / "my_conf" / "schedule").mkdir(parents=True)
    (folder / "my_conf" / "schedule" / "breaks.yaml").write_text(f"_target_: my_lab.breaks\n{settings}")


def ledger(folder):
    return {job.folder: job for job in read(folder / "sweep")[1]}


def states(folder):
    return {name: job.state for name, job in ledger(folder).items()}


def processes_in(folder):
    """Return the ids of the living processes that work in a folder of this test."""
    result = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") == str(folder) and "Z" not in (path / "stat").read_text().split()[2]:
                result.append(int(path.name))
        except OSError:
            continue
    return result


def plan(*arguments):
    return Plan.of(parse_sweep(arguments)).grid()


def test_the_command_line_replaces_what_a_sweeps_file_varies_whatever_its_pluses():
    assert len(plan("sweep=hyperparameters", "++optimizer.learning_rate=0.1")) == 8  # of 24


def test_the_studys_grid_has_its_24_jobs_in_its_order():
    planned = plan("sweep=hyperparameters")
    assert len(planned) == 24
    first = {key: value for key, _, value in (word.partition("=") for word in planned[0].overrides)}
    assert first["experiment"] == "wide" and first["optimizer"] == "adam"
    keys = ("pooling", "dropout", "learning_rate", "loss")
    result = [
        (
            job.config["backbone"]["pooling"],
            job.config["model"]["dropout"],
            job.config["optimizer"]["learning_rate"],
            job.config["loss"]["_target_"].rpartition(".")[2],
        )
        for job in planned
    ]
    losses = ("categorical_crossentropy", "mean_squared_error")
    assert result == [
        (p, d, r, loss) for p in ("max", "avg") for d in (0.3, 0.5) for r in (0.005, 0.001, 0.0001) for loss in losses
    ]
    assert len({job.folder for job in planned}) == 24
    assert planned[-1].folder == ",".join(f"{k}={v}" for k, v in zip(keys, map(str, result[-1]), strict=True))
    assert all(job.config["model"]["hidden"] == [512, 256] for job in planned)


def test_sweeps_compose_with_experiments_and_overrides():
    planned = plan("sweep=seeds", "experiment=wide", "optimizer.learning_rate=0.001")
    assert [job.config["seed"] for job in planned] == [0, 1, 2, 3, 4]
    assert {job.config["optimizer"]["learning_rate"] for job in planned} == {0.001}
    assert {job.config["name"] for job in planned} == {"wide"}
    assert [job.folder for job in plan("sweep=seeds", "seed=7,8")] == ["seed=7", "seed=8"]
    assert len(plan("sweep=hyperparameters", "experiment=enlarged", "model.dropout=0.4")) == 12


def test_a_mapping_adds_to_an_option_and_to_another_mapping():
    planned = plan("optimizer=adam,sgd", "optimizer={learning_rate:0.5}")
    assert [job.config["optimizer"]["learning_rate"] for job in planned] == [0.5, 0.5]
    assert len(plan("optimizer={beta_1:0.5},{beta_1:0.6}", "optimizer={beta_1:0.7}")) == 1
    assert len(plan("optimizer={beta_1:0.5},{beta_1:0.6}", "optimizer={beta_1:0.7},{beta_1:0.8}")) == 2
    (job,) = plan("seed=1", "optimizer={beta_1:0.5}", "optimizer={beta_1:0.6}", "optimizer={beta_1:0.5}", "seed=2")
    assert (job.config["optimizer"]["beta_1"], job.config["seed"]) == (0.5, 2)
    (job,) = plan("optimizer={beta_1:0.5}", "optimizer={beta_2:0.9}")
    assert (job.config["optimizer"]["beta_1"], job.config["optimizer"]["beta_2"]) == (0.5, 0.9)


def test_keys_of_an_option_that_only_the_jobs_choose():
    planned = plan("sweep=backbones", "backbone.image_size=64", "training=scratch,fine_tuning")
    assert len(planned) == 6 and {job.config["backbone"]["image_size"] for job in planned} == {64}
    with pytest.raises(ConfigError, match="image_sise.*in the job backbone=vgg16"):
        plan("backbone=vgg16,resnet50", "backbone.image_sise=64", "model=linear")


def test_folders_are_named_after_what_varies():
    assert [job.folder for job in plan("model.dropout=0.1,0.2", "backbone.dropout=0.1", "seed=1")] == [
        "dropout=0.1",
        "dropout=0.2",
    ]
    names = [job.folder for job in plan("model.dropout=0,0.2", "backbone.dropout=0.1,0.2")]
    assert names[0] == "model.dropout=0,backbone.dropout=0.1"
    names = [job.folder for job in plan("backbone.filters=[8,8],[16,16,16]", "seed=1,2")]
    assert names[0] == "filters=8,8,seed=1" and len(set(names)) == 4
    long = [job.folder for job in plan(f"model.hidden={','.join(str([8] * n) for n in range(1, 90, 40))}")]
    assert len(set(long)) == 3 and all(len(name) <= 255 for name in long)


def test_jobs_that_compute_the_same_are_one():
    assert len(plan("seed=1,1,2", "augmentation=flip,[flip]")) == 2
    assert len(plan("model.dropout=0,0.0,0.5")) == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model.dropout=0.1,7"], ["dropout=7", "out of range"]),
        (["optimizer=adam,sgdd"], ["optimizer=sgdd", "did you mean 'sgd'"]),
        (["optimizer.learning_rate=interval(0,1)"], ["key=a,b,c", "sweep.trials"]),
        (["sweep=sedes"], ["did you mean 'seeds'"]),
        (["seed=range(5,0)"], ["seed=range(5,0): has no values"]),
        (
            ["seed=1,2", "hydra.launcher=local"],
            ["hydra.launcher: 'local' is not a section; to choose an option, write hydra/launcher="],
        ),
        (["seed=1,2", "sweep.on_error=halt"], ["sweep.on_error", "continue, stop"]),
        (["seed=1,2", "sweep.retries=-1"], ["sweep.retries", "at least 0"]),
        (["seed=1,2", "hydra.launcher.jobs=0"], ["hydra.launcher.jobs: 0 is out of range"]),
        (["seed=1,2", "hydra.launcher.job=2"], ["hydra.launcher", "job", "jobs"]),
        (["seed=1,2", "+sweep.foo=1"], ["sweep.foo: there is no such key; it has keep"]),
        (["model.dropout=0.1,0.2", "~seed"], ["seed: cannot be removed; leave out ~seed"]),
        (["sweep=seeds,hyperparameters"], ["sweep=seeds,hyperparameters", "takes one value"]),
        (["seed=1,2", "hydra.launcher.jobs=1,2"], ["hydra.launcher.jobs=1,2", "takes one value"]),
        (["seed=1,2", "+hydra.job.env_set.X=1"], ["hydra.job.env_set: is not used by this command; remove it"]),
        (["seed=1,2", "hydra.job.name=x"], ["hydra.job.name", "has no effect on the jobs of a sweep"]),
        (["seed=1,2", "hydra/launcher=basic"], ["hydra/launcher", "choose hydra/launcher=local"]),
        (["seed=1,2", "hydra/launcher=locale"], ["hydra/launcher", "local"]),
        (["allow_targets=a,b", "seed=1,2"], ["allow_targets: takes one list for all jobs of a sweep"]),
        (["data.dir=a,b"], ["data.dir=a,b", "does not change the results"]),
        (["name=a,b", "seed=1,2"], ["name=a,b", "does not change the results"]),
        (["seed=1,2", "--cfg", "job"], ["--cfg: cannot be used with a sweep; remove it or -m"]),
        (["seed=1,2", "--version"], ["--version: cannot be used with a sweep; remove it or -m"]),
        (["--seed=1,2"], ["--seed=1,2: is not an option; write settings without dashes, as in seed=1"]),
    ],
)
def test_a_bad_sweep_is_refused_and_leaves_nothing(tmp_path, arguments, parts):
    command = ["-m", *arguments, f"hydra.sweep.dir={tmp_path / 's'}"]
    done = finish(tmp_path, command=command, code=2)
    assert not [part for part in parts if part not in done.stderr], done.stderr
    assert not (tmp_path / "s").exists()


def test_folders_of_images_are_a_job_each(tmp_path):
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {data: images, data.dir: 'a,b'}}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)  # only a job shows that these are folders
    result = plan(f"hydra.searchpath=[file://{tmp_path}]", "sweep=mine")
    assert [job.config["data"]["dir"] for job in result] == ["a", "b"]


def test_a_folder_holds_a_run_or_a_grid_or_a_search(tmp_path):
    (tmp_path / "grid").mkdir()
    Ledger.open(tmp_path / "grid", [], plan("seed=1,2")).write()
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    with pytest.raises(ConfigError, match="hydra.run.dir: .*grid is the folder of a sweep"):
        run_folder.only_process_in(tmp_path / "grid").__enter__()
    for overrides, name, part in (
        (["seed=1,2"], "run", "is a run's folder"),
        (["optimizer=adam,sgd", "sweep.trials=2"], "grid", "holds a grid, and this is a search"),
    ):
        with pytest.raises(ConfigError, match=part):
            sweep.run(parse_sweep([*overrides, f"hydra.sweep.dir={tmp_path / name}"]))
    (tmp_path / "grid" / "study.db").touch()
    with pytest.raises(ConfigError, match="holds a search, and this is a grid"):
        sweep.run(parse_sweep(["seed=1,2", f"hydra.sweep.dir={tmp_path / 'grid'}"]))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".hydra"]
    assert sorted(path.name for path in (tmp_path / "grid").iterdir()) == ["jobs.jsonl", "study.db"]


@pytest.mark.parametrize(
    ("overrides", "num_jobs"),
    [
        ([], 5),
        (["data.folds=5"], 5),
        (["data.folds=10"], None),
        (["data.folds=3"], None),
        (["data.folds=10", "data.fold=range(10)"], 10),
        (["data.folds=10", "data.fold=0,1"], 2),
        (["sweep=[folds,seeds]", "seed=0,1"], 10),
    ],
)
def test_a_sweep_holds_out_each_fold_or_those_that_are_typed(overrides, num_jobs):
    arguments = overrides if overrides and overrides[0].startswith("sweep=") else ["sweep=folds", *overrides]
    if num_jobs is not None:
        assert len(plan(*arguments)) == num_jobs
        return
    number = overrides[0].partition("=")[2]
    with pytest.raises(
        ConfigError, match=rf"lists 0,1,2,3,4, and data.folds is {number}; add 'data.fold=range\({number}\)'"
    ):
        plan(*arguments)


def test_settings_that_no_job_would_see_are_refused(tmp_path):
    (tmp_path / "my_conf" / "sweep").mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\ntraining: {epochs: 3}\n"
    (tmp_path / "my_conf" / "sweep" / "mine.yaml").write_text(text)
    overrides = ["hydra.searchpath=[file://my_conf]", "sweep=mine"]
    done = finish(tmp_path, command=overrides, code=2)
    assert "training.epochs" in done.stderr and "hydra.sweeper.params" in done.stderr
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1', sweep.keep: all}}}\n"
    (tmp_path / "my_conf" / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="hydra.sweeper.params: sweep.keep is not a key of a job"):
        plan(f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]", "sweep=mine")


@pytest.mark.slow
def test_six_jobs_with_a_kill_a_crash_and_a_divergence(lab):
    grid = ["-m", "schedule.how=fine,die,diverge", "seed=0,1", "sweep.retries=0"]
    process = start(lab, *grid)
    wait_for(lambda: (lab / "sweep" / "how=fine,seed=1" / "history.csv").exists(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes_in(lab), None)  # the worker has noticed, saved and gone
    complete = lab / "sweep" / "how=fine,seed=0" / "report.json"
    before = complete.stat().st_mtime_ns
    assert not (lab / "sweep" / "how=diverge,seed=1").exists()

    done = finish(lab, *grid, code=1)
    assert "2 completed, 2 diverged, 2 failed" in done.stdout
    assert "1 of 6 jobs are complete, 1 started, 4 new" in done.stdout
    assert complete.stat().st_mtime_ns == before
    assert "Continuing from step" in (lab / "sweep" / "how=fine,seed=1" / "output.log").read_text()
    assert states(lab) == {
        f"how={how},seed={seed}": state
        for how, state in (("fine", "completed"), ("die", "failed"), ("diverge", "diverged"))
        for seed in (0, 1)
    }
    assert ledger(lab)["how=die,seed=0"].reason == "its process ended with exit code 7"
    assert "loss not finite" in ledger(lab)["how=diverge,seed=0"].reason
    board = (lab / "sweep" / "leaderboard.md").read_text()
    assert "failed: its process ended with exit code 7" in board and "loss not finite" in board
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("Next:") and "resume=" in line]
    assert f"resume={lab / 'sweep'}" in command

    # `resume=` repeats those that failed and no others; a grid that has grown keeps what both have.
    reports = {path: path.stat().st_mtime_ns for path in (lab / "sweep").glob("*/report.json")}
    assert f"'allow_targets=[my_lab]' resume={lab / 'sweep'}" in command
    base = ["allow_targets=[my_lab]", f"resume={lab / 'sweep'}"]
    done = finish(lab, command=[*base, "schedule.how=fine,diverge", "seed=0,1,2"])
    assert "4 of 6 jobs are complete, 0 started, 2 new" in done.stdout and "2 of an earlier grid" in done.stdout
    assert "4 completed" not in done.stdout and "3 completed, 3 diverged" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in reports} == reports
    assert ledger(lab)["how=die,seed=1"].is_planned is False


@pytest.mark.slow
def test_reasons_and_retries(lab):
    done = finish(lab, "-m", "schedule.how=raise,kill,once,fine", "hydra.launcher.jobs=2", code=1)
    assert "2 completed, 2 failed" in done.stdout
    result = ledger(lab)
    assert result["how=raise"].reason.startswith("RuntimeError: no such rate")
    assert result["how=kill"].reason == "killed by SIGKILL, as the system does when memory runs out"
    assert [result[f"how={how}"].attempts for how in ("raise", "kill", "once", "fine")] == [2, 2, 2, 1]
    assert "Traceback" in (lab / "sweep" / "how=raise" / "output.log").read_text()
    assert "how=raise: RuntimeError" in done.stdout and "output.log" in done.stdout
    wait_for(lambda: not processes_in(lab), None)


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_on_error_stop_begins_no_other_job(lab, retries):
    finish(lab, "-m", "schedule.how=raise,fine", "sweep.on_error=stop", f"sweep.retries={retries}", code=1)
    assert states(lab) == {"how=raise": "failed", "how=fine": "waiting"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_no_process(tmp_path, number, code):
    more = ["-m", "optimizer.beta_1=0.8,0.9,0.7", "training.epochs=400", "hydra.launcher.jobs=2"]
    # By one of the signals also to workers that start as a user's do.
    process = start(tmp_path, *more, workers=number == signal.SIGTERM)
    running = [tmp_path / "sweep" / f"beta_1={value}" for value in (0.8, 0.9)]
    wait_for(lambda: all((folder / "history.csv").exists() for folder in running), process)
    second = finish(tmp_path, *more, code=2)
    assert "another sweep runs here" in second.stderr
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal signals the whole group
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code, output + errors
    assert "Traceback" not in output + errors and f"resume={tmp_path / 'sweep'}" in output
    assert not processes_in(tmp_path)
    assert states(tmp_path) == {"beta_1=0.8": "stopped", "beta_1=0.9": "stopped", "beta_1=0.7": "waiting"}
    for folder in running:
        assert json.loads((folder / "report.json").read_text())["status"] == "stopped"
        assert list((folder / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_workers_are_replaced_and_share_the_cores(tmp_path):
    own_schedule(
        tmp_path,
        "import os\n"
        "def breaks(*, tag: int = 0):\n"
        "    def rate(step, total_steps, steps_per_epoch):\n"
        "        print('WORKER', os.getpid(), len(os.sched_getaffinity(0)), os.environ.get('CUDA_VISIBLE_DEVICES'))\n"
        "        return step * 0 + 1.0\n"
        "    return rate\n",
        "tag: 0\n",
    )
    finish(tmp_path, "-m", "schedule.tag=0,1,2,3", "hydra.launcher.runs_per_process=2", "training.epochs=1")
    workers = []
    for tag in range(4):
        text = (tmp_path / "sweep" / f"tag={tag}" / "output.log").read_text()
        workers.append(next(line.split()[1:] for line in text.splitlines() if line.startswith("WORKER")))
    ids = [process for process, _, _ in workers]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert {int(count) for _, count, _ in workers} == {len(os.sched_getaffinity(0))}


@pytest.mark.slow
def test_a_job_after_one_of_other_threads_is_what_it_is_alone(tmp_path):
    own_schedule(
        tmp_path,
        "import os\n"
        "import tensorflow as tf\n"
        "def breaks():\n"
        "    threads = tf.config.threading.get_intra_op_parallelism_threads\n"
        "    return lambda step, *_: print('WORKER', os.getpid(), threads()) or step * 0 + 1.0\n",
    )
    # Without batch normalisation batches have parts, and an operation one thread.
    finish(tmp_path, "-m", "backbone.batch_norm=false,true", "seed=0,1", "training.threads=2", "training.epochs=1")
    workers = {}
    for folder in (tmp_path / "sweep").glob("*batch_norm*"):
        text = (folder / "output.log").read_text()
        workers[folder.name] = next(line.split()[1:] for line in text.splitlines() if line.startswith("WORKER"))
    assert {name: int(threads) for name, (_, threads) in workers.items()} == {
        name: 2 if "batch_norm=True" in name else 1 for name in workers
    }
    assert len(workers) == 4 and len({process for process, _ in workers.values()}) == 2
    assert set(states(tmp_path).values()) == {"completed"}


def test_a_job_that_ends_as_a_stale_process_would_is_not_begun_for_ever(tmp_path):
    own_schedule(tmp_path, "import os\ndef breaks():\n    return lambda *of_training: os._exit(75)\n")
    finish(tmp_path, "-m", "seed=0,1", "sweep.retries=0", code=1)
    assert set(states(tmp_path).values()) == {"failed"}


def test_a_damaged_ledger_is_reported_and_a_lost_one_made_again(tmp_path):
    grid = ["-m", "seed=0,1", "training.epochs=1"]
    finish(tmp_path, *grid)
    path = tmp_path / "sweep" / "jobs.jsonl"
    path.write_text(path.read_text().replace('"waiting"', "waiting", 1))
    assert "jobs.jsonl: is damaged (line 2: " in finish(tmp_path, *grid, code=2).stderr
    path.unlink()
    before = (tmp_path / "sweep" / "seed=0" / "report.json").stat().st_mtime_ns
    assert "2 completed" in finish(tmp_path, *grid).stdout
    assert (tmp_path / "sweep" / "seed=0" / "report.json").stat().st_mtime_ns == before
    other = finish(tmp_path, *grid, "training.batch_size=50", code=2).stderr
    assert "holds a sweep with other jobs, and none of these is one of them" in other


def test_glob_is_the_groups_options_and_those_of_other_folders(tmp_path):
    result = [
        job.config["optimizer"]["_target_"].rpartition(".")[2] for job in plan("optimizer=glob(*,exclude=[muon,lion])")
    ]
    assert result == ["adam", "adamw", "rmsprop", "sgd"]
    (tmp_path / "schedule").mkdir()
    text = "_target_: cifar_research.optimization.schedules.constant\nwarmup_epochs: 1\nwarmup_steps: 0\n"
    (tmp_path / "schedule" / "chilly.yaml").write_text(text)
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "schedule=glob(c*)", "training.epochs=20"]
    assert [job.folder for job in plan(*overrides)] == ["schedule=chilly", "schedule=constant", "schedule=cosine"]
    (tmp_path / "sweep").mkdir()
    params = "hydra: {mode: MULTIRUN, sweeper: {params: {schedule: 'glob(co*)'}}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\n{params}")
    assert len(plan(overrides[0], "sweep=mine")) == 2


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("optimizer=glob(x*)", "no option of optimizer matches; its options are adam,"),
        ("seed=glob(*)", "no option of seed matches; its options are none"),
    ],
)
def test_glob_of_nothing_is_refused(word, part):
    with pytest.raises(ConfigError, match=rf"^{re.escape(word)}: .*{part}"):
        plan(word)


def test_jobs_resolve_as_runs_do_and_names_stay_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["data=images", "data.dir=${hydra:runtime.cwd}/pets", "data.classes=[true,null],['001',1e3]"]
    result = [job.config["data"] for job in plan(*overrides)]
    assert [one["classes"] for one in result] == [["true", "null"], ["001", "1e3"]]
    assert {one["dir"] for one in result} == {f"{tmp_path}/pets"}
    assert str(parse_sweep(["hydra.sweep.dir=s/${hydra:job.override_dirname}", "seed=1,2"]).folder) == "s/seed=1,2"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("hydra/launcher=slurm", "add -m to submit it as one job"),
        ("hydra/launcher=ray hydra.run.dir=x", "this is one run; use hydra/launcher=local"),
        ("hydra.launcher.jobs=2", "add -m, or remove it"),
        ("hydra.launcher.jobs=2 hydra.run.dir=x", "this is one run; remove it$"),
        ("hydra.sweep.dir=s", "add -m"),
        ("sweep.retries=2", "add -m"),
    ],
)
def test_what_is_for_a_sweep_is_refused_for_one_run(overrides, part):
    with pytest.raises(ConfigError, match=rf"^{overrides.partition('=')[0]}: .*{part}"):
        parse_command(overrides.split())


def test_a_launcher_of_a_preset_is_refused_for_one_run_and_taken_for_its_job(tmp_path):
    (tmp_path / "experiment").mkdir()
    preset = "# @package _global_\nhydra: {launcher: {_target_: cifar_research.sweeps.launchers.slurm.slurm}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(preset)
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    with pytest.raises(ConfigError, match="^hydra/launcher: slurm "):
        parse_command(overrides)
    parse_command([*overrides, "hydra/launcher=local"])
    assert len(plan("hydra/launcher=slurm", "seed=3")) == 1


@pytest.mark.parametrize(("monitor", "expected"), [("accuracy", 0.5), ("loss", 1.0)])
def test_the_monitored_metric_of_the_best_epoch_is_shown(tmp_path, monitor, expected):
    (tmp_path / "run").mkdir()
    row = dict.fromkeys(report.HISTORY_COLUMNS, 1) | {"phase": "scratch"}
    rows = [row | {"val_loss": loss, "val_accuracy": accuracy} for loss, accuracy in [(2.0, 0.5), (1.0, 0.25)]]
    report.write_history(tmp_path / "run" / "history.csv", rows)
    training = {"monitor": monitor, "epochs": 3, "phases": {"scratch": {"epochs": None}}}
    job = Job("run", [], {"training": training}, "completed")
    launcher = type("Launcher", (), {"slots": 1, "is_queued": lambda self, key: False})()
    file = io.StringIO()
    with live.Live(tmp_path, [job], launcher, 1, Console(file=file, width=200)) as display:
        display.ended(job)
    assert f"run: completed, validation {monitor} {expected:.4f} in its best epoch" in file.getvalue()


@pytest.mark.parametrize("time", ["8", "8 h", "h", "0s", "-1h", "1h30m", "soon"])
def test_a_wrong_time_limit_is_refused(time):
    with pytest.raises(ConfigError, match=f"sweep.time_limit: '{time}' is not a time; give a number"):
        parse_sweep(["seed=1,2", f"sweep.time_limit={time}"])


@pytest.mark.slow
def test_a_sweep_out_of_time_saves_and_continues(tmp_path):
    grid = ["-m", "seed=0,1", "training.epochs=300"]
    done = finish(tmp_path, *grid, "sweep.time_limit=12s", code=124)
    assert "sweep.time_limit=12s is over. Stopping" in done.stdout and f"resume={tmp_path / 'sweep'}" in done.stdout
    assert states(tmp_path) == {"seed=0": "stopped", "seed=1": "waiting"}
    assert (tmp_path / "sweep" / "seed=0" / "report.json").exists()


@pytest.mark.slow
def test_a_running_sweep_is_watched_by_its_files(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", "training.epochs=400")
    wait_for(lambda: (tmp_path / "sweep" / "seed=0" / "history.csv").exists(), process)
    shown = forked.Process([tmp_path / "sweep", "--watch"], module="cifar_research.report", cwd=tmp_path)
    wait_for(lambda: "2 jobs" in shown.output, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    output, errors = shown.communicate()
    assert shown.returncode == 0, errors
    assert "2 jobs, 1 at once" in output and "1 stopped, 1 waiting" in output


def test_watching_counts_each_end_and_a_searchs_trials(tmp_path, monkeypatch):
    config = {"training": {"monitor": "accuracy", "epochs": 3, "phases": {"scratch": {"epochs": None}}}}
    config |= {"augmentation": {}, "sweep": {"trials": 5}}
    jobs = [Job(name, [], config, "running") for name in "abc"]
    lines = [{"arguments": []}, *(job.line for job in jobs)]
    (tmp_path / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "a" / ".hydra").mkdir(parents=True)
    os.utime(tmp_path / "a" / ".hydra", (0, time.time() - 60))
    content = {"status": "completed", "config": config, "seconds": {"total": 60.0}, "val": None}
    report.write_report(tmp_path / "a" / "report.json", content)
    changes = iter([("a", "completed"), ("b", "failed")])

    def is_held(folder):
        name, state = next(changes, (None, None))
        if name is not None:
            jobs["abc".index(name)].state = state
            with (folder / "jobs.jsonl").open("a") as file:
                file.write(f"{json.dumps(jobs['abc'.index(name)].change)}\n")
        return name is not None

    monkeypatch.setattr(locks, "is_held", is_held)
    monkeypatch.setattr(live, "_WATCH_SECONDS", 0)
    before = sorted(tmp_path.rglob("*"))
    live.watch(tmp_path, Console(file=(shown := io.StringIO()), width=200))
    first, *ends, counts, command = shown.getvalue().splitlines()
    assert first.endswith("5 jobs, 3 at once") and counts == "1 completed, 1 failed, 1 stopped"
    assert command == f"Next: scripts/train resume={tmp_path}"
    # The seconds are the run's own, not those since the watching began.
    assert re.match(r"\[1/5\] a: completed, 6\d s; about \d min left", ends[0]), ends
    assert re.match(r"\[1/5\] b: failed, \d s", ends[1]), ends
    assert sorted(tmp_path.rglob("*")) == before


def test_a_large_sweeps_table_has_what_runs_and_what_ended_last(tmp_path):
    config = {"training": {"monitor": "accuracy", "epochs": 3, "phases": {"scratch": {"epochs": None}}}}
    states = ["completed"] * 500 + ["running"] + ["waiting"] * 499
    jobs = [Job(f"job{number}", [], config, state) for number, state in enumerate(states)]
    console = Console(file=(shown := io.StringIO()), force_terminal=True, width=100)
    with live.Live(tmp_path, jobs, None, 1000, console):
        pass
    shown = shown.getvalue()
    assert "job500 " in shown and "job499 " in shown and "job0 " not in shown and "job999 " not in shown
    assert re.search(r"and 9\d\d more", shown)


def test_watching_needs_the_folder_of_a_sweep(tmp_path):
    done = forked.run([tmp_path, "--watch"], module="cifar_research.report", cwd=tmp_path)
    assert done.returncode == 2 and f"{tmp_path}: is not the folder of a sweep" in done.stderr
    assert not list(tmp_path.iterdir())
