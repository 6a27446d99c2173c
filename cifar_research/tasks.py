"""From a config to the task that the loop works on: the model, its first weights, and what each phase changes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cifar_research import augmentation, config, features, model, phases, plugins, steps
from cifar_research.data import batches

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research import loop
    from cifar_research.data.datasets import Dataset


def build(cfg: DictConfig, data: Dataset) -> steps.Task:
    """Build the model and all that a step needs, before the first phase; called inside the strategy's scope."""
    classifier = model.classifier(
        plugins.instantiate(cfg.backbone),
        plugins.instantiate(cfg.model),
        data.train.images.shape[1:],
        len(data.classes),
    )
    optimizer = plugins.instantiate(cfg.optimizer)
    mean, deviation = data.train.channel_statistics() if cfg.data.standardize else (None, None)
    return steps.Task(
        model=classifier,
        loss=plugins.instantiate(cfg.loss),
        optimizer=optimizer,
        augment=augmentation.compose(config.transforms(cfg)),
        learning_rate=lambda step: optimizer.learning_rate,  # until a phase is entered
        num_classes=len(data.classes),
        seed=cfg.seed,
        mean=mean,
        deviation=deviation,
        precision=cfg.training.precision,
        jit_compile=cfg.training.jit_compile,
        ema_decay=cfg.training.ema_decay,
    )


def load_weights(cfg: DictConfig, task: steps.Task) -> None:
    """Give a backbone that says how the weights it is to begin with; a run that goes on has them."""
    load = getattr(plugins.instantiate(cfg.backbone), "load_weights", None)
    if load is not None:
        load(model.parts(task.model)[0])


def enter(
    cfg: DictConfig, task: steps.Task, data: Dataset, plan: Sequence[phases.Phase], record: loop.Record
) -> tuple[Dataset, steps.View]:
    """Set the task to the record's phase; return the data as the phase sees it, and what makes sense of it."""
    phase, first_step = plan[record.phase], record.phase_steps[-1]
    backbone, head = model.parts(task.model)
    layers = phases.trained_layers(phase.trainable, backbone)
    for layer in phases.leaves(backbone):
        layer.trainable = layer in layers  # which also keeps its moving statistics
    is_inference = phase.is_backbone_frozen or getattr(backbone, "runs_in_inference", False)

    def network(images: Any, training: bool) -> Any:
        return head(backbone(images, training=training and not is_inference), training=training)

    phase_data, view = data, steps.images_view(task, network)
    views = features.num_views(cfg) if phase.is_backbone_frozen else 0
    if views:
        phase_data, view = features.keep(cfg, task, data, views)
    steps_an_epoch, schedule = steps_per_epoch(cfg, data), plugins.instantiate(cfg.schedule)
    num_steps = steps_an_epoch * phase.epochs
    task.enter(
        [weight.path for layer in [*layers, head] for weight in layer.trainable_variables],
        view,
        lambda step: phase.learning_rate * schedule(step - first_step, num_steps, steps_an_epoch),
        scales=phases.rate_scales(layers, phase.learning_rate_decay_by_depth),
        first_step=first_step,
        optimizer_first_step=max(
            begin for one, begin in zip(plan, record.phase_steps, strict=False) if begin == 0 or not one.keeps_optimizer
        ),
    )
    return phase_data, view


def num_trained(task: steps.Task, phase: phases.Phase) -> int:
    backbone, head = model.parts(task.model)
    layers = phases.trained_layers(phase.trainable, backbone)
    paths = {weight.path for layer in layers for weight in layer.weights} | {weight.path for weight in head.weights}
    return task.count(paths)


def steps_per_epoch(cfg: DictConfig, data: Dataset) -> int:
    return batches.steps_per_epoch(len(data.train), cfg.training.batch_size, cfg.data.drop_remainder)


def total_steps(cfg: DictConfig, data: Dataset) -> int:
    return steps_per_epoch(cfg, data) * phases.total_epochs(cfg.training)
