"""Measure the framework on a GPU in one go, and write report.md and report.json.

    scripts/gpu_report FOLDER                     all parts, in at most eight minutes
    scripts/gpu_report FOLDER --parts speed       one part, which then has all of that time
    scripts/gpu_report FOLDER --small             on any machine, to see that every part works; its figures mean nothing

FOLDER holds `cifar-10-batches-bin`. Each part is a process with a time limit: what it has measured until then is kept, and
a part that fails costs itself alone. PyTorch is asked for with --torch-python, a Python that has it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch_environment
from benchmark import ROOT, hardware

from cifar_research.display import console

HERE = Path(__file__).resolve().parent
SECONDS = 480
# By name: what it measures, and its share of the time.
PARTS = {
    "environment": ("The card, and the libraries that TensorFlow found", 0.04),
    "speed": ("Images per second, beside keras.fit and PyTorch", 0.28),
    "pipeline": ("A step with its pipeline and augmentation, over a step without", 0.12),
    "accuracy": ("Time to accuracy: `fast`, beside airbench94_muon in PyTorch", 0.28),
    "deterministic": ("The same seed twice, deterministic", 0.07),
    "float16": ("float16 with loss scaling", 0.05),
    "sweep": ("Eight runs of quickstart, 1, 2 and 4 at once on the card", 0.1),
    "tests": ("tests/test_gpu.py", 0.06),
}


def measured(name, limit, words, folder):
    """Run a part; return its rows, its seconds, and what went wrong, if anything did."""
    rows, log, began = folder / f"{name}.jsonl", folder / f"{name}.log", time.perf_counter()
    problem = None
    with rows.open("w") as out, log.open("w") as err:
        command = [sys.executable, HERE / "gpu_parts.py", name, *words]
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        try:
            if code := process.wait(limit):
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                problem = f"exit code {code}: {''.join(last)}"
        except subprocess.TimeoutExpired:
            problem = f"stopped at its limit of {limit:.0f} s; what it had measured is above"
        finally:  # its workers, too
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
                time.sleep(0.5)
            process.wait()
    lines = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
    return {"rows": lines, "seconds": time.perf_counter() - began, "problem": problem}


def markdown(found):
    """Return the report as Markdown: a table for each part, whose columns are those of its rows."""
    lines = ["# On a GPU", "", f"`{found['command']}`, {found['date']}, commit `{found['commit']}`"]
    for name, part in found["parts"].items():
        lines += ["", f"## {PARTS[name][0]}", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_text(row.get(column)) for column in columns)} |" for row in part["rows"]]
            lines.append("")
        if part["problem"]:
            lines += [f"**{part['problem']}**", ""]
        lines.append(f"*{part['seconds']:.0f} s*")
    return "\n".join(lines) + "\n"


def _text(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/")


def _names(text):
    if unknown := set(text.split(",")) - PARTS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    return text.split(",")


@console.command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=_names, default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together; default: %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny, on any machine")
    parser.add_argument("--torch-python", type=Path, help="a Python with PyTorch; default: .venv-torch, which is made")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu_report", help="default: %(default)s")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if not (folder / "cifar-10-batches-bin" / "test_batch.bin").is_file():
        parser.error(f"folder: {folder} has no cifar-10-batches-bin/test_batch.bin; give the folder that holds it")

    def log(text):
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    words = [folder, *(["--small"] if args.small else [])]
    if not args.no_torch:
        words += ["--torch-python", args.torch_python or torch_environment.python(log)]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found = {"command": " ".join(["scripts/gpu_report", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d")}
    found |= {"commit": git.stdout.strip() or "unknown", "hardware": hardware(), "parts": {}}
    args.output.mkdir(parents=True, exist_ok=True)
    shares = sum(PARTS[name][1] for name in args.parts)
    for name in args.parts:
        limit = args.seconds * PARTS[name][1] / shares
        log(f"{name}: at most {limit:.0f} s")
        part = found["parts"][name] = measured(name, limit, words, args.output)
        log(
            f"{name}: {len(part['rows'])} rows in {part['seconds']:.0f} s{': ' if part['problem'] else ''}{part['problem'] or ''}"
        )
        # After each part, so that nothing is lost if it is stopped.
        (args.output / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.output / "report.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    if failed := [name for name, part in found["parts"].items() if part["problem"]]:
        sys.exit(f"error: not complete: {', '.join(failed)}; see {args.output}/report.md")


if __name__ == "__main__":
    main()
