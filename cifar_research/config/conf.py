"""The folder conf/: its config groups, their options, and their composition by Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig


def config_dir() -> str:
    """Return the absolute path of conf/: the packaged one if it exists, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    is_packaged = (package / "conf" / "config.yaml").is_file()
    return str((package if is_packaged else package.parent) / "conf")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config with Hydra's section; overrides with several values are left out."""
    with initialize_config_dir(config_dir(), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # set by initialize_config_dir
        return hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN, from_shell=False)


def options(group: str, overrides: Sequence[str]) -> list[str]:
    """Return the names of a group's options, including those in hydra.searchpath."""
    paths = [word for word in overrides if word.startswith("hydra.searchpath=")]
    with initialize_config_dir(config_dir(), version_base="1.3", job_name="train"):
        return GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG, "config", paths)


def groups() -> list[str]:
    """Return the config groups of a run."""
    others = ("experiment", "hydra", "sweep")
    return sorted(path.name for path in Path(config_dir()).iterdir() if path.is_dir() and path.name not in others)


def is_group(key: str) -> bool:
    """Return whether a key is a config group of conf/."""
    return (Path(config_dir()) / key).is_dir()
