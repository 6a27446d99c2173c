"""The instructions of the processor, as far as Linux names them."""

import functools
from pathlib import Path


@functools.cache
def instructions() -> frozenset[str]:
    """Return the words of /proc/cpuinfo, such as avx2 and amx_bf16; empty on other systems."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return frozenset()
