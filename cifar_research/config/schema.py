"""The sections of the config, with their types and defaults; Hydra holds presets and the command line against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

VIEWS = ("none", "flip", "flip_shift")  # of test-time augmentation


@dataclass(frozen=True)
class DataConfig:
    """What every data set takes; `val` is held out from the training images, stratified, by `split_seed`."""

    name: str = MISSING
    dir: str | None = None
    cache_dir: str | None = None
    val_fraction: float = 0.1
    validation: str = "holdout"
    split_seed: int = 0
    train_size: int | None = None
    classes: list[str] | None = None
    standardize: bool = False
    drop_remainder: bool = False

    @property
    def image_size(self) -> int:
        """Pixels, height and width."""
        return 32


@dataclass(frozen=True)
class CifarConfig(DataConfig):
    download: bool = True


@dataclass(frozen=True)
class ImagesConfig(DataConfig):
    image_size: int = 32
    test_fraction: float = 0.2
    max_damaged: float = 0.01  # share of the images that may be damaged and are left out; one may be unless it is 0


@dataclass(frozen=True)
class SyntheticConfig(DataConfig):
    train_images: int = 10_000
    test_images: int = 2_000
    seed: int = 0


@dataclass
class PhaseConfig:
    """One phase of a training. The head is always trained; `trainable` says what of the backbone is, too."""

    epochs: int | None = None  # None: training.epochs
    learning_rate: float | None = None  # None: optimizer.learning_rate
    trainable: Any = "all"  # none, all, upper, {last: n}, {from: layer}, or a pattern of layer names
    learning_rate_decay_by_depth: float = 1.0
    optimizer: str = "reset"  # or keep: what it has kept of each weight in the phase before
    schedule: str = "anew"  # or continue: one schedule over this phase and the ones before that it continues
    image_size: int | None = None  # train on images resized to so many pixels squared; None: as they are


@dataclass(frozen=True)
class TrainingConfig:
    """The loop: how long, how precise, on what, and when it evaluates, logs, saves and stops."""

    epochs: int = 10  # of each phase that does not say otherwise
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    batch_size: int = 128
    eval_batch_size: int = 500
    steps_per_call: int = 1
    precision: str = "float32"
    jit_compile: bool = False
    deterministic: bool | None = None  # None: on where it is cheap, which is on a CPU without jit_compile
    threads: int | None = None
    strategy: str = "none"
    ema_decay: float | None = None
    monitor: str = "accuracy"
    patience: int | None = None
    keep_checkpoints: int = 2
    log_every_steps: int = 50


@dataclass(frozen=True)
class EvaluationConfig:
    views: str = "none"  # flip, flip_shift: logits averaged over views of each image, see augmentation/tta.py


@dataclass(frozen=True)
class FeaturesConfig:
    """How a phase with a frozen backbone comes by its features."""

    views: int | None = None  # kept of each image; 0: computed every time; None: 1, and 0 with augmentation


@dataclass(frozen=True)
class TensorBoardConfig:
    enabled: bool = True
    histograms: bool = False
    profile_start_step: int | None = None
    profile_num_steps: int = 10


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep goes about its jobs; a run alone takes no notice of it."""

    on_error: str = "continue"
    retries: int = 1
    trials: int | None = None  # None: the whole grid; else a search of so many


@dataclass
class Config:
    name: str = MISSING
    seed: int = 0
    # The user's own packages that a _target_ may name. It counts on the command line alone, see targets.py.
    allow_targets: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Any = MISSING
    backbone: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)


DATA_SECTIONS = {
    "cifar10": CifarConfig,
    "cifar100": CifarConfig,
    "images": ImagesConfig,
    "synthetic": SyntheticConfig,
}


def data_section(content: Mapping[str, Any], **changes: Any) -> DataConfig:
    """Return the section of that content, the plain mapping that a report keeps, with some values changed."""
    section = DATA_SECTIONS[content["name"]]
    names = {entry.name for entry in fields(section)}
    return section(**{key: value for key, value in {**content, **changes}.items() if key in names})


def _writable(section: type) -> DictConfig:
    """Return the section for Hydra to merge options into, which OmegaConf refuses for frozen dataclasses."""
    node = OmegaConf.structured(section)
    nodes = [node]
    for parent in nodes:
        OmegaConf.set_readonly(parent, None)
        nodes += [child for key in parent if isinstance(child := parent._get_node(key), DictConfig)]
    return node


_store = ConfigStore.instance()
_store.store(name="schema", node=_writable(Config))
_store.store(group="schema/data", name="cifar", node=_writable(CifarConfig))
_store.store(group="schema/data", name="images", node=_writable(ImagesConfig))
_store.store(group="schema/data", name="synthetic", node=_writable(SyntheticConfig))
_store.store(group="schema/training", name="training", node=_writable(TrainingConfig))
