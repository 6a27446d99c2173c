"""Time whole runs of a preset over seeds, in turn with airbench94 and airbench94_muon in PyTorch (torch_recipe.py).

    scripts/time_to_accuracy FOLDER                      seeds 0, 1 and 2 of experiment=fast and of both PyTorch recipes
    scripts/time_to_accuracy FOLDER --seeds 0 1 2 3 4 --recipes none --target 0.9 experiment=fast data.val_fraction=0.1

FOLDER holds `cifar-10-batches-bin`. Seconds are medians, told three times: of the whole command, start-up and evaluation in it;
of training; and of training at its steady rate, without tracing and the first call. The seconds to a target are those
until the first epoch whose validation reached it, so that they need data.val_fraction above 0.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch_environment
from benchmark import HERE, ROOT, folder_of_batches, hardware, log, versions

from cifar_research import config
from cifar_research.comparison.statistics import t_half_width
from cifar_research.config.overrides import quoted
from cifar_research.display import console
from cifar_research.display.tables import as_text
from cifar_research.runs.report import read_history
from cifar_research.runtime.errors import ConfigError

RECIPES = {"sgd": "PyTorch, SGD", "muon": "PyTorch, Muon"}


def ours(folder, overrides, seed, target):
    """Train once by the command line, and return what its report says."""
    with tempfile.TemporaryDirectory() as folder_of_run:
        run = Path(folder_of_run, "run")
        fixed = [f"data.dir={quoted(str(folder))}", f"seed={seed}", f"hydra.run.dir={run}", "tensorboard.enabled=false"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "cifar_research.train", *overrides, *fixed],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=ROOT,
        )
        whole = time.perf_counter() - began
        if done.returncode:
            sys.exit(
                f"error: {' '.join(overrides)} ended with exit code {done.returncode}:\n{done.stderr or done.stdout}"
            )
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        history = read_history(run / "history.csv")
    images = report["steps"] * report["config"]["training"]["batch_size"]
    spent = itertools.accumulate(row["seconds"] for row in history)
    reached = [
        seconds
        for row, seconds in zip(history, spent, strict=True)
        if target is not None and row["val_accuracy"] >= target
    ]
    return {
        "test_accuracy": report["test"]["accuracy"],
        "command_seconds": whole,
        "train_seconds": report["seconds"]["train"],
        # There is no steady rate in a run of one call.
        "steady_seconds": report["images_per_second"] and images / report["images_per_second"],
        "evaluate_seconds": report["seconds"]["evaluate"],
        "target_seconds": reached[0] if reached else None,
        "flops": 3 * report["forward_flops"] * images,
    }


def torch(python, folder, recipe, precision, seed):
    """Train once by a recipe in PyTorch, and return what it says of itself."""
    began = time.perf_counter()
    command = [python, HERE / "torch_recipe.py", folder, "--recipe", recipe, "--precision", precision, "--seeds", seed]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"error: torch_recipe.py ended with exit code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout) | {"command_seconds": time.perf_counter() - began}


def interval(values):
    """Return `mean ± half of the 95 % interval` by Student's t, or the value alone."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {np.nan_to_num(t_half_width(values)):.4f}"


@console.command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", help="overrides of the run; default: experiment=fast")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--recipes", nargs="+", choices=[*RECIPES, "none"], default=[*RECIPES], help="of PyTorch; default: both"
    )
    parser.add_argument("--target", type=float, help="also print the seconds until this validation accuracy is reached")
    parser.add_argument("--json", type=Path, default=ROOT / "outputs" / "time_to_accuracy.json")
    args = parser.parse_intermixed_args()
    folder = folder_of_batches(parser, args.folder)
    overrides = args.overrides or ["experiment=fast"]
    try:
        settings = config.parse(overrides)
    except ConfigError as error:
        parser.error(str(error))
    if args.target is not None and settings.data.val_fraction == 0:
        parser.error(
            "--target: needs validation images, and data.val_fraction=0 leaves none; set data.val_fraction=0.1"
        )
    precision = "bfloat16" if settings.training.precision == "bfloat16" else "float32"
    recipes = {RECIPES[recipe]: recipe for recipe in args.recipes if recipe != "none"}
    pythons = {"ours": sys.executable} | ({"torch": torch_environment.python(log)} if recipes else {})
    runs = {name: [] for name in ("ours", *recipes)}
    results = {"command": " ".join(["scripts/time_to_accuracy", *sys.argv[1:]]), "hardware": hardware()}
    results |= {"versions": versions(pythons), "seeds": args.seeds, "runs": runs}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in runs:
            log(f"seed {seed}: {name}")
            if name == "ours":
                run = ours(folder, overrides, seed, args.target)
            else:
                run = torch(pythons["torch"], folder, recipes[name], precision, seed)
            runs[name].append(run)
            log(f"seed {seed}: {name}, test accuracy {run['test_accuracy']:.4f} in {run['command_seconds']:.0f} s")
            # Each time, so that nothing is lost if it is stopped.
            args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    columns = {"command, s": "command_seconds", "training, s": "train_seconds", "steady, s": "steady_seconds"}
    columns |= {"evaluation, s": "evaluate_seconds"}
    table = [["", "test accuracy", *columns]]
    for name, of in runs.items():
        known = [[run[key] for run in of if run.get(key) is not None] for key in columns.values()]
        medians = [f"{statistics.median(values):.1f}" if values else "" for values in known]
        table.append([name, interval([run["test_accuracy"] for run in of]), *medians])
    print(as_text(table))
    if runs["ours"][0]["flops"]:
        print(f"floating-point operations of a training of ours: {runs['ours'][0]['flops']:.3g}")
    if args.target is not None:
        reached = [run["target_seconds"] for run in runs["ours"]]
        times = [f"{seconds:.0f} s" if seconds else "not reached" for seconds in reached]
        print(f"validation accuracy {args.target}: {', '.join(times)}")
    for name in recipes:
        pairs = zip(runs["ours"], runs[name], strict=True)
        ratios = [mine["command_seconds"] / its["command_seconds"] for mine, its in pairs]
        print(f"seconds of the command, ours over {name}: {statistics.median(ratios):.2f}")
    log(f"written to {args.json}")


if __name__ == "__main__":
    main()
