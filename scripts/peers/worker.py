"""What the benchmark's workers share: their options, their images, and the conversation with benchmark.py.

A worker is a process that holds one peer in one configuration. It answers each word on its standard input, the name of
one of its methods, with a line of JSON: `train` is an epoch over its images, `evaluate` a scoring of the first of them; so that
benchmark.py can let all peers take turns, a block each, on the same machine in the same minutes. No peer sees the
others' packages.
"""

import argparse
import json
import os
import resource
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

FAST_ACTIVATION = "relu"  # of conf/experiment/fast.yaml
# Networks that are fine-tuned at 96 pixels: the first of their upper blocks.
UPPER = {"mobilenet_v2": "block_13_expand", "efficientnet_lite0": "block6a_expand_conv", "vgg16": "block5_conv1"}
SCORED = 5_000  # images that `evaluate` scores, or all if there are fewer


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["first_version", "wide", "augmented", "fast", *UPPER])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=12_800, help="images in an epoch, which is a block")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--steps-per-call", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile with XLA or torch.compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="let torch.compile record CUDA graphs")
    parser.add_argument("--from-host", action="store_true", help="copy batches to the GPU, not the data set once")
    parser.add_argument("--device", help="where the data is, if not on the first GPU; ours alone")
    parser.add_argument("--override", action="append", default=[], help="of the run; ours alone")
    parser.add_argument(
        "--keep", action="store_true", help="compute the features of frozen layers once, before the steps"
    )
    parser.add_argument("--input", choices=["numpy", "tf.data"], default="numpy")
    return parser.parse_args()


def images(count):
    """Return random uint8 [N, 32, 32, 3] and int64 [N]: what images show does not change how long they take."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)


def cores():
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def serve(make):
    """Build a peer and answer until standard input ends."""
    given = options()
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing but answers goes where they are read
    peer = make(given)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    answer(**peer.facts())
    for line in sys.stdin:
        word = line.strip()
        start = time.perf_counter()
        loss = getattr(peer, word)()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        answer(seconds=seconds, loss=float(loss), peak_memory_bytes=peak)
