"""Rebuild the network of a finished run from its report, and load its weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cifar_research.config import schema, settings, targets
from cifar_research.models.classifier import classifier
from cifar_research.runtime import environment as environments
from cifar_research.runtime import files
from cifar_research.runtime.errors import ConfigError, RunError
from cifar_research.runtime.lazy import keras


def network(
    report: dict[str, Any], run: Path, precision: str | None = None, allowed: frozenset[str] | None = None
) -> keras.Model:
    """Return the classifier of a run: float [B, H, W, C] -> logits [B, K].

    report: the run's; precision: float32, bfloat16 or float16; None: as in training; allowed: see targets.allowed;
    None: those of the environment. RunError if the model cannot be rebuilt, or the weights do not fit.
    """
    content = report["config"]
    size = schema.data_section(content["data"]).image_size
    try:
        backbone, head = settings.network(content, targets.allowed() if allowed is None else allowed)
    except ConfigError as error:
        raise RunError(f"{run}: its model cannot be rebuilt: {error}") from error
    environments.import_tensorflow()
    try:
        with environments.restored():
            keras.config.set_dtype_policy(environments.POLICIES[precision or content["training"]["precision"]])
            model = classifier(backbone, head, (size, size, 3), len(report["data"]["classes"]))
    except Exception as error:  # of a user's own code, too
        raise RunError(
            f"{run}: its model cannot be rebuilt ({targets.error_text(error)}); restore what its backbone and model need"
        ) from error
    if model.count_params() != report["parameters"]["total"]:
        raise RunError(
            f"{run}: its config now builds a model of {model.count_params():,} parameters, and the run trained "
            f"{report['parameters']['total']:,}; restore the config or the model's code"
        )
    try:
        with warnings.catch_warnings():  # Keras warns about renamed lists of layers
            warnings.simplefilter("ignore", UserWarning)
            model.load_weights(run / files.WEIGHTS)
    except Exception as error:  # a damaged file raises many types
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunError(
            f"{run / files.WEIGHTS}: cannot be loaded into the model of report.json ({line[:300]}); restore the file, or "
            "delete both files and resume the run, which writes them again"
        ) from error
    return model


def is_whole(report: dict[str, Any]) -> bool:
    """Return whether a report has all fields that are read here, with their types."""
    types = {
        "data.classes": list, "parameters.total": int, "test.accuracy": float, "config_hash": str, "config.name": str,
        "config.data.standardize": bool, "config.training.precision": str, "config.backbone": dict, "config.model": dict,
    }  # fmt: skip
    for key, expected in types.items():
        value: Any = report
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, expected):
            return False
    return report["config"]["training"]["precision"] in environments.POLICIES
