"""Measure the framework on a GPU in one go, and write report.md and report.json.

    scripts/gpu_report FOLDER                     all parts, in at most eight minutes
    scripts/gpu_report FOLDER --parts speed       one part, which then has all of that time
    scripts/gpu_report FOLDER --small             on any machine, to see that every part works; its figures mean nothing

FOLDER holds `cifar-10-batches-bin`. Each part is a process with a time limit. If it fails or is stopped, its rows so far are
kept, and the next part starts. Time that a part does not use goes to the later ones.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch_environment
from benchmark import ROOT, folder_of_batches, hardware, log, versions

from cifar_research.display import console
from cifar_research.display.tables import as_markdown

HERE = Path(__file__).resolve().parent
SECONDS = 480
# By name: the title of its table, and its share of the time. The last one can use whatever is left.
PARTS = {
    "environment": ("The card, and the libraries that TensorFlow loaded", 0.07),
    "accuracy": ("Time to accuracy: `fast`", 0.25),
    "pytorch": ("Time to accuracy: airbench94_muon in PyTorch, compiled", 0.18),
    "pipeline": ("A step with its pipeline and augmentation, over a step without", 0.14),
    "deterministic": ("The same seed twice, deterministic", 0.08),
    "float16": ("float16 with loss scaling, from a scale that is too high", 0.06),
    "tests": ("tests/test_gpu.py", 0.06),
    "sweep": ("Eight runs of quickstart, several at once on the card", 0.1),
    "speed": ("Images per second, beside keras.fit and PyTorch", 0.2),
}


def measured(name, limit, arguments, folder):
    """Run a part; return its rows, its seconds, and what went wrong, if anything did."""
    rows, log, began = folder / f"{name}.jsonl", folder / f"{name}.log", time.perf_counter()
    problem = None
    with rows.open("w") as out, log.open("w") as err:
        command = [sys.executable, HERE / "gpu_parts.py", name, *arguments]
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
    return {"rows": list(_rows(rows)), "seconds": time.perf_counter() - began, "problem": problem}


def _rows(path):
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line that was cut off, or a message of a library
            continue
        if isinstance(row, dict):
            yield row


def markdown(report):
    """Return the report as Markdown: the goals, and a table for each part, whose columns are those of its rows."""
    machine = report["hardware"]
    libraries = ", ".join(f"{name} {of}" for name, of in sorted(report["versions"].items()))
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    lines = ["# On a GPU", "", f"`{report['command']}`, {report['date']}, commit `{report['commit']}`: {gpus}, "
             f"{machine['cores']} cores of {machine['processor']}; {libraries}."]  # fmt: skip
    if goals := _goals(report["parts"]):
        rows = [list(map(_text, goal)) for goal in goals]
        lines += ["", as_markdown([["goal", "measured", "at most", "aim"], *rows])]
    for name, part in report["parts"].items():
        lines += ["", f"## {PARTS[name][0]}", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            rows = [[_text(row.get(column)) for column in columns] for row in part["rows"]]
            lines += [as_markdown([columns, *rows]), ""]
        if part["problem"]:
            lines += [f"**{part['problem']}**", ""]
        lines.append(f"*{part['seconds']:.0f} s*")
    return "\n".join(lines) + "\n"


def _goals(parts):
    """Return (goal, measured, at most, aim) of what was measured; speeds are seconds over seconds."""
    goals, rows = [], {name: part["rows"] for name, part in parts.items()}

    def medians(name):
        seconds = [row["s without compilation"] for row in rows.get(name, []) if row.get("s without compilation")]
        return statistics.median(seconds) if seconds else None

    ours, theirs = medians("accuracy"), medians("pytorch")
    if ours and theirs:
        means = [
            statistics.mean(row["test accuracy"] for row in rows[name] if isinstance(row["test accuracy"], float))
            for name in ("accuracy", "pytorch")
        ]
        accuracies = " and ".join(f"{mean:.4f}" for mean in means)
        goals.append([f"training of `fast` over airbench94_muon's, to {accuracies}", ours / theirs, 1.0, 0.7])
    for row in rows.get("accuracy", [])[:1]:
        goals.append(
            [
                "seconds to the end of the first call",
                row["s of the first call"] + row["s before it, and of saving"],
                40,
                20,
            ]
        )
    for row in rows.get("pipeline", []):
        if "data on the device" in row["what"]:
            ratio = row["over a held batch without augmentation"]
            goals.append([f"{row['what']}: a step over one without", ratio, 1.03, 1.01])
    wide = {row["peer"]: row["ms a step"] for row in rows.get("speed", [])
            if (row.get("model"), row.get("batch")) == ("wide", 512) and "ms a step" in row}  # fmt: skip
    mine = min((of for peer, of in wide.items() if peer.startswith("ours, bfloat16")), default=None)
    for name, most, aim in (("keras.fit", 1 / 2, 1 / 4), ("PyTorch, bfloat16, compiled", 1 / 1.3, 1 / 2)):
        peers = [of for peer, of in wide.items() if peer.startswith(name)]
        if mine and peers:
            goals.append([f"a step of `wide`, batch 512, over {name}", mine / min(peers), most, aim])
    return goals


def _text(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


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
    folder = folder_of_batches(parser, args.folder)
    arguments, pythons = [folder, *(["--small"] if args.small else [])], {"ours": sys.executable}
    if not args.no_torch:
        pythons["torch"] = args.torch_python.absolute() if args.torch_python else torch_environment.python(log)
        arguments += ["--torch-python", pythons["torch"]]
    names = [name for name in args.parts if name != "pytorch" or not args.no_torch]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    report = {"command": " ".join(["scripts/gpu_report", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d")}
    report |= {"commit": git.stdout.strip() or "unknown", "hardware": hardware(), "versions": versions(pythons)}
    report["parts"] = {}
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + args.seconds
    for number, name in enumerate(names):
        share = PARTS[name][1] / sum(PARTS[later][1] for later in names[number:])
        limit = max(end - time.perf_counter(), 1.0) * share
        log(f"{name}: at most {limit:.0f} s")
        part = report["parts"][name] = measured(name, limit, arguments, args.output)
        ending = f": {part['problem']}" if part["problem"] else ""
        log(f"{name}: {len(part['rows'])} rows in {part['seconds']:.0f} s{ending}")
        # After each part, so that nothing is lost if it is stopped.
        (args.output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (args.output / "report.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    if failed := [name for name, part in report["parts"].items() if part["problem"]]:
        sys.exit(f"error: not complete: {', '.join(failed)}; see {args.output}/report.md")


if __name__ == "__main__":
    main()
