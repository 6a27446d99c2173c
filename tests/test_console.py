"""A run's output on a terminal, in a log and with limited encodings."""

import ast
import importlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cifar_research.display import console

REPORT = {
    "status": "completed",
    "config": {"name": "wide [v2]"},  # in brackets, as rich writes its own markup
    "data": {"name": "cifar10", "sizes": {"train": 45000, "val": 5000, "test": 10000}, "note": None},
    "train": {"loss": 0.41, "accuracy": 0.8},
    "val": {"loss": 0.92, "accuracy": 0.66},
    "test": {"loss": 0.91, "accuracy": 0.6543},
    "best_epoch": 7,
    "epochs": 10,
    "seconds": {"total": 300.2, "train": 250.0},
    "images_per_second": 2346.4,
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
        display.epoch(ROW | {"epoch": 2, "val_loss": 1.6}, best=False)
        display.results(REPORT, Path(FOLDER), ["scripts/tensorboard outputs"])


def written(report=REPORT, **options):
    """Return a display's output to a file that is not a terminal."""
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


def test_an_epoch_is_a_row_under_one_header_with_a_star_for_the_best():
    lines = log().splitlines()
    header, first = [line for line in lines if line.split()[:2] in (["epoch", "loss"], ["1", "1.2500"])]
    second = next(line for line in lines if line.split()[:1] == ["2"])
    assert lines[lines.index(header) - 1] == "* best so far by validation accuracy; the best epoch is tested at the end"
    assert first.split() == ["1", "1.2500", "0.5000", "1.5000", "0.4375", "0.005", "10.5", "2,345", "*"]
    assert second.split() == ["2", "1.2500", "0.5000", "1.6000", "0.4375", "0.005", "10.5", "2,345"]
    assert len(header) == len(second) == len(first) - len(" *")


def test_a_command_finds_a_module_of_the_folder_that_it_is_started_in(tmp_path, monkeypatch):
    (tmp_path / "module_of_this_folder.py").write_text("x = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "module_of_this_folder", raising=False)
    values = []
    console.command(lambda: values.append(importlib.import_module("module_of_this_folder").x))()
    assert values == [3]


def shown(*rows, monitor="accuracy", phases=(("scratch", "", "images/s"),)):
    """Return the lines of a run whose phases each have these epochs."""
    file = io.StringIO()
    with console.Display(console=Console(file=file)) as display:
        display.start(total_steps=10, initial_step=0, epochs=len(rows), monitor=monitor)
        for phase in phases:
            display.phase(*phase)
            for row in rows:
                display.epoch(row, best=True)
    return file.getvalue().splitlines()


def test_the_legend_says_which_epoch_is_the_best():
    assert shown(ROW, monitor="loss")[0] == "* best so far by validation loss; the best epoch is tested at the end"
    lines = shown(ROW | {"val_loss": None, "val_accuracy": None})
    assert lines[0] == "There are no validation images: the last epoch is tested at the end"
    assert lines[-1].split() == ["1", "1.2500", "0.5000", "–", "–", "0.005", "10.5", "2,345"]


def test_phases_go_by_their_names_and_kept_features_are_not_called_images():
    two = (("head", "Phase head, 1 of 2: 1 epoch", "features/s"), ("top", "Phase top, 2 of 2: 1 epoch", "images/s"))
    first, legend, header, _, second, other_header, _ = shown(ROW, phases=two)
    assert [first, second] == [title for _, title, _ in two] and legend.startswith("* ")
    assert header.split()[-1] == "features/s" and other_header.split()[-1] == "images/s"


def test_a_log_of_its_own_has_the_lines_and_no_progress(caplog, monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0)
    caplog.set_level(logging.INFO)
    plain = [line for line in log().splitlines() if line and not line.startswith("epoch 1/2")]
    assert [record.getMessage() for record in caplog.records] == plain
    caplog.clear()
    terminal(80)
    assert [record.getMessage() for record in caplog.records] == plain
    caplog.clear()
    show(console.Display(console=Console(file=io.StringIO()), quiet=True))
    assert not caplog.records


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
    assert ["epoch", "images", "loss", "accuracy", "95", "%", "interval"] in lines
    assert ["train", "7", "45,000", "0.4100", "0.8000", "–"] in lines
    assert ["validation", "7", "5,000", "0.9200", "0.6600", "0.6468", "–", "0.6730"] in lines
    assert ["test", "7", "10,000", "0.9100", "0.6543", "0.6449", "–", "0.6636"] in lines
    assert "Best epoch 7 of 10; 300 s in all, 250 s of training, 2,346 images/s." in written()


@pytest.mark.parametrize(
    ("units", "unit"), [(["features/s"], "features/s"), (["features/s", "images/s"], "images/s")], ids=["one", "two"]
)
def test_the_last_lines_speed_has_the_unit_of_its_phases(units, unit):
    file = io.StringIO()
    with console.Display(console=Console(file=file)) as display:
        for number, of_phase in enumerate(units):
            display.phase(f"phase {number}", "", of_phase)
        display.results(REPORT, Path("run"), [])
    assert f", 2,346 {unit}." in file.getvalue()


def test_results_of_a_run_that_never_finished_an_epoch():
    nothing = dict.fromkeys(("train", "val", "test", "best_epoch", "images_per_second"))
    text = written(REPORT | nothing | {"status": "diverged"})
    assert "wide [v2]: diverged" in text
    assert ["test", "–", "10,000", "–", "–", "–"] in [line.split() for line in text.splitlines()]
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


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"? ? ?\n"), ("latin-1", b"\xe9 ? ?\n"), ("utf-8", b"\xc3\xa9 ? \xe2\x80\x93\n")],
)
def test_a_missing_letter_is_a_question_mark(encoding, expected):
    code = r"from cifar_research.display import console; console.command(lambda: print('\xe9 \udcff \u2013'))()"
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environ, check=True).stdout == expected


@pytest.mark.parametrize(
    ("body", "redirection", "code", "message"),
    [
        ("print('words')", "| true", 0, ""),
        ("print('words' * 100_000)", "| true", 0, ""),
        ("print('words'); sys.exit(3)", "| true", 3, ""),
        ("print('words'); print('words', file=sys.stderr)", ">&- 2>&-", 0, ""),
        ("open('nowhere/file')", "", 1, "error: nowhere/file: No such file or directory\n"),
        ("raise KeyboardInterrupt", "", 130, "error: interrupted\n"),
        pytest.param(
            "print('words')", ">/dev/full", 1, "error: standard output: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux"),
        ),
    ],
)  # fmt: skip
def test_a_command_ends_with_a_sentence_whatever_its_output_is(body, redirection, code, message):
    program = (
        f"import sys; from cifar_research.display import console\ndef main():\n    {body}\nconsole.command(main)()"
    )
    line = f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}'
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["bash", "-c", line, sys.executable, program]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd="/", env=environ)
    assert (done.returncode, done.stderr) == (code, message)


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    for path in (Path(__file__).parents[1] / "cifar_research").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, given = getattr(call.func, "attr", getattr(call.func, "id", "")), {word.arg for word in call.keywords}
            modes = {word.value for word in call.args[:2] if isinstance(word, ast.Constant)} & {"r", "w", "a", "r+"}
            is_text = name in ("read_text", "write_text") or (name == "open" and modes)
            assert not is_text or "encoding" in given, f"{path.name}, line {call.lineno}"
            assert "text" not in given or "errors" in given, f"{path.name}, line {call.lineno}"


def test_the_console_report_and_figures_do_not_import_tensorflow():
    code = (
        "import sys; from cifar_research.display import console, figures; from cifar_research.runs import metrics, report;"
        "sys.exit('tensorflow' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
