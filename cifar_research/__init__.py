"""A research framework for image classification on CIFAR-10 and similar data."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_research.api import evaluate, runs, sweep, train
    from cifar_research.config.contracts import Backbone, Head, Loss, TrackedRun, Tracker, Transform
    from cifar_research.inference.trained import load

__all__ = ["Backbone", "Head", "Loss", "TrackedRun", "Tracker", "Transform", "evaluate", "load", "runs", "sweep",
           "train"]  # fmt: skip
_MODULES = dict.fromkeys(__all__, "config.contracts") | {"load": "inference.trained"}
_MODULES |= dict.fromkeys(("evaluate", "runs", "sweep", "train"), "api")


class _Package(ModuleType):
    """The package, whose functions are not replaced by modules of the same names.

    Importing cifar_research.train, evaluate or runs would set the attribute to that module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands start quickly."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
