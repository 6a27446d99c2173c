"""Optimizers: small factories on TensorFlow's fused update kernels.

Each returns an `Optimizer`, which holds no variables: `init` creates them, `apply` updates weights in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cifar_research.config.targets import check_range
from cifar_research.runtime.lazy import tf

Slots = Sequence["tf.Variable"]  # of one weight
Update = Callable[["tf.Variable", Slots, "tf.Tensor", "tf.Tensor", "tf.Tensor"], None]
Directions = Callable[[Sequence["tf.Variable"], Sequence[Slots], Sequence["tf.Tensor"]], Sequence["tf.Tensor"]]


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated.

    slots: names of the values kept for each weight: float32 of its shape, initially 0.
    update: (weight, slots, gradient, learning_rate, step) -> None, in place. step: float32, 1 at the first update.
    weight_decay: decoupled (Loshchilov and Hutter 2019), for weights of rank 2 and more: not for biases and norms.
    clip_norm: the largest global norm of the gradients, which are scaled down to it (Pascanu et al. 2013).
    bias_scale: multiplies the learning rate of weights of rank 0 and 1.
    directions: (weights, slots, gradients) -> what `update` takes instead of the gradients, computed for all weights at
    once; None is the gradients.
    """

    learning_rate: float
    slots: tuple[str, ...]
    update: Update
    weight_decay: float = 0.0
    clip_norm: float | None = None
    bias_scale: float = 1.0
    directions: Directions | None = None

    def __post_init__(self) -> None:
        check_range("(]", 0, learning_rate=self.learning_rate, clip_norm=self.clip_norm, bias_scale=self.bias_scale)
        check_range("[]", 0, weight_decay=self.weight_decay)

    def init(self, weights: Sequence[tf.Variable]) -> list[list[tf.Variable]]:
        """Return the slot variables, a list for each weight."""
        return [
            [tf.Variable(tf.zeros(weight.shape), trainable=False, name=f"slot_{slot}") for slot in self.slots]
            for weight in weights
        ]

    def apply(
        self,
        weights: Sequence[tf.Variable],
        slots: Sequence[Slots],
        gradients: Sequence[tf.Tensor],
        learning_rates: Sequence[tf.Tensor],
        steps: Sequence[tf.Tensor],
    ) -> None:
        """Update every weight once. steps: each weight's number of updates, this one included."""
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        if self.directions is not None:
            gradients = self.directions(weights, slots, gradients)
        for weight, slot, gradient, learning_rate, step in zip(
            weights, slots, gradients, learning_rates, steps, strict=True
        ):
            if self.weight_decay and weight.shape.rank > 1:
                _subtract(weight, weight * (learning_rate * self.weight_decay))
            if self.bias_scale != 1 and weight.shape.rank <= 1:
                learning_rate = learning_rate * self.bias_scale
            self.update(weight, slot, gradient, learning_rate, step)


def adam(
    *,
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    clip_norm: float | None = None,
) -> Optimizer:
    """Adam, with the bias correction in the learning rate (Kingma and Ba 2015, section 2).

    learning_rate: The peak learning rate, which the schedule multiplies.
    beta_1: The share that the mean of the gradients keeps at each step.
    beta_2: The share that the mean of the squared gradients keeps at each step.
    epsilon: Added to the root in the denominator.
    clip_norm: Scale the gradients down to this global norm if it is larger; null does not clip.
    """
    return adamw(
        learning_rate=learning_rate, weight_decay=0, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, clip_norm=clip_norm
    )


def adamw(
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    clip_norm: float | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    weight_decay: The decoupled weight decay, not of biases and norms.
    """
    check_range("(]", 0, epsilon=epsilon)
    check_range("[)", 0, 1, beta_1=beta_1, beta_2=beta_2)

    def update(weight: tf.Variable, slots: Slots, gradient: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
        mean, variance = (slot.handle for slot in slots)
        powers = {"beta1_power": beta_1**step, "beta2_power": beta_2**step}
        settings = {"beta1": beta_1, "beta2": beta_2, "epsilon": epsilon}
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle, m=mean, v=variance, lr=rate, grad=gradient, **powers, **settings
        )

    return Optimizer(learning_rate, ("mean", "variance"), update, weight_decay, clip_norm)


def sgd(
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    bias_scale: float = 1.0,
    clip_norm: float | None = None,
) -> Optimizer:
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013) if it is not 0.

    momentum: The share of the velocity that is kept at each step; 0 keeps none.
    nesterov: Use Nesterov's momentum.
    bias_scale: Multiplies the learning rate of biases and norms (Jordan 2024, arXiv 2404.00498).
    """
    _check_momentum(momentum, nesterov)

    def update(weight: tf.Variable, slots: Slots, gradient: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
        if slots:
            _momentum_step(weight, slots[0], gradient, rate, momentum, nesterov)
        else:
            tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=rate, delta=gradient)

    return Optimizer(learning_rate, ("momentum",) if momentum else (), update, weight_decay, clip_norm, bias_scale)


def muon(
    *,
    learning_rate: float,
    momentum: float = 0.6,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    iterations: int = 3,
    other_scale: float = 1.0,
    bias_scale: float = 1.0,
    clip_norm: float | None = None,
) -> Optimizer:
    """Muon: momentum orthogonalized by Newton-Schulz iterations, for convolutions.

    A kernel [h, w, C, K] is a matrix [h w C, K]. Its update has a spectral norm of about 1, and its filters keep an
    average norm of 1, as in the authors' airbench94_muon (Jordan et al. 2024). This needs a batch normalisation in
    training mode after it, which a pretrained network in inference mode lacks. Other weights use SGD with that
    momentum.

    weight_decay: The decoupled decay of dense kernels, at the rate without `other_scale`; convolutions keep their norm.
    iterations: The Newton-Schulz iterations of each update.
    other_scale: Multiplies the learning rate of all weights but convolution kernels.
    """
    _check_momentum(momentum, nesterov)
    check_range("(]", 0, other_scale=other_scale)
    check_range("[]", 1, 20, iterations=iterations)

    def directions(
        weights: Sequence[tf.Variable], slots: Sequence[Slots], gradients: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        results = list(gradients)
        for numbers in _kernels(weights):
            shape, moved = weights[numbers[0]].shape, []
            for number in numbers:
                (slot,) = slots[number]
                velocity = slot * momentum + gradients[number]
                assign(slot, velocity)
                moved.append(gradients[number] + velocity * momentum if nesterov else velocity)
            matrices = orthogonalized(tf.reshape(tf.stack(moved), [len(moved), -1, shape[-1]]), iterations)
            for number, matrix in zip(numbers, tf.unstack(matrices), strict=True):
                results[number] = tf.reshape(matrix, shape)
        return results

    def update(weight: tf.Variable, slots: Slots, direction: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
        if weight.shape.rank == 4:
            normed = weight * (weight.shape[-1] ** 0.5 / (tf.norm(weight) + 1e-7))
            assign(weight, normed - rate * direction)
        else:
            _momentum_step(weight, slots[0], direction, rate * other_scale, momentum, nesterov)

    return Optimizer(learning_rate, ("momentum",), update, weight_decay, clip_norm, bias_scale, directions)


def _kernels(weights: Sequence[tf.Variable]) -> list[list[int]]:
    """Return the positions of convolution kernels, those whose directions are computed together in one list.

    On a GPU these are the kernels of one shape, as fewer and larger products are faster there. On a CPU each is alone:
    an operation may have one thread, so that kernels are faster side by side.
    """
    positions = [number for number, weight in enumerate(weights) if weight.shape.rank == 4]
    if not _on_gpu():
        return [[number] for number in positions]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number in positions:
        by_shape.setdefault(tuple(weights[number].shape), []).append(number)
    return list(by_shape.values())


def _on_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def orthogonalized(matrices: tf.Tensor, iterations: int) -> tf.Tensor:
    """Return nearly U V^T of each matrix U S V^T, float32 [N, n, m] (Jordan et al. 2024).

    The larger singular values become about 1, between 0.7 and 1.2; few iterations leave small ones small. It computes in
    bfloat16 on a GPU, and on a CPU with matrix units.
    """
    from cifar_research.models.layers import has_onednn

    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = tf.linalg.matrix_transpose(matrices) if is_tall else matrices
    x = x / (tf.norm(x, axis=[-2, -1], keepdims=True) + 1e-7)
    if _on_gpu() or has_onednn("amx_bf16"):
        x = tf.cast(x, tf.bfloat16)
    a, b, c = (tf.constant(value, x.dtype) for value in (3.4445, -4.7750, 2.0315))
    for _ in range(iterations):
        gram = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
    x = tf.cast(x, tf.float32)
    return tf.linalg.matrix_transpose(x) if is_tall else x


def rmsprop(
    *,
    learning_rate: float,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    clip_norm: float | None = None,
) -> Optimizer:
    """RMSprop (Hinton 2012, lecture 6e): the gradient over the root of its mean square.

    rho: The share that the mean of the squared gradients keeps at each step.
    epsilon: Added to the mean square, under the root.
    """
    check_range("(]", 0, epsilon=epsilon)
    check_range("[)", 0, 1, rho=rho, momentum=momentum)

    def update(weight: tf.Variable, slots: Slots, gradient: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
        mean_square, velocity = (slot.handle for slot in slots)
        settings = {"rho": rho, "momentum": momentum, "epsilon": epsilon}
        tf.raw_ops.ResourceApplyRMSProp(
            var=weight.handle, ms=mean_square, mom=velocity, lr=rate, grad=gradient, **settings
        )

    return Optimizer(learning_rate, ("mean_square", "momentum"), update, clip_norm=clip_norm)


def lion(
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    clip_norm: float | None = None,
) -> Optimizer:
    """Lion (Chen et al. 2023): w -= r sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g.

    beta_1: The share of the kept mean in the direction of a step, b1.
    beta_2: The share that the mean of the gradients keeps at each step, b2.
    """
    check_range("[)", 0, 1, beta_1=beta_1, beta_2=beta_2)

    def update(weight: tf.Variable, slots: Slots, gradient: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
        (momentum,) = slots
        direction = tf.sign(beta_1 * momentum + (1 - beta_1) * gradient)
        _subtract(weight, rate * direction)
        _subtract(momentum, (1 - beta_2) * (momentum - gradient))

    return Optimizer(learning_rate, ("momentum",), update, weight_decay, clip_norm)


def _check_momentum(momentum: float, nesterov: bool) -> None:
    check_range("[)", 0, 1, momentum=momentum)
    if nesterov and momentum == 0:
        raise ValueError("nesterov: true needs a momentum above 0; set nesterov=false or momentum=0.9")


def _momentum_step(
    weight: tf.Variable, slot: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor, momentum: float, nesterov: bool
) -> None:
    """Update a weight in Keras's form: v = m v - r g; w += v, or m v - r g with Nesterov."""
    settings = {"momentum": momentum, "use_nesterov": nesterov}
    tf.raw_ops.ResourceApplyKerasMomentum(var=weight.handle, accum=slot.handle, lr=rate, grad=gradient, **settings)


# Under a strategy, the variables' own methods would reduce over the replicas again; these update one replica's copy.
def assign(variable: tf.Variable, value: tf.Tensor) -> None:
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def _subtract(variable: tf.Variable, value: tf.Tensor) -> None:
    tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=value)
