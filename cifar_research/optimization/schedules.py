"""Learning-rate schedules: (step, total_steps, steps_per_epoch) -> factor.

The learning rate is multiplied by the factor. step: float32 tensor, the number of updates done, 0 at the first.
A warm-up multiplies the schedule by min((step + 1) / warm-up steps, 1) (Goyal et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cifar_research.config.targets import check_range
from cifar_research.runtime.lazy import tf

Schedule = Callable[["tf.Tensor", int, int], "tf.Tensor"]
Factor = Callable[["tf.Tensor", float, int, int], "tf.Tensor"]  # (step, warm-up steps, total_steps, steps_per_epoch)


def constant(*, warmup_epochs: float = 0.0, warmup_steps: int = 0) -> Schedule:
    """The factor 1, after the warm-up.

    warmup_epochs: The epochs over which the learning rate first rises linearly.
    warmup_steps: The warm-up in steps, in place of `warmup_epochs`.
    """
    return _after_warmup(warmup_epochs, warmup_steps, lambda step, begin, total_steps, steps_per_epoch: 1.0)


def cosine(*, final_fraction: float = 0.0, warmup_epochs: float = 0.0, warmup_steps: int = 0) -> Schedule:
    """f + (1 - f) (1 + cos(pi p)) / 2, where f is final_fraction (Loshchilov and Hutter 2017).

    p is the share done of the steps after the warm-up.

    final_fraction: The share of the peak learning rate that is left at the end, f.
    """
    check_range("[]", 0, 1, final_fraction=final_fraction)

    def factor(step: tf.Tensor, begin: float, total_steps: int, steps_per_epoch: int) -> tf.Tensor:
        share = tf.clip_by_value((step - begin) / max(total_steps - begin, 1), 0.0, 1.0)
        return final_fraction + (1 - final_fraction) * (0.5 * (1 + tf.cos(math.pi * share)))

    return _after_warmup(warmup_epochs, warmup_steps, factor)


def one_cycle(*, peak_at: float = 0.25, initial_fraction: float = 0.04, final_fraction: float = 0.0) -> Schedule:
    """The one-cycle policy without its momentum (Smith and Topin 2018).

    Linear from initial_fraction up to 1 at the share `peak_at` of all steps, then linear down to final_fraction.

    peak_at: The share of all steps at which the peak is reached; 0 starts at the peak.
    initial_fraction: The share of the peak learning rate at the start.
    final_fraction: The share of the peak learning rate at the end.
    """
    check_range("[]", 0, 1, peak_at=peak_at, initial_fraction=initial_fraction, final_fraction=final_fraction)

    def schedule(step: tf.Tensor, total_steps: int, steps_per_epoch: int) -> tf.Tensor:
        peak = peak_at * total_steps
        up = initial_fraction + (1 - initial_fraction) * step / max(peak, 1e-6)
        down = 1 - (1 - final_fraction) * (step - peak) / max(total_steps - peak, 1e-6)
        return tf.where(step < peak, up, tf.maximum(down, final_fraction))

    return schedule


def step_decay(
    *,
    factor: float,
    every_epochs: float | None = None,
    every_steps: int | None = None,
    warmup_epochs: float = 0.0,
    warmup_steps: int = 0,
) -> Schedule:
    """factor^n after n whole periods. ValueError without every_epochs and every_steps.

    factor: Multiplies the learning rate once a period.
    every_epochs: The period in epochs.
    every_steps: The period in steps; if given, it counts in place of `every_epochs`.
    """
    return _after_warmup(warmup_epochs, warmup_steps, _decay(factor, every_epochs, every_steps, in_steps=True))


def exponential(
    *,
    factor: float,
    every_epochs: float | None = None,
    every_steps: int | None = None,
    warmup_epochs: float = 0.0,
    warmup_steps: int = 0,
) -> Schedule:
    """factor^(step / period). ValueError without every_epochs and every_steps.

    factor: Multiplies the learning rate over each period, a little at each step.
    """
    return _after_warmup(warmup_epochs, warmup_steps, _decay(factor, every_epochs, every_steps, in_steps=False))


def looks_at_total(schedule: Schedule, totals: Sequence[int], steps_per_epoch: int) -> bool:
    """Return whether a schedule's graph differs between these values of total_steps."""
    graphs = set()
    for total in totals:
        with tf.Graph().as_default() as graph:
            tf.convert_to_tensor(schedule(tf.compat.v1.placeholder(tf.float32, []), total, steps_per_epoch))
        graphs.add(graph.as_graph_def().SerializeToString(deterministic=True))
    return len(graphs) > 1


def _after_warmup(epochs: float, steps: int, factor: Factor) -> Schedule:
    """Return `factor`(step, warm-up steps, total_steps, steps_per_epoch) with a warm-up."""
    check_range("[]", 0, warmup_epochs=epochs, warmup_steps=steps)
    if epochs and steps:
        raise ValueError(f"warmup_steps: {steps} cannot be combined with warmup_epochs={epochs}; set one of them to 0")

    def schedule(step: tf.Tensor, total_steps: int, steps_per_epoch: int) -> tf.Tensor:
        begin = steps or epochs * steps_per_epoch
        ramp = tf.minimum((step + 1) / begin, 1.0) if begin > 0 else tf.ones_like(step)
        return ramp * factor(step, begin, total_steps, steps_per_epoch)

    return schedule


def _decay(factor: float, epochs: float | None, steps: int | None, *, in_steps: bool) -> Factor:
    """Return factor^(periods so far), whole ones if `in_steps`; ValueError without a period in epochs or steps."""
    check_range("(]", 0, 1, factor=factor)
    check_range("(]", 0, every_epochs=epochs, every_steps=steps)
    if epochs is None and steps is None:
        raise ValueError("every_epochs: every_epochs and every_steps are both null; set one of them")

    def decayed(step: tf.Tensor, begin: float, total_steps: int, steps_per_epoch: int) -> tf.Tensor:
        period = (epochs or 0) * steps_per_epoch if steps is None else steps
        step = tf.maximum(step - begin, 0.0)
        if not in_steps:
            return factor ** (step / period)
        # In a graph the quotient is a product with 1 / period, which may round to just below a whole number.
        return factor ** tf.cast(tf.floor(tf.cast(step, tf.float64) / period + 1e-9), tf.float32)

    return decayed
