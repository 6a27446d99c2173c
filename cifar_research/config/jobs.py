"""The configs of a sweep's jobs, composed once for each combination of options.

Composing takes Hydra a tenth of a second. Jobs that differ only in plain values (optimizer.learning_rate=0.1,0.01)
share one composition: their values are set in it and checked as always. Whatever is unusual or wrong goes through
`settings.parse`, so that problems have the same words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import OverrideType
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import rules, settings, targets
from cifar_research.config.composition import Composed, compose
from cifar_research.config.identity import flatten, plain
from cifar_research.config.overrides import parse_override, with_texts
from cifar_research.runtime.errors import ConfigError


@dataclass
class JobParser:
    """Parses the jobs of one sweep.

    fixed: the overrides that all jobs share. context: those that are no part of a job, such as option folders.
    """

    fixed: Sequence[str]
    context: Sequence[str]
    _shared: dict[tuple[str, ...], _Shared | None] = field(default_factory=dict)

    def content(self, row: Sequence[str]) -> dict[str, Any]:
        """Return the checked config of the job with these overrides; ConfigError as in `parse`.

        Configs share their unchanged sections, so treat them as constants.
        """
        values = dict(filter(None, map(_plain_value, row)))
        kind = tuple(key if (key := word.partition("=")[0]) in values else word for word in row)
        shared = self._shared.get(kind)
        if shared is not None and (content := shared.content(values)) is not None:
            return content
        composed = compose([*self.fixed, *row, *self.context])
        parsed = settings.parse_composed(composed)
        if kind not in self._shared:
            leaves = flatten(plain(composed.config, resolve=False))
            takes_from_hydra = any("${hydra:" in str(leaf) for leaf in leaves.values())
            shared = None if takes_from_hydra or not values else _Shared(composed, parsed.content, leaves)
            # A later override may have replaced a value.
            is_same = shared is not None and shared.content(values) == parsed.content
            self._shared[kind] = shared if is_same else None
        return parsed.content


class _Shared:
    """A composed config that jobs set their values in."""

    def __init__(self, composed: Composed, content: dict[str, Any], leaves: Mapping[str, Any]) -> None:
        self._config, self._content, self._allowed = composed.config, content, composed.allowed
        self._computed = [key for key, value in leaves.items() if "${" in str(value)]
        self._plugins: dict[str, Any] = {}

    def content(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the config with these values; None if `parse` has to decide."""
        content = self._content
        try:
            for key, value in values.items():
                OmegaConf.update(self._config, key, value)
            for key in [*values, *self._computed]:
                value = OmegaConf.select(self._config, key)
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
                content = _with_value(content, key.split("."), value)
            if rules.out_of_range(content):
                return None
            settings.checked_plugins(content, self._allowed, self._build)
        except (OmegaConfBaseException, ConfigError):
            return None
        return content

    def _build(self, key: str, node: Mapping[str, Any], allowed: frozenset[str]) -> Any:
        """Call a section's factory once for the jobs that have the same section."""
        name = f"{key} {node!r}"
        if name not in self._plugins:
            self._plugins[name] = targets.build(key, node, allowed)
        return self._plugins[name]


def _with_value(content: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of a nested mapping with one value changed; the rest is shared."""
    name, *rest = path
    return {**content, name: _with_value(content[name], rest, value) if rest else value}


@functools.lru_cache(maxsize=10_000)
def _plain_value(word: str) -> tuple[str, Any] | None:
    """Return the key and value of an override that only changes a value; None if it does more."""
    if not re.match(r"(?!(hydra|allow_targets|data\.name)\b)(\w+(\.\w+)+|seed|name)=", word):
        return None
    override = parse_override(*with_texts([word]))
    if override is None or override.type is not OverrideType.CHANGE or override.is_sweep_override():
        return None
    value = override.value()
    items = value if isinstance(value, list) else [value]
    is_plain = all(
        isinstance(item, str) and not re.search(r"\$\{|\?\?\?", item) or isinstance(item, (int, float, type(None)))
        for item in items
    )
    return (override.key_or_group, value) if is_plain else None
