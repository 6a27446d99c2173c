"""A research framework for image classification on CIFAR-10: composed with Hydra, trained with tf.GradientTape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_research.inference.trained import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for: a command that does without stays quick."""
    if name == "load":
        from cifar_research.inference.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
