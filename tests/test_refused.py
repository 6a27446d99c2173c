"""A rejected command exits with code 2 and leaves every file as it was."""

import importlib
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_research import config, export, predict, report
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.runs import run_folder
from cifar_research.runtime import locks
from cifar_research.runtime.errors import ConfigError, DataError
from cifar_research.sweeps import search
from cifar_research.sweeps.launchers import local
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan
from cifar_research.training import command
from cifar_research.training.run import run as train_run

evaluate, train = (importlib.import_module(f"cifar_research.{name}") for name in ("evaluate", "train"))
SMALL = [
    "data=synthetic", "data.train_images=60", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[4]",
    "training.batch_size=30", "training.epochs=1", "tensorboard.enabled=false",
]  # fmt: skip
PETS = ["data=images", "data.dir=pets", "data.image_size=8", *SMALL[3:], "training.epochs=2"]
SPACE = ["optimizer.learning_rate=interval(0.001,0.01)"]
NEW, NEW_SWEEP = "hydra.run.dir=new/run", "hydra.sweep.dir=new/sweep"
LAB = """
import tensorflow as tf
def mean():
    return lambda logits, targets: tf.reduce_mean((logits - targets) ** 2)
"""


def stop(row):
    os.kill(os.getpid(), signal.SIGTERM)
    return False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with completed and stopped runs, a grid, a search, and damaged ones of each."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("a", "b"):
            Path("pets", name).mkdir(parents=True)
            for number in range(12):
                pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(f"pets/{name}/{number}.png")
        assert train.command([*SMALL, "hydra.run.dir=run"]) == 0
        assert (
            command.train(config.compose([*SMALL, "training.epochs=2", "hydra.run.dir=stopped"]), is_hopeless=stop)
            == 143
        )
        assert command.train(config.compose([*PETS, "hydra.run.dir=pets_run"]), is_hopeless=stop) == 143
        overrides = [*SMALL, "seed=1,2"]
        for name in ("grid", "search", "grid_damaged"):
            Path(name).mkdir()
        Ledger.open(Path("grid"), overrides, Plan.of(parse_sweep(overrides)).grid()).write()
        overrides = [*SMALL, *SPACE, "sweep.trials=2"]
        plan = Plan.of(parse_sweep(overrides))
        ledger = Ledger.open(Path("search"), overrides, None)
        ledger.write()
        assert search.Search(Path("search"), search.space(plan), 2, 0, plan, ledger).next()
        ledger.write()
        Path("grid_damaged/jobs.jsonl").write_text("{")
        shutil.copytree("run", "report_damaged")
        Path("report_damaged/report.json").write_text("{")
        shutil.copytree("stopped", "checkpoints_damaged")
        for path in Path("checkpoints_damaged/checkpoints").glob("*.ckpt"):
            path.write_bytes(path.read_bytes()[:-1])
        shutil.copytree("search", "study_damaged")
        Path("study_damaged/study.db").write_bytes(b"x" * 5000)
        Path("my_lab.py").write_text(LAB)
        shutil.copytree("run", "evaluated")
        Path("evaluated/evaluation.json").write_text('{"temperature": 2}')
        Path("evaluated/export").write_text("mine")
        Path("evaluated/evaluation").write_text("mine")
        shutil.copytree("run", "weights_missing")
        Path("weights_missing/model.weights.h5").unlink()
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    return tmp_path / "here"


def content(folder):
    """Return every path below a folder, with what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


RUNS = {
    "value": (["training.epochs=0", NEW], "training.epochs: 0"),
    "without a folder": (["training.epochs=0"], "training.epochs: 0"),
    "key": (["training.epoch=3", NEW], "training.epoch"),
    "option": (["optimizer=addam", NEW], "adam"),
    "word": (["--seed=1", NEW], "seed=1"),
    "flag": (["-p", "seed", NEW], "--cfg"),
    "several values to show": (["--cfg", "job", "optimizer=adam,sgd"], "optimizer: adam,sgd are several values"),
    "resolver": (["name=${nothing:x}", NEW], "nothing"),
    "another config": (["seed=9", "hydra.run.dir=run"], "seed"),
    "resume another config": (["resume=stopped", "seed=9"], "seed"),
    "resume with a grid's words": (["resume=stopped", "seed=1,2"], "seed"),
    "resume nothing": (["resume=nowhere"], "nowhere"),
    "resume without data": (["resume=pets_run", "data.dir=nowhere"], "nowhere"),
    "data": (["data=images", "data.dir=nowhere", NEW], "nowhere"),
    "data without a folder": (["data=images", "data.dir=nowhere"], "nowhere"),
    "cifar10": (["data=cifar10", "data.dir=nowhere", "data.download=false", NEW], "nowhere"),
    "class": (["data.classes=[circle,sqare]", NEW], "square"),
    "weights": (["backbone.weights=gone.weights.h5", NEW], "gone.weights.h5"),
    "weights of another network": (["backbone.weights=run", "backbone.filters=[8]", NEW], "backbone.weights"),
    "layer": (["training.phases.scratch.trainable=blok*", NEW], "blok"),
    "loss": (
        ["loss._target_=my_lab.mean", "~loss.label_smoothing", "~loss.class_weights", "allow_targets=[my_lab]", NEW],
        "[2]",
    ),
    "target": (["loss._target_=other_lab.mean", NEW], "allow_targets"),
    "module": (["schedule._target_=gone_lab.x", "allow_targets=[gone_lab]", NEW], "gone_lab"),
    "batch": (["data.drop_remainder=true", "training.batch_size=500", NEW], "data.drop_remainder"),
    "warm-up": (["schedule=cosine", "schedule.warmup_steps=99", NEW], "schedule.warmup_steps"),
    "profile": (["tensorboard.profile_start_step=99", NEW], "profile_start_step"),
    "log": (["hydra/job_logging=default", NEW], "hydra.job_logging: is not used"),
    "Hydra's log": (["hydra.verbose=true", NEW], "hydra.verbose: is not used"),
    "folder of .hydra": (["hydra.output_subdir=null", NEW], "hydra.output_subdir: is not used"),
    "working directory of an existing run": (
        ["resume=stopped", "hydra.job.chdir=true"],
        "hydra.job.chdir: is not used",
    ),
    "report": (["hydra.run.dir=report_damaged"], "report.json"),
    "checkpoints": (["resume=checkpoints_damaged"], "No checkpoint"),
    "folder of runs": (["hydra.run.dir=."], "holds other runs, such as checkpoints_damaged"),
    "resume a folder": (["resume=pets"], "pets: is not the folder of a run or a sweep; give"),
    "resume without a value": (["resume="], "resume: has no value; give the folder of a run or a sweep"),
    "folder of a sweep": (["hydra.run.dir=grid"], "is the folder of a sweep"),
    "folder that is a file": (["hydra.run.dir=my_lab.py"], "hydra.run.dir"),
    "folder in a file": (["hydra.run.dir=my_lab.py/run"], "hydra.run.dir"),
    "repeats nothing": (["--from-run", "nowhere"], "--from-run"),
    "repeats in its own folder": (["--from-run", "run", "hydra.run.dir=run"], "hydra.run.dir"),
    "verifies nothing": (["--verify", NEW], "--from-run"),
    "verifies another config": (["--from-run", "run", "--verify", "seed=9", NEW], "--verify"),
    "verifies what was stopped": (["--from-run", "stopped", "--verify", NEW], "--verify"),
}
SWEEPS = {
    "value": (["-m", "training.epochs=0,1", NEW_SWEEP], "training.epochs"),
    "without a folder": (["-m", "training.epochs=0,1"], "training.epochs"),
    "data": (["-m", "seed=1,2", "data=images", "data.dir=nowhere", NEW_SWEEP], "nowhere"),
    "data of one job": (["-m", "data=images", "data.dir=pets,nowhere", NEW_SWEEP], "nowhere"),
    "data of a search": (["-m", *SPACE, "sweep.trials=2", "data=images", "data.dir=nowhere", NEW_SWEEP], "nowhere"),
    "jobs": (["-m", "seed=1,2", "hydra.launcher.jobs=0", NEW_SWEEP], "hydra.launcher.jobs"),
    "slurm": (["-m", "seed=1,2", "hydra/launcher=slurm", NEW_SWEEP], "hydra/launcher"),
    "slurm in a grid": (["resume=grid", "seed=1,2,3", "hydra/launcher=slurm"], "hydra/launcher"),
    "ray": (["-m", "seed=1,2", "hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1", NEW_SWEEP], "hydra"),
    "ray in a search": (["resume=search", "hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"], "hydra"),
    "data of a grid": (["-m", "seed=1,2,3", "data=images", "data.dir=nowhere", "hydra.sweep.dir=grid"], "nowhere"),
    "another space": (["resume=search", "optimizer.learning_rate=interval(0.1,1)"], "another space"),
    "another value": (["resume=search", "training.epochs=2"], "training.epochs: the search in search has 1, the command"),
    "another key": (["resume=search", "optimizer=adam,sgd"], "another space"),
    "no trial": (["resume=search", "sweep.trials=0"], "sweep.trials"),
    "grid in a search": (["-m", "seed=1,2", "hydra.sweep.dir=search"], "holds a search"),
    "search in a grid": (["-m", *SPACE, "sweep.trials=2", "hydra.sweep.dir=grid"], "holds a grid"),
    "other jobs in a grid": (["resume=grid", "training.epochs=2"], "with another hydra.sweep.dir"),
    "other options in a grid": (["-m", "resume=grid", "loss=focal"], "none of these is one of them"),
    "damaged study": (["resume=study_damaged"], "study.db: is damaged"),
    "damaged ledger": (["resume=grid_damaged"], "jobs.jsonl: is damaged"),
    "in a damaged ledger's folder": (["-m", "seed=1,2", "hydra.sweep.dir=grid_damaged"], "jobs.jsonl: is damaged"),
    "folder of a run": (["-m", "seed=1,2", "hydra.sweep.dir=run"], "is a run's folder"),
    "folder in a file": (["-m", "seed=1,2", "hydra.sweep.dir=my_lab.py/sweep"], "hydra.sweep.dir"),
    "verified": (["-m", "--from-run", "run", "--verify", "seed=1,2", NEW_SWEEP], "--verify"),
}  # fmt: skip


def assert_refused(here, capsys, overrides, part, settings=()):
    before = content(here)
    is_repeat = any(word.startswith(("resume=", "--from-run")) for word in overrides)
    code = train.command([*overrides] if is_repeat else [*overrides, *settings])
    output = capsys.readouterr().err
    assert code == 2 and part in output and "Traceback" not in output, output
    assert content(here) == before


def with_small(overrides):
    """Return the small settings that the overrides do not set themselves; they come before the overrides."""
    keys = {word.partition("=")[0] for word in overrides}
    return [
        word for word in SMALL if word.partition("=")[0] not in keys and ("data" not in keys or "data." not in word)
    ]


@pytest.mark.parametrize(("overrides", "part"), RUNS.values(), ids=RUNS)
def test_a_refused_run_changes_nothing(here, capsys, overrides, part):
    assert_refused(here, capsys, overrides, part, with_small(overrides))


@pytest.mark.parametrize(("overrides", "part"), SWEEPS.values(), ids=SWEEPS)
def test_a_refused_sweep_changes_nothing(here, capsys, overrides, part):
    assert_refused(here, capsys, overrides, part, with_small(overrides))


@pytest.mark.parametrize("path", ["grid", "new/sweep"])
def test_a_cluster_that_refuses_the_first_job_changes_nothing(here, capsys, monkeypatch, path):
    def start(*of):
        raise ConfigError("hydra.launcher: SLURM rejects the job: invalid partition")

    monkeypatch.setattr(local.Local, "start", start)
    assert_refused(here, capsys, ["-m", "seed=1,2,3", f"hydra.sweep.dir={path}"], "invalid partition", SMALL)


def test_other_images_are_refused(here, capsys):
    Image.new("RGB", (8, 8)).save("pets/a/0.png")
    assert_refused(here, capsys, ["resume=pets_run"], "fingerprint")


@pytest.mark.parametrize(
    ("folder", "overrides", "part"),
    [
        ("run", ["hydra.run.dir=run"], "another process trains here"),
        ("stopped", ["resume=stopped"], "another process trains here"),
        ("grid", ["resume=grid"], "another sweep runs here"),
        ("search", ["resume=search"], "another sweep runs here"),
    ],
)
def test_a_folder_that_another_process_holds_is_refused(here, capsys, folder, overrides, part):
    lock = locks.Lock(here / folder / ".lock")
    lock.acquire()
    assert_refused(here, capsys, overrides, part, with_small(overrides))


def test_what_only_the_first_step_shows_leaves_no_folder(tmp_path):
    for error in (ConfigError("x"), DataError("x")):
        with pytest.raises(type(error)), run_folder.only_process_in(tmp_path / "new" / "run") as begin:
            begin()
            (tmp_path / "new" / "run" / "train.log").touch()
            raise error
        assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError), run_folder.only_process_in(tmp_path / "run") as begin:
        begin()
        (tmp_path / "run" / "checkpoints" / "step-1.ckpt").touch()
        raise ConfigError("x")
    assert (tmp_path / "run" / "checkpoints" / "step-1.ckpt").exists()


def test_a_function_call_that_is_refused_changes_nothing(here):
    before = content(here)
    for overrides, folder in ((["data.train_size=7"], "new"), (["seed=9"], "run"), (["model.hidden=[5]"], "stopped")):
        with pytest.raises(ValueError):
            train_run(config.parse([*SMALL, *overrides]), folder)
    assert content(here) == before


def test_a_run_that_has_ended_is_left_alone_and_one_that_goes_on_has_its_new_words(here):
    before = content(here)
    assert train.command([*SMALL, "hydra.run.dir=run"]) == 0
    assert content(here) == before
    assert train.command(["resume=stopped", "training.log_every_steps=7"]) == 0
    assert "training.log_every_steps=7" in Path("stopped/.hydra/overrides.yaml").read_text()


OTHERS = {
    "evaluate: data": (evaluate, ["run", "data=images", "data.dir=nowhere"], "nowhere"),
    "evaluate: the second run": (evaluate, ["run", "weights_missing"], "weights_missing"),
    "evaluate: no weights": (evaluate, ["weights_missing"], "weights_missing"),
    "evaluate: CIFAR-10.1": (evaluate, ["run", "--cifar10-1", "nowhere"], "--cifar10-1"),
    "evaluate: a file in its place": (evaluate, ["evaluated", "--corruptions", "none"], "Not a directory"),
    "evaluate: not completed": (evaluate, ["stopped"], "stopped"),
    "evaluate: against none": (evaluate, ["run", "--against", "weights_missing"], "weights_missing"),
    "export: no weights": (
        export,
        ["weights_missing", "--format", "saved_model", "--output", "new/x"],
        "weights_missing",
    ),
    "export: a file": (export, ["run", "--format", "saved_model", "--output", "my_lab.py"], "--output"),
    "export: a file in its place": (export, ["evaluated", "--format", "saved_model"], "export"),
    "report: nothing": (report, ["nowhere", "--write"], "nowhere"),
    "report: a glob": (report, ["r*n", "--write"], "--write"),
    "report: no best": (report, ["stopped", "--write", "--best"], "best"),
    "predict: a folder": (predict, ["run", "grid"], "grid"),
    "predict: a sweep": (
        predict,
        ["grid", "pets"],
        "grid: is not the folder of a run that has ended; give one with report.json",
    ),
}


@pytest.mark.parametrize(("program", "overrides", "part"), OTHERS.values(), ids=OTHERS)
def test_other_commands_that_are_refused_change_nothing(here, capsys, monkeypatch, program, overrides, part):
    before = content(here)
    monkeypatch.setattr(sys, "argv", [program.__name__, *overrides])
    with pytest.raises(SystemExit) as ended:
        program.main()
    output = capsys.readouterr().err
    assert ended.value.code in (1, 2) and part in output, output
    assert content(here) == before


@pytest.mark.parametrize(
    "overrides",
    [
        [*SMALL, "hydra.run.dir=new"],
        [*SMALL, "hydra.run.dir=new", "data.train_size=7"],
        ["resume=checkpoints_damaged"],
        [*SMALL, "hydra.run.dir=new", "training.precision=bfloat16"],
        ["--help"],
        ["--cfg", "job"],
        ["training.epochs=0"],
    ],
)
def test_what_a_command_turns_off_is_on_again(here, overrides):
    import keras

    root, log = logging.getLogger(), logging.getLogger("cifar_research.train")

    def state():
        switches = logging.raiseExceptions, logging.root.manager.disable, log.disabled, root.level
        variables = {key: value for key, value in os.environ.items() if key.startswith(("HYDRA", "REFUSED"))}
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
        return (
            switches, root.handlers[:], sys.argv[:], os.getcwd(), variables, handlers, keras.config.dtype_policy().name
        )  # fmt: skip

    before = state()
    try:
        train.command(overrides)
    except SystemExit as leave:
        assert leave.code == 0
    assert state() == before


def test_a_run_has_hydras_files_and_a_log(here):
    assert train.command([*SMALL, "hydra.run.dir=new", "name=${hydra:job.name}"]) == 0
    assert {path.name for path in Path("new/.hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert json.loads(Path("new/report.json").read_text())["config"]["name"] == "train"
    assert Path("new/train.log").exists()
