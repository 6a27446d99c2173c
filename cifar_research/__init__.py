"""A research framework for image classification on CIFAR-10 and similar data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_research.config.contracts import Backbone, Head, TrackedRun, Tracker, Transform
    from cifar_research.inference.trained import load

__all__ = ["Backbone", "Head", "TrackedRun", "Tracker", "Transform", "load"]
_CONTRACTS = ("Backbone", "Head", "TrackedRun", "Tracker", "Transform")
_MODULES = {"load": "inference.trained"} | dict.fromkeys(_CONTRACTS, "config.contracts")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands start quickly."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
