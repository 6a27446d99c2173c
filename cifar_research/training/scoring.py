"""Scoring: the loss and accuracy of a split, with the weights or their averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cifar_research.data import batches
from cifar_research.data.datasets import Split
from cifar_research.runs import metrics
from cifar_research.training.forward import Forward
from cifar_research.training.state import TrainState
from cifar_research.training.steps import eval_step


@dataclass(frozen=True)
class Scores:
    """Scores of a split by metric, see runs.metrics, and predicted classes int64 [N]; None: not defined for the data."""

    values: Mapping[str, float | None]
    predictions: np.ndarray


class Evaluation:
    """Scores splits with one forward pass, traced once.

    train_counts: training images of each class, int64 [K]. device: batches are prefetched to it.
    """

    def __init__(
        self, state: TrainState, batch_size: int, forward: Forward, train_counts: np.ndarray, device: str | None
    ) -> None:
        self._state, self._batch_size, self._forward, self._device = state, batch_size, forward, device
        self._train_counts = train_counts
        self._call: Callable[..., Any] | None = None

    def __call__(self, split: Split) -> Scores:
        """Score every image of the split, whatever the batch size."""
        dataset = batches.evaluation(split, batch_size=self._batch_size, device=self._device)
        if self._call is None:  # trace with an open batch size, since the last batch is often smaller
            state, forward = self._state, self._forward
            self._call = tf.function(
                lambda inputs, labels: eval_step(state, inputs, labels, forward), dataset.element_spec, autograph=False
            )
        with averaged_weights(self._state):
            scored = [self._call(inputs, labels) for inputs, labels in dataset]
        losses, predictions, in_top5 = (
            np.concatenate([part.numpy() for part in of]) for of in zip(*scored, strict=True)
        )
        labels, num_classes = split.labels[split.indices], len(self._train_counts)
        matrix = metrics.confusion_matrix(labels, predictions, num_classes)
        values = {
            "accuracy": float((predictions == labels).mean()),
            "loss": float(losses.mean(dtype=np.float64)),
            "top5_accuracy": float(in_top5.mean()) if num_classes > 5 else None,
        }
        return Scores(values | metrics.of_matrix(matrix, self._train_counts), predictions)


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
