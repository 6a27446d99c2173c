"""The phases of a training: which weights each trains, how fast, and for how long."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cifar_research.config import targets

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Phase:
    """One phase; see schema.PhaseConfig. learning_rate: before the schedule."""

    name: str
    epochs: int
    learning_rate: float
    trainable: str | Mapping[str, Any]
    learning_rate_decay_by_depth: float
    keeps_optimizer: bool
    continues_schedule: bool = False
    image_size: int | None = None

    @property
    def is_backbone_frozen(self) -> bool:
        return self.trainable == "none"


def plan(cfg: Any) -> list[Phase]:
    """Return the phases of a whole config, in their order."""
    training, rate = cfg["training"], cfg["optimizer"]["learning_rate"]
    return [
        Phase(
            name=name,
            epochs=_epochs(phase, training),
            learning_rate=rate if phase["learning_rate"] is None else phase["learning_rate"],
            trainable=phase["trainable"],
            learning_rate_decay_by_depth=phase["learning_rate_decay_by_depth"],
            keeps_optimizer=phase["optimizer"] == "keep",
            continues_schedule=phase["schedule"] == "continue",
            image_size=phase["image_size"],
        )
        for name, phase in training["phases"].items()
    ]


def num_views(cfg: Any) -> int:
    """Return how many views of each image are kept while the backbone is frozen, 0 if they are computed every time."""
    has_augmentation = any(node is not None for node in cfg.augmentation.values())
    if cfg.features.views is None:
        return 0 if has_augmentation else 1
    # Without augmentation all views would be the same.
    return cfg.features.views if has_augmentation else min(cfg.features.views, 1)


def schedule_span(plan: Sequence[Phase], number: int) -> range:
    """Return the numbers of the phases that share one schedule with the phase of this number."""
    first, last = number, number + 1
    while first and plan[first].continues_schedule:
        first -= 1
    while last < len(plan) and plan[last].continues_schedule:
        last += 1
    return range(first, last)


def total_epochs(training: Mapping[str, Any]) -> int:
    """Return how many epochs all phases have together; `training` is the config's section of that name."""
    return sum(_epochs(phase, training) for phase in training["phases"].values())


def _epochs(phase: Mapping[str, Any], training: Mapping[str, Any]) -> int:
    return training["epochs"] if phase["epochs"] is None else phase["epochs"]


def check(training: Any) -> list[str]:
    """Return what is wrong with training.phases, a sentence each, as far as it can be seen without the model."""
    if not training.phases:
        return ["training.phases: there is none, so nothing would be trained; choose training=scratch, or add one"]
    problems = []
    for name, phase in training.phases.items():
        key = f"training.phases.{name}"
        if phase is None:
            problems.append(f"{key}: null is not a valid phase; leave it out with ~{key}")
            continue
        ranges = {"epochs": ("[]", 1), "learning_rate": ("(]", 0), "learning_rate_decay_by_depth": ("(]", 0, 1)}
        for setting, limits in ranges.items():
            if problem := targets.range_problem(phase[setting], *limits):
                problems.append(f"{key}.{setting}: {problem}")
        for setting, choices in {"optimizer": ("reset", "keep"), "schedule": ("anew", "continue")}.items():
            if phase[setting] not in choices:
                hint = targets.nearest(phase[setting], choices, most=0)
                problems.append(f"{key}.{setting}: {phase[setting]!r} is not one of {', '.join(choices)}{hint}")
        if phase.image_size is not None and phase.trainable == "none":
            problems.append(
                f"{key}.image_size: {phase.image_size} does not go with trainable=none, whose features are computed "
                "once; leave it out"
            )
        problems += _check_trainable(f"{key}.trainable", phase.trainable)
    return problems


def check_weights(cfg: Any) -> list[str]:
    """Return why the first phase may not freeze the backbone: its weights are random. Nothing if it may.

    Layers that are named one by one, as in {from: block2_conv1}, may be any.
    """
    weights = targets.parameters(cfg.backbone).get("weights")
    first = plan(cfg)[0]
    if (
        weights is None
        or cfg.backbone.get("weights", weights.default) != "none"
        or first.trainable not in ("none", "upper")
    ):
        return []
    what = "no layer of it" if first.trainable == "none" else "its upper blocks alone"
    imagenet = "backbone.weights=imagenet, " if weights.default == "imagenet" else ""
    return [
        f"backbone.weights: none leaves the backbone random, and training.phases.{first.name} trains {what}; give "
        f"{imagenet}a weights file or a run folder, or choose training=scratch"
    ]


def check_numbers(cfg: Any, num_train: int, num_val: int) -> list[str]:
    """Return what is wrong with a config for so many training and validation images, a sentence each."""
    size, problems = cfg.training.batch_size, []
    steps_an_epoch = (num_train if cfg.data.drop_remainder else num_train + size - 1) // size
    if not steps_an_epoch:
        return [
            f"data.drop_remainder: true leaves no batch of {size} in {num_train} training images; set "
            "training.batch_size lower"
        ]
    steps = steps_an_epoch * total_epochs(cfg.training)
    if (cfg.tensorboard.profile_start_step or 0) >= steps:
        problems.append(
            f"tensorboard.profile_start_step: {cfg.tensorboard.profile_start_step} is not among the {steps} steps of "
            "this run; give an earlier one"
        )
    if cfg.training.patience is not None and not num_val:
        problems.append(
            "training.patience: early stopping watches validation, and no image is left for it; give more training "
            "images, or set training.patience=null"
        )
    warmup, phases = cfg.schedule.get("warmup_steps"), plan(cfg)
    for number in range(len(phases)):
        steps = steps_an_epoch * sum(phases[n].epochs for n in schedule_span(phases, number))
        if isinstance(warmup, int) and warmup >= steps:
            problems.append(
                f"schedule.warmup_steps: {warmup} leaves nothing of the {steps} steps of phase {phases[number].name}; "
                "make it shorter"
            )
            break
    return problems


def _check_trainable(key: str, value: Any) -> list[str]:
    says = "give none, all, upper, {last: 20}, {from: <layer>} or a pattern of layer names like block5_*"
    if isinstance(value, str) and value:
        return []
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in ("last", "from"):
        return [f"{key}: {value!r} is no choice of layers; {says}"]
    ((how, what),) = value.items()
    if how == "last" and (not isinstance(what, int) or isinstance(what, bool) or what < 1):
        return [f"{key}.last: {what!r} is no number of layers; it must be at least 1"]
    if how == "from" and not (isinstance(what, str) and what):
        return [f"{key}.from: {what!r} is no layer's name; {says}"]
    return []


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Return a model's layers in its order, those of models within it in their place.

    A model that is neither sequential nor functional counts as one layer: it may have weights of its own, and any order.
    """
    import keras

    if not isinstance(model, (keras.Sequential, keras.Function)):
        return [model]
    return [leaf for layer in model.layers for leaf in (leaves(layer) if isinstance(layer, keras.Model) else [layer])]


def trained_layers(
    trainable: str | Mapping[str, Any], backbone: keras.Model, upper_blocks: str | None
) -> list[keras.layers.Layer]:
    """Return the backbone's layers that a phase trains, those with weights alone.

    `last` counts layers with weights; `from` is every layer from that one on, in the model's order; `upper` is `from`
    `upper_blocks`, a layer's name. ConfigError, naming the nearest layer, if there is no such layer.
    """
    from cifar_research.runtime.errors import ConfigError

    everything = leaves(backbone)
    layers = [layer for layer in everything if layer.weights]
    if trainable == "none":
        return []
    if trainable == "all":
        return layers
    if trainable == "upper":
        if upper_blocks is None:
            raise ConfigError(
                "training.phases: trainable: upper needs a backbone that names its upper blocks, and "
                f"{backbone.name} does not; give {{from: <layer>}} or {{last: <n>}}"
            )
        trainable = {"from": upper_blocks}
    names = [layer.name for layer in everything]
    if isinstance(trainable, str):
        found = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, trainable)]
        if not found:
            raise ConfigError(
                f"training.phases: trainable: no layer with weights of {backbone.name} is called {trainable!r}"
                f"{targets.nearest(trainable, [layer.name for layer in layers])}"
            )
        return found
    if "last" in trainable:
        return layers[-trainable["last"] :]
    first = trainable["from"]
    if first not in names:
        raise ConfigError(
            f"training.phases: trainable.from: {backbone.name} has no layer {first!r}{targets.nearest(first, names)}"
        )
    return [layer for layer in everything[names.index(first) :] if layer.weights]


def rate_scales(layers: Sequence[keras.layers.Layer], decay: float) -> dict[str, float]:
    """Return, by weight, what its learning rate is multiplied by: decay^n for the n-th trained layer from the top.

    Discriminative fine-tuning (Howard and Ruder 2018); the head, above them all, keeps the whole rate.
    """
    return {weight.path: decay**depth for depth, layer in enumerate(reversed(layers), 1) for weight in layer.weights}
