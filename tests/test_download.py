"""Downloads: resumed, verified, or rejected with a message."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from cifar_research import config
from cifar_research.data import cifar, datasets
from cifar_research.data.download import fetch
from cifar_research.runtime.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serve CONTENT on loopback, with one of `faults` for each request: cut, stall, other bytes, 404, 503."""

    daemon_threads = True

    def __init__(self, content=CONTENT, faults=(), can_resume=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.can_resume = content, list(faults), can_resume
        self.ranges = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        fault = server.faults.pop(0) if server.faults else None
        server.ranges.append(self.headers.get("Range"))
        if isinstance(fault, int):
            self.send_error(fault)
            return
        content = bytes(len(server.content)) if fault == "other bytes" else server.content
        first = 0
        if server.can_resume and self.headers.get("Range"):
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        end = first + (len(content) - first) // 2 if fault in ("break off", "stall") else len(content)
        self.wfile.write(content[first:end])
        self.wfile.flush()
        if fault == "stall":
            time.sleep(3)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_whole(serve, tmp_path):
    path = tmp_path / "new" / "file"
    fetch(serve().url, path, SHA256)
    assert path.read_bytes() == CONTENT and not path.with_name("file.part").exists()


def test_a_file_that_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    fetch("http://127.0.0.1:1/nobody", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("fault", ["break off", "stall"])
def test_broken_off_it_is_resumed_from_where_it_was(serve, tmp_path, fault):
    server = serve(faults=[fault, fault])
    fetch(server.url, tmp_path / "file", SHA256, timeout_seconds=0.5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    first, *rest = server.ranges
    assert first is None and rest == ["bytes=150000-", "bytes=225000-"]


def test_the_next_run_goes_on_where_this_one_gave_up(serve, tmp_path):
    server = serve(faults=["break off"])
    with pytest.raises(DataError, match="was lost.*try again"):
        fetch(server.url, tmp_path / "file", SHA256, attempts=1)
    assert not (tmp_path / "file").exists()
    fetch(server.url, tmp_path / "file", SHA256)
    assert server.ranges[1] == "bytes=150000-" and (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_is_asked_for_all_again(serve, tmp_path):
    fetch(serve(faults=["break off"], can_resume=False).url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_other_bytes_are_refused_and_removed(serve, tmp_path):
    with pytest.raises(DataError, match=f"not the published {SHA256}"):
        fetch(serve(faults=["other bytes"] * 9).url, tmp_path / "file", SHA256)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_wrong_beginning_is_downloaded_again(serve, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    fetch(serve().url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(serve, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 400_000)
    fetch(serve().url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_error_of_the_server_is_reported(serve, tmp_path):
    server = serve(faults=[404])
    with pytest.raises(DataError, match=r"404.*data\.dir"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert len(server.ranges) == 1
    fetch(serve(faults=[503]).url, tmp_path / "file", SHA256)


def test_nobody_listens(tmp_path):
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/file.*refused"):
        fetch("http://127.0.0.1:1/file", tmp_path / "file", SHA256, attempts=1)


def test_two_at_once_fetch_once(serve, tmp_path):
    server = serve()
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path / "file", SHA256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.ranges) == 1 and (tmp_path / "file").read_bytes() == CONTENT


def test_a_data_set_that_is_not_there_is_downloaded_but_other_bytes_are_never_read(serve, tmp_path, monkeypatch):
    server = serve()
    monkeypatch.setenv("CIFAR_BASE_URL", server.url)
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(cifar, "_decode", lambda *args: pytest.fail("bytes of another checksum were read"))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="not the published 6d958be0"):
        datasets.load(config.parse([f"data.dir={tmp_path / 'data'}"]).data)
