"""The content of a run's report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from cifar_research.config.schema import METRICS
from cifar_research.data.datasets import Dataset
from cifar_research.runs import report
from cifar_research.runtime.environment import Environment
from cifar_research.training.loop import Outcome, Run
from cifar_research.training.scoring import Scores
from cifar_research.training.state import TrainState


def gather(
    run: Run,
    outcome: Outcome,
    test: Scores | None,
    trained: Mapping[str, int],
    flops: int | None,
    git: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of report.json.

    test: None if untested. trained: parameters by phase. git: see Checkout.leave.
    `train` and `val` are of the best epoch, `train` as measured during training. overflows: steps that
    float16 skipped. weights_sha256: of the tested weights.
    """
    settings, data, state, progress = run.settings, run.data, run.state, run.progress
    best_epoch = progress.best and progress.best["epoch"]
    best = next((row for row in progress.history if row["epoch"] == best_epoch), None)
    return {
        "status": outcome.status,
        "signal": outcome.signal,
        "config_hash": settings.identity.hash,
        "config": settings.content,
        "seed": settings.seed,
        "data": _data(data, state),
        "parameters": {
            "total": state.model.count_params(),
            "trainable": max(trained.values()),
            "trainable_by_phase": dict(trained),
        },
        "forward_flops": flops,
        "train": best and {"loss": best["loss"], "accuracy": best["accuracy"]},
        "val": {name: best[f"val_{name}"] for name in METRICS} if best and best["val_loss"] is not None else None,
        "test": test and dict(test.values),
        "weights_sha256": test and report.weights_sha256(state.model),
        "best_epoch": best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "overflows": progress.overflows,
        "images_per_second": report.steady_images_per_second(progress.history),
        "seconds": run.seconds,
        "peak_memory_bytes": report.peak_memory_bytes(),
        "versions": report.versions(),
        "hardware": _hardware(run.environment, state),
        "git": git,
        "options": dict(settings.options),
    }


def _data(data: Dataset, state: TrainState) -> dict[str, Any]:
    matrix = data.label_matrix()
    mean, deviation = state.preprocessing.mean, state.preprocessing.standard_deviation
    return {
        "name": data.name,
        "classes": list(data.classes),
        "train_counts": data.train.counts(len(data.classes)).tolist(),
        "label_matrix": None if matrix is None else matrix.tolist(),
        "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "fingerprint": data.fingerprint,
        "labels_sha256": data.labels_sha256(),
        "found_in": data.found_in,
        "note": data.note,
        "left_out": dict(data.left_out),
        # The model must be usable without its data.
        "standardization": None if mean is None else {"mean": mean.tolist(), "deviation": deviation.tolist()},
    }


def _hardware(environment: Environment, state: TrainState) -> dict[str, Any]:
    return report.hardware([gpu.name for gpu in tf.config.list_physical_devices("GPU")]) | {
        "device": environment.device,
        "deterministic": environment.deterministic,
        "jit_compile": environment.jit_compile and not state.does_without_xla,
        "memory_growth": environment.memory_growth,
    }
