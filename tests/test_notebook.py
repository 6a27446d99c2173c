"""The example notebook runs in a real kernel, and an interrupt of it saves."""

import json
import threading
import time
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"
SMALL = ["backbone.filters=[4]", "model.hidden=[4]", "tensorboard.enabled=false"]


def small(source):
    """Return a cell with small runs."""
    return source.replace('"training.batch_size=32"]', f'"training.batch_size=32", *{SMALL}]')


@pytest.fixture
def notebook(tmp_path):
    """A client that runs cells in a kernel, in a folder of their own."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    client = nbclient.NotebookClient(
        nbformat.read(NOTEBOOK, 4), timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    for cell in client.nb.cells:
        cell.source = small(cell.source)
    assert any(str(SMALL) in cell.source for cell in client.nb.cells)
    return client


def shown(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_notebook_runs_in_a_kernel_and_an_interrupt_of_it_saves(notebook, tmp_path):
    with notebook.setup_kernel():
        check_notebook(notebook)
        check_interrupt(notebook, tmp_path)


def check_notebook(notebook):
    notebook.execute(cleanup_kc=False)
    text = shown(notebook.nb.cells)
    assert "epoch      loss" in text and "quickstart: completed" in text  # of the run
    assert "[2/2] seed=1: completed" in text and "Prediction(label=" in text
    assert all(output.get("name") != "stderr" for cell in notebook.nb.cells for output in cell.get("outputs", ()))


def check_interrupt(notebook, tmp_path):
    import nbclient
    import nbformat

    train = 'run = cifar_research.train([*small, "training.epochs=EPOCHS"], "run")\nprint(run["status"])'
    begin = nbformat.v4.new_code_cell(train.replace("EPOCHS", "60"))
    handlers = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    notebook.nb.cells = [begin, nbformat.v4.new_code_cell(handlers)]

    def interrupt():
        end = time.monotonic() + 200
        while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < end:
            time.sleep(0.01)
        kernel.send_signal(2)

    kernel = notebook.km.provisioner.process
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
        notebook.execute_cell(begin, 0)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "stopped" and report["signal"] == 2
    notebook.execute_cell(notebook.nb.cells[1], 1)
    assert shown(notebook.nb.cells[1:]) == "True\n"
    again = nbformat.v4.new_code_cell(begin.source)
    notebook.nb.cells.append(again)
    notebook.execute_cell(again, 2)
    assert "Continuing from step" in shown([again]) and shown([again]).endswith("completed\n")
