"""Settings that only the command line may set, because they run code; see also targets.py."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_research.config import targets
from cifar_research.config.overrides import parse_override

_KEY = "allow_targets"
_NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
_NOT_USED: dict[str, Any] = {
    "callbacks": {}, "job_logging": _NO_LOGGING, "hydra_logging": _NO_LOGGING, "verbose": False,
    "output_subdir": ".hydra", "job.chdir": None, "job.env_set": {},
}  # fmt: skip
# Hydra's flags that only print. The others replace conf/, which bypasses the schema, or read a pickle.
FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i",
    "--shell-completion", "-sc", "--multirun", "-m",
)  # fmt: skip


def allowed_packages(overrides: Sequence[str]) -> list[str]:
    """Return the packages in allow_targets of a command line's overrides."""
    allowed: Any = []
    for word in overrides:
        override = parse_override(word)
        if override is not None and override.key_or_group == _KEY:
            allowed = [] if override.is_delete() else override.value()
    return allowed if isinstance(allowed, list) else [allowed]


def permitted(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a file may set, too.

    Only the command line may set allow_targets and Hydra's own keys, which may import code. The sweep's keys and folders
    of options are not restricted.
    """
    result = []
    for word in overrides:
        if re.match(r"(?!hydra|allow_targets)[\w.]+=", word):  # without Hydra's parser: a sweep's file has thousands
            result.append(word)
            continue
        override = parse_override(word)
        key = "" if override is None else override.key_or_group
        if key.partition(".")[0] == _KEY:
            continue
        if re.match(r"hydra\b", key) and not is_of_sweep(key):
            continue
        if key == "hydra.searchpath" and not _are_folders(override):
            continue
        result.append(word)
    return result


def _are_folders(override: Any) -> bool:
    paths = None if override.is_delete() or override.is_sweep_override() else override.value()
    return isinstance(paths, list) and all(
        isinstance(path, str) and (path.startswith("file://") or "://" not in path) for path in paths
    )


def missing_folder(overrides: Sequence[str]) -> str | None:
    """Return the first folder of hydra.searchpath that does not exist, None if all do."""
    for word in overrides:
        override = parse_override(word) if word.startswith("hydra.searchpath=") else None
        if override is not None and _are_folders(override):
            paths: Any = override.value()  # a list
            for path in map(str, paths):
                folder = path.removeprefix("file://")
                if "${" not in folder and not os.path.isdir(folder):
                    return folder
    return None


def is_of_sweep(key: str) -> bool:
    """Return whether one of Hydra's keys is about the sweep or about folders of options."""
    return re.fullmatch(r"hydra(/launcher|\.(mode|searchpath|sweep\.dir|(launcher|sweeper)(\..+)?))", key) is not None


def problems(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return a problem for each value of a file that only the command line may set."""
    allowed, composed = allowed_packages(overrides), list(OmegaConf.select(cfg, _KEY) or [])
    if composed != allowed:
        return [
            f"{_KEY}: {composed} comes from a file, and a config cannot allow its own code to run; if you trust it, give "
            f"{_KEY}=[{','.join(map(str, composed))}] on the command line, or set {targets.ALLOWING_VARIABLE}"
        ]
    for name in allowed:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            return [f"{_KEY}: {name!r} is not the name of a package or a module; give one, like my_lab"]
    return _check_hydra(cfg.hydra)


def _check_hydra(hydra: DictConfig) -> list[str]:
    """Return a problem for each of Hydra's keys that this command does not use; some would run code of a file."""
    for name in ("launcher", "sweeper"):
        if not OmegaConf.is_missing(hydra, name) and not OmegaConf.is_dict(hydra[name]):
            return [f"hydra.{name}: {hydra[name]!r} is not a section; to choose an option, write hydra/{name}="]
    values = {key: OmegaConf.select(hydra, key) for key in _NOT_USED}
    plain = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in values.items()
    }
    differing = [key for key in plain if (plain[key] or None) != (_NOT_USED[key] or None)]
    return [f"hydra.{key}: is not used by this command; remove it" for key in differing]
