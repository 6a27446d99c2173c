"""A step of training and of evaluation, with the only GradientTape that trains."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from cifar_research.augmentation.tta import Network
from cifar_research.models import layers
from cifar_research.optimization.optimizers import assign
from cifar_research.training import shards
from cifar_research.training.forward import Forward
from cifar_research.training.state import HOST, TrainState

# Sums over images, float64 [3]: losses, correct predictions, images. They are added step by step, so that they do not
# depend on the steps per call or on a resume.
Totals: TypeAlias = tf.Tensor


def train_step(state: TrainState, inputs: tf.Tensor, labels: tf.Tensor, *, jit_compile: bool = False) -> Totals:
    """Do one update on a batch, mostly uint8 images and int64 labels; return its totals.

    jit_compile: compile all but the augmentation with XLA. Augmentation and dropout depend only on (seed, step, replica),
    and on whether XLA compiles them: it draws other numbers. The gradient is that of the mean loss over the images of all
    replicas.
    """
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group if context.num_replicas_in_sync > 1 else None
    with tf.device(HOST):
        augmentation, epoch, network = _seeds(state, state.step, replica)
        step = tf.cast(state.step, tf.float32)
    inputs, targets = state.forward.train(inputs, labels, augmentation, epoch)
    update = functools.partial(_update, state)
    if jit_compile:
        update = tf.function(update, jit_compile=True, autograph=False)
    totals = update(inputs, targets, network, step)
    _add(state.step, tf.constant(1, tf.int64))
    return totals


# What TensorFlow says if XLA cannot compile: an operation, or on a GPU without a part of CUDA.
_NOT_COMPILED = ("tf2xla conversion failed", "libdevice", "ptxas")


class CannotCompile(Exception):
    """XLA cannot compile a step."""


def _seeds(state: TrainState, step: Any, replica: tf.Tensor | None = None) -> tuple[tf.Tensor, ...]:
    """Return a step's seeds, int32 [2]: of the augmentation, of its epoch, of the network."""
    of_run = tf.constant(state.seed, tf.int32)
    seed = tf.stack([of_run, tf.cast(step, tf.int32)])
    if replica is not None:
        seed = tf.random.experimental.stateless_fold_in(seed, replica)
    augmentation, network = (tf.random.experimental.stateless_fold_in(seed, number) for number in range(2))
    epoch = tf.stack([of_run, tf.cast(step // state.steps_per_epoch, tf.int32)])
    return augmentation, epoch, network


def _update(state: TrainState, inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor, step: tf.Tensor) -> Totals:
    """Forward, backward and update."""
    context = tf.distribute.get_replica_context()
    num_images = _all_sum(context, tf.cast(tf.shape(inputs)[0], tf.float32))
    debiased = layers.debiased(step - state.first_step if state.debiases_norms else None)
    with tf.GradientTape() as tape, layers.called_with(seed=seed, several_images=state.several_images), debiased:
        scored = _scored(state, state.forward.network, inputs, targets, training=True)
        # Sum by shard, so that a shard's gradient does not wait for the other shards.
        objective = tf.add_n([tf.reduce_sum(losses) for _, losses in scored]) / num_images
        if penalties := state.forward.penalties():  # weight penalties of a user's model
            objective += tf.add_n(penalties) / context.num_replicas_in_sync
        if state.precision == "float16":
            objective *= state.loss_scale
    gradients = tape.gradient(objective, state.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = _all_sum(context, gradients)  # in one call, which packs them

    def apply() -> int:
        rate = state.learning_rate(step)
        rates = [rate if scale == 1 else rate * scale for scale in state.scales]
        updates = {first: step - first + 1 for first in state.optimizer_first_steps}
        counts = [updates[first] for first in state.optimizer_first_steps]
        state.optimizer.apply(state.weights, state.slots, gradients, rates, counts)
        return 0

    if state.precision == "float16":
        gradients = [gradient / state.loss_scale for gradient in gradients]
        tf.cond(_rescale(state, gradients), apply, lambda: 0)
    else:
        apply()
    if state.ema_decay:
        _average(state, step - state.first_step)

    logits, losses = (tf.concat(of_shards, 0) for of_shards in zip(*scored, strict=True))
    correct = tf.equal(tf.argmax(logits, -1), tf.argmax(targets, -1))
    sums = [
        tf.reduce_sum(losses),
        tf.reduce_sum(tf.cast(correct, tf.float32)),
        tf.cast(tf.shape(inputs)[0], tf.float32),
    ]
    return tf.cast(tf.stack(sums), tf.float64)


def eval_step(
    state: TrainState, inputs: tf.Tensor, labels: tf.Tensor, forward: Forward
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Score a batch; return losses float32 [B], predicted classes int64 [B], and whether the class is in the top 5."""
    scored = _scored(state, forward.network, *forward.evaluate(inputs, labels), training=False)
    logits, losses = (tf.concat(of_shards, 0) for of_shards in zip(*scored, strict=True))
    in_top5 = tf.math.in_top_k(tf.cast(labels, tf.int32), logits, 5)
    return losses, tf.argmax(logits, -1), in_top5


def _scored(
    state: TrainState, network: Network, inputs: tf.Tensor, targets: tf.Tensor, *, training: bool
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return logits float32 [b, K] and losses float32 [b] of each shard of the batch."""
    scored, loss = [], state.loss if training else state.scoring_loss
    for first_row, (some, their_targets) in shards.cut(state.batch_shards, inputs, targets):
        with layers.called_with(first_row=first_row):
            logits = tf.cast(network(some, training), tf.float32)
        scored.append((logits, loss(logits, their_targets)))
    return scored


def many_steps(
    state: TrainState, strategy: tf.distribute.Strategy, *, jit_compile: bool = False
) -> Callable[..., Totals]:
    """Return a traced call: (iterator, num_steps int32, totals) -> totals plus the steps'."""
    one_step = functools.partial(train_step, jit_compile=jit_compile)

    @tf.function(reduce_retracing=True, autograph=False)
    def call(iterator: tf.data.Iterator, num_steps: tf.Tensor, totals: Totals) -> Totals:
        def step(number: tf.Tensor, totals: Totals) -> tuple[tf.Tensor, Totals]:
            of_replicas = strategy.run(one_step, args=(state, *iterator.get_next()))
            return number + 1, totals + strategy.reduce(tf.distribute.ReduceOp.SUM, of_replicas, axis=None)

        return tf.while_loop(lambda number, totals: number < num_steps, step, [0, totals])[1]

    return _with_xla_errors(call) if jit_compile else call


def one_program(state: TrainState, read: Callable[[Any], tuple[Any, Any]]) -> Callable[..., Totals]:
    """Return `many_steps` for data on the device, with one XLA program for each element.

    An element has one row a step, [steps, ...], and where later rows are only padding, the number of its steps. `read`
    returns the batch of a row. XLA also compiles the augmentation.
    On a GPU this is 1.6 to 1.9 times as fast as single steps: launching operations dominates a small network's step.
    """

    @tf.function(jit_compile=True, autograph=False)
    def program(first: tf.Tensor, totals: Totals, rows: tf.Tensor, count: tf.Tensor | None = None) -> Totals:
        def step(number: tf.Tensor, totals: Totals) -> tuple[tf.Tensor, Totals]:
            earlier_steps = first + tf.cast(number, tf.int64)
            augmentation, epoch, network = _seeds(state, earlier_steps)
            inputs, targets = state.forward.train(*read(rows[number]), augmentation, epoch)
            return number + 1, totals + _update(state, inputs, targets, network, tf.cast(earlier_steps, tf.float32))

        # A constant number of steps: for any other, a GPU would wait for the host in every step.
        count = tf.shape(rows)[0] if count is None else count
        return tf.while_loop(lambda number, totals: number < count, step, [0, totals])[1]

    @tf.function(reduce_retracing=True, autograph=False)
    def call(iterator: tf.data.Iterator, num_steps: tf.Tensor, totals: Totals) -> Totals:
        end = state.step + tf.cast(num_steps, tf.int64)

        def some_steps(totals: Totals) -> tuple[Totals]:
            rows, *count = iterator.get_next()
            totals = program(tf.identity(state.step), totals, rows, *count)
            with tf.device(HOST):
                _add(state.step, tf.cast(count[0], tf.int64) if count else tf.shape(rows, tf.int64)[0])
            return (totals,)

        return tf.while_loop(lambda totals: state.step < end, some_steps, [totals])[0]

    return _with_xla_errors(call)


def _with_xla_errors(call: Callable[..., Totals]) -> Callable[..., Totals]:
    """Return the call with XLA's compilation errors raised as CannotCompile."""

    def checked(*arguments: Any) -> Totals:
        try:
            return call(*arguments)
        except tf.errors.OpError as error:
            if not any(sign in str(error) for sign in _NOT_COMPILED):
                raise
            operation = re.search(r"No registered '(\w+)' OpKernel", str(error))
            reason = operation[1] if operation else error.message.splitlines()[0]
            raise CannotCompile(f"training.jit_compile: XLA cannot compile a step of this run ({reason})") from error

    return checked


def _all_sum(context: tf.distribute.ReplicaContext, value: Any) -> Any:
    return value if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _rescale(state: TrainState, gradients: list[tf.Tensor]) -> tf.Tensor:
    """Return whether the gradients are finite; halve the loss scale if not.

    Dynamic loss scaling (Micikevicius et al. 2018): the scale doubles after 2,000 finite steps, and a step that
    overflowed changes no trained weight.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    steps = tf.where(finite, state.finite_steps + 1, 0)
    grown = tf.where(steps >= 2_000, state.loss_scale * 2, state.loss_scale)
    assign(state.loss_scale, tf.where(finite, tf.minimum(grown, 2.0**24), tf.maximum(state.loss_scale / 2, 1.0)))
    assign(state.finite_steps, tf.where(steps >= 2_000, tf.zeros_like(steps), steps))
    _add(state.overflows, tf.cast(~finite, tf.int64))
    return finite


def _average(state: TrainState, step: tf.Tensor) -> None:
    """Update the exponential averages of the weights (Polyak and Juditsky 1992).

    The decay is smaller at first, so that short runs forget the first weights.
    """
    decay = tf.minimum(state.ema_decay, (1 + step) / (10 + step))
    for average, weight in zip(state.averages, state.model.weights, strict=True):
        if weight.value.dtype.is_floating:
            _add(average, (1 - decay) * (weight.value - average))
        else:  # a count
            assign(average, weight.value)


def _add(variable: tf.Variable, value: tf.Tensor) -> None:
    """Add to this replica's copy, see `assign`."""
    tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=value)
