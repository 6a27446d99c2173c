"""Schedules against hand-written curves."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cifar_research import config
from cifar_research.optimization import schedules

OPTIONS = sorted(path.stem for path in Path(config.config_dir(), "schedule").glob("*.yaml"))


def curve(schedule, steps, total=100, epoch=10):
    return schedule(tf.constant(steps, tf.float32), total, epoch).numpy().tolist()


CASES = [
    (schedules.constant(), [0, 50, 99], [1, 1, 1]),
    (schedules.constant(warmup_steps=4), [0, 1, 2, 3, 4, 50], [0.25, 0.5, 0.75, 1, 1, 1]),
    (schedules.constant(warmup_epochs=0.4), [0, 1, 2, 3, 4, 50], [0.25, 0.5, 0.75, 1, 1, 1]),
    (schedules.cosine(), [0, 25, 50, 75, 100], [1, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0]),
    (schedules.cosine(final_fraction=0.2), [0, 50, 100, 120], [1, 0.6, 0.2, 0.2]),
    (schedules.cosine(warmup_epochs=2), [0, 9, 19, 20, 60, 100], [0.05, 0.5, 1, 1, 0.5, 0]),
    (
        schedules.one_cycle(peak_at=0.2, initial_fraction=0.1, final_fraction=0.0),
        [0, 10, 20, 60, 100],
        [0.1, 0.55, 1, 0.5, 0],
    ),
    (schedules.one_cycle(peak_at=0.0, initial_fraction=1.0, final_fraction=0.5), [0, 50, 100], [1, 0.75, 0.5]),
    (schedules.step_decay(factor=0.1, every_epochs=3), [0, 29, 30, 59, 60], [1, 1, 0.1, 0.1, 0.01]),
    (schedules.step_decay(factor=0.5, every_steps=7), [6, 7, 14], [1, 0.5, 0.25]),
    (schedules.exponential(factor=0.5, every_epochs=1), [0, 5, 10, 20], [1, 0.5**0.5, 0.5, 0.25]),
    (schedules.exponential(factor=0.5, every_steps=2, warmup_steps=4), [0, 2, 4, 6], [0.25, 0.75, 1, 0.5]),
    (schedules.step_decay(factor=0.5, every_steps=3, warmup_steps=4), [3, 6, 7], [1, 1, 0.5]),
]


@pytest.mark.parametrize(("schedule", "steps", "expected"), CASES)
def test_curve(schedule, steps, expected):
    assert curve(schedule, steps) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_schedule_stays_in_range_traced_as_eager(option):
    schedule = config.parse([f"schedule={option}"]).schedule
    steps = tf.range(0.0, 100.0)
    values = schedule(steps, 100, 10).numpy()
    assert values.shape == (100,) and (values >= 0).all() and values.max() <= 1
    traced = tf.function(lambda step: schedule(step, 100, 10))
    np.testing.assert_allclose([traced(step).numpy() for step in steps[::17]], values[::17], rtol=1e-5)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["traced", "compiled"])
def test_a_step_of_a_schedule_is_on_time_whatever_its_period(is_compiled):
    late = []
    # The quotients of some of these fall short as products with 1 / period; 35.2 is 0.1 epochs of 352 steps.
    for period in (7, 41, 47, 82, 93, 97, 35.2):
        each = {"every_epochs": 0.1} if period == 35.2 else {"every_steps": period}
        schedule = schedules.step_decay(factor=0.5, **each)
        traced = tf.function(lambda steps, schedule=schedule: schedule(steps, 100, 352), jit_compile=is_compiled)
        steps = np.arange(int(20 * period) + 1)
        expected = 0.5 ** np.floor(steps * 10 // round(10 * period))
        late += [(period, step) for step in np.flatnonzero(traced(tf.constant(steps, tf.float32)).numpy() != expected)]
    assert not late
