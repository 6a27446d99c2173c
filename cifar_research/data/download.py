"""Download a published file, resumably, and verify its checksum."""

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
    """Download `url` to `path` if it is missing; the file's SHA-256 must be `sha256`.

    An incomplete file is kept as `path`.part, and continued by the next attempt or run. A complete file with another
    checksum is removed. A lock lets one process download it. DataError, with the address or path, if it fails.
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
            if error.code == 416:  # the part does not belong to this file
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
        f"{url}: could not be downloaded ({problem}); try again (it continues where it stopped), or download the file "
        "yourself and give its folder as data.dir"
    )


def _transfer(url: str, part: Path, timeout_seconds: float) -> None:
    """Append the rest of `url` to `part`; ConnectionError if it is incomplete."""
    num_bytes = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_bytes}-"} if num_bytes else {})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
        if response.status != 206:  # the whole file: nothing to resume, or the server cannot
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
            while chunk := response.read1(_CHUNK_BYTES):  # partial reads, so that a stall loses nothing
                file.write(chunk)
                progress.update(bar, advance=len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError("the connection was lost")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
