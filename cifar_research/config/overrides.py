"""Overrides: how Hydra reads the command line's, and how to write them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import conf, schema

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def read_override(word: str) -> Override:
    """Return an override as Hydra reads it; one of HYDRA_ERRORS if it cannot."""
    return OverridesParser.create().parse_override(word)


def parse_override(word: str) -> Override | None:
    """Return an override as Hydra reads it, None if it cannot."""
    try:
        return read_override(word)
    except HYDRA_ERRORS:
        return None


def _text_keys() -> set[str]:
    """Return the keys of the framework's sections, and of Hydra's, that take any text or a list of texts."""
    settings = [("", field) for field in fields(schema.Config)]
    settings += [("data.", field) for section in schema.DATA_SECTIONS.values() for field in fields(section)]
    typed = {
        f"{prefix}{field.name}"
        for prefix, field in settings
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
    if not value or "{" in value or not (name in TEXT_KEYS or conf.is_group(name)):
        return word

    def quoted_atom(atom: re.Match[str]) -> str:
        text = atom[0].strip()
        override = parse_override(f"key={text}") if text and atom[0][0] not in "'\"" else None
        if override is None or override.is_sweep_override() or isinstance(override.value(), str):
            return atom[0]
        in_list = value.count("[", 0, atom.start()) > value.count("]", 0, atom.start())
        if override.value() is None and not in_list:
            return atom[0]
        return atom[0].replace(text, quoted(text))

    whole = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^][,(){}'\"]+", quoted_atom, value)
    return word if whole == value or parse_override(f"{key}={whole}") is None else f"{key}={whole}"


def without_sweeps(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that have several values, but with Hydra's own."""
    return [
        word
        for word in overrides
        if (parsed := parse_override(word)) is None or not parsed.is_sweep_override() or parsed.is_hydra_override()
    ]


def with_globs_expanded(swept: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return overrides with `glob(…)` replaced by the options that it matches; ValueError if there are none.

    overrides: the whole command line, whose hydra.searchpath counts.
    """
    expanded = []
    for word in swept:
        override = parse_override(word)
        glob: object = None if override is None else override.value()  # Hydra's type leaves Glob out
        if override is None or not isinstance(glob, Glob):
            expanded.append(word)
            continue
        group = override.key_or_group
        names = sorted(conf.options(group, overrides))
        if not names:
            raise ValueError(f"{word}: glob picks options of a group, and {group} is not one; list the values")
        matched = glob.filter(names)
        if not matched:
            raise ValueError(f"{word}: no option of {group} matches; it has {', '.join(names)}")
        expanded.append(f"{override.get_key_element()}={','.join(quoted_if_needed(name) for name in matched)}")
    return expanded


def quoted(text: str) -> str:
    """Return a text as a value on Hydra's command line, whatever characters it has."""
    # Hydra takes backslashes for an escape only where a quotation mark follows.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def quoted_if_needed(text: str) -> str:
    """Return a text as a value on Hydra's command line, in quotes where it would be read as something else."""
    override = parse_override(f"key={text}")
    is_same = override is not None and not override.is_sweep_override() and override.value() == text
    return text if is_same else quoted(text)


def typed(word: str) -> str:
    """Return what to type in a shell for an override, in quotes where the shell needs them."""
    if re.fullmatch(r"[\w.,:/@%+=-]+|~[\w./]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`!]|\\(?!\')', word) else f'"{word}"'
