"""Error messages for command lines and config files that do not compose.

The overrides are composed one by one. The first that fails is checked against the config composed before it. Only
errors in files are recognized by the text of Hydra's message.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from cifar_research.config import conf, permissions, schema, targets
from cifar_research.config.conf import is_group
from cifar_research.config.identity import flatten
from cifar_research.config.overrides import TEXT_KEYS, parse_override, quoted, read_override, typed, without_sweeps

# Common names of keys and options whose spelling is not close to them.
_ABBREVIATIONS = {
    "lr": "optimizer.learning_rate", "bs": "training.batch_size", "dataset": "data",
    "num_workers": "training.threads", "output_dir": "hydra.run.dir",
}  # fmt: skip
_OPTIONS = dict.fromkeys(("ce", "cross_entropy", "xent", "nll"), "categorical_crossentropy")
_OPTIONS |= {"mse": "mean_squared_error", "horizontal_flip": "flip"}


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Return a message for an error of Hydra or OmegaConf: key, value, nearest valid name."""
    return wrong_override(overrides) or _in_a_file(error, overrides)


def wrong_override(overrides: Sequence[str]) -> str | None:
    """Return the problem of the first override that does not compose, None if all do."""
    for word in overrides:
        if parse_override(word) is None:
            return _unreadable(word)
    for word in overrides:
        if read_override(word).is_sweep_override():
            return several_values(word, overrides)
    groups = [word for word in overrides if is_group(read_override(word).key_or_group)]
    for word in groups:
        if sentence := _wrong_group(word, overrides):
            return sentence
    # Options first: they decide which keys exist.
    before = [word for word in overrides if word.startswith("hydra.searchpath=") or word in groups]
    try:
        cfg = conf.compose(before)
    except Exception:  # noqa: BLE001 — any kind: the error is in a file
        return None
    for word in [word for word in overrides if word not in before]:
        try:
            after = conf.compose([*before, word])
        except Exception as error:  # noqa: BLE001 — OmegaConf also raises others than its own
            return _wrong_value(word, cfg, error, overrides)
        before, cfg = [*before, word], after
    return None


def _wrong_group(word: str, overrides: Sequence[str]) -> str | None:
    """Return the problem of an option's choice, as in optimizer=null; None if valid."""
    override = read_override(word)
    group, value = override.key_or_group, override.value()
    if override.is_delete() or override.package is not None or isinstance(value, dict):
        return None
    if override.is_add() and f"~{group}" not in overrides and group in conf.compose().hydra.runtime.choices:
        return f"{group}: has a value already; remove the +"
    listed = conf.options(group, overrides)
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, str) or option not in listed:
            return _no_option(group, option, overrides)
    return None


def _no_option(group: str, option: Any, overrides: Sequence[str]) -> str:
    listed = conf.options(group, overrides)
    name = _OPTIONS.get(str(option).lower(), str(option))
    close = targets.nearest(name, listed, most=0)
    if elsewhere := [other for other in conf.groups() if name != "none" and name in _own_options(other)]:
        close = f"; did you mean {elsewhere[0]}={name}?"
    given = "null" if option is None else repr(option)
    has = f" Its options are {', '.join(sorted(listed))}" if listed else ""
    return f"{group}: there is no option {given}{close or '.'}{has}"


def _options_with(group: str, key: str) -> list[str]:
    """Return the options of a group that have a key, in their file or in the schema."""
    sections = schema.DATA_SECTIONS if group == "data" else {}
    files = _own_options(group)
    return [name for name in files if key in OmegaConf.load(files[name]) or key in vars(sections.get(name, object))]


def _own_options(group: str) -> dict[str, Path]:
    """Return the options of a group in conf/ and their files, without Hydra, which takes 20 ms a group."""
    return {file.stem: file for file in sorted((Path(conf.config_dir()) / group).glob("*.yaml"))}


def several_values(word: str, overrides: Sequence[str]) -> str:
    """Return the message for a key of one run that has several values."""
    key, _, value = word.replace("'", "").partition("=")
    if read_override(word).is_hydra_override():
        return f"{word}: takes one value for all jobs; give only one"
    ways = ["for a search add -m sweep.trials=20" if "interval(" in value else "for a sweep add -m"]
    takes_list = key == "data.classes" or isinstance(OmegaConf.select(_context(overrides), key), ListConfig)
    if (takes_list or key == "augmentation") and not re.search(r"[\[(]", value):
        ways = [*ways[takes_list:], f"for a list give {typed(f'{key}=[{value}]')}"]
    elif key in TEXT_KEYS and not takes_list:
        ways = [*ways[key in ("name", "data.cache_dir") :], f"for a text give {typed(f'{key}={quoted(value)}')}"]
    return f"{key}: {value} are several values; {', '.join(ways)}"


def _wrong_value(word: str, cfg: DictConfig, error: Exception, overrides: Sequence[str]) -> str:
    """Return the problem of an override with the config that the earlier ones compose."""
    override = read_override(word)
    key, value = override.key_or_group, word.partition("=")[2]
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    is_there = isinstance(node, DictConfig) and last in node
    is_added = override.is_add() or override.is_force_add()
    if is_added and not is_there and re.match(r"training\.phases\.\w", key):
        phase = f"training.phases={{{key.split('.')[2]}:{{trainable:all}}}}"
        return f"{key}: there is no such phase; add it in one override: {typed(f'++{phase}')}"
    if not is_there and not is_added:
        return unknown_key(key, value, cfg, overrides)
    if override.is_add() and is_there:
        return f"{key}: has a value already; remove the +"
    if override.is_delete():
        return removed(key)
    full = re.search(r"full_key: (\S+)", str(error.__cause__))
    return _other_kind(full[1] if full else key, word, cfg, str(error.__cause__ or error).splitlines()[0])


def removed(key: str) -> str:
    """Return the message for a key that ~ removes and that the schema has."""
    return f"{key}: cannot be removed; leave out ~{key}"


def missing(key: str) -> str:
    """Return the message for a key or group without a value."""
    return f"{key}: has no value; give one: {key}=…"


def _other_kind(key: str, word: str, cfg: DictConfig, reason: str) -> str:
    """Return the message for a value of the wrong type; `reason` is OmegaConf's message."""
    value, now = word.partition("=")[2], OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
    if isinstance(now, ListConfig) or "ListConfig" in reason:
        inner = "" if value == "null" else value
        return f"{key}: takes a list, not {value}; give {typed(f'{key}=[{inner}]')}"
    if re.fullmatch(r"training\.phases\.\w+", key) and value == "null":
        return f"{key}: null is not a valid phase; remove it with ~{key}"
    if isinstance(now, DictConfig):
        return f"{key}: is a section and cannot be {value}; set one of its keys: {', '.join(map(str, now))}"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    child = node._get_node(last, validate_access=False) if isinstance(node, DictConfig) else None
    if kind := targets.KINDS.get(child._metadata.ref_type if isinstance(child, Node) else Any):
        return f"{key}: takes {kind}, not {value}; change the value"
    return f"{key}: {reason} (given as {word!r})"


def unknown_key(key: str, value: str | None, cfg: DictConfig, overrides: Sequence[str] = ()) -> str:
    """Return the message for an unknown key, with the nearest valid one."""
    problem = f"{key}: there is no such key"
    group, option = [*key.split("."), ""][:2]
    if is_group(group) and option in conf.options(group, overrides):
        choices = [str(OmegaConf.select(cfg, f"hydra.runtime.choices.{group}"))]
        choices += [word for word in overrides if word.startswith(f"{group}=")]
        is_chosen = option in re.findall(r"\w+", " ".join(choices))
        if not is_chosen and OmegaConf.select(cfg, f"{group}.{option}") is None:
            return f"{problem}; choose {group}={option} first"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    own = list(map(str, node)) if isinstance(node, DictConfig) else []
    own = [name for name in own if name not in ("hydra", last) and not name.startswith("_")]
    names = {*own, *targets.parameters(node, targets.allowed(permissions.allowed_packages(overrides)))}
    name = _ABBREVIATIONS.get(last, last).rpartition(".")[2]
    if parent and is_group(parent) and name not in own and (options := _options_with(parent, name)):
        return f"{problem} here; choose {' or '.join(f'{parent}={option}' for option in options)} first"
    if parent and (close := targets.closest(name, names)):
        full = f"{parent}.{close}" if close in own else f"+{parent}.{close}"
        return f"{problem}; did you mean {_word(full, value)}?"
    if parent != "hydra.launcher" and (keys := _meant(key, cfg)):
        return f"{problem}; did you mean {' or '.join(_word(meaning, value) for meaning in keys)}?"
    return f"{problem}{targets.nearest(last, names) or '; docs/configuration.md lists all keys'}"


def _meant(key: str, cfg: DictConfig) -> list[str]:
    """Return the keys and groups that an unknown key may stand for."""
    flat = flatten(OmegaConf.to_container(cfg, resolve=False))
    keys = [name for name in flat if name != key and not re.match(r"hydra\.|_|.*\._", name)]
    if "." in key and (close := difflib.get_close_matches(key, keys, n=1, cutoff=0.85)):
        return close
    name = key.rpartition(".")[2]
    if (full := _ABBREVIATIONS.get(name, "")) in {*conf.groups(), *keys, "hydra.run.dir"}:
        return [full]
    last: dict[str, list[str]] = {group: [group] for group in (*conf.groups(), "experiment", "sweep")}
    for key in keys:
        last.setdefault(key.rpartition(".")[2], []).append(key)
    keys = last.get(full.rpartition(".")[2] or name) or last.get(targets.closest(name, last), [])
    # Prefer a key of the whole training to the same key of its phases.
    return [key for key in keys if ".phases." not in key] or keys


def _word(key: str, value: str | None) -> str:
    return repr(key) if value is None else typed(f"{key}={value}")


def _in_a_file(error: Exception, overrides: Sequence[str]) -> str:
    """Return the problem in a config file, from the text of Hydra's error."""
    text = f"{error}\n{error.__cause__ or ''}"
    full = re.search(r"full_key: (\S+)", text)
    if match := re.search(r"Could not (?:find|load) '([^']*)/([^'/]*)'", text):
        return _no_option(match[1], match[2], overrides)
    if match := re.search(r"Key '([^']*)' (?:is )?not in (?:'(\w+)'|struct)", text):
        return unknown_key(full[1] if full else match[1], None, _context(overrides), overrides)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    file = re.match(r"In '([^']*)'", text)
    where = f" (in {file[1]})" if file else ""
    if full:
        reason = lines[lines.index(full[0]) - 1].rpartition(" interpolation: ")[2].strip('"')
        return f"{full[1]}: {reason}{where}; correct or remove the value"
    return " ".join(lines[:4])


def _context(overrides: Sequence[str]) -> DictConfig:
    """Return the config of the chosen options, or the defaults if one of them is invalid."""
    chosen = [w for w in overrides if w.startswith("hydra.searchpath=") or is_group(w.partition("=")[0].lstrip("+~"))]
    try:
        return conf.compose(without_sweeps(chosen))
    except Exception:  # noqa: BLE001 — any kind, of a file
        return conf.compose()


def flags(arguments: Sequence[str]) -> str | None:
    """Return the problem of a command line's flags, None if they are valid."""
    refused = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in permissions.FLAGS]
    advice = "write settings without dashes, as in seed=1; hydra.searchpath=[file://<folder>] adds options of your own"
    return f"{' '.join(refused)}: is not an option; {advice}" if refused else None


def _unreadable(word: str) -> str:
    """Return why Hydra cannot parse an override, with a correction if possible."""
    key, is_pair, value = word.partition("=")
    if not is_pair:
        return f"{word}: is not of the form key=value; write it without spaces, as in seed=1"
    if parse_override(f"{key}=1") is None:
        return f"{word}: {key!r} is not a valid key; write it as in optimizer.learning_rate"
    whole = f"{key}={quoted(value)}"
    if value[0] in "[{" or parse_override(whole) is None:
        return f"{word}: cannot be read; close its brackets, leave out spaces, and put texts in single quotes"
    return f"{key.lstrip('+')}: {value!r} needs quotes; give {typed(whole)}"
