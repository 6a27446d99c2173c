"""The state of training (TrainState) and its position (Progress): what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from cifar_research.config.contracts import LossFunction
from cifar_research.optimization.optimizers import Optimizer
from cifar_research.runtime.errors import ConfigError
from cifar_research.training.forward import Forward, Preprocessing, of_images

# Keep the step counter and the seeds on the host. TensorFlow stores int32 in host memory, so seeds on the device would
# make every step wait for the one before.
HOST = "/CPU:0"


@dataclass(eq=False)
class TrainState:
    """The model, the optimizer's slots and the counters; `enter` sets the fields of a phase.

    loss: what training minimizes, (logits, targets [B, K]) -> float32 [B]. scoring_loss: of validation and test.
    does_without_xla: whether XLA could not compile a step. debiases_norms: see layers.debiased. batch_shards:
    see shards.count. several_images: whether every batch has more than one image.
    Of the phase: forward, weights, slots. learning_rate: step, float32 -> rate. scales: each weight's multiplier of the
    rate. first_step: the phase's. optimizer_first_steps: each weight's since the optimizer's reset.
    """

    model: keras.Model
    loss: LossFunction
    scoring_loss: LossFunction
    optimizer: Optimizer
    preprocessing: Preprocessing
    seed: int
    steps_per_epoch: int = 1
    precision: str = "float32"
    ema_decay: float | None = None
    batch_shards: int = 1
    debiases_norms: bool = False
    several_images: bool = False
    does_without_xla: bool = False

    def __post_init__(self) -> None:
        trainable, paths = self.model.trainable_variables, [weight.path for weight in self.model.weights]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ConfigError(
                f"backbone or model: two weights have the name {twice[0]!r}, and checkpoints store weights by name; give "
                "their layers different names"
            )
        slots = self.optimizer.init([weight.value for weight in trainable])
        self._slots = {weight.path: (weight.value, of) for weight, of in zip(trainable, slots, strict=True)}
        self.enter(self._slots, of_images(self.preprocessing, self.model), lambda step: self.optimizer.learning_rate)
        averaged = self.model.weights if self.ema_decay else []
        self.averages = [tf.Variable(weight.value, trainable=False, name="average") for weight in averaged]
        with tf.device(HOST):
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.loss_scale = tf.Variable(2.0**15, trainable=False, name="loss_scale")
        self.finite_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_steps")
        self.overflows = tf.Variable(0, dtype=tf.int64, trainable=False, name="overflows")

    def enter(
        self,
        trained: Collection[str],
        forward: Forward,
        learning_rate: Callable[[Any], Any],
        *,
        scales: Mapping[str, float] | None = None,
        first_step: int = 0,
        optimizer_first_steps: Mapping[str, int] | None = None,
    ) -> None:
        """Enter a phase that trains the weights of these paths; steps must be traced again."""
        entered = {path: pair for path, pair in self._slots.items() if path in trained}
        self.weights, self.slots = [weight for weight, _ in entered.values()], [slots for _, slots in entered.values()]
        self.scales = [(scales or {}).get(path, 1.0) for path in entered]
        self.forward, self.learning_rate = forward, learning_rate
        self.first_step = first_step
        self.optimizer_first_steps = [(optimizer_first_steps or {}).get(path, 0) for path in entered]

    def count(self, paths: Collection[str]) -> int:
        """Return the number of trainable parameters of these weight paths."""
        return sum(int(weight.shape.num_elements()) for path, (weight, _) in self._slots.items() if path in paths)

    def reset_optimizer(self) -> None:
        """Set all of the optimizer's slots to zero."""
        for _, slots in self._slots.values():
            for slot in slots:
                slot.assign(tf.zeros_like(slot))

    def variables(self) -> dict[str, Any]:
        """Return everything that training changes, by a name that is stable across processes."""
        named = {f"model/{weight.path}": weight.value for weight in self.model.variables}
        for path, (_, slots) in self._slots.items():
            named |= {f"optimizer/{path}/{n}": v for n, v in zip(self.optimizer.slots, slots, strict=True)}
        if self.ema_decay:
            pairs = zip(self.model.weights, self.averages, strict=True)
            named |= {f"ema/{weight.path}": average for weight, average in pairs}
        return named | {name: getattr(self, name) for name in ("step", "loss_scale", "finite_steps", "overflows")}


@dataclass
class Progress:
    """The position of a run.

    phase: index of the current phase. phase_steps, phase_epochs: steps and epochs before each phase so far. epoch:
    complete epochs. totals: of the current epoch: sum of losses, correct predictions, images. seconds: of the current
    epoch. elapsed: seconds of earlier processes, from their first step on. best: step, epoch, monitored value, validation loss.
    overflows: steps of earlier epochs that overflowed float16. history: one row an epoch, as in history.csv.
    """

    step: int = 0
    epoch: int = 0
    phase: int = 0
    phase_steps: list[int] = field(default_factory=lambda: [0])
    phase_epochs: list[int] = field(default_factory=lambda: [0])
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    elapsed: float = 0.0
    best: dict[str, Any] | None = None
    overflows: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def means(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy of the current epoch so far."""
        losses, correct, images = self.totals
        return losses / images, correct / images
