"""Command-line arguments as Hydra gets them: `resume=`, `~/`."""

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from cifar_research import api, config
from cifar_research.config.overrides import quoted
from cifar_research.runs import ledger
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import resume
from cifar_research.sweeps.ledger import Ledger


@pytest.mark.parametrize(
    "text", ["a b", "it's", "back\\slash", "two\\\\", "\\'", "\\\\'x", "end\\", "line\\\n", "a,b=(c)", ""]
)
def test_a_quoted_text_is_read_back_as_it_is(text):
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "a run's (folder)"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- optimizer=sgd\n- seed=3\n")
    hydra = "hydra: {overrides: {hydra: ['hydra.searchpath=[file://my_conf]', hydra.run.dir=elsewhere]}}\n"
    (folder / ".hydra" / "hydra.yaml").write_text(hydra)
    return folder


def test_resume_is_what_the_run_was_begun_with(run_dir):
    arguments = ["optimizer=sgd", "seed=3", "hydra.searchpath=[file://my_conf]"]
    *expanded, folder = resume.expand(["seed=4", f"resume={run_dir}"])
    assert expanded == [*arguments, "seed=4"]
    assert config.compose([folder]).config.hydra.run.dir == str(run_dir)
    assert resume.expand(["--cfg", "job", f"resume={run_dir}", "--resolve"])[:5] == ["--cfg", "job", *arguments]
    assert resume.expand(["--cfg", "job", f"resume={run_dir}", "--resolve"])[-1] == "--resolve"


def test_resume_of_a_sweep_is_its_own_words_and_folder(tmp_path):
    Ledger(tmp_path, ["seed=1,2", "hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere"]).write()
    arguments = ["seed=1,2", "hydra.mode=MULTIRUN", "seed=3,4", f"hydra.sweep.dir='{tmp_path}'"]
    assert resume.expand(["seed=3,4", f"resume={tmp_path}"]) == arguments
    with pytest.raises(ConfigError, match="contradict each other"):
        resume.expand([f"resume={tmp_path}", "hydra.sweep.dir=other"])


def test_what_a_folder_would_have_hydra_do_is_left_out(tmp_path, run_dir):
    arguments = [
        "seed=5",
        "+hydra.job.env_set.PATH=/theirs",
        "hydra/job_logging=theirs",
        *(f"hydra.searchpath=[{path}]" for path in ("pkg://theirs", "structured://theirs", r"pkg\://theirs")),
    ]
    (run_dir / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(arguments))
    assert resume.expand([f"resume={run_dir}"])[:-1] == ["seed=5", "hydra.searchpath=[file://my_conf]"]
    job = Job("a", ["seed=5", *arguments[1:]], {"augmentation": {}, "data": {"name": "synthetic", "dir": None}})
    Ledger(tmp_path, [*arguments, "hydra.launcher.jobs=2"], [job]).write()
    assert resume.expand([f"resume={tmp_path}"])[:2] == ["seed=5", "hydra.launcher.jobs=2"]
    assert ledger.read(tmp_path)[1][0].overrides == ["seed=5"]


def test_another_launcher_takes_no_keys_of_the_first(tmp_path):
    config = {"augmentation": {}, "data": {"name": "synthetic", "dir": None}}
    arguments = ["seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    Ledger(tmp_path, arguments, [Job("a", ["seed=1"], config)]).write()
    resumed = resume.expand([f"resume={tmp_path}", "hydra/launcher=local"])
    assert "seed=1,2" in resumed and not any("slurm" in word or "partition" in word for word in resumed)
    for same in ([], ["hydra/launcher=slurm"]):
        assert arguments[2] in resume.expand([f"resume={tmp_path}", *same])


def test_nothing_to_resume_changes_nothing():
    assert resume.expand(["seed=1", "--cfg", "job"]) == ["seed=1", "--cfg", "job"]


def test_home_is_filled_in():
    home = str(Path.home())
    assert resume.expand(["data.dir=~/images", "name=a~/b"]) == [f"data.dir={home}/images", "name=a~/b"]
    assert resume.expand(["data.dir='~/my images'", "data.dir='~'"]) == [
        f"data.dir='{home}/my images'",
        f"data.dir='{home}'",
    ]
    assert api._expanded([], "hydra.run.dir", "~/my run") == [f"hydra.run.dir='{home}/my run'"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("overrides.yaml", "a: [1"),
        ("overrides.yaml", "a: 1"),
        ("overrides.yaml", "- 3"),
        ("hydra.yaml", "- 3"),
        ("hydra.yaml", "hydra: null"),
        ("hydra.yaml", "\x00"),
    ],
)
def test_damaged_folder_is_refused_with_its_path(run_dir, name, content):
    (run_dir / ".hydra" / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"resume: .*{name}"):
        resume.expand([f"resume={run_dir}"])


def test_no_run_and_two_folders_are_refused(tmp_path, run_dir):
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        resume.expand([f"resume={tmp_path}"])
    with pytest.raises(ConfigError, match="contradict each other"):
        resume.expand([f"resume={run_dir}", "hydra.run.dir=other"])
    with pytest.raises(ConfigError, match="^resume: .* is one run, and -m makes many; remove -m"):
        resume.expand(["-m", "seed=1,2", f"resume={run_dir}"])
