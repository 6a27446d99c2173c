"""Result: what report.json holds of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cifar_research.config import config_hash
from cifar_research.runs.report import (
    git,
    hardware,
    peak_memory_bytes,
    steady_images_per_second,
    versions,
    weights_sha256,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_research.data.datasets import Dataset
    from cifar_research.runtime.environment import Environment
    from cifar_research.training import loop, steps


def gather(
    cfg: DictConfig,
    task: steps.Task,
    data: Dataset,
    environment: Environment,
    record: loop.Record,
    outcome: loop.Outcome,
    test: loop.Scores | None,
    seconds: dict[str, float | None],
    trained: Mapping[str, int],
) -> dict[str, Any]:
    """Return what report.json holds. `train` and `val` are those of the best epoch, `train` as measured in training.

    trained: how many parameters each phase trains. weights_sha256: of the weights that were tested, None of none.
    """
    import tensorflow as tf

    from cifar_research.models import classifier

    best = next((row for row in record.history if record.best and row["epoch"] == record.best["epoch"]), None)
    has_val = best is not None and best["val_loss"] is not None
    return {
        "status": outcome.status,
        "signal": outcome.signal,
        "config_hash": config_hash(cfg),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "seed": cfg.seed,
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "fingerprint": data.fingerprint,
            "found_in": data.found_in,
            "note": data.note,
            "left_out": dict(data.left_out),
            # What data.standardize takes out by channel, so that a model can be used without its data.
            "standardization": None
            if task.mean is None
            else {"mean": task.mean.tolist(), "deviation": task.deviation.tolist()},
        },
        "parameters": {
            "total": task.model.count_params(),
            "trainable": max(trained.values()),
            "trainable_by_phase": dict(trained),
        },
        "forward_flops": None
        if outcome.status == "stopped"
        else classifier.forward_flops(task.model),  # takes a moment
        "train": best and {"loss": best["loss"], "accuracy": best["accuracy"]},
        "val": {"loss": best["val_loss"], "accuracy": best["val_accuracy"]} if has_val else None,
        "test": test and {"loss": test.loss, "accuracy": test.accuracy},
        "weights_sha256": test and weights_sha256(task.model),
        "best_epoch": record.best and record.best["epoch"],
        "epochs": record.epoch,
        "steps": record.step,
        "images_per_second": steady_images_per_second(record.history),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "hardware": hardware([gpu.name for gpu in tf.config.list_physical_devices("GPU")])
        | {
            "device": environment.device,
            "deterministic": environment.deterministic,
            "memory_growth": environment.memory_growth,
        },
        "git": git(Path(__file__).parent),
    }
