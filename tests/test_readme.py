"""What the README shows works: its commands compose, and its additions train."""

import re
import shlex
from pathlib import Path

import forked
import pytest

from cifar_research import config
from cifar_research.config.sweep import SweepSettings, parse_command
from cifar_research.sweeps import search
from cifar_research.sweeps.plan import Plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^    (scripts/train[^<\n]*)$", README, re.MULTILINE)]


def test_every_option_is_in_the_table():
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        row = re.search(rf"^\| `{group.name}` \|(.*)$", README, re.MULTILINE).group(1)
        assert set(re.findall(r"`(\w+)`", row.split("|")[0])) == {path.stem for path in group.glob("*.yaml")}


@pytest.mark.parametrize("command", [line for line in COMMANDS if "searchpath" not in line])
def test_command_composes(command):
    words = shlex.split(command)[1:]
    parsed = parse_command(words)
    if isinstance(parsed, SweepSettings):
        plan = Plan.of(parsed)
        search.space(plan) if "perspectives" in command else plan.grid()  # each composes and checks every job
    else:
        config.parse_composed(parsed)


@pytest.mark.parametrize("command", [line for line in COMMANDS if "searchpath" in line])
def test_additions_train(command, tmp_path):
    for text in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        with (tmp_path / "my_lab.py").open("a") as file:
            file.write(text)
    for path, text in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    small = ["data=synthetic", "data.train_images=100", "data.test_images=20", "training.epochs=1"]
    done = forked.run([*shlex.split(command)[1:], *small], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
