"""NaN or infinity at any step ends the run within one logging interval and damages no file."""

import pytest

from cifar_research import config
from cifar_research.display import console
from cifar_research.runs import checkpoint, report
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=100", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[4]",
    "training.epochs=4", "training.batch_size=30", "tensorboard.enabled=false", "optimizer=sgd",
    "training.ema_decay=0.9", "allow_targets=[not_a_number]", "~schedule", "+schedule={_target_:not_a_number.at}",
]  # fmt: skip
MODULE = """
def at(*, step: int = -1):
    def rate(number, total_steps, steps_per_epoch):
        import tensorflow as tf
        return tf.where(tf.equal(number, float(step)), float("nan"), 0.01)
    return rate
"""


@pytest.mark.parametrize("step", [0, 1, 5, 9])
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_nan_in_the_weights_ends_the_run_and_leaves_the_best_ones(tmp_path, monkeypatch, step, steps_per_call):
    (tmp_path / "not_a_number.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    interval = 3
    more = [f"training.steps_per_call={steps_per_call}", f"training.log_every_steps={interval}"]
    settings = config.parse([*SMALL, *more, f"+schedule.step={step}"])
    folder = tmp_path / "run"
    kept = []
    result = train_run(
        settings, folder, console.Display(quiet=True), is_hopeless=lambda row: kept.append(_best(folder))
    )
    assert result["status"] == "diverged" and result["test"] is None and result["weights_sha256"] is None
    # The update of this step makes the weights nan, the loss of the next one shows it.
    assert step < result["steps"] <= step + 1 + max(interval, steps_per_call)
    assert report.read_report(folder / "report.json")["status"] == "diverged"
    assert len(kept) == step // 3  # the epochs that ended before it
    if kept:
        assert _best(folder) and _best(folder).items() <= kept[-1].items()
        last = checkpoint.Checkpoints(folder / "checkpoints", keep=2).latest()
        assert last.meta["step"] <= step


def _best(folder):
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("step-*.ckpt")}
