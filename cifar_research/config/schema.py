"""The sections of the config, with the types and defaults that Hydra enforces.

scripts/config_tables copies the comment behind or above each key into docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

# Validation metrics, see runs.metrics.
METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "many_accuracy", "medium_accuracy",
           "few_accuracy")  # fmt: skip
VIEWS = ("none", "flip", "flip_shift")  # modes of test-time augmentation


@dataclass(frozen=True)
class DataConfig:
    """Settings of every data set; `val` is a stratified split of the training images."""

    name: str = MISSING  # The data set; data=OPTION chooses it.
    dir: str | None = None  # The folder with the images; null searches the usual places.
    cache_dir: str | None = None  # Where decoded images and features are kept; null is the cache folder.
    val_fraction: float = 0.1  # The share of the training images that is held out for validation.
    validation: str = "holdout"  # Validate on held-out training images, or on the test images.
    # Chooses the images that are held out (for the test too, without `test/`), left out, or get wrong labels.
    split_seed: int = 0
    folds: int | None = None  # Hold out one of this number of folds of the training images; null is `val_fraction`.
    fold: int = 0  # The fold that is held out, from 0 on.
    train_size: int | None = None  # The number of training images, stratified; null is all of them.
    imbalance: str = "none"  # Leave out training images for a long tail of classes, or a step after half of them.
    imbalance_factor: float = 100.0  # How many times the images of the last class the first one has.
    sampling: str = "uniform"  # Draw images equally often, or classes (`balanced`), or between the two (`sqrt`).
    label_noise: str = "none"  # Give wrong labels to training images: any other class, or a similar one.
    label_noise_rate: float = 0.4  # The share of wrong labels: of all, or of a class that has a similar one.
    classes: list[str] | None = None  # Keep these classes, in this order; null is all of them.
    standardize: bool = False  # Subtract each channel's mean and divide by its standard deviation.
    drop_remainder: bool = False  # Leave out the last batch of an epoch if it is smaller than the others.

    @property
    def image_size(self) -> int:
        """Return the height and width in pixels."""
        return 32


@dataclass(frozen=True)
class CifarConfig(DataConfig):
    download: bool = True  # Download the images if they are in none of the usual places.
    labels_file: str | None = None  # A .npy file of labels for the training images, in the order of the data's files.
    labels_key: str | None = None  # The labels to take if the file has several, such as `worse_label` of CIFAR-10N.


@dataclass(frozen=True)
class ImagesConfig(DataConfig):
    image_size: int = 32  # Resize images to this height and width in pixels.
    test_fraction: float = 0.2  # The share that is held out for the test if there is no `test/`.
    max_damaged: float = 0.01  # The share of the images that may be damaged; one may be, unless this is 0.


@dataclass(frozen=True)
class SyntheticConfig(DataConfig):
    train_images: int = 10_000  # How many images are drawn for training and validation.
    test_images: int = 2_000  # How many images are drawn for the test.
    seed: int = 0  # The seed that the images are drawn from.


@dataclass
class PhaseConfig:
    """One phase of training; the head is always trained, `trainable` adds backbone layers."""

    epochs: int | None = None  # The phase's epochs; null is `training.epochs`.
    learning_rate: float | None = None  # The phase's learning rate; null is `optimizer.learning_rate`.
    # What of the backbone is trained: `none`, `all`, `upper`, `{last: n}`, `{from: layer}` or a pattern of layer names.
    trainable: Any = "all"
    learning_rate_decay_by_depth: float = 1.0  # Multiplies the learning rate once for each layer below the head.
    optimizer: str = "reset"  # `reset` clears the optimizer's state; `keep` takes it over from the phase before.


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop: duration, precision, devices, evaluation, logging and checkpoints."""

    epochs: int = 10  # The epochs of each phase without a value of its own.
    phases: dict[str, PhaseConfig] = field(default_factory=dict)  # The phases by name, in order.
    batch_size: int = 128  # Images in a training batch, of all devices together.
    eval_batch_size: int = 500  # Images in a batch of validation and test; it changes no score.
    steps_per_call: int = 1  # Training steps in one call of the compiled function; 20 or more is faster.
    precision: str = "float32"  # The type that layers compute in; weights stay float32.
    jit_compile: Any = "auto"  # Compile steps with XLA; `auto`: on one GPU, unless `deterministic` is true.
    deterministic: bool | None = None  # Deterministic kernels; null is on for a CPU without XLA, else off.
    threads: int | None = None  # CPU threads that TensorFlow uses; null is its own choice.
    strategy: str = "none"  # One device, all GPUs of this machine, or several machines given by TF_CONFIG.
    ema_decay: float | None = None  # Evaluate an exponential moving average of the weights with this decay.
    monitor: str = "accuracy"  # The validation metric that chooses the best epoch, ranks jobs and steers searches.
    patience: int | None = None  # Stop a phase after this number of epochs without a better one.
    # How many of the latest checkpoints are kept, beside the best; null is two, and one once the run has ended.
    keep_checkpoints: int | None = None
    log_every_steps: int = 50  # Steps between two points of TensorBoard's training curves.


@dataclass(frozen=True)
class EvaluationConfig:
    # Test-time augmentation: average the logits of the image and its mirror image (`flip`), and of shifts (`flip_shift`).
    views: str = "none"


@dataclass(frozen=True)
class BatchNormConfig:
    # Averages over steps (`moving`), corrected for their start (`debiased`), or means with the present weights (`precise`).
    statistics: str = "precise"
    images: int = 2000  # How many training images the `precise` means are over.


@dataclass(frozen=True)
class FeaturesConfig:
    """Whether the features of frozen layers are computed once and kept."""

    # How many augmented versions of each image are kept; 0 keeps none, null is 1, or 0 with augmentation.
    views: int | None = None


@dataclass(frozen=True)
class TensorBoardConfig:
    enabled: bool = True  # Write TensorBoard's files of a run; a sweep's table of them is always written.
    histograms: bool = False  # Write a histogram of every weight each epoch.
    profile_start_step: int | None = None  # Profile from this step on; null profiles nothing.
    profile_num_steps: int = 10  # How many steps are profiled.


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep runs its jobs; a single run ignores it."""

    on_error: str = "continue"  # What the sweep does when a job fails for good: run the others, or stop.
    retries: int = 1  # How often a failed job is tried again.
    trials: int | None = None  # The number of jobs of a search; null runs the whole grid.
    # Which jobs keep their weights and checkpoints once they have ended: all, the 10 best by validation, or none.
    keep: str = "best"
    time_limit: str | None = None  # Stop and save after this time, such as 45m, 8h or 2d; resume= continues.


@dataclass
class Config:
    name: str = MISSING  # Names the folder in `outputs/`; the experiment sets it, else the data set does.
    seed: int = 0  # Seeds weights, order, augmentation and dropout.
    # Your own packages that a `_target_` may name; only the command line can set it.
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
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    tracker: Any = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)


DATA_SECTIONS = {
    "cifar10": CifarConfig,
    "cifar100": CifarConfig,
    "images": ImagesConfig,
    "synthetic": SyntheticConfig,
}


def data_section(content: Mapping[str, Any], **changes: Any) -> DataConfig:
    """Return the data section of a plain mapping, as stored in a report, with changed values."""
    section = DATA_SECTIONS[content["name"]]
    names = {entry.name for entry in fields(section)}
    return section(**{key: value for key, value in {**content, **changes}.items() if key in names})


def _writable(section: type) -> DictConfig:
    """Return the section as a node that Hydra can merge into; frozen dataclasses forbid that."""
    node = OmegaConf.structured(section)
    nodes = [node]
    for parent in nodes:
        OmegaConf.set_readonly(parent, None)
        nodes += [child for key in parent if isinstance(child := parent._get_node(key), DictConfig)]
    return node


_store = ConfigStore.instance()
# Without a group, so that --help does not list them as options.
_store.store(name="schema", node=_writable(Config))
_store.store(name="schema_cifar", node=_writable(CifarConfig))
_store.store(name="schema_images", node=_writable(ImagesConfig))
_store.store(name="schema_synthetic", node=_writable(SyntheticConfig))
_store.store(name="schema_training", node=_writable(TrainingConfig))
