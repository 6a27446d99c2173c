"""Write TensorBoard events."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import api as hparams_api

from cifar_research.runtime.errors import WriteError


class Writer:
    """Writes one run's events into `folder`.

    resume_step: the step that a run continues from, or None. Events of an interrupted process after it are hidden.
    """

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        self.folder = str(folder)
        self._is_profiling = False
        # A session start makes TensorBoard drop older events from its step on. It ignores the first start in a folder,
        # so a new run writes one too. tf.summary has no function for this.
        start = Event(
            wall_time=time.time(),
            step=0 if resume_step is None else resume_step + 1,
            session_log=SessionLog(status=SessionLog.START),
        )
        with self._errors():
            # As bytes: TensorFlow rejects names that are not valid text.
            self._writer = tf.summary.create_file_writer(os.fsencode(folder))
            tf.raw_ops.ImportEvent(writer=self._writer._resource, event=start.SerializeToString())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise WriteError where TensorFlow cannot write."""
        try:
            yield
        except tf.errors.OpError as error:
            reason = str(error).splitlines()[0].rpartition("; ")[2]  # "… <file>; No space left on device"
            raise WriteError(
                errno.EIO, f"{self.folder}: TensorBoard's events cannot be written ({reason}); free disk space, or set "
                "tensorboard.enabled=false"
            ) from error  # fmt: skip

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Receive what the functions of tf.summary write, and flush it at the end; WriteError if that fails."""
        with self._errors(), self._writer.as_default(step=step):
            yield

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag, such as train/loss."""
        with self.at(step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float], *, with_columns: bool = True) -> None:
        """Write settings by dotted key, and outcomes, for the HParams page.

        A null is left out, since it would change its column's type; a list is written as text. with_columns: also write
        the columns; a sweep's folder has its own (comparison/hparams.py).
        """
        settings = {  # with ? for the invalid bytes of a file name
            key: value if isinstance(value, (bool, int, float)) else str(value).encode(errors="replace").decode()
            for key, value in values.items()
            if value is not None
        }
        # An empty domain sets a column's type without hiding other runs' values.
        domains = {key: hparams_api.Discrete([], dtype=type(value)) for key, value in settings.items()}
        # Separate tags: the page shows a tag's last value, which is rarely the best epoch's.
        outcomes = {f"hparams/{tag}": value for tag, value in metrics.items()}
        with self.at(0):
            if with_columns:
                hparams_api.hparams_config(
                    hparams=[hparams_api.HParam(key, domain) for key, domain in domains.items()],
                    metrics=[hparams_api.Metric(f"hparams/{tag}", display_name=tag) for tag in metrics],
                )
            hparams_api.hparams(settings)
        self.scalars(0, outcomes)

    def profile_start(self) -> None:
        """Start a profile, written into the folder."""
        tf.profiler.experimental.start(os.fsencode(self.folder))
        self._is_profiling = True

    def profile_stop(self) -> None:
        """Write the profile, if one was started."""
        if self._is_profiling:
            self._is_profiling = False
            tf.profiler.experimental.stop()

    def close(self) -> None:
        """Close the files, and write a running profile."""
        self.profile_stop()
        with self._errors():
            self._writer.close()
