"""What Hydra composes: the words of a command line, the options of its groups, and the values of ${hydra:…}."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import schema
from cifar_research.config.targets import closest

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def config_dir() -> str:
    """Return the absolute path of conf/: the packaged one if it is there, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "conf"
    return str(packaged if (packaged / "config.yaml").is_file() else package.parent / "conf")


def compose(overrides: Sequence[str] = (), mode: RunMode = RunMode.RUN) -> DictConfig:
    """Return the config with Hydra's own section; Hydra's errors pass. MULTIRUN leaves overrides with several values out."""
    with initialize_config_dir(config_dir(), version_base="1.3", job_name="train"):
        return GlobalHydra.instance().hydra.compose_config("config", list(overrides), run_mode=mode, from_shell=False)


def options(group: str, overrides: Sequence[str]) -> list[str]:
    """Return the names of a group's options, those in the folders of hydra.searchpath too."""
    paths = [word for word in overrides if word.startswith("hydra.searchpath=")]
    with initialize_config_dir(config_dir(), version_base="1.3", job_name="train"):
        return GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG, "config", paths)


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a config or plain mapping; a list is a value, and so is an empty mapping."""
    if isinstance(cfg, (DictConfig, ListConfig)):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parsed(word: str) -> Any:
    """Return an override as Hydra reads it, None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except HYDRA_ERRORS:
        return None


def groups() -> list[str]:
    """Return the config groups that a run is made of."""
    others = ("experiment", "hydra", "schema", "sweep")
    return sorted(path.name for path in Path(config_dir()).iterdir() if path.is_dir() and path.name not in others)


def is_group(key: str) -> bool:
    """Say whether a key is one of the config groups in conf/."""
    return (Path(config_dir()) / key).is_dir()


def _text_keys() -> set[str]:
    """Return the keys of the framework's sections, and of Hydra's, that take any text or a list of texts."""
    sections = {"": [schema.Config], "data.": [schema.CifarConfig, schema.ImagesConfig, schema.SyntheticConfig]}
    typed = {
        f"{prefix}{field.name}"
        for prefix, classes in sections.items()
        for one in classes
        for field in fields(one)
        if re.match(r"(list\[)?str\b", str(field.type)) and field.name != "validation"
    }
    return typed | {"backbone.weights", "hydra.run.dir", "hydra.sweep.dir", "hydra.job.name"}


TEXT_KEYS = _text_keys()


def with_texts(overrides: Sequence[str]) -> list[str]:
    """Quote values that Hydra would read as a boolean, a number or null where the key takes a text.

    A class folder may be called true, 001 or 1e3, and a preset 2021. A null outside of a list stays null.
    """
    return [_with_texts(word) for word in overrides]


def _with_texts(word: str) -> str:
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    if not value or "{" in value or not (name in TEXT_KEYS or is_group(name)):
        return word

    def quoted_atom(found: re.Match[str]) -> str:
        text = found[0].strip()
        override = parsed(f"key={text}") if text and found[0][0] not in "'\"" else None
        is_text = override is None or override.is_sweep_override() or isinstance(override.value(), str)
        in_list = value.count("[", 0, found.start()) > value.count("]", 0, found.start())
        if is_text or (override.value() is None and not in_list):
            return found[0]
        return found[0].replace(text, quoted(text))

    whole = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^][,(){}'\"]+", quoted_atom, value)
    return word if whole == value or parsed(f"{key}={whole}") is None else f"{key}={whole}"


def without_sweeps(words: Sequence[str]) -> list[str]:
    """Return the words without those that give a key several values, but for Hydra's own keys, which take one."""
    return [
        word
        for word in words
        if (found := parsed(word)) is None or not found.is_sweep_override() or found.is_hydra_override()
    ]


def with_globs_expanded(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the words with `glob(…)` replaced by the group's options that it matches; ValueError if there are none.

    overrides: the whole command line, whose hydra.searchpath counts.
    """
    expanded = []
    for word in words:
        override = parsed(word)
        if override is None or not isinstance(override.value(), Glob):
            expanded.append(word)
            continue
        group = override.key_or_group
        names = sorted(options(group, overrides))
        if not names:
            raise ValueError(f"{word}: glob picks options of a group, and {group} is not one; list the values")
        matched = override.value().filter(names)
        if not matched:
            raise ValueError(f"{word}: no option of {group} matches; it has {', '.join(names)}")
        expanded.append(f"{override.get_key_element()}={','.join(quoted_if_needed(name) for name in matched)}")
    return expanded


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


def quoted(text: str) -> str:
    """Return a text as a value on Hydra's command line, whatever characters it has."""
    # Hydra takes backslashes for an escape only where a quotation mark follows.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def quoted_if_needed(text: str) -> str:
    """Return a text as a value on Hydra's command line, in quotes where it would be read as something else."""
    override = parsed(f"key={text}")
    is_same = override is not None and not override.is_sweep_override() and override.value() == text
    return text if is_same else quoted(text)


def typed(word: str) -> str:
    """Return what to type in a shell for an override, in quotes where the shell needs them."""
    if re.fullmatch(r"[\w.,:/@%+=-]+|~[\w./]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`!]|\\(?!\')', word) else f'"{word}"'
