"""What a run says before it begins: its settings, and those of them that nothing comes of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research import config
from cifar_research.config import phases
from cifar_research.runs import report

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.runtime.environment import Environment

_CLASSES_LENGTH = 40  # of the names of classes


def rows(
    cfg: DictConfig, parameters: int, data: Dataset, environment: Environment, run_dir: Path, trainable: int
) -> dict[str, str]:
    """Return what is said of a run before it begins, by heading; trainable: the most weights that a phase trains."""
    training = cfg.training
    sizes = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    return {
        "Run": f"{cfg.name}, seed {cfg.seed}, {_epochs_text(cfg)} of batches of {training.batch_size}",
        "Data": f"{data.name}: {sizes}",
        **({"Files": data.file_summary()} if data.left_out else {}),
        "Images": _images_text(data),
        **({"Note": data.note} if data.note else {}),
        "Model": f"{_plugin(cfg.backbone)} (weights: {_weights_text(cfg.backbone)}) + {_plugin(cfg.model)}",
        "Parameters": f"{parameters:,}, of which {trainable:,} trainable",
        "Augmentation": ", ".join(config.transforms(cfg)) or "none",
        **_views_row(cfg),
        "Loss": _plugin(cfg.loss),
        "Optimizer": f"{_plugin(cfg.optimizer)}, learning rate {_rates_text(cfg)}, {_plugin(cfg.schedule)}",
        "Precision": _precision_text(training.precision, environment),
        "Device": environment.device,
        "Folder": str(run_dir),
    }


def phase(cfg: DictConfig, number: int) -> tuple[str, str, str]:
    """Return a phase's name, the line that it begins with, empty if it is the only one, and the unit of its speed."""
    plan = phases.plan(cfg)
    one = plan[number]
    count = f"{one.epochs} epoch{'s' if one.epochs > 1 else ''}"
    return one.name, f"Phase {one.name}, {number + 1} of {len(plan)}: {count}" if len(plan) > 1 else "", _unit(cfg, one)


def pace(cfg: DictConfig, history: Sequence[Mapping[str, Any]]) -> str:
    """Return the median speed, that of each phase by its name if there are several; empty if it is not known."""
    plan, parts = phases.plan(cfg), []
    for one in plan:
        speed = report.steady_images_per_second([row for row in history if row["phase"] == one.name])
        if speed is not None:
            parts.append(f"{speed:,.0f} {_unit(cfg, one)}" + (f" in {one.name}" if len(plan) > 1 else ""))
    return ", ".join(parts)


def _unit(cfg: DictConfig, phase: phases.Phase) -> str:
    """Return what a phase trains on per second: images, or features that were computed before."""
    if not phase.is_backbone_frozen:
        return "images/s"
    return "features/s" if phases.num_views(cfg) else "images/s"


def _images_text(data: Dataset) -> str:
    """Return the images' size, and the classes, as many by name as a line holds."""
    height, width = data.train.images.shape[1:3]
    names = [str(name) for name in data.classes]
    shown = [name for place, name in enumerate(names, 1) if len(", ".join(names[:place])) <= _CLASSES_LENGTH]
    listed = ", ".join([*shown, *(["…"] if len(shown) < len(names) else [])])
    return f"{height} x {width} pixels, {len(names)} classes: {listed}"


def _weights_text(backbone: DictConfig) -> str:
    """Return where the backbone's first weights come from."""
    chosen = backbone.get("weights")
    if chosen is None:
        return "as it is built"  # a user's own
    if chosen == "none":
        return "random, whitening from the training images" if "whitening_size" in backbone else "random"
    if chosen == "imagenet":
        return "ImageNet, from Keras"
    return f"from the run {chosen}" if Path(chosen).expanduser().is_dir() else f"from {chosen}"


def _plugin(node: DictConfig) -> str:
    return node.get("application") or node._target_.rpartition(".")[2]


def _epochs_text(cfg: DictConfig) -> str:
    """Return `10 epochs`, or how many each phase has."""
    plan = phases.plan(cfg)
    numbers = [f"{phase.epochs} epoch{'s' if phase.epochs > 1 else ''}" for phase in plan]
    return ", ".join(f"{n} of {phase.name}" if len(plan) > 1 else n for n, phase in zip(numbers, plan, strict=True))


def _rates_text(cfg: DictConfig) -> str:
    """Return `0.005`, or what each phase has, and whether the optimizer's is that of none."""
    plan = phases.plan(cfg)
    text = ", ".join(f"{phase.learning_rate:g}" + (f" of {phase.name}" if len(plan) > 1 else "") for phase in plan)
    if any(phase.learning_rate is None for phase in cfg.training.phases.values()):
        return text
    keys = ", ".join(f"training.phases.{phase.name}.learning_rate" for phase in plan)
    return f"{text} (by {keys}, not optimizer.learning_rate)"


def _views_row(cfg: DictConfig) -> dict[str, str]:
    """Return what features.views does where it is given, which in many a run is nothing."""
    if cfg.features.views is None:
        return {}
    if not any(phase.is_backbone_frozen for phase in phases.plan(cfg)):
        return {"Features": "features.views is not used: no phase has a frozen backbone"}
    kept = phases.num_views(cfg)
    said = "computed every time" if kept == 0 else f"{kept} view{'s' if kept > 1 else ''} of each image kept"
    is_less = kept < cfg.features.views
    return {"Features": said + (", since without augmentation all would be alike" if is_less else "")}


def _precision_text(precision: str, environment: Environment) -> str:
    parts = [precision]
    if precision == "float16" and environment.prefetch_device is None:
        parts.append("which processors compute many times as slowly as bfloat16 or float32")
    return ", ".join([*parts, *(["deterministic"] if environment.deterministic else [])])
