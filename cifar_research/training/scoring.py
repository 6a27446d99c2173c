"""Scoring: the loss and accuracy of a split, with the weights or their averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cifar_research.data import batches
from cifar_research.data.datasets import Split
from cifar_research.training.forward import Forward
from cifar_research.training.state import TrainState
from cifar_research.training.steps import eval_step


@dataclass(frozen=True)
class Scores:
    """Scores of a split: mean loss and accuracy over images, and predicted classes int64 [N]."""

    loss: float
    accuracy: float
    predictions: np.ndarray


class Evaluation:
    """Scores splits with one forward pass, traced once. device: batches are prefetched to it."""

    def __init__(self, state: TrainState, batch_size: int, forward: Forward, device: str | None) -> None:
        self._state, self._batch_size, self._forward, self._device = state, batch_size, forward, device
        self._call: Callable[..., Any] | None = None

    def __call__(self, split: Split) -> Scores:
        """Score every image of the split, whatever the batch size."""
        dataset = batches.evaluation(split, batch_size=self._batch_size, device=self._device)
        if self._call is None:  # trace with an open batch size, since the last batch is often smaller
            state, forward = self._state, self._forward
            self._call = tf.function(
                lambda inputs, labels: eval_step(state, inputs, labels, forward), dataset.element_spec
            )
        with averaged_weights(self._state):
            scored = [self._call(inputs, labels) for inputs, labels in dataset]
        losses = np.concatenate([losses.numpy() for losses, _ in scored])
        predictions = np.concatenate([predictions.numpy() for _, predictions in scored])
        correct = predictions == split.labels[split.indices]
        return Scores(float(losses.mean(dtype=np.float64)), float(correct.mean()), predictions)


@contextlib.contextmanager
def averaged_weights(state: TrainState) -> Iterator[None]:
    """Replace the weights by their averages, if there are any, within the context."""
    if not state.averages:
        yield
        return
    weights = [weight.value for weight in state.model.weights]
    trained = [as_array(weight) for weight in weights]
    for weight, average in zip(weights, state.averages, strict=True):
        weight.assign(as_array(average))
    try:
        yield
    finally:
        for weight, value in zip(weights, trained, strict=True):
            weight.assign(value)


def as_array(variable: Any) -> np.ndarray:
    """Return a variable's value, from one replica if there are several."""
    return tf.convert_to_tensor(variable).numpy()
