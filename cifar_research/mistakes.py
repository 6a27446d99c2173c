"""Mistakes on a command line or in a file of settings, in sentences for whoever made them."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf

from cifar_research import plugins, trust

# Those that choose another config, see trust.py.
_HYDRAS_OPTIONS = (
    "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun", "--run", "-r",
)  # fmt: skip


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn Hydra's or OmegaConf's error into sentences that name the key, the value and the nearest valid name."""
    from cifar_research import config  # which imports this module

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    text = "\n".join(str(one) for one in chain)

    full = re.search(r"full_key: (\S+)", text)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if match := re.search(r"Ambiguous value for argument '(.*)'", text):
        key, _, value = match.group(1).partition("=")
        as_text = typed(f"{key}={_quoted(value)}")
        return f"{key}: {value} are several values; for a sweep add -m, for a list give {key}=[{value}], for a text {as_text}"
    if match := re.search(r"Could not (?:find|load) '([^']*)/([^'/]*)'", text):
        return _no_option(*match.groups(), overrides)
    if match := re.search(r"Could not override '([^']*)'\. ?\n?No match in the defaults list", text):
        key = match.group(1)
        groups = sorted(p.name for p in Path(config.config_dir()).iterdir() if p.is_dir())
        return f"{key}: there is no such group or key{plugins.nearest(key, [*groups, 'seed', 'name'])}"
    if match := re.search(r"Could not override '([^']*)'", text):
        return _unknown_key(match.group(1), overrides)
    if match := re.search(r"Key '([^']*)' (?:is )?not in (?:'(\w+)'|struct)", text):
        return _unknown_key(full.group(1) if full else match.group(1), overrides)
    # The word that Hydra could not take, of several with this key.
    merged = re.match(r"Error merging override (.*)", text)
    given = merged.group(1) if merged else None
    if given and given.startswith("+") and "is not a subclass of PhaseConfig" in text:
        return _new_phase(given)
    if full and re.search(
        r"is not Optional|is not a ListConfig|Cannot merge DictConfig with ListConfig|is not a subclass", text
    ):
        return _other_kind(full.group(1), given, text, overrides)
    if match := re.search(r"(Value .*|Incompatible value .*|Cannot convert .*|.*is not a subclass.*)", text):
        place = full.group(1) if full else "config"
        where = f" (given as {given!r})" if given else ""
        return f"{place}: {match.group(1)}{where}"
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if full:
        return f"{full.group(1)}: {lines[0]}"
    return " ".join(lines[:4])


def odd_option(overrides: Sequence[str]) -> str | None:
    """Say which word gives a group something else than an option's name, as optimizer=null does; None if none does."""
    from cifar_research import config

    for word in overrides:
        override = trust.parsed(word)
        is_group = override is not None and (Path(config.config_dir()) / override.key_or_group).is_dir()
        if is_group and not override.is_delete() and not override.is_sweep_override():
            value = override.value()
            is_optional = override.key_or_group in ("experiment", "sweep")
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, str) and not (one is None and is_optional):
                    return _no_option(override.key_or_group, one, overrides)
    return None


def _no_option(group: str, option: Any, overrides: Sequence[str]) -> str:
    from cifar_research import config

    # Hydra lists a group's options, those of hydra.searchpath too, for a word that names none.
    places = [word for word in overrides if word.startswith("hydra.searchpath=")]
    listed = None
    with contextlib.suppress(*config.HYDRA_ERRORS):
        try:
            config.compose_unchecked([*places, f"{group}="])
        except MissingConfigException as error:
            listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", str(error))
    options = listed.group(1).split() if listed else []
    close = plugins.close(str(option), options) or "."
    given = "null" if option is None else repr(option)
    return f"{group}: there is no option {given}{close}" + (f" It has {', '.join(options)}" if options else "")


def _new_phase(word: str) -> str:
    """Say how a phase is added, which Hydra lets nobody do by its own key."""
    key, _, value = word.lstrip("+").removeprefix("training.phases.").partition("=")
    names = key.split(".")
    inner = value if len(names) > 1 or value.startswith("{") else "{trainable:all}"
    for name in reversed(names):
        inner = f"{{{name}:{inner}}}"
    whole = typed(f"++training.phases={inner}")
    return f"training.phases.{names[0]}: a new phase is given whole, with all its settings in one word: {whole}"


def _other_kind(key: str, given: str | None, text: str, overrides: Sequence[str]) -> str:
    """Say what kind of value a key takes; given: the word with another one, None if a file has it."""
    value = None if given is None else given.partition("=")[2]
    file = re.match(r"In '([^']*)'", text)
    end = f", not {value}" if given else f" (in {file.group(1)})" if file else ""
    now = OmegaConf.select(_context(key, overrides), key)
    if isinstance(now, ListConfig) or "is not a ListConfig" in text or "object_type=list" in text:
        inner = {None: "…", "null": ""}.get(value, "…" if value and value[0] == "{" else value)
        return f"{key}: takes a list{end}; give {key}=[{inner}]"
    if re.fullmatch(r"training\.phases\.\w+", key) and "is not Optional" in text:
        return f"{key}: null is no phase; leave it out with ~{key}"
    if isinstance(now, DictConfig):
        return f"{key}: takes settings of its own{end}; it has {', '.join(map(str, now))}"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return f"{key}: takes {kinds.get(type(now), 'a value')}{end}; give one: {key}=…"


def _context(key: str, overrides: Sequence[str]) -> DictConfig:
    """Return what the options on the command line compose, Hydra's own section too, without what it says of a key."""
    from cifar_research import config

    rest = [o for o in overrides if "=" in o and "." not in o.split("=")[0] and o.split("=")[0].lstrip("+~") != key]
    try:
        return config.compose_unchecked(rest, with_hydra=True)
    except config.HYDRA_ERRORS:
        return config.compose_unchecked([], with_hydra=True)  # what is wrong lies in a preset


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Name the valid neighbours of an unknown key, as the rest of the command line composes them."""
    from cifar_research import config

    parent, _, last = key.rpartition(".")
    cfg = _context(key, overrides)
    while parent and not isinstance(OmegaConf.select(cfg, parent), DictConfig):
        parent, _, last = parent.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    valid = [str(k) for k in node if not str(k).startswith("_")]
    words = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == parent]
    chosen = {cfg.hydra.runtime.choices.get(parent), *re.split(r"\W+", words[-1] if words else "")}
    if last not in chosen and (Path(config.config_dir()) / parent / f"{last}.yaml").is_file():
        return f"{key}: there is no such key; choose {parent}={last} first"
    return f"{key}: there is no such key{plugins.nearest(last, valid)}"


def flags(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the words of a command line that begin with a dash, None if nothing is."""
    from cifar_research import config

    refused = trust.refused_flags(arguments)
    if hydras := [word for word in refused if word.partition("=")[0] in _HYDRAS_OPTIONS]:
        return f"{' '.join(hydras)}: is not taken; more options come from hydra.searchpath=[file://<folder>]"
    if not refused:
        return None
    cfg = config.compose_unchecked()
    keys = ["resume", "experiment", "sweep", *cfg, *sorted(config.flatten(cfg), key=len)]
    meant = []
    for word in refused:
        name, is_pair, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        key = next((key for key in keys if f".{key}".endswith(f".{name}")), name)
        after = arguments[list(arguments).index(word) + 1 :][:1]
        if not is_pair and after and not after[0].startswith("-") and "=" not in after[0]:
            value = after[0]
        meant.append(f"{key}={value or '…'}")
    return f"{' '.join(refused)}: settings are written without dashes; write {' '.join(meant)}"


def _unreadable(word: str) -> str:
    """Say what in a word is not in the grammar of Hydra's command line, with the word to type for it if there is one."""
    key, is_pair, value = word.partition("=")
    told = f"{word!r} is not an override, key=value"
    if not is_pair:
        return f"{told}; put = between a key and its value, as in seed=1"
    if trust.parsed(f"{key}=1") is None:
        return f"{told}: {key!r} is no key"
    if value.endswith(","):
        return f"{told}: leave the comma at its end out"
    if value[0] not in "[{":
        quoted = f"{key}={_quoted(value)}"
    else:
        parts = [part.strip() for part in value[1:-1].split(",")]
        inner = ",".join(part if trust.parsed(f"{key}={part}") else _quoted(part) for part in parts)
        quoted = f"{key}={value[0]}{inner}{value[-1]}"
    if trust.parsed(quoted) is None:
        return f"{told}: its value cannot be read; close its brackets, and put a text in quotes, key='text'"
    return f"{key.lstrip('+')}: {value!r} needs quotes; give {typed(quoted)}"


def typed(word: str) -> str:
    """Return what to type for a word with quotes, which a shell would take for its own."""
    return shlex.quote(word) if re.search(r'["$`!]|\\(?!\')', word) else f'"{word}"'


def _quoted(text: str) -> str:
    from cifar_research import commandline  # which imports config

    return commandline.quoted(text)
