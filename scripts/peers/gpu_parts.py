"""The parts of gpu_report.py: each prints a line of JSON for each row of its table."""

import argparse
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

# Models and batches in the order of their weight: the last ones are measured if there is time.
SPEED = [(model, batch) for batch in (512, 2000) for model in ("wide", "fast", "first_version", "augmented")]
PEERS = [
    Peer("ours, bfloat16, one program a call", "ours", "bfloat16", 100, compiles=True),
    Peer("ours, bfloat16, XLA a step", "ours", "bfloat16", compiles=True),
    Peer("ours, bfloat16, operations", "ours", "bfloat16", 100),
    Peer("ours, float32, one program a call", "ours", "float32", 100, compiles=True),
    Peer("ours, float16, one program a call", "ours", "float16", 100, compiles=True),
    Peer("keras.fit, bfloat16", "keras", "bfloat16", 100, "tf.data"),
    Peer("keras.fit, float32", "keras", "float32", 100, "tf.data"),
    Peer("PyTorch, bfloat16", "torch", "bfloat16"),
    Peer("PyTorch, bfloat16, compiled", "torch", "bfloat16", compiles=True),
    Peer("PyTorch, bfloat16, CUDA graphs", "torch", "bfloat16", compiles=True, cuda_graphs=True),
]


def tell(**columns):
    print(json.dumps(columns), flush=True)


def environment(args):
    from cifar_research.runtime import environment, gpus

    if asks := shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        for line in subprocess.run([asks, *query], capture_output=True, text=True).stdout.splitlines():
            tell(what="card, driver, memory", value=line)
    seen = environment.import_tensorflow()
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    tell(what="TensorFlow", value=tf.__version__)
    for key in ("cuda_version", "cudnn_version"):
        tell(what=f"built for {key.removesuffix('_version')}", value=build.get(key, "none"))
    tell(what="GPUs that TensorFlow sees", value=", ".join(gpu.name for gpu in seen) or "none")
    if not seen:
        tell(what="why", value=gpus.why_unused() or "nvidia-smi lists no card: install NVIDIA's driver")
    if seen:
        tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64]))
        loaded = re.findall(r"\S*/(?:libcudart|libcudnn|libcublas|libcuda)\.so\S*", Path("/proc/self/maps").read_text())
        for path in dict.fromkeys(loaded):
            tell(what="library", value=path)


def speed(args):
    """Let the peers take turns on each model and batch: medians of rounds, and the shares of what the card can do."""
    models, steps, rounds = ([("first_version", 8)], 2, 1) if args.small else (SPEED, 100, 3)
    peers = (
        [PEERS[3], PEERS[6]] if args.small else [peer for peer in PEERS if peer.kind != "torch" or args.torch_python]
    )
    pythons = {"ours": sys.executable, "keras": sys.executable, "torch": args.torch_python}
    for model, batch in models:
        workers = {peer.name: benchmark.start(peer, pythons[peer.kind], model, batch, steps) for peer in peers}
        facts = {peer.name: _answer(workers, peer.name) for peer in peers}
        for name in list(workers):  # at once, since compiling takes long
            workers[name].say("train")
        for name in list(workers):
            _answer(workers, name)
        seconds = {name: [] for name in workers}
        for _ in range(rounds):
            for name in list(workers):
                workers[name].say("train")
                if answer := _answer(workers, name):
                    seconds[name].append(answer["seconds"])
        for peer in peers:
            if peer.name in workers:
                _tell_speed(peer, model, batch, steps, seconds[peer.name], facts, workers[peer.name])
        for process in workers.values():
            process.close()


def _answer(workers, name):
    """Return a peer's answer; a peer that has failed is told and takes no further turns."""
    try:
        return workers[name].answer()
    except benchmark.PeerFailed as error:
        tell(model=name, failure=str(error).strip().splitlines()[-1])
        del workers[name]
        return None


def _tell_speed(peer, model, batch, steps, seconds, facts, process):
    """Tell a peer's row. Peers do the same work, so that each step has the operations and bytes that ours counts."""
    median, shares = statistics.median(seconds), {}
    if peer.kind == "ours":
        of = facts[peer.name]
        for word in ("matrix", "copy"):
            process.ask(word)  # the first time compiles
        rate = of["matrix_flops"] / process.ask("matrix")["seconds"]
        bandwidth = of["copied_bytes"] / process.ask("copy")["seconds"]
        shares = {
            "% of the matrix rate": 100 * 3 * of["forward_flops"] * batch * steps / median / rate,
            "% of the bandwidth": 100 * of["step_bytes"] * steps / median / bandwidth,
            "TFLOP/s of products": rate / 1e12,
            "GB/s copied": bandwidth / 1e9,
        }
    row = {"images/s": batch * steps / median, "ms a step": 1e3 * median / steps}
    tell(model=model, batch=batch, peer=peer.name, **row, **shares)


def pipeline(args):
    """Divide a step with its pipeline and augmentation by a step on one batch that is held on the device."""
    models, batch, steps, rounds = (["first_version"], 8, 2, 1) if args.small else (["augmented", "fast"], 512, 200, 3)
    words = ["--batch-size", batch, "--images", batch * steps, "--steps-per-call", min(steps, 100), "--compile"]
    words += ["--device", "/CPU:0", "--override", "augmentation=flip"] if args.small else ["--precision", "bfloat16"]
    for model in models:
        workers = {
            name: benchmark.Worker([sys.executable, HERE / "ours.py", model, *words, *more])
            for name, more in (
                ("data on the device", []),
                ("batches copied ahead of time", ["--from-host"]),
                ("without augmentation", ["--override", "augmentation=none"]),
            )
        }
        for process in workers.values():
            process.answer()
        seconds = {name: {"train": [], "held": []} for name in workers}
        for number in range(rounds + 1):
            for name, process in workers.items():
                for word in ("train", "held"):
                    answer = process.ask(word)
                    if number:
                        seconds[name][word].append(answer["seconds"])
        bare = statistics.median(seconds["without augmentation"]["held"])
        for name in list(workers)[:2]:
            step, held = (statistics.median(seconds[name][word]) for word in ("train", "held"))
            shares = {"over a held batch": step / held, "over a held batch without augmentation": step / bare}
            tell(what=f"{model}, {name}", **{"ms a step": 1e3 * step / steps}, **shares)
        for process in workers.values():
            process.close()
    options = sorted(path.stem for path in (ROOT / "conf" / "augmentation").glob("*.yaml"))
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

        @tf.function(jit_compile=True, autograph=False)
        def many(count, transform=transform):
            def once(number, total):
                seed = tf.stack([0, number])
                return number + 1, total + transform(images, targets, seed, seed)[0][0, 0, 0, 0]

            return tf.while_loop(lambda number, total: number < count, once, [0, 0.0])[1]

        float(many(times))
        began = time.perf_counter()
        float(many(times))
        tell(what=f"augmentation={option}, alone", **{"ms a step": 1e3 * (time.perf_counter() - began) / times})


def _run(args, *overrides):
    """Train with this framework, in this process; return the report, with its history read."""
    import cifar_research

    fixed = [f"data.dir={args.folder}", "tensorboard.enabled=false"]
    if args.small:
        fixed += [
            "training.epochs=1",
            "training.batch_size=20",
            "training.steps_per_call=3",
            "training.precision=float32",
        ]
        fixed += ["backbone.filters=[8]", f"data.cache_dir={args.folder}"]
    with tempfile.TemporaryDirectory() as folder:
        report = cifar_research.train([*overrides, *fixed], Path(folder, "run"), quiet=True)
        assert report.history  # a property that reads the file once, while the folder is there
        return report


def accuracy(args):
    seeds = [0] if args.small else [0, 1, 2, 3, 4]
    for seed in seeds:
        report = _run(args, "experiment=fast", "training.steps_per_call=1000", f"seed={seed}")
        images = report["steps"] * report["config"]["training"]["batch_size"]
        _tell_accuracy(
            "ours, fast", seed, report["test"]["accuracy"], report["seconds"]["train"],
            report["images_per_second"] and images / report["images_per_second"], report["seconds"]["first_step"],
        )  # fmt: skip
    if args.torch_python and not args.small:
        command = [args.torch_python, HERE / "torch_recipe.py", args.folder, "--compile", "--seeds", *seeds]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            run = json.loads(line)
            whole = run["train_seconds"] + run["compile_seconds"]
            of = (run["seed"], run["test_accuracy"], whole, run["train_seconds"], run["compile_seconds"])
            _tell_accuracy("PyTorch, airbench94_muon", *of)
        if code := process.wait():
            sys.exit(f"torch_recipe.py ended with exit code {code}")


def _tell_accuracy(name, seed, accuracy, whole, steady, compiling):
    """Tell a row. whole: seconds of training with compilation; steady: without; compiling: of it or of the first call."""
    seconds = {"s, with compilation": whole, "s, without": steady, "s to the first step, or of compilation": compiling}
    tell(recipe=name, seed=seed, **{"test accuracy": accuracy}, **seconds)


def deterministic(args):
    digests = []
    for number in (1, 2):
        words = ["experiment=augmented", "training.deterministic=true", "training.epochs=2"]
        words += [] if args.small else ["training.precision=bfloat16", "data.train_size=10000"]
        report = _run(args, *words)
        digests.append(report["weights_sha256"])
        tell(run=number, **{"weights": digests[-1][:16], "validation loss": report["val"] and report["val"]["loss"]})
    tell(run="equal to the bit", weights=str(digests[0] == digests[1]))
    if digests[0] != digests[1]:
        sys.exit("the weights differ")


def float16(args):
    report = _run(
        args, "experiment=wide", "training.precision=float16", "training.epochs=2", "training.steps_per_call=50"
    )
    for row in report.history:
        tell(**{key: row[key] for key in ("epoch", "loss", "accuracy", "val_accuracy", "images_per_second")})


def sweep(args):
    """Time whole sweeps of quickstart, with the start of their workers."""
    jobs = 2 if args.small else 8
    for at_once in (1, 2) if args.small else (1, 2, 4):
        words = [
            "sweep=seeds",
            "experiment=quickstart",
            f"seed=range({jobs})",
            f"hydra.launcher.runs_per_gpu={at_once}",
        ]
        words += (
            [f"hydra.launcher.jobs={at_once}", "data.train_images=200", "data.test_images=50"] if args.small else []
        )
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "cifar_research.train", *words, f"hydra.sweep.dir={folder}/sweep"]
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        tell(**{"jobs at once": at_once, "jobs": jobs, "seconds": seconds, "jobs a minute": 60 * jobs / seconds})


def tests(args):
    which = ["-k", "is_found"] if args.small else []
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", *which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tell(tests=(done.stdout.strip().splitlines() or [done.stderr.strip()])[-1])
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
