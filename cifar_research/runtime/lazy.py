"""TensorFlow and Keras, imported on first use: configs are checked without them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras as keras
    import tensorflow as tf
else:

    class _Module:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    keras, tf = _Module("keras"), _Module("tensorflow")

__all__ = ["keras", "tf"]
