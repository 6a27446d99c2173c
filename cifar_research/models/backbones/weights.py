"""Where a backbone's first weights come from: ImageNet, a file, or the folder of another run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_research.runtime import files
from cifar_research.runtime.errors import RunError, WeightsError

if TYPE_CHECKING:
    import keras

_SUFFIXES = (".weights.h5", ".h5", ".keras")


def check(weights: str, *, has_imagenet: bool = False) -> None:
    """Raise ValueError, before TensorFlow is imported, if this can be no weights: see pretrained."""
    if weights == "imagenet" and not has_imagenet:
        raise ValueError("weights: this backbone has no ImageNet weights; use none, a weights file or a run folder")
    if weights in ("imagenet", "none"):
        return
    path = Path(os.path.expanduser(weights))
    if path.is_dir():
        for name in ("report.json", files.WEIGHTS):
            if not (path / name).is_file():
                raise ValueError(
                    f"weights: {weights} has no {name}; give the folder of a run that was completed, or a file"
                )
    elif not path.is_file():
        named = "imagenet, none" if has_imagenet else "none"
        raise ValueError(f"weights: {weights} does not exist; choose {named}, a weights file or the folder of a run")
    elif not path.name.endswith(_SUFFIXES):
        raise ValueError(f"weights: {weights} is no file of weights; give one that ends in {', '.join(_SUFFIXES)}")


def load(backbone: keras.Model, chosen: str, make: Callable[[str | None], Any] | None = None) -> None:
    """Put weights into a backbone, layer by layer in order; WeightsError, naming the first that does not fit.

    make: returns the same model of keras.applications, without a top, with the weights it is told; None for a backbone
    that is none of theirs.
    """
    import keras

    if chosen == "none":
        return
    path = Path(os.path.expanduser(chosen))
    if chosen == "imagenet":
        source = _imagenet(make)
    elif path.is_dir():
        source = _of_run(path)
    elif path.name.endswith(".keras"):
        try:
            source = keras.saving.load_model(path, compile=False, safe_mode=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"backbone.weights: {path} cannot be read ({_first_line(error)})") from error
    else:
        source = keras.models.clone_model(backbone) if make is None else make(None)
        try:
            source.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            hint = (
                "; it is a whole classifier: give its run's folder, whose backbone is taken"
                if path.name == files.WEIGHTS
                else ""
            )
            raise WeightsError(
                f"backbone.weights: {path} does not fit {backbone.name} ({_first_line(error)}){hint}"
            ) from error
    _copy(source.weights, backbone.weights, chosen, backbone.name)


def _copy(source: Sequence[Any], target: Sequence[Any], chosen: str, name: str) -> None:
    told = {weight.path: tuple(weight.shape) for weight in source}
    for weight in target:
        if weight.path not in told:
            raise WeightsError(
                f"backbone.weights: {chosen} is of another network: it has no {weight.path}, which {name} has"
            )
        if told[weight.path] != tuple(weight.shape):
            raise WeightsError(
                f"backbone.weights: {weight.path} is {tuple(weight.shape)} in {name} and {told[weight.path]} in "
                f"{chosen}; give both the same settings"
            )
    # A head above the backbone is left out, however many classes it has; a layer amid the others is another network's.
    wanted = [weight.path for weight in target]
    if odd := [path for path in list(told)[: len(wanted)] if path not in wanted]:
        raise WeightsError(f"backbone.weights: {chosen} is of another network: {name} has no {odd[0]}, which it has")
    values = {weight.path: weight for weight in source}
    for weight in target:
        weight.assign(values[weight.path])


def _imagenet(make: Callable[[str | None], Any]) -> Any:
    try:
        return make("imagenet")
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 — Keras raises Exception itself for a failed download
        kept = Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))) / "models"
        found = re.search(r"https?://\S+(?<!:)", str(error))
        url = found.group(0) if found else "the file of weights"
        raise WeightsError(
            f"backbone.weights: imagenet: {url.rpartition('/')[2]} could not be downloaded and verified "
            f"({_first_line(error)}); fetch {url} where there is a network and put it into {kept}; or give "
            "backbone.weights a weights file or a run folder; or train from scratch: training=scratch backbone.weights=none"
        ) from error


def _of_run(folder: Path) -> keras.Model:
    """Return the backbone of a completed run, with its weights, whatever its head."""
    from cifar_research.models import classifier, rebuild

    try:
        found = files.loads((folder / "report.json").read_bytes())
        if not rebuild.is_whole(found):
            raise RunError(f"{folder / 'report.json'}: is damaged; restore it, or give another run folder")
        return classifier.parts(rebuild.network(found, folder))[0]
    except (OSError, ValueError) as error:
        raise WeightsError(f"backbone.weights: {folder}: {error}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
