"""The phases of training: trained layers, learning rate and number of epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifar_research.config import targets

RANGES = {
    "epochs": ("[]", 1, math.inf),
    "learning_rate": ("(]", 0, math.inf),
    "learning_rate_decay_by_depth": ("(]", 0, 1),
}
CHOICES = {"optimizer": ("reset", "keep")}


@dataclass(frozen=True)
class Phase:
    """One phase; see schema.PhaseConfig. learning_rate: before the schedule."""

    name: str
    epochs: int
    learning_rate: float
    trainable: str | Mapping[str, Any]
    learning_rate_decay_by_depth: float
    keeps_optimizer: bool

    @property
    def is_backbone_frozen(self) -> bool:
        return self.trainable == "none"


def plan(content: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Return the phases of a config, in order."""
    training, rate = content["training"], content["optimizer"].get("learning_rate")
    return tuple(
        Phase(
            name=name,
            epochs=training["epochs"] if phase["epochs"] is None else phase["epochs"],
            learning_rate=rate if phase["learning_rate"] is None else phase["learning_rate"],
            trainable=phase["trainable"],
            learning_rate_decay_by_depth=phase["learning_rate_decay_by_depth"],
            keeps_optimizer=phase["optimizer"] == "keep",
        )
        for name, phase in training["phases"].items()
    )


def total_epochs(training: Mapping[str, Any]) -> int:
    """Return the number of epochs of all phases; `training` is the config section."""
    epochs = [phase["epochs"] for phase in training["phases"].values()]
    return sum(training["epochs"] if own is None else own for own in epochs)


def problems(training: Mapping[str, Any]) -> list[str]:
    """Return the problems of training.phases that can be found without the model."""
    if not training["phases"]:
        return ["training.phases: is empty, so nothing would be trained; choose training=scratch, or add a phase"]
    problems = []
    for name, phase in training["phases"].items():
        key = f"training.phases.{name}"
        for setting, limits in RANGES.items():
            if problem := targets.range_problem(phase[setting], *limits):
                problems.append(f"{key}.{setting}: {problem}")
        for setting, valid in CHOICES.items():
            if phase[setting] not in valid:
                problems.append(f"{key}.{setting}: {targets.choice_problem(phase[setting], valid)}")
        problems += _trainable_problems(f"{key}.trainable", phase["trainable"])
    return problems


def _trainable_problems(key: str, value: Any) -> list[str]:
    choices = "give none, all, upper, {last: 20}, {from: <layer>} or a pattern of layer names like block5_*"
    is_valid = isinstance(value, str) and value != ""
    if isinstance(value, Mapping) and len(value) == 1:
        ((how, what),) = value.items()
        is_valid = targets.fits(what, int) and what >= 1 if how == "last" else how == "from" and targets.fits(what, str)
    return [] if is_valid else [f"{key}: {value!r} does not choose layers; {choices}"]


def random_backbone_problems(first: Phase, backbone: Mapping[str, Any], default: str | None) -> list[str]:
    """Return why the first phase may not freeze a random backbone; an empty list if it may.

    backbone: the config section. default: its factory's default of `weights`, None without that parameter. Layers
    chosen by name, as in {from: block2_conv1}, are not checked.
    """
    if default is None or backbone.get("weights", default) != "none" or first.trainable not in ("none", "upper"):
        return []
    what = "no layer of it" if first.trainable == "none" else "only its upper blocks"
    imagenet = "backbone.weights=imagenet, " if default == "imagenet" else ""
    return [
        f"backbone.weights: none makes the backbone random, and training.phases.{first.name} trains {what}; give "
        f"{imagenet}a weights file or a run folder, or choose training=scratch"
    ]
