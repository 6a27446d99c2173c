"""Warnings before training: settings that say little about the weights, or are slow, and a GPU that is not used."""

from __future__ import annotations

import os
from pathlib import Path

import keras

from cifar_research.config.identity import flatten
from cifar_research.config.schema import ImagesConfig
from cifar_research.config.settings import Settings
from cifar_research.models import classifier, layers
from cifar_research.runtime import environment, files, gpus
from cifar_research.training import norms

_MOST_OF_START = 0.1  # the share of moving statistics below which validation follows training


def of_run(settings: Settings, model: keras.Model, num_steps: int) -> list[str]:
    """Return the warnings for a run of this many steps."""
    warnings = []
    if unused := gpus.why_unused():
        warnings.append(unused)
    data, size = settings.data, settings.backbone.image_size
    if isinstance(data, ImagesConfig) and size is not None and data.image_size < size:
        warnings.append(
            f"images are read at {data.image_size} x {data.image_size} pixels, and the backbone enlarges them to "
            f"{size} x {size}, so details of larger photos are lost. Set data.image_size={size}."
        )
    is_kept = settings.kept_views > 0 and all(phase.trainable != "all" for phase in settings.phases)
    is_depthwise = any(isinstance(layer, layers.DepthwiseConv2D) for layer in classifier.leaves(model))
    if slow := environment.slow_precision(settings.training.precision, is_depthwise and not is_kept):
        warnings.append(f"{slow}. Set training.precision=float32.")
    warnings += _of_source(settings)
    momenta = [layer.momentum for layer in norms.of_model(model) if not layer.is_pretrained]
    share = max(momenta, default=0.0) ** num_steps
    if settings.batch_norm.statistics == "moving" and share >= _MOST_OF_START:
        warnings.append(
            f"after the {num_steps} steps of this run, batch normalisation's moving averages will still be "
            f"{100 * share:.0f} % their first values (mean 0, variance 1), so validation and test say little. Set "
            "batch_norm.statistics=precise, or train for longer."
        )
    return [f"Warning: {text}" for text in warnings]


def _of_source(settings: Settings) -> list[str]:
    """Return how the run that gives the backbone its weights differs in what the weights do not show."""
    folder = Path(os.path.expanduser(str(settings.content["backbone"].get("weights"))))
    try:
        source = flatten(files.loads((folder / "report.json").read_bytes())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    own = flatten(settings.content)
    return [
        f"the backbone's weights come from a run with {key}={str(source[key]).lower()}, and this run has "
        f"{str(own[key]).lower()}. Set {key}={str(source[key]).lower()}."
        for key in ("backbone.activation", "backbone.pooling", "data.standardize")
        if key in own and key in source and own[key] != source[key]
    ]
