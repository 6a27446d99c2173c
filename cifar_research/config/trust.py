"""Who may say which code runs: the command line, and no file; see targets.py for what a `_target_` may be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_research.config import targets
from cifar_research.config.overrides import parse_override

_KEY = "allow_targets"
_LOGGING = ("job_logging", "hydra_logging")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Hydra's options that show something and run nothing. The others choose another config than conf/, which would escape
# the schema, or read a pickle.
_SHOWING = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i",
    "--shell-completion", "-sc", "--multirun", "-m",
)  # fmt: skip


def allowances(overrides: Sequence[str]) -> list[str]:
    """Return what the words of a command line allow a `_target_` to name."""
    found: Any = []
    for word in overrides:
        override = parse_override(word)
        if override is not None and override.key_or_group == _KEY:
            found = [] if override.is_delete() else override.value()
    return found if isinstance(found, list) else [found]


def of_a_file(words: Sequence[str]) -> list[str]:
    """Return the words that a file gives for a command line, but for those that only who types it may say.

    Whom it allows to be called, and Hydra's own, except for how a sweep is run and in which folders options lie: anything
    else there would be imported.
    """
    kept = []
    for word in words:
        override = parse_override(word)
        key = "" if override is None else override.key_or_group
        if key.partition(".")[0] == _KEY:
            continue
        if re.match(r"hydra\b", key) and not is_of_sweep(key):
            continue
        if key == "hydra.searchpath" and not _are_folders(override):
            continue
        kept.append(word)
    return kept


def _are_folders(override: Any) -> bool:
    places = None if override.is_delete() or override.is_sweep_override() else override.value()
    return isinstance(places, list) and all(
        isinstance(place, str) and (place.startswith("file://") or "://" not in place) for place in places
    )


def is_of_sweep(key: str) -> bool:
    """Say whether a key of Hydra's own says how a sweep is run, or where options lie; its jobs take no others."""
    return re.fullmatch(r"hydra(/launcher|\.(mode|searchpath|sweep\.dir|(launcher|sweeper)(\..+)?))", key) is not None


def problems(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return what in a composed config only the command line may say and a file says, a sentence each."""
    allowed, found = allowances(overrides), list(OmegaConf.select(cfg, _KEY) or [])
    if found != allowed:
        return [
            f"{_KEY}: {found} comes from a file, and a config cannot allow its own code to run; if you trust it, give "
            f"{_KEY}=[{','.join(map(str, found))}] on the command line, or set {targets.ALLOWING_VARIABLE}"
        ]
    for name in allowed:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            return [f"{_KEY}: {name!r} is not the name of a package or a module, like my_lab"]
    return _check_hydra(cfg.hydra, overrides)


def refused_flags(arguments: Sequence[str]) -> list[str]:
    """Return Hydra's own options on a command line that would go round the checks of a config."""
    return [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in _SHOWING]


def _check_hydra(hydra: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return what Hydra itself would run or set for a file: callbacks, handlers of logs, environment variables."""
    found = ["hydra.callbacks: are not run by this command; remove them"] if hydra.get("callbacks") else []
    for section in _LOGGING:
        content = OmegaConf.to_container(hydra[section]) if section in hydra else {}
        found += [problem for key, value in _leaves(f"hydra.{section}", content) for problem in _odd(key, value)]
    said = [override.key_or_group for word in overrides if (override := parse_override(word)) is not None]
    if hydra.job.get("env_set") and not any(key.startswith("hydra.job.env_set") for key in said):
        found.append(
            f"hydra.job.env_set: a file sets {', '.join(hydra.job.env_set)}, and environment variables may choose what "
            "runs; set them before the command"
        )
    return found


def _odd(key: str, value: Any) -> list[str]:
    """Return what is wrong with an entry of logging's dictionary, which can name any callable of any module."""
    last, text = key.rpartition(".")[2], str(value)
    is_foreign_class = last in ("class", "()") and not (last == "class" and text.startswith("logging."))
    is_foreign_object = text.startswith("ext://") and text not in _STREAMS
    is_hidden = "${" in text and last != "filename"
    if is_foreign_class or is_foreign_object or is_hidden:
        return [f"{key}: {text!r} names code outside of Python's logging, which a file may not; leave it out"]
    return []


def _leaves(key: str, content: Any) -> Iterator[tuple[str, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if items is None:
        yield key, content
        return
    for name, item in items:
        yield from _leaves(f"{key}.{name}", item)
