"""Download a published file: resumed when broken off, and verified before it is used."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, Progress

from cifar_research.runtime import locks
from cifar_research.runtime.errors import DataError

_CHUNK_BYTES = 1 << 18


def fetch(url: str, path: Path, sha256: str, *, attempts: int = 4, timeout_seconds: float = 30) -> None:
    """Download `url` to `path` if that is missing and the file's SHA-256 is `sha256`.

    What arrives is kept in `path`.part, so that the next attempt, or the next run, goes on from there; a file that is
    complete and wrong is removed. Two processes fetch it once. DataError, with the address, if it cannot be fetched.
    """
    try:
        with locks.held(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                _fetch(url, path, sha256, attempts, timeout_seconds)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another data.dir") from error


def _fetch(url: str, path: Path, sha256: str, attempts: int, timeout_seconds: float) -> None:
    part = path.with_name(f"{path.name}.part")
    problem = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(2**attempt / 4, 5))
        try:
            _transfer(url, part, timeout_seconds)
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # the part is not the beginning of this file
                part.unlink(missing_ok=True)
            elif error.code < 500:
                break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            digest = hash_file(part)
            if digest == sha256:
                os.replace(part, path)
                return
            part.unlink()
            problem = f"the file has the SHA-256 {digest} and not the published {sha256}; it was removed"
    raise DataError(
        f"{url} could not be downloaded: {problem}. Try again (it goes on where it stopped), or fetch the file "
        "yourself and give its folder as data.dir"
    )


def _transfer(url: str, part: Path, timeout_seconds: float) -> None:
    """Append to `part` what is still missing of `url`; ConnectionError if not all of it has come."""
    num_bytes = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_bytes}-"} if num_bytes else {})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
        if response.status != 206:  # all of it, since nothing is here or this server cannot resume
            num_bytes = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else num_bytes + int(length)
        console = Console(stderr=True)
        columns = (*Progress.get_default_columns(), DownloadColumn())
        with (
            part.open("ab" if num_bytes else "wb") as file,
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            bar = progress.add_task(url.rpartition("/")[2], total=total, completed=num_bytes)
            while chunk := response.read1(_CHUNK_BYTES):  # what has come, so that a stall loses nothing
                file.write(chunk)
                progress.update(bar, advance=len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError("the connection broke off")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
