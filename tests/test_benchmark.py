"""The benchmark: every peer trains, ratios are taken within rounds; no time is asserted."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "scripts" / "peers"
TORCH = ROOT / ".venv-torch" / "bin" / "python"


def run(*arguments, python=sys.executable):
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def batches(tmp_path):
    """A folder in the published binary layout, 20 images a file."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        rows = rng.integers(0, 256, (20, 3073), np.uint8)
        rows[:, 0] = np.arange(20) % 10
        rows.tofile(folder / name)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_tables_put_ratios_first_and_take_them_within_a_round(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import tables

    def peer(name, kind, precision, train):
        base = {
            "facts": {"forward_flops": 1e6, "matrix_flops": 40 * 2048**3},
            "evaluate": [1.0] * 3,
            "peak_memory_bytes": 2e9,
            "images": 1200,
            "scored": 1200,
        }
        matrix = [0.5] * 3 if kind == "ours" else []
        return base | {"name": name, "kind": kind, "precision": precision, "train": train, "matrix": matrix}

    peers = [
        peer("ours, bfloat16", "ours", "bfloat16", [1.0, 2.0, 4.0]),
        peer("keras.fit, bfloat16", "keras", "bfloat16", [9.0, 9.0, 9.0]),
        peer("keras.fit, float32", "keras", "float32", [3.0, 4.0, 40.0]),
    ]
    machine = {"processor": "P", "cores": 2, "units": [], "gpus": []}
    result = {"command": "c", "date": "d", "hardware": machine, "versions": {}, "rounds": 3, "steps": 50}
    result |= {"training": [{"model": "wide", "batch_size": 128, "peers": peers}]}
    result |= {
        "pipeline": {"images_per_second": {"ours": 8.0, "keras": 4.0, "tf_image": 2.0}, "step_milliseconds": 10.0}
    }
    result |= {
        "sweep": {
            "images": 5,
            "precision": "float32",
            "seconds": {"ours, 1 job": [2.0], "ours, 2 jobs": [1.0], "keras.fit": [8.0]},
        }
    }
    text = tables.markdown(result)
    assert "| ours, bfloat16, over the best keras.fit | 3.00 | 2.00 – 10.00 |" in text
    assert "| ours, bfloat16, over bfloat16 keras.fit | 4.50 | 2.25 – 9.00 |" in text
    assert text.index("ratio") < text.index("images/s, evaluation")
    assert "| ours, bfloat16 | 600 | 300 – 1,200 | 1,200 | 2,000 | 0.00 of 687 GFLOP/s |" in text
    assert "20.0% of a step of `wide`" in text  # 10 ms beside 40 ms a step
    assert "| keras.fit | 8.0 | 4.00 |" in text


# A worker of the benchmark in a process that need not import TensorFlow; it multiplies its matrices once.
WORKER = """
import os, sys
sys.stdin, sys.stdout, sys.argv = open(sys.argv[1]), open(sys.argv[2], "w"), sys.argv[3:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
source = open(sys.argv[0]).read().replace("PRODUCTS = 20", "PRODUCTS = 1")
exec(compile(source, sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})
"""


def start_worker(folder, command, env, **settings):
    """Start a worker of the benchmark as a fork, with its pipes in this folder."""
    if command[0] != sys.executable:  # PyTorch's
        return subprocess.Popen(command, env=env, **settings)
    pipes = [folder / f"{name}-{len(list(folder.iterdir()))}" for name in ("in", "out")]
    for pipe in pipes:
        os.mkfifo(pipe)
    process = forked.Process([*pipes, *command[1:]], code=WORKER, env=env, cwd=ROOT)
    return SimpleNamespace(stdin=pipes[0].open("w"), stdout=pipes[1].open(), wait=process.wait, args=command)


def run_command(command, cwd=None, check=False, **settings):
    """Do what subprocess.run does, with a module of Python's as a fork."""
    if command[1] != "-m":
        return subprocess.run(command, cwd=cwd, check=check, **settings)
    done = forked.run(command[3:], module=command[2], cwd=cwd)
    if check:
        done.check_returncode()
    return done


def enter_part(folder, outputs):
    """Make this fork a part of gpu_report that writes to these files, and whose processes are forks, too."""
    forked._write_to(outputs)
    sys.path.insert(0, str(PEERS))
    import benchmark
    import gpu_parts

    Popen = functools.partial(start_worker, folder)
    benchmark.subprocess = SimpleNamespace(PIPE=subprocess.PIPE, Popen=Popen, run=subprocess.run)
    names = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "Popen")}
    gpu_parts.subprocess = SimpleNamespace(**names, run=run_command)


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """Have the benchmark's commands run as forks, and return a function that runs its main program here."""
    monkeypatch.syspath_prepend(PEERS)
    import benchmark
    import gpu_report
    import time_to_accuracy

    def start_part(command, stdout, stderr, **settings):
        if "environment" in command:  # a real process, as all of them are in scripts/gpu_report
            return subprocess.Popen(command, stdout=stdout, stderr=stderr, **settings)
        hook = functools.partial(enter_part, tmp_path, (stdout.name, stderr.name))
        return forked.Process(command[2:], module="gpu_parts", cwd=ROOT, hook=hook)

    peers = benchmark.peers

    def one_of_a_kind(*given):
        every = peers(*given)
        first, last = ({peer.kind: peer for peer in order} for order in (reversed(every), every))
        return [*(last | {"keras": first["keras"]}).values()]  # in two precisions, where the processor has them

    monkeypatch.setattr(benchmark, "peers", one_of_a_kind)
    start = functools.partial(start_worker, tmp_path)
    fake = SimpleNamespace(PIPE=subprocess.PIPE, Popen=start, run=subprocess.run)
    monkeypatch.setattr(benchmark, "subprocess", fake)
    monkeypatch.setattr(time_to_accuracy, "subprocess", SimpleNamespace(run=run_command))
    fake = SimpleNamespace(Popen=start_part, run=subprocess.run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu_report, "subprocess", fake)
    monkeypatch.chdir(ROOT)

    def main(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return SimpleNamespace(main=main, benchmark=benchmark, time_to_accuracy=time_to_accuracy, gpu_report=gpu_report)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wide", "fast"])
def test_every_peer_trains_and_what_was_found_is_written(tmp_path, forks, capsys, model):
    small = ["--models", model, "--batch-sizes", 8, "--steps", 2, "--rounds", 1, "--output", tmp_path]
    kinds = ["ours", "keras", *(["torch"] if TORCH.exists() else [])]
    parts = ["training", "pipeline"] if model == "wide" else ["training"]
    forks.main(forks.benchmark, "--quick", *small, "--peers", *kinds, "--parts", *parts)
    actual = json.loads((tmp_path / "benchmark.json").read_text())
    (result,) = actual["training"]
    assert {peer["kind"] for peer in result["peers"]} == set(kinds)
    for peer in result["peers"]:
        assert len(peer["train"]) == len(peer["evaluate"]) == 1 and peer["images"] == 16
        assert peer["peak_memory_bytes"] > 1e8
    # All peers build the same network; PyTorch does not count moving statistics.
    sizes = {peer["facts"]["parameters"] for peer in result["peers"] if peer["kind"] != "torch"}
    assert len(sizes) == 1
    output = capsys.readouterr().out
    assert (tmp_path / "benchmark.md").read_text() in output
    assert f"## {model}, batch 8" in output and ("`slides`" in output) == ("pipeline" in parts)


@pytest.mark.slow
def test_time_to_accuracy_tells_of_each_seed(tmp_path, batches, forks, capsys):
    small = ["experiment=fast", "training.batch_size=20", "training.epochs=1", "data.cache_dir=" + str(tmp_path)]
    small += ["backbone.filters=[8,16]", "training.precision=float32"]
    arguments = [batches, "--recipes", "none", "--seeds", 3, 4, "--json", tmp_path / "found.json", *small]
    forks.main(forks.time_to_accuracy, *arguments)
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]["ours"]
    assert len(runs) == 2 and all(0 <= one["test_accuracy"] <= 1 and one["flops"] > 1e6 for one in runs)
    assert all(one["command_seconds"] > one["train_seconds"] > 0 for one in runs)
    assert "±" in capsys.readouterr().out


def test_time_to_accuracy_refuses_a_folder_without_batches(tmp_path):
    done = subprocess.run([sys.executable, PEERS / "time_to_accuracy.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "cifar-10-batches-bin" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not TORCH.exists(), reason="PyTorch's environment is made by scripts/benchmark")
@pytest.mark.parametrize("recipe", ["sgd", "muon"])
def test_torch_recipe_trains(batches, recipe):
    arguments = [PEERS / "torch_recipe.py", batches, "--recipe", recipe, "--precision", "float32", "--seeds", 0, 1]
    lines = run(*arguments, "--epochs", 1.4, "--batch-size", 20, python=TORCH).stdout.splitlines()
    runs = [json.loads(line) for line in lines]
    assert [run["seed"] for run in runs] == [0, 1]
    assert all(np.isfinite(run["loss"]) and 0 <= run["test_accuracy"] <= 1 for run in runs)


def test_a_peer_that_fails_is_reported_and_the_others_go_on(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import benchmark
    import tables

    facts = "dict(seconds=1.0, loss=0.5, peak_memory_bytes=7, forward_flops=1.0, matrix_flops=1.0)"
    answering = (
        f"import json, sys\nsay = lambda: print(json.dumps({facts}), flush=True)\nsay()\nfor _ in sys.stdin: say()"
    )
    scripts = {"ours": answering, "keras": "raise SystemExit('out of memory')"}
    chosen = [benchmark.Peer("one", "ours"), benchmark.Peer("other", "keras")]

    def start(peer, *_):
        peer.images = peer.scored = 100
        return benchmark.Worker([sys.executable, "-c", scripts[peer.kind]])

    monkeypatch.setattr(benchmark, "start", start)
    messages = []
    asked = {"ours": ["train", "evaluate", "matrix"], "keras": ["train", "evaluate"]}
    measured = benchmark.training({"ours": "", "keras": ""}, chosen, "wide", 128, 50, 2, asked, messages.append)
    assert [peer.failure for peer in measured] == ["", "out of memory"]
    assert measured[0].train == [1.0, 1.0] and measured[1].train == []
    assert any("out of memory" in line for line in messages)
    machine = {"processor": "P", "cores": 2, "units": [], "gpus": ["a GPU"]}
    actual = {"command": "c", "date": "d", "hardware": machine, "versions": {}, "rounds": 2, "steps": 50}
    result = {"model": "wide", "batch_size": 128, "peers": [vars(peer) for peer in measured]}
    text = tables.markdown(actual | {"training": [result]})
    assert "| one | 100 | 100 – 100 |" in text and "other failed: `out of memory`" in text


@pytest.mark.slow
def test_gpu_report_measures_each_part_and_writes_tables(batches, tmp_path, forks, capsys):
    assert "usage:" in run(PEERS / "gpu_report.py", "--help").stdout
    arguments = [batches, "--small", "--seconds", 3000, "--output", tmp_path / "out"]
    forks.main(forks.gpu_report, *arguments, *(["--torch-python", TORCH] if TORCH.exists() else ["--no-torch"]))
    shown = capsys.readouterr().out
    parts = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]
    assert {name: part["problem"] for name, part in parts.items()} == dict.fromkeys(parts)
    assert len(parts) == (9 if TORCH.exists() else 8)
    ours, keras = parts["speed"]["rows"]
    assert ours["images/s"] > 0 and 0 < ours["% of the matrix rate"] < 100 and "% of the matrix rate" not in keras
    assert parts["deterministic"]["rows"][-1] == {"run": "equal to the bit", "weights": "True"}
    assert parts["float16"]["rows"][-1]["loss"] > 0  # overflows
    assert parts["sweep"]["rows"][0]["jobs a minute"] > 0 and "1 passed" in parts["tests"]["rows"][0]["tests"]
    assert (tmp_path / "out" / "report.md").read_text() in shown and "| ours, float32, one program of 100 |" in shown
    assert (
        "| seconds to the end of the first call |" in shown and "data on the device: a step over one without |" in shown
    )


def test_a_part_of_gpu_report_that_fails_or_takes_too_long_costs_itself_alone(batches, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import gpu_report

    script = tmp_path / "gpu_parts.py"
    script.write_text(
        "import sys, time\n"
        "print('{\"what\": 1}', flush=True)\n"
        "if sys.argv[1] == 'speed': sys.exit('no card')\n"
        "if sys.argv[1] == 'sweep': time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_report, "HERE", tmp_path)
    arguments = [
        str(batches),
        "--no-torch",
        "--parts",
        "speed,sweep,tests",
        "--seconds",
        "9",
        "--output",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["gpu_report", *arguments])
    with pytest.raises(SystemExit, match="not complete: speed, sweep; see"):
        gpu_report.main()
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts["speed"]["problem"] == "exit code 1: no card"
    assert parts["sweep"]["problem"].startswith("stopped at its limit of") and parts["tests"]["problem"] is None
    assert all(part["rows"] == [{"what": 1}] for part in parts.values())
