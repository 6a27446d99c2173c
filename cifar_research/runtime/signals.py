"""Stop signals: the first lets a run save, the second ends the process."""

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
    """Whether a stop signal has come: its number, None until then."""

    signal: int | None = None


@contextlib.contextmanager
def stop_signals(*, within_calls: bool = False) -> Iterator[StopRequest]:
    """Keep the first stop signal as a request instead of ending; the second one ends the process at once.

    They are SIGTERM, SIGINT, and SIGUSR1, which batch systems send ahead of a time limit (`sbatch --signal=USR1@60`).
    within_calls: the second one also ends the process during a native call, where Python's own handlers wait, with exit
    code 128 plus its number; signals within half a second of the first are the same request, since a terminal, a
    launcher and a cluster may each pass it on. Outside of the main thread, no signal is kept.
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
            if handler is not None:  # it was not installed by Python
                signal.signal(number, handler)

    try:
        for number in _STOP_SIGNALS:
            before[number] = signal.signal(number, handle)
        with _watched(stop) if within_calls else contextlib.nullcontext():
            yield stop
    finally:
        restore()


@contextlib.contextmanager
def _watched(stop: StopRequest) -> Iterator[None]:
    """Read signals in a thread, from the pipe that Python's handler in C writes their numbers to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] not in _STOP_SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                if stop.signal is None:
                    stop.signal = number[0]
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
