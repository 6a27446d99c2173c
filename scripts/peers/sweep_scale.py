"""What a sweep costs by its number of jobs: planning, changes of state, resuming, reports, memory and disk."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cifar_research.display.tables import as_markdown

ROOT = Path(__file__).resolve().parents[2]
SIZES = (10, 100, 1_000, 10_000)
TINY = ["experiment=quickstart", "training.epochs=1", "data.train_images=500", "data.test_images=100"]
TRAIN = [sys.executable, "-m", "cifar_research.train"]

# Plans the grid of its arguments in its own process, writes the ledger and changes states; prints the figures.
PLANNING = """
import json, statistics, sys, time
from pathlib import Path
from cifar_research.config.sweep import parse
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan

folder, settings = Path(sys.argv[1]), parse(sys.argv[2:])
began = time.perf_counter()
jobs = Plan.of(settings).grid()
planned = time.perf_counter() - began
began = time.perf_counter()
ledger = Ledger.open(folder, settings.overrides, jobs)
ledger.write()
written, changes = time.perf_counter() - began, []
for job in ledger.jobs[:1000]:
    began = time.perf_counter()
    ledger.update(job, "running")
    changes.append(time.perf_counter() - began)
print("FIGURES", json.dumps({"planning": planned, "writing": written, "change": statistics.median(changes)}))
"""

# Trains the same run several times in one process; prints the seconds of each.
ALONE = """
import json, sys, time
from cifar_research.config import compose
from cifar_research.training import command

seconds = []
for number in range(6):
    began = time.perf_counter()
    command.train(compose([*sys.argv[2:], f"seed={number}", f"hydra.run.dir={sys.argv[1]}/{number}"]))
    seconds.append(time.perf_counter() - began)
print("FIGURES", json.dumps(seconds))
"""


def sweep_scale(worker, quick, steps, rounds, precision, log):
    """Return the figures of each size, and those that do not depend on the size. Times are in seconds."""
    found = {"sizes": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log("sweep_scale: one run of quickstart")
        subprocess.run(
            [*TRAIN, "experiment=quickstart", f"hydra.run.dir={folder / 'run'}"], check=True, capture_output=True
        )
        found["run_bytes"] = _size(folder / "run")
        log("sweep_scale: the overhead of a job")
        found |= _overhead(folder)
        for size in SIZES[: 2 if quick else None]:
            log(f"sweep_scale: {size} jobs")
            found["sizes"][size] = _of_size(size, folder, folder / "run")
    return found


def _of_size(size, folder, run):
    """Return the figures of a grid of this many jobs."""
    grid = ["experiment=quickstart", f"seed=range({size // 2})", "optimizer.learning_rate=0.001,0.01"]
    sweep = folder / f"sweep_{size}"
    sweep.mkdir()
    figures = _figures(PLANNING, sweep, *grid)
    shutil.rmtree(sweep)
    figures |= _start([*TRAIN, "-m", *grid, f"hydra.sweep.dir={sweep}"], sweep)
    finish(sweep, run)
    for name, command in {
        "resume": [*TRAIN, f"resume={sweep}"],
        "report": [sys.executable, "-m", "cifar_research.report", sweep, "--write"],
    }.items():
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        figures[name] = time.perf_counter() - began
    figures["html_bytes"] = (sweep / "report.html").stat().st_size
    shutil.rmtree(sweep)
    return figures


def _figures(code, *arguments):
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return json.loads(next(line for line in output.stdout.splitlines() if line.startswith("FIGURES "))[8:])


def _start(command, sweep):
    """Return the seconds from the command to the first job's start, and the process's memory then; kill it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    ledger = sweep / "jobs.jsonl"
    while not (ledger.exists() and b'"state": "running"' in _end_of(ledger)):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    status = Path(f"/proc/{process.pid}/status").read_text()
    memory = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    os.kill(process.pid, signal.SIGKILL)  # its workers end with it
    process.wait()
    return {"start": seconds, "memory_bytes": memory}


def _end_of(path):
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 300))
        return file.read()


def finish(sweep, run):
    """Give every job of a sweep's ledger the report and history of a run, with a score of its own."""
    from cifar_research.runs import ledger, report
    from cifar_research.runtime import files

    ended = report.read_report(run / "report.json")
    history = (run / "history.csv").read_bytes()
    for number, job in enumerate(ledger.read(sweep)[1]):
        folder = sweep / job.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        accuracy = round(0.5 + 0.4 * (number * 7919 % 1000) / 1000, 4)
        scores = {
            "val": {"loss": 1.5 - accuracy, "accuracy": accuracy},
            "test": {"loss": 1.5 - accuracy, "accuracy": accuracy},
        }
        changed = {"config": job.config, "config_hash": job.identity.hash, "seed": job.config["seed"], **scores}
        (folder / "history.csv").write_bytes(history)
        # Not by `write_report`, which waits for the disk each time.
        (folder / "report.json").write_bytes(files.dumps({**ended, **changed}))


def _overhead(folder):
    """Return the seconds of a job in a sweep's warm worker, and of the same run alone in a warm process."""
    alone = _figures(ALONE, folder / "alone", *TINY)
    sweep = folder / "overhead"
    command = [*TRAIN, "-m", *TINY, "seed=range(8)", f"hydra.sweep.dir={sweep}"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    ends = sorted(path.stat().st_mtime for path in sweep.glob("*/report.json"))
    in_sweep = [after - before for before, after in zip(ends[1:], ends[2:], strict=False)]
    return {"job_seconds": statistics.median(in_sweep), "alone_seconds": statistics.median(alone[2:])}


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(found):
    """Return the figures as lines of Markdown."""
    sizes = found["sizes"]
    texts = {
        "command to the first job's start, s": lambda size, of: f"{of['start']:.1f}",
        "planning, ms a job": lambda size, of: f"{1e3 * of['planning'] / size:.2f}",
        "a change of state, ms": lambda size, of: f"{1e3 * of['change']:.3f}",
        "resuming, nothing to do, s": lambda size, of: f"{of['resume']:.1f}",
        "report, s": lambda size, of: f"{of['report']:.1f}",
        "report.html, MB": lambda size, of: f"{of['html_bytes'] / 1e6:.2f}",
        "memory of the sweep's process, MB": lambda size, of: f"{of['memory_bytes'] / 1e6:.0f}",
    }
    rows = [[name, *(text(int(size), of) for size, of in sizes.items())] for name, text in texts.items()]
    return [
        "",
        "## A sweep by its number of jobs",
        "",
        as_markdown([["", *(f"{size:,}" for size in sizes)], *rows]),
        "",
        f"A job takes {found['job_seconds']:.2f} s in a warm worker, and {found['alone_seconds']:.2f} s alone in a warm "
        f"process. A finished run of quickstart takes {found['run_bytes'] / 1e6:.1f} MB.",
    ]
