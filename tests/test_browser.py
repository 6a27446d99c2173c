"""A sweep's report, and TensorBoard's view of it, in headless Chromium."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from test_compare import write_run
from test_sweep import finish

from cifar_research import report
from cifar_research.comparison import runs
from cifar_research.comparison.ranking import Comparison

pytestmark = [pytest.mark.browser, pytest.mark.draws, pytest.mark.slow]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1800,900", "--virtual-time-budget=30000",
]  # fmt: skip


@pytest.fixture
def chromium():
    result = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if result is None:
        pytest.skip("Chromium is not installed: apt-get install chromium fonts-dejavu-core")
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed: apt-get install poppler-utils")
    return result


@contextlib.contextmanager
def tensorboard(folder):
    """The address of a TensorBoard that watches a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(url, body=None, seconds=90):
    """Return the server's answer, waiting for it."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.5)


def test_hparams_page_shows_the_sweep_by_what_varies(tmp_path, chromium):
    grid = ["-m", "optimizer.learning_rate=0.01,0.001", "loss=categorical_crossentropy,mean_squared_error"]
    # A value that some jobs lack, which would change a column's type.
    grid += ["training.patience=null,2", "tensorboard.enabled=true", "training.epochs=1"]
    finish(tmp_path, *grid)
    with tensorboard(tmp_path / "sweep") as address:
        end = time.monotonic() + 120
        while len(ask(f"{address}/data/runs")) < 9:
            assert time.monotonic() < end
            time.sleep(1)
        infos = ask(f"{address}/data/plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]
        picture, page = tmp_path / "hparams.png", tmp_path / "hparams.pdf"
        # One folder for both: a second start is faster.
        browser = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}"]
        for how in (f"--screenshot={picture}", f"--print-to-pdf={page}"):
            subprocess.run([*browser, how, f"{address}/#hparams"], capture_output=True, timeout=180, check=True)
    assert [info["name"] for info in infos[:3]] == ["loss", "optimizer.learning_rate", "training.patience"]
    assert not [info["name"] for info in infos[3:] if info.get("differs")]
    types = {info["name"]: info["type"] for info in infos}
    assert types["optimizer.learning_rate"] == types["training.patience"] == "DATA_TYPE_FLOAT64"
    assert picture.stat().st_size > 20_000
    # The drawn page, since its elements hide their text from --dump-dom.
    shown = subprocess.run(["pdftotext", "-layout", page, "-"], capture_output=True, text=True, check=True).stdout
    for word in ("TABLE VIEW", "loss", "learning_r", "mean_squared", "categorical_cro", " 0.0010000", " 0.010000"):
        assert word in shown, shown
    assert "None" not in shown and "NaN" not in shown


def test_a_report_is_printed_with_the_figures_that_are_drawn_when_seen(tmp_path, chromium):
    for rate in (0.1, 0.2):
        for dropout in (0.0, 0.5):
            write_run(tmp_path / f"{rate}{dropout}", [f"optimizer.learning_rate={rate}", f"model.dropout={dropout}"])
    report.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    page, address = tmp_path / "report.pdf", f"file://{tmp_path / 'report.html'}"
    browser = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}"]
    subprocess.run([*browser, f"--print-to-pdf={page}", address], capture_output=True, timeout=180, check=True)
    shown = subprocess.run(["pdftotext", "-layout", page, "-"], capture_output=True, text=True, check=True).stdout
    # Tick labels of the main effects, and names that are below the curves alone.
    for word in ("learning_rate 0.2", "dropout 0.5", "dropout 0, learning_rate 0.1, seed"):
        assert word in shown, shown
