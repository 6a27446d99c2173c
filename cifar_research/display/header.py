"""The header of a run: its settings, and those without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research.config.phases import Phase
from cifar_research.config.settings import Settings
from cifar_research.data import image_files

if TYPE_CHECKING:
    from cifar_research.data.datasets import Dataset
    from cifar_research.runtime.environment import Environment


def rows(
    settings: Settings, parameters: int, data: Dataset, environment: Environment, run_dir: Path, trainable: int
) -> dict[str, str]:
    """Return the header's lines by heading; trainable: the largest number over phases."""
    training, plugins = settings.training, settings.content
    height, width = data.train.images.shape[1:3]
    sizes = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    epochs = _by_phase(settings, [_epochs(phase) for phase in settings.phases])
    rates = _by_phase(settings, [f"{phase.learning_rate:g}" for phase in settings.phases])
    weights = plugins["backbone"].get("weights", "the backbone's own")
    weights = {"none": "random", "imagenet": "ImageNet"}.get(weights, weights)
    features = f"views of each image kept: {settings.kept_views}"
    if all(phase.trainable == "all" for phase in settings.phases):
        features = "features.views is not used: no phase freezes layers"
    precision = [training.precision]
    if training.precision == "float16" and environment.memory_growth is None:  # on a CPU
        precision.append("which CPUs compute many times slower than bfloat16 or float32")
    precision += ["compiled by XLA"] * environment.jit_compile + ["deterministic"] * environment.deterministic
    return {
        "Run": f"{settings.name}, seed {settings.seed}, {epochs} of batches of {training.batch_size}",
        "Data": f"{data.name}: {sizes}",
        **({"Files": data.file_summary()} if data.left_out else {}),
        "Images": f"{height} x {width} pixels, {len(data.classes)} classes: {image_files.first(data.classes, 5)}",
        **({"Note": data.note} if data.note else {}),
        "Model": f"{_plugin(plugins['backbone'])} (weights: {weights}) + {_plugin(plugins['model'])}",
        "Parameters": f"{parameters:,}, of which {trainable:,} trainable",
        "Augmentation": ", ".join(settings.transforms) or "none",
        **({"Features": features} if settings.features.views is not None else {}),
        "Loss": _plugin(plugins["loss"]),
        "Optimizer": f"{_plugin(plugins['optimizer'])}, learning rate {rates}, {_plugin(plugins['schedule'])}",
        "Precision": ", ".join(precision),
        "Device": environment.device,
        "Folder": str(run_dir),
    }


def phase(settings: Settings, number: int) -> tuple[str, str, str]:
    """Return a phase's name, its title (empty if it is the only one) and the unit of its speed."""
    phase, count = settings.phases[number], len(settings.phases)
    title = f"Phase {phase.name}, {number + 1} of {count}: {_epochs(phase)}" if count > 1 else ""
    return phase.name, title, _unit(settings, phase)


def _unit(settings: Settings, phase: Phase) -> str:
    """Return the unit of a phase's speed: images, or precomputed features."""
    return "features/s" if phase.is_backbone_frozen and settings.kept_views else "images/s"


def _plugin(section: Mapping[str, Any]) -> str:
    return section.get("application") or section["_target_"].rpartition(".")[2]


def _epochs(phase: Phase) -> str:
    return f"{phase.epochs} epoch{'s' if phase.epochs > 1 else ''}"


def _by_phase(settings: Settings, values: Sequence[str]) -> str:
    """Return a value of each phase, with the phase's name if there are several."""
    if len(values) == 1:
        return values[0]
    return ", ".join(f"{value} of {phase.name}" for value, phase in zip(values, settings.phases, strict=True))
