"""What the processor has that a layer or an optimizer may use."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import tensorflow as tf


def has_matrix_units() -> bool:
    """Say whether the processor multiplies bfloat16 matrices in units of its own (Intel AMX), and no GPU does the work."""
    return has_onednn("amx_bf16")


@functools.cache
def has_onednn(feature: str) -> bool:
    """Say whether oneDNN does the work, on a processor that has the feature."""
    try:
        has = feature in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("0", "false")
    return has and not is_off and not tf.config.list_physical_devices("GPU")
