"""The config: where conf/ is, how it is composed, and the check that a bad one fails before TensorFlow is imported."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_research.config import composition, messages, phases, targets, trust
from cifar_research.config.composition import HYDRA_ERRORS as HYDRA_ERRORS
from cifar_research.config.composition import config_dir as config_dir
from cifar_research.config.composition import flatten as flatten
from cifar_research.config.contracts import Backbone
from cifar_research.config.schema import (
    VIEWS,
    CifarConfig,
    Config,
    EvaluationConfig,
    FeaturesConfig,
    ImagesConfig,
    SweepConfig,
    SyntheticConfig,
    TensorBoardConfig,
    TrainingConfig,
)
from cifar_research.runtime.errors import ConfigError

PLUGIN_GROUPS = ("backbone", "model", "loss", "optimizer", "schedule")
OPTION_GROUPS = (*PLUGIN_GROUPS, "augmentation", "training")  # whose options have names that are typed
# A run may go on in its folder although these differ: none of them changes what is computed.
FREE_KEYS = (
    "name", "data.dir", "data.cache_dir", "data.download", "data.max_damaged", "training.keep_checkpoints",
    "training.log_every_steps", "tensorboard", "sweep", "allow_targets",
)  # fmt: skip


def data_set_name(*, _root_: DictConfig) -> str:
    """Return what a config's data set is called as a folder's name: `cifar10`, or `pets` of the images in ~/pets/."""
    try:
        name, folder = _root_.data.name, _root_.data.dir
    except OmegaConfBaseException:
        return "run"  # and what is wrong is said of its own key
    if name != "images" or folder is None:
        return name
    last = os.path.basename(os.path.abspath(os.path.expanduser(folder)))
    return re.sub(r"[^\w.+-]+", "_", last).strip("._") or name


OmegaConf.register_new_resolver("data_set_name", data_set_name, replace=True)  # of conf/config.yaml


def compose(overrides: Sequence[str] = (), *, with_hydra: bool = False, mode: RunMode = RunMode.RUN) -> DictConfig:
    """Return the config that these command-line overrides compose; ConfigError says what is wrong with them.

    Every ${hydra:…} is replaced by its value. What the overrides say of allow_targets is allowed in this process from
    then on, and refused if a file says it; so is what a file tells Hydra to run. mode: see composition.compose.
    """
    overrides = composition.with_texts(overrides)
    single = composition.without_sweeps(overrides) if mode is RunMode.MULTIRUN else overrides
    try:
        cfg = composition.compose(overrides, mode)
        problems = trust.problems(cfg, single)
        if not problems:
            composition.resolve_hydra(cfg)
    except composition.HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, single)) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds for files that hold something else
        problem = messages.wrong_override(single)
        if problem is None and type(error) is ValueError:  # of resolve_hydra
            problem = str(error)
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        unknown = f"{' '.join(overrides)}: cannot be composed ({reason}); look at the files it names"
        raise ConfigError(problem or unknown) from error
    if problems:
        raise ConfigError("\n".join(problems))
    if not with_hydra:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg


def transforms(cfg: DictConfig) -> dict[str, Any]:
    """Return the augmentation's transforms by name, in the order given; those set to null are left out."""
    return {name: targets.instantiate(node) for name, node in cfg.augmentation.items() if node is not None}


def check(cfg: DictConfig) -> None:
    """Raise ConfigError, one line a mistake, if a run of this config could not work.

    Ranges and choices of the framework's sections, every plug-in node against its factory's signature and
    the factory's own rules, and combinations. Imports no TensorFlow, unless a factory of the user's does.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True)
        missing = sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException as error:
        raise ConfigError(messages.explain(error, [])) from error
    if missing:
        raise ConfigError("\n".join(map(messages.missing, missing)))
    # What cannot be read further on comes first.
    if problems := [*_check_keys(cfg), *check_values(cfg)]:
        raise ConfigError("\n".join(problems))
    problems = _check_combinations(cfg)
    nodes = [(group, cfg[group]) for group in PLUGIN_GROUPS]
    if isinstance(cfg.augmentation, DictConfig):
        nodes += [(f"augmentation.{name}", node) for name, node in cfg.augmentation.items() if node is not None]
    else:
        problems.append(f"augmentation: {cfg.augmentation!r} is not a mapping from names to transforms")
    for key, node in nodes:
        problems += targets.check(key, node)
    if not problems:
        problems += _check_image_size(cfg) + phases.check_weights(cfg)
    if problems:
        raise ConfigError("\n".join(problems))


_MOST = 2**31 - 1
# Lowest and highest value by key, each in or out by the sign.
_RANGES: dict[str, tuple[str, float, float]] = {
    "seed": ("[]", 0, _MOST),
    "data.val_fraction": ("[)", 0, 1),
    "data.split_seed": ("[]", 0, _MOST),
    "data.train_size": ("[]", 1, _MOST),
    "data.image_size": ("[]", 8, 1024),
    "data.test_fraction": ("()", 0, 1),
    "data.max_damaged": ("[]", 0, 1),
    "data.train_images": ("[]", 10, _MOST),
    "data.test_images": ("[]", 10, _MOST),
    "data.seed": ("[]", 0, _MOST),
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
_CHOICES = {
    "data.validation": ("holdout", "test"),
    "evaluation.views": VIEWS,
    "training.precision": ("float32", "bfloat16", "float16"),
    "training.strategy": ("none", "mirrored", "multi_worker"),
    "training.monitor": ("accuracy", "loss"),
    "sweep.on_error": ("continue", "stop"),
}


def _check_keys(cfg: DictConfig) -> list[str]:
    """Refuse keys that a + on the command line has added to the framework's own sections."""
    problems = []
    sections = {"data": OmegaConf.get_type(cfg.data), "training": TrainingConfig, "tensorboard": TensorBoardConfig}
    sections |= {"evaluation": EvaluationConfig, "features": FeaturesConfig, "sweep": SweepConfig}
    for prefix, schema in {"": Config, **sections}.items():
        valid = [entry.name for entry in fields(schema)]
        for key in cfg[prefix] if prefix else cfg:
            if key not in valid:
                full = f"{prefix}.{key}" if prefix else key
                problems.append(messages.unknown_key(full, str(OmegaConf.select(cfg, full)), _without(cfg, full)))
    names = {CifarConfig: ("cifar10", "cifar100"), ImagesConfig: ("images",), SyntheticConfig: ("synthetic",)}
    valid = names.get(sections["data"], ())
    if cfg.data.name not in valid:
        problems.append(
            f"data.name: {cfg.data.name!r} does not go with these keys; choose data={cfg.data.name} instead"
        )
    return problems


def _without(cfg: DictConfig, key: str) -> DictConfig:
    rest = OmegaConf.to_container(cfg, resolve=False)
    section, _, last = key.rpartition(".")
    del (rest[section] if section else rest)[last]
    return OmegaConf.create(rest)


def _check_image_size(cfg: DictConfig) -> list[str]:
    """Return what is wrong with the size of the images, a sentence each, for what the backbone takes."""
    size, backbone = OmegaConf.select(cfg, "data.image_size") or 32, Backbone.of(targets.instantiate(cfg.backbone))
    if cfg.data.standardize and backbone.standardizes:
        return ["data.standardize: true does not go with this backbone, which has a preprocessing of its own"]
    least = backbone.min_image_size
    for name, phase in cfg.training.phases.items():
        if phase.image_size is None:
            continue
        if not least <= phase.image_size <= size:
            return [
                f"training.phases.{name}.image_size: {phase.image_size} is out of range; it must be at least {least}, "
                f"which the backbone needs, and at most {size}, the images' own"
            ]
        if phase.image_size != size and not backbone.takes_any_size:
            return [
                f"training.phases.{name}.image_size: {phase.image_size} needs a backbone that says that it takes images of "
                "any size (takes_any_size); leave it out"
            ]
        if cfg.model.get("pooling") == "flatten":
            return [
                f"training.phases.{name}.image_size: {phase.image_size} needs a head that takes maps of any size; "
                "set model.pooling=avg or max"
            ]
    if size < least:
        return [
            f"backbone: takes images of {least} x {least} or more, and these have {size} x {size}; give it fewer blocks"
        ]
    return []


def check_values(cfg: DictConfig) -> list[str]:
    """Return what is out of range or no choice in the framework's own sections, a sentence each, by its key."""
    problems = []
    for key, (ends, low, high) in _RANGES.items():
        if problem := targets.range_problem(OmegaConf.select(cfg, key), ends, low, high):
            problems.append(f"{key}: {problem}")
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in choices:
            hint = targets.nearest(str(value), choices, most=0)
            problems.append(f"{key}: {value!r} is not one of {', '.join(choices)}{hint}")
    return problems


def _check_combinations(cfg: DictConfig) -> list[str]:
    problems, training = [], cfg.training
    no_validation = cfg.data.val_fraction == 0 and cfg.data.validation == "holdout"
    if no_validation and training.patience is not None:
        problems.append(
            "training.patience: early stopping watches validation, and data.val_fraction=0 leaves none; "
            "hold some images out or set training.patience=null"
        )
    if training.jit_compile and training.strategy == "multi_worker":
        problems.append(
            "training.jit_compile: true does not work with training.strategy=multi_worker (XLA compiles one "
            "device's step, and its all-reduce cannot cross machines); choose one of them"
        )
    if training.jit_compile and training.deterministic:
        problems.append(
            "training.deterministic: true does not work with training.jit_compile=true (XLA has no deterministic "
            "gradient of max pooling); choose one of them"
        )
    if training.strategy == "multi_worker":
        from cifar_research.runtime.environment import is_chief  # which imports this module

        try:
            is_chief(training.strategy)  # reads TF_CONFIG
        except ConfigError as error:
            problems.append(str(error))
    warmup = OmegaConf.select(cfg, "schedule.warmup_epochs")
    problems += phases.check(training)
    plan = [] if problems else phases.plan(cfg)
    for number, phase in enumerate(plan):
        epochs = sum(plan[n].epochs for n in phases.schedule_span(plan, number))
        if isinstance(warmup, (int, float)) and warmup >= epochs:
            key = (
                "training.epochs"
                if training.phases[phase.name].epochs is None
                else f"training.phases.{phase.name}.epochs"
            )
            problems.append(f"schedule.warmup_epochs: {warmup} leaves nothing of {key}={epochs}; make it shorter")
    if cfg.data.name == "images" and cfg.data.dir is None:
        problems.append("data.dir: has no value; data=images needs the folder, data.dir=<folder>")
    return problems


def computed(cfg: Any) -> dict[str, Any]:
    """Return the flat config without what may differ between two halves of one run."""
    found = {key: value for key, value in flatten(cfg).items() if not f"{key}.".startswith(free_prefixes(cfg))}
    # A flat mapping is compared by key, and augmentations are applied in their order, as phases are gone through.
    found["augmentation"] = [name for name, node in cfg["augmentation"].items() if node is not None]
    if len(order := list(cfg["training"]["phases"])) > 1:
        found["phases"] = order
    return found


def free_prefixes(cfg: Any) -> tuple[str, ...]:
    """Return FREE_KEYS as prefixes; a folder of images is the data set, others are the same wherever they lie."""
    return tuple(f"{key}." for key in FREE_KEYS if key != "data.dir" or cfg["data"]["name"] != "images")


def config_hash(cfg: Any) -> str:
    """Return 12 hex digits that are the same for configs that compute the same."""
    return hashlib.sha256(json.dumps(computed(cfg), sort_keys=True).encode()).hexdigest()[:12]


def option_names(choices: Any) -> dict[str, str]:
    """Return the options chosen for OPTION_GROUPS, from Hydra's choices, the words of a command line or a report.

    Several options of a group are joined by +. A report's may be anything; what is no mapping says nothing.
    """
    if isinstance(choices, (list, ListConfig)):
        choices = dict(word.partition("=")[::2] for word in choices if isinstance(word, str))
    if not isinstance(choices, (Mapping, DictConfig)):
        return {}
    known = {group: str(choices[group]) for group in OPTION_GROUPS if choices.get(group) is not None}
    return {group: re.sub(r"[\[\]'\" ]", "", choice).replace(",", "+") for group, choice in known.items()}


def settings(made: dict[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return {key: value} of what a run computes, as one would say it.

    A group is the name of its option, if names has it; else its factory's, `loss` = `mean_squared_error`, or the
    application it builds, or of `augmentation` its transforms, `flip+shift`, and of `training` its phases,
    `head+backbone`.
    """
    flat = flatten(made)
    free = tuple(key for key in free_prefixes(made) if key != "name.")
    # By the group's own name; those of the backbone are what an application brings with it.
    said = ("application", "module", "min_image_size") if "application" in made["backbone"] else ()
    left_out = ("_target_", *(f"backbone.{key}" for key in said))
    told = {key: value for key, value in flat.items() if not f"{key}.".startswith(free) and not key.endswith(left_out)}
    for group in PLUGIN_GROUPS:
        told[group] = str(made[group].get("application") or targets.name(made[group]["_target_"]))
    told["training"] = "+".join(made["training"]["phases"])
    told["augmentation"] = "+".join(name for name, node in made["augmentation"].items() if node) or "none"
    return told | dict(names or {})


def differences(before: Mapping[str, Any], cfg: Any) -> dict[str, tuple[Any, Any]]:
    """Return {key: (before, now)} of what two configs compute otherwise.

    A folder of images may have moved: by their fingerprint they are known to be the same.
    """
    old, new = computed(before), computed(cfg)
    changed = {
        key: (old.get(key, "no such key"), new.get(key, "no such key"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, MISSING) != new.get(key, MISSING)
    }
    if "data.name" not in changed:
        changed.pop("data.dir", None)
    return changed


def refuse_difference(before: Mapping[str, Any], cfg: DictConfig, run_dir: Path) -> None:
    """Raise ConfigError, naming the keys, if a run begun with config `before` cannot go on with `cfg`."""
    changed = [
        f"{key}: this run has {old!r}, the command says {new!r}" for key, (old, new) in differences(before, cfg).items()
    ]
    if changed:
        advice = f"The run in {run_dir} was begun with another config; give it back, or choose another hydra.run.dir."
        raise ConfigError("\n".join([*changed, advice]))
