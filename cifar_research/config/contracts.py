"""The types that factories of backbones, heads, losses, transforms and trackers return.

Except for a tracker, a factory may return a plain function, the first field; the other fields then have
their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import keras
    import numpy as np


LossFunction = Callable[[Any, Any], Any]


class _Contract:
    @classmethod
    def of(cls, value: Any) -> Self:
        """Return a factory's value as this type; a plain function gets the default fields."""
        return value if isinstance(value, cls) else cls(value)  # type: ignore[call-arg]  # of the dataclasses below


@dataclass(frozen=True)
class Backbone(_Contract):
    """A network from images to a feature map.

    build: image shape (H, W, C) -> Keras model, float [B, H, W, C] in, [B, h, w, channels] or [B, channels] out.
    load_weights: called before the first step of a new run, with the model and a function that returns preprocessed
    training images.
    min_image_size: the smallest height and width.
    is_by_image: whether an image's output depends on that image alone, and added losses on weights alone. If so, a
    batch may be split into shards.
    standardizes: whether it has its own preprocessing, which excludes `data.standardize`.
    upper_blocks: the name of the first layer of `trainable: upper`.
    runs_in_inference: whether it is always called with training=False, so that moving statistics stay fixed.
    image_size: the height and width that it resizes images to; None if it does not.
    """

    build: Callable[[tuple[int, int, int]], keras.Model]
    load_weights: Callable[[keras.Model, Callable[[], np.ndarray]], None] | None = None
    min_image_size: int = 1
    is_by_image: bool = False
    standardizes: bool = False
    upper_blocks: str | None = None
    runs_in_inference: bool = False
    image_size: int | None = None


@dataclass(frozen=True)
class Head(_Contract):
    """Layers from a feature map to logits.

    build: (Keras tensor of features, number of classes) -> logits [B, classes].
    is_by_image: see Backbone.
    """

    build: Callable[[Any, int], Any]
    is_by_image: bool = False


@dataclass(frozen=True)
class Loss(_Contract):
    """A loss of each image.

    function: (logits float [B, K], targets float [B, K]) -> float32 [B].
    of_counts: (training images by class, int64 [K]) -> the function that training minimizes, where that depends on
    them; ConfigError if it cannot. Validation and test always use `function`.
    """

    function: LossFunction
    of_counts: Callable[[np.ndarray], LossFunction] | None = None


@dataclass(frozen=True)
class Transform(_Contract):
    """An augmentation of a batch.

    apply: (images float32 [B, H, W, C] in [0, 1], targets float32 [B, K], seed int32 [2]) -> images and targets.
    by_epoch: whether the seed is (the run's seed, epoch) instead of the step's.
    """

    apply: Callable[[Any, Any, Any], tuple[Any, Any]]
    by_epoch: bool = False


@dataclass(frozen=True)
class TrackedRun:
    """A run as its tracker sees it.

    key: 32 hex digits, kept in the run's folder and the same each time that the run continues.
    name: the last two parts of its folder. sweep: the name of its sweep's folder; None outside of a sweep.
    config: as stored in report.json. settings: {dotted key: value} of what decides the results, as shown in reports.
    history: the rows of earlier epochs if the run continues; the entry may lack the last of them.
    """

    key: str
    name: str
    sweep: str | None
    folder: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]


@runtime_checkable
class Tracker(Protocol):
    """Records runs in a service. Its methods are called in order, from one thread that the run does not wait for."""

    def start(self, run: TrackedRun) -> None:
        """Begin the entry of a run, or continue the one with its key; if it raises, it is called again later."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Record an epoch: its row of history.csv."""

    def finish(self, status: str, results: Mapping[str, float], files: Sequence[Path]) -> None:
        """Record the end of the run, or of this part of it.

        status: as in report.json (`stopped`: continues later), or `failed` after an error. results: scores of the test,
        and of the best epoch by validation.
        """
