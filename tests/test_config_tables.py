"""docs/configuration.md and --help describe every config group, option and key."""

import importlib.machinery
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from cifar_research import config
from cifar_research.config.identity import flatten

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    path = str(ROOT / "scripts" / "config_tables")
    loader = importlib.machinery.SourceFileLoader("config_tables", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("config_tables", loader))
    loader.exec_module(module)
    return module


def test_tables_are_current(script):
    text = script.PAGE.read_text()
    assert script.page(text) == text, "docs/configuration.md is stale; run scripts/config_tables"


def test_every_key_is_there(script):
    keys = {
        key
        for key in flatten(config.parse().content)
        if not key.startswith("training.phases") and "_target_" not in key and key != "augmentation"
    }
    assert {key for key in keys if f"| `{key}` |" not in script.PAGE.read_text()} == set()


def test_every_option_and_key_has_a_sentence(script):
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in script.tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row[0] for row in rows if not all(map(str.strip, row)) or not row[-1].endswith(".")] == []


def test_every_group_has_a_sentence_there_and_in_help(script):
    folders = {path.parent.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").glob("*/**/*.yaml")}
    template = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["hydra"]["help"]["template"]
    listed = re.findall(r"^(\S+)  +\S", template.partition("== Options")[0], re.MULTILINE)
    assert set(listed) == set(script.GROUPS) == folders
