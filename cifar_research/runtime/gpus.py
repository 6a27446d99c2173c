"""Why TensorFlow does not use an NVIDIA GPU that is there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys

from cifar_research.runtime.lazy import tf


def why_unused() -> str | None:
    """Return a sentence on why no GPU is used, and what to do; None if one is used, or none is there or to be seen."""
    if tf.config.list_physical_devices("GPU") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if not (name := _first_card()):
        return None
    if not tf.test.is_built_with_cuda() or importlib.util.find_spec("nvidia") is None:
        install = f"{sys.executable} -m pip install 'tensorflow[and-cuda]=={tf.__version__}'"
        return f"TensorFlow does not use the {name}: NVIDIA's CUDA libraries are not installed. Install them with {install}"
    code = "'import tensorflow as tf; tf.config.list_physical_devices(\"GPU\")'"
    return f"TensorFlow does not use the {name}. It says why with TF_CPP_MIN_LOG_LEVEL=0 {sys.executable} -c {code}"


def _first_card() -> str | None:
    """Return the name of the first NVIDIA card, as its driver lists it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^GPU \d+: (.+?) \(UUID", listed, re.MULTILINE)
    return match and match[1]
