"""The settings of a sweep, and the checks that separate sweeps from single runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, IntegerNode, OmegaConf

from cifar_research.config import rules, schema, targets
from cifar_research.config.composition import Composed, compose
from cifar_research.config.identity import flatten, plain
from cifar_research.config.overrides import without_sweeps
from cifar_research.runtime.errors import ConfigError, refuse

MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class SweepSettings:
    """The settings of a sweep's command line.

    time_limit: in seconds, or None. launcher: returned by its factory. params: hydra.sweeper.params, override values by
    key. overrides: the whole command line.
    """

    overrides: tuple[str, ...]
    sweep: schema.SweepConfig
    seed: int
    folder: Path
    time_limit: float | None
    launcher: Any
    params: Mapping[str, Any]


def _compose(arguments: Sequence[str], *, is_multirun: bool) -> Composed:
    """Compose the command line of a run or a sweep; ConfigError if that fails.

    Keys that exist only for the options of some jobs, as in backbone=a,b backbone.size=1, are checked by the jobs.
    """
    try:
        return compose(arguments)
    except ConfigError:
        shared = [word for word in arguments if not re.match(r"[+~]*(?!hydra\.|sweep\.)\w+\.", word)]
        if shared == list(arguments) or not (is_multirun or without_sweeps(arguments) != list(arguments)):
            raise
        return compose(shared)


def _sweep_settings(composed: Composed, arguments: Sequence[str]) -> SweepSettings:
    """Return a sweep's settings; ConfigError if they are invalid. arguments: its overrides."""
    config = composed.config
    refuse(rules.out_of_range({"sweep": plain(config.sweep)}))
    _refuse_lost_settings(config, arguments)
    if str(config.hydra.launcher.get("_target_")).startswith(("hydra.", "hydra_plugins.")):
        raise ConfigError("hydra/launcher: Hydra's own are not supported; choose hydra/launcher=local, slurm or ray")
    return SweepSettings(
        overrides=tuple(arguments),
        sweep=schema.SweepConfig(**plain(config.sweep)),
        seed=config.seed,
        folder=Path(config.hydra.sweep.dir),
        time_limit=_seconds(config.sweep.time_limit),
        launcher=targets.build("hydra.launcher", plain(config.hydra.launcher), composed.allowed),
        params=plain(config.hydra.sweeper.get("params") or OmegaConf.create({})),
    )


def _seconds(time: str | None) -> float | None:
    """Return a time such as 8h in seconds; ConfigError if it is not one."""
    if time is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", time)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"sweep.time_limit: {time!r} is not a time; give a number with s, m, h or d, as in 8h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def parse_command(arguments: Sequence[str]) -> SweepSettings | Composed:
    """Return a sweep's settings, or the composed config of one run; ConfigError if invalid.

    A command is a sweep if it has -m or its config sets hydra.mode=MULTIRUN.
    """
    overrides = [word for word in arguments if word not in MULTIRUN]
    is_multirun = len(overrides) < len(arguments)
    composed = _compose(overrides, is_multirun=is_multirun)
    if is_multirun or composed.is_multirun:
        return _sweep_settings(composed, overrides)
    _refuse_for_one_run(composed, overrides)
    return composed


def parse(arguments: Sequence[str]) -> SweepSettings:
    """Return the settings of the sweep of these overrides; ConfigError if they are invalid."""
    overrides = [word for word in arguments if word not in MULTIRUN]
    return _sweep_settings(_compose(overrides, is_multirun=True), overrides)


def _refuse_lost_settings(config: DictConfig, arguments: Sequence[str]) -> None:
    """Reject settings of a sweep's file outside hydra.sweeper.params: jobs would not see them."""
    rest = [word for word in without_sweeps(arguments) if not word.startswith("sweep=")]
    if rest == without_sweeps(arguments):
        return
    alone, whole = (
        flatten({key: value for key, value in tree.items() if key != "hydra"})
        for tree in (_compose(rest, is_multirun=True).config, config)
    )
    for key, value in whole.items():
        if key != "name" and not key.startswith("sweep.") and alone.get(key, ...) != value:
            raise ConfigError(f"{key}: the sweep's file sets it outside of hydra.sweeper.params; move it there")


def _refuse_for_one_run(composed: Composed, arguments: Sequence[str]) -> None:
    """Reject settings that only a sweep uses on the command line of one run."""
    # A run with its own folder cannot become a sweep.
    has_folder = any(word.startswith("hydra.run.dir=") for word in arguments)
    for word in arguments:
        key = word.lstrip("+~").partition("=")[0]
        if re.match(r"(hydra\.(launcher|sweeper|sweep)|sweep)\.", key):
            remedy = "remove it" if has_folder else "add -m, or remove it"
            raise ConfigError(f"{key}: is for the jobs of a sweep, and this is one run; {remedy}")
    launcher = str(composed.config.hydra.launcher.get("_target_")).rpartition(".")[2]
    if launcher != "local" and "hydra/launcher=local" not in arguments:
        submit = "" if has_folder else "add -m to submit it as one job, or "
        raise ConfigError(
            f"hydra/launcher: {launcher} runs the jobs of a sweep, and this is one run; {submit}use hydra/launcher=local to "
            "train on this machine"
        )


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys that the chosen sweep option gives several values."""
    return [str(key) for key in compose(overrides).config.hydra.sweeper.get("params") or {}]


def takes_whole_numbers(composed: Composed, key: str) -> bool:
    """Return whether a config key or its factory's parameter has an integer type."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(composed.config, parent) if parent else composed.config
    if not isinstance(node, DictConfig) or last not in node:
        return False
    is_integer = isinstance(node._get_node(last), IntegerNode)
    return is_integer or targets.hint(node, last, composed.allowed) in (int, int | None)
