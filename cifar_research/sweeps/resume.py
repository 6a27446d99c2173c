"""Expansion of the command line before Hydra parses it: `resume=FOLDER`, paths with ~."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_research.config import permissions
from cifar_research.config.overrides import quoted, with_texts
from cifar_research.data import cifar
from cifar_research.runs import ledger, report, reproduction
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ConfigError


def expand(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `resume=` and ~ expanded; ConfigError without a run to resume.

    `resume=FOLDER` becomes the run's folder and its original overrides, placed before the new ones. allow_targets must
    be given again, since the folder is not trusted. Neither the shell nor Hydra expands the ~ in key=~/path.
    """
    arguments = [_with_home(argument) for argument in with_texts(arguments)]
    indices = [index for index, argument in enumerate(arguments) if argument.startswith("resume=")]
    if not indices:
        return arguments
    rivals = [a for a in arguments if a.startswith(("resume=", "hydra.run.dir=", "hydra.sweep.dir="))]
    if len(rivals) > 1:
        raise ConfigError(f"resume: {' and '.join(rivals)} contradict each other; give one of them")
    end = indices[0]
    if arguments[end] == "resume=":
        raise ConfigError("resume: has no value; give the folder of a run or a sweep, as in resume=outputs/fast/run")
    folder = Path(arguments[end].removeprefix("resume="))
    sweep = ledger.read(folder)
    if sweep is None and folder.is_dir() and {"-m", "--multirun"} & set(arguments):
        raise ConfigError(f"resume: {folder} is one run, and -m makes many; remove -m and lists of values")
    try:
        overrides = permissions.permitted(report.read_overrides(folder) if sweep is None else sweep[0])
    except ConfigError as error:
        raise ConfigError(f"resume: {error}") from error
    old = ["hydra.sweep.dir=", "resume=", "hydra.mode="]
    launchers = [[word for word in words if word.startswith("hydra/launcher=")] for words in (overrides, arguments)]
    if launchers[1] and launchers[0][-1:] != launchers[1][-1:]:  # another one has other keys
        old += ["hydra/launcher=", "hydra.launcher."]
    overrides = [word for word in overrides if not word.lstrip("+").startswith(tuple(old))]
    if sweep is not None:
        overrides += _data_of_a_sweep(folder, sweep[1], [*overrides, *arguments])
        overrides.append("hydra.mode=MULTIRUN")  # the sweep may have used only -m
    # Insert the original overrides before all new ones: the last value counts.
    begin = next(i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-"))
    key = "hydra.run.dir" if sweep is None else "hydra.sweep.dir"
    return [
        *arguments[:begin],
        *overrides,
        *arguments[begin:end],
        f"{key}={quoted(str(folder))}",
        *arguments[end + 1 :],
    ]


def _data_of_a_sweep(folder: Path, jobs: Sequence[Job], overrides: Sequence[str]) -> list[str]:
    """Return data.dir=… for a sweep started with $CIFAR_DATA_DIR, if that is not set now."""
    names = {job.config["data"]["name"] for job in jobs if job.config["data"]["dir"] is None}
    is_given = os.environ.get("CIFAR_DATA_DIR") or any(word.lstrip("+~").startswith("data.dir=") for word in overrides)
    if is_given or len(names) != 1 or not names <= cifar.LAYOUTS.keys():
        return []
    for job in jobs:
        if ended := report.read_if_intact(folder / job.folder / "report.json"):
            return reproduction.data_dir_override(ended, frozenset(), folder / job.folder)
    return []


def _with_home(word: str) -> str:
    """Return key=~/path with the home directory expanded; ConfigError if it does not exist."""
    match = re.match(r"(\+{0,2}([\w./@]+)=['\"]?)(~[\w.-]*)(?=/|['\"]?$)", word)
    if match is None:
        return word
    home = os.path.expanduser(match[3])
    if home.startswith("~"):
        reason = "this user has no home directory" if home == "~" else f"there is no user {home[1:]}"
        path = word[match.end(1) :].rstrip("'\"")
        raise ConfigError(f"{match[2]}: {path}: {reason}; write the whole path")
    return f"{match[1]}{home}{word[match.end() :]}"
