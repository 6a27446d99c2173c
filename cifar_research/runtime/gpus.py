"""NVIDIA's GPUs as their driver lists them, and why TensorFlow does not use one that is there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

from cifar_research.runtime.lazy import tf


def why_unused() -> str | None:
    """Return a sentence on why no GPU is used, and what to do; None if one is used, or none is there or to be seen."""
    if tf.config.list_physical_devices("GPU") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if not (match := re.search(r"^GPU \d+: (.+?) \(UUID", listed(), re.MULTILINE)):
        return None
    name = match[1]
    if not tf.test.is_built_with_cuda() or importlib.util.find_spec("nvidia") is None:
        install = f"{sys.executable} -m pip install 'tensorflow[and-cuda]=={tf.__version__}'"
        return f"TensorFlow does not use the {name}: NVIDIA's CUDA libraries are not installed. Install them with {install}"
    code = "'import tensorflow as tf; tf.config.list_physical_devices(\"GPU\")'"
    return f"TensorFlow does not use the {name}. It says why with TF_CPP_MIN_LOG_LEVEL=0 {sys.executable} -c {code}"


def listed() -> str:
    """Return a line for each GPU and each of its MIG instances, as `nvidia-smi -L` prints them; "" without a driver."""
    command = ["nvidia-smi", "-L"]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
