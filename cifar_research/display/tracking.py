"""Pass what happens in a run to its tracker, in a thread of its own."""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cifar_research.config import targets
from cifar_research.config.contracts import TrackedRun, Tracker
from cifar_research.config.settings import Settings
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime.files import atomic_write

KEY_FILE = "tracker_key.txt"  # in a run's folder
_LIMIT = 60.0  # seconds that a call may take before the run goes on without it
_QUIET_SECONDS = 2.0  # to wait without a message

log = logging.getLogger(__name__)


class Tracking:
    """Calls a tracker's methods in order. A failure or no answer costs one warning, never the run."""

    def __init__(self, tracker: Tracker, run: TrackedRun) -> None:
        self._tracker = tracker
        self._calls = SimpleQueue[tuple[str, tuple[Any, ...]]]()
        self._problem, self._has_warned = "", False
        self._since: float | None = None  # when the call in progress began
        self._calls.put(("start", (run,)))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Pass on an epoch's row of the history."""
        self._calls.put(("epoch", (dict(row),)))
        self._warn(_LIMIT)

    def finish(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Pass on the end: the content of report.json, and files to keep."""
        scores = {"best_val": result["val"], "test": result["test"]}
        results = {
            f"{name}_{key}": value
            for name, of in scores.items()
            for key, value in (of or {}).items()
            if value is not None
        }
        results |= {} if result["best_epoch"] is None else {"best_epoch": result["best_epoch"]}
        self._calls.put(("finish", (result["status"], results, files)))

    def close(self, tell: Callable[[str], None]) -> None:
        """Wait for the tracker, for a limited time; the status is `failed` if `finish` was not called."""
        self._calls.put(("finish", ("failed", {}, [])))  # ignored after another one
        now = time.monotonic()
        left = max((self._since or now) + _LIMIT - now, 0)
        self._thread.join(min(left, _QUIET_SECONDS))
        if self._thread.is_alive() and left > _QUIET_SECONDS:
            tell(f"Waiting for the tracker, for {left:.0f} s at most.")
            self._thread.join(left - _QUIET_SECONDS)
        self._warn(0 if self._thread.is_alive() else _LIMIT)

    def _work(self) -> None:
        waiting, is_last = deque[tuple[str, tuple[Any, ...]]](), False
        while not is_last:
            waiting.append(self._calls.get())
            is_last = waiting[-1][0] == "finish"
            # A failed start is tried again at the next epoch: until then the rows wait.
            while waiting and (self._is_done(*waiting[0]) or waiting[0][0] != "start"):
                waiting.popleft()

    def _is_done(self, method: str, arguments: tuple[Any, ...]) -> bool:
        self._since = time.monotonic()
        try:
            getattr(self._tracker, method)(*arguments)
            return True
        except BaseException as error:  # noqa: BLE001 — also SystemExit, which some services raise
            # An address may hold a password: https://user:password@host.
            self._problem = re.sub(r"//[^/\s]*@", "//", targets.error_text(error))
            return False
        finally:
            self._since = None

    def _warn(self, limit: float) -> None:
        """Log the first problem: a failure, or a call that has taken more than `limit` seconds."""
        since = self._since
        is_slow = since is not None and time.monotonic() - since >= limit
        problem = self._problem or ("it does not answer" if is_slow else "")
        if problem and not self._has_warned:
            self._has_warned = True
            log.warning("tracker: %s; the run goes on, and its record there may lack something", problem)


def tracked_run(settings: Settings, folder: Path, history: Sequence[Mapping[str, Any]]) -> TrackedRun:
    """Return a run as its tracker sees it; its key is read from its folder, or written there."""
    folder = folder.resolve()
    path = folder / KEY_FILE
    key = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{32}", key):
        if path.exists():
            log.warning("%s: is damaged; the tracker begins a new entry", path)
        key = uuid.uuid4().hex
        atomic_write(path, f"{key}\n")
    sweep = folder.parent.name if (folder.parent / LEDGER).exists() else None
    described = settings.identity.described(settings.options)
    rows = [dict(row) for row in history]
    return TrackedRun(key, f"{folder.parent.name}/{folder.name}", sweep, folder, settings.content, described, rows)
