"""The overrides that a run was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cifar_research.runtime.errors import ConfigError


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
        wanted = list if name == "overrides.yaml" else dict
        if not isinstance(content, wanted) or (wanted is list and not all(isinstance(word, str) for word in content)):
            raise ValueError
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder} is no run's folder, there is no {path}; give the folder of a run") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} is damaged; give the run's whole command again, with hydra.run.dir={folder}"
        ) from error
