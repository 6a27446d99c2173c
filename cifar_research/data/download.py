"""Fetching a published file: resumed if broken off, verified before anyone reads it, put in place atomically."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar_research.runtime import locks
from cifar_research.runtime.errors import DataError

_CHUNK_BYTES = 1 << 18


def fetch(url: str, path: Path, sha256: str, *, attempts: int = 4, timeout_seconds: float = 30) -> None:
    """Download `url` to `path`, unless it is there, and put it in place only if its SHA-256 is `sha256`.

    What arrives is kept in `path`.part, so that the next attempt, or the next run, goes on from there. A file that
    is complete and wrong is fetched once more from the start, then refused. Two processes fetch it once.
    Raises DataError, in a sentence with the address, if it cannot be had.
    """
    try:
        with locks.held(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                _fetch(url, path, sha256, attempts, timeout_seconds)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another data.dir") from error


def _fetch(url: str, path: Path, sha256: str, attempts: int, timeout_seconds: float) -> None:
    part = path.with_name(f"{path.name}.part")
    problem, wrong = "", 0
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(2**attempt / 4, 5))
        try:
            is_complete = _transfer(url, part, timeout_seconds)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is here already is no beginning of what is there
                part.unlink(missing_ok=True)
            problem = f"the server answered {error.code} {error.reason}"
            if error.code in (401, 403, 404, 410):
                break
            continue
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        if not is_complete:
            problem = "the connection broke off"
            continue
        found = hash_file(part)
        if found == sha256:
            os.replace(part, path)
            return
        part.unlink()
        wrong += 1
        problem = f"what came has the SHA-256 {found} and not the published {sha256}; it was removed"
        if wrong == 2:
            break
    raise DataError(
        f"{url} could not be downloaded: {problem}. Try again (it goes on where it stopped), or fetch the file "
        f"yourself and give its folder as data.dir"
    )


def _transfer(url: str, part: Path, timeout_seconds: float) -> bool:
    """Append to `part` what is still missing of `url`; say whether all of it has come."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
        if have and response.status != 206:  # this server cannot resume
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        )  # fmt: skip
        console = Console(stderr=True)
        with (
            part.open("ab" if have else "wb") as file,
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            bar = progress.add_task(url.rpartition("/")[2], total=total, completed=have)
            while chunk := response.read1(_CHUNK_BYTES):  # what has come, so that a stall loses nothing
                file.write(chunk)
                progress.update(bar, advance=len(chunk))
    return total is None or part.stat().st_size == total


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
