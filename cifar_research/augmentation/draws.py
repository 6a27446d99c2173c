"""What the factories share: the type they return, the checks of their settings, the draw of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

BatchTransform = Callable[[Any, Any, Any], tuple[Any, Any]]


def check_range(name: str, value: float, low: float, high: float = math.inf, *, excluded: bool = False) -> None:
    """Raise ValueError unless low <= value <= high, finite, and above low if `excluded`."""
    if low <= value <= high and math.isfinite(value) and not (excluded and value == low):
        return
    least = f"{'above' if excluded else 'at least'} {low}"
    most = f"at most {high}" if math.isfinite(high) else "finite"
    raise ValueError(f"{name}: {value} is out of range; it must be {least} and {most}")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise ValueError unless the value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(get_args(choices))}")


def uniform(images, seed, *shape: int, low: float = 0.0, high: float = 1.0):
    """Draw float32 [B, *shape] from [low, high); a row's numbers do not depend on how many rows there are."""
    import tensorflow as tf

    return tf.random.stateless_uniform([tf.shape(images)[0], *shape], seed, low, high)
