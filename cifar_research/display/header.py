"""The header of a run: its settings, and those without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research.config.phases import Phase
from cifar_research.config.settings import Settings
from cifar_research.data import image_files
from cifar_research.runs import report

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
    backbone = f"{_plugin(plugins['backbone'])} (weights: {_weights_text(plugins['backbone'])})"
    rate = f"learning rate {_rates_text(settings)}, {_plugin(plugins['schedule'])}"
    return {
        "Run": f"{settings.name}, seed {settings.seed}, {_epochs_text(settings)} of batches of {training.batch_size}",
        "Data": f"{data.name}: {sizes}",
        **({"Files": data.file_summary()} if data.left_out else {}),
        "Images": f"{height} x {width} pixels, {len(data.classes)} classes: {image_files.first(data.classes, 5)}",
        **({"Note": data.note} if data.note else {}),
        "Model": f"{backbone} + {_plugin(plugins['model'])}",
        "Parameters": f"{parameters:,}, of which {trainable:,} trainable",
        "Augmentation": ", ".join(settings.transforms) or "none",
        **_views_row(settings),
        "Loss": _plugin(plugins["loss"]),
        "Optimizer": f"{_plugin(plugins['optimizer'])}, {rate}",
        "Precision": _precision_text(training.precision, environment),
        "Device": environment.device,
        "Folder": str(run_dir),
    }


def phase(settings: Settings, number: int) -> tuple[str, str, str]:
    """Return a phase's name, its title (empty if it is the only one) and the unit of its speed."""
    phase, count = settings.phases[number], len(settings.phases)
    title = f"Phase {phase.name}, {number + 1} of {count}: {_epochs(phase)}" if count > 1 else ""
    return phase.name, title, _unit(settings, phase)


def pace(settings: Settings, history: Sequence[Mapping[str, Any]]) -> str:
    """Return the median speed, by phase if there are several; empty if unknown."""
    speeds = []
    for phase in settings.phases:
        speed = report.steady_images_per_second([row for row in history if row["phase"] == phase.name])
        if speed is not None:
            of_phase = f" in {phase.name}" if len(settings.phases) > 1 else ""
            speeds.append(f"{speed:,.0f} {_unit(settings, phase)}{of_phase}")
    return ", ".join(speeds)


def _unit(settings: Settings, phase: Phase) -> str:
    """Return the unit of a phase's speed: images, or precomputed features."""
    return "features/s" if phase.is_backbone_frozen and settings.kept_views else "images/s"


def _weights_text(backbone: Mapping[str, Any]) -> str:
    """Return the source of the backbone's initial weights."""
    chosen = backbone.get("weights")
    if chosen is None:
        return "the backbone's own"  # of a user's backbone
    if chosen == "none":
        return "random, whitening from the training images" if "whitening_size" in backbone else "random"
    if chosen == "imagenet":
        return "ImageNet"
    return f"from the run {chosen}" if Path(chosen).expanduser().is_dir() else f"from {chosen}"


def _plugin(section: Mapping[str, Any]) -> str:
    return section.get("application") or section["_target_"].rpartition(".")[2]


def _epochs(phase: Phase) -> str:
    return f"{phase.epochs} epoch{'s' if phase.epochs > 1 else ''}"


def _epochs_text(settings: Settings) -> str:
    several = len(settings.phases) > 1
    return ", ".join(_epochs(phase) + (f" of {phase.name}" if several else "") for phase in settings.phases)


def _rates_text(settings: Settings) -> str:
    """Return each phase's learning rate, and a note if no phase uses optimizer.learning_rate."""
    plan = settings.phases
    text = ", ".join(f"{phase.learning_rate:g}" + (f" of {phase.name}" if len(plan) > 1 else "") for phase in plan)
    if any(phase.learning_rate is None for phase in settings.training.phases.values()):
        return text
    keys = ", ".join(f"training.phases.{phase.name}.learning_rate" for phase in plan)
    return f"{text} (by {keys}, not optimizer.learning_rate)"


def _views_row(settings: Settings) -> dict[str, str]:
    """Return the effect of features.views, if it is set."""
    if settings.features.views is None:
        return {}
    if all(phase.trainable == "all" for phase in settings.phases):
        return {"Features": "features.views is not used: no phase freezes layers"}
    views = settings.kept_views
    return {
        "Features": f"{views} view{'s' if views > 1 else ''} of each image kept" if views else "computed every time"
    }


def _precision_text(precision: str, environment: Environment) -> str:
    texts = [precision]
    if precision == "float16" and environment.prefetch_device is None:
        texts.append("which CPUs compute many times slower than bfloat16 or float32")
    texts += ["compiled by XLA"] if environment.jit_compile else []
    return ", ".join([*texts, *(["deterministic"] if environment.deterministic else [])])
