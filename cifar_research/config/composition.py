"""Composition: from overrides to Hydra's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_research.config import conf, messages, permissions, rules, targets
from cifar_research.config.identity import plain
from cifar_research.config.overrides import HYDRA_ERRORS, TEXT_KEYS, with_texts, without_sweeps
from cifar_research.runtime.errors import ConfigError, refuse


@dataclass(frozen=True)
class Composed:
    """The config that a command line composes, without overrides that have several values.

    config: includes Hydra's own section. allowed: packages whose factories may be called.
    """

    overrides: tuple[str, ...]
    config: DictConfig
    allowed: frozenset[str]

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
        problems = problems or rules.unknown_keys(config)
        plain(config)  # raises if a value refers to one that does not exist
        if OmegaConf.is_missing(config, "name"):
            problems = problems or [messages.missing("name")]
        else:
            _ = config.hydra.run.dir, config.hydra.sweep.dir  # raises, too
    except HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, single)) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds for invalid files
        problem = messages.wrong_override(single)
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        unknown = f"{' '.join(overrides)}: cannot be composed ({reason}); correct the file that this names"
        raise ConfigError(problem or unknown) from error
    refuse(problems)
    allowed = targets.allowed(permissions.allowed_packages(single))
    return Composed(tuple(overrides), config, allowed)
