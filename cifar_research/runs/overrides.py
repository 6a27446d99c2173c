"""The overrides of a run, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cifar_research.runtime.errors import ConfigError


def read_overrides(folder: Path) -> list[str]:
    """Return a run's overrides and search path; ConfigError if they cannot be read."""
    overrides = _read(folder, "overrides.yaml")
    # Hydra stores its own overrides, such as the search path, in another file.
    hydra = _read(folder, "hydra.yaml")
    try:
        of_hydra = hydra["hydra"]["overrides"]["hydra"]
        return overrides + [word for word in of_hydra if word.startswith("hydra.searchpath=")]
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder / '.hydra' / 'hydra.yaml'}: is damaged; give its command again") from None


def _read(folder: Path, name: str) -> Any:
    """Return a file that Hydra saved in a run's folder, parsed."""
    path = folder / ".hydra" / name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        expected = list if name == "overrides.yaml" else dict
        if not isinstance(content, expected) or (
            expected is list and not all(isinstance(word, str) for word in content)
        ):
            raise ValueError
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder}: is not the folder of a run or a sweep; give one that a run or a sweep names at its end"
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: is damaged; give the run's whole command again, with hydra.run.dir={folder}"
        ) from error
