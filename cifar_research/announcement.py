"""What a run says before it begins: its settings, and those of them that nothing comes of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cifar_research import config, phases
from cifar_research.data import datasets

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.environment import Environment
    from cifar_research.steps import Task


def rows(
    cfg: DictConfig, task: Task, data: Dataset, environment: Environment, run_dir: Path, trainable: int
) -> dict[str, str]:
    """Return what is said of a run before it begins, by heading; trainable: the most weights that a phase trains."""
    training = cfg.training
    sizes = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    return {
        "Run": f"{cfg.name}, seed {cfg.seed}, {_epochs_text(cfg)} of batches of {training.batch_size}",
        "Data": f"{data.name}: {sizes}, {len(data.classes)} classes",
        **({"Files": datasets.files_told(data)} if data.left_out else {}),
        **({"Note": data.note} if data.note else {}),
        "Model": f"{_plugin(cfg.backbone)} + {_plugin(cfg.model)}",
        "Parameters": f"{task.model.count_params():,}, of which {trainable:,} trainable",
        "Augmentation": ", ".join(config.transforms(cfg)) or "none",
        **_views_row(cfg),
        "Loss": _plugin(cfg.loss),
        "Optimizer": f"{_plugin(cfg.optimizer)}, learning rate {_rates_text(cfg)}, {_plugin(cfg.schedule)}",
        "Precision": _precision_text(training.precision, environment),
        "Device": environment.device,
        "Folder": str(run_dir),
    }


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
    from cifar_research import features  # which imports TensorFlow

    kept = features.num_views(cfg)
    said = "computed every time" if kept == 0 else f"{kept} view{'s' if kept > 1 else ''} of each image kept"
    is_less = kept < cfg.features.views
    return {"Features": said + (", since without augmentation all would be alike" if is_less else "")}


def _precision_text(precision: str, environment: Environment) -> str:
    parts = [precision]
    if precision == "float16" and environment.prefetch_device is None:
        parts.append("which processors compute many times as slowly as bfloat16 or float32")
    return ", ".join([*parts, *(["deterministic"] if environment.deterministic else [])])
