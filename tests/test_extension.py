"""Extending a run equals a longer run, or is rejected."""

import re
import shlex
import shutil

import pytest

from cifar_research import config
from cifar_research.display import console
from cifar_research.optimization import schedules
from cifar_research.runs import checkpoint, report, reproduction, run_folder
from cifar_research.runtime import programs
from cifar_research.runtime.errors import ConfigError
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=200", "data.test_images=50", "backbone.filters=[4]", "model=wide",
    "model.hidden=[8]", "backbone.batch_norm=true", "backbone.dropout=0.2", "augmentation=[flip,shift]",
    "training.batch_size=32", "training.steps_per_call=4", "training.ema_decay=0.9", "tensorboard.enabled=false",
    "loss=categorical_crossentropy", "optimizer.learning_rate=0.003", "training.keep_checkpoints=1",
]  # fmt: skip
# A frozen backbone needs weights.
BACKBONE = ["backbone.filters=[4]", "backbone.batch_norm=true", "backbone.dropout=0.2"]
TIMES = ("seconds", "images_per_second", "peak_memory_bytes", "history_sha256")


def run(folder, *overrides):
    return train_run(config.parse([*SMALL, *overrides]), folder, console.Display(quiet=True))


def without_times(row):
    return {key: value for key, value in row.items() if key not in TIMES}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["schedule.warmup_epochs=1"], "training.epochs"),
        (["schedule=exponential", "schedule.factor=0.5", "schedule.every_steps=5", "optimizer=muon"], "training.epochs"),
        (
            ["training=combined", "training.phases.head.epochs=1", "training.phases.backbone.trainable={last:1}",
             "training.patience=3"],
            "training.phases.backbone.epochs",
        ),
    ],
)  # fmt: skip
def test_two_epochs_and_one_more_are_three(tmp_path, monkeypatch, overrides, key, weights_for):
    overrides, lines = [*overrides, weights_for(*BACKBONE)], []
    monkeypatch.setattr(console.Display, "message", lambda display, line: lines.append(line))
    whole = run(tmp_path / "whole", *overrides, f"{key}=3")
    run(tmp_path / "run", *overrides, f"{key}=2")
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    (tmp_path / "run" / "evaluation").mkdir()
    (tmp_path / "run" / "export").mkdir()
    more = run(tmp_path / "run", *overrides, f"{key}=3")
    assert without_times(more) == without_times(whole)
    histories = [report.read_history(tmp_path / name / "history.csv") for name in ("whole", "run")]
    assert [*map(without_times, histories[0])] == [*map(without_times, histories[1])]
    assert not (tmp_path / "run" / "evaluation.json").exists() and not (tmp_path / "run" / "evaluation").exists()
    assert any("holds the earlier weights; export again" in line for line in lines)


@pytest.fixture(scope="module")
def ended(tmp_path_factory, weights_for):
    """The folder of a run of two phases, two epochs each."""
    folder = tmp_path_factory.mktemp("ended") / "a run"
    run(folder, "training=combined", "training.epochs=2", weights_for(*BACKBONE))
    return folder


@pytest.mark.parametrize(
    ("begun", "overrides", "reason"),
    [
        (
            ["schedule=cosine"],
            ["training.phases.backbone.epochs=3"],
            "with schedule=cosine its learning rates depend on the number of epochs",
        ),
        (["schedule=one_cycle"], ["training.phases.backbone.epochs=3"], "schedule=one_cycle"),
        ([], ["training.epochs=3"], "only the last phase, backbone"),
        ([], ["training.phases.head.epochs=3"], "only the last phase, backbone"),
        ([], ["training.phases.backbone.epochs=1"], "has trained in 2 epochs already"),
        (["begun"], ["training.phases.backbone.epochs=1"], "has trained in 3 epochs already"),
        (
            ["training.patience=1"],
            ["training.phases.backbone.epochs=3"],
            "training.patience=1 has stopped it after epoch 4",
        ),
        (["status=diverged"], ["training.phases.backbone.epochs=3"], "it has ended as diverged"),
        (["checkpoints"], ["training.phases.backbone.epochs=3"], "its checkpoints are missing"),
    ],
)
def test_what_more_epochs_would_not_give_is_refused_with_its_command(
    ended, tmp_path, begun, overrides, reason, weights_for
):
    folder = tmp_path / "a run"
    shutil.copytree(ended, folder)
    result = report.read_report(folder / "report.json")
    keys = [word for word in begun if "." in word or word.startswith("schedule")]
    all_words = [*SMALL, weights_for(*BACKBONE), "training=combined", "training.epochs=2", *keys]
    before = config.parse(all_words).content
    status = "diverged" if "status=diverged" in begun else "completed"
    report.write_report(folder / "report.json", result | {"config": before, "status": status})
    last = max((folder / "checkpoints").glob("step-*"))
    kept = checkpoint.Checkpoints(folder / "checkpoints", 1).latest()
    best = kept.meta["best"] | ({"epoch": 3} if "training.patience=1" in begun else {})
    step = kept.meta["step"] + ("begun" in begun)
    shutil.rmtree(folder / "checkpoints") if "checkpoints" in begun else checkpoint.write(
        last, checkpoint.Checkpoint(kept.arrays, kept.meta | {"config": before, "best": best, "step": step})
    )
    with pytest.raises(ConfigError, match=re.escape(reason)) as raised:
        run_folder.earlier_state(config.parse([*all_words, *overrides]), folder)
    # What it tells to type composes the run that is meant.
    _, _, line = str(raised.value).partition("from the start, use ")
    program, *arguments = shlex.split(line)
    assert program == programs.program("train")
    again = config.parse(reproduction.parse_arguments(arguments)[0])
    assert not config.parse([*all_words, *overrides]).identity.differences(again.identity)


@pytest.mark.parametrize(
    ("overrides", "looks"),
    [
        ([], False),
        (["schedule.warmup_steps=3"], False),
        (["schedule=step_decay", "schedule.factor=0.5", "schedule.every_epochs=1"], False),
        (["schedule=exponential", "schedule.factor=0.5", "schedule.every_epochs=1"], False),
        (["schedule=cosine"], True),
        (["schedule=one_cycle"], True),
    ],
)
def test_a_schedule_looks_at_the_total_or_not(overrides, looks):
    schedule = config.parse(overrides).schedule
    assert schedules.looks_at_total(schedule, [20, 30], 10) == looks


def test_a_users_schedule_is_seen_to_look_at_the_total():
    assert schedules.looks_at_total(lambda step, total, steps: 1.0 / total, [20, 30], 10)
    assert schedules.looks_at_total(lambda step, total, steps: step * 0 + (1.0 if total > 25 else 0.5), [20, 30], 10)
    assert not schedules.looks_at_total(lambda step, total, steps: 1.0 / steps, [20, 30], 10)
