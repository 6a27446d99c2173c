"""The commands of a clone: choose a Python, install once, pass arguments on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def clone(tmp_path):
    """Return a copy of what the commands need, in a folder with a space in its name."""
    clone = tmp_path / "a clone"
    shutil.copytree(SCRIPTS, clone / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    return clone


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def python_that_installs(path, version="3.12"):
    """Write a fake Python that records its arguments, and writes another one as .venv/bin/python."""
    return write_program(
        path,
        f"""
echo "$@" >>"$CALLS"
case "$*" in
    -c*) echo {version} ;;
    "-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip install"*) exit "${{PIP_EXIT:-0}}" ;;
esac
""",
    )


def call(clone, *arguments, python=None, path="/usr/bin:/bin", **environment):
    """Run a command of the clone; return (what it did, the calls of the stand-in)."""
    calls = clone / "calls"
    calls.unlink(missing_ok=True)
    environment |= {"PATH": path, "CALLS": str(calls), "HOME": str(clone)} | ({"PYTHON": str(python)} if python else {})
    done = subprocess.run(
        [clone / "scripts" / arguments[0], *arguments[1:]], env=environment, capture_output=True, text=True, timeout=60
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.10", "3.14"])
def test_python_of_another_version_gets_one_sentence(clone, version):
    python = write_program(clone / "bin" / "python3", f"echo {version}")
    done, _ = call(clone, "train", python=python)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Python 3.11, 3.12 or 3.13 is needed" in line and f"is {version}" in line and "PYTHON=" in line
    assert not (clone / ".venv").exists()


def test_a_good_python_is_found_behind_a_wrong_one(clone):
    write_program(clone / "bin" / "python3", "echo 3.9")
    python_that_installs(clone / "bin" / "python3.12")
    done, calls = call(clone, "train", path=f"{clone / 'bin'}:/usr/bin:/bin")
    assert done.returncode == 0 and any("pip install" in line for line in calls)


def test_installs_once_and_hands_the_arguments_on(clone):
    python = python_that_installs(clone / "bin" / "python")
    done, calls = call(clone, "train", "optimizer=sgd", "name=a b", python=python)
    assert done.returncode == 0 and "Installing" in done.stderr
    installs = [line for line in calls if "pip install" in line]
    assert len(installs) == 2 and "--require-hashes" in installs[0] and "--no-deps" in installs[1]
    assert calls[-1] == "-m cifar_research.train optimizer=sgd name=a b"
    done, calls = call(clone, "train", "seed=1", python=python)
    assert calls == ["-m cifar_research.train seed=1"] and done.stderr == ""
    _, calls = call(clone, "test", "-k", "some", python=python)
    assert calls == ["-m pytest -k some"]
    for name in ("report", "predict", "export"):
        _, calls = call(clone, name, "a run", python=python)
        assert calls == [f"-m cifar_research.{name} a run"]


@pytest.mark.parametrize("change", ["setup.cfg", "scripts/constraints.txt", "moved"])
def test_installs_again_when_something_has_changed(clone, change):
    python = python_that_installs(clone / "bin" / "python")
    call(clone, "train", python=python)
    if change == "moved":
        clone = clone.rename(clone.parent / "elsewhere")
        python = clone / "bin" / "python"
    else:
        with (clone / change).open("a") as file:
            file.write("# changed\n")
    _, calls = call(clone, "train", python=python)
    assert any("pip install" in line for line in calls)


def test_a_failed_installation_is_told_and_tried_again(clone):
    python = python_that_installs(clone / "bin" / "python")
    done, calls = call(clone, "train", python=python, PIP_EXIT="1")
    assert done.returncode == 2 and "pip could not install" in done.stderr
    assert "cifar_research.train" not in calls[-1]
    done, calls = call(clone, "train", python=python)
    assert done.returncode == 0 and any("pip install" in line for line in calls)


def test_tensorboard_is_bound_to_this_machine(clone):
    python = python_that_installs(clone / "bin" / "python")
    (clone / "outputs").mkdir()
    _, calls = call(clone, "tensorboard", python=python)
    assert calls[-1] == f"-m tensorboard.main --logdir {clone / 'outputs'} --host 127.0.0.1"
    _, calls = call(clone, "tensorboard", str(clone), "--port", "7000", python=python)
    assert calls[-1] == f"-m tensorboard.main --logdir {clone} --host 127.0.0.1 --port 7000"
    done, _ = call(clone, "tensorboard", "nowhere", python=python)
    assert done.returncode == 2 and "nowhere: is not a directory" in done.stderr


def test_the_users_folder_stays_the_current_one(tmp_path):
    done = subprocess.run(
        [SCRIPTS / "train", "--cfg", "hydra", "-p", "hydra.runtime.cwd"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path), done.stderr


@pytest.fixture(scope="module")
def places(finished_run, tmp_path_factory):
    """A finished run, and a folder with images whose names are not UTF-8, or not ASCII."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("a_run") / "run")
    for name in (b"\xff.png", "é–.png".encode()):
        Image.new("RGB", (32, 32), (9, 99, 199)).save(os.fsencode(folder) + b"/" + name, format="png")
    return {"RUN": run, "PHOTOS": folder}


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}


@pytest.mark.parametrize(
    ("arguments", "locale"),
    [
        (["train", "--help"], ASCII),
        (["train", "name='é–'", "--cfg", "job"], ASCII),
        (["train", "--info", "searchpath"], ASCII),
        (["report", "RUN", "--write"], ASCII),
        (["report", "RUN", "--write"], LATIN),
        (["evaluate", "RUN", "--corruptions", "none"], ASCII),
        (["predict", "RUN", "PHOTOS", "--format", "csv"], ASCII),
        (["cache", "--dir", "é–"], ASCII),
        (["benchmark", "--help"], ASCII),
        (["time_to_accuracy", "--help"], ASCII),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "latin-1" if given is LATIN else "ascii",
)
def test_standard_output_of_any_encoding_will_do(places, arguments, locale):
    command = [SCRIPTS / arguments[0], *(places.get(word, word) for word in arguments[1:])]
    done = subprocess.run(command, env=os.environ | locale, capture_output=True, timeout=300)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    if arguments[0] == "predict":
        assert b"/\xff.png," in done.stdout
    for path in places["RUN"].rglob("*"):
        if path.suffix in (".md", ".html", ".csv", ".json", ".log"):
            path.read_bytes().decode("utf-8")


def test_constraints_hold_what_setup_cfg_lists():
    from configparser import ConfigParser

    from packaging.requirements import Requirement

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    listed = (setup["options"]["install_requires"] + extras["test"] + extras["export"]).splitlines()
    lines = (SCRIPTS / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line.removesuffix("\\")) for line in lines if line[:1].isalnum()]
    for line in filter(None, listed):
        wanted = Requirement(line)
        versions = [str(p.specifier).removeprefix("==") for p in pinned if p.name == wanted.name]
        assert versions and all(wanted.specifier.contains(version) for version in versions), line
    assert all(line.strip().startswith(("--hash=sha256:", "#")) or line[:1].isalnum() for line in lines if line)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(arguments):
    environment = os.environ | {"RUFF_NO_CACHE": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
