"""Nothing from outside is executed: batches, archives, configs, run folders."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import forked
import pytest
from omegaconf import OmegaConf

from cifar_research import config
from cifar_research.config import messages, targets
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.data import cifar
from cifar_research.runs import ledger
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import CheckpointError, ConfigError, DataError
from cifar_research.sweeps import plan, resume
from cifar_research.sweeps.launchers import slurm
from cifar_research.sweeps.ledger import Ledger

ROOT = Path(__file__).parents[1]
# Leaves a file behind when it is imported, and when it is called.
EVIL = "import pathlib\npathlib.Path('{0}').touch()\ndef evil(**settings):\n    pathlib.Path('{0}').touch()\n"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with a module that must not run, and the file that it would write; no target is allowed."""
    (tmp_path / "evil_lab.py").write_text(EVIL.format(tmp_path / "ran"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    assert not (tmp_path / "ran").exists() and "evil_lab" not in sys.modules


def write(folder, path, text):
    (folder / "conf" / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / "conf" / path).write_text(text)
    return f"hydra.searchpath=[file://{folder / 'conf'}]"


class Gadget:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_gadget_in_a_batch_does_not_run(tmp_path, protocol):
    content = pickle.dumps({b"data": Gadget(f"touch {tmp_path / 'ran'}")}, protocol)
    with pytest.raises(DataError, match="system, which a data set does not need"):
        cifar.parsed(cifar._unpickle_batch, content, "batch", 10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.testing.runstring"])
def test_no_other_function_is_called_by_a_batch(name):
    module, _, function = name.rpartition(".")
    with pytest.raises(DataError, match=f"it would load {name}"):
        cifar.parsed(cifar._unpickle_batch, f"c{module}\n{function}\n(S'1'\ntR.".encode(), "batch", 10)


def entry(name, kind=tarfile.REGTYPE, link=""):
    result = tarfile.TarInfo(name)
    result.type, result.linkname = kind, link
    return result


@pytest.mark.parametrize(
    "odd",
    [
        entry("../outside"),
        entry("cifar-10-batches-py/../../outside"),
        entry("/outside"),
        entry("cifar-10-batches-py/test_batch", tarfile.SYMTYPE, "/etc/passwd"),
        entry("cifar-10-batches-py/test_batch", tarfile.LNKTYPE, "../../etc/passwd"),
        entry("cifar-10-batches-py/test_batch", tarfile.CHRTYPE),
        entry("cifar-10-batches-py/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda one: f"{one.name} {one.type.decode()}",
)
def test_archives_with_what_is_dangerous_are_refused_whole(tmp_path, odd):
    layout = cifar.LAYOUTS["cifar10"][0]
    with tarfile.open(tmp_path / layout.archive, "w:gz") as tar:
        tar.addfile(entry(f"{layout.folder}", tarfile.DIRTYPE))
        tar.addfile(odd)
    with pytest.raises(DataError, match="is a link, a device or outside of its folder"):
        cifar._unpack(layout, tmp_path / layout.archive)
    assert [path.name for path in tmp_path.iterdir()] == [layout.archive]


PRESETS = {
    "a factory": "backbone:\n  _target_: {}\n",
    "a nested node": "backbone:\n  kernel_size:\n    _target_: {}\n",
    "a node in a list": "backbone:\n  filters: [{{_target_: {}}}]\n",
    "an augmentation": "augmentation:\n  flip: {{_target_: {}}}\n",
    "a part of an augmentation": "augmentation:\n  flip:\n    _target_: cifar_research.augmentation.horizontal_flip\n"
    "    p: {{_target_: {}}}\n",
    "an interpolation": "name: {}\nbackbone:\n  _target_: ${{name}}\n",
}
TARGETS = [
    "os.system", "evil_lab.evil", "subprocess.Popen", "builtins.eval", "keras.saving.load_model",
    # Our own package, but not a factory.
    "cifar_research.train.command", "cifar_research.sweeps.run.subprocess.run", "cifar_research.data.download.fetch",
    "cifar_research.preview.main", "cifar_research.models.backbones.pretrained.os.system",
    "cifar_research.models.heads.Literal", "cifar_research.sweeps.launchers.worker.spawn", "cifar_research_evil.evil",
]  # fmt: skip


# Every target from one source, and two of them, a stranger's and one of ours, from every source.
CASES = [("a factory", target) for target in TARGETS]
CASES += [(source, target) for source in PRESETS for target in ("evil_lab.evil", "cifar_research.train.command")
          if source != "a factory"]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CASES)
def test_a_preset_cannot_name_code(stranger, source, target):
    path = write(stranger, "experiment/theirs.yaml", f"# @package _global_\n{PRESETS[source].format(target)}")
    with pytest.raises(ConfigError) as caught:
        config.parse([path, "experiment=theirs"])
    assert "_target_" in str(caught.value) and target in str(caught.value)
    name = target.partition(".")[0]
    assert (f"allow_targets=[{name}]" in str(caught.value)) == (name != "cifar_research")


@pytest.mark.parametrize(
    "output", ["allow_targets: [evil_lab]", "allow_targets: [evil_lab]\nname: x", "allow_targets: 3"]
)
def test_a_preset_cannot_allow_its_own_code(stranger, output):
    text = f"# @package _global_\n{output}\nbackbone: {{_target_: evil_lab.evil}}\n"
    path = write(stranger, "experiment/theirs.yaml", text)
    with pytest.raises(ConfigError, match="allow_targets"):
        config.compose([path, "experiment=theirs"])


@pytest.mark.parametrize(
    ("hydra", "part"),
    [
        ("callbacks: {x: {_target_: evil_lab.evil}}", "hydra.callbacks"),
        ("job_logging: {handlers: {x: {(): evil_lab.evil}}}", "hydra.job_logging"),
        ("hydra_logging: {formatters: {x: {class: '${name}'}}}", "hydra.hydra_logging"),
        ("job: {env_set: {CIFAR_ALLOW_TARGETS: evil_lab, PATH: /theirs}}", "hydra.job.env_set"),
    ],
)
def test_a_preset_cannot_tell_hydra_to_run_something(stranger, hydra, part):
    path = write(stranger, "experiment/theirs.yaml", f"# @package _global_\nhydra:\n  {hydra}\n")
    with pytest.raises(ConfigError, match=part):
        config.compose([path, "experiment=theirs"])


def test_nor_on_the_real_command_line(stranger):
    text = "# @package _global_\nhydra: {callbacks: {x: {_target_: evil_lab.evil}}}\n"
    path = write(stranger, "experiment/theirs.yaml", text)
    for overrides in (["hydra.run.dir=run"], ["--cfg", "job"]):
        done = forked.run([path, "experiment=theirs", *overrides], cwd=stranger)
        assert done.returncode == 2 and "hydra.callbacks" in done.stderr and "Traceback" not in done.stderr
    assert not (stranger / "run").exists()


@pytest.mark.parametrize("flag", ["--config-dir", "-cd", "--config-path=x", "-cn", "--experimental-rerun", "--run"])
def test_flags_that_go_round_the_checks_are_refused(flag):
    assert messages.flags([flag, "x"]).startswith(f"{flag}: is not an option")
    assert messages.flags(["--cfg", "job", "-p", "data", "--help", "--info=all", "seed=1"]) is None


def test_a_sweeps_file_cannot_allow_code_or_set_hydra(stranger):
    for key in ("allow_targets", "+allow_targets", "hydra.job.env_set.A", "hydra/job_logging"):
        text = f"# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{'{key}': '[evil_lab]', seed: '1,2'}}}}}}\n"
        overrides = [write(stranger, "sweep/theirs.yaml", text), "sweep=theirs"]
        with pytest.raises(ConfigError, match=rf"hydra.sweeper.params: {key.replace('+', '.')}"):
            plan.Plan.of(parse_sweep(overrides))


def test_the_launchers_node_is_checked(stranger):
    node = {"_target_": "evil_lab.evil"}
    with pytest.raises(ConfigError, match="^hydra.launcher._target_: 'evil_lab.evil'"):
        targets.build("hydra.launcher", node, frozenset())
    with pytest.raises(ValueError, match="is not one line"):
        slurm.slurm(sbatch={"comment": "x\nrm -rf ~"})


def test_a_run_or_a_sweep_to_go_on_with_cannot_allow_code(stranger):
    run_dir = stranger / "run"
    (run_dir / ".hydra").mkdir(parents=True)
    overrides = [
        "seed=1",
        "allow_targets=[evil_lab]",
        "+allow_targets=[a]",
        "++allow_targets=[os]",
        "allow_targets.0=os",
    ]
    (run_dir / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    searchpath = ["hydra.searchpath=[pkg://evil_lab]", "hydra.searchpath=[file://x]"]
    (run_dir / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"overrides": {"hydra": searchpath}}}))
    assert resume.expand([f"resume={run_dir}"])[:-1] == ["seed=1", "hydra.searchpath=[file://x]"]
    assert resume.expand(["allow_targets=[mine]", f"resume={run_dir}"])[-2] == "allow_targets=[mine]"

    made = config.parse([]).content
    job = Job("a", ["seed=1", "allow_targets=[evil_lab]"], made)
    Ledger(stranger, ["seed=1,2", "allow_targets=[evil_lab]"], [job]).write()
    arguments, (result,) = ledger.read(stranger)
    assert result.overrides == ["seed=1"] and resume.expand([f"resume={stranger}"])[0] == "seed=1,2"
    assert not any("evil_lab" in word for word in resume.expand([f"resume={stranger}"]))


def test_a_node_of_a_report_is_not_believed(stranger):
    for node in (
        {"_target_": "evil_lab.evil"},
        {"_target_": "cifar_research.models.heads.head", "hidden": [{"_target_": "a.b"}]},
    ):
        with pytest.raises(ConfigError, match="factory"):
            targets.build("model", node, frozenset())


def test_the_command_line_and_the_environment_allow(stranger, monkeypatch):
    (stranger / "good_lab.py").write_text("def decay():\n    return lambda s, t, e: 0.5\n")
    overrides = ["~schedule", "+schedule={_target_:good_lab.decay}"]
    with pytest.raises(ConfigError, match=r"allow_targets=\[good_lab\]"):
        config.parse(overrides)
    config.parse([*overrides, "allow_targets=[good_lab]"])
    code = f"from cifar_research import config; config.parse({overrides})"
    environment = os.environ | {"CIFAR_ALLOW_TARGETS": "other, good_lab"}
    subprocess.run([sys.executable, "-c", code], cwd=stranger, env=environment, check=True)
    for word in ("allow_targets=[3]", "allow_targets=['a b']", "allow_targets=['']", "allow_targets=[${name}]"):
        with pytest.raises(ConfigError, match="allow_targets"):
            config.compose([word])


def test_every_option_of_ours_is_allowed():
    for path in Path(config.config_dir()).rglob("*.yaml"):
        if path.parent.name not in ("experiment", "sweep"):
            result = OmegaConf.to_container(OmegaConf.load(path))
            assert targets.refusals("node", result, frozenset()) == [], path


def test_tensorboard_listens_on_this_machine_alone():
    assert "--host 127.0.0.1" in (ROOT / "scripts" / "tensorboard").read_text()


def test_a_download_is_verified_before_it_is_there(tmp_path):
    # See test_download.py for servers that stall, break off and serve other bytes.
    from test_download import SHA256, Server

    from cifar_research.data.download import fetch

    server = Server(content=pickle.dumps(Gadget("true")))
    with pytest.raises(DataError, match="SHA-256"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()
    server.shutdown()


def test_numpy_files_of_the_cache_and_checkpoints_are_read_without_pickles(tmp_path):
    import hashlib

    import numpy as np

    from cifar_research.runs import checkpoint

    buffer = io.BytesIO()
    np.savez(buffer, **{"meta.json": np.array([Gadget(f"touch {tmp_path / 'ran'}")], dtype=object)})
    path = tmp_path / "step-00000001.ckpt"
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()
