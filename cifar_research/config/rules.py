"""Rules: valid ranges, choices and combinations of the framework's own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_research.config import messages, phases, schema, targets
from cifar_research.config.contracts import Backbone
from cifar_research.config.identity import OPTION_GROUPS, flatten
from cifar_research.runtime.errors import ConfigError

_MOST = 2**31 - 1
# By key: which ends are included, the lowest and the highest value.
_RANGES: dict[str, tuple[str, float, float]] = {
    "seed": ("[]", 0, _MOST),
    "data.val_fraction": ("[)", 0, 1),
    "data.split_seed": ("[]", 0, _MOST),
    "data.train_size": ("[]", 1, _MOST),
    "data.image_size": ("[]", 8, 1024),
    "data.folds": ("[]", 2, 1000),
    "data.fold": ("[]", 0, 999),
    "data.imbalance_factor": ("[]", 1, 1e6),
    "data.label_noise_rate": ("[)", 0, 1),
    "data.test_fraction": ("()", 0, 1),
    "data.max_damaged": ("[]", 0, 1),
    "data.train_images": ("[]", 10, _MOST),
    "data.test_images": ("[]", 10, _MOST),
    "data.seed": ("[]", 0, _MOST),
    "batch_norm.images": ("[]", 1, _MOST),
    "features.views": ("[]", 0, 1000),
    "training.epochs": ("[]", 1, _MOST),
    "training.batch_size": ("[]", 1, _MOST),
    "training.eval_batch_size": ("[]", 1, _MOST),
    "training.steps_per_call": ("[]", 1, _MOST),
    "training.threads": ("[]", 1, 1024),
    "training.ema_decay": ("()", 0, 1),
    "training.patience": ("[]", 1, _MOST),
    "training.keep_checkpoints": ("[]", 1, _MOST),
    "training.log_every_steps": ("[]", 1, _MOST),
    "tensorboard.profile_start_step": ("[]", 0, _MOST),
    "tensorboard.profile_num_steps": ("[]", 1, _MOST),
    "sweep.retries": ("[]", 0, 100),
    "sweep.trials": ("[]", 1, 100_000),
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "data.validation": ("holdout", "test"),
    "data.imbalance": ("none", "exponential", "step"),
    "data.sampling": ("uniform", "balanced", "sqrt"),
    "data.label_noise": ("none", "symmetric", "asymmetric"),
    "batch_norm.statistics": ("moving", "debiased", "precise"),
    "evaluation.views": schema.VIEWS,
    "training.precision": ("float32", "bfloat16", "float16"),
    "training.jit_compile": (True, False, "auto"),
    "training.strategy": ("none", "mirrored", "multi_worker"),
    "training.monitor": schema.METRICS,
    "sweep.on_error": ("continue", "stop"),
    "sweep.keep": ("all", "best", "none"),
}

# A key, another one, and the values of that one with which the first has an effect.
_USED_WITH: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("data.val_fraction", "data.folds", (None,)),
    ("data.val_fraction", "data.validation", ("holdout",)),
    ("data.imbalance_factor", "data.imbalance", ("exponential", "step")),
    ("data.label_noise_rate", "data.label_noise", ("symmetric", "asymmetric")),
    ("batch_norm.images", "batch_norm.statistics", ("precise",)),
    ("features.views", "evaluation.views", ("none",)),
    ("tensorboard.histograms", "tensorboard.enabled", (True,)),
    ("tensorboard.profile_start_step", "tensorboard.enabled", (True,)),
)


def unknown_keys(config: DictConfig) -> list[str]:
    """Return a problem for each key that ~ has removed from the schema, or else that + has added."""
    present = set(config)
    removed = [entry.name for entry in fields(schema.Config) if entry.name not in present]
    removed += [f"hydra/{key}" for key in config.hydra if OmegaConf.is_missing(config.hydra, key)]
    if removed:
        return [messages.removed(key) for key in removed]
    data = OmegaConf.get_type(config.data) or schema.DataConfig
    sections: dict[str, Any] = {"": schema.Config, "data.": data}
    for name in ("training", "tensorboard", "evaluation", "batch_norm", "features", "sweep"):
        sections[f"{name}."] = OmegaConf.get_type(config[name])
    problems = []
    for prefix, section in sections.items():
        valid = {entry.name for entry in fields(section)}
        for key in map(str, OmegaConf.select(config, prefix[:-1])):
            if key not in valid and f"{prefix}{key}" != "hydra":
                value = str(OmegaConf.select(config, f"{prefix}{key}"))
                problems.append(messages.unknown_key(f"{prefix}{key}", value, config))
    if not OmegaConf.is_missing(config.data, "name") and schema.DATA_SECTIONS.get(config.data.name) is not data:
        problems.append(f"data.name: is set by the option; choose data={config.data.name}")
    return problems


def out_of_range(content: Mapping[str, Any]) -> list[str]:
    """Return a problem for each value that is out of range or not a valid choice."""
    flat = flatten(content)
    problems = [
        f"{key}: {problem}"
        for key, limits in _RANGES.items()
        if (problem := targets.range_problem(flat.get(key), *limits))
    ]
    for key, choices in _CHOICES.items():
        if key in flat and repr(flat[key]) not in map(repr, choices):  # 1 equals True
            problems.append(f"{key}: {targets.choice_problem(flat[key], choices)}")
    return problems


def without_effect(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Return {key: sentence} of the keys that these overrides set, and that other keys make useless."""
    if any(f"~{group}" in overrides for group in OPTION_GROUPS):  # of --from-run, which sets every key
        return {}
    given, flat = {word.lstrip("+").partition("=")[0] for word in overrides}, flatten(content)
    reasons = {
        key: f"with {other}={flat[other]}"
        for key, other, used_with in _USED_WITH
        if key in given and flat[other] not in used_with
    }
    for key in ("optimizer.learning_rate", "training.epochs"):
        name = key.rpartition(".")[2]
        if key in given and all(phase[name] is not None for phase in content["training"]["phases"].values()):
            reasons[key] = f"with a value of its own in each phase, training.phases.<phase>.{name}"
    for key in ("model.activation", "model.batch_norm"):
        if key in given and not content["model"].get("hidden", True):
            reasons[key] = "with model.hidden=[]"
    return {key: f"{key}={flat[key]} has no effect {reason}" for key, reason in reasons.items()}


def combinations(content: Mapping[str, Any]) -> list[str]:
    """Return a problem for each invalid combination of values."""
    data, training, problems = content["data"], content["training"], []
    if (
        training["patience"] is not None
        and not data["folds"]
        and data["val_fraction"] == 0
        and data["validation"] == "holdout"
    ):
        problems.append(
            "training.patience: early stopping needs validation images, and data.val_fraction=0 leaves none; set "
            "data.val_fraction=0.1 or training.patience=null"
        )
    if training["jit_compile"] is True and training["strategy"] != "none":
        problems.append(
            f"training.jit_compile: true cannot be combined with training.strategy={training['strategy']} (a step compiled "
            "by XLA cannot add up gradients over replicas); choose one of them"
        )
    if training["jit_compile"] is True and training["deterministic"]:
        problems.append(
            "training.deterministic: true cannot be combined with training.jit_compile=true (XLA has no deterministic "
            "gradient of max pooling); choose one of them"
        )
    if training["strategy"] == "multi_worker":
        from cifar_research.runtime.environment import is_chief

        try:
            is_chief(training["strategy"])  # raises if TF_CONFIG is invalid
        except ConfigError as error:
            problems.append(str(error))
    problems += folder_problems(data) + _fold_problems(data) + _label_problems(data)
    problems += phases.problems(training)
    return problems or _rates(content) + _warmup(content)


def _fold_problems(data: Mapping[str, Any]) -> list[str]:
    folds, fold = data["folds"], data["fold"]
    if folds is None:
        return [f"data.fold: {fold} needs data.folds, the number of folds; add it"] if fold else []
    if data["validation"] == "test":
        return [f"data.folds: {folds} does not work with data.validation=test; choose one of them"]
    if fold < folds:
        return []
    return [
        f"data.fold: {fold} is out of range; it must be at most {folds - 1}, and 'data.fold=range({folds})' sweeps all"
    ]


def _label_problems(data: Mapping[str, Any]) -> list[str]:
    file, key = data.get("labels_file"), data.get("labels_key")
    if file is None:
        return [f"data.labels_key: {key!r} needs data.labels_file; add it"] if key else []
    for other, unset in (("label_noise", "none"), ("classes", None)):
        if data[other] != unset:
            return [f"data.labels_file: does not work with data.{other}; choose one of them"]
    return []


def folder_problems(data: Mapping[str, Any]) -> list[str]:
    """Return the problem of the data section's folder, as a list of at most one sentence."""
    if data["name"] == "images" and data["dir"] is None:
        return ["data.dir: has no value; give the folder of the images: data.dir=<folder>"]
    if data["name"] == "synthetic" and data["dir"] is not None:
        return [
            f"data.dir: {data['dir']} is not used, since data=synthetic draws its images; add data=images, or remove it"
        ]
    return []


def _rates(content: Mapping[str, Any]) -> list[str]:
    return [
        f"training.phases.{phase.name}.learning_rate: has no value, and the optimizer has no learning_rate; give one"
        for phase in phases.plan(content)
        if phase.learning_rate is None
    ]


def _warmup(content: Mapping[str, Any]) -> list[str]:
    warmup, problems = content["schedule"].get("warmup_epochs"), []
    for phase in phases.plan(content):
        if isinstance(warmup, (int, float)) and warmup >= phase.epochs:
            is_own = content["training"]["phases"][phase.name]["epochs"] is not None
            key = f"training.phases.{phase.name}.epochs" if is_own else "training.epochs"
            problems.append(f"schedule.warmup_epochs: {warmup} is not below {key}={phase.epochs}; lower it")
    return list(dict.fromkeys(problems))


def image_problems(data: schema.DataConfig, backbone: Backbone) -> list[str]:
    """Return why the backbone does not take the data's images."""
    size, least = data.image_size, backbone.min_image_size
    if data.standardize and backbone.standardizes:
        return ["data.standardize: true cannot be combined with this backbone, which scales images itself; remove it"]
    if size < least:
        return [
            f"backbone: needs images of at least {least} x {least}, and these are {size} x {size}; raise data.image_size of "
            "data=images, or choose a smaller network"
        ]
    return []


def data_problems(content: Mapping[str, Any], num_train: int, num_val: int) -> list[str]:
    """Return the problems of a config with these numbers of training and validation images."""
    size, plan, problems = content["training"]["batch_size"], phases.plan(content), []
    steps_an_epoch = num_train // size if content["data"]["drop_remainder"] else -(-num_train // size)
    if not steps_an_epoch:
        return [
            f"data.drop_remainder: true leaves no batch of {size} in {num_train} training images; lower "
            "training.batch_size"
        ]
    first_profiled = content["tensorboard"]["profile_start_step"] or 0
    if first_profiled >= (steps := steps_an_epoch * sum(phase.epochs for phase in plan)):
        problems.append(
            f"tensorboard.profile_start_step: {first_profiled} is not among the {steps} steps of this run; lower it"
        )
    if content["training"]["patience"] is not None and not num_val:
        problems.append(
            "training.patience: early stopping needs validation images, and there are none; use more training images, "
            "or set training.patience=null"
        )
    warmup = content["schedule"].get("warmup_steps")
    for phase in plan:
        steps = steps_an_epoch * phase.epochs
        if isinstance(warmup, int) and warmup >= steps:
            problems.append(
                f"schedule.warmup_steps: {warmup} is not below the {steps} steps of phase {phase.name}; lower it"
            )
            break
    return problems
