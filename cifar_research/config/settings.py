"""Settings: a run's config, parsed once, with all values checked and plug-ins built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from cifar_research.config import messages, phases, rules, schema, targets
from cifar_research.config.composition import Composed, compose
from cifar_research.config.contracts import Backbone, Head, Loss, LossFunction, Tracker, Transform
from cifar_research.config.identity import PLUGIN_GROUPS, Identity, option_names, plain
from cifar_research.config.overrides import is_mapping_of, without_sweeps
from cifar_research.config.phases import Phase
from cifar_research.runtime.errors import ConfigError, refuse


@dataclass(frozen=True, eq=False)
class Settings:
    """The checked settings and plug-ins of a run.

    Framework sections are dataclasses of schema.py. The plug-ins (backbone to tracker) are the return values of
    their factories. content: the config as a plain mapping, as stored in report.json. options: the chosen option of
    each group. allowed: the packages whose factories may be called.
    """

    name: str
    seed: int
    data: schema.DataConfig
    training: schema.TrainingConfig
    evaluation: schema.EvaluationConfig
    batch_norm: schema.BatchNormConfig
    features: schema.FeaturesConfig
    tensorboard: schema.TensorBoardConfig
    phases: tuple[Phase, ...]
    backbone: Backbone
    head: Head
    loss: Loss
    optimizer: Any
    schedule: Callable[[Any, Any, Any], Any]
    transforms: Mapping[str, Transform]
    tracker: Tracker | None
    content: dict[str, Any]
    options: Mapping[str, str]
    allowed: frozenset[str]

    @cached_property
    def identity(self) -> Identity:
        return Identity(self.content)

    @property
    def total_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    @property
    def kept_views(self) -> int:
        """Return the views whose features below trained layers are kept; 0 recomputes each time.

        Test-time augmentation needs the images.
        """
        if self.evaluation.views != "none":
            return 0
        if self.features.views is None:
            return 0 if self.transforms else 1
        # Without augmentation all views are equal.
        return self.features.views if self.transforms else min(self.features.views, 1)

    @property
    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.content))


def parse(overrides: Sequence[str] = ()) -> Settings:
    """Parse command-line overrides; ConfigError has one line for each problem.

    Does not import TensorFlow, unless a user's factory does.
    """
    return parse_composed(compose(overrides))


def parse_composed(composed: Composed) -> Settings:
    """Parse a composed command line; ConfigError has one line for each problem."""
    single = without_sweeps(composed.overrides)
    if several := [word for word in composed.overrides if word not in single]:
        raise ConfigError(messages.several_values(several[0], composed.overrides))
    config, content = composed.config, plain(composed.config)
    refuse([messages.missing(key) for key in sorted(OmegaConf.missing_keys(OmegaConf.create(content)))])
    refuse(rules.out_of_range(content))
    names = ("data", "training", "evaluation", "batch_norm", "features", "tensorboard")
    sections: dict[str, Any] = {name: OmegaConf.to_object(config[name]) for name in names}
    plugins = checked_plugins(content, composed.allowed)
    return Settings(
        name=content["name"],
        seed=content["seed"],
        phases=phases.plan(content),
        content=content,
        options=_options(composed),
        allowed=composed.allowed,
        **sections,
        **plugins,
    )


def checked_plugins(
    content: Mapping[str, Any], allowed: frozenset[str], build: Callable[..., Any] = targets.build
) -> dict[str, Any]:
    """Return the built plug-ins of a config by their names in Settings.

    Raises ConfigError if a plug-in is invalid, or else a combination of values; it has one line for each problem.
    """
    built = _plugins(content, allowed, build)
    refuse(rules.combinations(content))
    plan, weights = phases.plan(content), targets.parameters(content["backbone"], allowed).get("weights")
    default = None if weights is None else weights.default
    problems = rules.image_problems(schema.data_section(content["data"]), built["backbone"])
    refuse(problems + phases.random_backbone_problems(plan[0], content["backbone"], default))
    return built


def _plugins(content: Mapping[str, Any], allowed: frozenset[str], build: Callable[..., Any]) -> dict[str, Any]:
    augmentation = content["augmentation"]
    if not isinstance(augmentation, Mapping):
        raise ConfigError(
            f"augmentation: {augmentation!r} is not a mapping of transforms; choose an option: augmentation=…"
        )
    nodes = {group: content[group] for group in (*PLUGIN_GROUPS, "tracker")}
    nodes |= {f"augmentation.{name}": node for name, node in augmentation.items() if node is not None}
    values, problems = dict[str, Any](), []
    for key, node in nodes.items():
        try:
            values[key] = build(key, node, allowed)
        except ConfigError as error:
            problems.append(str(error))
    refuse(problems)
    if not isinstance(values["tracker"], Tracker | None):
        raise ConfigError("tracker: the factory returned no tracker; return an object with start, epoch and finish")
    transforms = {name: Transform.of(values.pop(f"augmentation.{name}")) for name in augmentation if augmentation[name]}
    values |= {"backbone": Backbone.of(values["backbone"]), "head": Head.of(values.pop("model"))}
    return {**values, "loss": Loss.of(values["loss"]), "transforms": transforms}


def _options(composed: Composed) -> dict[str, str]:
    names = option_names(composed.config.hydra.runtime.choices)
    # A group has no option name if the command line sets its values directly, as --from-run does.
    changed = {word.lstrip("+~").partition("=")[0] for word in composed.overrides if word[:1] in "+~"}
    changed = {"training" if key.startswith("training.phases") else key for key in changed}
    return {group: name for group, name in names.items() if group not in changed}


def network(content: Mapping[str, Any], allowed: frozenset[str]) -> tuple[Backbone, Head]:
    """Return the untrained backbone and the head of a finished run; ConfigError if invalid.

    content: the run's config as stored in its report.
    """
    backbone = dict(content["backbone"])
    if "weights" in backbone:  # the file may be gone, and the run's own weights replace it
        backbone["weights"] = "none"
        if backbone.get("batch_norm") == "inference":  # affects training only, and requires pretrained weights
            backbone["batch_norm"] = None
    built = targets.build("backbone", backbone, allowed)
    return Backbone.of(built), Head.of(targets.build("model", content["model"], allowed))


def loss(content: Mapping[str, Any], allowed: frozenset[str]) -> LossFunction:
    """Return the loss that scores a finished run; ConfigError if it cannot be built."""
    return Loss.of(targets.build("loss", content["loss"], allowed)).function


def evaluation_data(content: Mapping[str, Any], overrides: Sequence[str]) -> schema.DataConfig:
    """Return the data section for evaluating a finished run; ConfigError if it is invalid.

    content: the run's config. overrides: data=OPTION, data.key=value and allow_targets=[…]. Another option than the
    run's starts from that option's defaults.
    """
    own = content["data"]
    refuse(
        [
            f"{word}: give its keys one by one, as in data.image_size=32"
            for word in overrides
            if is_mapping_of(word, ["data"])
        ]
    )
    option = next((word for word in overrides if word.startswith("data=")), f"data={own['name']}")
    keys = [word for word in overrides if not word.startswith("data=")]
    if any(word.startswith("data.name=") for word in keys):
        raise ConfigError("data.name: is set by the option; choose data=OPTION")
    config = compose([option, *keys]).config
    refuse([messages.missing(f"data.{key}") for key in OmegaConf.missing_keys(config.data)])
    data = schema.data_section(plain(config.data))
    given = {word.partition("=")[0].removeprefix("data.") for word in keys}
    changes: dict[str, Any] = {}
    if data.name == own["name"]:
        # The report is not trusted to choose a cache folder.
        changes |= {key: value for key, value in own.items() if key not in given | {"cache_dir"}}
    elif isinstance(data, schema.ImagesConfig) and "image_size" not in given:
        changes["image_size"] = schema.data_section(own).image_size
    # These are only for training.
    changes |= {"drop_remainder": False, "train_size": None, "imbalance": "none", "label_noise": "none"}
    changes |= {"labels_file": None, "labels_key": None} if isinstance(data, schema.CifarConfig) else {}
    data = schema.data_section(vars(data), **changes)
    refuse([*rules.out_of_range({"data": vars(data)}), *rules.folder_problems(vars(data))])
    return data
