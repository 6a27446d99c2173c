"""Errors that the user can fix, shown without a traceback. Anything else is a bug."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the config or on the command line; the message names the key, the value and what to do."""


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong kind; the message names its path and what to do."""


class ImageError(ValueError):
    """An image that cannot be read; the message names its file, `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: cannot be read as an image ({reason})")
        self.reason = reason


class WeightsError(ValueError):
    """The backbone or its weights could not be loaded; the message names the path."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names its path."""


class ReportError(ValueError):
    """A report, history or ledger that cannot be used; the message names its path."""


class RunError(ValueError):
    """A folder that no classifier can be loaded from; the message names its path and what to do."""


class LockedError(ValueError):
    """A folder that another process works in; the message names the folder and that process."""


class WriteError(OSError):
    """A file that cannot be written; the message names its path."""

    def __str__(self) -> str:
        return str(self.strerror)  # OSError's own puts «[Errno 28]» before the message
