"""The overrides of a run, read from its folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from cifar_research.runtime.errors import ConfigError


def read_overrides(folder: Path) -> list[str]:
    """Return a run's overrides and search path; ConfigError if they cannot be read."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        overrides = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
            raise TypeError
        # Hydra stores its own overrides, such as the search path, in another file.
        path = path.with_name("hydra.yaml")
        of_hydra = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["hydra"]
        return overrides + [word for word in of_hydra if word.startswith("hydra.searchpath=")]
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder}: is not the folder of a run or a sweep; give one that a run or a sweep names at its end"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: is damaged; give the run's whole command again, with hydra.run.dir={folder}"
        ) from error
