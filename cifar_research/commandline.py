"""What stands on the command line, before Hydra sees it: `resume=FOLDER`, and paths that begin with ~/."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cifar_research import trust
from cifar_research.config import ConfigError
from cifar_research.sweep import cells


def expand(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra takes them; ConfigError if there is no run to resume.

    `resume=FOLDER` becomes the overrides that the run in FOLDER was begun with, before those given now, and its
    folder; whom the run allowed to be called is for the command to say again, since the folder may be a stranger's. A
    shell leaves the ~ in key=~/path as it is, and Hydra has no word for it.
    """
    home = re.compile(r"^(\+{0,2}[\w.]+=)(~/)")
    arguments = [home.sub(lambda word: word[1] + os.path.expanduser(word[2]), argument) for argument in arguments]
    places = [place for place, argument in enumerate(arguments) if argument.startswith("resume=")]
    if not places:
        return arguments
    rivals = [a for a in arguments if a.startswith(("resume=", "hydra.run.dir=", "hydra.sweep.dir="))]
    if len(rivals) > 1:
        raise ConfigError(f"resume: {' and '.join(rivals)} contradict each other; give one of them")
    end = places[0]
    folder = Path(arguments[end].removeprefix("resume="))
    sweep = cells.read(folder)
    is_sweep = sweep is not None
    if not is_sweep and folder.is_dir() and {"-m", "--multirun"} & set(arguments):
        raise ConfigError(f"resume: {folder} is one run, and -m makes many; leave -m and lists of values out")
    try:
        words = trust.of_a_file(sweep[0] if is_sweep else run_words(folder))
    except ConfigError as error:
        raise ConfigError(f"resume: {error}") from error
    words = [word for word in words if not word.startswith(("hydra.sweep.dir=", "resume=", "hydra.mode="))]
    # The sweep may have been one by -m alone.
    words += ["hydra.mode=MULTIRUN"] if is_sweep else []
    # Among the other overrides, before them what was given then, so that what is given now wins.
    begin = end
    while begin > 0 and "=" in arguments[begin - 1] and not arguments[begin - 1].startswith("-"):
        begin -= 1
    key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    return [*arguments[:begin], *words, *arguments[begin:end], f"{key}={quoted(str(folder))}", *arguments[end + 1 :]]


def quoted(text: str) -> str:
    """Return a text as a value on Hydra's command line, whatever characters it has."""
    # Hydra takes backslashes for an escape only where a quotation mark follows.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def program(name: str) -> str:
    """Return what a user types for a command: scripts/train in a checkout, cifar-train where it is installed."""
    is_checkout = (Path(__file__).parents[1] / "scripts" / name).is_file()
    return f"scripts/{name}" if is_checkout else f"cifar-{name}"


def pip() -> str:
    """Return what a user types for the pip of the environment that this runs in."""
    return f"{shlex.quote(sys.executable)} -m pip"


def run_words(folder: Path) -> list[str]:
    """Return the words that a run was begun with, and where the options that they name lie; ConfigError if it cannot."""
    words = _read(folder, "overrides.yaml")
    # Where more options lie; Hydra keeps such words apart from the others.
    hydra = _read(folder, "hydra.yaml")
    try:
        more = hydra["hydra"]["overrides"]["hydra"]
        return words + [word for word in more if word.startswith("hydra.searchpath=")]
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder / '.hydra' / 'hydra.yaml'} is damaged; give its command again") from None


def _read(folder: Path, name: str) -> Any:
    """Return what Hydra saved beside a run."""
    path = folder / ".hydra" / name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder} is no run's folder, there is no {path}; give the folder of a run") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); give its command again") from error
    wanted = list if name == "overrides.yaml" else dict
    if not isinstance(content, wanted) or (wanted is list and not all(isinstance(word, str) for word in content)):
        raise ConfigError(f"{path} is damaged; give the run's whole command again, with hydra.run.dir={folder}")
    return content
