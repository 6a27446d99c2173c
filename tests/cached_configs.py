"""Once imported, Hydra reads each config of conf/ and its own ones once: they do not change while the tests run."""

import copy

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType

from cifar_research.config import config_dir

_CACHED = (f"file://{config_dir()}", "pkg://hydra.conf", "structured://")  # never a test's own folder
_load = ConfigRepository.load_config
_results = {}


def _load_once(repository, config_path):
    source = repository._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
    if source is None or source.full_path() not in _CACHED:
        return _load(repository, config_path)
    key = source.full_path(), source.provider, config_path
    if key not in _results:
        _results[key] = _load(repository, config_path)
    return copy.deepcopy(_results[key])  # Hydra changes what it gets


ConfigRepository.load_config = _load_once
