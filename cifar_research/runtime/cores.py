"""How many cores a process may use."""

from __future__ import annotations

import os


def usable() -> int:
    """Return how many cores this process may use, which a launcher may have made fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else cores
