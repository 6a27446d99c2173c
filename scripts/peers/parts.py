"""What the benchmark measures beside training: augmentation alone, start-up, and a sweep of eight cells."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweep_scale import sweep_scale
from worker import SCORED, UPPER

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SMALL = ["data=synthetic", "tensorboard.enabled=false"]


def pipeline(worker, quick, steps, rounds, precision, log):
    """Return images/s of the study's augmentation by three pipelines, and milliseconds a batch inside a step."""
    words, batch = ("step", "ours", "keras", "tf_image"), 128
    process = worker([sys.executable, HERE / "pipelines.py", "wide", "--images", batch * steps])
    process.answer()
    seconds = {word: [] for word in words}
    for number in range(rounds + 1):
        log(f"pipeline: round {number} of {rounds}")
        for word in words:
            answer = process.ask(word)
            if number:
                seconds[word].append(answer["seconds"])
    process.close()
    medians = {word: statistics.median(times) for word, times in seconds.items()}
    return {
        "seconds": seconds,
        "images_per_second": {word: batch * steps / median for word, median in medians.items()},
        "step_milliseconds": 1e3 * medians["step"] / steps,
    }


def start_up(worker, quick, steps, rounds, precision, log):
    """Return seconds from the command to the end of its first step, in float32 and without TensorBoard."""
    times = {"warm": [], "cold": []}
    overrides = [*SMALL, "data.train_images=128", "data.test_images=10", "data.val_fraction=0", "training.epochs=1"]
    rounds = 1 if quick else rounds
    # The first run does not count: it reads the files, which those that are warm find in memory.
    for number, kind in [(0, "warm"), *((number, kind) for number in range(1, rounds + 1) for kind in times)]:
        if kind == "cold" and not _forget_files():
            log("start-up: cold starts are not measured, since only root can clear the system's file cache")
            continue
        log(f"start-up: round {number} of {rounds}, {kind}")
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            began = time.time()
            command = [sys.executable, "-m", "cifar_research.train", "experiment=wide", *overrides]
            subprocess.run([*command, f"hydra.run.dir={run}"], cwd=ROOT, check=True, capture_output=True)
            if number:
                times[kind].append(min(path.stat().st_mtime for path in _written(run)) - began)
    return {"seconds": {kind: values for kind, values in times.items() if values}}


def _written(run):
    """Return the checkpoint's files: what a run of one step writes right after it."""
    return [path for path in (run / "checkpoints").iterdir() if path.is_file()]


def _forget_files():
    """Make the system forget the files it has read, so that a start reads them from the disk; False if it may not."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def sweep(worker, quick, steps, rounds, precision, log):
    """Return seconds of eight cells of `wide`, two epochs each, whole commands: ours by one and two jobs, and Keras's.

    All in the same precision and 20 steps a call, Keras's from tf.data.
    """
    images = 1_280 if quick else 12_800
    rates = ",".join(f"{0.001 * number:g}" for number in range(1, 9))
    base = [
        *SMALL,
        "experiment=wide",
        f"data.train_images={images}",
        f"data.test_images={min(images, SCORED)}",
        "data.val_fraction=0",
    ]
    base += ["training.epochs=2", f"training.precision={precision}", "training.steps_per_call=20"]
    same = ["--precision", precision, "--steps-per-call", 20, "--input", "tf.data"]
    seconds = {"ours, 1 job": [], "ours, 2 jobs": [], "keras.fit": []}
    for number in range(1, (1 if quick else rounds) + 1):
        for name, times in seconds.items():
            log(f"sweep: round {number}, {name}")
            began = time.perf_counter()
            if name == "keras.fit":
                process = worker([sys.executable, HERE / "keras_peer.py", "wide", "--images", images, *same])
                process.answer()
                process.ask("sweep")
                process.close()
            else:
                with tempfile.TemporaryDirectory() as folder:
                    overrides = [*base, f"optimizer.learning_rate={rates}", f"hydra.sweep.dir={folder}/sweep"]
                    overrides += [f"hydra.launcher.jobs={name.split()[1]}"]
                    command = [sys.executable, "-m", "cifar_research.train", "-m", *overrides]
                    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
    return {"images": images, "precision": precision, "seconds": seconds}


def memory(worker, quick, steps, rounds, precision, log):
    """Return the peak of each process that trains `first_version` for an epoch on as many images as CIFAR-10 has.

    All in the same precision and 50 steps a call.
    """
    images, peaks = 50_048, {}
    peers = [
        ("ours", "ours.py", "tf.data"),
        ("keras.fit, tf.data", "keras_peer.py", "tf.data"),
        ("keras.fit, numpy", "keras_peer.py", "numpy"),
    ]
    same = ["--images", images, "--precision", precision, "--steps-per-call", 50]
    for name, script, given in peers[: 2 if quick else 3]:
        log(f"memory: {name}")
        process = worker([sys.executable, HERE / script, "first_version", *same, "--input", given])
        process.answer()
        peaks[name] = process.ask("train")["peak_memory_bytes"]
        process.close()
    return {"images": images, "precision": precision, "peak_bytes": peaks}


def transfer(worker, quick, steps, rounds, precision, log):
    """Return seconds of fine-tuning the upper blocks of pretrained networks at 96 pixels: ours and keras.fit in turn."""
    batch, blocks = 32, 2 if quick else 8
    names = list(UPPER)[: 1 if quick else None]
    results = {"images": batch * blocks, "batch_size": batch, "seconds": {}}
    for name in names:
        processes = {}
        for kind, script in (("ours, kept", "ours.py"), ("ours", "ours.py"), ("keras.fit", "keras_peer.py")):
            for own in dict.fromkeys(["float32", precision]):
                words = [name, "--images", batch * blocks, "--batch-size", batch, "--precision", own]
                words += ["--input", "tf.data"]
                words += ["--keep"] if kind == "ours, kept" else []
                processes[f"{kind}, {own}"] = worker([sys.executable, HERE / script, *words])
        for process in processes.values():
            process.answer()
        results["seconds"][name] = {label: [] for label in processes}
        for number in range(rounds + 1):
            log(f"transfer: {name}, round {number} of {rounds}")
            for label, process in processes.items():
                seconds = process.ask("train")["seconds"]
                if number:
                    results["seconds"][name][label].append(seconds)
        for process in processes.values():
            process.close()
    return results


PARTS = {
    "pipeline": pipeline,
    "transfer": transfer,
    "start_up": start_up,
    "sweep": sweep,
    "memory": memory,
    "sweep_scale": sweep_scale,
}
