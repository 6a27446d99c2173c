"""A backbone's initial weights: from ImageNet, a file or another run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cifar_research.runtime import files, folders
from cifar_research.runtime.errors import RunError, WeightsError
from cifar_research.runtime.lazy import keras

Make = Callable[[], "keras.Model"]


def check(weights: str, sources: Collection[str] = ()) -> None:
    """Raise ValueError if these weights do not exist, without importing TensorFlow.

    sources: the names of a network's own weights.
    """
    path, names = Path(os.path.expanduser(weights)), [*sources, "none"]
    is_file = path.is_file() and path.name.endswith((".h5", ".keras"))
    if weights in names or is_file or (path / files.WEIGHTS).is_file():
        return
    problem = f"{weights} {'holds no weights' if path.exists() else 'does not exist'}"
    if weights == "imagenet":
        problem = "this backbone has no ImageNet weights"
    raise ValueError(
        f"weights: {problem}; use {', '.join(names)}, a weights file (.weights.h5, .h5, .keras) or the folder of a completed run"
    )


def converted(name: str) -> Path:
    """Return where scripts/convert_weights writes a network's ImageNet weights: in the cache folder."""
    return folders.root(None) / "weights" / f"{name}.weights.h5"


def load(
    backbone: keras.Model, weights: str, make: Make | None = None, sources: Mapping[str, Make] | None = None
) -> None:
    """Load weights into a backbone by their paths; WeightsError if one does not fit.

    make: returns the network that files hold, if that is not the whole backbone. sources: return it with the weights of
    a name.
    """
    if weights == "none":
        return
    path = Path(os.path.expanduser(weights))
    if sources and weights in sources:
        source = _of_source(weights, sources[weights])
    elif path.is_dir():
        source = _of_run(path)
    else:
        try:
            if path.name.endswith(".keras"):
                source = keras.saving.load_model(path, compile=False, safe_mode=True)
            else:
                source = keras.models.clone_model(backbone) if make is None else make()
                with warnings.catch_warnings(record=True) as caught:
                    source.load_weights(path)
                # Not for another network's file, of whose every container Keras warns before it fails.
                for warning in caught:
                    warnings.warn(warning.message, stacklevel=2)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"backbone.weights: {path} cannot be loaded into {backbone.name} ({_first_line(error)}); for a run's "
                "weights, give its run folder"
            ) from error
    _copy(source, backbone, weights)


def _copy(source: keras.Model, backbone: keras.Model, weights: str) -> None:
    # Ignore a head after the backbone, but not a layer inside it.
    values = dict(_by_path(source)[: len(backbone.weights)])
    for path, weight in _by_path(backbone):
        shape = tuple(values[path].shape) if path in values else "missing"
        if shape != tuple(weight.shape):
            raise WeightsError(
                f"backbone.weights: {weights} is for a different network: {path} is {shape} in it, and "
                f"{tuple(weight.shape)} in {backbone.name}; use the same settings for both"
            )
    for path, weight in _by_path(backbone):
        weight.assign(values[path])


def _by_path(model: keras.Model) -> list[tuple[str, keras.Variable]]:
    """Return a model's weights with their paths, without the name of a Sequential model."""
    return [(weight.path.removeprefix(f"{model.name}/"), weight) for weight in model.weights]


def _of_source(weights: str, make: Make) -> keras.Model:
    try:
        return make()
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 — Keras raises Exception itself for a failed download
        folder = Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))) / "models"
        raise WeightsError(
            f"backbone.weights: {weights} could not be downloaded and verified ({_first_line(error)}); download it elsewhere "
            f"and put it into {folder}, or use a weights file or a run folder, or train from scratch: training=scratch "
            "backbone.weights=none"
        ) from error


def _of_run(folder: Path) -> keras.Model:
    """Return the backbone of a completed run, with its weights."""
    from cifar_research.models import classifier, rebuild

    try:
        report = files.loads((folder / "report.json").read_bytes())
        if not rebuild.is_whole(report):
            raise RunError(f"{folder / 'report.json'}: is damaged; restore it, or give another run folder")
        return classifier.parts(rebuild.network(report, folder))[0]
    except (OSError, ValueError) as error:
        raise WeightsError(f"backbone.weights: {folder}: {error}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
