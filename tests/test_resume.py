"""A killed, stopped or damaged run resumes to the same end, or explains why it cannot."""

import copy
import json
import shutil
import signal
from pathlib import Path

import forked
import numpy as np
import pytest
from forked import wait_for
from PIL import Image

from cifar_research import config
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.display import console
from cifar_research.evaluation import images as evaluation
from cifar_research.runs import checkpoint, report
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ConfigError, DataError
from cifar_research.sweeps import plan
from cifar_research.sweeps.ledger import Ledger
from cifar_research.training.run import run as train_run

# All state of a run: dropout, augmentation, averages, a schedule, batch normalisation, partial batches.
OVERRIDES = [
    "data=synthetic", "data.train_images=400", "data.test_images=100", "backbone.filters=[8,8]", "model=wide",
    "model.hidden=[16]", "backbone.batch_norm=true", "augmentation=[flip,shift]", "schedule=cosine",
    "training.ema_decay=0.9", "training.epochs=4", "training.batch_size=32", "loss=categorical_crossentropy",
    "optimizer.learning_rate=0.001", "tensorboard.enabled=false", "training.threads=1", "seed=3",
]  # fmt: skip
STEPS = 4 * 12
TIMES = ("seconds", "images_per_second", "peak_memory_bytes", "history_sha256")  # which holds seconds


def command(folder, *more, overrides=OVERRIDES):
    return [*overrides, f"hydra.run.dir={folder}", *more]


def start(folder, *more, **changes):
    return forked.Process(command(folder, *more, **changes))


def finish(folder, *more, code=0, **changes):
    done = forked.run(command(folder, *more, **changes))
    assert done.returncode == code, done.stdout + done.stderr
    return done


def checkpoints(folder):
    return sorted((Path(folder) / "checkpoints").glob("step-*.ckpt"))


def result(folder):
    """Return all that must be equal to the bit: variables, history, report."""
    folder = Path(folder)
    last = checkpoint.read(checkpoints(folder)[-1])
    best = checkpoint.read(folder / "checkpoints" / f"step-{last.meta['best']['step']:08d}.ckpt")
    actual = report.read_report(folder / "report.json")
    history = [{k: v for k, v in row.items() if k not in TIMES} for row in last.meta["history"]]
    arrays = {
        name: value.tobytes()
        for name, value in (last.arrays | {f"best/{k}": v for k, v in best.arrays.items()}).items()
    }
    return arrays, history, {k: v for k, v in actual.items() if k not in TIMES}


def assert_same(first, second):
    assert first[0].keys() == second[0].keys()
    assert not [name for name in first[0] if first[0][name] != second[0][name]]
    assert first[1] == second[1] and first[2].keys() == second[2].keys()
    assert not {key: (value, second[2][key]) for key, value in first[2].items() if value != second[2][key]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(folder)
    return folder


# Two phases: a frozen backbone with cached augmented features, then its last layers too.
PHASES = [
    "training=combined", "training.epochs=3", "training.phases.backbone.trainable={last:2}",
    "training.phases.backbone.learning_rate=0.01", "training.phases.backbone.learning_rate_decay_by_depth=0.5",
    "features.views=2",
]  # fmt: skip


# An optimizer that is kept is tested where it matters: at the change.
@pytest.mark.parametrize(("mode", "epochs"), [("reset", (1, 3, 4)), ("keep", (3,))])
def test_killed_before_at_and_after_a_change_of_phase_it_ends_identical_to_the_bit(tmp_path, mode, epochs, weights_for):
    arguments = [*PHASES, f"training.phases.backbone.optimizer={mode}", weights_for(*OVERRIDES)]
    overrides = [word for word in OVERRIDES if not word.startswith("training.epochs")] + arguments
    finish(tmp_path / "whole", overrides=overrides)
    expected, folder = result(tmp_path / "whole"), tmp_path / "run"
    assert [row["phase"] for row in expected[1]] == ["head"] * 3 + ["backbone"] * 3
    for target in epochs:
        process = start(folder, overrides=overrides)
        wait_for(
            lambda target=target: checkpoints(folder)[-1:] >= [folder / "checkpoints" / f"step-{target * 12:08d}.ckpt"],
            process,
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(folder, overrides=overrides)
    assert_same(result(folder), expected)


# See faults/test_signals.py for other signals.
def test_stopped_in_mid_epoch_it_saves_exits_and_goes_on(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(lambda: checkpoints(folder), process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, output + errors
    assert "Traceback" not in output + errors
    assert json.loads((folder / "report.json").read_text())["status"] == "stopped"
    assert f"resume={folder}" in output.replace("\n", "")
    stopped_at = int(checkpoints(folder)[-1].stem[5:])
    assert 12 <= stopped_at < STEPS
    done = forked.run([f"resume={folder}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step {stopped_at}" in done.stdout
    assert_same(result(folder), result(uninterrupted))


# By `fast`: compiled activations, filter gradients of images side by side where the processor is made for it, Muon,
# alternating flips. By `dropout`: batches in parts, each with its rows of the batch's masks.
@pytest.mark.parametrize(
    "arguments",
    [
        "experiment=fast backbone.activation=gelu backbone.filters=[8,64]",
        "experiment=dropout backbone.filters=[8,8,64] training.threads=2 training.precision=bfloat16",
    ],
)
def test_what_is_made_for_speed_goes_on_to_the_bit_too(tmp_path, arguments):
    overrides = [
        *arguments.split(), "data=synthetic", "data.train_images=400", "data.test_images=100", "data.val_fraction=0.1",
        "training.batch_size=32", "training.epochs=3", "training.steps_per_call=4", "tensorboard.enabled=false",
    ]  # fmt: skip
    finish(tmp_path / "whole", overrides=overrides)
    folder = tmp_path / "run"
    process = start(folder, overrides=overrides)
    wait_for(lambda: checkpoints(folder), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(folder, overrides=overrides)
    assert_same(result(folder), result(tmp_path / "whole"))


def test_ended_run_returns_its_report_without_training(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").iterdir()}
    report = (uninterrupted / "report.json").read_bytes()
    done = finish(uninterrupted)
    assert (uninterrupted / "report.json").read_bytes() == report
    assert before == {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").iterdir()}
    assert "already" in done.stdout


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run killed after its second checkpoint, and the output of a second process there before."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = start(folder)
    wait_for(lambda: len(checkpoints(folder)) == 2, process)
    process.send_signal(signal.SIGSTOP)
    second = finish(folder, code=2)
    process.kill()
    return folder, second


def test_second_process_in_the_folder_says_so(killed):
    assert "another process" in killed[1].stderr


def test_damaged_latest_checkpoint_falls_back(uninterrupted, killed):
    folder, _ = killed
    latest = checkpoints(folder)[-1]
    latest.write_bytes(latest.read_bytes()[:-1000])
    done = finish(folder)
    assert latest.name in (folder / "train.log").read_text() and latest.name in done.stdout + done.stderr
    assert_same(result(folder), result(uninterrupted))


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    overrides = [
        o for o in OVERRIDES if not o.startswith(("optimizer", "schedule", "training.ema", "backbone.batch", "model"))
    ]
    more = [
        "optimizer=sgd",
        "optimizer.learning_rate=1e18",
        "schedule=step_decay",
        "schedule.factor=1",
        "schedule.every_epochs=1",
    ]
    done = finish(folder, *more, code=1, overrides=overrides)
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "diverged" and report["test"] is None and report["steps"] <= 8
    assert "diverged" in done.stdout
    for path in checkpoints(folder):
        assert all(np.isfinite(array).all() for array in checkpoint.read(path).arrays.values())


def test_what_a_killed_process_was_writing_is_swept_and_nothing_else(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    ours = [".history.csv.abc", ".report.json.abc", "checkpoints/.step-00000012.ckpt.abc"]
    theirs = [".notes.json.old", "history.csv.bak"]
    for name in (*ours, *theirs):
        (folder / name).write_text("cut sho")
    finish(folder)
    assert not [name for name in ours if (folder / name).exists()]
    assert all((folder / name).read_text() == "cut sho" for name in theirs)
    assert_same(result(folder), result(uninterrupted))


@pytest.fixture(scope="module")
def pets_run(tmp_path_factory):
    """A folder with a run on images that were moved since, the run's overrides, and its report."""
    base = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for path in range(40):
        folder = base / "here" / "ab"[path % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{path:02}.png")
    overrides = ["data=images", "backbone.filters=[4]", "model.hidden=[4]", "training.epochs=1", "training.batch_size=8",
             "tensorboard.enabled=false"]  # fmt: skip
    done = go_on(base / "run", overrides, base / "here")
    (base / "here").rename(base / "there")
    return base, overrides, done


@pytest.fixture
def pets(pets_run, tmp_path):
    """Return (overrides, report, old folder of the images) of a copy of that run in this test's folder."""
    base, overrides, done = pets_run
    for name in ("run", "there"):
        shutil.copytree(base / name, tmp_path / name)
    return overrides, copy.deepcopy(done), base / "here"


def go_on(run, overrides, folder):
    return train_run(config.parse([*overrides, f"data.dir={folder}"]), run, console.Display(quiet=True))


def change(tmp_path, what):
    if what == "other images":
        Image.new("RGB", (32, 32), "red").save(tmp_path / "there" / "b" / "01.png")
    elif what == "other classes":
        (tmp_path / "there" / "b").rename(tmp_path / "there" / "c")


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("what", ["the same images", "other images", "other classes"])
def test_a_run_goes_on_where_its_images_have_moved(tmp_path, pets, is_ended, what):
    overrides, done, here = pets
    run, there = tmp_path / "run", tmp_path / "there"
    change(tmp_path, what)
    if not is_ended:
        (tmp_path / "run" / "report.json").unlink()
    with pytest.raises(DataError, match="here does not exist"):
        go_on(run, overrides, here) if not is_ended else evaluation.load(done, [])
    if what == "the same images":
        again = go_on(run, overrides, there)
        assert again["weights_sha256"] == done["weights_sha256"]
        assert again["config"]["data"]["dir"] == str(here if is_ended else there)
        assert evaluation.load(done, [f"data.dir={there}"])[1] is None
    else:
        with pytest.raises(
            ConfigError, match="started with (other images|the classes).* or choose another hydra.run.dir"
        ):
            go_on(run, overrides, there)


@pytest.mark.parametrize("what", ["the same images", "other images"])
def test_a_sweep_knows_its_runs_where_their_images_have_moved(tmp_path, pets, what):
    overrides, done, _ = pets
    (tmp_path / "sweep").mkdir()
    (tmp_path / "run").rename(tmp_path / "sweep" / "seed=0")
    job = Job("seed=0", [], done["config"], "completed")
    Ledger(tmp_path / "sweep", [], [job]).write()
    change(tmp_path, what)
    overrides = [*overrides, f"data.dir={tmp_path / 'there'}", "seed=0,1"]
    planned = plan.Plan.of(parse_sweep(overrides)).grid()
    if what == "other images":
        with pytest.raises(ConfigError, match="none of these is one of them"):
            Ledger.open(tmp_path / "sweep", [], planned)
        return
    actual = Ledger.open(tmp_path / "sweep", [], planned)
    assert [job.state for job in actual.jobs] == ["completed", "waiting"] and not actual.others
    of_search = Ledger.open(tmp_path / "sweep", [], None, planned[:1])
    assert of_search.jobs[0].config["data"]["dir"] == str(tmp_path / "there")
