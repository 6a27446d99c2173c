"""Saving a run's state to checkpoints, and restoring it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cifar_research.runs.checkpoint import Checkpoint, Checkpoints, read
from cifar_research.runtime.errors import CheckpointError
from cifar_research.training.scoring import as_array
from cifar_research.training.state import Progress, TrainState

_CHIEF_SECONDS = 120  # to wait for the chief's file


@dataclass(frozen=True)
class Saver:
    """Writes a run's checkpoints, if this process is the chief.

    identity: compared on resume: config, classes, fingerprint, device. began: time.perf_counter() at the first step.
    """

    checkpoints: Checkpoints
    identity: Mapping[str, Any]
    is_chief: bool
    began: float

    def save(self, state: TrainState, progress: Progress) -> None:
        """Write a checkpoint; FloatingPointError if a weight is not finite."""
        if self.is_chief:
            arrays = {name: as_array(variable) for name, variable in state.variables().items()}
            elapsed = progress.elapsed + time.perf_counter() - self.began
            meta = {**asdict(progress), "elapsed": elapsed, **self.identity}
            self.checkpoints.save(progress.step, Checkpoint(arrays, meta))

    def restore_best(self, state: TrainState, progress: Progress) -> None:
        """Load the best weights into the model, and into the averages if there are any."""
        assert progress.best is not None  # set after the first epoch
        path = self.checkpoints.path(progress.best["step"])
        end = time.monotonic() + _CHIEF_SECONDS
        while not self.is_chief and not path.exists() and time.monotonic() < end:
            time.sleep(0.1)  # wait until the chief has written it
        arrays, kind = read(path).arrays, "ema" if state.averages else "model"
        for weight in state.model.weights:
            weight.value.assign(arrays[f"{kind}/{weight.path}"])
        for average, weight in zip(state.averages, state.model.weights, strict=bool(state.averages)):
            average.assign(weight.value)


def restore(state: TrainState, progress: Progress, checkpoint: Checkpoint) -> None:
    """Restore state and progress; CheckpointError if the checkpoint is for a different model."""
    variables, arrays = state.variables(), checkpoint.arrays
    differing = sorted(variables.keys() ^ arrays.keys()) or [
        name
        for name, variable in variables.items()
        if tuple(variable.shape) != arrays[name].shape or variable.dtype != arrays[name].dtype
    ]
    if differing:
        raise CheckpointError(
            f"hydra.run.dir: the checkpoint is of another model ({', '.join(differing[:5])}): the code has changed; restore "
            "it, or choose another folder"
        )
    if missing := sorted(asdict(progress).keys() - checkpoint.meta.keys()):
        raise CheckpointError(f"hydra.run.dir: the checkpoint lacks {', '.join(missing)}; choose another folder")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    for name in asdict(progress):
        setattr(progress, name, checkpoint.meta[name])
