"""Train one of the study's five models with plain `keras.fit`, as the yardstick for our own loop.

    .venv/bin/python scripts/peers/keras_fit.py wide FOLDER [--epochs 10] [--seed 0] [--json OUT.json]

FOLDER holds `cifar-10-batches-bin`. Nothing of cifar_research is imported: the model, the data and the
loop are what a Keras user would write, so that the comparison is with Keras and not with ourselves.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in runs

import keras
import numpy as np
from keras_peer import study


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    def batch(name):
        rows = np.fromfile(folder / "cifar-10-batches-bin" / name, np.uint8).reshape(-1, 3073)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images.astype("float32") / 255, keras.utils.to_categorical(rows[:, 0], 10)

    parts = [batch(f"data_batch_{i}.bin") for i in range(1, 6)]
    return (*(np.concatenate(p) for p in zip(*parts, strict=True)), *batch("test_batch.bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=["first_version", "dropout", "wide", "enlarged", "augmented"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    images, targets, test_images, test_targets = read(args.folder)
    # The same share is held out as in our runs; the best epoch by validation is the one that is tested.
    held_out = np.random.default_rng(args.seed).permutation(len(images)) < len(images) // 10
    model = study(args.preset)
    model.compile(keras.optimizers.Adam(0.005), "mean_squared_error", metrics=["accuracy"])
    started, epoch_seconds = time.perf_counter(), []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_test_begin(self, logs=None):
            epoch_seconds.append(time.perf_counter() - self.began)

    best = keras.callbacks.EarlyStopping("val_accuracy", patience=args.epochs, mode="max", restore_best_weights=True)
    history = model.fit(
        images[~held_out],
        targets[~held_out],
        batch_size=128,
        epochs=args.epochs,
        validation_data=(images[held_out], targets[held_out]),
        callbacks=[Clock(), best],
        verbose=2,
    )
    seconds = time.perf_counter() - started
    _, accuracy = model.evaluate(test_images, test_targets, batch_size=500, verbose=0)
    result = {
        "preset": args.preset,
        "epochs": args.epochs,
        "seed": args.seed,
        "test_accuracy": round(accuracy, 4),
        "val_accuracy": round(max(history.history["val_accuracy"]), 4),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(float((~held_out).sum() / np.median(epoch_seconds))),
        "parameters": model.count_params(),
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
