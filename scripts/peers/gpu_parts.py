"""The parts of gpu_report.py: each prints a line of JSON for each row of its table."""

import argparse
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmark
from benchmark import HERE, ROOT, Peer
from time_to_accuracy import interval

# Models and batches, the most important first: the last ones are measured if there is time.
MODELS = [("wide", 512), ("fast", 512), ("fast", 2000), ("wide", 2000)]
MODELS += [(model, batch) for model in ("first_version", "augmented") for batch in (512, 2000)]
SEEDS = [0, 1, 2, 3, 4]


def print_row(**columns):
    print(json.dumps(columns), flush=True)


def environment(args):
    from cifar_research.runtime import environment, gpus

    if driver := shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        for line in subprocess.run([driver, *query], capture_output=True, text=True).stdout.splitlines():
            print_row(what="card, driver, memory", value=line)
    seen = environment.import_tensorflow()
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    print_row(what="TensorFlow", value=tf.__version__)
    for key in ("cuda_version", "cudnn_version"):
        print_row(what=f"built for {key.removesuffix('_version')}", value=build.get(key, "none"))
    print_row(what="GPUs that TensorFlow sees", value=", ".join(gpu.name for gpu in seen) or "none")
    if not seen:
        print_row(what="why", value=gpus.why_unused() or "nvidia-smi lists no card: install NVIDIA's driver")
    else:
        tf.nn.conv2d(tf.ones([1, 8, 8, 8]), tf.ones([3, 3, 8, 8]), 1, "SAME")  # loads cuDNN
        tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64]))
        maps = Path("/proc/self/maps").read_text()
        for path in dict.fromkeys(re.findall(r"\S*/lib(?:cudart|cudnn|cublas|cuda)\.so\S*", maps)):
            print_row(what="library", value=path)


def peers(args):
    """Return what is compared on each model."""
    ours = functools.partial(Peer, kind="ours", compiles=True)
    if args.small:
        return [ours("ours, float32, one program of 100", precision="float32", steps_per_call=100),
                Peer("keras.fit, float32", "keras", "float32", 100, "tf.data")]  # fmt: skip
    every = [
        ours("ours, bfloat16, one program of 100", precision="bfloat16", steps_per_call=100),
        ours("ours, bfloat16, one program of 10", precision="bfloat16", steps_per_call=10),
        ours("ours, bfloat16, a program a step", precision="bfloat16"),
        Peer("ours, bfloat16, operations", "ours", "bfloat16", 100),
        ours("ours, float32, one program of 100", precision="float32", steps_per_call=100),
        ours("ours, float16, one program of 100", precision="float16", steps_per_call=100),
        Peer("keras.fit, bfloat16", "keras", "bfloat16", 100, "tf.data"),
        Peer("keras.fit, float32", "keras", "float32", 100, "tf.data"),
        Peer("PyTorch, bfloat16", "torch", "bfloat16"),
        Peer("PyTorch, bfloat16, compiled", "torch", "bfloat16", compiles=True),
        Peer("PyTorch, bfloat16, CUDA graphs", "torch", "bfloat16", compiles=True, cuda_graphs=True),
    ]
    return [peer for peer in every if peer.kind != "torch" or args.torch_python]


def speed(args):
    """Let the peers take turns on each model and batch: medians of rounds, and the shares of what the card can do."""
    models, steps, rounds = ([("first_version", 8)], 2, 1) if args.small else (MODELS, 100, 3)
    pythons = {"ours": sys.executable, "keras": sys.executable, "torch": args.torch_python}
    asked = {"ours": ["train", "matrix", "copy"], "keras": ["train"], "torch": ["train"]}
    for model, batch in models:
        for peer in benchmark.training(pythons, peers(args), model, batch, steps, rounds, asked, benchmark.log):
            if peer.failure:
                print_row(model=model, batch=batch, peer=peer.name, failure=peer.failure)
                continue
            seconds = statistics.median(peer.train)
            row = {"images/s": batch * steps / seconds, "ms a step": 1e3 * seconds / steps}
            print_row(model=model, batch=batch, peer=peer.name, **row, **_shares(peer, batch * steps, steps / seconds))


def _shares(peer, images, steps_per_second):
    """Return the shares of the matrix rate and of the bandwidth that were measured beside, for our own peers."""
    if peer.kind != "ours":
        return {}
    rate = peer.facts["matrix_flops"] / statistics.median(peer.matrix)
    bandwidth = peer.facts["copied_bytes"] / statistics.median(peer.copy)
    flops = 3 * peer.facts["forward_flops"] * images / statistics.median(peer.train)
    return {
        "% of the matrix rate": 100 * flops / rate,
        "% of the bandwidth": 100 * peer.facts["step_bytes"] * steps_per_second / bandwidth,
        "TFLOP/s of products": rate / 1e12,
        "GB/s copied": bandwidth / 1e9,
    }


def pipeline(args):
    """Divide a step with its pipeline and augmentation by a step on one batch that is held on the device."""
    options = sorted(path.stem for path in (ROOT / "conf" / "augmentation").glob("*.yaml"))
    models, batch, steps, rounds = (["first_version"], 8, 2, 1) if args.small else (["augmented", "fast"], 512, 200, 3)
    same = ["--batch-size", batch, "--images", batch * steps, "--steps-per-call", min(steps, 100)]
    same += (
        ["--device", "/CPU:0", "--override", "augmentation=flip"]
        if args.small
        else ["--compile", "--precision", "bfloat16"]
    )
    variants = {
        "data on the device": [],
        "batches copied ahead of time": ["--from-host"],
        "without augmentation": ["--override", "augmentation=none"],
    }
    for model in models:
        command = [sys.executable, HERE / "ours.py", model, *same]
        workers = {name: benchmark.Worker([*command, *more]) for name, more in variants.items()}
        for process in workers.values():
            process.answer()
        for word in ("train", "held"):  # at once, since compiling takes long
            for process in workers.values():
                process.say(word)
            for process in workers.values():
                process.answer()
        seconds = {name: {"train": [], "held": []} for name in workers}
        for _ in range(rounds):
            for name, process in workers.items():
                for word in ("train", "held"):
                    seconds[name][word].append(process.ask(word)["seconds"])
        bare = statistics.median(seconds["without augmentation"]["held"])
        for name in ("data on the device", "batches copied ahead of time"):
            step, held = (statistics.median(seconds[name][word]) for word in ("train", "held"))
            ratios = {"over a held batch": step / held, "over a held batch without augmentation": step / bare}
            print_row(what=f"{model}, {name}", **{"ms a step": 1e3 * step / steps}, **ratios)
        for process in workers.values():
            process.close()
    _augmentations(["flip", "cutmix"] if args.small else options, batch, 2 if args.small else 50)


def _augmentations(options, batch, times):
    """Time each option of the group `augmentation` alone, compiled by XLA, on images that are on the device."""
    from cifar_research import augmentation, config
    from cifar_research.runtime import environment

    environment.import_tensorflow()
    import tensorflow as tf

    images, targets = tf.random.uniform([batch, 32, 32, 3]), tf.one_hot(tf.range(batch) % 10, 10)
    for option in options:
        transform = augmentation.compose(config.parse([f"augmentation={option}"]).transforms)

        # Each pass takes the images of the one before, so that XLA can leave out none of them.
        @tf.function(jit_compile=True, autograph=False)
        def repeated(images, targets, transform=transform):
            def once(number, images, targets):
                seed = tf.stack([0, number])
                return number + 1, *transform(images, targets, seed, seed)

            return tf.while_loop(lambda number, *_: number < times, once, [0, images, targets])[1]

        float(repeated(images, targets)[0, 0, 0, 0])
        began = time.perf_counter()
        float(repeated(images, targets)[0, 0, 0, 0])
        print_row(what=f"augmentation={option}, alone", **{"ms a step": 1e3 * (time.perf_counter() - began) / times})


def _trained(args, *overrides):
    """Train with this framework, in this process; return the report, with its history read."""
    import cifar_research

    fixed = [f"data.dir={args.folder}", "tensorboard.enabled=false"]
    if args.small:
        fixed += ["training.epochs=1", "training.batch_size=20", "training.steps_per_call=3", "backbone.filters=[8]"]
        fixed += [f"data.cache_dir={args.folder}"]
    with tempfile.TemporaryDirectory() as folder:
        report = cifar_research.train([*overrides, *fixed], Path(folder, "run"), quiet=True)
        assert report.history  # a property that reads the file once, while the folder is there
        return report


def accuracy(args):
    """Train `fast` with each seed.

    Without compilation: all but imports, data, tests and the compilation, so building, whitening and saving count.
    """
    runs = []
    for seed in SEEDS[:1] if args.small else SEEDS:
        more = ["training.precision=float32"] if args.small else []
        report = _trained(args, "experiment=fast", "training.steps_per_call=1000", f"seed={seed}", *more)
        seconds, rate = report["seconds"], report["images_per_second"]
        before = seconds["total"] - seconds["train"] - seconds["evaluate"]
        first_call = min(1000, report["steps"] // report["epochs"]) * report["config"]["training"]["batch_size"]
        compiling = rate and seconds["first_step"] - first_call / rate
        runs.append(
            {
                "test accuracy": report["test"]["accuracy"],
                "s of training": seconds["train"],
                "s without compilation": rate
                and seconds["train"] + before - seconds["import"] - seconds["data"] - compiling,
                "s of the first call": seconds["first_step"],
                "s before it, and of saving": before,
            }
        )
        print_row(seed=seed, **runs[-1])
    _print_summary(runs)


def pytorch(args):
    """Train airbench94_muon with each seed, compiled before in a training that does not count."""
    runs, seeds = [], SEEDS[:1] if args.small else SEEDS
    command = [args.torch_python, HERE / "torch_recipe.py", args.folder, "--seeds", *seeds]
    command += ["--epochs", 1, "--batch-size", 20, "--precision", "float32"] if args.small else ["--compile"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        run = json.loads(line)
        compiled = run["train_seconds"] + run["compile_seconds"]
        runs.append({"test accuracy": run["test_accuracy"], "s of training": compiled})
        runs[-1] |= {"s without compilation": run["train_seconds"]}
        print_row(seed=run["seed"], **runs[-1])
    if code := process.wait():
        sys.exit(f"torch_recipe.py ended with exit code {code}")
    _print_summary(runs)


def _print_summary(runs):
    seconds = {
        key: statistics.median(run[key] for run in runs)
        for key in runs[0]
        if key != "test accuracy" and all(run[key] is not None for run in runs)
    }
    print_row(
        seed="mean ± 95 %, medians", **{"test accuracy": interval([run["test accuracy"] for run in runs])}, **seconds
    )


def deterministic(args):
    digests = []
    for number in (1, 2):
        more = [] if args.small else ["training.precision=bfloat16", "data.train_size=10000"]
        report = _trained(args, "experiment=augmented", "training.deterministic=true", "training.epochs=2", *more)
        digests.append(report["weights_sha256"])
        print_row(
            run=number, **{"weights": digests[-1][:16], "validation loss": report["val"] and report["val"]["loss"]}
        )
    print_row(run="equal to the bit", weights=str(digests[0] == digests[1]))
    if digests[0] != digests[1]:
        sys.exit("the weights differ")


def float16(args):
    """Train in float16, from a loss scale that is far too high, so that the first steps overflow."""
    from cifar_research.training import state

    prepared = state.TrainState.__post_init__

    def with_high_scale(self):
        prepared(self)
        self.loss_scale.assign(2.0**24)

    state.TrainState.__post_init__ = with_high_scale
    more = ["training.precision=float16", "training.epochs=2", "training.steps_per_call=50"]
    report = _trained(args, "experiment=wide", *more)
    for row in report.history:
        print_row(**{key: row[key] for key in ("epoch", "loss", "accuracy", "val_accuracy", "images_per_second")})
    print_row(epoch="steps that overflowed", loss=report["overflows"])


def sweep(args):
    """Time whole sweeps of quickstart, with the start of their workers."""
    jobs = 2 if args.small else 8
    for at_once in [2] if args.small else [4, 2, 1]:
        overrides = ["sweep=seeds", "experiment=quickstart", f"seed=range({jobs})"]
        overrides += ["hydra.launcher.jobs=2", "data.train_images=200", "data.test_images=50"] if args.small else []
        overrides += [f"hydra.launcher.runs_per_gpu={at_once}"]
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "cifar_research.train", *overrides, f"hydra.sweep.dir={folder}/sweep"]
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        print_row(**{"jobs at once": at_once, "jobs": jobs, "seconds": seconds, "jobs a minute": 60 * jobs / seconds})


def tests(args):
    which = ["-k", "is_found"] if args.small else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py", *which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print_row(tests=(done.stdout.strip().splitlines() or [done.stderr.strip()])[-1])
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        sys.exit("tests/test_gpu.py failed")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--torch-python", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    globals()[args.part](args)


if __name__ == "__main__":
    main()
