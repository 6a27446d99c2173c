"""The sections of docs/study.md: the sweep of each, and the claims of the study that their runs test."""

from typing import NamedTuple

SEEDS = "seed=0,1,2"
SIZES = "backbone.convolutions=1,2"  # a block's, which the study does not state
TRANSFER = (
    "sweep=seeds",
    "experiment=transfer",
    "backbone=efficientnet_lite0",
    "data.train_size=2000",
    "data.val_fraction=0.02",
    "training.batch_size=32",
)
LONGER = ("sweep=seeds", "experiment=best", "training.epochs=30")


class Section(NamedTuple):
    """A sweep. name: of its folder; overrides: of scripts/train; quick: replace them in --quick, key by key.

    setting: what all its runs share, if the names of another section's runs have it.
    """

    name: str
    overrides: tuple[str, ...]
    quick: tuple[str, ...] = ()
    setting: str = ""


SECTIONS = (
    Section("first", ("sweep=seeds", "experiment=first_version,dropout", SEEDS)),
    Section("structure", ("sweep=seeds", "experiment=wide,enlarged", SEEDS)),
    Section("augmentation", (*LONGER, "augmentation=none,slides,[flip,shift]", SIZES, SEEDS)),
    Section(
        "augmentation_on_test",
        (*LONGER, "augmentation=[flip,shift]", SIZES, "data.validation=test", SEEDS),
        setting="augmentation=flip,shift",
    ),
    Section(
        "dropout_in_blocks",
        (*LONGER, "augmentation=[flip,shift]", "backbone.dropout=0.3", "model.dropout=0", SEEDS),
        setting="augmentation=flip,shift,dropout in blocks",
    ),
    Section("grid", ("sweep=hyperparameters", SEEDS), ("seed=0",)),
    Section("last", ("sweep=seeds", "experiment=best", SIZES, SEEDS)),
    Section("last_on_test", ("sweep=seeds", "experiment=best", SIZES, "data.validation=test", SEEDS)),
    Section("techniques", (*TRANSFER, "training=feature_extraction,fine_tuning,combined", SEEDS), ("backbone.image_size=32",)),
    Section("scratch", (*TRANSFER, "training=scratch", "backbone.weights=none", SEEDS), ("backbone.image_size=32",)),
    Section("perspectives", ("sweep=perspectives", "sweep.trials=30"), ("sweep.trials=3",)),
    Section(
        "best_trial",
        ("sweep=seeds", "experiment=wide", "batch_norm.statistics=precise", "optimizer=adamw",
         "optimizer.learning_rate=0.008663", "schedule=one_cycle", "augmentation=crop_flip", "model.dropout=0.3", SEEDS),
        setting="the best trial",
    ),
    Section(
        "transfer_augmentation",
        ("sweep=transfer_augmentation", *TRANSFER[2:], "features.views=5", SEEDS),
        ("backbone.image_size=32", "features.views=2"),
    ),
)  # fmt: skip
QUICK = ("data.train_size=3000", "training.epochs=1", "seed=0,1", "tensorboard.enabled=false")


class Claim(NamedTuple):
    """The runs of `better` score higher than those of `worse`.

    Each is a section and a part of its settings' names. Runs with one seed whose settings differ in this part alone
    are paired.
    """

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]


CLAIMS = (
    Claim("dropout helps", ("first", "experiment=dropout"), ("first", "experiment=first_version")),
    Claim("the improved structure helps", ("structure", "experiment=wide"), ("first", "experiment=dropout")),
    Claim(
        "the improved structure helps, with two convolutions a block",
        ("structure", "experiment=enlarged"),
        ("first", "experiment=dropout"),
    ),
    Claim("augmentation helps", ("augmentation", "augmentation=slides"), ("augmentation", "augmentation=none")),
    Claim(
        "augmentation helps, with mirror images and shifts alone",
        ("augmentation", "augmentation=flip,shift"),
        ("augmentation", "augmentation=none"),
    ),
    Claim("average pooling is better than max pooling", ("grid", "pooling=avg"), ("grid", "pooling=max")),
    Claim(
        "both techniques are better than feature extraction",
        ("techniques", "training=combined"),
        ("techniques", "training=feature_extraction"),
    ),
    Claim(
        "both techniques are better than fine-tuning",
        ("techniques", "training=combined"),
        ("techniques", "training=fine_tuning"),
    ),
)
# What the study does not state, and what each is worth.
LARGER, SMALLER, MIRRORED = "convolutions=2", "convolutions=1", "augmentation=flip,shift"
BEST_CELL = "pooling=avg,dropout=0.3,learning_rate=0.001,loss=mean_squared_error"
OPEN_POINTS = (
    Claim("two convolutions a block, not one", ("augmentation", LARGER), ("augmentation", SMALLER)),
    Claim(
        "two convolutions a block, not one, validated on the test images",
        ("augmentation_on_test", LARGER),
        ("augmentation_on_test", SMALLER),
    ),
    Claim("two convolutions a block, not one, without augmentation", ("last", LARGER), ("last", SMALLER)),
    Claim("`[flip,shift]`, not `slides`", ("augmentation", MIRRORED), ("augmentation", "augmentation=slides")),
    Claim(
        "dropout in each block, not before the output layer",
        ("dropout_in_blocks", "dropout in blocks"),
        ("augmentation", SMALLER),
    ),
    Claim("20 epochs, not 10", ("last", SMALLER), ("grid", BEST_CELL)),
    Claim("30 epochs, not 20", ("augmentation", f"augmentation=none,{SMALLER}"), ("last", SMALLER)),
)
# The study's perspective: transfer learning with augmentation.
TRANSFER_GAINS = tuple(
    Claim(
        f"`augmentation={name}`",
        ("transfer_augmentation", f"augmentation={name}"),
        ("transfer_augmentation", "augmentation=none"),
    )
    for name in ("flip", "slides", "crop_flip", "cutmix")
)
# What the study prints, by section and setting: validation accuracy. Its grid is in comparison/study_2021.csv.
PUBLISHED = {"last": {"convolutions=1": 0.8329, "convolutions=2": 0.8329}}
PUBLISHED["last_on_test"] = PUBLISHED["last"]
PUBLISHED["augmentation_on_test"] = {f"augmentation=flip,shift,{size}": 0.8329 for size in PUBLISHED["last"]}
# Sections that validate on the test images, as the study did, and those that hold images out.
ON_TEST = {"last_on_test": "last", "augmentation_on_test": "augmentation"}
