"""Warnings before training: settings that say little about the weights, or are slow, and a GPU that is not used."""

from __future__ import annotations

import keras

from cifar_research.config.schema import ImagesConfig
from cifar_research.config.settings import Settings
from cifar_research.models import classifier, layers
from cifar_research.runtime import environment, gpus
from cifar_research.training import norms

_MOST_OF_START = 0.1  # the share of moving statistics below which validation follows training


def of_run(settings: Settings, model: keras.Model, num_steps: int) -> list[str]:
    """Return the warnings for a run of this many steps."""
    unused = gpus.why_unused()
    of_gpu = [f"Warning: {unused}"] if unused else []
    return [
        *of_gpu,
        *_of_image_size(settings),
        *_of_precision(settings, model),
        *_of_statistics(settings, model, num_steps),
    ]


def _of_image_size(settings: Settings) -> list[str]:
    """Return a warning if photos are read at fewer pixels than the backbone enlarges them to."""
    size = settings.backbone.image_size
    if not isinstance(settings.data, ImagesConfig) or size is None or settings.data.image_size >= size:
        return []
    read = settings.data.image_size
    return [
        f"Warning: images are read at {read} x {read} pixels, and the backbone enlarges them to {size} x {size}, so "
        f"details of larger photos are lost. Set data.image_size={size}."
    ]


def _of_precision(settings: Settings, model: keras.Model) -> list[str]:
    is_kept = settings.kept_views > 0 and all(phase.trainable != "all" for phase in settings.phases)
    is_depthwise = any(isinstance(layer, layers.DepthwiseConv2D) for layer in classifier.leaves(model))
    problem = environment.slow_precision(settings.training.precision, is_depthwise and not is_kept)
    return [f"Warning: {problem}. Set training.precision=float32."] if problem else []


def _of_statistics(settings: Settings, model: keras.Model, num_steps: int) -> list[str]:
    """Return a warning if moving statistics will not have left their start after the run's steps."""
    momenta = [layer.momentum for layer in norms.of_model(model) if not layer.is_pretrained]
    share = max(momenta, default=0.0) ** num_steps
    if settings.batch_norm.statistics != "moving" or share < _MOST_OF_START:
        return []
    return [
        f"Warning: after the {num_steps} steps of this run, batch normalisation's moving averages will still be "
        f"{100 * share:.0f} % their first values (mean 0, variance 1), so validation and test say little. Set "
        "batch_norm.statistics=precise, or train for longer."
    ]
