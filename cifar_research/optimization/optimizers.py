"""Optimizers: small factories on TensorFlow's fused update kernels.

Each returns an `Optimizer`, which says what is kept for a weight and how one update is done. It holds no
variables itself: `init` makes them, `apply` updates weights in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_research.config.targets import check_range


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated.

    update: (weight, slots, gradient, learning_rate, step) -> None, in place; `step`, float32, is 1 at the first.
    slots: names of the values kept for each weight, of its shape, float32, 0 at first.
    weight_decay: decoupled (Loshchilov and Hutter 2019); weights of rank 1, biases and norms, are spared.
    bias_scale: what the learning rate of weights of rank 1 is multiplied by.
    clip_norm: gradients are scaled down to this global norm (Pascanu et al. 2013).
    """

    learning_rate: float
    slots: tuple[str, ...]
    update: Callable[[Any, Sequence[Any], Any, Any, Any], None]
    weight_decay: float = 0.0
    clip_norm: float | None = None
    bias_scale: float = 1.0

    def init(self, weights: Sequence[Any]) -> list[list[Any]]:
        """Return the slot variables, a list for each weight."""
        import tensorflow as tf

        return [
            [tf.Variable(tf.zeros(weight.shape), trainable=False, name=f"slot_{slot}") for slot in self.slots]
            for weight in weights
        ]

    def apply(self, weights, slots, gradients, learning_rates, steps) -> None:
        """Update every weight once, each at its own learning rate.

        gradients: float32, of the weights' shapes; steps: since each one was first trained, with this one.
        """
        import tensorflow as tf

        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        for weight, kept, gradient, learning_rate, step in zip(
            weights, slots, gradients, learning_rates, steps, strict=True
        ):
            if self.weight_decay and weight.shape.rank > 1:
                _subtract(weight, weight * (learning_rate * self.weight_decay))
            if self.bias_scale != 1 and weight.shape.rank <= 1:
                learning_rate = learning_rate * self.bias_scale
            self.update(weight, kept, gradient, learning_rate, step)


def adam(
    *,
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    clip_norm: float | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba 2015), in the form of its section 2: bias correction moved into the learning rate."""
    return adamw(
        learning_rate=learning_rate,
        weight_decay=0.0,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        clip_norm=clip_norm,
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
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    check_range("(]", 0, learning_rate=learning_rate, clip_norm=clip_norm, epsilon=epsilon)
    check_range("[]", 0, weight_decay=weight_decay)
    check_range("[)", 0, 1, beta_1=beta_1, beta_2=beta_2)

    def update(weight, slots, gradient, learning_rate, step):
        import tensorflow as tf

        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=slots[0].handle,
            v=slots[1].handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
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

    weight_decay: decoupled (Loshchilov and Hutter 2019). bias_scale: biases and norms learn so many times faster
    (Jordan 2024, arXiv 2404.00498).
    """
    check_range("(]", 0, learning_rate=learning_rate, clip_norm=clip_norm, bias_scale=bias_scale)
    check_range("[]", 0, weight_decay=weight_decay)
    check_range("[)", 0, 1, momentum=momentum)
    if nesterov and momentum == 0:
        raise ValueError("nesterov: true needs a momentum above 0; set momentum=0.9 or nesterov=false")

    def update(weight, slots, gradient, learning_rate, step):
        import tensorflow as tf

        if not slots:
            tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=learning_rate, delta=gradient)
        else:
            _momentum_step(weight, slots[0], gradient, learning_rate, momentum, nesterov)

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
    """Muon (Jordan et al. 2024): momentum, made nearly orthogonal by Newton-Schulz iterations, for convolutions.

    A kernel [h, w, C, K] is seen as a matrix [h w C, K]. Its update has the spectral norm 1, and each filter is kept
    at the norm 1 on average, as in the authors' airbench94_muon, since a normalisation by the batch is to follow (a
    pretrained network, whose moving statistics stay, would be rescaled): learning_rate is the share of that by which it
    turns. All other weights are updated by SGD with the same momentum, at other_scale times the rate; those of rank 1 at
    bias_scale times that again.
    weight_decay: of the other weights of rank 2 and more; of convolutions the norm is kept, so that it changes nothing.
    iterations: of the quintic iteration; three are enough in practice, since singular values need only be near 1.
    """
    check_range(
        "(]", 0, learning_rate=learning_rate, clip_norm=clip_norm, other_scale=other_scale, bias_scale=bias_scale
    )
    check_range("[]", 0, weight_decay=weight_decay)
    check_range("[)", 0, 1, momentum=momentum)
    if nesterov and momentum == 0:
        raise ValueError("nesterov: true needs a momentum above 0; set momentum=0.6 or nesterov=false")
    check_range("[]", 1, 20, iterations=iterations)

    def update(weight, slots, gradient, learning_rate, step):
        import tensorflow as tf

        (kept,) = slots
        if weight.shape.rank != 4:
            _momentum_step(weight, kept, gradient, learning_rate * other_scale, momentum, nesterov)
            return
        moved = kept * momentum + gradient
        _assign(kept, moved)
        direction = gradient + moved * momentum if nesterov else moved
        filters = weight.shape[-1]
        matrix = orthogonalized(tf.reshape(direction, [-1, filters]), iterations)
        normed = weight * (filters**0.5 / (tf.norm(weight) + 1e-7))
        _assign(weight, normed - learning_rate * tf.reshape(matrix, weight.shape))

    return Optimizer(learning_rate, ("momentum",), update, weight_decay, clip_norm, bias_scale)


def orthogonalized(matrix, iterations: int):
    """Return nearly U V^T of the matrix U S V^T, float32 [n, m], by Newton-Schulz iterations (Jordan et al. 2024).

    The quintic's coefficients were chosen for speed: singular values end between about 0.7 and 1.2. In bfloat16, which
    it was made for, where the processor has matrix units for it; that is decided by `layers.has_matrix_units`.
    """
    import tensorflow as tf

    from cifar_research.models.layers import has_matrix_units

    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)
    if has_matrix_units():
        x = tf.cast(x, tf.bfloat16)
    a, b, c = (tf.constant(value, x.dtype) for value in (3.4445, -4.7750, 2.0315))
    for _ in range(iterations):
        gram = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
    x = tf.cast(x, tf.float32)
    return tf.transpose(x) if tall else x


def rmsprop(
    *,
    learning_rate: float,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    clip_norm: float | None = None,
) -> Optimizer:
    """RMSprop (Hinton 2012, lecture 6e): the gradient over the root of its mean square."""
    check_range("(]", 0, learning_rate=learning_rate, clip_norm=clip_norm, epsilon=epsilon)
    check_range("[)", 0, 1, rho=rho, momentum=momentum)

    def update(weight, slots, gradient, learning_rate, step):
        import tensorflow as tf

        tf.raw_ops.ResourceApplyRMSProp(
            var=weight.handle,
            ms=slots[0].handle,
            mom=slots[1].handle,
            lr=learning_rate,
            rho=rho,
            momentum=momentum,
            epsilon=epsilon,
            grad=gradient,
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
    """Lion (Chen et al. 2023): w -= r sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g."""
    check_range("(]", 0, learning_rate=learning_rate, clip_norm=clip_norm)
    check_range("[]", 0, weight_decay=weight_decay)
    check_range("[)", 0, 1, beta_1=beta_1, beta_2=beta_2)

    def update(weight, slots, gradient, learning_rate, step):
        import tensorflow as tf

        (momentum,) = slots
        direction = tf.sign(beta_1 * momentum + (1 - beta_1) * gradient)
        _subtract(weight, learning_rate * direction)
        _subtract(momentum, (1 - beta_2) * (momentum - gradient))

    return Optimizer(learning_rate, ("momentum",), update, weight_decay, clip_norm)


def _momentum_step(weight, kept, gradient, learning_rate, momentum: float, nesterov: bool) -> None:
    """Move a weight in Keras's form, in which the momentum holds the learning rate: v = m v - r g; w += v, or m v - r g."""
    import tensorflow as tf

    tf.raw_ops.ResourceApplyKerasMomentum(
        var=weight.handle, accum=kept.handle, lr=learning_rate, grad=gradient, momentum=momentum, use_nesterov=nesterov
    )


def _assign(variable, value) -> None:
    """Set this replica's copy, see `_subtract`."""
    import tensorflow as tf

    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def _subtract(variable, value) -> None:
    """Subtract in place from this replica's copy: under a strategy, the methods of variables would reduce again."""
    import tensorflow as tf

    tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=value)
