"""The checkout that the package runs from: its commit, and its uncommitted changes as a patch."""

from __future__ import annotations

import hashlib
import itertools
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_research.runtime.files import atomic_write

PATCH = "changes.patch"  # in a run's folder
MOST_BYTES = 1_000_000  # of a patch
_SECONDS = 5.0  # for each of git's answers
# Without the programs and formats of a user's configuration. No pager: the output is a pipe.
_DIFF = (
    "-c", "diff.relative=false", "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip


@dataclass(frozen=True)
class Checkout:
    """A commit, and a patch of the uncommitted changes to tracked files, empty without any.

    patch: None if it is not known or too large; not_kept: why.
    """

    commit: str
    patch: bytes | None
    not_kept: str | None = None

    @property
    def digest(self) -> str | None:
        """Return the patch's SHA-256, None without changes or a patch."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None

    def leave(self, folder: Path) -> dict[str, Any]:
        """Write the patch into a run's folder; return `git` of report.json.

        Nothing is overwritten: the patch of a process that continues the run with other changes is changes_2.patch.
        """
        name = None
        if self.patch:
            names = itertools.chain([PATCH], (f"changes_{number}.patch" for number in itertools.count(2)))
            paths = (folder / name for name in names)
            path = next(path for path in paths if not path.exists() or path.read_bytes() == self.patch)
            atomic_write(path, self.patch)
            name = path.name
        return {
            "commit": self.commit, "dirty": self.patch != b"", "changes": name, "changes_sha256": self.digest,
            "not_kept": self.not_kept,
        }  # fmt: skip


def read(folder: Path) -> Checkout | None:
    """Return the checkout that has a folder's files; None without one."""
    # The virtual environment of an installed package may be inside an unrelated checkout.
    commit = _ask(folder, "ls-files", "--error-unmatch", ".")[0] and _ask(folder, "rev-parse", "HEAD")[0]
    return Checkout(commit.decode().strip(), *_ask(folder, *_DIFF)) if commit else None


def _ask(folder: Path, *arguments: str) -> tuple[bytes | None, str | None]:
    """Return git's output and None, or None and why there is none."""
    command = ["git", "--no-optional-locks", *arguments]  # jobs of a sweep must not wait for each other
    try:
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            timer = threading.Timer(_SECONDS, process.kill)
            timer.start()
            assert process.stdout is not None
            # Not all of it, as of subprocess.run: a data set among the changes would fill the memory.
            if len(content := process.stdout.read(MOST_BYTES + 1)) > MOST_BYTES:
                process.kill()
            code = process.wait()
            timer.cancel()
    except OSError:
        return None, "git cannot be started"
    if len(content) > MOST_BYTES:
        return None, f"the uncommitted changes are larger than {MOST_BYTES:,} bytes"
    if code == -signal.SIGKILL:
        return None, f"git diff took more than {_SECONDS:g} seconds"
    return (None, f"git diff ended with exit code {code}") if code else (content, None)
