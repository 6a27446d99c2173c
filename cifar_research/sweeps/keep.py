"""Which jobs of a sweep keep their weights and checkpoints after they have ended."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path

from cifar_research.runs import metrics, report
from cifar_research.runs.ledger import Job
from cifar_research.runtime.files import WEIGHTS

_NUM_KEPT = {"all": math.inf, "best": 10, "none": 0}


class Keeper:
    """Removes the weights and checkpoints of the jobs that `sweep.keep` does not keep.

    keep: `all`, `best` or `none`. jobs: those that have ended already count among the best. A job that has failed or
    was stopped keeps its checkpoints, to continue from; so does one without validation, which has no rank.
    """

    def __init__(self, folder: Path, keep: str, jobs: Sequence[Job]) -> None:
        self.num_removed = 0
        self._folder, self._num_kept = folder, _NUM_KEPT[keep]
        self._earlier = [job for job in jobs if job.is_complete]
        self._best: list[tuple[float, str]] = []  # a heap of (score, job folder), the worst first

    def ended(self, *jobs: Job) -> None:
        """Rank jobs that have ended, first those of earlier launches; remove the files of all but the best."""
        ranked, self._earlier = [*self._earlier, *jobs], []
        for job in ranked:
            if not job.is_complete or self._num_kept == math.inf or not _files(self._folder / job.folder):
                continue
            removed = job.folder
            if job.state == "completed" and self._num_kept:
                value = score(self._folder / job.folder, job)
                if value is None:
                    continue
                heapq.heappush(self._best, (value, job.folder))
                if len(self._best) <= self._num_kept:
                    continue
                _, removed = heapq.heappop(self._best)
            for path in _files(self._folder / removed):
                path.unlink(missing_ok=True)
            self.num_removed += 1


def _files(run_dir: Path) -> list[Path]:
    return [path for path in (run_dir / WEIGHTS, *run_dir.glob("checkpoints/*.ckpt")) if path.exists()]


def score(run_dir: Path, job: Job) -> float | None:
    """Return how good a job is by its monitored metric; None if it has no validation."""
    ended = report.read_if_intact(run_dir / "report.json")
    return metrics.worth(ended and ended["val"], job.config["training"]["monitor"])
