"""Overrides: parsing, quoting and expanding them with Hydra's grammar."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import conf
from cifar_research.runtime.errors import ConfigError

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def read_override(word: str) -> Override:
    """Parse an override with Hydra; raise one of HYDRA_ERRORS if that fails."""
    return OverridesParser.create().parse_override(word)


def parse_override(word: str) -> Override | None:
    """Parse an override with Hydra; return None if that fails."""
    try:
        return read_override(word)
    except HYDRA_ERRORS:
        return None


# Keys that take any text or a list of texts.
TEXT_KEYS = {
    "name", "allow_targets", "data.name", "data.dir", "data.cache_dir", "data.classes", "data.labels_file",
    "data.labels_key", "backbone.weights", "hydra.run.dir", "hydra.sweep.dir", "hydra.job.name",
}  # fmt: skip


def with_texts(overrides: Sequence[str]) -> list[str]:
    """Quote values that Hydra would parse as a boolean, number or null where a key needs text.

    A class folder may be named true, 001 or 1e3, and a preset 2021. A null outside a list is kept.
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
    """Return the overrides without those that have several values; keep Hydra's own."""
    return [
        word
        for word in overrides
        if (parsed := parse_override(word)) is None or not parsed.is_sweep_override() or parsed.is_hydra_override()
    ]


def with_globs_expanded(swept: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Replace `glob(…)` in overrides by the matching options; ConfigError if none match.

    overrides: the whole command line, for its hydra.searchpath.
    """
    expanded = []
    for word in swept:
        override = parse_override(word)
        glob: object = None if override is None else override.value()  # Hydra's annotation lacks Glob
        if override is None or not isinstance(glob, Glob):
            expanded.append(word)
            continue
        group = override.key_or_group
        names = sorted(conf.options(group, overrides))
        matched = glob.filter(names)
        if not matched:
            raise ConfigError(f"{word}: no option of {group} matches; its options are {', '.join(names) or 'none'}")
        expanded.append(f"{override.get_key_element()}={','.join(matched)}")
    return expanded


def has_mapping(override: Override) -> bool:
    """Return whether an override's value, or one of several, is a mapping, as in `model={dropout:0.1}`."""
    value: object = override.value()
    return any(isinstance(item, dict) for item in getattr(value, "list", None) or [value])


def is_mapping_of(word: str, groups: Sequence[str]) -> bool:
    """Return whether an override gives a mapping to one of these groups."""
    override = parse_override(word)
    return override is not None and override.key_or_group in groups and has_mapping(override)


def quoted(text: str) -> str:
    """Return a text quoted for Hydra's command line."""
    # Hydra treats backslashes as an escape only before a quotation mark.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def typed(word: str) -> str:
    """Return an override as typed in a shell, quoted where the shell needs it."""
    if re.fullmatch(r"[\w.,:/@%+=-]+|~[\w./]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`!]|\\(?!\')', word) else f'"{word}"'
