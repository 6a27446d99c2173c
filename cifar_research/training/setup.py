"""Setup: builds the state from settings, loads first weights, and enters phases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_research import augmentation
from cifar_research.config.contracts import Backbone, LossFunction
from cifar_research.config.phases import Phase
from cifar_research.config.settings import Settings
from cifar_research.data import batches
from cifar_research.data.datasets import Dataset
from cifar_research.models import classifier
from cifar_research.optimization.optimizers import Optimizer
from cifar_research.runtime.control_flow import converted
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import features, forward, frozen, norms, trainable
from cifar_research.training.forward import Forward, Preprocessing
from cifar_research.training.frozen import Parts
from cifar_research.training.state import Progress, TrainState

# Of the features of some of a backbone's layers: more would not be read from memory.
_MOST_BYTES = 4 * 2**30


def build(settings: Settings, data: Dataset, batch_shards: int = 1) -> TrainState:
    """Build the model and the state before the first phase, in the strategy's scope."""
    smallest_batch = _smallest_batch(len(data.train), settings.training.batch_size, settings.data.drop_remainder)
    image_shape, num_classes = data.train.images.shape[1:], len(data.classes)
    model = classifier.classifier(settings.backbone, settings.head, image_shape, num_classes)
    is_random = settings.backbone.load_weights is None or settings.content["backbone"].get("weights") == "none"
    for layer in norms.of_model(classifier.parts(model)[0]):
        layer.is_pretrained = not is_random
    _check_loss(settings.loss.function, settings.content["loss"]["_target_"], num_classes)
    function = settings.loss.function
    if settings.loss.of_counts:
        function = settings.loss.of_counts(data.train.counts(num_classes))
    if not isinstance(settings.optimizer, Optimizer):
        raise ConfigError(
            f"optimizer: the factory returned a {type(settings.optimizer).__name__}; return an Optimizer of "
            "cifar_research.optimization.optimizers"
        )
    statistics = data.train.channel_statistics() if settings.data.standardize else (None, None)
    return TrainState(
        model=model,
        loss=converted(function),
        scoring_loss=converted(settings.loss.function),
        optimizer=_converted_optimizer(settings.optimizer),
        preprocessing=Preprocessing(num_classes, augmentation.compose(settings.transforms), *statistics),
        seed=settings.seed,
        steps_per_epoch=steps_per_epoch(settings, data),
        precision=settings.training.precision,
        ema_decay=settings.training.ema_decay,
        batch_shards=batch_shards,
        debiases_norms=settings.batch_norm.statistics == "debiased",
        several_images=smallest_batch > 1,
    )


def _converted_optimizer(optimizer: Optimizer) -> Optimizer:
    directions = optimizer.directions and converted(optimizer.directions)
    return dataclasses.replace(optimizer, update=converted(optimizer.update), directions=directions)


def _smallest_batch(num_images: int, batch_size: int, drop_remainder: bool) -> int:
    """Return the smallest batch's size; ConfigError if a replica would get an empty one."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    smallest = batches.smallest(num_images, batch_size, drop_remainder)
    if smallest < replicas:
        raise ConfigError(
            f"training.batch_size: batches of {batch_size} from {num_images:,} images end with one of {smallest}, too few for "
            f"{replicas} replicas; set training.batch_size={max(batch_size, replicas)} data.drop_remainder=true"
        )
    return smallest


def _check_loss(loss: LossFunction, name: str, num_classes: int) -> None:
    """Reject losses that are not per example: a batch mean would train with mis-scaled gradients."""
    shape = tuple(tf.convert_to_tensor(loss(tf.zeros([2, num_classes]), tf.one_hot([0, 0], num_classes))).shape)
    if shape != (2,):
        raise ConfigError(
            f"loss: {name} returns the shape {list(shape)} for two images, and must return [2]; return the loss of each "
            "image, without a mean over the batch"
        )


def load_weights(state: TrainState, backbone: Backbone, data: Dataset) -> None:
    """Load the backbone's first weights, and set the averages to the weights."""

    def images() -> np.ndarray:
        # The first 5,000, fewer if they are large; from folders, which are sorted by class, evenly spaced.
        rows, most = data.train.indices, 5_000 * 32 * 32 // int(np.prod(data.train.images.shape[1:3]))
        count = min(max(most, 1), 5_000, len(rows))
        rows = rows[np.arange(count) * len(rows) // count] if data.name == "images" else rows[:count]
        scaled, _ = state.preprocessing.prepare(data.train.images[rows], data.train.labels[rows])
        return state.preprocessing.standardize(scaled).numpy()

    if backbone.load_weights is not None:
        backbone.load_weights(classifier.parts(state.model)[0], images)
    for average, weight in zip(state.averages, state.model.weights, strict=bool(state.averages)):
        average.assign(weight.value)


def enter(
    settings: Settings,
    state: TrainState,
    data: Dataset,
    progress: Progress,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Dataset, Forward]:
    """Enter the current phase; return its data (images or features) and forward pass.

    tell: called with a line for the user before a long computation.
    """
    phase = settings.phases[progress.phase]
    backbone, head = classifier.parts(state.model)
    layers = trainable.trained_layers(phase.trainable, backbone, settings.backbone.upper_blocks)
    for layer in classifier.leaves(backbone):
        layer.trainable = layer in layers  # also freezes moving statistics
    is_inference = phase.is_backbone_frozen or settings.backbone.runs_in_inference

    def network(images: Any, training: bool) -> Any:
        return head(backbone(images, training=training and not is_inference), training=training)

    phase_data = data
    phase_forward = forward.of_images(state.preprocessing, state.model, network)
    if settings.kept_views and (parts := _parts(settings, phase, data, backbone, head, layers)):
        phase_data, phase_forward = features.keep(settings, state, parts, data, tell)
    state.enter(
        trained_paths(state.model, phase, settings.backbone.upper_blocks),
        phase_forward,
        _learning_rate(settings, progress, steps_per_epoch(settings, data)),
        scales=trainable.learning_rate_scales(layers, phase.learning_rate_decay_by_depth),
        first_step=progress.phase_steps[-1],
        optimizer_first_steps=_optimizer_first_steps(state.model, settings, progress),
    )
    return phase_data, phase_forward


def _parts(
    settings: Settings,
    phase: Phase,
    data: Dataset,
    backbone: keras.Model,
    head: keras.Model,
    trained: Sequence[keras.layers.Layer],
) -> Parts | None:
    """Return the network in its frozen part and the rest, if the features of the frozen part are worth keeping."""
    if phase.is_backbone_frozen:
        return frozen.below_head(backbone, head)
    if not settings.backbone.runs_in_inference:
        return None
    parts = frozen.below_layers(backbone, head, trained)
    images = settings.kept_views * len(data.train) + len(data.val)
    return parts if parts and 4 * images * math.prod(parts.shape) <= _MOST_BYTES else None


def _learning_rate(settings: Settings, progress: Progress, steps_per_epoch: int) -> Callable[[Any], Any]:
    """Return the phase's learning rate as a function of the run's step, float32."""
    phase, schedule = settings.phases[progress.phase], converted(settings.schedule)
    first_step, num_steps = progress.phase_steps[-1], steps_per_epoch * phase.epochs
    return lambda step: phase.learning_rate * schedule(step - first_step, num_steps, steps_per_epoch)


def _optimizer_first_steps(model: keras.Model, settings: Settings, progress: Progress) -> dict[str, int]:
    """Return {weight path: step of its first update since the optimizer's last reset}.

    Phases that do not train a weight move its step, as if they were not there. Adam's moments of a newly trained weight
    have no gradients yet, so bias correction is by weight.
    """
    first: dict[str, int] = {}
    ends = [*progress.phase_steps[1:], progress.phase_steps[-1]]
    for phase, begin, end in zip(settings.phases, progress.phase_steps, ends, strict=False):
        trained = trained_paths(model, phase, settings.backbone.upper_blocks)
        kept = first if phase.keeps_optimizer else {}
        first = {path: step if path in trained else step + end - begin for path, step in kept.items()}
        first |= {path: begin for path in trained if path not in kept}
    return first


def trained_paths(model: keras.Model, phase: Phase, upper_blocks: str | None) -> list[str]:
    """Return the paths of a phase's trained weights; moving statistics may be included."""
    backbone, head = classifier.parts(model)
    layers: Sequence[Any] = trainable.trained_layers(phase.trainable, backbone, upper_blocks)
    return [weight.path for layer in [*layers, head] for weight in layer.weights]


def trained_by_phase(settings: Settings, state: TrainState) -> dict[str, int]:
    """Return the number of parameters each phase trains; ConfigError if a layer is unknown."""
    upper = settings.backbone.upper_blocks
    return {phase.name: state.count(trained_paths(state.model, phase, upper)) for phase in settings.phases}


def steps_per_epoch(settings: Settings, data: Dataset) -> int:
    return batches.steps_per_epoch(len(data.train), settings.training.batch_size, settings.data.drop_remainder)
