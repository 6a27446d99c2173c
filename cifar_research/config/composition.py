"""Composition: from overrides to the config that Hydra makes of them, once a command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import conf, messages, targets, trust
from cifar_research.config.overrides import HYDRA_ERRORS, with_texts, without_sweeps
from cifar_research.config.targets import closest
from cifar_research.runtime.errors import ConfigError


@dataclass(frozen=True)
class Composed:
    """What Hydra composes of a command line, without the overrides that have several values.

    config: with Hydra's own section, every ${hydra:…} in it replaced; allowed: the packages whose factories may be called.
    """

    overrides: tuple[str, ...]
    config: DictConfig
    allowed: frozenset[str]

    @property
    def is_multirun(self) -> bool:
        return self.config.hydra.mode is RunMode.MULTIRUN


def compose(overrides: Sequence[str] = ()) -> Composed:
    """Return what these overrides compose; ConfigError says what is wrong with them.

    What a file tells Hydra to run is rejected, and so is a file that sets allow_targets.
    """
    overrides = with_texts(overrides)
    single = without_sweeps(overrides)
    try:
        config = conf.compose(overrides, RunMode.MULTIRUN)
        problems = trust.problems(config, single)
        if not problems:
            resolve_hydra(config)
    except HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, single)) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds for files that hold something else
        problem = messages.wrong_override(single)
        if problem is None and type(error) is ValueError:  # of resolve_hydra
            problem = str(error)
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        unknown = f"{' '.join(overrides)}: cannot be composed ({reason}); look at the files it names"
        raise ConfigError(problem or unknown) from error
    if problems:
        raise ConfigError("\n".join(problems))
    return Composed(tuple(overrides), config, targets.allowed(trust.allowances(single)))


def resolve_hydra(cfg: DictConfig) -> None:
    """Replace every ${hydra:…} in a composed config by its value, so that it needs no HydraConfig.

    Hydra answers a path that does not exist with None; here it is a ValueError.
    """
    config = HydraConfig.instance()
    before = config.cfg
    config.set_config(cfg)
    try:
        with flag_override(cfg.hydra, "readonly", False):
            leaves = list(_hydra_leaves(cfg, OmegaConf.to_container(cfg, resolve=False)))
            # The run's folder may be composed of the others.
            leaves.sort(key=lambda leaf: ("runtime.output_dir" in leaf[3], leaf[0].startswith("hydra.job")))
            for key, node, name, text in leaves:
                if "runtime.output_dir" in text and OmegaConf.is_missing(cfg.hydra.runtime, "output_dir"):
                    if key in ("name", "hydra.run.dir"):
                        raise ValueError(f"{key}: {text} is known only once this is; leave it out")
                    cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
                    config.set_config(cfg)  # which copies the section
                    OmegaConf.set_readonly(cfg.hydra, False)
                _check_paths(cfg, key, text)
                node[name] = node[name]
    except (RecursionError, OmegaConfBaseException) as error:
        if "RecursionError" not in f"{type(error).__name__} {error}":
            raise
        raise ValueError(f"{key}: {text} refers to itself; leave it out") from None
    finally:
        config.cfg = before
        OmegaConf.set_readonly(cfg.hydra, False)


def _hydra_leaves(node: Any, content: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, its node, its name in the node, text) of each value with ${hydra:…}."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        key = f"{prefix}{name}"
        if key == "hydra.overrides" or (key == "hydra.job.override_dirname" and "override_dirname" in value):
            continue  # the overrides as typed
        if isinstance(value, str) and "${hydra:" in value:
            yield key, node, name, value
        elif isinstance(value, (dict, list)) and value and isinstance(node._get_node(name), (DictConfig, ListConfig)):
            yield from _hydra_leaves(node._get_node(name), value, f"{key}.")


def _check_paths(cfg: DictConfig, key: str, text: str) -> None:
    for path in re.findall(r"\$\{hydra:([^${}]*)\}", text):
        parent, _, last = path.rpartition(".")
        section = OmegaConf.select(cfg.hydra, parent) if parent else cfg.hydra
        names = list(section) if isinstance(section, DictConfig) else []
        if last not in names:
            close = closest(last, names)
            hint = f"; did you mean ${{hydra:{path.removesuffix(last)}{close}}}?" if close else ""
            raise ValueError(f"{key}: ${{hydra:{path}}} does not exist{hint}")
        if OmegaConf.is_missing(section, last) or section[last] is None:
            raise ValueError(f"{key}: ${{hydra:{path}}} has no value in a single run; leave it out")
