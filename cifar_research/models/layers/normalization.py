"""Drop-in for Keras's layers, without their element-wise work: normalisation, dropout, activations, convolution, dense."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_context = threading.local()  # one a thread, since each replica of a strategy is traced in a thread of its own


def random_seed(seed: tf.Tensor) -> contextlib.AbstractContextManager[None]:
    """Draw the random numbers of every layer called within from `seed`, int32 [2].

    The layers keep no random state, so a step's masks depend on nothing but the seed it is given.
    """
    return _within("seed", seed)


def rows_from(first: tf.Tensor | None) -> contextlib.AbstractContextManager[None]:
    """Say that what layers see within are a batch's rows from this one on, int32, so that masks are the whole batch's.

    None: they see all of it.
    """
    return _within("first_row", first)


def several_images(are_there: bool) -> contextlib.AbstractContextManager[None]:
    """Say whether every batch seen within has more than one image, so that no layer provides for one."""
    return _within("several_images", are_there)


def portable() -> contextlib.AbstractContextManager[None]:
    """Trace what is called within from TensorFlow's plain ops, which converters to other formats know."""
    return _within("portable", True)


@contextlib.contextmanager
def _within(name: str, value: Any) -> Iterator[None]:
    before = getattr(_context, name, None)
    setattr(_context, name, value)
    try:
        yield
    finally:
        setattr(_context, name, before)


class Dropout(keras.layers.Layer):
    """Dropout (Srivastava et al. 2014) with masks that are a function of `random_seed` and the layer's name.

    Inputs and outputs: float [B, ...]. An element is kept with probability 1 - rate, to within 1 / 65,536, since
    16 random bits decide on it: a quarter of the random bits, and of the time, that a float uniform takes.
    noise_shape: that of the mask, None where it is the inputs' own; 1 drops along that axis as one.
    Called with training=True outside of `random_seed`, it raises ValueError.
    """

    def __init__(self, rate: float, noise_shape: Sequence[int | None] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rate, self.noise_shape = rate, noise_shape

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        seed = getattr(_context, "seed", None)
        if seed is None:
            if not isinstance(inputs, tf.Tensor):  # Keras is only asking for the shape
                return inputs
            raise ValueError(f"{self.name}: call the model inside `with layers.random_seed(seed)` to train it")
        seed = tf.random.experimental.stateless_fold_in(seed, zlib.crc32(self.name.encode()) & 0x7FFFFFFF)
        shape, first_row = tf.shape(inputs), getattr(_context, "first_row", None)
        if self.noise_shape is not None:
            shape = tf.stack([shape[i] if size is None else size for i, size in enumerate(self.noise_shape)])
            first_row = first_row if self.noise_shape[0] is None else None
        before = 0 if first_row is None else first_row * tf.reduce_prod(shape[1:])
        bits = _random_bits(seed, before, tf.reduce_prod(shape))
        kept = bits >= tf.constant(min(round(self.rate * 65_536), 65_535), tf.uint16)
        mask = tf.cast(tf.reshape(kept, shape), inputs.dtype)
        return inputs * mask * tf.cast(1 / (1 - self.rate), inputs.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape}


def _random_bits(seed: tf.Tensor, begin: tf.Tensor | int, size: tf.Tensor) -> tf.Tensor:
    """Return uint16 [size]: those from `begin` on of the seed's endless row of them, by Philox (Salmon et al. 2011)."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    block = begin // 8  # eight of them are what one count of Philox makes
    counter += tf.cast(tf.stack([block, 0]), tf.uint64)
    skipped = begin - 8 * block
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[(skipped + size + 1) // 2], key=key, counter=counter, alg=1, dtype=tf.uint32
    )
    return tf.reshape(tf.bitcast(words, tf.uint16), [-1])[skipped : skipped + size]


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation (Ioffe and Szegedy 2015) by TensorFlow's fused kernel.

    Inputs: float [B, H, W, C] or [B, C], seen by the kernel as [B, 1, 1, C]. Statistics are float32 whatever
    the precision of the inputs. Under a `tf.distribute` strategy the replicas' moments are averaged, since the
    kernel sees one replica only. Momentum and epsilon default to Keras's 0.99 and 0.001.
    A batch of one value a channel has no variance (cuDNN returns nan, other kernels 0): on every device it is normalised
    by the moving statistics, and leaves them as they are.
    """

    def call(self, inputs: tf.Tensor, training: bool = False, mask=None) -> tf.Tensor:
        if not isinstance(inputs, tf.Tensor) or not self.center:
            return super().call(inputs, training=training, mask=mask)
        training = bool(training and self.trainable)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync if training else 1
        if replicas > 1:
            return self._call_synchronized(inputs)
        images = inputs if inputs.shape.rank == 4 else inputs[:, tf.newaxis, tf.newaxis, :]
        count = tf.size(images) // images.shape[-1]
        is_single = count == 1 if training and _may_be_single(images) else None
        if is_single is None:
            outputs, mean, variance = self._normalized(images, training)
        else:
            outputs, mean, variance = tf.cond(
                is_single, lambda: self._normalized(images, False), lambda: self._normalized(images, True)
            )
        if training:
            # The kernel returns the unbiased variance; Keras averages the biased one.
            count = tf.cast(count, tf.float32)
            self._move(mean, variance * (count - 1) / count, is_single)
        return outputs if inputs.shape.rank == 4 else outputs[:, 0, 0, :]

    def _normalized(self, images: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return the normalised images, and the mean and unbiased variance [C] of the batch if in training."""
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=self._scale(),
            offset=self.beta.value,
            mean=tf.zeros([0]) if training else self.moving_mean.value,
            variance=tf.zeros([0]) if training else self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=training,
        )
        return outputs, mean, variance

    def _call_synchronized(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise with the moments of the whole batch: sums and counts are added up over the replicas.

        There are two images or more, since tasks.build rejects a batch that leaves a replica without one.
        """
        context = tf.distribute.get_replica_context()
        floats = tf.cast(inputs, tf.float32)
        axes = list(range(inputs.shape.rank - 1))
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        count = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
        mean = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(floats, axes)) / count
        # In two passes: the difference of squares would lose the digits that equality with one device needs.
        squares = tf.reduce_sum(tf.math.squared_difference(floats, mean), axes)
        variance = context.all_reduce(tf.distribute.ReduceOp.SUM, squares) / count
        self._move(mean, variance)
        outputs = tf.nn.batch_normalization(floats, mean, variance, self.beta.value, self._scale(), self.epsilon)
        return tf.cast(outputs, inputs.dtype)

    def _scale(self) -> tf.Tensor:
        return self.gamma.value if self.scale else tf.ones_like(self.beta.value)

    def _move(self, mean: tf.Tensor, variance: tf.Tensor, is_single: tf.Tensor | None = None) -> None:
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moved = average.value * self.momentum + value * (1 - self.momentum)
            if is_single is not None:
                moved = tf.where(is_single, average.value, moved)
            # This replica's copy: every replica has the same moments, and `assign` would reduce them once more.
            tf.raw_ops.AssignVariableOp(resource=average.value.handle, value=moved)


def _may_be_single(maps: tf.Tensor) -> bool:
    """Return whether maps [B, H, W, C] may have one value a channel, as far as it is known when they are traced."""
    return not getattr(_context, "several_images", False) and all(size in (None, 1) for size in maps.shape[:-1])


class Activation(keras.layers.Activation):
    """An activation that is one pass over memory, forward and backward: XLA fuses its element-wise ops.

    Inputs and outputs: float [B, ...]. On two cores GELU and its gradient take a quarter of the time. ReLU stays as it
    is: TensorFlow fuses it with what comes before. Within `portable` it is made of plain ops.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        name = keras.activations.serialize(self.activation)
        is_portable = getattr(_context, "portable", None)
        if is_portable and name == "gelu":  # Keras's takes the complementary error function, which ONNX has not
            return 0.5 * inputs * (1 + tf.math.erf(inputs * tf.cast(0.5**0.5, inputs.dtype)))
        if is_portable or name == "relu" or not isinstance(inputs, tf.Tensor):
            return super().call(inputs)
        return _fused(name)(inputs)


@functools.cache
def _fused(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    function = keras.activations.get(name)

    def slope(inputs: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        return tape.gradient(outputs, inputs, gradient)

    forward = tf.function(function, jit_compile=True, autograph=False)
    backward = tf.function(slope, jit_compile=True, autograph=False)

    @tf.custom_gradient
    def apply(inputs: tf.Tensor):
        return forward(inputs), lambda gradient: backward(inputs, gradient)

    # A function that is traced once a shape: TensorFlow holds each graph that calls tf.custom_gradient for good.
    return tf.function(apply, autograph=False)


class ReluMaxPooling2D(keras.layers.MaxPooling2D):
    """ReLU, then max pooling, with the gradient of both in one pass over memory.

    Inputs: float [B, H, W, C]; outputs [B, h, w, C]. A maximum is above 0 where what it was taken of is, so that the
    outputs' signs tell where the gradient goes on: ReLU's own gradient would pass over the inputs, four times as many.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        positive = keras.ops.relu(inputs)
        outputs = super().call(positive)
        if not isinstance(inputs, tf.Tensor) or self.data_format != "channels_last":
            return outputs
        settings = {"ksize": [1, *self.pool_size, 1], "strides": [1, *self.strides, 1], "padding": self.padding.upper()}
        # Not tf.custom_gradient, see `_fused`; and a function would be in the way of the convolution's fusion with ReLU.
        attributes = [part for item in settings.items() for part in item]
        tf.__internal__.record_gradient("ReluMaxPooling2D", [inputs, positive], attributes, [outputs])
        return outputs


@tf.RegisterGradient("ReluMaxPooling2D")
def _relu_max_pooling_gradient(op: Any, upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
    (_, positive), (outputs,) = op.inputs, op.outputs
    kept = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
    settings = dict(zip(op.attrs[::2], op.attrs[1::2], strict=True))
    return tf.raw_ops.MaxPoolGrad(orig_input=positive, orig_output=outputs, grad=kept, **settings), None


@keras.saving.register_keras_serializable("cifar_research")  # so that a model that has it can be cloned
class Dirac(keras.initializers.GlorotUniform):
    """Kernels [h, w, C, K] whose first min(C, K) filters pass their channel on as it is (Zagoruyko and Komodakis 2017).

    The rest are Glorot's.
    """

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        height, width, channels, filters = shape
        passed = min(channels, filters)
        identity = tf.eye(channels, passed, dtype=dtype or tf.float32)[tf.newaxis, tf.newaxis]
        around = [[(height - 1) // 2, height // 2], [(width - 1) // 2, width // 2], [0, 0], [0, 0]]
        return tf.concat([tf.pad(identity, around), super().__call__(shape, dtype)[..., passed:]], axis=-1)


class Dense(keras.layers.Dense):
    """Dense layer that adds the bias's gradient up in float32, see `_biased`.

    Inputs: float [B, ..., C]; outputs [B, ..., units].
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not (self.use_bias and isinstance(inputs, tf.Tensor) and inputs.dtype == tf.bfloat16):
            return super().call(inputs, training=training)
        return self.activation(_biased(keras.ops.matmul(inputs, self.kernel), self.bias))


class Conv2D(keras.layers.Conv2D):
    """Convolution whose filter gradient is taken of images side by side, where that is faster: see `_is_narrow`.

    Inputs: float [B, H, W, C]; outputs [B, h, w, filters]. The bias's gradient is added up in float32, see `_biased`.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        is_ours = self.use_bias and isinstance(inputs, tf.Tensor) and inputs.dtype == tf.bfloat16
        if is_ours and self.data_format == "channels_last" and not _has_onednn("avx512f"):
            return self.activation(_biased(self.convolution_op(inputs, self.kernel), self.bias))
        outputs = super().call(inputs)
        is_plain = self.strides == (1, 1) and self.dilation_rate == (1, 1) and self.padding == "same"
        is_plain = (
            is_plain
            and self.data_format == "channels_last"
            and self.groups == 1
            and self.activation is keras.activations.linear
        )
        if is_plain and isinstance(inputs, tf.Tensor) and _is_narrow(inputs, self.kernel):
            variables = [self.kernel, *([self.bias] if self.use_bias else [])]
            of = [inputs, *(tf.convert_to_tensor(variable) for variable in variables)]
            tf.__internal__.record_gradient("Conv2DSideBySide", of, [], [outputs])
        return outputs


def _biased(outputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Add a bias [K] to bfloat16 [..., K]; its gradient is added up in float32.

    TensorFlow's own kernel adds bfloat16 up in bfloat16, which of 2,048 images loses a quarter of it, and of the pixels of
    32 x 32 images most. (That of a convolution's bias oneDNN computes with the filters', in float32, where it can.)
    """
    bias = tf.convert_to_tensor(bias)
    biased = tf.nn.bias_add(outputs, bias)
    tf.__internal__.record_gradient("BiasAddInFloat32", [outputs, bias], [], [biased])
    return biased


@tf.RegisterGradient("BiasAddInFloat32")
def _bias_gradient(op: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
    sums = tf.reduce_sum(tf.cast(upstream, tf.float32), list(range(upstream.shape.rank - 1)))
    return [upstream, tf.cast(sums, upstream.dtype)]


@tf.RegisterGradient("Conv2DSideBySide")
def _conv2d_gradient(op: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
    images, kernel, *bias = op.inputs
    of_images = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    of_kernel, of_bias = filter_gradient(images, upstream, kernel.shape[:2])
    return [of_images, of_kernel, *([of_bias] if bias else [])]


def _is_narrow(images: tf.Tensor, kernel: tf.Tensor) -> bool:
    """Say whether maps are too narrow for the library's filter gradient: bfloat16 on AMX, and many channels.

    oneDNN multiplies a row of pixels at a time, and the matrix units take 32 of them at once.
    """
    is_worth_it = images.shape[2] <= 8 and min(kernel.shape[-2:]) >= 64
    return is_worth_it and images.dtype == tf.bfloat16 and has_matrix_units()


def has_matrix_units() -> bool:
    """Say whether the processor multiplies bfloat16 matrices in units of its own (Intel AMX), and no GPU does the work."""
    return _has_onednn("amx_bf16")


@functools.cache
def _has_onednn(feature: str) -> bool:
    """Say whether oneDNN does the work, on a processor that has the feature."""
    try:
        has = feature in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("0", "false")
    return has and not is_off and not tf.config.list_physical_devices("GPU")


def filter_gradient(images: tf.Tensor, gradient: tf.Tensor, size: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of kernel [h, w, C, K] and bias [K] of a zero-padded convolution of stride 1.

    images: [B, H, W, C]; gradient: that of the outputs, [B, H, W, K]. Sixteen images at a time, if that divides the
    batch, are one wide one, with zeros between them.
    """
    number = tf.where(tf.shape(images)[0] % 16 == 0, 16, 1)
    gradient = _side_by_side(gradient, number, size[1] // 2)
    of_kernel = tf.raw_ops.Conv2DBackpropFilter(
        input=_side_by_side(images, number, size[1] // 2),
        filter_sizes=[*size, images.shape[-1], gradient.shape[-1]],
        out_backprop=gradient,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    return of_kernel, tf.raw_ops.BiasAddGrad(out_backprop=gradient)  # of the same tensor, so that TensorFlow fuses them


def _side_by_side(images: tf.Tensor, number: tf.Tensor, between: int) -> tf.Tensor:
    _, height, width, channels = images.shape
    rows = tf.transpose(tf.reshape(images, [-1, number, height, width, channels]), [0, 2, 1, 3, 4])
    rows = tf.pad(rows, [[0, 0], [0, 0], [0, 0], [0, between], [0, 0]])
    return tf.reshape(rows, [-1, height, number * (width + between), channels])
