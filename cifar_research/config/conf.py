"""The folder conf/: its config groups, their options, and their composition by Hydra."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def config_dir() -> str:
    """Return the absolute path of conf/: the packaged one if it exists, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    is_packaged = (package / "conf" / "config.yaml").is_file()
    return str((package if is_packaged else package.parent) / "conf")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config with Hydra's section; overrides with several values are left out."""
    with _hydra() as hydra:
        return hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN, from_shell=False)


def options(group: str, overrides: Sequence[str]) -> list[str]:
    """Return the names of a group's options, including those in hydra.searchpath."""
    paths = [word for word in overrides if word.startswith("hydra.searchpath=")]
    with _hydra() as hydra:
        return hydra.config_loader.get_group_options(group, ObjectType.CONFIG, "config", paths)


@contextlib.contextmanager
def _hydra() -> Iterator[Hydra]:
    with initialize_config_dir(config_dir(), version_base="1.3", job_name="train"):
        # Hydra's own resolver reads its global config, which would have to be set wherever a value is read.
        OmegaConf.register_new_resolver("hydra", _of_hydra, replace=True)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # set by initialize_config_dir
        yield hydra


def _of_hydra(path: str = "", *, _root_: DictConfig) -> Any:
    """Return the value of ${hydra:path}, from the config that it is in."""
    if "hydra" not in _root_:  # another program's config
        config: Any = HydraConfig.get()
        return OmegaConf.select(config, path)
    if path == "runtime.output_dir":
        return os.path.abspath(_root_.hydra.run.dir)
    value = OmegaConf.select(_root_.hydra, path) if path else None
    if value is None:
        raise ValueError(f"${{hydra:{path}}} has no value in a single run")
    return value


def groups() -> list[str]:
    """Return the config groups of a run."""
    others = ("experiment", "hydra", "sweep")
    return sorted(path.name for path in Path(config_dir()).iterdir() if path.is_dir() and path.name not in others)


def is_group(key: str) -> bool:
    """Return whether a key is a config group of conf/."""
    return (Path(config_dir()) / key).is_dir()
