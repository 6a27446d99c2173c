"""Measure the framework beside keras.fit and PyTorch on the same work, and write what was found as Markdown and JSON.

    scripts/benchmark                 everything, an hour and three quarters on two cores
    scripts/benchmark --quick         the headlines, five minutes
    scripts/benchmark --models wide --batch-sizes 128 --parts training

Each peer is a process of its own (see worker.py), all work on the same random images, and they take turns: a round is a
block of every peer, and a block an epoch of at least 50 steps through the peer's real pipeline, shuffled and augmented.
A block before, of all at once, is for warming up and does not count. Ratios are taken within a round, and their median
is told, since a machine is faster at one minute than at another. No checkpoint, no validation is in any of these times.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import parts
import torch_environment
from tables import markdown
from worker import SCORED, cores

from cifar_research.display import console
from cifar_research.runs import report
from cifar_research.runtime import gpus
from cifar_research.runtime.environment import cpu_features

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass
class Peer:
    """One peer in one configuration, and what was measured of it: seconds of each block."""

    name: str
    kind: str  # ours, keras, torch
    precision: str = "float32"
    steps_per_call: int = 1
    input: str = "numpy"
    compiles: bool = False
    cuda_graphs: bool = False
    images: int = 0
    scored: int = 0
    facts: dict = field(default_factory=dict)
    train: list = field(default_factory=list)
    evaluate: list = field(default_factory=list)
    matrix: list = field(default_factory=list)
    copy: list = field(default_factory=list)
    peak_memory_bytes: int = 0
    failure: str = ""


def log(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def folder_of_batches(parser, folder):
    """Return the absolute path of a folder that holds CIFAR-10's binary batches; else end with the parser's error."""
    folder = folder.resolve()
    if not (folder / "cifar-10-batches-bin" / "test_batch.bin").is_file():
        parser.error(f"folder: {folder} has no cifar-10-batches-bin/test_batch.bin; give the folder that holds it")
    return folder


def peers(quick, kinds, has_bfloat16):
    many = 50
    every = [
        Peer("ours, float32", "ours"),
        Peer("ours, float32, 50 steps a call", "ours", steps_per_call=many),
        Peer("ours, bfloat16", "ours", "bfloat16"),
        Peer("ours, bfloat16, 50 steps a call", "ours", "bfloat16", many),
        Peer("keras.fit, float32, numpy", "keras"),
        Peer("keras.fit, float32, tf.data", "keras", input="tf.data"),
        Peer("keras.fit, float32, tf.data, 50 steps a call", "keras", steps_per_call=many, input="tf.data"),
        Peer("keras.fit, bfloat16, numpy", "keras", "bfloat16"),
        Peer("keras.fit, bfloat16, tf.data", "keras", "bfloat16", input="tf.data"),
        Peer("keras.fit, bfloat16, tf.data, 50 steps a call", "keras", "bfloat16", many, "tf.data"),
        Peer("PyTorch, float32", "torch"),
        Peer("PyTorch, bfloat16", "torch", "bfloat16"),
    ]
    if quick:  # the fastest of each
        every = [every[i] for i in (1, 3, 6, 9, 11 if has_bfloat16 else 10)]
    return [peer for peer in every if peer.kind in kinds and (has_bfloat16 or peer.precision != "bfloat16")]


class PeerFailed(Exception):
    """A peer's process has ended; its message is what it said last."""


class Worker:
    """A peer's process; `answer` returns the facts that it tells first, `ask` says a word and returns its answer."""

    def __init__(self, command):
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in runs; keras.fit gains as much
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # or the first peer would take all of it
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 — open for as long as the process
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            errors="replace",
            env=environment,
            cwd=ROOT,
        )

    def ask(self, word):
        self.say(word)
        return self.answer()

    def say(self, word):
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended, which `answer` tells
            print(word, file=self.process.stdin, flush=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise PeerFailed(f"{' '.join(self.process.args)} ended:\n{self.log.read()}")
        return json.loads(line)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def start(peer, python, model, batch_size, steps):
    peer.images = steps * batch_size
    peer.scored = min(peer.images, SCORED)
    script = {"ours": "ours.py", "keras": "keras_peer.py", "torch": "torch_peer.py"}[peer.kind]
    options = ["--batch-size", batch_size, "--images", peer.images, "--precision", peer.precision]
    options += ["--steps-per-call", min(peer.steps_per_call, steps), "--input", peer.input]
    options += ["--compile"] if peer.compiles else []
    options += ["--cuda-graphs"] if peer.cuda_graphs else []
    return Worker([python, HERE / script, model, *options])


def training(pythons, chosen, model, batch_size, steps, rounds, asked, log):
    """Let the chosen peers take turns on one model; return them with what was measured.

    asked: by kind of peer, the names of the methods that are called in every round.
    """
    log(f"{model}, batch {batch_size}: starting {len(chosen)} peers")
    workers = [start(peer, pythons[peer.kind], model, batch_size, steps) for peer in chosen]
    turns = list(zip(chosen, workers, strict=True))
    for peer, worker in turns:
        peer.facts = _or_failure(peer, log, worker.answer) or {}
    log(f"{model}, batch {batch_size}: warming up")
    for word in asked["ours"]:  # all at once, since only compiling takes long
        waiting = [(peer, worker) for peer, worker in turns if not peer.failure and word in asked[peer.kind]]
        for _, worker in waiting:
            worker.say(word)
        for peer, worker in waiting:
            _or_failure(peer, log, worker.answer)
            log(f"{model}, batch {batch_size}: {peer.name} has done {word}")
    for number in range(1, rounds + 1):
        for peer, worker in turns:
            time.sleep(0.3)  # for the threads of the one before to go to sleep
            for word in asked[peer.kind]:
                if peer.failure:
                    break
                log(f"{model}, batch {batch_size}: round {number} of {rounds}, {peer.name}, {word}")
                answer = _or_failure(peer, log, worker.ask, word)
                if answer is None:
                    break
                peer.peak_memory_bytes = answer["peak_memory_bytes"]
                if answer["loss"] != answer["loss"]:  # not a number: its figures would be meaningless
                    peer.failure = f"its loss is {answer['loss']} in {word}"
                    log(f"error: {peer.name}: {peer.failure}")
                    break
                getattr(peer, word).append(answer["seconds"])
    for worker in workers:
        worker.close()
    return chosen


def _or_failure(peer, log, ask, *word):
    """Return what a peer answers, or None if it has failed, so that the others go on."""
    try:
        return ask(*word)
    except PeerFailed as error:
        log(f"error: {error}")
        peer.failure = str(error).strip().splitlines()[-1]
        return None


def hardware():
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in cpu_features()]
    cards = [line for line in gpus.listed().splitlines() if line.startswith("GPU ")]
    return {"processor": report.hardware()["cpu"], "cores": cores(), "units": units, "gpus": cards}


def versions(pythons):
    """Return the versions of what each peer runs on, asked of its own environment."""
    names = {"ours": ["tensorflow", "keras", "numpy"], "torch": ["torch"]}
    code = "import sys, importlib.metadata as m; print(*(f'{n}={m.version(n)}' for n in sys.argv[1:]))"
    versions_by_name = {"python": platform.python_version()}
    for kind in pythons.keys() & names.keys():
        done = subprocess.run(
            [pythons[kind], "-c", code, *names[kind]], capture_output=True, text=True, errors="replace", check=True
        )
        versions_by_name |= dict(pair.split("=") for pair in done.stdout.split())
    return versions_by_name


@console.command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the study's two models at batch 128, and five peers")
    parser.add_argument("--models", nargs="+", choices=["first_version", "wide", "augmented", "fast"])
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--peers", nargs="+", choices=["ours", "keras", "torch"], default=["ours", "keras", "torch"])
    parser.add_argument("--parts", nargs="+", choices=["training", *parts.PARTS], default=["training", *parts.PARTS])
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds; default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="steps in a block; default: %(default)s")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmark", help="default: %(default)s")
    args = parser.parse_args()
    models = args.models or (
        ["first_version", "wide"] if args.quick else ["first_version", "wide", "augmented", "fast"]
    )
    batch_sizes = args.batch_sizes or ([128] if args.quick else [128, 512])
    machine = hardware()
    has_bfloat16 = any("bf16" in unit for unit in machine["units"])
    if not has_bfloat16:
        log("this processor has no bfloat16, so bfloat16 is not measured")
    precision = "bfloat16" if has_bfloat16 else "float32"
    pythons = {"ours": sys.executable, "keras": sys.executable}
    if "torch" in args.peers and "training" in args.parts:
        pythons["torch"] = torch_environment.python(log)
    results = {"command": " ".join(["scripts/benchmark", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d")}
    results |= {"hardware": machine, "versions": versions(pythons), "steps": args.steps, "rounds": args.rounds}
    results |= {"training": []}
    failed = []
    args.output.mkdir(parents=True, exist_ok=True)

    def write():
        (args.output / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (args.output / "benchmark.md").write_text(markdown(results), encoding="utf-8")

    if "training" in args.parts:
        for model in models:
            for batch_size in batch_sizes:
                chosen = peers(args.quick, args.peers, has_bfloat16)
                both = ["train", "evaluate"]
                asked = {"ours": ["train", "evaluate", "matrix"], "keras": both, "torch": both}
                measured = training(pythons, chosen, model, batch_size, args.steps, args.rounds, asked, log)
                results["training"].append(
                    {"model": model, "batch_size": batch_size, "peers": [asdict(peer) for peer in measured]}
                )
                write()
    for name in parts.PARTS:
        if name in args.parts:
            try:
                results[name] = parts.PARTS[name](Worker, args.quick, args.steps, args.rounds, precision, log)
            except PeerFailed as error:
                log(f"error: {name}: was not measured: {error}")
                failed.append(name)
                continue
            write()
    print(markdown(results))
    failed += [peer["name"] for result in results["training"] for peer in result["peers"] if peer["failure"]]
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; their last output is above")
    log(f"written to {args.output}/benchmark.md and benchmark.json")


if __name__ == "__main__":
    main()
