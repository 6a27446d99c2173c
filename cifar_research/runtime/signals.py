"""Stop signals: the first one saves the run, the second one ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_REQUEST_SECONDS = 0.5


@dataclass
class StopRequest:
    """A request to stop; `signal` is the signal's number, None before one arrives."""

    signal: int | None = None


@contextlib.contextmanager
def stop_signals(*, within_calls: bool = False) -> Iterator[StopRequest]:
    """Record the first stop signal as a request; a second one ends the process at once.

    Stop signals are SIGTERM, SIGINT and SIGUSR1. Batch systems send the last one ahead of a time limit (`sbatch
    --signal=USR1@60`). Outside the main thread, signals are not handled.
    within_calls: the second signal also ends the process during a native call, where Python's handlers wait.
    The exit code is then 128 plus its number. Signals within half a second count as one: a terminal, a launcher and a
    cluster may each send it.
    """
    stop = StopRequest()
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal = number
        if not within_calls:
            restore()

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            if handler is not None:  # None: the handler was not installed by Python
                signal.signal(number, handler)

    try:
        for number in _STOP_SIGNALS:
            before[number] = signal.signal(number, handle)
        with _watched() if within_calls else contextlib.nullcontext():
            yield stop
    finally:
        restore()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Watch for signals in a thread, through the pipe that Python's C handler writes to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] not in _STOP_SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > _SAME_REQUEST_SECONDS:
                os._exit(128 + number[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writer)
        thread.join()
        os.close(reader)
