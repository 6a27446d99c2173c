"""Identity: the values of a config that decide the results, and their names in reports."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cifar_research.config import targets
from cifar_research.runtime.errors import ConfigError

PLUGIN_GROUPS = ("backbone", "model", "loss", "optimizer", "schedule")
OPTION_GROUPS = (*PLUGIN_GROUPS, "augmentation", "training")  # shown in reports by the option's name
# Beginnings of the keys that do not affect the results, so that a run may continue with other values.
_FREE_KEYS = (
    "name.", "data.cache_dir.", "data.download.", "data.max_damaged.", "training.keep_checkpoints.",
    "training.log_every_steps.", "tensorboard.", "tracker.", "sweep.", "allow_targets.",
)  # fmt: skip


def plain(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return a composed config as a plain mapping, without Hydra's own section."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    content.pop("hydra", None)
    # Key by key: Hydra's section has values of sweeps alone, but others may refer to it.
    for key in [key for key in content if resolve and not OmegaConf.is_missing(config, key)]:
        value = config[key]
        content[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return {str(key): value for key, value in content.items()}


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a mapping; lists and empty mappings are values."""
    if isinstance(content, (DictConfig, ListConfig)):
        content = OmegaConf.to_container(content, resolve=True)
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True, eq=False)
class Identity:
    """The part of a run's config that decides its results.

    content: the config as a plain mapping, as stored in report.json, checkpoints and a sweep's ledger.
    """

    content: Mapping[str, Any]

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Return {dotted key: value} of the values that decide the results."""
        keys = {key: _number(value) for key, value in flatten(self.content).items() if not self.is_free(key)}
        # The order of augmentations and phases matters, but equality of mappings ignores it.
        keys["augmentation"] = [name for name, node in self.content["augmentation"].items() if node is not None]
        if len(order := list(self.content["training"]["phases"])) > 1:
            keys["phases"] = order
        return keys

    @cached_property
    def hash(self) -> str:
        """Return 12 hex digits, equal for configs with the same results."""
        return hashlib.sha256(json.dumps(self.keys, sort_keys=True).encode()).hexdigest()[:12]

    def is_free(self, key: str) -> bool:
        """Return whether a dotted key does not affect the results."""
        if key == "data.dir":  # for `images` the folder decides the data; other data sets are the same in any
            return bool(self.content["data"]["name"] != "images")
        return f"{key}.".startswith(_FREE_KEYS)

    def differences(self, other: Identity) -> dict[str, tuple[Any, Any]]:
        """Return {key: (own value, other value)} of the differences that affect the results.

        A folder of images may have moved, so data.dir is left out: loading compares the fingerprint.
        """
        missing = "no such key"
        pairs = {key: (self.keys.get(key, missing), other.keys.get(key, missing)) for key in self.keys | other.keys}
        changed = {key: (old, new) for key, (old, new) in sorted(pairs.items()) if old != new}
        if "data.name" not in changed:
            changed.pop("data.dir", None)
        return changed

    def require_same(self, other: Identity, run_dir: Path) -> None:
        """Raise ConfigError, naming the keys, if a run cannot continue with another config."""
        if changed := self.differences(other):
            advice = f"hydra.run.dir: the run in {run_dir} has another config; use its values, or choose another folder"
            raise ConfigError(f"{changes_text(changed)}\n{advice}")

    def described(self, options: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return {key: value} of the values that decide the results, as shown in reports.

        A group is shown by its option in `options`, else by its factory's name (`mean_squared_error`) or application.
        Without an option, `augmentation` is its transforms (`flip+shift`) and `training` its phases (`head+backbone`).
        """
        content, flat = self.content, flatten(self.content)
        # These follow from the application.
        implied = ("application", "module", "min_image_size") if "application" in content["backbone"] else ()
        left_out = ("_target_", *(f"backbone.{key}" for key in implied))
        shown = {
            key: value
            for key, value in flat.items()
            if (key == "name" or not self.is_free(key)) and not key.endswith(left_out)
        }
        for group in PLUGIN_GROUPS:
            shown[group] = str(content[group].get("application") or targets.name(content[group]["_target_"]))
        shown["training"] = "+".join(content["training"]["phases"])
        shown["augmentation"] = "+".join(name for name, node in content["augmentation"].items() if node) or "none"
        return shown | dict(options or {})


def _number(value: Any) -> Any:
    """Return 0 for 0.0, also in lists.

    A factory's section has no types, and both give the same results.
    """
    if isinstance(value, list):
        return [_number(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def changes_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return one line for each difference between a run's config and a command's."""
    return "\n".join(f"{key}: this run has {old!r}, the command says {new!r}" for key, (old, new) in changed.items())


def option_names(choices: Mapping[str, Any] | Sequence[str] | None) -> dict[str, str]:
    """Return {group: chosen option} from Hydra's choices, a report's options or overrides.

    Several options of a group are joined by +.
    """
    if not isinstance(choices, (Mapping, DictConfig)):
        choices = dict(word.partition("=")[::2] for word in choices or ())
    chosen = {group: str(choices[group]) for group in OPTION_GROUPS if choices.get(group) is not None}
    return {group: re.sub(r"[\[\]'\" ]", "", names).replace(",", "+") for group, names in chosen.items()}


def folder_name(path: str) -> str:
    """Return a folder's name as a run name: `pets` for ~/pets/; empty if it has none."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(path)))
    return re.sub(r"[^\w.+-]+", "_", last).strip("._")
