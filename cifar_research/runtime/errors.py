"""Errors that the user can fix, shown without a traceback. Anything else is a bug."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """The base of these errors, but for WriteError."""


class ConfigError(UserError):
    """A wrong setting or command line; the message names the key, the value and the remedy."""


def refuse(problems: Sequence[str]) -> None:
    """Raise ConfigError with a line for each problem, if there is one."""
    if problems:
        raise ConfigError("\n".join(problems))


class DataError(UserError):
    """Data is missing, damaged or of the wrong kind; the message names the path and the remedy."""


class ImageError(UserError):
    """An image cannot be read; the message names the file, `reason` the cause."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: cannot be read as an image ({reason})")
        self.reason = reason


class WeightsError(UserError):
    """The backbone or its weights could not be loaded; the message names the path."""


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the path."""


class ReportError(UserError):
    """A report, history or ledger cannot be used; the message names the path."""


class RunError(UserError):
    """No classifier can be loaded from a folder; the message names the path and the remedy."""


class LockedError(UserError):
    """Another process is working in a folder; the message names both."""


class WriteError(OSError):
    """A file cannot be written; the message names the path."""

    def __str__(self) -> str:
        return str(self.strerror)  # OSError would prepend «[Errno 28]»
