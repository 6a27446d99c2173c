"""The config: composed, checked and parsed once into frozen settings, without TensorFlow."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config.composition import compose
from cifar_research.config.conf import config_dir
from cifar_research.config.identity import Identity, folder_name
from cifar_research.config.overrides import HYDRA_ERRORS
from cifar_research.config.settings import Settings, parse, parse_composed

__all__ = ["HYDRA_ERRORS", "Identity", "Settings", "compose", "config_dir", "parse", "parse_composed"]


def data_set_name(*, _root_: DictConfig) -> str:
    """Return the name of a config's data set: `cifar10`, or `pets` for the images in ~/pets/."""
    try:
        name, folder = _root_.data.name, _root_.data.dir
    except OmegaConfBaseException:
        return "run"  # the error is reported for its own key
    return name if name != "images" or folder is None else folder_name(folder) or name


OmegaConf.register_new_resolver("data_set_name", data_set_name, replace=True)  # used in conf/config.yaml
