"""What a run shows: on a terminal, in a log, and where letters are missing."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cifar_research import console

REPORT = {
    "status": "completed",
    "config": {"name": "wide [v2]"},  # in brackets, as rich writes its own markup
    "data": {"name": "cifar10", "sizes": {"train": 45000, "val": 5000, "test": 10000}, "note": None},
    "train": {"loss": 0.41, "accuracy": 0.8},
    "val": {"loss": 0.92, "accuracy": 0.66},
    "test": {"loss": 0.91, "accuracy": 0.6543},
    "best_epoch": 7,
    "epochs": 10,
    "images_per_second": 2345.6,
    "seconds": {"total": 300.2, "train": 250.0},
}
ROW = {
    "epoch": 1, "step": 100, "phase": "scratch", "learning_rate": 0.005, "loss": 1.25, "accuracy": 0.5,
    "val_loss": 1.5, "val_accuracy": 0.4375, "seconds": 10.5, "images_per_second": 2345.0,
}  # fmt: skip
FOLDER = "/home/somebody/" + "long/" * 40 + "run"


def show(display):
    with display:
        display.announce({"Run": "wide [v2]", "Folder": FOLDER})
        display.start(total_steps=200, initial_step=0, epochs=2)
        display.progress(step=50, epoch=1, loss=1.3, accuracy=0.4, images_per_second=None)
        display.epoch(ROW, best=True)
        display.message("Going on [from] step 100.")
        display.epoch(ROW | {"epoch": 2, "val_loss": None, "val_accuracy": None}, best=False)
        display.results(REPORT, Path(FOLDER), ["scripts/tensorboard outputs"])


def written(report=REPORT, **options):
    """Return what a display writes to a file that is no terminal."""
    file = io.StringIO()
    with console.Display(console=Console(file=file), **options) as display:
        display.results(report, Path("run"), [])
    return file.getvalue()


def log():
    file = io.StringIO()
    show(console.Display(console=Console(file=file)))
    return file.getvalue()


def test_a_log_is_aligned_whole_lines_without_control_characters():
    lines = log().splitlines()
    assert all(letter.isprintable() for line in lines for letter in line)
    assert [line for line in lines if FOLDER in line] == [f"Folder  {FOLDER}", f"Everything is in {FOLDER}"]
    assert "Run     wide [v2]" in lines and "wide [v2]: completed" in lines
    assert "Going on [from] step 100." in lines
    assert lines[-1] == "Next: scripts/tensorboard outputs"
    assert not any(line.startswith("epoch 1/2") for line in lines)  # no bar, and no 30 s have passed


def test_an_epoch_is_a_row_under_one_header_with_a_star_for_the_best_and_a_dash_for_no_validation():
    lines = log().splitlines()
    header, first = [line for line in lines if line.split()[:1] in (["epoch"], ["1"])]
    second = next(line for line in lines if line.split()[:1] == ["2"])
    assert first.split() == ["1", "1.2500", "0.5000", "1.5000", "0.4375", "0.005", "10.5", "2,345", "*"]
    assert second.split() == ["2", "1.2500", "0.5000", "–", "–", "0.005", "10.5", "2,345"]
    assert len(header) == len(second) == len(first) - len(" *")


def test_a_log_gets_a_line_of_progress_only_now_and_then(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with console.Display(console=Console(file=file)) as display:
        display.start(total_steps=120, initial_step=0, epochs=3)
        for step in range(1, 121):
            now[0] += 1
            display.progress(step, 1, 0.5, 0.25, 1234.5)
    lines = file.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["30", "60", "90", "120"]
    assert lines[0].split(maxsplit=4)[4] == "loss 0.5000 accuracy 0.2500 1,234 images/s"


def test_results_have_a_row_a_split_and_an_interval_for_what_was_held_out():
    lines = [line.split() for line in written().splitlines()]
    assert ["train", "45,000", "0.4100", "0.8000", "–"] in lines
    assert ["validation", "5,000", "0.9200", "0.6600", "0.6468", "–", "0.6730"] in lines
    assert ["test", "10,000", "0.9100", "0.6543", "0.6449", "–", "0.6636"] in lines
    assert "Best epoch 7 of 10; 300 s in all, 250 s of training, 2,346 images/s." in written()


def test_results_of_a_run_that_never_finished_an_epoch():
    nothing = {"train": None, "val": None, "test": None, "best_epoch": None, "images_per_second": None}
    text = written(REPORT | nothing | {"status": "diverged"})
    assert "wide [v2]: diverged" in text
    assert ["test", "10,000", "–", "–", "–"] in [line.split() for line in text.splitlines()]
    assert "Best epoch" not in text and "images/s" not in text


def test_a_note_about_the_data_is_shown():
    note = "validated on the test set"
    assert f"Note: {note}" in written(REPORT | {"data": REPORT["data"] | {"note": note}})
    assert "Note" not in written()


def test_quiet_is_silent():
    file = io.StringIO()
    show(console.Display(console=Console(file=file, force_terminal=True), quiet=True))
    assert file.getvalue() == ""


def terminal(width, **environ):
    file = io.StringIO()
    environ = {"TERM": "xterm-256color"} | environ
    show(console.Display(console=Console(file=file, force_terminal=True, width=width, _environ=environ)))
    return file.getvalue()


def test_a_terminal_gets_a_bar_whose_times_are_whole_at_80_columns():
    text = terminal(80)
    assert "━" in text and "0:00:00" in text and "0:00:…" not in text
    assert "epoch 1/2" in text and "loss 1.3000 accuracy 0.4000" in text
    assert f"Everything is in {FOLDER}\n" in text.replace("\x1b[0m", "")  # in one piece, to be copied


def test_no_color_is_respected():
    colours = ("\x1b[36m", "\x1b[32m", "\x1b[33m")
    assert any(colour in terminal(100) for colour in colours)
    assert not any(colour in terminal(100, NO_COLOR="1") for colour in colours)


def test_a_dumb_terminal_gets_the_lines_of_a_log():
    assert terminal(80, TERM="dumb") == log()


@pytest.mark.parametrize("text", ["optimizer.rate: " + "long " * 60, "data.dir=[red]: no folder"])
def test_an_error_is_one_line_on_standard_error(text, capsys):
    console.error(text)
    assert capsys.readouterr() == ("", f"error: {text}\n")


def test_letters_that_cannot_be_encoded_do_not_end_a_run():
    code = "from tests.test_console import *; show(console.Display())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True,
    )  # fmt: skip
    assert "0.6449 ? 0.6636" in done.stdout


def test_the_console_report_and_figures_do_not_import_tensorflow():
    code = (
        "import sys; from cifar_research import console, figures, metrics, report;"
        "sys.exit('tensorflow' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
