"""The settings of a sweep: how its jobs are run, and what its command line says that one run would not take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, IntegerNode, OmegaConf

from cifar_research.config import rules, schema, targets
from cifar_research.config.composition import Composed, compose
from cifar_research.config.identity import flatten, plain, section
from cifar_research.config.overrides import without_sweeps
from cifar_research.runtime.errors import ConfigError

MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep's command line says of the sweep itself.

    folder: the sweep's, absolute or from here; launcher: what its factory returned; params: hydra.sweeper.params, overrides
    by key; overrides: the command line's, those that its option or the arguments give several values among them.
    """

    overrides: tuple[str, ...]
    sweep: schema.SweepConfig
    seed: int
    folder: Path
    launcher: Any
    params: Mapping[str, Any]


def _compose(arguments: Sequence[str], *, is_multirun: bool) -> Composed:
    """Return what the command line of a run or a sweep composes; ConfigError if it does not.

    A key that only options of single jobs have, as in backbone=a,b backbone.size=1, is left to the jobs, which check it.
    """
    try:
        return compose(arguments)
    except ConfigError:
        shared = [word for word in arguments if not re.match(r"[+~]*(?!hydra\.|sweep\.)\w+\.", word)]
        if shared == list(arguments) or not (is_multirun or without_sweeps(arguments) != list(arguments)):
            raise
        return compose(shared)


def _sweep_settings(composed: Composed, arguments: Sequence[str]) -> SweepSettings:
    """Return the settings of a sweep; ConfigError if they cannot work. arguments: its overrides."""
    config = composed.config
    if problems := rules.out_of_range({"sweep": plain(config.sweep)}):
        raise ConfigError("\n".join(problems))
    _refuse_lost_settings(config, arguments)
    return SweepSettings(
        overrides=tuple(arguments),
        sweep=section(config.sweep, schema.SweepConfig),
        seed=config.seed,
        folder=Path(config.hydra.sweep.dir),
        launcher=_launcher(config.hydra.launcher, composed.allowed),
        params=plain(config.hydra.sweeper.get("params") or OmegaConf.create({})),
    )


def parse_command(arguments: Sequence[str]) -> SweepSettings | Composed:
    """Return the settings of a sweep, or what the command line of one run composes; ConfigError if it cannot work.

    A sweep is what has -m among its arguments, or a config that says so (hydra.mode=MULTIRUN).
    """
    overrides = [word for word in arguments if word not in MULTIRUN]
    is_multirun = len(overrides) < len(arguments)
    composed = _compose(overrides, is_multirun=is_multirun)
    if is_multirun or composed.is_multirun:
        return _sweep_settings(composed, overrides)
    _refuse_for_one_run(composed, overrides)
    return composed


def parse(arguments: Sequence[str]) -> SweepSettings:
    """Return the settings of the sweep that these overrides make; ConfigError if they cannot work."""
    overrides = [word for word in arguments if word not in MULTIRUN]
    return _sweep_settings(_compose(overrides, is_multirun=True), overrides)


def _launcher(node: DictConfig, allowed: frozenset[str]) -> Any:
    """Return what the config's section hydra.launcher describes; ConfigError if it cannot be built."""
    if str(node.get("_target_")).startswith(("hydra.", "hydra_plugins.")):
        raise ConfigError("hydra/launcher: Hydra's own are not used; choose hydra/launcher=local, slurm or ray")
    launcher, problems = targets.build("hydra.launcher", plain(node), allowed)
    if problems:
        raise ConfigError("\n".join(problems))
    return launcher


def _refuse_lost_settings(config: DictConfig, arguments: Sequence[str]) -> None:
    """Reject what a sweep's file sets outside of hydra.sweeper.params: the overrides of a job do not have it."""
    rest = [word for word in without_sweeps(arguments) if not word.startswith("sweep=")]
    if rest == without_sweeps(arguments):
        return
    alone, whole = (
        flatten({key: value for key, value in one.items() if key != "hydra"})
        for one in (_compose(rest, is_multirun=True).config, config)
    )
    for key, value in whole.items():
        if key != "name" and not key.startswith("sweep.") and alone.get(key, ...) != value:
            raise ConfigError(
                f"{key}: the sweep's file sets it outside of hydra.sweeper.params, where no job sees it; move it there"
            )


def _refuse_for_one_run(composed: Composed, arguments: Sequence[str]) -> None:
    """Reject what only a sweep uses on the command line of one run, where it would have no effect."""
    # A run that continues in its folder cannot become a sweep.
    is_begun = any(word.startswith("hydra.run.dir=") for word in arguments)
    leave = "leave it out" if is_begun else "add -m, or leave it out"
    for word in arguments:
        key = word.lstrip("+~").partition("=")[0]
        if re.match(r"(hydra\.(launcher|sweeper|sweep)|sweep)\.", key):
            raise ConfigError(f"{key}: is for the jobs of a sweep, and this is one run; {leave}")
    launcher = str(composed.config.hydra.launcher.get("_target_")).rpartition(".")[2]
    if launcher != "local" and "hydra/launcher=local" not in arguments:
        here = "hydra/launcher=local trains on this machine"
        raise ConfigError(
            f"hydra/launcher: {launcher} runs the jobs of a sweep, and this is one run; "
            + (here if is_begun else f"add -m to submit it as one job; {here}")
        )


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys that the sweep option among these overrides gives several values."""
    return [str(key) for key in compose(overrides).config.hydra.sweeper.get("params") or {}]


def takes_whole_numbers(composed: Composed, key: str) -> bool:
    """Say whether a key of the config, or the parameter of a factory that it is, takes integers alone."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(composed.config, parent) if parent else composed.config
    if not isinstance(node, DictConfig) or last not in node:
        return False
    is_integer = isinstance(node._get_node(last), IntegerNode)
    return is_integer or targets.hint(node, last, composed.allowed) in (int, int | None)
