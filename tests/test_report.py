"""The files of a run: history.csv, report.json and figures."""

import errno
import io
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from cifar_research.config.schema import METRICS
from cifar_research.display import figures
from cifar_research.runs import metrics, report
from cifar_research.runtime.errors import ReportError, WriteError
from cifar_research.runtime.files import atomic_write

pytestmark = pytest.mark.draws
ROWS = [
    {
        "epoch": epoch, "step": 10 * epoch, "phase": "head" if epoch < 3 else "all",
        "learning_rate": 0.1 + 0.2, "loss": 2.0 / epoch, "accuracy": 1 / 3, **{f"val_{name}": None for name in METRICS},
        "seconds": 1.5, "images_per_second": None if epoch == 1 else 1000.0,
    }
    for epoch in range(1, 5)
]  # fmt: skip
NOT_FINITE = {"epoch": 5, "val_loss": float("nan"), "val_accuracy": 0.1}
REPORT = {"status": "completed", "config_hash": "ab", "config": {"seed": 0, "augmentation": {}}}


def validated(rows):
    return [row | {"val_loss": 2.5 / row["epoch"], "val_accuracy": 0.1 * row["epoch"]} for row in rows]


def test_speed_is_that_of_the_steps_of_all_phases():
    speeds = {"head": [None, 50_000.0, 40_000.0, 1.0], "backbone": [100.0, 100.0, 100.0]}
    history = [{"phase": phase, "images_per_second": speed} for phase, of in speeds.items() for speed in of]
    assert report.steady_images_per_second(history) == pytest.approx(6 / (3 / 40_000 + 3 / 100))
    assert report.steady_images_per_second(history[:1]) is None


def test_history_comes_back_to_the_bit_and_typed(tmp_path):
    path = tmp_path / "history.csv"
    report.write_history(path, ROWS)
    assert path.read_text().splitlines()[0] == ",".join(report.HISTORY_COLUMNS)
    back = report.read_history(path)
    assert back == ROWS
    assert [type(back[1][c]) for c in ("epoch", "phase", "loss", "val_loss")] == [int, str, float, type(None)]


def damages():
    yield "cut in its last number", lambda content: content[:-3]
    yield "a cell too many", lambda content: content.replace(b",head,", b",head,1,", 1)
    yield "a cell too few", lambda content: content.replace(b",head,", b",", 1)
    yield "no number", lambda content: content.replace(b"1.5", b"one", 1)
    yield "another header", lambda content: content.replace(b"epoch", b"epochs", 1)
    yield "empty", lambda content: b""
    yield "no text", lambda content: b"\xff\xfe" + content


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in damages()])
def test_a_damaged_history_is_one_sentence_with_its_path(damage, tmp_path):
    path = tmp_path / "history.csv"
    report.write_history(path, ROWS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReportError, match="is damaged") as caught:
        report.read_history(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_history_is_the_users_mistake(tmp_path):
    with pytest.raises(ValueError, match="history.csv: cannot be read"):
        report.read_history(tmp_path / "history.csv")


def test_report_comes_back_with_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "report.json"
    odd = {"test": {"loss": float("nan"), "accuracy": 0.5}, "more": (1, float("inf"))}
    report.write_report(path, REPORT | odd)
    assert report.read_report(path) == REPORT | {"test": {"loss": None, "accuracy": 0.5}, "more": [1, None]}
    assert path.read_text().startswith('{\n "status"')


def test_no_report_is_none(tmp_path):
    assert report.read_report(tmp_path / "report.json") is None


@pytest.mark.parametrize("content", [b"", b'{"status": "comple', b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_report_says_what_to_do(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match="delete it and run again") as caught:
        report.read_report(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_write_that_fails_says_how_much_it_needs_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    atomic_write(path, b"before")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WriteError) as caught:
        atomic_write(path, b"x" * 12345)
    assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device)")
    assert "12,345 bytes" in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["report.json"]


def test_a_write_that_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    atomic_write(path, b"before")

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"after")
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["report.json"]


def test_a_write_into_no_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="cannot be written") as caught:
        atomic_write(tmp_path / "missing" / "file", b"")
    assert "[Errno" not in str(caught.value)


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "ordinary").touch()
    atomic_write(tmp_path / "file", b"content")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_versions_name_python_the_packages_and_what_is_unknown(monkeypatch):
    monkeypatch.setattr(report, "_PACKAGES", (*report._PACKAGES, "no-such-package"))
    versions = report.versions()
    named = {"python", "tensorflow", "keras", "numpy", "hydra-core", "omegaconf", "cifar_research"}
    assert named <= versions.keys()
    assert versions["numpy"] == np.__version__ and versions["no-such-package"] == "unknown"


def test_hardware_and_memory():
    hardware = report.hardware(["GPU 0"])
    assert hardware["cpu"] and hardware["cores"] >= 1 and hardware["gpus"] == ["GPU 0"]
    before = report.peak_memory_bytes()
    held = np.ones(200_000_000, np.uint8)
    assert report.peak_memory_bytes() > held.nbytes
    assert 1_000_000 < before < hardware["memory_bytes"] * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_confusion_matrix_has_the_true_classes_as_rows(dtype):
    matrix = metrics.confusion_matrix(np.array([99, 99, 0, 30], dtype), np.array([99, 1, 0, 30], dtype), 100)
    assert matrix.shape == (100, 100) and matrix.dtype == np.int64
    assert {(i, j): matrix[i, j] for i, j in zip(*matrix.nonzero(), strict=True)} == {
        (99, 99): 1, (99, 1): 1, (0, 0): 1, (30, 30): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe 1998, table I, method 3, to the four places printed there
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(right, total, low, high):
    assert metrics.wilson_interval(right / total, total) == pytest.approx((low, high), abs=5e-5)
    share, z = right / total, 1.959963984540054
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    assert metrics.wilson_interval(share, total) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_an_accuracy_of_0_or_1_is_in_its_interval():
    for images in range(1, 2_001):
        assert metrics.wilson_interval(1.0, images)[1] == 1 and metrics.wilson_interval(0.0, images)[0] == 0


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(validated(ROWS), id="two phases"),
        pytest.param(ROWS, id="no validation"),
        pytest.param(validated(ROWS)[:1], id="one epoch"),
        pytest.param([*validated(ROWS), ROWS[0] | NOT_FINITE], id="a loss that is not finite"),
    ],
)
def test_curves_are_drawn(rows, tmp_path):
    figures.curves(tmp_path / "curves.png", rows)
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    drawn = [bool((picture == colour).all(-1).any()) for colour in ((0x44, 0x77, 0xAA), (0xCC, 0x66, 0x77))]
    assert drawn == [True, rows[0]["val_loss"] is not None]


@pytest.mark.parametrize("num_classes", [3, 100])
def test_confusion_is_drawn_with_each_class_in_its_place(num_classes, tmp_path):
    classes = [f"class {i}" for i in range(num_classes)]
    right = figures.png(figures.confusion(np.eye(num_classes, dtype=int) * 9, classes))
    wrong = figures.png(figures.confusion(np.fliplr(np.eye(num_classes, dtype=int)) * 9, classes))
    assert right != wrong
    figures.save(figures.confusion(np.zeros((num_classes, num_classes), int), classes), tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").format == "PNG"


@pytest.mark.parametrize("count", [1, 7])
def test_every_mistake_is_in_its_picture(count):
    colours = np.array([[40 * i + 10, 5, 200 - 20 * i] for i in range(count)], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (count, 32, 32, 3))
    content = figures.png(figures.gallery(images, ["cat → dog"] * count))
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    areas = [int((picture == colour).all(-1).sum()) for colour in colours]
    assert min(areas) > 32 * 32


def test_history_of_numbers_is_json_too(tmp_path):
    report.write_report(tmp_path / "report.json", REPORT | {"history": ROWS})
    assert json.loads((tmp_path / "report.json").read_text())["history"] == ROWS
