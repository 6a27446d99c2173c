"""One step of training and of evaluation: the only GradientTape that trains."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from cifar_research.augmentation.geometry import shrink
from cifar_research.augmentation.tta import averaged
from cifar_research.config.contracts import Backbone
from cifar_research.models import layers
from cifar_research.optimization.optimizers import Optimizer
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import shards

# Sums over images, float64 [3]: of the losses, of the right answers, of the images. Added up one step after the
# other, so that they do not depend on where a call of many steps begins or a run is resumed.
Totals = tf.Tensor


# Where steps are counted and seeds made, also on a GPU: there, each step would wait for the end of the one before, since
# TensorFlow keeps int32, which seeds are, in the host's memory.
_HOST = "/CPU:0"


@dataclass(frozen=True)
class View:
    """What a phase makes of a batch, and which part of the model it sends that through.

    train: (inputs, labels, seed int32 [2], epoch_seed int32 [2]) -> (inputs, targets float32 [B, K]); evaluate: (inputs,
    labels) -> the same.
    network: (inputs, training) -> logits [B, K]; penalties: what its last call has added to the loss.
    """

    train: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    evaluate: Callable[[Any, Any], tuple[Any, Any]]
    network: Callable[[Any, bool], Any]
    penalties: Callable[[], list[Any]]


@dataclass(eq=False)
class Task:
    """What a step works on: made once before training; `enter` sets what differs between phases.

    model: backbone and head; backbone: what the backbone promises.
    augment: (images float32 [B, H, W, C] in [0, 1], targets [B, K], seed and epoch_seed int32 [2]) -> the same two.
    mean, deviation: float32 [C], of the training images by channel; None leaves images in [0, 1].
    learning_rate: updates done, float32 -> the rate of the next update.
    parts: of a batch, see shards.parts; several_images: whether every batch has more than one.
    weights: those that the phase trains, with their slots; scales: what each one's learning rate is multiplied by.
    first_step: the updates that had been done when the phase began; optimizer_first_steps: when each weight's slots did.
    """

    model: keras.Model
    backbone: Backbone
    loss: Callable[[Any, Any], Any]
    optimizer: Optimizer
    augment: Callable[..., tuple[Any, Any]]
    learning_rate: Callable[[Any], Any]
    num_classes: int
    seed: int
    steps_per_epoch: int = 1
    mean: Any = None
    deviation: Any = None
    precision: str = "float32"
    jit_compile: bool = False
    ema_decay: float | None = None
    parts: int = 1
    several_images: bool = False
    view: View = field(init=False)
    weights: list[tf.Variable] = field(init=False)
    slots: list[list[tf.Variable]] = field(init=False)
    scales: list[float] = field(init=False)
    first_step: int = field(init=False)
    optimizer_first_steps: list[int] = field(init=False)
    averages: list[tf.Variable] = field(init=False)
    step: tf.Variable = field(init=False)
    loss_scale: tf.Variable = field(init=False)
    finite_steps: tf.Variable = field(init=False)

    def __post_init__(self) -> None:
        trainable, paths = self.model.trainable_variables, [weight.path for weight in self.model.weights]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ConfigError(
                f"backbone or model: two weights are called {twice[0]!r}, and checkpoints go by names; give their "
                "layers different ones"
            )
        slots = self.optimizer.init([weight.value for weight in trainable])
        self._kept = {weight.path: (weight.value, of) for weight, of in zip(trainable, slots, strict=True)}
        self.enter(self._kept, images_view(self), self.learning_rate)
        averaged = self.model.weights if self.ema_decay else []
        self.averages = [tf.Variable(weight.value, trainable=False, name="average") for weight in averaged]
        with tf.device(_HOST):
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.loss_scale = tf.Variable(2.0**15, trainable=False, name="loss_scale")
        self.finite_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_steps")

    def enter(
        self,
        trained: Collection[str],
        view: View,
        learning_rate: Callable[[Any], Any],
        *,
        scales: Mapping[str, float] | None = None,
        first_step: int = 0,
        optimizer_first_steps: Mapping[str, int] | None = None,
    ) -> None:
        """Begin or go on with a phase that trains the weights of these paths; steps traced before are of another."""
        found = {path: kept for path, kept in self._kept.items() if path in trained}
        self.weights, self.slots = [weight for weight, _ in found.values()], [slots for _, slots in found.values()]
        self.scales = [(scales or {}).get(path, 1.0) for path in found]
        self.view, self.learning_rate = view, learning_rate
        self.first_step = first_step
        self.optimizer_first_steps = [(optimizer_first_steps or {}).get(path, 0) for path in found]

    def count(self, paths: Collection[str]) -> int:
        """Return how many numbers the trainable weights of these paths hold."""
        return sum(int(weight.shape.num_elements()) for path, (weight, _) in self._kept.items() if path in paths)

    def reset_optimizer(self) -> None:
        """Forget what the optimizer has kept of every weight."""
        for _, slots in self._kept.values():
            for slot in slots:
                slot.assign(tf.zeros_like(slot))

    def variables(self) -> dict[str, Any]:
        """Return everything that training changes, by a name that is the same in every process."""
        named = {f"model/{weight.path}": weight.value for weight in self.model.variables}
        for path, (_, slots) in self._kept.items():
            named |= {f"optimizer/{path}/{n}": v for n, v in zip(self.optimizer.slots, slots, strict=True)}
        if self.ema_decay:
            pairs = zip(self.model.weights, self.averages, strict=True)
            named |= {f"ema/{weight.path}": average for weight, average in pairs}
        named |= {"step": self.step, "loss_scale": self.loss_scale, "finite_steps": self.finite_steps}
        return named


def prepare(task: Task, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images float32 [B, H, W, C] in [0, 1] and one-hot targets [B, K] for uint8 images and int labels."""
    return tf.cast(images, tf.float32) / 255, tf.one_hot(labels, task.num_classes)


def standardize(task: Task, images: tf.Tensor) -> tf.Tensor:
    """Return images with the training set's mean and deviation by channel taken out, if the config asks for it."""
    return images if task.mean is None else (images - task.mean) / task.deviation


def images_view(
    task: Task,
    network: Callable[[Any, bool], Any] | None = None,
    *,
    views: str = "none",
    image_size: int | None = None,
) -> View:
    """Return the view of images uint8 [B, H, W, C] and labels int64 [B]: augmented to train, through the whole model.

    network: another way through it, from images float32 to logits; views: over which those of a test are averaged;
    image_size: what images are resized to in training, after augmentation.
    """

    def train(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, epoch_seed: tf.Tensor) -> tuple[Any, Any]:
        images, targets = task.augment(*prepare(task, images, labels), seed, epoch_seed)
        if image_size is not None:
            images = shrink(images, image_size)
        return standardize(task, images), targets

    def evaluate(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, targets = prepare(task, images, labels)
        return standardize(task, images), targets

    whole = network or (lambda images, training: task.model(images, training=training))
    return View(train, evaluate, averaged(whole, views), lambda: task.model.losses)


def train_step(task: Task, inputs: tf.Tensor, labels: tf.Tensor) -> Totals:
    """Do one update on a batch as the task's view takes it: mostly uint8 images and int64 labels. Return its totals.

    Augmentation and dropout are drawn from (seed, step, replica) alone. The gradient is that of the mean loss
    over the images of all replicas.
    """
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group if context.num_replicas_in_sync > 1 else None
    with tf.device(_HOST):
        seeds = _Seeds.at(task, task.step, replica)
    inputs, targets = task.view.train(inputs, labels, seeds.view, seeds.epoch)
    update = functools.partial(_update, task)
    if task.jit_compile:
        update = tf.function(update, jit_compile=True)
    totals = update(inputs, targets, seeds.network, seeds.step)
    _add(task.step, tf.constant(1, tf.int64))
    return totals


class _Seeds(NamedTuple):
    """What a step's random numbers are drawn from, int32 [2] each, and how many steps were before it, float32."""

    view: tf.Tensor
    epoch: tf.Tensor
    network: tf.Tensor
    step: tf.Tensor

    @classmethod
    def at(cls, task: Task, step: Any, replica: tf.Tensor | None = None) -> _Seeds:
        of_run = tf.constant(task.seed, tf.int32)
        seed = tf.stack([of_run, tf.cast(step, tf.int32)])
        if replica is not None:
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        view, network = (tf.random.experimental.stateless_fold_in(seed, number) for number in range(2))
        epoch = tf.stack([of_run, tf.cast(step // task.steps_per_epoch, tf.int32)])
        return cls(view, epoch, network, tf.cast(step, tf.float32))


def _update(task: Task, inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor, step: tf.Tensor) -> Totals:
    """Forward, backward, update: what XLA compiles at least if training.jit_compile says so."""
    context = tf.distribute.get_replica_context()
    num_images = _all_sum(context, tf.cast(tf.shape(inputs)[0], tf.float32))
    several_images = layers.several_images(task.several_images)
    with tf.GradientTape() as tape, layers.random_seed(seed), several_images:
        scored = _scored(task, task.view.network, inputs, targets, training=True)
        # Part by part, so that a part's gradient does not wait for the others' losses.
        objective = tf.add_n([tf.reduce_sum(losses) for _, losses in scored]) / num_images
        if penalties := task.view.penalties():  # on weights, which a model of the user's may bring
            objective += tf.add_n(penalties) / context.num_replicas_in_sync
        if task.precision == "float16":
            objective *= task.loss_scale
    gradients = tape.gradient(objective, task.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [_all_sum(context, gradient) for gradient in gradients]

    def apply() -> None:
        rate = task.learning_rate(step)
        rates = [rate if scale == 1 else rate * scale for scale in task.scales]
        updates = {first: step - first + 1 for first in task.optimizer_first_steps}
        counts = [updates[first] for first in task.optimizer_first_steps]
        task.optimizer.apply(task.weights, task.slots, gradients, rates, counts)

    if task.precision == "float16":
        gradients = [gradient / task.loss_scale for gradient in gradients]
        tf.cond(_rescale(task, gradients), lambda: (apply(), 0)[1], lambda: 0)
    else:
        apply()
    if task.ema_decay:
        _average(task, step - task.first_step)

    logits, losses = (tf.concat(of_parts, 0) for of_parts in zip(*scored, strict=True))
    right = tf.equal(tf.argmax(logits, -1), tf.argmax(targets, -1))
    sums = [tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.float32)), tf.cast(tf.shape(inputs)[0], tf.float32)]
    return tf.cast(tf.stack(sums), tf.float64)


def eval_step(
    task: Task, inputs: tf.Tensor, labels: tf.Tensor, view: View | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Score a batch without changing anything: return losses float32 [B] and predicted classes int64 [B].

    view: what makes sense of the batch; None is the task's own.
    """
    view = view or task.view
    scored = _scored(task, view.network, *view.evaluate(inputs, labels), training=False)
    logits, losses = (tf.concat(of_parts, 0) for of_parts in zip(*scored, strict=True))
    return losses, tf.argmax(logits, -1)


def _scored(
    task: Task, network: Callable[[Any, bool], Any], inputs: tf.Tensor, targets: tf.Tensor, *, training: bool
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return logits float32 [b, K] and losses float32 [b] of each of the batch's parts."""
    scored = []
    for first_row, (some, their_targets) in shards.cut(task.parts, inputs, targets):
        with layers.rows_from(first_row):
            logits = tf.cast(network(some, training), tf.float32)
        scored.append((logits, task.loss(logits, their_targets)))
    return scored


def many_steps(task: Task, strategy: tf.distribute.Strategy) -> Callable[..., Totals]:
    """Return the traced call: (iterator, num_steps int32, totals) -> totals with those of num_steps steps added."""

    @tf.function(reduce_retracing=True)
    def call(iterator, num_steps, totals):
        for _ in tf.range(num_steps):
            of_replicas = strategy.run(train_step, args=(task, *next(iterator)))
            totals += strategy.reduce(tf.distribute.ReduceOp.SUM, of_replicas, axis=None)
        return totals

    return _told_of_xla(call) if task.jit_compile else call


def one_program(task: Task, read: Callable[[Any], tuple[Any, Any]]) -> Callable[..., Totals]:
    """Return the call of `many_steps` for data that is on the device, by as few programs of XLA as there are elements.

    An element of its iterator is what `read` makes the batches of several steps of, all of one size: [steps, ...]. On a
    GPU, where most of a small network's step goes into starting one operation after the other, that is 1.6 to 1.9 times
    as fast as compiling steps one by one. XLA compiles what the view does, too.
    """

    @tf.function(jit_compile=True)
    def program(first, element, totals):
        for number in tf.range(tf.shape(element)[0]):
            seeds = _Seeds.at(task, first + tf.cast(number, tf.int64))
            inputs, targets = task.view.train(*read(element[number]), seeds.view, seeds.epoch)
            totals += _update(task, inputs, targets, seeds.network, seeds.step)
        return totals

    @tf.function(reduce_retracing=True)
    def call(iterator, num_steps, totals):
        end = task.step + tf.cast(num_steps, tf.int64)
        while task.step < end:
            (element,) = next(iterator)
            totals = program(tf.identity(task.step), element, totals)
            _add(task.step, tf.shape(element, tf.int64)[0])
        return totals

    return _told_of_xla(call)


def _told_of_xla(call: Callable[..., Totals]) -> Callable[..., Totals]:
    """Return the call that raises a ConfigError for what XLA cannot compile, a transform of the user's for example."""

    def told(*arguments: Any) -> Totals:
        try:
            return call(*arguments)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if "tf2xla conversion failed" not in str(error):
                raise
            operations = sorted(set(re.findall(r"No registered '(\w+)' OpKernel", str(error))))
            missing = (
                f"has no {', '.join(operations)}, which a step of this run needs" if operations else "cannot compile it"
            )
            raise ConfigError(
                f"training.jit_compile: XLA {missing}; set training.jit_compile=false{'' if operations else f' ({error})'}"
            ) from error

    return told


def _all_sum(context: tf.distribute.ReplicaContext, value: tf.Tensor) -> tf.Tensor:
    return value if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _rescale(task: Task, gradients: list[tf.Tensor]) -> tf.Tensor:
    """Say whether the gradients are finite; halve the loss scale if not, double it after 2,000 finite steps.

    Dynamic loss scaling (Micikevicius et al. 2018); a step whose gradients overflowed changes no trained weight.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    steps = tf.where(finite, task.finite_steps + 1, 0)
    grown = tf.where(steps >= 2_000, task.loss_scale * 2, task.loss_scale)
    _set(task.loss_scale, tf.where(finite, tf.minimum(grown, 2.0**24), tf.maximum(task.loss_scale / 2, 1.0)))
    _set(task.finite_steps, tf.where(steps >= 2_000, tf.zeros_like(steps), steps))
    return finite


def _average(task: Task, step: tf.Tensor) -> None:
    """Move the averages towards the weights (Polyak and Juditsky 1992), here exponentially with `ema_decay`.

    Faster at first, so that short runs forget their first weights.
    """
    decay = tf.minimum(task.ema_decay, (1 + step) / (10 + step))
    for average, weight in zip(task.averages, task.model.weights, strict=True):
        if weight.value.dtype.is_floating:
            _add(average, (1 - decay) * (weight.value - average))
        else:  # a count
            _set(average, weight.value)


# Under a strategy these change this replica's copy: all replicas compute the same, and `assign` would reduce again.
def _add(variable: tf.Variable, value: tf.Tensor) -> None:
    tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=value)


def _set(variable: tf.Variable, value: tf.Tensor) -> None:
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
