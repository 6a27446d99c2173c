"""Where CIFAR is searched for, and messages about missing files."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import forked
import pytest
from test_datasets import lay_out, load

from cifar_research import config
from cifar_research.data import cifar, datasets
from cifar_research.display import console
from cifar_research.evaluation import images as evaluation
from cifar_research.runs import report, reproduction, run_folder
from cifar_research.runs.ledger import Job
from cifar_research.runtime import environment, folders
from cifar_research.runtime.errors import ConfigError, DataError
from cifar_research.sweeps import resume
from cifar_research.sweeps.ledger import Ledger
from cifar_research.training.run import run as train_run

SMALL = ["backbone.filters=[4]", "model.hidden=[4]", "training.epochs=1", "tensorboard.enabled=false"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("CIFAR_DATA_DIR", raising=False)
    monkeypatch.setattr(cifar, "fetch", lambda *args: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)


def find(data_dir=None, name="cifar10", found_in=None):
    return cifar.locate(name, data_dir, folders.root(None), True, found_in)[1]


LAYOUTS = [(name, which) for name, pair in cifar.LAYOUTS.items() for which in range(len(pair))]


@pytest.mark.parametrize(("name", "which"), LAYOUTS)
@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("path", ["data", "cache/data"])
def test_what_an_incomplete_folder_lacks_is_named(tmp_path, name, which, is_empty, path):
    folder, layout = lay_out(tmp_path / path, name, which, archive=False), cifar.LAYOUTS[name][which]
    given = path if path == "data" else None
    for member in layout.members[-3:]:
        content = (folder / member).read_bytes()
        (folder / member).write_bytes(b"") if is_empty else (folder / member).unlink()
        output = f"{folder} is incomplete: missing or empty: {member}; download"
        with pytest.raises(DataError, match=output):
            find(given, name)
        (folder / member).write_bytes(content)
    assert find(given, name) == folder
    test, names = layout.members[-2:]
    (folder / test).unlink()
    (folder / names).unlink()
    with pytest.raises(DataError, match=f"missing or empty: {test}, {names};"):
        find(given, name)
    # Another complete layout is used.
    other = lay_out(tmp_path / path, name, 1 - which, archive=True)
    assert find(given, name) == other


def test_a_broken_copy_of_keras_hinders_no_download(tmp_path, monkeypatch):
    folder = lay_out(tmp_path / "keras" / "datasets", "cifar10", 0, archive=False)
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="missing or empty: test_batch;"):
        load()
    monkeypatch.setattr(cifar, "fetch", lambda url, path, sha256: None)
    assert find() == tmp_path / "cache" / "data" / "cifar-10-python.tar.gz"


@pytest.mark.parametrize("overrides", [["data=cifar10"], ["data=cifar100"], ["data=images"]])
@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("dta", "dta does not exist; did you mean 'data'"),
        ("data/deep/down", "data/deep/down does not exist; correct the path"),
        ("file", "file is not a directory"),
        ("file/below", "file/below does not exist"),
        ("dangling", "dangling does not exist"),
        ("~nobody_here/data", "~nobody_here/data begins with a home directory that does not exist"),
    ],
)
def test_a_folder_that_does_not_exist_is_named_and_not_made(tmp_path, overrides, given, output):
    lay_out(tmp_path / "keras" / "datasets", "cifar10", 0, archive=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    os.symlink("nothing", tmp_path / "dangling")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=f"^data.dir: .*{output}"):
        datasets.load(config.parse([*overrides, f"data.dir='{given}'"]).data)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_of_the_environment_is_the_only_one_looked_at(tmp_path, monkeypatch):
    lay_out(tmp_path / "keras" / "datasets", "cifar10", 0, archive=False)
    monkeypatch.setenv("CIFAR_DATA_DIR", str(tmp_path / "dta"))
    with pytest.raises(DataError, match="^CIFAR_DATA_DIR: .*dta does not exist"):
        find()
    (tmp_path / "dta").mkdir()
    with pytest.raises(DataError, match="^CIFAR_DATA_DIR: no cifar10 in .*dta "):
        load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="^data.dir: no cifar10 in .*empty "):
        load("data.dir=empty")


def test_where_a_run_found_its_data_is_remembered(tmp_path, monkeypatch):
    folder = lay_out(tmp_path / "mine", "cifar10", 1, archive=False)
    monkeypatch.setenv("CIFAR_DATA_DIR", str(tmp_path / "mine"))
    settings = config.parse([*SMALL, "training.batch_size=20"])
    done = train_run(settings, tmp_path / "run", console.Display(quiet=True))
    (tmp_path / "run" / "report.json").rename(tmp_path / "report.json")
    monkeypatch.delenv("CIFAR_DATA_DIR")
    assert done["data"]["found_in"] == str(folder)
    # A resumed, a repeated and an evaluated run.
    again = train_run(settings, tmp_path / "run", console.Display(quiet=True))
    assert again["weights_sha256"] == done["weights_sha256"] and again["data"] == done["data"]
    overrides, _ = reproduction.parse_arguments(["--from-run", str(tmp_path)])
    assert f"data.dir='{folder}'" in overrides
    assert evaluation.load(done, [])[1] is None
    # Other places are searched only if given.
    assert (
        "data.dir='elsewhere'" in reproduction.parse_arguments(["--from-run", str(tmp_path), "data.dir='elsewhere'"])[0]
    )
    ended, checkpoint = run_folder.earlier_state(settings, tmp_path / "run")
    assert ended is not None and checkpoint is None
    (tmp_path / "run" / "report.json").unlink()
    folder.rename(tmp_path / "gone")
    with pytest.raises(DataError, match=f"no cifar10 in .*this run found its data in {folder}"):
        train_run(settings, tmp_path / "run", console.Display(quiet=True))
    assert not [w for w in reproduction.parse_arguments(["--from-run", str(tmp_path)])[0] if w.startswith("data.dir='")]
    # Other files in its place are another data set.
    lay_out(tmp_path / "mine", "cifar10", 1, archive=False)
    victim = folder / "test_batch.bin"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=f"started with other images \\(in {folder}, fingerprint \\w+; now"):
        train_run(settings, tmp_path / "run", console.Display(quiet=True))
    assert not [w for w in reproduction.parse_arguments(["--from-run", str(tmp_path)])[0] if w.startswith("data.dir='")]


def test_a_sweep_goes_on_where_its_runs_found_the_data(tmp_path, monkeypatch):
    made = config.parse([]).content
    folder = lay_out(tmp_path / "mine", "cifar10", 1, archive=True)
    fingerprint = datasets.load(config.parse([f"data.dir={tmp_path / 'mine'}"]).data).fingerprint
    (tmp_path / "sweep" / "a").mkdir(parents=True)
    report.write_report(
        tmp_path / "sweep" / "a" / "report.json",
        {"status": "completed", "config": made, "data": {"found_in": str(folder), "fingerprint": fingerprint}},
    )
    Ledger(tmp_path / "sweep", ["seed=1,2"], [Job("a", ["seed=1"], made)]).write()
    word = f"data.dir='{tmp_path / 'mine'}'"
    assert word in resume.expand(["resume=sweep"])
    assert word not in resume.expand(["resume=sweep", "data.dir=other"])
    monkeypatch.setenv("CIFAR_DATA_DIR", "other")
    assert word not in resume.expand(["resume=sweep"])


def know_no_user():
    pwd.getpwuid = pwd.getpwnam = {}.__getitem__


def without_a_home(overrides, **environment):
    """Run a command as a user without HOME and passwd entry; return the process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HOME", "XDG_", "CIFAR_", "KERAS_"))}
    module, *overrides = overrides
    return forked.run(overrides, module=module, env=kept | environment, hook=know_no_user)


TINY = ["cifar_research.train", "data=synthetic", "data.train_images=100", "data.test_images=20", *SMALL]


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (TINY, "error: CIFAR_CACHE_DIR: ~/.cache begins with a home directory that does not exist; set"),
        (["cifar_research.cache"], "error: CIFAR_CACHE_DIR: ~/.cache begins"),
        ([*TINY, "data.cache_dir=~/cache"], "error: data.cache_dir: ~/cache: this user has no home directory; write"),
        ([*TINY, "data.cache_dir=~nobody_here"], "error: data.cache_dir: ~nobody_here: there is no user nobody_here"),
        (["cifar_research.train", "resume=~nobody_here/run"], "error: resume: ~nobody_here/run: there is no user"),
        (["cifar_research.evaluate", "~nobody_here/run"], "error: ~nobody_here/run"),
        (["cifar_research.predict", "~nobody_here/run", "x.png"], "error: ~nobody_here/run"),
        (["cifar_research.export", "~nobody_here/run", "--format", "onnx"], "error: ~nobody_here/run"),
        (["cifar_research.train", "--from-run", "~nobody_here/run"], "error: --from-run: ~nobody_here/run"),
    ],
)
def test_without_a_home_one_sentence_says_what_to_give(overrides, output):
    done = without_a_home(overrides)
    assert done.returncode == 2 and done.stderr.startswith(output) and len(done.stderr.splitlines()) == 1, done.stderr
    assert not Path("~").exists()


def test_without_a_home_the_cache_folder_takes_its_place(tmp_path):
    # Not a fork: Keras chooses its folder when it is imported.
    code = "import pwd, runpy; pwd.getpwuid = pwd.getpwnam = {}.__getitem__; runpy.run_module('cifar_research.train', run_name='__main__')"  # noqa: E501
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HOME", "XDG_", "CIFAR_", "KERAS_"))}
    environ = kept | {"CIFAR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY[1:]], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not Path("~").exists() and (tmp_path / "cache" / "keras").is_dir()


def test_without_a_home_or_a_cache_each_user_has_a_folder_of_temporary_files(tmp_path, monkeypatch):
    def config_dir():
        monkeypatch.setattr(os, "environ", {"CIFAR_CACHE_DIR": "/dev/null/cache"})
        environment.provide_home()
        return Path(os.environ["MPLCONFIGDIR"])

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"cifar_research-{os.getuid()}"
    assert config_dir() == config_dir() == own / "matplotlib" and own.stat().st_mode & 0o777 == 0o700
    stranger = os.getuid() + 1
    own.rename(tmp_path / f"cifar_research-{stranger}")
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    folder = config_dir().parent
    assert folder.is_dir() and folder.name not in (own.name, f"cifar_research-{stranger}")


def test_a_home_of_another_user_is_filled_in():
    root = os.path.expanduser("~root")
    assert resume.expand(["data.dir=~root/x", "name=a~root"]) == [f"data.dir={root}/x", "name=a~root"]
    with pytest.raises(ConfigError, match="data.dir: ~nobody_here/x: there is no user nobody_here; write the whole"):
        resume.expand(["data.dir=~nobody_here/x"])
