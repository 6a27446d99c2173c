"""Composition: from overrides to Hydra's config."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import conf, messages, permissions, rules, targets
from cifar_research.config.overrides import HYDRA_ERRORS, TEXT_KEYS, with_texts, without_sweeps
from cifar_research.runtime.errors import ConfigError


@dataclass(frozen=True)
class Composed:
    """The config that a command line composes, without overrides that have several values.

    config: includes Hydra's own section, every ${hydra:…} replaced. allowed: packages whose factories may be called.
    takes_from_hydra: whether a value outside Hydra's section was a ${hydra:…}.
    """

    overrides: tuple[str, ...]
    config: DictConfig
    allowed: frozenset[str]
    takes_from_hydra: bool

    @property
    def is_multirun(self) -> bool:
        return self.config.hydra.mode is RunMode.MULTIRUN


def compose(overrides: Sequence[str] = ()) -> Composed:
    """Compose the config of these overrides; ConfigError if that fails.

    Rejects files that set allow_targets or make Hydra run code.
    """
    overrides = with_texts(overrides)
    single = without_sweeps(overrides)
    for word in overrides:  # an empty folder would be the working directory
        key, _, value = word.lstrip("+").partition("=")
        if key in TEXT_KEYS and not value.strip("'\""):
            raise ConfigError(messages.missing(key))
    if folder := permissions.missing_folder(single):
        raise ConfigError(f"hydra.searchpath: {folder} does not exist; give the folder that has your config groups")
    try:
        config = conf.compose(overrides)
        problems = permissions.problems(config, single)
        resolved = [] if problems else resolve_hydra(config)
        problems = problems or rules.unknown_keys(config)
    except HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, single)) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds for invalid files
        problem = messages.wrong_override(single)
        if problem is None and type(error) is ValueError:  # raised by resolve_hydra
            problem = str(error)
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        unknown = f"{' '.join(overrides)}: cannot be composed ({reason}); correct the file that this names"
        raise ConfigError(problem or unknown) from error
    if problems:
        raise ConfigError("\n".join(problems))
    allowed = targets.allowed(permissions.allowed_packages(single))
    return Composed(tuple(overrides), config, allowed, any(not key.startswith("hydra.") for key in resolved))


def resolve_hydra(cfg: DictConfig) -> list[str]:
    """Replace every ${hydra:…} in a composed config by its value; return their keys.

    Raises ValueError for a path without a value.
    """
    config = HydraConfig.instance()
    before = config.cfg
    config.set_config(cfg)  # sets readonly
    OmegaConf.set_readonly(cfg.hydra, False)
    try:
        leaves = list(_hydra_leaves(cfg, OmegaConf.to_container(cfg, resolve=False)))
        # The run's folder may refer to the others.
        leaves.sort(key=lambda leaf: ("runtime.output_dir" in leaf[3], leaf[0].startswith("hydra.job")))
        for key, node, name, text in leaves:
            if "runtime.output_dir" in text and OmegaConf.is_missing(cfg.hydra.runtime, "output_dir"):
                if key in ("name", "hydra.run.dir"):
                    raise ValueError(f"{key}: {text} depends on this value; remove it")
                cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
                config.set_config(cfg)  # copies the section
                OmegaConf.set_readonly(cfg.hydra, False)
            for path in re.findall(r"\$\{hydra:([^${}]*)\}", text):  # for which Hydra returns None
                if not path or OmegaConf.select(cfg.hydra, path) is None:
                    raise ValueError(f"{key}: ${{hydra:{path}}} has no value in a single run; correct or remove it")
            node[name] = node[name]
        return [key for key, *_ in leaves]
    except (RecursionError, OmegaConfBaseException) as error:
        if "RecursionError" not in f"{type(error).__name__} {error}":
            raise
        raise ValueError(f"{key}: {text} refers to itself; remove it") from None
    finally:
        config.cfg = before


def _hydra_leaves(node: Any, content: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, parent node, name, text) of each value that contains ${hydra:…}."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        key = f"{prefix}{name}"
        if key == "hydra.overrides" or (key == "hydra.job.override_dirname" and "override_dirname" in value):
            continue  # may contain the text as typed by the user
        if isinstance(value, str) and "${hydra:" in value:
            yield key, node, name, value
        elif isinstance(value, (dict, list)) and value and isinstance(node._get_node(name), (DictConfig, ListConfig)):
            yield from _hydra_leaves(node._get_node(name), value, f"{key}.")
