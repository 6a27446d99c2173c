"""Error messages for command lines and config files that do not compose.

The overrides are composed one by one. The first that fails is checked against the config composed before it. Only
errors in files are recognized by the text of Hydra's message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from cifar_research.config import conf, schema, targets, trust
from cifar_research.config import overrides as grammar
from cifar_research.config.conf import is_group
from cifar_research.config.identity import flatten
from cifar_research.config.overrides import parse_override, quoted, read_override, typed

# They choose another config, see trust.py.
_HYDRAS_OPTIONS = (
    "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun", "--run", "-r",
)  # fmt: skip
# Common names of keys that differ from the key's last part.
_ABBREVIATIONS = {
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "l2": "optimizer.weight_decay",
    "bs": "training.batch_size", "batch": "training.batch_size", "num_epochs": "training.epochs",
    "max_epochs": "training.epochs", "data_dir": "data.dir", "dataset": "data", "root": "data.dir",
    "arch": "backbone", "network": "backbone", "net": "backbone", "criterion": "loss", "scheduler": "schedule",
    "lr_scheduler": "schedule", "augment": "augmentation", "transforms": "augmentation", "aug": "augmentation",
    "output_dir": "hydra.run.dir", "out_dir": "hydra.run.dir", "workers": "training.threads",
    "num_workers": "training.threads", "random_seed": "seed", "warmup": "schedule.warmup_epochs",
    "early_stopping": "training.patience", "amp": "training.precision", "dtype": "training.precision",
}  # fmt: skip

_OPTIONS = {
    "ce": "categorical_crossentropy",
    "cross_entropy": "categorical_crossentropy",
    "xent": "categorical_crossentropy",
    "nll": "categorical_crossentropy",
}


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
        cfg = conf.context(before)
    except Exception:  # noqa: BLE001 — any kind: the error is in a file
        return None
    for word in [word for word in overrides if word not in before]:
        try:
            after = conf.compose([*before, word])
        except grammar.HYDRA_ERRORS as error:
            return _wrong_value(word, cfg, error, overrides)
        before, cfg = [*before, word], after
    return None


def _wrong_group(word: str, overrides: Sequence[str]) -> str | None:
    """Return the problem of an option's choice, as in optimizer=null; None if valid."""
    override = read_override(word)
    group = override.key_or_group
    if override.is_delete() or override.package is not None or isinstance(override.value(), dict):
        return None
    if override.is_add() and f"~{group}" not in overrides and group in conf.context().hydra.runtime.choices:
        return f"{group}: has a value already; remove the +: {typed(word.lstrip('+'))}"
    value = override.value()
    listed = conf.options(group, overrides)
    for option in value if isinstance(value, list) else [value]:
        if option is None and group in ("experiment", "sweep"):
            return f"{group}: null is not an option; remove {typed(word)}"
        if not isinstance(option, str) or option not in listed:
            return _no_option(group, option, overrides)
    return None


def _no_option(group: str, option: Any, overrides: Sequence[str]) -> str:
    listed = conf.options(group, overrides)
    name = "none" if option in (None, "null") else _OPTIONS.get(str(option).lower(), str(option))
    close = targets.nearest(name, listed, most=0) if name != "none" or name in listed else ""
    elsewhere = [] if name == "none" else [other for other in conf.groups() if name in conf.options(other, ())]
    if elsewhere and group not in ("experiment", "sweep"):
        close = f"; did you mean {elsewhere[0]}={name}?"
    if group == "data" and option and Path(str(option)).is_dir():
        close = f"; did you mean data=images {typed(f'data.dir={option}')}?"
    given = "null" if option is None else repr(option)
    has = f" Its options are {', '.join(sorted(listed))}" if listed else ""
    if not close and option and not any(word.startswith("hydra.searchpath=") for word in overrides):
        has += "; to use one of your own, add 'hydra.searchpath=[file://<its folder>]'"
    return f"{group}: there is no option {given}{close or '.'}{has}"


def _options_with(group: str, key: str) -> list[str]:
    """Return the options of a group that have a key, in their file or in the schema."""
    files, sections = (Path(conf.config_dir()) / group).glob("*.yaml"), schema.DATA_SECTIONS if group == "data" else {}
    return sorted(f.stem for f in files if key in OmegaConf.load(f) or key in vars(sections.get(f.stem, object)))


def several_values(word: str, overrides: Sequence[str]) -> str:
    """Return the message for a key of one run that has several values."""
    override = read_override(word)
    key, _, value = word.partition("=")
    if override.is_hydra_override():
        return f"{word}: takes one value for all jobs; give only one"
    sweep = override.value()
    if "interval(" in value:
        return f"{key}: {value} is for a search; add -m sweep.trials=20"
    if re.fullmatch(r"\d+,\d+", value) and isinstance(OmegaConf.select(_context(overrides), key), float):
        point = f"{key}={value.replace(',', '.')}"
        return f"{key}: {value} are several values, a sweep with -m; for a number with a decimal point give {point}"
    if not isinstance(sweep, ChoiceSweep) or "(" in value:
        return f"{key}: {value} are several values; for a sweep add -m"
    value = ",".join(getattr(item, "text", None) or str(item) for item in sweep.list)
    takes_list = key == "data.classes" or isinstance(OmegaConf.select(_context(overrides), key), ListConfig)
    ways = [] if takes_list or key in ("name", "data.cache_dir") else ["for a sweep add -m"]
    if takes_list or key == "augmentation":
        ways.append(f"for a list give {typed(f'{key}=[{value}]')}")
    elif key in grammar.TEXT_KEYS:
        ways.append(f"for a text give {typed(f'{key}={quoted(value)}')}")
    return f"{key}: {value} are several values; {', '.join(ways)}"


def _wrong_value(word: str, cfg: DictConfig, error: Exception, overrides: Sequence[str]) -> str:
    """Return the problem of an override with the config that the earlier ones compose."""
    override = read_override(word)
    key, value = override.key_or_group, word.partition("=")[2]
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    is_there = isinstance(node, DictConfig) and last in node
    is_added = override.is_add() or override.is_force_add()
    if is_added and not is_there and re.match(r"training\.phases\.\w", key):
        whole = typed(f"++training.phases={{{key.split('.')[2]}:{{trainable:all}}}}")
        return f"{key}: there is no such phase; add it in one override: {whole}"
    if not is_there and not is_added:
        return unknown_key(key, value, cfg, overrides)
    if override.is_add() and is_there:
        return f"{key}: has a value already; remove the +: {typed(word.lstrip('+'))}"
    full = re.search(r"full_key: (\S+)", str(error.__cause__))
    return _other_kind(full[1] if full else key, word, cfg, str(error.__cause__ or error).splitlines()[0])


def missing(key: str) -> str:
    """Return the message for a key or group without a value."""
    if not is_group(key):
        return f"{key}: has no value; give one: {key}=…"
    default = conf.context().hydra.runtime.choices[key]
    return f"{key}: has no value; choose an option, as in {key}={default}"


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
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kind = kinds.get(type(now)) or kinds.get(_type(cfg, key))
    if kind and (several := re.fullmatch(r"\[(.+,.+)\]", value)):
        return f"{key}: takes {kind}, not {value}; for a sweep give -m {typed(f'{key}={several[1]}')}"
    if value == "null" or kind:
        example = "5" if now is None else quoted(value) if isinstance(now, str) else _plain(now)
        return f"{key}: takes {kind or 'a value'}, not {value}; give one, as in {typed(f'{key}={example}')}"
    return f"{key}: {reason} (given as {word!r})"


def _type(cfg: DictConfig, key: str) -> Any:
    """Return the type that the schema gives a key."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    child = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
    return child._metadata.ref_type if isinstance(child, Node) else Any


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def unknown_key(key: str, value: str | None, cfg: DictConfig, overrides: Sequence[str] = ()) -> str:
    """Return the message for an unknown key, with the nearest valid one."""
    problem = f"{key}: there is no such key"
    parts = key.split(".")
    depth = len(parts) - 1
    while depth and not isinstance(OmegaConf.select(cfg, ".".join(parts[:depth])), DictConfig):
        depth -= 1
    parent, last, rest = ".".join(parts[:depth]), parts[depth], parts[depth + 1 :]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    own = [str(name) for name in node if not str(name).startswith("_") and (parent or name != "hydra")]
    hidden = (
        [name for name in targets.parameters(node, targets.allowed(trust.allowances(overrides))) if name not in own]
        if parent
        else []
    )
    listed = conf.options(parent, overrides) if parent and is_group(parent) else []
    chosen = [str(OmegaConf.select(cfg, f"hydra.runtime.choices.{parent}"))]
    chosen += [word for word in overrides if word.startswith(f"{parent}=")]
    if last in listed and last not in re.split(r"\W+", " ".join(chosen)):
        return f"{problem}; choose {parent}={last} first"
    elsewhere = _options_with(parent, last) if listed and not rest else []
    if (parent or rest) and not elsewhere and (close := targets.closest(last, [*own, *hidden])):
        full = ".".join([*parts[:depth], close, *rest])
        if rest and not (isinstance(node[close], DictConfig) and rest[0] in node[close]):
            return problem + unknown_key(full, value, cfg, overrides).removeprefix(f"{full}: there is no such key")
        return f"{problem}; did you mean {_word(full if close in own else f'+{full}', value)}?"
    if not rest and not elsewhere and (keys := meant(last, cfg)):
        return f"{problem}; did you mean {' or '.join(_word(meaning, value) for meaning in keys)}?"
    last = _ABBREVIATIONS.get(last, last).rpartition(".")[2]
    for group in [parent] if listed else [] if parent else conf.groups():
        if not rest and (having := _options_with(group, last)):
            choices = " or ".join(f"{group}={option}" for option in having)
            return f"{problem} here; choose {choices} and write {_word(f'{group}.{last}', value)}"
    return f"{problem}{targets.nearest(last, [*own, *hidden]) or '; docs/configuration.md lists all keys'}"


def meant(name: str, cfg: DictConfig) -> list[str]:
    """Return the keys and groups that a name without its section may stand for."""
    flat = flatten(OmegaConf.to_container(cfg, resolve=False))
    keys = [key for key in flat if not re.match(r"hydra\.|_|.*\._", key)]
    known = {*conf.groups(), *keys, "hydra.run.dir"}
    if (full := _ABBREVIATIONS.get(name, "")) in known:
        return [full]
    last: dict[str, list[str]] = {group: [group] for group in (*conf.groups(), "experiment", "sweep")}
    for key in keys:
        last.setdefault(key.rpartition(".")[2], []).append(key)
    keys = last.get(full.rpartition(".")[2] or name) or last.get(targets.closest(name, last, cutoff=0.75), [])
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
    if match := re.search(r"Interpolation key 'hydra\.([^']*)' not found", text):
        return f"{full[1] if full else 'config'}: ${{hydra.{match[1]}}} does not exist; write ${{hydra:{match[1]}}}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    file = re.match(r"In '([^']*)'", text)
    where = f" (in {file[1]})" if file else ""
    return f"{full[1]}: {lines[lines.index(full[0]) - 1]}{where}" if full else " ".join(lines[:4])


def _context(overrides: Sequence[str]) -> DictConfig:
    """Return the config of the chosen options, or the defaults if one of them is invalid."""
    try:
        return conf.context(_groups(overrides))
    except Exception:  # noqa: BLE001 — any kind, of a file
        return conf.context()


def _groups(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that choose a single option."""
    chosen = [w for w in overrides if w.startswith("hydra.searchpath=") or is_group(w.partition("=")[0].lstrip("+~"))]
    return grammar.without_sweeps(chosen)


def flags(arguments: Sequence[str]) -> str | None:
    """Return the problem of a command line's flags, None if they are valid."""
    refused = trust.refused_flags(arguments)
    if hydras := [word for word in refused if word.partition("=")[0] in _HYDRAS_OPTIONS]:
        return f"{' '.join(hydras)}: is not supported; add options with hydra.searchpath=[file://<folder>]"
    if not refused:
        return None
    cfg, write = conf.context(), []
    for word in refused:
        name, _, value = word.lstrip("-").replace("-", "_").partition("=")
        following = arguments[list(arguments).index(word) + 1 :][:1]
        if not value and following and not re.search("^-|=", following[0]):
            value = following[0]
        is_known = name == "resume" or ("." in name and OmegaConf.select(cfg, name) is not None)
        write.append(f"{name if is_known else (meant(name, cfg) or [name])[0]}={value or '…'}")
    return f"{' '.join(refused)}: is not an option; write settings without dashes: {' '.join(write)}"


def _unreadable(word: str) -> str:
    """Return why Hydra cannot parse an override, with a correction if possible."""
    key, is_pair, value = word.partition("=")
    if not is_pair:
        groups = [group for group in ("experiment", *conf.groups(), "sweep") if word in conf.options(group, ())]
        meaning = (
            f"did you mean {groups[0]}={word}?"
            if groups
            else "put = between a key and its value, without spaces, as in seed=1"
        )
        return f"{word}: is not of the form key=value; {meaning}"
    if parse_override(f"{key}=1") is None:
        return f"{word}: {key!r} is not a valid key; write it as in optimizer.learning_rate"
    if value[:1] in ("[", "{") and value.count("[") + value.count("{") > value.count("]") + value.count("}"):
        return (
            f"{word}: close its brackets; if the value has spaces, remove them, or put the whole word in single quotes"
        )
    whole = f"{key}={quoted(value)}"
    if value[0] in "[{":
        items = [item.strip() for item in value[1:-1].split(",")]
        inner = ",".join(item if parse_override(f"{key}={item}") else quoted(item) for item in items)
        whole = f"{key}={value[0]}{inner}{value[-1]}"
    if parse_override(whole) is None:
        return f"{word}: the value cannot be read; close its brackets, and put a text in quotes, key='text'"
    return f"{key.lstrip('+')}: {value!r} needs quotes; give {typed(whole)}"
