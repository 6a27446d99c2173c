"""From a config to the task that the loop works on: the model, its first weights, and what each phase changes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_research import augmentation, config
from cifar_research.config import phases, targets
from cifar_research.config.contracts import Backbone, Head
from cifar_research.data import batches
from cifar_research.models import classifier
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import features, steps

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.training import loop


def build(cfg: DictConfig, data: Dataset, parts: int = 1) -> steps.Task:
    """Build the model and all that a step needs, before the first phase; called inside the strategy's scope.

    parts: of a batch, see shards.parts.
    """
    smallest_batch = _smallest_batch(cfg, data)
    backbone, head = Backbone.of(targets.instantiate(cfg.backbone)), Head.of(targets.instantiate(cfg.model))
    model = classifier.classifier(backbone, head, data.train.images.shape[1:], len(data.classes))
    optimizer = targets.instantiate(cfg.optimizer)
    loss = targets.instantiate(cfg.loss)
    _check_loss(cfg, loss, len(data.classes))
    mean, deviation = data.train.channel_statistics() if cfg.data.standardize else (None, None)
    return steps.Task(
        model=model,
        backbone=backbone,
        loss=loss,
        optimizer=optimizer,
        augment=augmentation.compose(config.transforms(cfg)),
        learning_rate=lambda step: optimizer.learning_rate,  # until a phase is entered
        num_classes=len(data.classes),
        seed=cfg.seed,
        steps_per_epoch=steps_per_epoch(cfg, data),
        mean=mean,
        deviation=deviation,
        precision=cfg.training.precision,
        jit_compile=cfg.training.jit_compile,
        ema_decay=cfg.training.ema_decay,
        parts=parts,
        several_images=smallest_batch > 1,
    )


def _smallest_batch(cfg: DictConfig, data: Dataset) -> int:
    """Return how many images the smallest batch has; reject one that leaves a replica of the strategy without any.

    TensorFlow's convolutions on a processor take no empty batch, and the moments of one are nan.
    """
    import tensorflow as tf

    replicas, size = tf.distribute.get_strategy().num_replicas_in_sync, cfg.training.batch_size
    smallest = batches.smallest(len(data.train), size, cfg.data.drop_remainder)
    if smallest < replicas:
        raise ConfigError(
            f"training.batch_size: batches of {size} from {len(data.train):,} images leave one of {smallest}, too few for "
            f"{replicas} replicas; set training.batch_size={max(size, replicas)} data.drop_remainder=true"
        )
    return smallest


def _check_loss(cfg: DictConfig, loss: Callable[[Any, Any], Any], num_classes: int) -> None:
    """Refuse a loss that is not one an image: its mean would train, by a gradient of another size, and be told wrong."""
    import tensorflow as tf

    shape = tuple(tf.convert_to_tensor(loss(tf.zeros([2, num_classes]), tf.one_hot([0, 0], num_classes))).shape)
    if shape != (2,):
        raise ConfigError(
            f"loss: {cfg.loss._target_} returns the shape {list(shape)} for the logits of two images, and must return "
            "[2], a loss for each; leave out its mean over the batch"
        )


def load_weights(task: steps.Task, data: Dataset) -> None:
    """Load the backbone's first weights; a run that goes on has its own."""

    def images() -> Any:
        # The first 5,000, or as many as have as many pixels; of folders, which are sorted by class, evenly from all.
        rows, most = data.train.indices, 5_000 * 32 * 32 // int(np.prod(data.train.images.shape[1:3]))
        count = min(max(most, 1), 5_000, len(rows))
        rows = rows[np.arange(count) * len(rows) // count] if data.name == "images" else rows[:count]
        prepared, _ = steps.prepare(task, data.train.images[rows], data.train.labels[rows])
        return steps.standardize(task, prepared).numpy()

    if task.backbone.load_weights is not None:
        task.backbone.load_weights(classifier.parts(task.model)[0], images)
    for average, weight in zip(task.averages, task.model.weights, strict=bool(task.averages)):
        average.assign(weight.value)


def enter(
    cfg: DictConfig,
    task: steps.Task,
    data: Dataset,
    plan: Sequence[phases.Phase],
    record: loop.Record,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Dataset, steps.View]:
    """Set the task to the record's phase; return the data as the phase sees it, and what makes sense of it.

    tell: is called with a line for the user before something takes long.
    """
    phase, first_step = plan[record.phase], record.phase_steps[-1]
    backbone, head = classifier.parts(task.model)
    layers = phases.trained_layers(phase.trainable, backbone, task.backbone.upper_blocks)
    for layer in phases.leaves(backbone):
        layer.trainable = layer in layers  # which also keeps its moving statistics
    is_inference = phase.is_backbone_frozen or task.backbone.runs_in_inference

    def network(images: Any, training: bool) -> Any:
        return head(backbone(images, training=training and not is_inference), training=training)

    phase_data, view = data, steps.images_view(task, network, image_size=phase.image_size)
    views = phases.num_views(cfg) if phase.is_backbone_frozen else 0
    if views:
        phase_data, view = features.keep(cfg, task, data, views, tell)
    steps_an_epoch, schedule = steps_per_epoch(cfg, data), targets.instantiate(cfg.schedule)
    span = phases.schedule_span(plan, record.phase)
    first_of_schedule, num_steps = record.phase_steps[span.start], steps_an_epoch * sum(plan[n].epochs for n in span)
    task.enter(
        trained_paths(task, phase),
        view,
        lambda step: phase.learning_rate * schedule(step - first_of_schedule, num_steps, steps_an_epoch),
        scales=phases.rate_scales(layers, phase.learning_rate_decay_by_depth),
        first_step=first_step,
        optimizer_first_steps=_optimizer_first_steps(task, plan, record),
    )
    return phase_data, view


def _optimizer_first_steps(task: steps.Task, plan: Sequence[phases.Phase], record: loop.Record) -> dict[str, int]:
    """Return, by weight, the step at which it was first trained since the optimizer last began anew.

    Of each, because what Adam keeps of a weight that was frozen until now has seen no gradient yet.
    """
    first: dict[str, int] = {}
    for phase, begin in zip(plan, record.phase_steps, strict=False):
        if not phase.keeps_optimizer:
            first = {}
        for path in trained_paths(task, phase):
            first.setdefault(path, begin)
    return first


def trained_paths(task: steps.Task, phase: phases.Phase) -> list[str]:
    """Return the paths of the weights that a phase trains, moving statistics perhaps among them."""
    backbone, head = classifier.parts(task.model)
    layers = phases.trained_layers(phase.trainable, backbone, task.backbone.upper_blocks)
    return [weight.path for layer in [*layers, head] for weight in layer.weights]


def num_trained(task: steps.Task, phase: phases.Phase) -> int:
    """Return how many parameters a phase trains."""
    return task.count(trained_paths(task, phase))


def steps_per_epoch(cfg: DictConfig, data: Dataset) -> int:
    """Return how many batches an epoch has."""
    return batches.steps_per_epoch(len(data.train), cfg.training.batch_size, cfg.data.drop_remainder)


def total_steps(cfg: DictConfig, data: Dataset) -> int:
    """Return how many updates all phases do together."""
    return steps_per_epoch(cfg, data) * phases.total_epochs(cfg.training)
