"""Write a picture of training images before and after an augmentation."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_research import augmentation, config
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.runtime import environment
from cifar_research.runtime.lazy import tf


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 2 user error."""
    parser = argparse.ArgumentParser(
        prog="python -m cifar_research.preview",
        description="Write a PNG of training images, and below each row of them the same images augmented.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides as for training")
    parser.add_argument("--out", type=Path, default=Path("outputs", "augmentation.png"), help="default: %(default)s")
    arguments = parser.parse_intermixed_args()
    settings = config.parse(arguments.overrides)
    train = datasets.load(settings.data).train
    environment.prepare(settings.training, settings.seed)
    rows = train.indices[:32]
    before = train.images[rows].astype(np.float32) / 255
    targets = tf.one_hot(train.labels[rows], int(train.labels.max()) + 1)
    after, _ = augmentation.compose(settings.transforms)(tf.constant(before), targets, tf.constant([settings.seed, 0]))
    picture = Image.fromarray(augmentation.grid(before, after.numpy()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # Enlarge three times: images of 32 x 32 pixels are too small to judge.
    picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST).save(arguments.out, format="PNG")
    print(arguments.out)


if __name__ == "__main__":
    main()
